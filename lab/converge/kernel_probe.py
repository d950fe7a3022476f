"""The last probe of `lab up`: a kernel started on one node through a gateway, asked where it is, and ended."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lab.drivers.machines import Gateway
from lab.errors import LabNotReady
from lab.probes import rest

if TYPE_CHECKING:  # half of what every command would wait for at its start; only `up` needs them
    import httpx
    from websockets.sync.client import ClientConnection

LOG_LINES = 20
WHERE = "__import__('os').environ.get('LAB_NODE') or __import__('socket').gethostname()"
"""What a kernel says of its place; nodes that are processes share the machine's host name and carry their own."""


@dataclass(frozen=True)
class Landing:
    """Where a probe's kernel ran (its own words), and the seconds from the request to its first kernel_info_reply."""

    node: str
    hostname: str
    seconds: float


def start_kernel_on(gateway: Gateway, node: str, kernelspec: str, *, seconds: float = 60) -> Landing:
    """Start *kernelspec* pinned to *node* (full name), ask it for its host name, delete it.

    Raise LabNotReady when anything of that fails or takes longer than *seconds*, or when it landed elsewhere.
    """
    import httpx
    from websockets.exceptions import WebSocketException
    from websockets.sync.client import connect

    began = time.monotonic()
    deadline = began + seconds
    what = f"the kernel probe of {node} ({kernelspec} through {gateway.url})"

    def failed(cause: str) -> LabNotReady:
        remedy = f"`lab logs {gateway.name}` and `lab logs {node.partition('.')[0]}` have all of it; `lab up` again"
        return LabNotReady(f"{what} failed", cause=cause, remedy=remedy, logs=gateway.logs(LOG_LINES))

    kernel_id = ""
    with httpx.Client(base_url=gateway.url, timeout=seconds, trust_env=False, headers=gateway.headers) as http:
        try:
            request = {"name": kernelspec, "env": {"KERNEL_REMOTE_HOST": node, "KERNEL_USERNAME": "lab"}}
            answer = http.post("/api/kernels", json=request)
            if answer.status_code != httpx.codes.CREATED:
                raise failed(_reason(answer))
            kernel_id = answer.json()["id"]
            url = f"{gateway.ws_url}/api/kernels/{kernel_id}/channels"
            given: dict[str, Any] = {"additional_headers": gateway.headers, "max_size": None, "proxy": None}
            with connect(url, open_timeout=seconds, close_timeout=5, **given) as channels:
                _ask(channels, "kernel_info_request", {}, deadline)
                ready = time.monotonic() - began
                hostname = _ask_hostname(channels, deadline)
        except (httpx.HTTPError, WebSocketException, OSError, ValueError) as error:
            if isinstance(error, LabNotReady):
                raise
            raise failed(f"{type(error).__name__}: {error}") from error
        finally:
            if kernel_id:
                _delete(http, kernel_id)
    if hostname != node:
        raise failed(f"it landed on {hostname}")
    return Landing(node, hostname, ready)


def _reason(answer: httpx.Response) -> str:
    try:
        body = answer.json()
        return f"HTTP {answer.status_code}: {body.get('reason') or ''} {body.get('message') or ''}".strip()
    except ValueError:
        return f"HTTP {answer.status_code}: {answer.text[:300]}"


def _delete(http: httpx.Client, kernel_id: str) -> None:
    import httpx

    try:
        http.delete(f"/api/kernels/{kernel_id}")
    except httpx.HTTPError:
        # The probe's verdict stands already; a gateway that hangs in here shows in the next `lab up`.
        return


def _ask_hostname(channels: ClientConnection, deadline: float) -> str:
    content = {
        "code": "",
        "silent": True,
        "store_history": False,
        "user_expressions": {"host": WHERE},
        "allow_stdin": False,
    }
    reply = _ask(channels, "execute_request", content, deadline)
    return str(reply["user_expressions"]["host"]["data"]["text/plain"]).strip("'\"")


def _ask(channels: ClientConnection, kind: str, content: Mapping[str, Any], deadline: float) -> dict[str, Any]:
    """Send one shell request and return the content of its reply.

    A request that the kernel's iopub or shell missed while it started is sent again every two seconds: the first
    answer to any of them counts.
    """
    sent: set[str] = set()
    again = 0.0
    while (now := time.monotonic()) < deadline:
        if now >= again:
            identity = uuid.uuid4().hex
            sent.add(identity)
            header = {"msg_id": identity, "msg_type": kind, "username": "lab", "session": "lab", "version": "5.3"}
            message = {"header": header, "parent_header": {}, "metadata": {}, "content": content}
            channels.send(json.dumps({**message, "channel": "shell", "buffers": []}))
            again = now + 2
        try:
            received = channels.recv(timeout=max(0.01, min(again, deadline) - now))
        except TimeoutError:
            rest(0, f"{kind} to a kernel")
            continue
        if isinstance(received, str):
            reply: dict[str, Any] = json.loads(received)
            if reply.get("channel") == "shell" and reply.get("parent_header", {}).get("msg_id") in sent:
                found: dict[str, Any] = reply["content"]
                return found
    raise TimeoutError(f"{kind} got no reply in time")

"""A client of a Jupyter gateway for tests: REST, and a kernel's channels over its websocket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

if TYPE_CHECKING:
    from typing_extensions import Self

    from lab import Node

Json = dict[str, Any]

NO_ENV: Final[Mapping[str, str]] = MappingProxyType({})
START_SECONDS: Final = 90.0
"""More than any gateway of ours gives a start (60 s), so that a late one fails with the gateway's reason, not the client's."""
CELL_SECONDS: Final = 60.0
_ASK_AGAIN: Final = 1.0
"""Seconds without an answer after which a handshake is repeated: what iopub said before we listened is gone."""


class GatewayError(Exception):
    """An HTTP answer that is no success: *status*, and the *reason* that its JSON body gives."""

    def __init__(self, status: int, reason: str, body: Json) -> None:
        super().__init__(f"HTTP {status}: {reason}")
        self.status = status
        self.reason = reason
        self.body = body


class ChannelsClosed(Exception):
    """The websocket ended while something was awaited from it."""


@dataclass
class Result:
    """What came of one execute request, in the order of its arrival."""

    reply: Json = field(default_factory=dict)
    """Content of the execute_reply."""
    streams: list[tuple[str, str]] = field(default_factory=list)
    """(stdout or stderr, text)."""
    displays: list[Json] = field(default_factory=list)
    """MIME bundles of display_data, its updates, and execute_result."""
    shown: dict[str, str] = field(default_factory=dict)
    """text/plain of what was displayed under an id that its updates have as well, as it is now."""
    values: list[Json] = field(default_factory=list)
    """MIME bundles of execute_result alone."""
    errors: list[Json] = field(default_factory=list)
    """Content of error messages on iopub."""

    @property
    def status(self) -> str:
        """`ok`, `error` or `aborted`."""
        return str(self.reply.get("status", ""))

    @property
    def stdout(self) -> str:
        """All that was printed."""
        return self.printed_to("stdout")

    @property
    def stderr(self) -> str:
        """All that went to stderr."""
        return self.printed_to("stderr")

    def printed_to(self, stream: str) -> str:
        """Return all that was printed to *stream*: stdout or stderr."""
        return "".join(text for name, text in self.streams if name == stream)

    @property
    def text(self) -> str:
        """text/plain of the value of a cell's last expression; of the last display if it has none."""
        last = (self.values or self.displays)[-1:]
        return str(last[0].get("text/plain", "")) if last else ""

    @property
    def error(self) -> str:
        """Name of the exception that ended the cell, empty if none did."""
        return str(self.reply.get("ename", "")) or (str(self.errors[-1].get("ename", "")) if self.errors else "")


class Execution:
    """One execute request under way."""

    def __init__(
        self,
        kernel: Kernel,
        msg_id: str,
        *,
        stdin: Iterable[str] = (),
        on_stream: Callable[[str, str], None] | None = None,
        keep: bool = True,
    ) -> None:
        self.msg_id = msg_id
        self.partial = Result()
        """What has come so far."""
        self.prompts: list[str] = []
        """Prompts of the input requests that were answered from *stdin*."""
        self._kernel = kernel
        self._stdin = iter(stdin)
        self._on_stream = on_stream
        self._keep = keep
        self._idle = False
        self._changed = asyncio.Event()

    async def result(self, timeout: float = CELL_SECONDS) -> Result:
        """Wait for the reply and the kernel's `idle`; raise TimeoutError or ChannelsClosed."""
        await self._wait(lambda: self._idle and bool(self.partial.reply), timeout, "the cell's end")
        return self.partial

    async def reply(self, timeout: float = CELL_SECONDS) -> Json:
        """Wait for the reply alone."""
        await self._wait(lambda: bool(self.partial.reply), timeout, "the cell's reply")
        return self.partial.reply

    async def printed(self, text: str, timeout: float = CELL_SECONDS, to: str = "stdout") -> None:
        """Wait until *text* has been printed to stdout or stderr: the cell surely runs then."""
        await self._wait(lambda: text in self.partial.printed_to(to), timeout, f"{text!r} on {to}")

    async def shows(self, text: str, timeout: float = CELL_SECONDS) -> None:
        """Wait until something that is displayed, and may be updated, has *text* in it."""
        shown = self.partial.shown
        await self._wait(lambda: any(text in each for each in shown.values()), timeout, f"{text!r} displayed")

    async def _wait(self, condition: Callable[[], bool], timeout: float, what: str) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if self._kernel.closed is not None:
                raise ChannelsClosed(f"kernel {self._kernel.id}: no {what}: {self._kernel.closed}")
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), deadline - time.monotonic())
            except asyncio.TimeoutError:
                raise TimeoutError(
                    f"kernel {self._kernel.id}: no {what} within {timeout:g} s; so far {self._so_far()}"
                ) from None

    def _so_far(self) -> str:
        printed = ", ".join(f"{name} ...{self.partial.printed_to(name)[-200:]!r}" for name in ("stdout", "stderr"))
        return f"reply {self.partial.reply}, {printed}, errors {self.partial.errors}"

    def wake(self) -> None:
        """Have waiters look again."""
        self._changed.set()

    def hear(self, message: Json) -> str | None:
        """Take a message that answers this request; return what to answer to an input request."""
        kind, content, answer = message["header"]["msg_type"], message["content"], None
        if kind == "execute_reply":
            self.partial.reply = content
        elif kind == "stream":
            if self._keep:
                self.partial.streams.append((content["name"], content["text"]))
            if self._on_stream is not None:
                self._on_stream(content["name"], content["text"])
        elif kind in ("display_data", "update_display_data", "execute_result"):
            self.partial.displays.append(content["data"])
            if kind == "execute_result":
                self.partial.values.append(content["data"])
            elif shown := content.get("transient", {}).get("display_id"):
                self.partial.shown[shown] = content["data"].get("text/plain", "")
        elif kind == "error":
            self.partial.errors.append(content)
        elif kind == "status":
            self._idle = self._idle or content["execution_state"] == "idle"
        elif kind == "input_request":
            self.prompts.append(content["prompt"])
            answer = next(self._stdin)
        self._changed.set()
        return answer


class Kernel:
    """One kernel, and this client's websocket to its channels (opened by the first cell)."""

    def __init__(self, client: GatewayClient, kernel_id: str, kernelspec: str) -> None:
        self.client = client
        self.id = kernel_id
        self.kernelspec = kernelspec
        self.closed: str | None = None
        """Why the websocket is closed; None while it is open, or was never opened."""
        self.states: list[str] = []
        """Every execution state that iopub told since the websocket was opened, `restarting` and `dead` included."""
        self._session = uuid.uuid4().hex
        self._channels: ClientConnection | None = None
        self._listening: asyncio.Task[None] | None = None
        self._executions: dict[str, Execution] = {}
        self._heard: dict[str, set[str]] = {}
        self._news = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Kernel {self.id}>"

    # -- channels ------------------------------------------------------------------------------------------------

    async def connect(self, timeout: float = CELL_SECONDS) -> None:
        """Open the websocket, unless it is, and wait until kernel_info is answered on shell and iopub alike."""
        if self._channels is None:
            url = f"ws{self.client.url.removeprefix('http')}/api/kernels/{self.id}/channels?session_id={self._session}"
            self._channels = await connect(
                url,
                open_timeout=timeout,
                close_timeout=5,
                max_size=None,
                max_queue=None,
                ping_interval=None,
                proxy=None,
            )
            self.closed = None
            self._listening = asyncio.create_task(self._listen(self._channels))
            await self.handshake(timeout)

    async def disconnect(self) -> None:
        """Close the websocket, as a browser that goes away."""
        channels, listening = self._channels, self._listening
        self._channels = self._listening = None
        if channels is not None:
            with contextlib.suppress(WebSocketException, OSError):
                await channels.close()
        if listening is not None:
            await listening

    async def handshake(self, timeout: float = CELL_SECONDS) -> None:
        """Wait until the kernel answers kernel_info on shell, and iopub tells of it; asks every second."""
        deadline = time.monotonic() + timeout
        asked: list[str] = []
        while time.monotonic() < deadline:
            msg_id = await self._send("kernel_info_request", {})
            asked.append(msg_id)
            again = min(deadline, time.monotonic() + _ASK_AGAIN)
            while time.monotonic() < again:
                if any(self._heard.get(each, set()) >= {"kernel_info_reply", "status"} for each in asked):
                    return
                if self.closed is not None:
                    raise ChannelsClosed(f"kernel {self.id}: {self.closed}")
                self._news.clear()
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._news.wait(), again - time.monotonic())
        raise TimeoutError(f"kernel {self.id}: kernel_info was not answered within {timeout:g} s")

    async def wait_state(self, state: str, timeout: float = CELL_SECONDS) -> None:
        """Wait until iopub has told *state* (`restarting`, `dead`…) at least once since the websocket was opened."""
        deadline = time.monotonic() + timeout
        while state not in self.states:
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), deadline - time.monotonic())
            except asyncio.TimeoutError:
                raise TimeoutError(f"kernel {self.id} told {self.states} within {timeout:g} s, not {state}") from None

    async def _send(self, kind: str, content: Mapping[str, Any], channel: str = "shell", msg_id: str = "") -> str:
        if self._channels is None:
            raise ChannelsClosed(f"kernel {self.id}: the websocket is not open")
        msg_id = msg_id or uuid.uuid4().hex
        header = {"msg_id": msg_id, "msg_type": kind, "username": "test", "session": self._session, "version": "5.3"}
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "buffers": []}
        try:
            await self._channels.send(json.dumps({**message, "channel": channel}))
        except ConnectionClosed as error:
            raise ChannelsClosed(f"kernel {self.id}: {error}") from error
        return msg_id

    async def _listen(self, channels: ClientConnection) -> None:
        try:
            async for received in channels:
                await self._hear(_decode(received))
        except (WebSocketException, OSError) as error:
            self.closed = f"the websocket broke: {error}"
        else:
            self.closed = "the websocket was closed"
        self._news.set()
        for execution in self._executions.values():
            execution.wake()

    async def _hear(self, message: Json) -> None:
        kind, parent = message["header"]["msg_type"], message.get("parent_header", {}).get("msg_id", "")
        self._heard.setdefault(parent, set()).add(kind)
        if kind == "status":
            self.states.append(message["content"]["execution_state"])
        self._news.set()
        execution = self._executions.get(parent)
        if execution is not None:
            answer = execution.hear(message)
            if answer is not None:
                await self._send("input_reply", {"value": answer}, "stdin")

    # -- cells ---------------------------------------------------------------------------------------------------

    async def begin(
        self,
        code: str,
        *,
        stdin: Iterable[str] = (),
        on_stream: Callable[[str, str], None] | None = None,
        keep: bool = True,
    ) -> Execution:
        """Send a cell and return at once.

        *stdin* answers its input requests, one after the other; *on_stream(name, text)* hears its output as it comes; with
        *keep* False the output is given to *on_stream* only.
        """
        await self.connect()
        # Known before it is sent, so that no answer finds nobody.
        msg_id = uuid.uuid4().hex
        execution = Execution(self, msg_id, stdin=stdin, on_stream=on_stream, keep=keep)
        self._executions[msg_id] = execution
        content = {"code": code, "silent": False, "store_history": False, "user_expressions": {}}
        await self._send("execute_request", {**content, "allow_stdin": True, "stop_on_error": False}, msg_id=msg_id)
        return execution

    async def execute(
        self,
        code: str,
        timeout: float = CELL_SECONDS,
        *,
        stdin: Iterable[str] = (),
        on_stream: Callable[[str, str], None] | None = None,
        keep: bool = True,
    ) -> Result:
        """Run a cell and wait for its end."""
        return await (await self.begin(code, stdin=stdin, on_stream=on_stream, keep=keep)).result(timeout)

    async def ask(self, kind: str, content: Mapping[str, Any], timeout: float = CELL_SECONDS) -> None:
        """Send a `*_request` on the shell channel, and wait for its reply; raise TimeoutError if there is none."""
        await self.connect()
        msg_id = await self._send(kind, content)
        deadline = time.monotonic() + timeout
        while kind.replace("_request", "_reply") not in self._heard.get(msg_id, set()):
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), deadline - time.monotonic())
            except asyncio.TimeoutError:
                raise TimeoutError(f"kernel {self.id} has not answered {kind} within {timeout:g} s") from None

    async def evaluate(self, expression: str, timeout: float = CELL_SECONDS) -> Any:
        """Return the value of a Python *expression*, carried as JSON so that nothing is lost on the way."""
        result = await self.execute(f"import json as _j; print(_j.dumps({expression}))", timeout)
        assert result.status == "ok", result.errors
        return json.loads(result.stdout)

    # -- life ----------------------------------------------------------------------------------------------------

    async def model(self) -> Json:
        """Return what GET /api/kernels/ID says; raises GatewayError."""
        found: Json = await self.client.request("GET", f"/api/kernels/{self.id}")
        return found

    async def interrupt(self, timeout: float = START_SECONDS) -> None:
        """Interrupt it through REST."""
        await self.client.request("POST", f"/api/kernels/{self.id}/interrupt", timeout=timeout)

    async def restart(self, timeout: float = START_SECONDS) -> None:
        """Restart it through REST; a websocket that is open stays so, and answers when this returns."""
        await self.client.request("POST", f"/api/kernels/{self.id}/restart", timeout=timeout)
        if self._channels is not None:
            await self.handshake(timeout)

    async def delete(self, timeout: float = START_SECONDS) -> None:
        """Shut it down through REST and close the websocket."""
        await self.disconnect()
        await self.client.request("DELETE", f"/api/kernels/{self.id}", timeout=timeout)
        self.client.started.pop(self.id, None)


class GatewayClient:
    """A gateway's REST API. `async with` deletes at its end what was started."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.started: dict[str, Kernel] = {}
        """Kernels that this client started and has not deleted."""
        # Proxies of the environment are for the internet; the lab is on loopback.
        limits = httpx.Limits(max_connections=200, max_keepalive_connections=200)
        self._http = httpx.AsyncClient(base_url=url, trust_env=False, limits=limits)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, timeout: float = START_SECONDS
    ) -> Any:
        """Return the JSON of an answer (None if it has none); raise GatewayError if it is no success."""
        answer = await self._http.request(method, path, json=body, timeout=timeout)
        if answer.is_success:
            return answer.json() if answer.content else None
        try:
            said = answer.json()
        except ValueError:
            said = {}
        reason = said.get("reason") or said.get("message") or answer.text or answer.reason_phrase
        raise GatewayError(answer.status_code, str(reason), said)

    async def start_kernel(
        self,
        kernelspec: str = "python_distributed",
        env: Mapping[str, str] | None = NO_ENV,
        timeout: float = START_SECONDS,
        **fields: Any,
    ) -> Kernel:
        """Start a kernel; *fields* are added to the request's body. Raises GatewayError.

        *env* None leaves `env` out of the request.
        """
        body: Json = {"name": kernelspec, **fields}
        if env is not None:
            body["env"] = dict(env)
        model = await self.request("POST", "/api/kernels", body, timeout)
        kernel = self.started[model["id"]] = Kernel(self, model["id"], kernelspec)
        return kernel

    async def start_kernels(self, count: int, kernelspec: str = "python_distributed", **options: Any) -> list[Kernel]:
        """Start *count* kernels at once."""
        starts = (self.start_kernel(kernelspec, **options) for _ in range(count))
        return list(await asyncio.gather(*starts))

    async def list_kernels(self) -> list[Json]:
        """Return the models of GET /api/kernels."""
        found: list[Json] = await self.request("GET", "/api/kernels")
        return found

    def attach(self, kernel_id: str, kernelspec: str = "") -> Kernel:
        """Return a handle of a kernel that somebody else started, or an earlier gateway; it is deleted at the end too."""
        kernel = self.started[kernel_id] = Kernel(self, kernel_id, kernelspec)
        return kernel

    async def close_kernels(self) -> None:
        """Delete all that was started; a kernel that is gone already is fine."""

        async def end(kernel: Kernel) -> None:
            try:
                await kernel.delete()
            except GatewayError as error:
                if error.status != 404:
                    raise
            self.started.pop(kernel.id, None)

        endings = await asyncio.gather(*map(end, list(self.started.values())), return_exceptions=True)
        for ending in endings:
            if isinstance(ending, BaseException):
                raise ending

    async def close(self) -> None:
        """Delete all that was started, and close the connections."""
        try:
            await self.close_kernels()
        finally:
            await self._http.aclose()


async def start_on(client: GatewayClient, node: Node, kernelspec: str = "python_distributed") -> Kernel:
    """Start a kernel on *node*, by the pin that a client may send."""
    return await client.start_kernel(kernelspec, {"KERNEL_REMOTE_HOST": node.name})


async def host_of(kernel: Kernel) -> str:
    """Return the full name of the machine that *kernel* runs on, in its own words."""
    return str(await kernel.evaluate("__import__('socket').gethostname()"))


async def hosts_of(kernels: Iterable[Kernel]) -> list[str]:
    """Return where *kernels* run, in their order; asks them one after the other, since this machine is small."""
    return [await host_of(kernel) for kernel in kernels]


def _decode(received: str | bytes) -> Json:
    """Return the message of a frame: text is JSON, binary is JSON with buffers behind it (which no test needs)."""
    if isinstance(received, bytes):
        (count,) = struct.unpack_from("!I", received)
        offsets = struct.unpack_from(f"!{count}I", received, 4)
        end = offsets[1] if count > 1 else len(received)
        received = received[offsets[0] : end].decode()
    message: Json = json.loads(received)
    return message

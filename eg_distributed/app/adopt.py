"""`jupyter distributed adopt`: have a running Jupyter server take over kernels of this user's other servers.

The server that is to have them does it, asked by REST with the token that it leaves in its runtime folder for this user. The
command could not: a kernel belongs to whoever holds its streams, and lists it. Nor could it hand a record over behind the
server's back, which reads them only at its start.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eg_distributed.errors import DistributedError, RequestInvalid
from eg_distributed.wire import one_line

from .tables import age, table

__all__ = ["run"]

_LISTENS = "0A"  # how Linux writes that a socket listens
_PATIENCE = 30.0  # seconds for the server's answer: it reads files, and waits for no host
_XSRF = "6a7570797465722d64697374726962757465642d61646f7074"
"""Any value will do where cookie and header have the same, as the server asks of those who have no token."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class _Stays(urllib.request.HTTPRedirectHandler):
    """Follows no redirect; then that is the answer, an error."""

    def redirect_request(self, *args: object) -> None:
        """Return no request; called by urllib."""


@dataclass
class _Server:
    """A running server, as its file in the runtime folder has it."""

    url: str
    token: str
    root: str
    port: int
    pid: int

    def ask(self, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the answer to *body*, or to a question for all kernels; raises DistributedError."""
        request = urllib.request.Request(urllib.parse.urljoin(self.url, "api/distributed/adopt"))  # noqa: S310 - checked
        # JupyterHub's servers have no token of their own: they take the one that it gives their user's programs.
        if token := self.token or os.environ.get("JUPYTERHUB_API_TOKEN", ""):
            request.add_header("Authorization", f"token {token}")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
            request.add_header("Cookie", f"_xsrf={_XSRF}")
            request.add_header("X-XSRFToken", _XSRF)
        # On the loopback a certificate, which is for the name outside, says nothing: who listens there is on this machine.
        is_here = urllib.parse.urlsplit(self.url).hostname in _LOOPBACK
        context = ssl._create_unverified_context() if is_here else ssl.create_default_context()  # noqa: S323
        # The token goes to the server alone: through no proxy, and nowhere else that an answer names.
        ways = (urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context), _Stays())
        try:
            with urllib.request.build_opener(*ways).open(request, timeout=_PATIENCE) as answer:
                read = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise self._refused(error) from None
        except (OSError, ValueError) as error:
            raise DistributedError(
                f"the server {self.url} does not answer ({error})",
                remedy="see its log; `jupyter server list` lists those",
            ) from None
        if not isinstance(read, dict):
            raise DistributedError(f"the server {self.url} answers with something else", remedy="see its log")
        return read

    def _refused(self, error: urllib.error.HTTPError) -> DistributedError:
        if error.code == 404:
            return DistributedError(
                f"the server {self.url} takes no kernels over",
                remedy="see at its log's begin why; it needs eg_distributed",
            )
        if error.code in (401, 403):
            return DistributedError(
                f"the server {self.url} lets nobody in without a password, or an identity provider",
                remedy="run this in a terminal of that JupyterLab, or set its IdentityProvider.token",
            )
        message = error.reason
        with contextlib.suppress(ValueError, AttributeError):
            message = json.loads(error.read())["message"]
        return DistributedError(one_line(str(message)))


def run(kernels: list[str], *, server: str = "", running: bool = False, into: str = "", as_json: bool = False) -> int:
    """List other servers' kernels, or have *kernels*, or all of *server*, taken over; return the process's exit code.

    *into* names the server that takes them, by its port or address; *running*: also from one that runs. Raises DistributedError.
    """
    if kernels and server:
        raise RequestInvalid("kernels and --server are named", remedy="name either")
    taker = _taker(into)
    if not (kernels or server):
        return _list(taker.ask(), as_json=as_json)
    body = {"server": server} if server else {"kernels": kernels}
    answer = taker.ask({**body, "running": running})
    adopted, refused = answer.get("adopted", []), answer.get("refused", {})
    if as_json:
        print(json.dumps(answer))
    for kernel in adopted if not as_json else ():
        print(f"{taker.url} has kernel {kernel} now")
    for kernel, why in refused.items():
        print(f"error: {one_line(kernel)}: {one_line(why)}", file=sys.stderr)
    return 1 if refused else 0


def _list(answer: dict[str, Any], *, as_json: bool) -> int:
    servers = answer.get("servers", [])
    if as_json:
        print(json.dumps(answer, indent=2))
        return 0
    rows = [
        (
            server["server"],
            "yes" if server["running"] else "no",
            one_line(kernel["kernel"]),
            one_line(kernel["host"]),
            f"{age(time.time() - kernel['since'])} ago",
            one_line(str(Path(str(server.get("root") or ""), *kernel["paths"][:1]))),
        )
        for server in servers
        for kernel in server["kernels"]
    ]
    print(
        table(("SERVER", "RUNS", "KERNEL", "HOST", "STARTED", "NOTEBOOK"), rows)
        if rows
        else "no other server has kernels"
    )
    for server in servers:
        for name, error in server["errors"].items():
            print(f"error: {server['server']}: {one_line(name)}: {one_line(error)}", file=sys.stderr)
    return 0


# -- servers that run --------------------------------------------------------------------------------------------


def _taker(into: str) -> _Server:
    """Return the server that is to take kernels; raises RequestInvalid where that is not one."""
    folder = _runtime_dir()
    servers = _servers(folder)
    if into:
        servers = [each for each in servers if into in (str(each.port), each.url, each.url.rstrip("/"))]
    if len(servers) == 1:
        return servers[0]
    shown = ", ".join(each.url for each in servers)
    if servers:
        raise RequestInvalid(f"several servers run: {shown}", remedy="name one by --into PORT")
    raise RequestInvalid(
        f"no Jupyter server {f'at {into} ' if into else ''}runs that has its runtime folder in {folder}",
        remedy="start one; one in the same folder has the kernels of a dead one at once",
    )


def _runtime_dir() -> Path:
    try:
        from jupyter_core.paths import jupyter_runtime_dir
    except ImportError:
        raise RequestInvalid(
            "Jupyter is not installed here", remedy="run this where JupyterLab is: jupyter distributed adopt"
        ) from None
    return Path(jupyter_runtime_dir())


def _servers(folder: Path) -> list[_Server]:
    """Return the servers that run here, by the files that they leave in *folder*."""
    found = []
    for path in sorted(folder.glob("jpserver-*.json")):
        try:
            about = json.loads(path.read_bytes())
            server = _Server(
                str(about["url"]), str(about["token"]), str(about["root_dir"]), int(about["port"]), int(about["pid"])
            )
            os.kill(server.pid, 0)
        except (OSError, ValueError, KeyError, TypeError):  # one that is being written, or whose server was killed
            continue
        is_http = urllib.parse.urlsplit(server.url).scheme in ("http", "https")  # and not at a UNIX socket
        if is_http and (server.pid in _running(folder) or _listens(server.pid, server.port)):
            found.append(server)
    return found


def _running(folder: Path) -> set[int]:
    """Return the processes of servers that keep records on this machine.

    With a home that machines share, what a server of another one has left in the runtime folder may fit a process here, and its
    port another user's server: that must not be sent the token.
    """
    found = set()
    for path in (folder / "eg-distributed").glob("*.d/server.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            about = json.loads(path.read_bytes())
            if about["machine"] == socket.gethostname():
                found.add(int(about["pid"]))
    return found


def _listens(pid: int, port: int) -> bool:
    """Return True if that process of this user on this machine listens at *port*: a server without hosts keeps no records."""
    process = Path("/proc", str(pid))
    with contextlib.suppress(OSError):  # another user's, or gone; or no Linux
        sockets = {str(each.readlink()) for each in process.joinpath("fd").iterdir()}
        for kind in ("tcp", "tcp6"):
            for line in process.joinpath("net", kind).read_text("ascii").splitlines()[1:]:
                fields = line.split()
                is_it = fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port
                if is_it and f"socket:[{fields[9]}]" in sockets:
                    return True
    return False

"""A jupyter_server as people run it, and a notebook on it: REST and a websocket."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

from lab.ports import free_port
from tests.until import PROCESS_SECONDS, block_until

from .site import KERNEL, Site


class Served:
    """A jupyter_server of the site's user, with *more* variables, and *options* beside those that each has."""

    def __init__(
        self,
        site: Site,
        root: Path,
        options: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
        /,
        *,
        python: str = sys.executable,
        **more: str,
    ) -> None:
        port = free_port()
        given = {
            "ServerApp.root_dir": str(root),
            "ServerApp.port": str(port),
            "ServerApp.allow_root": "True",
            "ServerApp.disable_check_xsrf": "True",
            "ServerApp.open_browser": "False",
            "IdentityProvider.token": "",
            **(options or {}),
        }
        self.root, self.port = root, port
        self.url = f"http://127.0.0.1:{port}"
        self.log = site.home / f"server-{port}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [python, "-m", "jupyter_server", *(f"--{name}={value}" for name, value in given.items())],
                cwd=root,
                env=site.environment(**more),
                stdin=stdin,
                stdout=log,
                stderr=log,
            )
        token = given["IdentityProvider.token"]
        self.headers = {"Authorization": f"token {token}"} if token else {}
        self.rest = httpx.Client(base_url=self.url, timeout=60, headers=self.headers)
        block_until("the server answers", self._answers, 60.0)

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(httpx.TransportError):
            return self.rest.get("/api/status").status_code == 200
        return False

    def end(self, signum: int = signal.SIGTERM) -> None:
        """End the server and wait for it."""
        if self.process.poll() is None:
            self.process.send_signal(signum)
            self.process.wait(PROCESS_SECONDS)
        self.rest.close()

    def end_with_kernels(self) -> None:
        """End the server after its kernels, if it runs, and print its log, which pytest shows where a test has failed."""
        if self.process.poll() is None:
            for kernel in self.rest.get("/api/kernels").json():
                self.rest.delete(f"/api/kernels/{kernel['id']}")
        self.end()
        print(f"--- {self.url}\n{self.log.read_text()}")

    def session(self, path: str, kernel: str = KERNEL) -> httpx.Response:
        """Open a notebook: a session with a kernel."""
        model = {"path": path, "name": Path(path).name, "type": "notebook", "kernel": {"name": kernel}}
        return self.rest.post("/api/sessions", json=model)

    @contextlib.contextmanager
    def notebook(self, path: str = "some.ipynb", kernel: str = KERNEL) -> Iterator[Notebook]:
        """A notebook with its kernel and its websocket; both end with the block."""
        answer = self.session(path, kernel)
        assert answer.status_code == 201, answer.text
        model = answer.json()
        url = (
            f"ws{self.url.removeprefix('http')}/api/kernels/{model['kernel']['id']}/channels?session_id={uuid.uuid4()}"
        )
        with connect(url, max_size=None, additional_headers=self.headers) as websocket:
            yield Notebook(self, model, websocket)
            if self.process.poll() is None:
                assert self.rest.delete(f"/api/sessions/{model['id']}").status_code == 204


class Notebook:
    """An open notebook."""

    def __init__(self, served: Served, model: dict[str, Any], websocket: ClientConnection) -> None:
        self.kernel: str = model["kernel"]["id"]
        self.states: list[str] = []
        """All that the kernel was said to be."""
        self._served = served
        self._websocket = websocket

    def send(self, code: str) -> str:
        """Send a cell; return its id."""
        number = uuid.uuid4().hex
        header = {"msg_id": number, "msg_type": "execute_request", "session": "s", "username": "u", "version": "5.3"}
        content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False, "user_expressions": {}}
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
        self._websocket.send(json.dumps({**message, "buffers": []}))
        return number

    def output(self, cell: str, until: str = "") -> str:
        """Return what *cell* says up to the text *until*, or to its end."""
        said = ""
        while True:
            message = self._next()
            content = message["content"]
            if message["parent_header"].get("msg_id") != cell:
                continue
            if message["msg_type"] == "stream":
                said += content["text"]
            elif message["msg_type"] == "error":
                said += f"{content['ename']}: {content['evalue']}"
            is_idle = message["msg_type"] == "status" and content["execution_state"] == "idle"
            if is_idle or (until and until in said):
                return said.strip()

    def run(self, code: str) -> str:
        """Run a cell to its end and return what it says."""
        return self.output(self.send(code))

    def wait_for(self, state: str) -> None:
        """Wait until the kernel is said to be in *state*."""
        while True:
            message = self._next()
            if message["msg_type"] == "status" and message["content"]["execution_state"] == state:
                return

    def _next(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._websocket.recv(timeout=PROCESS_SECONDS))
        if message["msg_type"] == "status":
            self.states.append(message["content"]["execution_state"])
        return message

    def act(self, action: str) -> httpx.Response:
        """Interrupt or restart the kernel."""
        return self._served.rest.post(f"/api/kernels/{self.kernel}/{action}")

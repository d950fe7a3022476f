"""What a Jupyter server gets of the extension that is not as those that we know."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jupyter_server
import pytest
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from traitlets.config import Config

from eg_distributed.jupyter_server import ending, events, extension, rest

from .served import Served
from .site import Site


class Begun:
    """Stands for all rooms, and notes which of them were begun."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __call__(self, name: str, package: str | None = None) -> Any:
        note = lambda app: self.calls.append(name.removeprefix("."))  # noqa: E731
        return SimpleNamespace(begin=note, prepare=note)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> Iterator[Begun]:
    """No part begins anything, and our log is as it was after the test."""
    made = Begun()
    monkeypatch.setattr(extension, "importlib", SimpleNamespace(import_module=made))
    ours = logging.getLogger("eg_distributed")
    parent = ours.parent
    yield made
    ours.parent = parent


def application(kernels: Any, log: logging.Logger) -> SimpleNamespace:
    """A server's application."""
    return SimpleNamespace(kernel_manager=kernels, log=log, event_logger=None)


def test_an_older_jupyter_server(
    begun: Begun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It gets nothing of ours, and one line says so."""
    monkeypatch.setattr(jupyter_server, "version_info", (1, 24, 0, "", ""))
    caplog.set_level("INFO")
    extension._load_jupyter_server_extension(application(object(), logging.getLogger("old")))
    assert not begun.calls
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert "eg_distributed does nothing in this server" in record.getMessage()


def test_a_kernel_manager_of_somebodys(begun: Begun, caplog: pytest.LogCaptureFixture) -> None:
    """What rests upon jupyter_server's lists of kernels is left out as a whole, with one line, and the rest begins."""
    extension._load_jupyter_server_extension(application(object(), logging.getLogger("server")))
    assert begun.calls == ["kernelspecs", "websocket", "hand_over", "rest", "metrics"]
    (record,) = caplog.records
    assert "its kernel manager (object) has no _kernels" in record.getMessage()


def test_jupyter_servers_own(begun: Begun) -> None:
    """All of it begins, and records before the first part that may make a cluster; our lines are the server's then."""
    log = logging.getLogger("server")
    extension._load_jupyter_server_extension(
        application(AsyncMappingKernelManager(), log)  # type: ignore[no-untyped-call, unused-ignore]
    )
    assert begun.calls[:2] == ["adoption", "kernelspecs"]
    assert len(begun.calls) == len(extension.PARTS)
    assert logging.getLogger("eg_distributed").parent is log


def test_our_lines_are_in_the_servers_log(site: Site, tmp_path: Path) -> None:
    """With time, level and name, and not only warnings."""
    served = Served(site, tmp_path, {"ServerApp.log_level": "INFO", "ServerApp.kernel_websocket_connection_class":
        "jupyter_server.services.kernels.connection.channels.ZMQChannelsWebsocketConnection"})  # fmt: skip
    served.end()
    (line,) = [line for line in served.log.read_text().splitlines() if "as configured" in line]
    assert line.startswith("[I ")
    assert "eg_distributed" in line.split("]")[0]


def test_a_gateways_kernels_are_none_of_ours() -> None:
    """The hosts that a gateway's kernelspecs name are not asked, and no cluster takes the name of a server with kernels."""
    added: list[Any] = []
    web = SimpleNamespace(settings={"base_url": "/"}, add_handlers=lambda *handlers: added.append(handlers))
    rest.begin(SimpleNamespace(gateway_config=SimpleNamespace(gateway_enabled=True), web_app=web))
    assert not added


def test_a_manager_that_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    """A kernel's model that comes later is not asked for each second, and left unread."""

    async def kernel_model(kernel_id: str) -> dict[str, str]:
        return {"id": kernel_id}

    caplog.set_level("INFO", "eg_distributed")
    events.begin(SimpleNamespace(kernel_manager=SimpleNamespace(kernel_model=kernel_model)))
    assert "hosts have no events here" in caplog.text


async def test_an_end_with_kernels_that_tell_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The server's own end runs, of its kernels and of all else, whatever a manager of somebody's lacks or raises."""

    def fail(wait: float) -> float:
        raise ValueError(wait)

    ran: list[str] = []

    async def cleanup_kernels() -> None:
        ran.append("kernels")

    async def cleanup() -> None:
        await app.cleanup_kernels()
        ran.append("all")

    bare, broken = SimpleNamespace(), SimpleNamespace(provisioner=SimpleNamespace(get_shutdown_wait_time=fail))
    kernels = SimpleNamespace(_kernels={"a": bare, "b": broken}, _pending_kernels={})
    app = SimpleNamespace(
        kernel_manager=kernels,
        config=Config(),
        cleanup_kernels=cleanup_kernels,
        _cleanup=cleanup,
        start_ioloop=lambda: ran.append("loop"),
    )
    ending.begin(app)
    app.start_ioloop()
    await app._cleanup()
    assert ran == ["loop", "kernels", "all"]
    assert "not known how long a kernel may take to end" in caplog.text

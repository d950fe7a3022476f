"""Attempts that are to be ended: at once, or as soon as it can be done."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

from eg_distributed import abandoned as abandoned_module
from eg_distributed import node as node_module
from eg_distributed.abandoned import Abandoned
from eg_distributed.node import Node
from eg_distributed.settings import Distributed
from eg_distributed.unended import Unended, read_unended
from eg_distributed.wire import Message, encode
from tests.until import until

from .malformed_agent import honest
from .memory_link import MemoryLink
from .node_owner import NodeOwner


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> MemoryLink:
    """The one link that can be had."""
    link = MemoryLink()

    async def connect(*_: object, **__: object) -> MemoryLink:
        return link

    monkeypatch.setattr(node_module, "connect", connect)
    monkeypatch.setattr(abandoned_module, "FIRST_RETRY", 0.01)
    return link


async def test_a_stop_that_fails_is_told_once_and_tried_again(
    settings: Distributed, link: MemoryLink, caplog: pytest.LogCaptureFixture
) -> None:
    """An agent that can't end a kernel is asked again while it is connected; the log has host, cause and what comes, once."""
    failures = 3

    def answers(request: Message) -> list[bytes]:
        nonlocal failures
        if request["method"] != "stop" or not failures:
            return honest(request)
        failures -= 1
        return [encode({"id": request["id"], "error": "process 7 hangs on a disk", "kind": "internal"})]

    link.answers = answers
    owner = NodeOwner(settings)
    node = Node("node1", settings, ("tests", "1"), owner)
    await node.connect()
    with caplog.at_level(logging.INFO):
        await owner.abandoned.end(node, "k1", "a1")
        assert ("node1", "k1", "a1") in owner.abandoned
        await until("it has ended", lambda: ("node1", "k1", "a1") not in owner.abandoned)
    assert link.asked.count("stop") == 4
    warnings = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith(
        "kernel k1: attempt a1 has not ended yet; it is tried again until it has ended. Host node1: "
    )
    assert "process 7 hangs on a disk" in warnings[0]
    assert caplog.messages[-1] == "kernel k1: attempt a1 has ended on node1 after all"
    await node.close()


async def test_a_host_that_is_back_is_asked_at_once(
    settings: Distributed, link: MemoryLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the pause before the next try would be, the host's coming back is the time to end what is left there."""
    monkeypatch.setattr(abandoned_module, "FIRST_RETRY", 3600.0)
    fails = True

    def answers(request: Message) -> list[bytes]:
        if request["method"] == "stop" and fails:
            return [encode({"id": request["id"], "error": "no", "kind": "internal"})]
        return honest(request)

    link.answers = answers
    owner = NodeOwner(settings)
    node = Node("node1", settings, ("tests", "1"), owner)
    await node.connect()
    owner.abandoned.end_soon(node, "k1", "a1")
    await until("it was tried", lambda: link.asked == ["stop"])
    fails = False
    owner.run_errands(node)
    await until("it has ended", lambda: ("node1", "k1", "a1") not in owner.abandoned)
    assert link.asked == ["stop", "stop"]
    await node.close()


async def test_a_stop_of_what_is_out_of_reach_waits_for_its_host(
    settings: Distributed, link: MemoryLink, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is asked of a host that is not connected; its coming back is what ends the attempt."""
    owner = NodeOwner(settings)
    node = Node("node1", settings, ("tests", "1"), owner)
    owner.abandoned.end_soon(node, "k1", "a1")
    await until("it has ended", lambda: ("node1", "k1", "a1") not in owner.abandoned)
    assert link.asked == ["stop"]
    (warning,) = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert "it is ended as soon as its host is back. Host node1: Not connected." in warning
    await node.close()


async def test_why_and_when_again_is_written_down(
    settings: Distributed, link: MemoryLink, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """For `kernels --orphans`: a stop that failed has its cause and its next try, and one whose host is away no time."""
    monkeypatch.setattr(abandoned_module, "FIRST_RETRY", 3600.0)
    path = tmp_path / "unended.json"

    def answers(request: Message) -> list[bytes]:
        if request["method"] != "stop":
            return honest(request)
        return [encode({"id": request["id"], "error": "process 7 hangs on a disk", "kind": "internal"})]

    def said() -> list[Unended]:
        return read_unended(path) if path.exists() else []

    link.answers = answers
    node = Node("node1", settings, ("tests", "1"), NodeOwner(settings))
    await node.connect()
    abandoned = Abandoned(0.0, lambda _: path)
    began = time.time()
    await abandoned.end(node, "k1", "a1")
    await until("the next try is written down", lambda: [each for each in said() if each.next_try])
    (found,) = said()
    assert "process 7 hangs on a disk" in found.cause
    assert began + 3600 <= found.next_try <= time.time() + 1.5 * 3600
    link.lose()
    await until("the cut is seen", lambda: not node.connected.is_set())
    await abandoned.end(node, "k2", "a2")
    await until("it is written down as well", lambda: len(said()) == 2)
    assert [(each.kernel, bool(each.cause), each.next_try) for each in said()[1:]] == [("k2", True, 0.0)]
    await abandoned.save()
    await node.close()

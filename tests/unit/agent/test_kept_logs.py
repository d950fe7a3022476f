"""Logs of kernels that have ended: what the agent keeps of them, for how long, and how they are read in parts."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from eg_distributed.agent import kept_logs
from eg_distributed.agent.kept_logs import KEPT_BYTES, KEPT_FOR, KEPT_LOGS, KEPT_SIZE, KeptLog, find, keep, sweep
from eg_distributed.agent.logs import cap, part
from eg_distributed.protocol import LogEntry
from tests.unit.agents import Refusal, Visitor, standin
from tests.until import until


def entry(kernel: str, start_time: float = 1.0) -> LogEntry:
    return LogEntry(kernel, "a1", "exited", 3, start_time, 2.0)


def kept(home: Path, kernel: str, content: bytes, start_time: float = 1.0) -> KeptLog:
    """Keep a log with *content*, and return it as it is found again."""
    log = home / "kernel.log"
    log.write_bytes(content)
    keep(home, kernel, KeptLog(entry(kernel, start_time), log, 0, 0), move=True)
    return next(log for log in find(home, kernel) if log.entry.start_time == start_time)


async def whole(visitor: Visitor, kernel: str, attempt: str = "a1") -> tuple[str, dict[str, Any]]:
    """Read a log to its end as it is now; return it and the last part."""
    text, answer = "", {"position": 0, "text": "?"}
    while answer["text"]:
        answer = await visitor.request("log_part", kernel=kernel, attempt=attempt, position=answer["position"])
        text += answer["text"]
    return text, answer


async def test_a_log_is_kept_when_its_kernel_is_forgotten(visitor: Visitor, home: Path) -> None:
    """After `stop` with `forget` the log is still found by the kernel's id, and nothing else of the kernel."""
    await visitor.start("k1", standin("say:so long", "leave:3"))
    await visitor.event("exited", "k1")
    await visitor.request("stop", kernel="k1", grace=0, forget=True)
    (found,) = await visitor.request("logs", kernel="k1")
    assert (found["state"], found["exit_code"], found["attempt"]) == ("exited", 3, "a1")
    assert found["start_time"] < found["end_time"]
    text, last = await whole(visitor, "k1")
    assert (text, last["ended"], last["exit_code"]) == ("so long\n", True, 3)
    folder = kept_logs.folder_of(next(home.glob("eg-distributed/*")))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


async def test_a_start_that_cannot_be_executed_leaves_its_reason_as_its_log(visitor: Visitor) -> None:
    """What the gateway was told of a start that failed is found by the kernel's id afterwards."""
    with pytest.raises(Refusal):
        await visitor.start("k1", ["/opt/no/such/kernel"])
    text, last = await whole(visitor, "k1")
    assert text.startswith("not started: cannot execute '/opt/no/such/kernel'")
    assert last["ended"]


async def test_each_start_of_a_kernel_has_a_log_of_its_own(visitor: Visitor) -> None:
    """A restart leaves the log of the start before it, and both are found by how the id begins, the newest first."""
    await visitor.start("k1-long", standin("say:first", "leave:1"), attempt="a1")
    await visitor.event("exited", "k1-long")
    await visitor.ready("k1-long", standin("say:second"), attempt="a2")
    found = await visitor.request("logs", kernel="k1")
    assert [(log["attempt"], log["state"]) for log in found] == [("a2", "running"), ("a1", "exited")]
    assert (await whole(visitor, "k1-long", "a1"))[0] == "first\n"
    text, last = await whole(visitor, "k1-long", "a2")
    assert (text, last["ended"]) == ("second\n", False)


async def test_an_operators_log_stays_where_it_is(visitor: Visitor, home: Path) -> None:
    """A log in `log_dir` is found after the kernel's end too, and only what its own start printed; once removed, that is said."""
    for number, word in enumerate(("first", "second")):
        await visitor.start("k1", standin(f"say:{word}", "leave:0"), log_dir="~/logs", attempt=f"a{number}")
        await visitor.event("exited", "k1")
        visitor.events.clear()
    assert (await whole(visitor, "k1", "a0"))[0] == "first\n"
    await visitor.request("stop", kernel="k1", grace=0, forget=True)
    assert (await whole(visitor, "k1", "a0"))[0] == "first\n"
    assert (await whole(visitor, "k1", "a1"))[0] == "second\n"
    await visitor.ready("k2", standin(), log_dir="~/logs")
    for name in ("k1", "k2"):
        (home / "logs" / f"kernel-{name}.log").unlink()
    with pytest.raises(Refusal, match=r"the log of kernel k2 cannot be read: .*No such file"):
        await whole(visitor, "k2", "a1")
    with pytest.raises(Refusal, match=r"the log of kernel k1 cannot be read: .*No such file") as refused:
        await whole(visitor, "k1", "a1")
    assert refused.value.kind == "log"


async def test_an_unknown_log_is_no_log(visitor: Visitor) -> None:
    """A kernel that was never here has no logs, and reading one says so."""
    assert await visitor.request("logs", kernel="k1") == []
    with pytest.raises(Refusal, match="no log of kernel 'k1' is there") as refused:
        await visitor.request("log_part", kernel="k1", attempt="a1")
    assert refused.value.kind == "gone"


async def test_kept_logs_are_cleaned_by_the_agent(visitor: Visitor, home: Path) -> None:
    """What is kept for more than a day goes as soon as the agent looks, and what was kept just now stays."""
    await visitor.start("k1", standin("leave:0"))
    await visitor.event("exited", "k1")
    await visitor.request("stop", kernel="k1", grace=0, forget=True)
    folder = next(home.glob("eg-distributed/*/logs"))
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    await visitor.start("k2", standin("leave:0"))
    await visitor.event("exited", "k2")
    await visitor.request("stop", kernel="k2", grace=0, forget=True)
    await until("the old log is gone", lambda: len(list(folder.iterdir())) == 2)
    assert [log["kernel"] for log in await visitor.request("logs", kernel="k")] == ["k2"]


def test_a_kept_log_has_a_bounded_size(tmp_path: Path) -> None:
    """Of a long log the end is kept, and a reader that is in the middle of it goes on where it was."""
    lines = b"".join(b"%07d\n" % number for number in range(KEPT_SIZE // 8 + 10))
    log = kept(tmp_path, "k1", lines)
    position = len(lines) - 16
    before = log.read_part(position, 100)
    sweep(tmp_path)
    assert log.path.stat().st_size <= KEPT_SIZE
    assert log.read_part(position, 100).text == before.text
    assert before.text.splitlines() == [f"{KEPT_SIZE // 8 + 8:07d}", f"{KEPT_SIZE // 8 + 9:07d}"]
    assert log.read_part(0, 31).text == "[older output was dropped here]"


def test_kept_logs_are_bounded_in_number_and_in_all(tmp_path: Path) -> None:
    """The newest stay, up to a number of logs and of bytes."""
    for number in range(KEPT_LOGS + 5):
        log = kept(tmp_path, f"k{number}", b"x" * 10, float(number + 1))
        os.utime(log.path.with_suffix(".json"), (2e9 + number, 2e9 + number))
    sweep(tmp_path)
    assert len(find(tmp_path, "k")) == KEPT_LOGS
    assert [log.entry.kernel for log in find(tmp_path, "k")][-1] == "k5"
    for log in find(tmp_path, "k1"):
        os.truncate(log.path, KEPT_SIZE)
    sweep(tmp_path)
    assert sum(log.path.stat().st_size for log in find(tmp_path, "k")) <= KEPT_BYTES


def test_damaged_or_forgotten_files_among_kept_logs_hide_none(tmp_path: Path) -> None:
    """A record that cannot be read is passed over, and goes with age; a log without a record goes sooner."""
    kept(tmp_path, "k1", b"one\n")
    folder = kept_logs.folder_of(tmp_path)
    for name in ("broken.json", "alone.log"):
        (folder / name).write_text("{")
        os.utime(folder / name, (2e9 - KEPT_FOR, 2e9 - KEPT_FOR) if name == "broken.json" else (1, 1))
    assert [log.entry.kernel for log in find(tmp_path, "k")] == ["k1"]
    sweep(tmp_path)
    assert not (folder / "alone.log").exists()


def test_nothing_is_kept_where_nothing_can_be_written(tmp_path: Path) -> None:
    """A folder that cannot be made costs the log, and no error."""
    (tmp_path / "logs").write_text("in the way")
    log = tmp_path / "kernel.log"
    log.write_text("x")
    keep(tmp_path, "k1", KeptLog(entry("k1"), log, 0, 0), move=True)
    assert log.exists()


def test_a_part_never_splits_a_character(tmp_path: Path) -> None:
    """A character whose rest is still to come begins the next part; at a log's end it is shown as what it is."""
    log = tmp_path / "log"
    log.write_bytes("grün".encode()[:3])
    assert part(log, 0, 0, 0, 100, final=False) == ("gr", 2)
    assert part(log, 0, 0, 0, 100, final=True) == ("gr�", 3)
    log.write_bytes("grün".encode())
    assert part(log, 0, 0, 2, 100, final=False) == ("ün", 5)


def test_positions_hold_over_what_the_cap_drops(tmp_path: Path) -> None:
    """A reader goes on where it was after the log's older half was dropped, or with the oldest that is left."""
    log = tmp_path / "log"
    content = b"".join(b"%03d\n" % number for number in range(1000))
    log.write_bytes(content)
    base = cap(log, 2000)
    assert part(log, 0, base, len(content) - 8, 100, final=False) == ("998\n999\n", len(content))
    told, _ = part(log, 0, base, 0, 100, final=False)
    assert told.startswith("[older output was dropped here]\n750\n")

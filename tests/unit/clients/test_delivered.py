"""What sessions have got is found by the gateway's next process, and gone when their kernel is."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from eg_distributed.clients import delivered as delivered_module
from eg_distributed.clients import kept_output
from eg_distributed.clients.delivered import Delivered, Got
from tests.until import block_until


def settled(delivered: Delivered) -> None:
    """Wait until all is on disk."""
    assert delivered.settled(30)


def test_the_next_process_knows_what_sessions_have_got(tmp_path: Path) -> None:
    """The last message of output counts, and the last replies; by names, since clients choose those of sessions."""
    before = Delivered(tmp_path)
    for number in range(300):
        before.note("k1", "../../s1", f"m{number}", [f"r{number}"])
    before.note("k1", "../../s1", "", ["r300"])
    before.note("k1", "s2", "", [])
    before.note("k2", "s1", "m1", [])
    settled(before)
    after = Delivered(tmp_path)
    assert after.sessions("k1") == {Delivered.name_of("../../s1"), Delivered.name_of("s2")}
    got = after.got("k1", "../../s1")
    assert (got.output, list(got.replies)) == ("m299", [f"r{number}" for number in range(201, 301)])
    assert after.got("k1", "s2") == after.got("k1", "s3") == Got()
    after.forget("k1")
    settled(after)
    assert after.sessions("k1") == set()
    assert after.sessions("k2") == {Delivered.name_of("s1")}
    assert after.got("k1", "../../s1") == Got()


def test_a_file_that_is_none_of_ours_says_nothing(tmp_path: Path) -> None:
    """What can't be read, or has been cut, is as if the session had got nothing."""
    delivered = Delivered(tmp_path)
    delivered.note("k1", "s1", "m1", [])
    settled(delivered)
    path = next(tmp_path.glob("*/*"))
    for content in (b"", b"[]", b'{"output": "m1"', b'{"replies": 1, "output": 2}'):
        path.write_bytes(content)
        assert Delivered(tmp_path).got("k1", "s1").replies.maxlen == 100
        assert not Delivered(tmp_path).got("k1", "s1").replies


def test_what_is_noted_often_is_written_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two rounds of writing is a pause, for whatever is noted meanwhile; its end waits for no pause."""
    monkeypatch.setattr(delivered_module, "_PAUSE", 600.0)
    written: list[str] = []
    write_one = Delivered._write_one

    def noting(self: Delivered, path: Path, content: tuple[str, list[str]] | None) -> None:
        assert content
        written.append(content[0])
        write_one(self, path, content)

    monkeypatch.setattr(Delivered, "_write_one", noting)
    delivered = Delivered(tmp_path)
    delivered.note("k1", "s1", "m0", [])
    block_until("the first is written", lambda: Delivered(tmp_path).got("k1", "s1").output)
    for number in range(1, 50):
        delivered.note("k1", "s1", f"m{number}", [f"r{number}"])
    settled(delivered)
    assert written == ["m0", "m49"]
    assert Delivered(tmp_path).got("k1", "s1").replies[-1] == "r49"


def test_a_new_session_is_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway may be killed a moment after a client came: it is waited for all the same, whatever was written just before."""
    monkeypatch.setattr(delivered_module, "_PAUSE", 600.0)
    delivered = Delivered(tmp_path)
    for session in ("s1", "s2"):
        delivered.note("k1", session, "", [])
        name = Delivered.name_of(session)
        block_until("it is known", lambda name=name: name in delivered.sessions("k1"))  # type: ignore[misc]


def test_a_session_that_has_ended_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for it, now or after the next start; the other sessions of its kernel stay."""
    delivered = Delivered(tmp_path)
    monkeypatch.setattr(kept_output, "delivered", delivered)
    for session in ("s1", "s2"):
        kept_output.note_there("k1", session)
    settled(delivered)
    found = kept_output.Adopted(cast("Any", None), cast("Any", SimpleNamespace(id="k1", attempt="a1")), 0, None)
    monkeypatch.setattr(kept_output, "_adopted", {"k1": found})
    kept_output.note_gone("k1", "s1")
    settled(delivered)
    assert (found.waits_for("s1"), found.waits_for("s2")) == (False, True)
    assert Delivered(tmp_path).sessions("k1") == {Delivered.name_of("s2")}


def test_what_nobody_has_written_to_for_long_is_removed(tmp_path: Path) -> None:
    """A session's file after a month, also where the kernel runs on and has others; what is none of ours stops nothing."""
    delivered = Delivered(tmp_path)
    for session in ("s1", "s2"):
        delivered.note("k1", session, "", [])
    settled(delivered)
    (tmp_path / "a file").touch()
    stale = tmp_path / delivered_module._name("k1") / Delivered.name_of("s1")
    os.utime(stale, (0, 0))
    delivered._prune()
    assert delivered.sessions("k1") == {Delivered.name_of("s2")}


def test_without_persistence_nothing_is_kept() -> None:
    """No folder, no file, no session that is waited for."""
    delivered = Delivered(None)
    delivered.note("k1", "s1", "m1", ["r1"])
    delivered.forget("k1")
    assert (delivered.sessions("k1"), delivered.is_kept) == (set(), False)

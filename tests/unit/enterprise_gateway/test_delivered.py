"""What sessions have got is found by the gateway's next process, and gone when their kernel is."""

from __future__ import annotations

from pathlib import Path

from eg_distributed.enterprise_gateway.delivered import Delivered, Got


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


def test_without_persistence_nothing_is_kept() -> None:
    """No folder, no file, no session that is waited for."""
    delivered = Delivered(None)
    delivered.note("k1", "s1", "m1", ["r1"])
    delivered.forget("k1")
    assert (delivered.sessions("k1"), delivered.is_kept) == (set(), False)

"""What an agent kept is read in whatever pieces it comes, with what is missing."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eg_distributed.agent.kept_output import BEFORE, HEARD, RECORD, SILENCE
from eg_distributed.kept_output import Kept, Records
from eg_distributed.protocol import OutputPart
from eg_distributed.wire import Malformed
from tests.unit.agent.pub import encoded


def part(data: bytes, start: int, *, is_all: bool = False, numbered: int = 0, is_after: bool = False) -> OutputPart:
    """Return an answer with *data*."""
    return OutputPart(base64.b64encode(data).decode(), start, start + len(data), is_all, numbered, is_after)


def record(kind: int, number: int, message: bytes) -> bytes:
    return RECORD.pack(kind, number, len(message)) + message


@given(st.lists(st.binary(max_size=50), max_size=10), st.integers(1, 100))
def test_records_come_out_of_any_pieces(bodies: list[bytes], size: int) -> None:
    """A piece may end anywhere."""
    data = b"".join(record(HEARD, number, encoded([body])) for number, body in enumerate(bodies))
    records = Records()
    found = [
        kept for start in range(0, len(data), size) for kept in records.take(part(data[start : start + size], start))
    ]
    assert found == [Kept([body]) for body in bodies]
    assert records.position == len(data)


def test_gaps_are_counted() -> None:
    """Numbers that are missing are lost messages: before the first, between two, and behind the last."""
    records = Records()
    data = record(BEFORE, 0, encoded([b"b"])) + record(HEARD, 3, encoded([b"c"])) + record(SILENCE, 4, b"1500")
    assert list(records.take(part(data, 0))) == [Kept([b"b"]), Kept([b"c"], 3), Kept([], 0, 1.5)]
    later = part(record(HEARD, 6, encoded([b"d"]))[:10], 1000)
    assert list(records.take(later)) == []
    # What the piece before began with has given way meanwhile.
    assert list(records.take(part(record(HEARD, 8, encoded([b"e"])), 2000))) == [Kept([b"e"], 4)]
    assert list(records.take(part(b"", records.position, is_all=True, numbered=10))) == [Kept([], 1)]
    assert list(records.take(part(b"", records.position, is_all=True, numbered=10))) == []


def test_what_lies_before_what_was_asked_for_is_not_lost() -> None:
    """Behind a message that a session has got, numbers begin anywhere."""
    records = Records()
    assert list(records.take(part(record(HEARD, 7, encoded([b"a"])), 500, is_after=True))) == [Kept([b"a"])]


@pytest.mark.parametrize("data", ["*", "AAAA" * 3 + "////" + "AAAA" * 3])
def test_what_no_agent_says_is_malformed(data: str) -> None:
    """Neither base64 nor a record of a sane size."""
    raw = RECORD.pack(HEARD, 0, (1 << 32) - 1)
    with pytest.raises(Malformed):
        list(Records().take(OutputPart(data if data == "*" else base64.b64encode(raw).decode(), 0, 10, is_all=True)))

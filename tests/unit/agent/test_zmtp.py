"""ZMTP: messages are found in whatever pieces they come, and where only a part of a stream is left."""

from __future__ import annotations

import asyncio
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eg_distributed.agent.zmtp import DELIM, Framer, NotZmtp, find_messages, header, parent, split, subscribe
from tests.unit.agent.pub import GREETING, READY, encoded, message

BODIES = st.lists(st.binary(max_size=300), min_size=1, max_size=8)
MESSAGES = st.lists(BODIES, max_size=8)


def fed(framer: Framer, data: bytes, size: int) -> list[bytes | None]:
    """Feed *data* in pieces of *size* bytes."""
    return [each for start in range(0, len(data), size) for each in framer.feed(data[start : start + size])]


@given(MESSAGES, st.integers(1, 700))
def test_messages_come_out_as_they_went_in(messages: list[list[bytes]], size: int) -> None:
    """Whatever the pieces, each message is found as it was, and nothing is left over."""
    framer = Framer(1 << 20)
    found = fed(framer, b"".join(map(encoded, messages)), size)
    assert [split(each) for each in found if each is not None] == messages
    assert not framer._buffer


@given(MESSAGES, st.integers(1, 700), st.integers(10, 900))
def test_a_message_that_is_too_large_is_passed_over(messages: list[list[bytes]], size: int, limit: int) -> None:
    """It is counted, the others are found, and no more than the limit is kept of it."""
    framer = Framer(limit)
    data = b"".join(map(encoded, messages))
    found = fed(framer, data, size)
    expected = [each if len(encoded(each)) <= limit else None for each in messages]
    assert [None if each is None else split(each) for each in found] == expected
    assert not framer._buffer


@given(st.binary(max_size=2000), st.integers(1, 50))
def test_what_is_no_zmtp_is_refused(data: bytes, size: int) -> None:
    """Any bytes are messages or refused, and what is kept of them is bounded."""
    framer = Framer(500)
    try:
        fed(framer, data, size)
    except NotZmtp:
        return
    assert len(framer._buffer) <= 500 + 9 + size


@given(st.integers(0, 1500), st.binary(max_size=200))
def test_whole_messages_are_found_in_what_is_left_of_a_stream(cut: int, body: bytes) -> None:
    """From wherever a stream is left, the messages that are whole are found, without their addresses."""
    sent = [message(f"m{number}", content=body) for number in range(5)]
    data = GREETING + READY + b"".join(encoded([b"topic", *each]) for each in sent)
    left = data[cut:]
    found = [split(left[begin:end]) for begin, end in find_messages(left)]
    assert found == sent[len(sent) - len(found) :]
    begins = [len(data) - sum(7 + len(encoded(each)) for each in sent[number:]) + 7 for number in range(5)]
    assert len(found) == sum(1 for begin in begins if begin >= cut)


def test_bytes_that_look_like_a_beginning_hide_no_message() -> None:
    """A buffer in a message may have what messages begin with."""
    nested = message("inner")[:3]
    data = b"\x01\x09" + DELIM + b"\xff" + encoded([*message("m1"), encoded(nested)]) + encoded(message("m2"))
    assert [header(data[begin:end]) for begin, end in find_messages(data)] == [b'{"msg_id": "m1"}', b'{"msg_id": "m2"}']
    assert parent(encoded(message("m1", parent=b"{}"))) == b"{}"
    assert header(b"no message") == parent(encoded([b"a"])) == b""


@pytest.mark.parametrize(
    "greeting", [b"HTTP/1.1 400 Bad Request\r\n" * 4, GREETING[:12] + b"CURVE".ljust(52, b"\0"), b"\xff"]
)
async def test_a_peer_of_another_protocol_is_refused(greeting: bytes) -> None:
    """What does not greet as ZMTP 3 without a secret is not subscribed to."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    theirs.send(greeting)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(NotZmtp):
        await asyncio.wait_for(subscribe(reader, writer), 10)
    writer.close()
    theirs.close()

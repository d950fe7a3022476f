"""Messages arrive as they were sent, or not at all."""

from __future__ import annotations

import asyncio
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eg_distributed.wire import MAX_MESSAGE, Message, encode, one_line, read_message


def fed(data: bytes) -> asyncio.StreamReader:
    """Return a reader that has got *data* and then the end."""
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return reader


async def around(message: Message) -> Message | None:
    """Return *message* after its way over a connection."""
    return await read_message(fed(encode(message)))


TEXT = st.text(st.characters(codec=None), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=5,
)


@settings(deadline=None)
@given(st.dictionaries(TEXT, VALUES, max_size=4))
async def test_any_message_makes_the_round_trip(message: Message) -> None:
    """What is sent arrives equal, unicode and lone surrogates included."""
    assert await around(message) == message


async def test_a_large_value_makes_the_round_trip() -> None:
    """A value of 1 MiB is an ordinary one."""
    message = {"value": "ü\n$(x)'\"" * (1 << 17)}
    assert await around(message) == message


async def test_messages_follow_each_other() -> None:
    """Two messages in one packet are two messages, and the end after them is None."""
    reader = fed(encode({"n": 1}) + encode({"n": 2}))
    assert [await read_message(reader) for _ in range(3)] == [{"n": 1}, {"n": 2}, None]


async def test_a_message_that_is_too_long_is_refused() -> None:
    """Its length alone is enough: nothing of it is read, and no memory is spent."""
    with pytest.raises(ValueError, match=str(MAX_MESSAGE + 1)):
        await read_message(fed(struct.pack(">I", MAX_MESSAGE + 1)))


@pytest.mark.parametrize("kept", [0, 1, 3, 4, 5, -1])
async def test_half_a_message_is_none(kept: int) -> None:
    """A peer that closes in the middle of a message has closed, no more."""
    assert await read_message(fed(encode({"some": "message"})[:kept])) is None


@pytest.mark.parametrize("body", [b"[]", b"1", b"{", b"\xff\xfe", b""])
async def test_what_is_no_object_is_refused(body: bytes) -> None:
    """Valid length, wrong content: a ValueError, whatever is wrong with it."""
    with pytest.raises(ValueError, match=r".*"):
        await read_message(fed(struct.pack(">I", len(body)) + body))


@given(st.text(st.characters(codec=None), max_size=3000))
def test_what_a_node_said_is_one_line_of_a_log(said: str) -> None:
    """No text of a node's begins a line of its own, moves a terminal's cursor, or fills the log."""
    line = one_line(said, 100)
    assert len(line) <= 100
    assert line.isprintable()
    assert one_line(f" a\n\tb\x1b[31m{said}", 6) == "a b?[…"

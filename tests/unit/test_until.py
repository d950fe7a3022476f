"""What tests wait with."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.until import block_until, until, until_in_thread


def answers() -> Iterator[str]:
    yield from ("", "", "there")


async def test_the_first_true_answer_is_returned() -> None:
    """Functions and coroutine functions are asked on the loop, blocking ones in a thread, until they answer something."""
    told, asked, blocking = answers(), answers(), answers()

    async def ask() -> str:
        return next(asked)

    def look() -> str:
        assert threading.current_thread() is not threading.main_thread()
        return next(blocking)

    assert await until("it", lambda: next(told)) == "there"
    assert await until("it", ask) == "there"
    assert await until_in_thread("it", look, pause=0) == "there"


async def test_what_does_not_come_in_time_fails_by_its_name() -> None:
    """The error says what was waited for, how long, and what was there instead."""
    with pytest.raises(AssertionError, match=r"the end: not within 0.01 s, last seen \[\]"):
        await until("the end", list, 0.01)


def test_a_test_without_a_loop_waits_and_fails_alike() -> None:
    """The same answers and the same error; a deadline of 0 s is one look."""
    told = answers()
    assert block_until("it", lambda: next(told), pause=0) == "there"
    with pytest.raises(AssertionError, match="the end: not within 0 s, last seen None"):
        block_until("the end", lambda: None, 0)

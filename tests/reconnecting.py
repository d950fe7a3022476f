"""What holds of clients that connect again, at Enterprise Gateway and at any Jupyter server: the same steps, the same lines."""

from __future__ import annotations

from tests.sessions import Reader, Session
from tests.silencer import Silencer
from tests.until import until

LINES = 300
PRINTING = f"""
import time
for number in range({LINES}):
    print(number, flush=True)
    time.sleep(0.01)
"""


async def a_twin_that_is_cut_off_takes_nothing(session: Session) -> None:
    """A connection that came late, and ends, has taken no line from the one before it."""
    async with session.connect() as connection:
        printing = Reader(connection, await session.run(connection, PRINTING))
        await printing.reached(20)
        (await session.dropped(opened=True)).close()
        assert await printing.ended() == list(range(LINES))


async def the_first_of_three_gets_each_line(session: Session, *, speaks: bool) -> None:
    """Two connections that the page drops come late, in a row, and confirm what they get: the first one is the client's.

    It says so itself (*speaks*), or the others are cut off.
    """
    async with session.connect() as connection:
        request = await session.run(connection, PRINTING)
        printing = Reader(connection, request)
        await printing.reached(20)
        async with session.connect() as second:
            await Reader(second, request).has_some(10)
            async with session.connect() as third:
                await Reader(third, request).has_some(10)
                if speaks:
                    await session.run(connection, "pass")
                else:
                    third.transport.abort()
                    await third.wait_closed()
                    second.transport.abort()
                    await second.wait_closed()
                assert await printing.ended() == list(range(LINES))


async def a_client_moves(session: Session) -> None:
    """A cell is printed over two connections: the second goes on where the first has stopped."""
    async with session.connect() as first:
        request = await session.run(first, PRINTING)
        before = Reader(first, request)
        await before.reached(20)
        (await session.dropped(opened=False)).close()  # it comes between the two, and is neither
        async with session.connect() as second:
            after = await Reader(second, request).ended()
        assert await before.ended() + after == list(range(LINES))
        assert after


async def what_was_swallowed_is_sent_again(session: Session) -> None:
    """A connection whose machine sleeps takes no line with it."""
    async with Silencer(session.host, session.port) as silencer, session.connect(silencer.port) as first:
        request = await session.run(first, PRINTING)
        before = Reader(first, request)
        await before.reached(20)
        await silencer.sleep()
        swallowed = silencer.swallowed
        await until("something was swallowed", lambda: silencer.swallowed > swallowed + 10_000)
        async with session.connect() as second:
            after = await Reader(second, request).ended()
        # What came shortly before the cut could not be confirmed any more, and so comes again.
        assert after == list(range(after[0], LINES))
        assert 0 < after[0] <= before.numbers[-1] + 1


async def a_session_is_waited_for(session: Session, other: Session) -> None:
    """One that is cut off finds each line when it is back, while the *other* one of its kernel stays."""
    async with other.connect() as stays:
        async with session.connect() as first:
            request = await session.run(first, PRINTING)
            watching, before = Reader(stays, request), Reader(first, request)
            await before.reached(20)
            first.transport.abort()
            await before.ended()
        await watching.reached(LINES // 2)
        async with session.connect() as second:
            after = await Reader(second, request).ended()
        assert after == list(range(after[0], LINES))
        assert 0 < after[0] <= before.numbers[-1] + 1
        await watching.reached(LINES - 1)
        assert watching.numbers == list(range(LINES))

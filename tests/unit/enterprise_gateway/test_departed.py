"""Starts whose client has gone away; with handlers that behave as tornado's."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from eg_distributed.enterprise_gateway.departed import ClientGone, notice_departures, unless_client_leaves
from eg_distributed.enterprise_gateway.door import Door


class Kernels(dict[str, str]):
    """A kernel manager."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[tuple[str, bool]] = []

    async def shutdown_kernel(self, kernel_id: str, now: bool) -> None:
        """Note that, and how, it was ended."""
        self.ended.append((kernel_id, now))
        del self[kernel_id]


class Start:
    """A start that takes until it is told to end, or fails."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.ready = asyncio.Event()
        self.cancelled = False

    async def run(self) -> str:
        """Take as long as the test wants."""
        self.begun.set()
        try:
            await self.ready.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return "kernel"


def handlers() -> Any:
    """Return a handler's class whose `post` starts a kernel and then still has something to do."""

    class Handler:
        """A handler of POST /api/kernels."""

        def __init__(self, start: Start) -> None:
            self.kernel_manager = Kernels()
            self.closed = 0
            self.start = start
            self.after = asyncio.Event()
            self.answer = asyncio.Event()

        async def post(self) -> None:
            """Start a kernel, and answer."""
            self.kernel_manager["k1"] = await unless_client_leaves("k1", self.start.run())
            self.after.set()
            await self.answer.wait()

        def on_connection_close(self) -> None:
            """Count the call."""
            self.closed += 1

    notice_departures(Handler)
    return Handler


async def test_a_start_is_cancelled_when_its_client_leaves() -> None:
    """Nothing goes on for nobody, and the kernel's manager hears that it failed."""
    start = Start()
    handler = handlers()(start)
    posting = asyncio.ensure_future(handler.post())
    await start.begun.wait()
    handler.on_connection_close()
    with pytest.raises(ClientGone):
        await posting
    assert (start.cancelled, handler.closed, handler.kernel_manager.ended) == (True, 1, [])


async def test_a_kernel_that_nobody_was_told_of_is_ended() -> None:
    """The client left after the start was over and before it was answered."""
    start = Start()
    handler = handlers()(start)
    start.ready.set()
    posting = asyncio.ensure_future(handler.post())
    await handler.after.wait()
    handler.on_connection_close()
    handler.answer.set()
    await posting
    assert handler.kernel_manager.ended == [("k1", True)]


async def test_a_client_that_stays_has_its_kernel() -> None:
    """Its connection's end after the answer ends nothing, nor does that of another request."""
    start, other = Start(), Start()
    handler, leaving = handlers()(start), handlers()(other)
    posting, cancelled = asyncio.ensure_future(handler.post()), asyncio.ensure_future(leaving.post())
    await other.begun.wait()
    leaving.on_connection_close()
    start.ready.set()
    handler.answer.set()
    await posting
    handler.on_connection_close()
    with pytest.raises(ClientGone):
        await cancelled
    assert handler.kernel_manager == {"k1": "kernel"}
    assert handler.kernel_manager.ended == []


async def test_what_a_request_began_outlives_it() -> None:
    """An automatic restart runs in the context of the request that started the kernel: its client's leaving is no matter."""
    start, restart = Start(), Start()
    handler = handlers()(start)
    restarted: list[asyncio.Task[str]] = []
    begin = start.run

    async def run() -> str:
        async def later() -> str:
            await restart.ready.wait()
            return await unless_client_leaves("k1", restart.run())

        restarted.append(asyncio.ensure_future(later()))
        return await begin()

    start.run = run  # type: ignore[method-assign]
    start.ready.set()
    handler.answer.set()
    await handler.post()
    handler.on_connection_close()
    restart.ready.set()
    assert await restarted[0] == "kernel"
    assert handler.kernel_manager.ended == []


async def test_a_cancellation_of_the_request_itself_stays_one() -> None:
    """The gateway's end is not taken for the client's leaving."""
    start = Start()
    handler = handlers()(start)
    posting = asyncio.ensure_future(handler.post())
    await start.begun.wait()
    posting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await posting
    assert start.cancelled


async def test_without_a_request_a_start_is_awaited_as_it_is() -> None:
    """Prespawned kernels have no client that could leave."""
    start = Start()
    start.ready.set()
    assert await unless_client_leaves("k1", start.run()) == "kernel"


@pytest.mark.parametrize("is_ours", [True, False], ids=["ours", "another proxy's"])
async def test_other_things_are_done_between_starts(is_ours: bool) -> None:
    """Of fifty requests at once one is on its way to the cluster at a time, so that a cell waits for one, and not for
    all; none waits for the kernel of the one before."""
    done: list[str] = []
    ready = asyncio.Event()

    class Handler:
        """A handler whose thread computes in steps."""

        async def post(self) -> None:
            """Start a kernel, and wait for it."""
            for _ in range(3):
                done.append("step")
                await asyncio.sleep(0)
            if is_ours:
                await unless_client_leaves("k1", ready.wait())
            else:
                await ready.wait()

        def on_connection_close(self) -> None:
            """Do nothing."""

    async def carry_cells() -> None:
        while done.count("step") < 150:
            done.append("cell")
            await asyncio.sleep(0)

    notice_departures(Handler)
    posting = [asyncio.ensure_future(Handler().post()) for _ in range(50)]
    await carry_cells()
    ready.set()
    await asyncio.gather(*posting)
    longest = max(map(len, "".join(each[0] for each in done).split("c")))
    assert longest <= 2


async def test_a_request_that_is_given_up_keeps_no_other_out() -> None:
    """Those that are cancelled while they wait, or in the moment in which they are let in, are passed over."""
    door = Door()
    first = await door.enter()
    waiting = [asyncio.ensure_future(door.enter()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    first()
    waiting[1].cancel()
    (await waiting[2])()
    first()
    (await asyncio.wait_for(door.enter(), 5))()

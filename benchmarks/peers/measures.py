"""What is done with each contender's kernels, by a client of REST and websockets as notebooks are."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Final

import httpx
from websockets.exceptions import WebSocketException

from benchmarks.peers.figures import BESIDE, Cut, Found
from benchmarks.peers.nodes import Nodes
from benchmarks.peers.servers import LOCAL_SPEC, Server
from benchmarks.peers.wire import Wire
from tests.integration.client import ChannelsClosed, Execution, GatewayClient, GatewayError, Kernel

STORMS: Final = (8, 32)
WARM_UP, CELLS, CELLS_SECONDS = 10, 50, 120.0
START_SECONDS, END_SECONDS = 60.0, 20.0
CUT_SECONDS: Final = 10.0
LINES, LINE_SECONDS, LINES_BEFORE = 240, 0.05, 40
"""A cell that prints for as long as the network is away, and two seconds before."""
CELL_AFTER_CUT_SECONDS, AFTER_CUT_SECONDS, ASK_AGAIN_SECONDS = 20.0, 60.0, 10.0
TRIES = 2
"""So often a contender may fail at one thing before the rest of the run does without."""
SLEEPING = "import time; print('on', flush=True); time.sleep(60)"
PRINTING = f"import time\nfor n in range({LINES}): print(n, flush=True); time.sleep({LINE_SECONDS})"
_FAILURES = (
    GatewayError,
    ChannelsClosed,
    asyncio.TimeoutError,
    TimeoutError,
    httpx.HTTPError,
    WebSocketException,
    OSError,
)


class Runner:
    """One contender's server in the hands of a client, and what is found of it."""

    def __init__(self, server: Server, found: Found) -> None:
        self.server, self.found = server, found
        self.client = GatewayClient(server.url)
        self._specs = itertools.cycle(server.specs)
        self._failed: dict[str, int] = {}

    @property
    def key(self) -> str:
        """The contender's."""
        return self.server.contender.key

    async def attempt(self, what: str, action: Callable[[], Awaitable[None]], seconds: float) -> None:
        """Do it within *seconds*; note a failure, and end the kernels that it leaves. What failed twice is not tried again."""
        if self._failed.get(what, 0) >= TRIES:
            return
        try:
            await asyncio.wait_for(action(), seconds)
        except _FAILURES as error:
            self._failed[what] = self._failed.get(what, 0) + 1
            said = " ".join(str(error).split())[:300] or type(error).__name__
            self.found.failures.append(f"{what}: {said}")
            print(f"  {self.found.label}: {what}: {said}", flush=True)
            await self.end_kernels()

    async def start(self, spec: str = "") -> Kernel:
        """Start a kernel, of the kernelspec *spec* or the contender's next one, and wait for its first kernel_info_reply."""
        env = {"KERNEL_USERNAME": "bench"}
        kernel = await self.client.start_kernel(spec or next(self._specs), env=env, timeout=START_SECONDS)
        await kernel.connect(START_SECONDS)
        return kernel

    async def end_kernels(self) -> None:
        """Delete all kernels, as far as that can be done in time."""

        async def end(kernel: Kernel) -> None:
            with contextlib.suppress(*_FAILURES):
                await asyncio.wait_for(kernel.delete(END_SECONDS), END_SECONDS + 10)
            self.client.started.pop(kernel.id, None)

        await asyncio.gather(*map(end, list(self.client.started.values())))

    async def close(self) -> None:
        """End kernels and connections."""
        await self.end_kernels()
        await self.client.close()


async def milliseconds(action: Callable[[], Awaitable[object]]) -> float:
    """Return how long *action* takes."""
    began = time.perf_counter()
    await action()
    return 1e3 * (time.perf_counter() - began)


async def first_start(runner: Runner, key: str, hosts: int) -> None:
    """The server's first start, which may have to log in; then one for each further host, which count nowhere."""
    runner.found.add(key, [await milliseconds(runner.start)])
    for _ in range(hosts - 1):
        await runner.start()
    await runner.end_kernels()


async def lives(runner: Runner, count: int) -> None:
    """Whole lives of a kernel: start, interrupt, restart, shutdown."""
    seen: dict[str, list[float]] = {"start": [], "interrupt": [], "restart": [], "shutdown": []}
    try:
        for _ in range(count):
            began = time.perf_counter()
            kernel = await runner.start()
            seen["start"].append(1e3 * (time.perf_counter() - began))
            running = await kernel.begin(SLEEPING)
            await running.printed("on")

            async def interrupt(of: Kernel = kernel, execution: Execution = running) -> None:
                await of.interrupt()
                await execution.reply(END_SECONDS)

            seen["interrupt"].append(await milliseconds(interrupt))
            # As JupyterLab does; some peers' kernels have other ports and a new key then.
            await kernel.disconnect()
            seen["restart"].append(await milliseconds(partial(_restart, kernel)))
            await kernel.disconnect()
            seen["shutdown"].append(await milliseconds(partial(kernel.delete, END_SECONDS)))
    finally:
        for name, values in seen.items():
            runner.found.add(name, values)


async def _restart(kernel: Kernel) -> None:
    await kernel.restart(START_SECONDS)
    await kernel.connect(START_SECONDS)


async def cells(
    runners: Sequence[Runner], count: int = CELLS, turns: int = 2, suffix: str = "", seconds: float = CELLS_SECONDS
) -> None:
    """Round trips of the cell `1` on a kernel of each, and on a local one of the same server where there is no *suffix*.

    In *turns*, so that what else the machine does falls on all; each has *seconds* for its part.
    """
    kernels: dict[tuple[Runner, str], Kernel] = {}
    seen: dict[tuple[Runner, str], list[float]] = {}

    async def begin(runner: Runner, figure: str) -> None:
        kernel = await runner.start(LOCAL_SPEC if figure == BESIDE["cell"] else "")
        for _ in range(WARM_UP):
            await kernel.execute("1")
        kernels[runner, figure] = kernel

    async def some(runner: Runner, figure: str) -> None:
        kernel = kernels[runner, figure]
        for _ in range(count // turns):
            seen.setdefault((runner, figure), []).append(await milliseconds(partial(kernel.execute, "1")))

    for runner in runners:
        await runner.attempt(f"cells{suffix}", partial(begin, runner, f"cell{suffix}"), seconds)
        if runner.server.contender.remote and not suffix:
            await runner.attempt("cells of a local kernel", partial(begin, runner, BESIDE["cell"]), seconds)
    for _ in range(turns):
        for runner, figure in kernels:
            await runner.attempt(f"cells{suffix}", partial(some, runner, figure), seconds)
    for (runner, figure), values in seen.items():
        runner.found.add(figure, values)
    for runner in runners:
        await runner.end_kernels()


async def storm(runner: Runner, count: int, nodes: Nodes) -> None:
    """*count* starts at once, what memory their kernels have, and their end at once."""
    before = memory(runner, nodes)
    seen: list[float] = []
    said: list[str] = []

    async def one() -> None:
        try:
            seen.append(await milliseconds(runner.start))
        except _FAILURES as error:
            said.append(" ".join(str(error).split())[:200] or type(error).__name__)

    wall = await milliseconds(lambda: asyncio.gather(*(one() for _ in range(count))))
    found = runner.found
    found.add(f"storm_{count}_start", seen)
    found.add(f"storm_{count}_wall", [wall])
    found.add(f"storm_{count}_failed", [float(len(said))])
    if said:
        found.failures.append(f"{count} starts at once: {len(said)} failed, the first with: {said[0]}")
    after = memory(runner, nodes)
    for name, had, has in zip(("server", "hosts"), before, after, strict=True):
        found.add(f"{name}_0", [had])
        found.add(f"{name}_{count}", [has])
        if count == max(STORMS) and seen:
            found.add(f"{name}_per_kernel", [max(0.0, has - had) / len(seen)])
    found.add(f"storm_{count}_shutdown", [await milliseconds(runner.end_kernels)])
    left = await nodes.end_what_is_left()
    found.add("left", [float(left)])


def memory(runner: Runner, nodes: Nodes) -> tuple[float, float]:
    """Return the MiB of the server with its helpers, and of all processes on the hosts of its kernels."""
    server, kernels = runner.server.memory()
    return server, nodes.memory() if runner.server.contender.remote else kernels


async def forked(runner: Runner) -> None:
    """Which part of its starts was warm, as the server counts them: one that falls back to cold starts must not pass for warm."""
    async with httpx.AsyncClient(trust_env=False) as http:
        told = (await http.get(f"{runner.server.url}/metrics", timeout=END_SECONDS)).text
    counted = {"forked": 0.0, "cold": 0.0}
    for how, count in re.findall(r'^\w*_warm_starts_total\{[^}]*how="(forked|cold)"\} (\S+)$', told, re.MULTILINE):
        counted[how] += float(count)
    if total := sum(counted.values()):
        runner.found.add("forked", [100 * counted["forked"] / total])


async def starts(runner: Runner, key: str, count: int) -> None:
    """Starts, one at a time."""
    seen = []
    for _ in range(count):
        seen.append(await milliseconds(runner.start))
        await runner.end_kernels()
    runner.found.add(key, seen)


async def cut(runners: Iterable[Runner], wire: Wire, name: str, *, ends_connections: bool) -> None:
    """Cut the network off a cell of each that prints lines, all in the same ten seconds, and see what becomes of it."""
    printing: dict[Runner, tuple[Kernel, Execution, list[float]]] = {}

    async def begin(runner: Runner) -> None:
        kernel = await runner.start()
        await kernel.execute("kept = 'kept'")
        arrivals: list[float] = []
        execution = await kernel.begin(PRINTING, on_stream=lambda *_: arrivals.append(time.monotonic()))
        printing[runner] = kernel, execution, arrivals

    # One after the other, but so that none has printed much when the last one begins.
    for runner in runners:
        await runner.attempt(f"cut ({name})", partial(begin, runner), 60)
    began = time.monotonic()
    for _, execution, _ in printing.values():
        with contextlib.suppress(*_FAILURES):
            await execution.printed(f"\n{LINES_BEFORE}\n", 10)
    print(f"  {name}: cut {time.monotonic() - began:.1f} s after the last cell's start", flush=True)
    wire.cut(ends_connections=ends_connections)
    await asyncio.sleep(CUT_SECONDS)
    back = time.monotonic()
    wire.take(0)
    await asyncio.gather(*(_after(runner, name, back, *of_one) for runner, of_one in printing.items()))
    await asyncio.gather(*(runner.end_kernels() for runner in printing))


async def _after(
    runner: Runner, name: str, back: float, kernel: Kernel, execution: Execution, arrivals: list[float]
) -> None:
    """Wait for the cell's end, and for a new one's, which is sent as soon as the network is back."""
    found = Cut(LINES)
    answered = asyncio.create_task(_answered(kernel, back))
    with contextlib.suppress(*_FAILURES):
        await execution.result(back + CELL_AFTER_CUT_SECONDS - time.monotonic())
    found.reply = bool(execution.partial.reply)
    numbers = {int(number) for number in re.findall(r"^\d+$", execution.partial.stdout, re.MULTILINE)}
    found.lost = LINES - len(numbers & set(range(LINES)))
    found.resumed = next((each - back for each in arrivals if each > back), None)
    found.answered, found.kept_state, closed = await answered
    told = [state for state in dict.fromkeys(kernel.states) if state not in {"busy", "idle", "starting"}]
    found.said = ", ".join([*told, *([closed] if closed else [])])
    runner.found.cuts.setdefault(name, []).append(found)


async def _answered(kernel: Kernel, back: float) -> tuple[float | None, bool, str]:
    """Run a cell, again each ten seconds without an answer, as a person would; for a minute.

    Return after how many seconds it had run, whether what was set before the cut was still there, and why the websocket was
    closed.
    """
    closed = ""
    while (left := back + AFTER_CUT_SECONDS - time.monotonic()) > 0:
        if kernel.closed:
            closed = kernel.closed
            await kernel.disconnect()
        try:
            asked = await asyncio.wait_for(
                kernel.execute("print(globals().get('kept'))", ASK_AGAIN_SECONDS), min(left, ASK_AGAIN_SECONDS)
            )
            return time.monotonic() - back, "kept" in asked.stdout, closed
        except _FAILURES:
            await asyncio.sleep(0.5)  # a server that refuses is asked again, but not at once
    return None, False, closed

"""What a start costs, counted and not timed: the same on any machine, so a change that makes starts dearer is seen at once."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType

from .site import SET, SHARED
from .world import World

BATCHES, EACH = 5, 10
"""How often each gateway starts so many kernels at once."""
CALLS, CALLS_OF_A_HOST = 1500, 4.5
"""Calls of Python functions for a start on SET hosts, and for each host more; a coroutine that goes on counts as called.

They were 1253 and 3.1 in Python 3.11 when this was written, and 2177 and 13.4 before each pick looked at all hosts in one loop.
"""
CALLBACKS, MESSAGES = 40, 7
"""What the loop is told to do, soon or at a time; what gateway and agent say to each other, and who else they tell of it."""


class Calls:
    """Counts calls of functions while it is entered."""

    def __init__(self) -> None:
        self.counts: Counter[CodeType] = Counter()

    def __enter__(self) -> None:
        self._before = sys.getprofile()
        sys.setprofile(self._note)

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self._before)

    def _note(self, frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            self.counts[frame.f_code] += 1

    def by_name(self) -> Counter[str]:
        """Return how often each was called, by file and name."""
        found: Counter[str] = Counter()
        for code, count in self.counts.items():
            found[f"{Path(code.co_filename).name}:{code.co_name}"] += count
        return found


def calls_of_a_start(folder: Path, hosts: int) -> dict[str, float]:
    """Return what is called for a start on *hosts*, most first, in the mean of those that three gateways make at once."""
    world = World(1, hosts=hosts, gateways=SHARED, folder=folder, orphan_timeout=0.0)
    calls = Calls()

    async def story(world: World) -> None:
        names = tuple(world.machines)
        for gateway in world.gateways:
            await gateway.cluster.list_kernels(names)
        for batch in range(BATCHES):
            begun = [(each, f"{each.name}-{batch}-{number}") for each in world.gateways for number in range(EACH)]
            with calls:
                assert all(await asyncio.gather(*(gateway.start(name, names) for gateway, name in begun)))

    world.run(story)
    return {name: count / (BATCHES * EACH * SHARED) for name, count in calls.by_name().most_common()}


def test_a_start_costs_so_much(tmp_path: Path) -> None:
    """A start among many is so many calls, callbacks and messages at both ends together, and few more for each further host."""
    few, many = calls_of_a_start(tmp_path, SET), calls_of_a_start(tmp_path, 2 * SET)
    of_a_host = (sum(many.values()) - sum(few.values())) / SET
    callbacks = few["loop.py:call_soon"] + few["loop.py:call_at"]
    shown = "\n".join(f"{count:8.2f} {name}" for name, count in [*few.items()][:60])
    print(f"{sum(few.values()):.0f} calls, and {of_a_host:.1f} for each host more\n{shown}")
    assert sum(few.values()) < CALLS
    assert of_a_host < CALLS_OF_A_HOST
    assert callbacks < CALLBACKS
    assert few["wire.py:encode"] < MESSAGES

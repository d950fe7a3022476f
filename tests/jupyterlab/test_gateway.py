"""A laptop that sleeps, and an Enterprise Gateway that is killed, cost a notebook in JupyterLab nothing."""

from __future__ import annotations

import httpx
import pytest

from lab import Lab
from tests.jupyterlab.cells import printed, printing
from tests.jupyterlab.notebook import SECONDS, JupyterLab
from tests.jupyterlab.worlds import World
from tests.until import block_until

pytestmark = [pytest.mark.timeout(600), pytest.mark.parametrize("world", ["gateway"], indirect=True, scope="module")]

ASLEEP = 60.0
"""Seconds that a laptop sleeps for."""
SLEPT, OVER_A_KILL = "/tmp/slept", "/tmp/over-a-kill"
"""Where the cells that run meanwhile say how far they are; no other cells write there."""


def test_a_laptop_sleeps(own: Lab, jupyterlab: JupyterLab, world: World) -> None:
    """A minute of silence, and connections that are gone without a word: the cell's lines are all there, in order.

    One that came just before the silence could not be confirmed any more, and may be there twice.
    """
    notebook = jupyterlab.fresh()
    lines = int(ASLEEP) + 10
    cell = notebook.run(printing(lines, 1.0, SLEPT))
    cell.reached(3)
    world.path.sleep()
    try:
        before = printed(own, SLEPT)
        block_until("the laptop has slept", lambda: printed(own, SLEPT) >= before + ASLEEP, seconds=2 * ASLEEP, pause=1)
    finally:
        world.path.wake()
    cell.reached(lines - 1)
    cell.ended()
    shown = cell.numbers()
    assert list(dict.fromkeys(shown)) == list(range(lines))
    assert len(shown) <= lines + 1
    notebook.run("print('awake', number)").shows(f"awake {lines - 1}")


def test_the_gateway_is_restarted(own: Lab, jupyterlab: JupyterLab, world: World) -> None:
    """With Enterprise Gateway's persistence a notebook finds its kernel again, and what its cell has printed meanwhile.

    A line that came just before the gateway was killed could not be confirmed any more, and may be there twice.
    """
    gateway = world.gateway
    notebook = jupyterlab.fresh()
    notebook.run("kept = 1").ended()
    lines = 150
    cell = notebook.run(printing(lines, 0.1, OVER_A_KILL))
    cell.reached(20)
    gateway.kill()
    reached = printed(own, OVER_A_KILL)
    block_until("the kernel has printed more meanwhile", lambda: printed(own, OVER_A_KILL) > reached + 20)
    gateway.start()
    world.path.follow(gateway)

    def connected() -> bool:
        models = httpx.get(f"{gateway.url}/api/kernels", trust_env=False, timeout=SECONDS).json()
        return [model["connections"] for model in models] == [1]

    block_until("JupyterLab's server is connected again", connected, seconds=SECONDS, pause=0.2)
    cell.ended()
    cell.reached(lines - 1)
    shown = cell.numbers()
    assert list(dict.fromkeys(shown)) == list(range(lines))
    assert len(shown) <= lines + 3
    notebook.run("print('kept', kept)").shows("kept 1")

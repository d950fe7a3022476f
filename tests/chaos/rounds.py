"""One round: its schedule is carried out, all is healed, what is left is looked at, ended, and looked at again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from lab.errors import LabError
from lab.observe.timeline import timeline
from tests.chaos.actors import Actors
from tests.chaos.checker import ENDED, LIVING, disagreements
from tests.chaos.history import History
from tests.chaos.lives import ALIVE, GONE, lives
from tests.chaos.observer import Observer
from tests.chaos.schedule import Step
from tests.chaos.site import Site

ANSWER_SECONDS = 90.0
"""For a kernel's answer once all is healed: hosts are tried again after half a minute at most."""
UNSURE_SECONDS = 10.0
"""For the answer of a kernel of which nobody can say whether it lives."""
QUIET_SECONDS = 120.0
"""Until nodes and gateway agree, and until nothing is left after all was deleted: what could not be ended is taken up half a
minute after a gateway's start, on a machine that others keep busy."""
PAUSE = 1.0


async def run(site: Site, steps: Sequence[Step]) -> History:
    """Carry *steps* out on *site*, and return all that was seen; violations are the checker's to find.

    Raises LabError where the lab itself can't be made whole again.
    """
    history = History()
    await site.found()
    actors = Actors(site, history)
    try:
        async with Observer(site, history).watching():
            await actors.act(list(steps))
            history.add("seen", "heals")
            await asyncio.to_thread(site.heal)
            await site.found()
            await _look_at_kernels(actors, history)
            await _view(site, history, LIVING)
            for slot in list(actors.ids):
                await actors.delete(slot)
            await _end_orphans(site, history)
            await _view(site, history, ENDED)
    finally:
        await actors.close()
    return history


async def _look_at_kernels(actors: Actors, history: History) -> None:
    """Have each kernel run a last cell behind all others."""
    known = lives(history)

    async def look(slot: str) -> None:
        await actors.look(slot, ANSWER_SECONDS if known[slot].last == ALIVE else UNSURE_SECONDS)

    await asyncio.gather(*(look(slot) for slot in list(actors.tabs) if known[slot].last != GONE))


async def _view(site: Site, history: History, when: str) -> None:
    """Look until all that is seen agrees, or the time is up; write down the last look."""
    until = time.monotonic() + QUIET_SECONDS
    while True:
        view = await asyncio.to_thread(site.view)
        facts = {"when": when, **view}
        known = list(lives(history).values())
        wrong = disagreements(facts, known, history.now())
        if not wrong:
            facts |= await asyncio.to_thread(site.agents_say)
            wrong = disagreements(facts, known, history.now())
        if not wrong or time.monotonic() > until:
            history.add("seen", "view", **facts)
            return
        await asyncio.sleep(PAUSE)


async def _end_orphans(site: Site, history: History) -> None:
    """End what a gateway that was killed had begun to start, and nobody was told of: as an operator does, by command."""
    cut = {
        life.id: life.slot
        for life in lives(history).values()
        if any(event.op == "start" and event.type == "info" and event["kernel"] == life.slot for event in history)
    }
    if not cut:
        return
    said = await asyncio.to_thread(site.agents_say)
    for host, kernels in said.get("told", {}).items():
        for kernel_id in kernels:
            if kernel_id in cut and kernel_id in said["orphans"]:
                answer = await asyncio.to_thread(site.end_by_command, host, kernel_id)
                history.add("seen", "orphan", kernel=cut[kernel_id], host=host, said=answer)


def logs(site: Site, since: float) -> str:
    """Return what gateway, nodes and agents logged since *since* (UNIX seconds), for whoever looks into a violation."""
    try:
        return "\n".join(map(str, timeline(site.lab, since)))
    except LabError as error:
        return f"no logs: {error}"

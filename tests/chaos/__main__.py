"""Make chaos: `nox -s chaos`, or `python -m tests.chaos`.

    python -m tests.chaos --minutes 60              rounds from a seed of chance, which is printed
    python -m tests.chaos --seed 17 --minutes 10    the same rounds again (as far as chance is ours)
    python -m tests.chaos --round 123456            one round by the seed that its line names
    python -m tests.chaos --replay FILE             one schedule, on a site that was made as new
    python -m tests.chaos --shrink FILE             the shortest part of it that still fails, kept in tests/chaos/found
    python -m tests.chaos --found                   all schedules in tests/chaos/found

Ends with 1 if there was a violation. What a round with one has left is in `.chaos/SEED`: schedule, history, violations, logs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lab import Lab
from lab.errors import LabError
from tests.chaos import rounds, schedule
from tests.chaos.checker import Violation, check, figures
from tests.chaos.history import History
from tests.chaos.schedule import Step
from tests.chaos.shrink import ddmin
from tests.chaos.site import Site

FOUND = Path(__file__).with_name("found")
KEPT = Path(".chaos")


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Chaos on a lab of containers.")
    parser.add_argument("--seed", type=int, help="the seed of all rounds [chance]")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long rounds are begun for [10]")
    parser.add_argument("--name", default="chaos", help="the lab's name [chaos]")
    parser.add_argument("--keep", action="store_true", help="keep the lab afterwards")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--round", type=int, help="one round, by its own seed")
    what.add_argument("--replay", type=Path, metavar="FILE", help="run the schedule in FILE")
    what.add_argument("--shrink", type=Path, metavar="FILE", help="shrink the schedule in FILE")
    what.add_argument("--found", action="store_true", help="run all that was found before")
    what.add_argument("--print", type=int, metavar="ROUND", help="print the schedule of a round, and do nothing")
    options = parser.parse_args(argv)
    if options.print is not None:
        print("\n".join(map(str, schedule.draw(options.print))))
        return 0
    site = Site.make(options.name)
    site.fresh()  # a run that was killed leaves kernels
    try:
        return asyncio.run(_run(site, options))
    finally:
        if not options.keep:
            Lab.attach(options.name).down()


async def _run(site: Site, options: argparse.Namespace) -> int:
    if options.replay or options.found:
        files = sorted(FOUND.glob("*.jsonl")) if options.found else [options.replay]
        failed = [file for file in files if await _one(site, schedule.read(file), file.stem, fresh=True)]
        return 1 if failed else 0
    if options.shrink:
        return await _shrink(site, options.shrink)
    if options.round is not None:
        return 1 if await _one(site, schedule.draw(options.round), str(options.round), fresh=False) else 0
    return await _rounds(site, options)


async def _rounds(site: Site, options: argparse.Namespace) -> int:
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 31)
    chance, began = random.Random(seed), time.monotonic()
    count, bad = 0, list[int]()
    _say(f"seed {seed}, {options.minutes:g} minutes")
    while time.monotonic() - began < options.minutes * 60:
        own = chance.randrange(1 << 31)
        count += 1
        if await _one(site, schedule.draw(own), str(own), fresh=False):
            bad.append(own)
            await asyncio.to_thread(site.fresh)  # what one round has broken must not be the next one's
    minutes = (time.monotonic() - began) / 60
    _say(f"seed {seed}: {count} rounds in {minutes:.0f} minutes, {len(bad)} with violations {bad or ''}")
    return 1 if bad else 0


async def _one(site: Site, steps: Sequence[Step], name: str, *, fresh: bool) -> list[Violation]:
    """Run one schedule and print what came of it; keep all of it where there is a violation."""
    since = time.time()
    if fresh:
        await asyncio.to_thread(site.fresh)
    history = await rounds.run(site, steps)
    wrong = check(history)
    numbers = ", ".join(f"{value} {what}" for what, value in figures(history).items() if value)
    _say(f"round {name}: {len(steps)} steps, {history.now():.0f} s; {numbers}; {len(wrong) or 'no'} violations")
    if wrong:
        for violation in wrong[:20]:
            _say(f"  {violation}")
        await asyncio.to_thread(_keep, site, steps, history, wrong, name, since)
    elif os.environ.get("CHAOS_KEEP"):
        await asyncio.to_thread(_keep, site, steps, history, wrong, name, since)
    return wrong


def _keep(
    site: Site, steps: Sequence[Step], history: History, wrong: Sequence[Violation], name: str, since: float
) -> None:
    folder = KEPT / name
    folder.mkdir(parents=True, exist_ok=True)
    said = "\n".join(map(str, wrong))
    schedule.write(folder / "schedule.jsonl", steps, said)
    history.write(folder / "history.jsonl")
    (folder / "history.txt").write_text("".join(f"{event}\n" for event in history), "utf-8")
    (folder / "violations.txt").write_text(f"{said}\n", "utf-8")
    (folder / "logs.txt").write_text(rounds.logs(site, since), "utf-8")
    _say(f"  kept in {folder}")


async def _shrink(site: Site, file: Path) -> int:
    """Shrink the schedule in *file*, by the rules that it breaks now."""
    steps = schedule.read(file)
    first = await _one(site, steps, f"{file.stem}-whole", fresh=True)
    if not first:
        _say("it holds this time: nothing to shrink")
        return 0
    rules = {violation.rule for violation in first}

    async def fails(part: list[Step]) -> bool:
        try:
            found = await _one(site, part, f"{file.stem}-part", fresh=True)
        except LabError as error:
            _say(f"  the lab failed, which counts as nothing: {error}")
            return False
        return bool(rules & {violation.rule for violation in found})

    shortest = await ddmin(steps, fails)
    name = file.parent.name if file.stem == "schedule" else file.stem
    schedule.write(FOUND / f"{name}.jsonl", shortest, "\n".join(sorted(rules)))
    _say(f"{len(shortest)} of {len(steps)} steps are left: {FOUND / name}.jsonl")
    return 1


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

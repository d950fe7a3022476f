"""Holds a round's history against the invariants: pure functions, from events to what is wrong.

Each rule is one function. What a rule lets pass, the documentation allows; the comment says where.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tests.chaos.history import Event
from tests.chaos.lives import ALIVE, GONE, UNSURE, Life, lives
from tests.chaos.schedule import BYSTANDER, LETHAL

LATE_STATE: Final = 5.0
"""Seconds for which a client may still hear of a restart after it was answered."""
RESENT: Final = 8.0
"""Seconds before a gateway's sudden end whose output and replies may come again: what clients have got is written down four times
a second, on a machine without load."""
TOLD_EARLY: Final = 10.0
"""Seconds before a gap in which its cause may lie: what the agent had taken from a kernel, and not passed on, goes with it."""
TOLD_LATE: Final = 30.0
"""Seconds behind a gap within which it is told."""
BYSTANDER_SECONDS: Final = 4.0
"""The latest that a bystander's cell may have its reply. Not a measure of speed, since a machine may be busy with other
things (1.7 s were seen): it tells such a machine from a host that waits for another one's deadline, which are 5 s and more."""
ANSWER_SECONDS: Final = 10.0
"""The latest that the gateway may answer a question for its list, for the same reason."""
LIVING, ENDED = "living", "ended"
"""When a view was taken: with all kernels that are left, and after all were deleted."""

_MISSING = re.compile(r"missing here|cannot be shown")


@dataclass(frozen=True)
class Violation:
    """A rule that does not hold: its name, when, and what was seen."""

    rule: str
    time: float
    what: str

    def __str__(self) -> str:
        return f"{self.rule} at {self.time:.1f} s: {self.what}"


def check(events: Iterable[Event]) -> list[Violation]:
    """Return all that is wrong in a history, in order of time."""
    story = Story.of(events)
    return sorted((each for rule in RULES for each in rule(story)), key=lambda each: each.time)


@dataclass
class Cell:
    """What came of one cell."""

    name: str
    kernel: str
    sent: Event
    runs: list[Event] = field(default_factory=list)
    values: list[Event] = field(default_factory=list)
    told: list[Event] = field(default_factory=list)
    replies: list[Event] = field(default_factory=list)
    closed_on: bool = False
    """Whether its tab was closed in the moment in which it was sent."""
    acknowledged: bool = False
    """Whether the client has heard anything of it."""

    @property
    def replied(self) -> float | None:
        """When its reply came."""
        return self.replies[0].time if self.replies else None


@dataclass
class Story:
    """A history, sorted by what it is about."""

    events: Sequence[Event]
    lives: dict[str, Life]
    cells: dict[str, Cell]
    ends: list[tuple[float, float]]
    """From when to when no gateway was there."""
    stills: list[tuple[float, float]]
    """From when to when the gateway stood still, or reached no node."""
    end: float

    @classmethod
    def of(cls, events: Iterable[Event]) -> Story:
        """Sort *events*."""
        found = list(events)
        end = found[-1].time if found else 0.0
        cells: dict[str, Cell] = {}
        ends: list[tuple[float, float]] = []
        stills: list[tuple[float, float]] = []
        for event in found:
            name = event.get("cell", "")
            if event.op == "cell" and event.type == "invoke":
                cells[name] = Cell(name, event["kernel"], event)
            elif event.op == "gateway" and event.type == "invoke":
                ends.append((event.time, end))
            elif event.op == "gateway" and event.type == "ok":
                ends[-1] = (ends[-1][0], event.time)
            elif event.op in {"freeze", "uplink"}:
                if event.type == "invoke":
                    stills.append((event.time, end))
                else:
                    stills[-1] = (stills[-1][0], event.time)
            elif name in cells:
                _note(cells[name], event)
        return cls(found, lives(found), cells, ends, stills, end)

    def gateway_ended(self, first: float, last: float) -> bool:
        """Return True if the gateway was down at some moment from *first* to *last*."""
        return any(began <= last and ended >= first for began, ended in self.ends)

    def gateway_was_away(self, first: float, last: float) -> bool:
        """Return True if the gateway was down, stood still or reached no node at some moment from *first* to *last*."""
        return any(began <= last and ended >= first for began, ended in (*self.ends, *self.stills))

    def agent_ended(self, kernel: str, until: float, since: float = 0.0) -> bool:
        """Return True if an agent that had the kernel may have been ended from *since* up to *until*."""
        life = self.lives[kernel]
        hosts = {host for _, host in life.hosts}
        return any(
            since <= event.time <= until
            and event.get("node") in hosts
            and (event.op == "kill-agent" or (event.op == "fault" and event.get("name") in LETHAL))
            for event in self.events
            if event.type == "invoke"
        )


def _note(cell: Cell, event: Event) -> None:
    if event.op == "lines":
        cell.runs.append(event)
    elif event.op == "value":
        cell.values.append(event)
    elif event.op == "told":
        cell.told.append(event)
        return
    elif event.op == "cell" and event.type == "ok":
        cell.replies.append(event)
    elif event.type != "seen":
        cell.closed_on = cell.closed_on or event.type == "info"
        return
    cell.acknowledged = True


# -- the rules -----------------------------------------------------------------------------------------------------------


def never_declared_dead(story: Story) -> Iterator[Violation]:
    """A kernel that lives is listed, as what lives; and its clients are not told of an end or of a restart."""
    for event in story.events:
        if event.op == "listed":
            for life in story.lives.values():
                if not life.lives(event["asked"], event.time):
                    continue
                state, distributed, _ = event["kernels"].get(life.id, ("not listed", "", ""))
                if state not in {"busy", "idle", "starting"} or distributed == "dead":
                    yield Violation("a live kernel is declared dead", event.time, f"{life.slot}: {state} {distributed}")
        elif event.op == "state":
            life = story.lives[event["kernel"]]
            if life.lives(event.time - LATE_STATE, event.time):
                yield Violation("a live kernel is declared dead", event.time, f"{life.slot} is told {event['state']}")
        elif event.op == "refused":
            life = story.lives[event["kernel"]]
            if life.lives(event.time - 1, event.time) and event["status"] == 404:
                yield Violation("a live kernel is declared dead", event.time, f"{life.slot}: its tab is told 404")


def output_is_whole(story: Story) -> Iterator[Violation]:
    """Each line of a cell comes once and in order; what could not be kept is told in words."""
    for cell in story.cells.values():
        yield from _whole(story, cell)


def _whole(story: Story, cell: Cell) -> Iterator[Violation]:
    awaited, came = 0, list[Event]()
    for run in cell.runs:
        first, last = run["first"], run["last"]
        if first > awaited:
            before = came[-1].time if came else cell.sent.time
            yield from _lost(story, cell, awaited, first, before, run.time)
        elif first < awaited and not _may_come_again(
            story, [each for each in came if each["first"] < awaited and each["last"] >= first], run.time
        ):
            what = f"{cell.name}: {first} to {min(last, awaited - 1)} came again"
            yield Violation("lines are doubled", run.time, what)
        awaited = max(awaited, last + 1)
        came.append(run)
    wanted = cell.sent.get("lines")
    is_over = bool(cell.replies) and cell.replies[0]["status"] == "ok"
    if wanted is not None and is_over and awaited < wanted:
        before = came[-1].time if came else cell.sent.time
        yield from _lost(story, cell, awaited, wanted, before, cell.replies[0].time)
    if wanted is not None and awaited > wanted:
        yield Violation("lines are doubled", story.end, f"{cell.name}: {awaited} lines of {wanted}")
    if cell.sent.get("marks") and is_over and not cell.values:
        yield from _lost(story, cell, 0, 1, cell.sent.time, cell.replies[0].time)


def _may_come_again(story: Story, came: Iterable[Event], time: float) -> bool:
    """Return True if what *came* may come once more at *time*: it came just before a sudden end of the gateway.

    Nobody could write down any more that it came (CHANGELOG.md, on what may come twice). A tab that is closed has read all
    that it was sent.
    """
    ends = [began for began, _ in story.ends if began < time]
    return all(any(event.time >= began - RESENT for began in ends) for event in came)


def _lost(story: Story, cell: Cell, first: int, after: int, before: float, time: float) -> Iterator[Violation]:
    """Yield what is wrong about the lines from *first* to before *after*: missing between *before* and *time*.

    Nothing where a killed agent took them along, and that was told (docs/troubleshooting.md, "Output may be missing here").
    """
    life = story.lives[cell.kernel]
    told = any(before - TOLD_EARLY <= event.time <= time + TOLD_LATE for event in _losses_told(story, cell.kernel))
    if told and story.agent_ended(cell.kernel, time, before - TOLD_EARLY):
        return
    if life.lives(cell.sent.time, cell.replied or time):
        silently = "" if told else ", and nobody was told"
        yield Violation("lines are lost", time, f"{cell.name}: {first} to {after - 1} did not come{silently}")


def _losses_told(story: Story, kernel: str) -> list[Event]:
    return [
        event
        for event in story.events
        if event.op == "told" and event["kernel"] == kernel and _MISSING.search(event["text"])
    ]


def losses_have_a_cause(story: Story) -> Iterator[Violation]:
    """Nobody is told that output is missing unless an agent was ended: what a node keeps is more than a round's cells print."""
    for event in story.events:
        if event.op != "told" or not _MISSING.search(event["text"]):
            continue
        if not story.agent_ended(event["kernel"], event.time):
            yield Violation("a loss is told without a cause", event.time, f"{event['kernel']}: {event['text']}")


def cells_have_replies(story: Story) -> Iterator[Violation]:
    """Each cell that a client has heard of has one reply, unless its kernel was restarted or ended before."""
    for cell in story.cells.values():
        if len(cell.replies) > 1 and not _may_come_again(story, cell.replies[:1], cell.replies[1].time):
            yield Violation("a reply is doubled", cell.replies[1].time, cell.name)
        if cell.replies:
            yield from _reply(story, cell)
        elif story.lives[cell.kernel].lives(cell.sent.time, _looked(story)):
            # What was on its way to a gateway that was killed has never arrived: nobody has heard of it.
            if not cell.acknowledged and cell.closed_on:
                continue
            if not cell.acknowledged and story.gateway_ended(cell.sent.time - 1, story.end):
                continue
            told = any(event.time >= cell.sent.time for event in _losses_told(story, cell.kernel))
            if told and story.agent_ended(cell.kernel, story.end, cell.sent.time - TOLD_EARLY):
                continue  # as its output
            if _was_dropped_by_its_kernel(story, cell):
                continue
            yield Violation("a cell has no reply", cell.sent.time, f"{cell.name} {cell.sent.facts}")


def _reply(story: Story, cell: Cell) -> Iterator[Violation]:
    reply = cell.replies[0]
    if reply["status"] == "ok":
        return
    if _is_interrupted(story, cell, reply.time) and reply["error"] == "KeyboardInterrupt":
        return
    if story.lives[cell.kernel].lives(cell.sent.time, reply.time):
        yield Violation("a cell failed", reply.time, f"{cell.name}: {reply.facts}")


def _was_dropped_by_its_kernel(story: Story, cell: Cell) -> bool:
    """Return True if an interrupt met a cell that its kernel had taken and not begun: ipykernel is idle then, and never replies.

    It does that to local kernels, too. A reply that was lost on its way is told from it by what the cell had done before.
    """
    idle = next((event for event in story.events if event.op == "idle" and event.get("cell") == cell.name), None)
    return idle is not None and not cell.runs and not cell.values and _is_interrupted(story, cell, idle.time)


def _is_interrupted(story: Story, cell: Cell, until: float) -> bool:
    return any(
        event.op == "interrupt"
        and event["kernel"] == cell.kernel
        and event.type == "invoke"
        and cell.sent.time - 1 <= event.time <= until
        for event in story.events
    )


def no_stray_output(story: Story) -> Iterator[Violation]:
    """A cell's output is its own: no line of another cell is in it, and no line in pieces."""
    for event in story.events:
        if event.op != "stray":
            continue
        interrupted = any(each.op == "interrupt" and each["kernel"] == event["kernel"] for each in story.events)
        if not interrupted:  # an interrupt may hit in the middle of a line
            yield Violation("output is stray", event.time, f"{event['cell']}: {event['text']!r}")


def kernels_keep_their_state(story: Story) -> Iterator[Violation]:
    """A kernel that lived all the while is the same process in the end, with what was left in it."""
    for slot, life in story.lives.items():
        marks = [cell for cell in _of(story, slot, "marks") if cell.values]
        looks = [cell for cell in _of(story, slot, "looks") if cell.values]
        if not marks or not looks:
            continue
        mark, look = marks[-1], looks[-1]
        if life.lives(mark.sent.time, look.sent.time) and mark.values[0]["value"] != look.values[0]["value"]:
            what = f"{slot}: {mark.values[0]['value']} has become {look.values[0]['value']}"
            yield Violation("a kernel is another one", look.sent.time, what)


def live_kernels_answer(story: Story) -> Iterator[Violation]:
    """In the end, when all is healed, each kernel that lives answers."""
    for slot, life in story.lives.items():
        if life.state(_looked(story)) != ALIVE:
            continue
        looks = _of(story, slot, "looks")
        if looks and not (looks[-1].replies and looks[-1].values):
            yield Violation("a live kernel does not answer", looks[-1].sent.time, slot)


def _looked(story: Story) -> float:
    """Return when all kernels had been looked at: what comes after that is their deletion."""
    return next((event.time for event in story.events if event.op == "view" and event["when"] == LIVING), story.end)


def _of(story: Story, slot: str, what: str) -> list[Cell]:
    return [cell for cell in story.cells.values() if cell.kernel == slot and cell.sent.get(what)]


def what_runs_is_what_is_listed(story: Story) -> Iterator[Violation]:
    """In the end, each kernel that lives is listed and runs once; nothing else runs, and agents count what runs."""
    for event in story.events:
        if event.op == "view":
            for what in disagreements(event.facts, list(story.lives.values()), event.time):
                yield Violation(f"what runs is not what is listed ({event['when']})", event.time, what)


def disagreements(view: dict[str, Any], known: Collection[Life], time: float) -> list[str]:
    """Return what is wrong in a view; what waits for a view to be right asks the same."""
    slots = {life.id: life.slot for life in known}
    alive = {life.id for life in known if life.state(time) == ALIVE} if view["when"] == LIVING else set[str]()
    listed = set(view["listed"])
    running = Counter[str]()
    for found in view["running"].values():
        running.update(found)

    def called(kernel_id: str) -> str:
        return f"{slots.get(kernel_id, 'a kernel')} ({kernel_id})"

    wrong = [f"{called(each)} lives and is not listed" for each in sorted(alive - listed)]
    wrong += [f"{called(each)} lives and does not run" for each in sorted(alive - running.keys())]
    wrong += [f"{called(each)} runs {count} times" for each, count in sorted(running.items()) if count > 1]
    # Whose start was cut short by the gateway's end runs until an operator ends it, or the owner's deadline does
    # (docs/options.md, orphan_timeout): its client was never told of it.
    cut = {life.id for life in known if life.is_cut} if view["when"] == LIVING else set[str]()
    wrong += [f"{called(each)} runs and is not listed" for each in sorted(running.keys() - listed - cut)]
    if view["when"] == ENDED:
        wrong += [f"{called(each)} is listed after its deletion" for each in sorted(listed)]
        wrong += [f"{name} keeps {', '.join(files)}" for name, files in sorted(view["files"].items())]
        wrong += [f"{name} runs {found} of kernels" for name, found in sorted(view["others"].items())]
    for name, why in sorted(view["unseen"].items()):
        wrong.append(f"{name} {why}")
    if not wrong and "told" in view:
        wrong += _counts(view, cut)
    return wrong


def _counts(view: dict[str, Any], cut: Collection[str]) -> Iterator[str]:
    runs = {name: sorted(found) for name, found in view["running"].items() if found}
    told = {name: sorted(found) for name, found in view["told"].items() if found}
    if runs != told:
        yield f"agents say {told}, and there run {runs}"
    if view["silent"]:
        yield f"hosts did not answer the operator: {view['silent']}"
    if unclaimed := sorted(set(view["orphans"]) - set(cut)):
        yield f"no gateway answers for {unclaimed}"


def what_is_given_up_is_ended(story: Story) -> Iterator[Violation]:
    """A kernel whose client went away before it had an answer is neither listed nor runs in the end."""
    started = [event.time for event in story.events if event.op == "start" and event.type == "ok"]
    view = next((event for event in story.events if event.op == "view" and event["when"] == LIVING), None)
    for life in story.lives.values():
        if view is None or not life.gave_up or life.state(view.time) != UNSURE:
            continue
        asked = life.states[0][0]
        # The first client after the gateway's own start may go away unnoticed (docs/troubleshooting.md).
        since = max([ended for _, ended in story.ends if ended < asked], default=0.0)
        is_first = not any(since < time < asked for time in started)
        if life.id in view["listed"] and not is_first and not story.gateway_ended(asked - 1, asked + 30):
            yield Violation("what was given up is kept", view.time, f"{life.slot} ({life.id}) is listed")


def what_has_ended_is_known(story: Story) -> Iterator[Violation]:
    """A kernel whose processes were killed is started again, or known to be dead."""
    listed: dict[str, list[str]] = {}
    killed: dict[str, str] = {}
    for event in story.events:
        if event.op == "kill-kernel" and event.type == "ok" and event["killed"]:
            life = story.lives[event["kernel"]]
            killed[life.id] = life.slot
        elif event.op == "listed":
            listed = event["kernels"]
        elif event.op == "view" and event["when"] == LIVING:
            runs = {kernel_id for found in event["running"].values() for kernel_id in found}
            for kernel_id in killed.keys() - runs:
                state, distributed, _ = listed.get(kernel_id, ("not listed", "", ""))
                if state in {"idle", "busy"} and distributed not in {"dead", ""}:
                    what = f"{killed[kernel_id]} is listed as {state}, {distributed}"
                    yield Violation("a dead kernel is taken for alive", event.time, what)


def errors_name_host_and_cause(story: Story) -> Iterator[Violation]:
    """An answer that refuses something says which host it is about, and why."""
    for event in story.events:
        if event.type != "fail" or event.op not in {"start", "restart", "interrupt", "delete"}:
            continue
        if event.op != "start" and story.lives[event["kernel"]].state(event.time) != ALIVE and event["status"] == 404:
            continue  # it is gone: by its own delete, or with its machine
        if story.gateway_ended(event.time - 5, event.time):
            continue  # it ends, and says what it can
        reason = event["reason"]
        if ".lab.test" not in reason or len(reason) < 30:
            yield Violation("an error names no host", event.time, f"{event.op} {event['kernel']}: {event.facts}")


def starts_find_a_healthy_host(story: Story) -> Iterator[Violation]:
    """A start that may choose its host succeeds: one host is healthy all the while."""
    pinned: dict[str, bool] = {}
    troubled: set[str] = set()
    for event in story.events:
        if event.op == "fault" and event.type == "invoke":
            troubled.add(event["node"])
        elif event.op == "start" and event.type == "invoke":
            pinned[event["kernel"]] = bool(event["pin"])
        elif event.op == "start" and event.type == "fail" and not pinned[event["kernel"]]:
            if story.gateway_was_away(event.time - 60, event.time):
                continue
            # A kernel that starts and ends by itself is not tried elsewhere (500, docs/troubleshooting.md); a host without room
            # for its files, or with few open files since its last login, ends it so.
            if event["status"] == 500 and any(node in event["reason"] for node in troubled):
                continue
            yield Violation("a start found no host", event.time, f"{event['kernel']}: {event['reason']}")


def bystanders_do_not_wait(story: Story) -> Iterator[Violation]:
    """A cell on a host that is well has its reply in time, whatever happens to other hosts."""
    for cell in story.cells.values():
        if not cell.sent.get("bystands"):
            continue
        last = cell.replied or _looked(story)
        if story.gateway_was_away(cell.sent.time - 2, last) or not story.lives[cell.kernel].lives(cell.sent.time, last):
            continue
        if last - cell.sent.time > BYSTANDER_SECONDS:
            what = f"{cell.name} took {last - cell.sent.time:.1f} s"
            yield Violation("a bystander waited", cell.sent.time, what)


def the_gateway_answers(story: Story) -> Iterator[Violation]:
    """The gateway answers in time whenever it is there."""
    for event in story.events:
        if event.op == "no-answer" and not story.gateway_was_away(event["asked"] - 1, event.time + 1):
            yield Violation("the gateway does not answer", event.time, event["reason"])
        if (
            event.op == "slow"
            and event["seconds"] > ANSWER_SECONDS
            and not story.gateway_was_away(event["asked"], event.time)
        ):
            yield Violation("the gateway does not answer", event.time, f"it took {event['seconds']:.1f} s")


def the_gateway_starts(story: Story) -> Iterator[Violation]:
    """The gateway answers within a minute of its start, whatever it finds again."""
    for event in story.events:
        if event.op == "gateway" and event.type == "fail":
            yield Violation("the gateway does not start", event.time, event["reason"])


def deeds_end(story: Story) -> Iterator[Violation]:
    """Whatever a client asks for is answered, or its connection ends."""
    under_way: dict[int, Event] = {}
    for event in story.events:
        if event.op in {"start", "restart", "interrupt", "delete"}:
            if event.type == "invoke":
                under_way[event["request"]] = event
            else:
                asked = under_way.pop(event["request"], event)
                if (
                    event.type == "info"
                    and "gives_up" not in asked.facts
                    and not story.gateway_was_away(asked.time - 1, event.time + 1)
                ):
                    yield Violation("a request was not answered", event.time, f"{event.op} {event.facts}")


RULES: Final[tuple[Callable[[Story], Iterator[Violation]], ...]] = (
    never_declared_dead,
    output_is_whole,
    losses_have_a_cause,
    cells_have_replies,
    no_stray_output,
    kernels_keep_their_state,
    live_kernels_answer,
    what_runs_is_what_is_listed,
    what_is_given_up_is_ended,
    what_has_ended_is_known,
    errors_name_host_and_cause,
    starts_find_a_healthy_host,
    bystanders_do_not_wait,
    the_gateway_answers,
    the_gateway_starts,
    deeds_end,
)


def figures(events: Iterable[Event]) -> dict[str, Any]:
    """Return what a round has done, in numbers, for its line of the report."""
    story = Story.of(events)
    done = Counter(event.op for event in story.events if event.type == "ok")
    lines = sum(run["last"] - run["first"] + 1 for cell in story.cells.values() for run in cell.runs)
    waits = [
        cell.replied - cell.sent.time for cell in story.cells.values() if cell.sent.get("bystands") and cell.replied
    ]
    return {
        **{
            op: done[op] for op in ("start", "cell", "interrupt", "restart", "delete", "fault", "kill-agent", "gateway")
        },
        "failed starts": sum(event.op == "start" and event.type == "fail" for event in story.events),
        "lines": lines,
        "told": sum(event.op == "told" for event in story.events),
        "bystander's worst": round(max(waits, default=0.0), 2),
    }


__all__ = ["BYSTANDER", "ENDED", "GONE", "LIVING", "UNSURE", "Violation", "check", "disagreements", "figures"]

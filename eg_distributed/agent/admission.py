"""Whose turn it is to start: as many kernels at once as the node's processors take, the others in a queue that is fair.

A cold start is processor's time: an interpreter that imports what a kernel needs. Thirty-two at once on two processors are all
ready at the end, and so late that clients give up; two at a time, the first is ready after a sixteenth of that time, and the
last no later. So each start takes a *turn*, from the moment in which it may begin until its kernel is ready, or has failed.

    start ──► queue (round robin among users, in order for each) ──► turn ──► ready, failed, or given up

Nobody waits for somebody else's trouble: a start gives its turn up, and goes on without one, when it has used no processor for
half a second (it waits for a mount, a license server, YARN), and after ten seconds whatever it does. So the queue moves for as
long as the agent does, and a gateway that is told so waits without a time-out.

How many at once: five for each four processors that the agent may use; where others use the machine, fewer, down to half as
many, and two on any machine. What others leave is what starts have used lately, and what was idle beside it.

Rejected: lower priority (nice) for kernels that start, which would spare what runs. It could not be raised again without
privilege, so that each kernel would keep it for life. Fewer than half where the machine is busy: the scheduler gives each
process its share, and a start that runs alone among forty processes would take forty times as long, and so would the queue.
Two processors that others used as well: six starts took 1.7 s all at once, and 5.1 s one at a time.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, deque
from typing import Any, Callable, Deque, Iterable, Iterator, Optional, Protocol

from ..clock import monotonic
from ..protocol import Queue, Queued, Start, write_event
from .processors import Processors, Use
from .spawning import StartError

LOOK = 0.2
"""Seconds between two looks at the processors, while any start waits."""
QUIET = 0.5
"""Seconds without any use of a processor after which a start gives up its turn."""
LEAST_USE = 0.05
"""Of a processor: what uses less waits for something else, and looks now and then whether that has come."""
LONGEST = 10.0
"""Seconds after which a start gives up its turn in any case."""
TELL = 1.0
"""Seconds between two messages that tell gateways how the queue has moved."""
MOST = 1000
"""Starts that may wait; one more is refused, and its gateway tries another host."""
COLD, WARM = 1.0, 0.1
"""The weights of a cold start and of a kernel that is forked, 30 ms of a processor. The lighter one stands behind no cold one,
and as many run at once as weigh a processor each."""
_COUNTED = 10.0  # seconds for which the number of processors counts: quotas are changed now and then


class QueueFull(StartError):
    """MOST starts wait already: the node works, and has no place for another one."""


class Visitor(Protocol):
    """What is asked of the gateway whose start waits."""

    owner: str

    def send(self, message: dict[str, Any]) -> None:
        """Queue a message."""
        ...


class Starting(Protocol):
    """What is asked of the kernel whose start has a turn."""

    pid: int

    @property
    def is_starting(self) -> bool:
        """Whether it is neither ready nor ended."""
        ...


class Turn:
    """One start's turn, which it waits for, holds and leaves; made by `Admission.ask`."""

    def __init__(self, admission: Admission, asked: Start, gateway: Visitor, weight: float) -> None:
        self.asked = asked
        self.gateway = gateway
        self.weight = weight
        self.user = asked.env.get("KERNEL_USERNAME") or gateway.owner
        self.since = monotonic()  # it was asked for, and later: it has come
        self.arrived: Optional[asyncio.Future[None]] = None  # None: it came at once
        self.kernel: Optional[Starting] = None
        self.used = 0.0  # of processors, when it was last looked at
        self.moved_at = 0.0  # when it was last seen to use one
        self.is_wrapped = False  # what was executed waits for another process, it may be
        self._admission = admission

    async def come(self) -> None:
        """Return when it has come; its gateway is told that it waits. Called by the start, once.

        One whose gateway would take the silence for a host that hangs does not wait, but counts. Raises QueueFull, and
        StartError if the start was withdrawn meanwhile.
        """
        self._admission.let_come(self)
        if self.arrived is not None:
            try:
                await self.arrived
            except asyncio.CancelledError:
                self.leave()
                raise

    def leave(self) -> None:
        """Let the next one have it, whether it has come or is waited for. Called again, it does nothing."""
        self._admission.leave(self)


class _Lane:
    """Those that wait: round robin among users, in order for each of them."""

    def __init__(self) -> None:
        self._users: OrderedDict[str, Deque[Turn]] = OrderedDict()

    def __iter__(self) -> Iterator[Turn]:
        """Yield them in the order of their turns, as it is now."""
        users = [list(turns) for turns in self._users.values()]
        for place in range(max(map(len, users), default=0)):
            yield from (turns[place] for turns in users if place < len(turns))

    def __len__(self) -> int:
        return sum(map(len, self._users.values()))

    def __contains__(self, turn: Turn) -> bool:
        return turn in self._users.get(turn.user, ())

    def put(self, turn: Turn) -> None:
        self._users.setdefault(turn.user, deque()).append(turn)

    def next(self) -> Turn:
        """Return the one whose turn is the next."""
        return next(iter(self._users.values()))[0]

    def remove(self, turn: Turn, *, served: bool = False) -> None:
        """Remove one; if it was *served* its user comes behind the others."""
        turns = self._users[turn.user]
        turns.remove(turn)
        if not turns:
            del self._users[turn.user]
        elif served:
            self._users.move_to_end(turn.user)


class Admission:
    """The turns of an agent's starts; owned by the Agent, on its loop."""

    def __init__(self, processors: Optional[Processors] = None) -> None:
        self._processors = processors or Processors()
        self._held: dict[Turn, None] = {}
        self._cold, self._light = _Lane(), _Lane()
        self._begun = 0  # turns that have come so far
        self._count, self._counted_at = 1, -_COUNTED
        self._room: Optional[float] = None  # processors that starts have had lately, or could have had; None: not known
        self._idle: Optional[float] = None  # as of the last look
        self._gained = 0.0  # used by starts since then
        self._looked_at = self._told_at = 0.0
        self._timer: Optional[asyncio.TimerHandle] = None

    # -- asked by the agent --------------------------------------------------------------------------------------

    def ask(self, asked: Start, gateway: Visitor, weight: float = COLD) -> Turn:
        """Return the turn of a start, for which it waits by `Turn.come`."""
        return Turn(self, asked, gateway, weight)

    def note_cold(self, turn: Turn, weigh: Callable[[Start], float]) -> None:
        """Take note that *turn*, whose kernel was to be forked, becomes a cold start: others wait for it from now on.

        Light ones that wait are weighed again by *weigh*: what was in the way of this one is in the way of its like, and all of
        them would come at once, as each left its room to the next one.
        """
        turn.weight = COLD
        for each in [each for each in self._light if weigh(each.asked) >= COLD]:
            self._light.remove(each)
            each.weight = COLD
            self._cold.put(each)
        self._go_on()

    def follow(self, turn: Turn, kernel: Starting) -> None:
        """Have *turn* last until *kernel*, which is being started, is ready or has ended."""
        turn.kernel = kernel

    def note_over(self, kernel: object) -> None:
        """Take note that *kernel* is ready, or has ended: its start's turn is over."""
        for turn in [turn for turn in self._held if turn.kernel is kernel]:
            self.leave(turn)

    def withdraw(self, kernel: str, attempt: str, why: str) -> bool:
        """Have a start that waits leave: it was stopped; any of *kernel* without an *attempt*. Return False if none does."""
        found = [turn for turn, _ in self.waiting() if turn.asked.kernel == kernel]
        found = [turn for turn in found if attempt in ("", turn.asked.attempt)]
        self._refuse(found, why)
        return bool(found)

    def give_up(self, gateway: object) -> None:
        """Have those leave that wait for *gateway*, which is gone."""
        found = [turn for turn, _ in self.waiting() if turn.gateway is gateway]
        self._refuse(found, "the gateway that asked is gone", host_fault=True)

    def close(self) -> None:
        """Have all leave that wait: the agent ends."""
        self._refuse([turn for turn, _ in self.waiting()], "the agent is leaving", host_fault=True)

    def waiting(self) -> Iterator[tuple[Turn, int]]:
        """Yield those that wait, with how many come before each."""
        for lane in (self._light, self._cold):
            yield from ((turn, before) for before, turn in enumerate(lane))

    # -- asked by turns ------------------------------------------------------------------------------------------

    def let_come(self, turn: Turn) -> None:
        """Have *turn* come, at once or in its time; see `Turn.come`."""
        lane = self._lane(turn)
        if not turn.asked.queues or (not lane and self._fits(turn)):
            self._begin(turn)
            return
        if len(self._cold) + len(self._light) >= MOST:
            remedy = "wait until some of them are ready, or start it on another host"
            raise QueueFull(f"{MOST} starts wait for their turn there", host_fault=True, remedy=remedy)
        turn.arrived = asyncio.get_running_loop().create_future()
        lane.put(turn)
        before = next(before for before, each in enumerate(lane) if each is turn)
        self._tell([(turn, before)])
        if self._timer is None:
            self._looked_at = self._told_at = monotonic()
            self._idle, self._gained = self._processors.idle(), 0.0
            for each in self._held:
                self._measure(each, {})
                each.moved_at = self._looked_at  # nobody has looked until now
            self._gained = 0.0  # that was before
            self._look_later()

    def leave(self, turn: Turn) -> None:
        """See `Turn.leave`."""
        if turn in self._held:
            self._measure(turn, {})
            del self._held[turn]
        elif turn in self._lane(turn):
            self._lane(turn).remove(turn)
        else:
            return
        self._go_on()

    # -- who comes next ------------------------------------------------------------------------------------------

    def _lane(self, turn: Turn) -> _Lane:
        return self._light if turn.weight < COLD else self._cold

    def _fits(self, turn: Turn) -> bool:
        """Return True if *turn* may come beside those that are there; the only one of its kind always may."""
        lane = self._lane(turn)
        there = sum(each.weight for each in self._held if self._lane(each) is lane)
        most = self._at_once() if lane is self._cold else self._processors_counted()
        return not there or there + turn.weight <= most

    def _at_once(self) -> int:
        """Return how many cold starts may run at once: as many as keep busy what others leave, and at least half of all."""
        count, spare, least = self._processors_counted(), self._processors.spare, self._processors.least
        room = count if self._room is None else min(count, max(round(self._room), count / 2))
        return max(math.ceil(room * spare), least)

    def _processors_counted(self) -> int:
        now = monotonic()
        if now - self._counted_at >= _COUNTED:
            self._count, self._counted_at = self._processors.count(), now
        return self._count

    def _begin(self, turn: Turn) -> None:
        self._begun += 1
        turn.since = turn.moved_at = monotonic()
        self._held[turn] = None

    def _go_on(self) -> None:
        """Let those come that fit."""
        for lane in (self._light, self._cold):
            while lane and self._fits(lane.next()):
                turn = lane.next()
                lane.remove(turn, served=True)
                self._begin(turn)
                self._tell([(turn, -1)])
                if turn.arrived is not None and not turn.arrived.done():
                    turn.arrived.set_result(None)
        if not (self._light or self._cold) and self._timer is not None:
            self._timer.cancel()
            self._timer = self._room = None

    def _refuse(self, turns: list[Turn], why: str, *, host_fault: bool = False) -> None:
        for turn in turns:
            self._lane(turn).remove(turn)
            if turn.arrived is not None and not turn.arrived.done():
                turn.arrived.set_exception(StartError(why, host_fault=host_fault))
        self._go_on()

    def _tell(self, turns: Iterable[tuple[Turn, int]]) -> None:
        """Tell gateways how many come before each of *turns*; -1: it has come."""
        told: dict[Visitor, list[Queued]] = {}
        for turn, before in turns:
            told.setdefault(turn.gateway, []).append(
                Queued(turn.asked.kernel, turn.asked.attempt, before=before, begun=self._begun)
            )
        for gateway, starts in told.items():
            gateway.send(write_event(Queue(starts)))

    # -- looking -------------------------------------------------------------------------------------------------

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK, self._look)

    def _look(self) -> None:
        """See what starts have used, end the turns of those that use nothing or take too long, and let others come."""
        self._look_later()  # first: whatever a look meets, the next one follows
        now = monotonic()
        wrapped = [turn.kernel.pid for turn in self._held if turn.is_wrapped and turn.kernel is not None]
        below = self._processors.used_below(wrapped) if wrapped else {}
        over = [turn for turn in self._held if self._is_over(turn, now, below)]
        idle, seconds = self._processors.idle(), now - self._looked_at
        if idle is not None and self._idle is not None and seconds > 0:
            room = (idle - self._idle + self._gained) / seconds
            self._room = room if self._room is None else (self._room + room) / 2
        self._idle, self._gained, self._looked_at = idle, 0.0, now
        for turn in over:
            del self._held[turn]
        self._go_on()
        if now - self._told_at >= TELL:
            self._told_at = now
            self._tell(self.waiting())

    def _is_over(self, turn: Turn, now: float, below: dict[int, Use]) -> bool:
        """Return True if *turn* has to go on to the next one."""
        if turn.kernel is not None and not turn.kernel.is_starting:
            return True
        if self._measure(turn, below):
            turn.moved_at = now
        quiet = now - turn.moved_at
        if quiet > QUIET / 2 and turn.kernel is not None and turn.kernel.pid:
            turn.is_wrapped = True  # a shell, say, which waits for the interpreter that it has started
        return quiet > QUIET or now - turn.since > LONGEST

    def _measure(self, turn: Turn, below: dict[int, Use]) -> bool:
        """Add up what *turn* has used since the last look; return True if it uses a processor, or would if one were free."""
        pid = turn.kernel.pid if turn.kernel is not None else 0
        use = (below.get(pid) if turn.is_wrapped else self._processors.used(pid)) if pid else None
        if use is None:
            return False
        gained = max(0.0, use.seconds - turn.used)
        turn.used = max(turn.used, use.seconds)
        self._gained += gained
        return use.runs or gained >= LEAST_USE * LOOK

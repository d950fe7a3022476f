"""One test's stay in the lab: its nodes, its gateway, its faults, and the look at what it left behind."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lab import events
from lab.drivers.machines import Gateway, Machine, Node
from lab.errors import LabError, LabUsageError
from lab.faults import Fault, active, add, run_plan
from lab.lab import Lab
from lab.names import node_number
from lab.observe.leaks import IGNORED, Leak, View, clean, compare, look
from lab.observe.timeline import timeline
from lab.testing.session import SessionLab, process_of

PAUSE_SECONDS = 0.1
"""Between two looks at what is left: a look takes about as long."""
PLAN_SECONDS = 60.0
"""How long a plan that is told to stop may take to heal what it has inflicted; the test's end heals what is left."""
REPORT_LINES = 200
"""How much of the timeline goes into a report; `lab export` has all of it."""


@dataclass(frozen=True)
class Wish:
    """What a test asks for. *count* None means all nodes, and so the lab for itself; 0 means: as the test goes on."""

    count: int | None = None
    roles: tuple[str, ...] = ()
    leaks: tuple[str, ...] = ()
    """What it may leave behind, as `kind:pattern`."""
    alone: bool = False
    """Whether no other test may use the lab meanwhile, although it gets only *count* nodes."""


class Visit:
    """Made for each test that uses the lab; the plugin calls `lease`, `begin`, `end` in this order."""

    def __init__(self, session: SessionLab, test: str, wish: Wish, *, leak_seconds: float) -> None:
        self.session = session
        self.test = test
        self.wish = wish
        self.lab: Lab | None = None
        self.began = time.time()
        self._leak_seconds = leak_seconds
        self._nodes: list[Node] = []
        self._held: list[str] = []
        """What it has leased: more than its nodes if it is alone."""
        self._gateway: Gateway | None = None
        self._others: list[Gateway] = []
        self._before: dict[str, View] = {}
        self._machines: set[str] = set()
        self._faults: list[Fault] = []
        self._over = threading.Event()
        self._plans: list[threading.Event] = []
        """Set when each has ended."""
        self._known_faults: set[str] = set()
        """Ids of those that were there before the test."""

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def lease(self, lab: Lab) -> None:
        """Wait for the nodes that the test asks for."""
        self.lab = lab
        if self.wish.alone:
            self._acquire(None)
            self._choose(self.wish.count)
        elif self.wish.count != 0:
            self._acquire(self.wish.count)

    def _choose(self, count: int | None) -> None:
        """Keep the first *count* of all nodes as the test's."""
        wanted = set(self.wish.roles)
        fitting = [node for node in self._nodes if wanted <= set(node.roles)]
        if count is not None and len(fitting) < count:
            raise LabUsageError(
                f"{self.test} needs {count} nodes, the lab {self._lab().name} has {len(fitting)} that fit",
                remedy="make the lab larger (`lab scale`, --lab-nodes), or ask for fewer",
            )
        self._nodes = fitting[:count]

    @property
    def exclusive(self) -> bool:
        """Whether the test has all nodes, and the lab for itself."""
        return self.wish.count is None

    def begin(self) -> None:
        """See that the nodes run, and what is there before the test."""
        lab = self._lab()
        self.began = time.time()
        events.record(lab.name, "test.begin", test=self.test, nodes=self._names())
        self._known_faults = {fault.id for fault in active(lab)}
        gateways = self._gateways()
        self._machines = {machine.name for machine in (*lab.nodes, *gateways)}
        self._ready([*self._nodes, *(gateways if self.exclusive else [])])

    def _gateways(self) -> list[Gateway]:
        """Return the lab's gateways but those of other processes, which come and go as these please."""
        return [each for each in self._lab().gateways if process_of(each.name) in (None, os.getpid())]

    def more(self, count: int) -> list[Node]:
        """Lease *count* more nodes for the rest of the test; called by `nodes(n)`."""
        found = self._acquire(count)
        self._ready(found)
        return found

    @property
    def nodes(self) -> list[Node]:
        """The nodes that this test has; one is leased now if it asked for none so far."""
        if not self._nodes:
            self.more(1)
        return self._nodes

    def _acquire(self, count: int | None) -> list[Node]:
        lab, pool = self._lab(), self.session.pool
        assert pool is not None
        names = pool.acquire(self.test, self._candidates, count)
        self._held += names
        found = [lab.node(name) for name in names]
        self._nodes += found
        return found

    def _candidates(self) -> list[str]:
        """Name the nodes that can be leased: those of the lab's plan, since tests add others for themselves; or by role."""
        wanted = set() if self.wish.alone else set(self.wish.roles)
        nodes = [node for node in self._lab().nodes if wanted <= set(node.roles)]
        planned = [node for node in nodes if wanted or node.group or node_number(node.name) is not None]
        return [node.name for node in planned or nodes]

    def _ready(self, machines: Sequence[Machine]) -> None:
        for machine in machines:
            if machine.state != "running":
                # A test that was killed left it so.
                machine.start()
        view = look(self._lab(), machines)
        self._before |= {machine.name: view for machine in machines}

    def _lab(self) -> Lab:
        assert self.lab is not None
        return self.lab

    def _names(self) -> list[str]:
        return [node.name for node in self._nodes]

    # -- gateway and faults --------------------------------------------------------------------------------------------

    @property
    def gateway(self) -> Gateway:
        """The lab's gateway if the test has all nodes; else one that starts kernels on the test's nodes alone."""
        if self._gateway is None:
            if self.exclusive:
                self._gateway = self._lab().gateway
            else:
                self._gateway = self.session.gateway_for(tuple(node.name for node in self.nodes))
                self._machines.add(self._gateway.name)
                self._ready([self._gateway])
        return self._gateway

    def gateway_with(self, env: Mapping[str, str] | None = None, options: Sequence[str] = ()) -> Gateway:
        """Return a gateway with other settings that starts kernels on the test's nodes alone.

        *env* and *options* are as in `Lab.add_gateway`. This process makes it once and keeps it for its later tests.
        """
        found = self.session.gateway_for(tuple(node.name for node in self.nodes), env, options)
        if found.name not in self._before:
            self._others.append(found)
            self._machines.add(found.name)
            self._ready([found])
        return found

    def fault(
        self,
        name: str,
        *nodes: Machine | str,
        duration: float | None = None,
        seed: int | None = None,
        **options: Any,
    ) -> Fault:
        """Add the fault *name* to *nodes* (default: all of the test's); it is healed after the test at the latest.

        Other machines than the test's own nodes and gateways are refused (LabUsageError): somebody else may be using them.
        """
        own: dict[str, Machine] = {node.short_name: node for node in self.nodes}
        own |= {machine.name: machine for machine in self._own()}
        chosen = [own.get(node if isinstance(node, str) else node.name) for node in nodes or self.nodes]
        if None in chosen:
            raise LabUsageError(
                f"{self.test} can't add {name} to nodes that it has not leased",
                cause=f"it has {', '.join(machine.name for machine in self._own())}",
                remedy="@pytest.mark.lab(nodes=…), or the fixture `nodes`",
            )
        targets = [node for node in chosen if node is not None]
        self._faults.append(add(self._lab(), name, targets, duration=duration, seed=seed, **options))
        return self._faults[-1]

    def plan(self, plan: Sequence[Mapping[str, Any]], seed: int = 0, *, deadline: float | None = None) -> list[Fault]:
        """Run a fault plan on the test's nodes, which are all that it can mean, and return its faults once all have healed.

        As `lab.faults.run_plan`. In a thread beside the test it ends with the test, and heals what it has inflicted.
        """
        ended = threading.Event()
        self._plans.append(ended)
        try:
            return run_plan(
                self._lab(),
                plan,
                seed,
                deadline=deadline,
                machines=self.nodes,
                stop=self._over,
                inflicted=self._faults.append,
            )
        finally:
            ended.set()

    # -- the end -------------------------------------------------------------------------------------------------------

    def _heal(self) -> list[str]:
        """Heal the faults on the test's machines that came with it, the last one first; return in words what it left.

        Those of the fixture `fault` are healed for it. Others are a leak: they would be the next test's as well.
        """
        own = {fault.id for fault in self._faults}
        left = []
        for fault in reversed(self._new_faults()):
            what = f"{', '.join(fault.nodes)}: fault {fault.name} {fault.id}"
            if fault.id not in own:
                left.append(what)
            try:
                fault.heal()
            except LabError as error:
                left.append(f"{what} can't be healed: {error.cause or error.what}")
        return left

    def _new_faults(self) -> list[Fault]:
        mine = {machine.name for machine in self._own()}
        return [each for each in active(self._lab()) if each.id not in self._known_faults and mine & set(each.nodes)]

    def _own(self) -> list[Machine]:
        """Return the machines that are the test's alone now."""
        lent = [each for each in (self._gateway, *self._others) if each is not None]
        return [*self._nodes, *(self._gateways() if self.exclusive else lent)]

    def _heal_woken(self) -> None:
        """Heal what could not be healed on a machine that was down, before anybody waits for a login there."""
        if self._new_faults():
            for machine in self._own():
                with contextlib.suppress(LabError):
                    machine.resume()
            self._heal()

    def end(self, ignored: Sequence[str] = ()) -> list[str]:
        """Heal, and wait until nothing of the test is left; return what is left, in words.

        What is left is taken away as well as possible: the next test is not to fail for it.
        """
        lab = self._lab()
        self._over.set()
        for ended in self._plans:
            ended.wait(PLAN_SECONDS)
        left = self._heal()
        # First, since a gateway knows the hosts of every node that there is.
        left += self._new_machines()
        patterns = (*IGNORED, *ignored, *self.wish.leaks)
        deadline = time.monotonic() + self._leak_seconds
        while (leaks := self._look(patterns)) and time.monotonic() < deadline:
            time.sleep(PAUSE_SECONDS)
        self._heal_woken()
        if leaks:
            clean([*self._nodes, *self._gateways()], leaks)
            left += [str(leak) for leak in leaks]
        events.record(lab.name, "test.end", test=self.test, nodes=self._names(), leaks=left)
        return left

    def give_back(self) -> None:
        """End the leases, when all of the test is over; fine if there are none."""
        if self.session.pool is not None and self._held:
            self.session.pool.release(self._held)
            self._held = []

    def _look(self, patterns: Sequence[str]) -> list[Leak]:
        lab = self._lab()
        # Gateways of the test's own are gone by now, or they are new machines.
        there = {gateway.name: gateway for gateway in lab.gateways}
        machines: list[Machine] = list(self._nodes)
        machines += [there[name] for name in self._before if name in there]
        before = View(
            {name: view.machines[name] for name, view in self._before.items() if name in view.machines},
            {name: view.kernels[name] for name, view in self._before.items() if name in view.kernels},
            {name: view.states[name] for name, view in self._before.items() if name in view.states},
        )
        addresses = [gateway.address for gateway in there.values()]
        return compare(before, look(lab, machines), gateways=addresses, ignored=patterns)

    def _new_machines(self) -> list[str]:
        """Remove machines that came during a test that has the lab for itself; say which."""
        if not self.exclusive:
            # Another test may have made them.
            return []
        lab, left = self._lab(), []
        for machine in (*lab.nodes, *self._gateways()):
            if machine.name not in self._machines:
                left.append(f"{machine.name}: machine {machine.name}")
                machine.remove()
        there = {machine.name for machine in (*lab.nodes, *self._gateways())}
        return left + [f"{name}: machine {name} is gone" for name in sorted(self._machines - there)]

    def report(self) -> str:
        """Return the timeline of the test for its report: its nodes, its gateway, and the lab's events."""
        if self.lab is None:
            return ""
        names = {machine.name for machine in (*self._nodes, *([self._gateway] if self._gateway else []), *self._others)}
        if self.exclusive:
            names |= {gateway.name for gateway in self._gateways()}
        try:
            found = timeline(self.lab, self.began, names)
        except LabError as error:
            return f"there is no timeline: {error}"
        lines = [str(entry) for entry in found]
        more = [f"({len(lines) - REPORT_LINES} lines before these)"] if len(lines) > REPORT_LINES else []
        return "\n".join([*more, *lines[-REPORT_LINES:]])

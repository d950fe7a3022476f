"""Nodes leased to tests: the processes of many test sessions share one lab without disturbing each other.

Who has which node, and who waits, is one small file in the lab's folder, changed under a lock. First come, first served: a test
that wants the whole lab would otherwise wait for ever behind tests that want one node each. A holder that died has no lease.
"""

from __future__ import annotations

import contextlib
import copy
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lab import events
from lab.errors import LabNotFound, LabNotReady, LabUsageError
from lab.process_file import ProcessFile
from lab.processes import Process, own

FILE = "pool.json"
LOCK_SECONDS = 30.0
"""How long a look into the file may wait for others' looks: each takes about a millisecond."""
PAUSE_SECONDS = 0.05
"""Between two looks of a test that waits: far below the length of any test that uses a lab."""
WAIT_SECONDS = 900.0
"""How long a test waits for its nodes: longer than the longest test of others that it may wait for."""


@dataclass(frozen=True)
class Holding:
    """One node's lease: what holds it (a test's id), and in which process."""

    test: str
    pid: int
    started: int

    @property
    def alive(self) -> bool:
        """Whether its process still runs."""
        return bool(Process(self.pid, self.started).status)

    def __str__(self) -> str:
        return f"{self.test} (pid {self.pid})"


class Pool:
    """The nodes of one lab, as something to lease. Every process that uses the lab has a Pool of its own on the same file."""

    def __init__(self, lab_name: str) -> None:
        self.lab_name = lab_name
        self._file = ProcessFile(lab_name, FILE, kind="pool", what=f"the pool of the lab {lab_name}")
        me = own()
        self._me = (me.pid, me.started)

    def acquire(
        self,
        test: str,
        candidates: Callable[[], Sequence[str]],
        count: int | None,
        *,
        seconds: float = WAIT_SECONDS,
    ) -> list[str]:
        """Lease *count* of the nodes that *candidates* names (None: all of them) to *test*; return their names.

        *candidates* is asked anew at each look. Raises LabUsageError when there aren't as many at all, or when the wait can't
        end because all others wait as well; LabNotReady, naming the holders, when *seconds* have passed.
        """
        ticket = secrets.token_hex(8)
        began = time.monotonic()
        try:
            while True:
                with self._open() as found:
                    taken = self._try(found, ticket, test, candidates(), count)
                    if taken is not None:
                        return taken
                    holders = self._describe(found)
                if time.monotonic() - began > seconds:
                    raise LabNotReady(
                        f"{test} got no nodes within {seconds:.0f} s",
                        cause=f"they are leased to {holders}",
                        remedy="make the lab larger (`lab scale`), or the tests that hold its nodes shorter",
                    )
                time.sleep(PAUSE_SECONDS)
        finally:
            # Whoever was killed here has a ticket that counts no longer: see `_open`.
            with self._open() as found:
                found["waiting"] = [each for each in found["waiting"] if each["ticket"] != ticket]

    def _try(
        self, found: dict[str, Any], ticket: str, test: str, names: Sequence[str], count: int | None
    ) -> list[str] | None:
        """Take the nodes if it is this ticket's turn and they are free; else see that the ticket is in the queue."""
        wanted = len(names) if count is None else count
        if wanted > len(names) or not names:
            raise LabUsageError(
                f"{test} needs {wanted or 'some'} nodes, the lab {self.lab_name} has {len(names)} that fit",
                cause=f"these fit: {', '.join(names) or 'none'}",
                remedy="make the lab larger (`lab scale`, --lab-nodes), or ask for fewer",
            )
        mine = {name for name, each in found["leases"].items() if (each["pid"], each["started"]) == self._me}
        if mine & set(names) and len(names) - len(mine & set(names)) < wanted:
            raise LabUsageError(
                f"{test} holds {', '.join(sorted(mine))} and wants {wanted} more",
                cause=f"the lab {self.lab_name} has {len(names)} that fit",
                remedy="make the lab larger (`lab scale`, --lab-nodes), or ask for fewer",
            )
        queue = found["waiting"]
        if ticket not in [each["ticket"] for each in queue]:
            queue.append({"ticket": ticket, "test": test, "pid": self._me[0], "started": self._me[1]})
        # Who holds nodes already goes first: those before it in the queue may be waiting for just these.
        ahead = [] if mine else queue[: [each["ticket"] for each in queue].index(ticket)]
        free = [name for name in names if name not in found["leases"]]
        if ahead or len(free) < wanted:
            self._refuse_deadlock(found, test, mine)
            return None
        for name in free[:wanted]:
            found["leases"][name] = {"test": test, "pid": self._me[0], "started": self._me[1]}
        return free[:wanted]

    def _refuse_deadlock(self, found: dict[str, Any], test: str, mine: set[str]) -> None:
        """Raise if this process holds nodes, and so does everybody else who could give some back, and all wait."""
        waiting = {(each["pid"], each["started"]) for each in found["waiting"]}
        others = {(each["pid"], each["started"]) for each in found["leases"].values()} - {self._me}
        if mine and others and others <= waiting:
            raise LabUsageError(
                f"{test} can't get more nodes: all who have some are waiting for more",
                cause=f"it holds {', '.join(sorted(mine))}; {self._describe(found)}",
                remedy="say at once how many nodes a test needs: @pytest.mark.lab(nodes=N)",
            )

    def release(self, names: Sequence[str]) -> None:
        """Give nodes back; fine if they were given back already. Only the holder's own are."""
        with self._open() as found:
            for name in names:
                lease = found["leases"].get(name)
                if lease is not None and (lease["pid"], lease["started"]) == self._me:
                    del found["leases"][name]

    @staticmethod
    def _describe(found: dict[str, Any]) -> str:
        leases = [f"{Holding(**each)}: {name}" for name, each in sorted(found["leases"].items())]
        return "; ".join(leases) or "nobody, but others came first"

    @contextlib.contextmanager
    def _open(self) -> Iterator[dict[str, Any]]:
        """Give the file's content, without the dead, to change; write it back if it was changed."""
        with self._file.locked(LOCK_SECONDS):
            found: dict[str, Any] = self._file.read() or {}
            before = copy.deepcopy(found)
            leases, waiting = found.get("leases", {}), found.get("waiting", [])
            for name, each in leases.items():
                if not Holding(**each).alive:
                    events.record(self.lab_name, "lease.lost", node=name, test=each["test"], pid=each["pid"])
            found["leases"] = {name: each for name, each in leases.items() if Holding(**each).alive}
            found["waiting"] = [each for each in waiting if Process(each["pid"], each["started"]).status]
            yield found
            if found != before:
                try:
                    self._file.rewrite(found)
                except FileNotFoundError:
                    raise LabNotFound(
                        f"the lab {self.lab_name} is gone", remedy=f"`lab up --name {self.lab_name}`"
                    ) from None

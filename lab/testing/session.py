"""The lab of one test session: attached to or made once, owned by the session's first process, shared by its workers."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from lab import lease
from lab.drivers import choice
from lab.drivers.machines import Gateway
from lab.errors import EnvironmentUnfit, LabConflict, LabError
from lab.kernelspecs import on_nodes
from lab.lab import Lab
from lab.lifetime import holding
from lab.processes import identify
from lab.progress import Progress, Silent
from lab.state import StateFolder
from lab.testing.pool import Pool
from lab.testing.sharing import Users

NOTE: Final = "session.json"
"""In the lab's folder: which process made the lab for its tests, and why that failed if it did."""
SESSION: Final = "pytest"
"""By which a session is a user of the lab."""
OWN_GATEWAY: Final = "test"
"""Gateways of single processes are `test-PID`, and `test-PID-2` … with other settings."""
Keep = Literal["never", "failed", "always"]


@dataclass(frozen=True)
class Wanted:
    """What the command line says. *owner* is the pid of the session's first process: plain pytest, or xdist's controller."""

    name: str
    owner: int
    nodes: int = 3
    driver: str | None = None
    file: Path | None = None
    keep: Keep = "never"
    seconds: float = lease.TERM_SECONDS


class SessionLab:
    """The session's lab in one of its processes; *owner* and workers have one each, on the same lab."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.users = Users(wanted.name)
        self.pool: Pool | None = None
        self._lab: Lab | None = None
        self._failure: LabError | None = None
        self._gateways: dict[str, RestrictedGateway] = {}

    @property
    def _note(self) -> Path:
        return StateFolder(self.wanted.name).path / NOTE

    def get(self, progress: Progress | None = None) -> Lab:
        """Return the lab: the one of that name if there is one, else one that is made now and belongs to the session.

        The first process that asks makes it, the others wait for it, those of other sessions as well: the last one that uses
        it removes it. Raises what `Lab.up` raises, at once for everybody
        who asks again: a lab that can't be made takes its minutes once.
        """
        if self._failure is not None:
            raise self._failure
        if self._lab is None:
            try:
                with self.users.held():
                    self._lab = self._attach_or_make(progress or Silent())
            except LabError as error:
                self._failure = error
                raise
            self.pool = Pool(self.wanted.name)
            self._forget_dead_gateways(self._lab)
        return self._lab

    def adopt(self, lab: Lab, pool: Pool) -> None:
        """Use a lab that the suite's own fixture made; it stays that fixture's to remove."""
        self._lab, self.pool, self._failure = lab, pool, None

    def _attach_or_make(self, progress: Progress) -> Lab:
        wanted = self.wanted
        error = self._read().get("error")
        if error and self.users.living():
            raise LabConflict(f"the session's lab {wanted.name} could not be made", cause=str(error))
        return self.users.attach_or_make(
            SESSION, lambda: self._make_or_note(progress), pid=wanted.owner, seconds=wanted.seconds
        )

    def _make_or_note(self, progress: Progress) -> Lab:
        self._write()
        try:
            return self._make(progress)
        except EnvironmentUnfit:
            # Nothing was made; each worker may find out by itself, and skip.
            self.users.remove()
            raise
        except LabError as error:
            self._write(error=str(error))
            raise

    def _make(self, progress: Progress) -> Lab:
        wanted = self.wanted
        if wanted.file is None:
            return Lab.up(wanted.name, wanted.nodes, progress, wanted.driver)
        from lab.topology import load

        topology = load(wanted.file, drivers=choice.names())
        return Lab.up(wanted.name, progress=progress, driver=wanted.driver, topology=topology)

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._note.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, **more: str) -> None:
        owner = lease.mine(self.wanted.owner).holder
        StateFolder(self.wanted.name).write(self._note, json.dumps({"owner": owner, **more}))

    # -- the end -------------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Take away what this process alone used; called when a worker's, or a plain session's, tests are over."""
        for gateway in self._gateways.values():
            with contextlib.suppress(LabError):
                gateway.remove()
        self._gateways.clear()

    def finish(self, *, failed: bool) -> str:
        """Remove the lab if a session made it, no other uses it, and nobody wants to look at it; return what to tell the user.

        Called by the owner when all workers are gone. *failed* says whether a test failed.
        """
        name, keep = self.wanted.name, self.wanted.keep
        with self.users.held():
            if not self.users.is_one(SESSION, self.wanted.owner):
                return ""
            if keep == "never" or (keep == "failed" and not failed):
                try:
                    self.users.leave(SESSION, pid=self.wanted.owner)
                except LabError as error:
                    return f"the lab {name} could not be removed: {error}"
                return ""
            self.users.forget()
            with contextlib.suppress(LabError):
                holding.release(name, Lab.attach(name))
        return (
            f"the lab {name} is kept: `export LAB_NAME={name}`, `lab status`, `pytest --lab {name}`; "
            f"`lab down --name {name}` removes it"
        )

    # -- gateways ------------------------------------------------------------------------------------------------------

    def gateway_for(
        self, nodes: tuple[str, ...], env: Mapping[str, str] | None = None, options: Sequence[str] = ()
    ) -> Gateway:
        """Return this process's own gateway of these settings, which starts kernels on *nodes* (full names) alone."""
        settings = json.dumps([sorted((env or {}).items()), list(options)])
        if settings not in self._gateways:
            number = len(self._gateways) + 1
            name = f"{OWN_GATEWAY}-{os.getpid()}" + (f"-{number}" if number > 1 else "")
            self._gateways[settings] = RestrictedGateway(self.get(), name, nodes, env, options)
        return self._gateways[settings].restrict(nodes)

    @staticmethod
    def _forget_dead_gateways(lab: Lab) -> None:
        """Remove the gateways of processes that were killed."""
        for gateway in lab.gateways:
            pid = process_of(gateway.name)
            if pid is not None and identify(pid) is None:
                gateway.remove()


def process_of(gateway: str) -> int | None:
    """Return whose own gateway one of that name is; None if it is the lab's."""
    found = re.fullmatch(rf"{OWN_GATEWAY}-(\d+)(-\d+)?", gateway)
    return int(found[1]) if found else None


class RestrictedGateway:
    """A gateway of one process, whose kernelspecs name the nodes that the current test has leased.

    One for all tests: making a gateway takes seconds, writing kernelspecs milliseconds, and Enterprise Gateway reads them
    anew for each kernel.
    """

    def __init__(
        self, lab: Lab, name: str, nodes: tuple[str, ...], env: Mapping[str, str] | None, options: Sequence[str]
    ) -> None:
        self._gateway = lab.add_gateway(name, hosts=nodes, env=env, options=options)
        self._specs: dict[str, dict[str, Any]] = kernelspecs_of(self._gateway)
        self._nodes: tuple[str, ...] = ()

    def restrict(self, nodes: tuple[str, ...]) -> Gateway:
        """Have every kernelspec with a process proxy start its kernels on *nodes*, and those that tests add."""
        self._gateway.restricted_to = nodes
        if nodes != self._nodes:
            for name, spec in self._specs.items():
                self._gateway.add_kernelspec(name, on_nodes(spec, nodes))
            self._nodes = nodes
        return self._gateway

    def remove(self) -> None:
        """End it."""
        self._gateway.remove()


def kernelspecs_of(gateway: Gateway) -> dict[str, dict[str, Any]]:
    """Return the kernelspecs that *gateway* offers, by name; raise LabError if it doesn't tell."""
    import httpx

    try:
        answer = httpx.get(f"{gateway.url}/api/kernelspecs", timeout=30, trust_env=False).raise_for_status()
        return {name: each["spec"] for name, each in answer.json()["kernelspecs"].items()}
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise LabError(f"{gateway.name} does not tell its kernelspecs", cause=repr(error)) from error

"""Carry out a fault's steps on a machine, from any process on this side: in the node, or by the engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from lab.drivers.local import namespaces
from lab.drivers.machines import Machine, Node
from lab.errors import FaultUnavailable, LabError, LabNotReady
from lab.faults.inside import bundle
from lab.faults.model import Step

SECONDS = 30.0
"""For all the steps that one fault takes inside one node."""
INTERPRETERS = ("/opt/kernel/bin/python", "/usr/bin/python3.11", "/opt/gateway/bin/python", "/usr/bin/python3")
"""By full names first: a fault may be that `python3` is gone."""
_MARK = "EG_DISTRIBUTED_LAB"


class StepsFailed(LabError):
    """What a mechanism does could not be done on a node; the next mechanism is tried."""

    id = "fault-steps-failed"


def is_local(machine: Machine) -> bool:
    """Say whether *machine* is a process of the local driver."""
    return hasattr(machine, "facts")


def carry_out(machine: Machine, steps: Sequence[Step], *, elevated: bool = False, undoing: bool = False) -> None:
    """Do *steps* in order; raise StepsFailed. An undo does them all and raises what failed first.

    Raises LabNotReady when the machine doesn't answer at all, and LabNotFound when it is gone.
    """
    failure: LabError | None = None
    for outside, group in groupby(steps, key=lambda step: step[0].startswith("!")):
        try:
            if outside:
                for step in group:
                    _outside(machine, step)
            else:
                _inside(machine, list(group), elevated=elevated, undoing=undoing)
        except LabError as error:
            if not undoing:
                raise
            failure = failure or error
    if failure is not None:
        raise failure


# -- this side ---------------------------------------------------------------------------------------------------------


def _limits(machine: Machine, settings: str) -> None:
    """Change a container's limits; docker-py knows no limit of processes, so the engine is called directly."""
    container: Any = machine._container  # type: ignore[attr-defined]
    api = container.client.api
    url = api._url("/containers/{0}/update", container.id)
    answer = api._post_json(url, data=json.loads(settings))
    if answer.status_code >= 400:
        raise StepsFailed(f"the engine does not change the limits of {machine.name}", cause=answer.text.strip())


def _node(method: Callable[[Any], None]) -> Callable[[Machine], None]:
    def call(machine: Machine) -> None:
        if not hasattr(machine, "pause"):
            raise StepsFailed(f"{machine.name} is no node")
        method(machine)

    return call


def _return(machine: Machine) -> None:
    """Let a machine run again and the lab know of its new port; whether one can log in may be another fault's business."""
    machine.resume()
    changed: Callable[[], None] = getattr(machine, "_changed", lambda: None)
    changed()


def _ended(machine: Machine) -> None:
    """Wait until a machine whose main process was told to end has ended: healed before, it would count as running."""
    deadline = time.monotonic() + SECONDS
    while machine.state == "running":
        if time.monotonic() > deadline:
            raise StepsFailed(f"{machine.name} did not end", cause=f"it still runs after {SECONDS:g} s")
        time.sleep(0.02)


OUTSIDE: dict[str, Callable[..., None]] = {
    "!pause": _node(lambda node: node.pause()),
    "!unpause": _node(lambda node: node.unpause()),
    "!kill": lambda machine: machine.kill(),
    "!ended": _ended,
    "!return": _return,
    "!limits": _limits,
}


def _outside(machine: Machine, step: Step) -> None:
    try:
        OUTSIDE[step[0]](machine, *step[1:])
    except LabError:
        raise
    except Exception as error:  # the engine's client raises its own kinds, and the local driver OSErrors
        raise StepsFailed(f"{step[0][1:]} of {machine.name} failed", cause=str(error)) from error


# -- inside ------------------------------------------------------------------------------------------------------------


def _inside(machine: Machine, steps: Sequence[Step], *, elevated: bool, undoing: bool) -> None:
    program = ["-I", "-c", bundle(), json.dumps(steps), json.dumps(_facts(machine)), *(["undo"] * undoing)]
    if is_local(machine):
        answers = [_local(program)]
    elif elevated:
        answers = [_elevated(machine, program)]
    else:
        answers = []
        for interpreter in INTERPRETERS:
            done = machine.exec([interpreter, *program], user="root", timeout=SECONDS)
            answers = [(done.exit_code, done.stdout, done.stderr)]
            if done.exit_code not in {126, 127}:
                break
    code, stdout, stderr = answers[0]
    try:
        failed = json.loads(stdout.splitlines()[-1])["failed"]
    except (IndexError, ValueError, KeyError, TypeError):
        said = (stderr.strip() or stdout.strip())[-300:] or f"exit code {code}"
        raise LabNotReady(f"{machine.name} does not carry out what it is told", cause=said) from None
    if failed:
        raise StepsFailed(f"{machine.name} could not be brought to it", cause=failed)


def _facts(machine: Machine) -> dict[str, Any]:
    if not is_local(machine):
        return {"port": own_port(machine)}
    facts = machine.facts  # type: ignore[attr-defined]
    config = facts["argv"][-1] if str(facts["argv"][-1]).endswith("sshd_config") else ""
    root = (facts.get("process") or [0])[0]
    inside = facts.get("isolation", "none") != "none"
    enter = namespaces.command("enter", str(root), str(facts["home"])) if inside else []
    return {"port": facts["port"], "root": root, "config": config, "sshd": [*enter, facts["argv"][0]]}


def _local(program: Sequence[str]) -> tuple[int, str, str]:
    # Without the mark of the lab's processes: what runs here is the fault's, not the node's.
    env = {name: value for name, value in os.environ.items() if name != _MARK}
    return _subprocess([sys.executable, *program], env)


def _subprocess(argv: Sequence[str], env: dict[str, str] | None = None) -> tuple[int, str, str]:
    try:
        done = subprocess.run(
            list(argv), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False, env=env
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LabNotReady(f"{argv[0]} did not end well", cause=str(error)) from None
    return done.returncode, done.stdout, done.stderr


def _elevated(machine: Machine, program: Sequence[str]) -> tuple[int, str, str]:
    """Run with the capabilities that a node lacks: by the engine's privileged exec, else by entering its namespaces.

    A node with more capabilities was rejected: all nodes would have them all the time, for the few minutes of a mount. The
    privileged exec asks for every capability there is, so an engine that lacks one itself can't give it; root on the
    engine's own machine can still enter the node.
    """
    container: Any = machine._container  # type: ignore[attr-defined]
    refused = ""
    for interpreter in INTERPRETERS:
        code, stdout, stderr = _privileged(machine, [interpreter, *program])
        if code not in {126, 127}:
            return code, stdout, stderr
        refused = (stdout + stderr).strip()[-200:]
        if code == 126:
            break
    container.reload()
    pid = int(container.attrs["State"]["Pid"])
    if os.geteuid() == 0 and _is(pid, container.id):
        enter = ["nsenter", "--target", str(pid), "--mount", "--uts", "--ipc", "--net", "--pid", "--"]
        for interpreter in INTERPRETERS:
            code, out, err = _subprocess([*enter, interpreter, *program])
            if code not in {126, 127}:
                return code, out, err
        refused += f"; nsenter: {err.strip()[-200:]}"
    raise StepsFailed(
        f"{machine.name} can't be given the capability to mount",
        cause=f"the engine refuses a privileged exec ({refused}), and this process is not root beside the engine",
    )


def _privileged(machine: Machine, argv: Sequence[str]) -> tuple[int, str, str]:
    """Run by the engine with all capabilities; a thread waits, since the engine's answer has no deadline of its own."""
    container: Any = machine._container  # type: ignore[attr-defined]
    api = container.client.api
    ended: list[tuple[int, str, str] | Exception] = []

    def execute() -> None:
        try:
            handle = api.exec_create(container.id, list(argv), user="root", privileged=True)["Id"]
            stdout, stderr = api.exec_start(handle, demux=True)
            text = [(part or b"").decode(errors="replace") for part in (stdout, stderr)]
            ended.append((int(api.exec_inspect(handle)["ExitCode"]), text[0], text[1]))
        except Exception as error:  # noqa: BLE001 -- docker's and requests' errors have no common root
            ended.append(error)

    thread = threading.Thread(target=execute, name="lab-fault-exec", daemon=True)
    thread.start()
    thread.join(SECONDS)
    found = ended[0] if ended else TimeoutError(f"no answer within {SECONDS:.0f} s")
    if isinstance(found, Exception):
        raise LabNotReady(f"{machine.name} does not carry out what it is told", cause=str(found))
    return found


def _is(pid: int, container: str) -> bool:
    """Say whether *pid* on this machine is in *container*: the engine may be on another one."""
    try:
        return pid > 1 and container in Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return False


def unavailable(kind: str, machine: Machine, reasons: Sequence[str]) -> FaultUnavailable:
    """Return the error that says why no mechanism of *kind* works on *machine*."""
    return FaultUnavailable(
        f"the fault {kind} can't be had on {machine.name}",
        cause="; ".join(reasons),
        remedy="`lab fault catalogue` says what each needs, `lab doctor` what this machine has",
        evidence={"fault": kind, "node": machine.name, "tried": list(reasons)},
    )


def own_port(machine: Machine) -> int:
    """Return the port on which a container serves: sshd's of a node, Enterprise Gateway's of a gateway."""
    return 22 if is_node(machine) else 8888


def is_node(machine: Machine) -> bool:
    """Say whether *machine* is an SSH node."""
    return isinstance(machine, Node)

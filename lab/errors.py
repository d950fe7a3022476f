"""What can go wrong with a lab: a stable id and an exit code for each kind.

    LabError                            1  lab-failed          anything else that failed
    ├── EngineFailed                    1  engine-failed       the container engine refused, or went away
    ├── LabUsageError                   2  usage               a name or a value that can't be
    ├── LabNotFound                     3  not-found           no such lab, machine, fault …
    ├── LabConflict                     4  conflict            something that is not ours stands in the way
    ├── LabNotReady (TimeoutError)      5  not-ready           a probe did not succeed in time
    └── EnvironmentUnfit                6  environment-unfit   this machine lacks something
        └── FaultUnavailable            6  fault-unavailable   no mechanism for this fault works there

Each names the thing, the cause and the remedy, and may carry evidence; the CLI prints `str(error)`, or `as_dict()` where
JSON was asked for, and exits with `exit_code`. Other modules of the lab may add kinds: a subclass says its own `id`, its
`exit_code` and, in its docstring's first line, what it means. docs/lab-errors.md is made of these: lab/reference/errors.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

INTERRUPTED: Final = 130
"""What the CLI exits with after ^C, as shells do."""


BROKEN_PIPE: Final = 141
"""What a shell says of a program that SIGPIPE ended: `lab logs | head` is no failure of ours."""


class LabError(Exception):
    """Something of the lab failed; the message says what, why and the next command to type.

    *what* failed, its *cause*, the *remedy* (its kind's usual one where none is given), and *evidence*: facts by name.
    """

    id: ClassVar[str] = "lab-failed"
    exit_code: ClassVar[int] = 1
    usual_remedy: ClassVar[str] = "`lab logs` and `lab events` say what happened, `lab export FILE` has all of it"

    def __init__(
        self, what: str, *, cause: str = "", remedy: str = "", evidence: Mapping[str, Any] | None = None
    ) -> None:
        remedy = remedy or self.usual_remedy
        super().__init__(what, cause, remedy)
        self.what = what
        self.cause = cause
        self.remedy = remedy
        self.evidence: dict[str, Any] = dict(evidence or {})

    def __str__(self) -> str:
        parts = [self.what]
        if self.cause:
            parts[0] += f": {self.cause}"
        if self.remedy:
            parts.append(f"Remedy: {self.remedy}")
        return "\n".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints of an error: a contract that only grows."""
        return {
            "id": self.id,
            "exit_code": self.exit_code,
            "message": self.what,
            "cause": self.cause,
            "remedy": self.remedy,
            "evidence": self.evidence,
        }


class EngineFailed(LabError):
    """The container engine refused a call or went away meanwhile; `lab doctor` looks at it."""

    id = "engine-failed"
    usual_remedy = "`lab doctor`, then the same again"


class LabUsageError(LabError):
    """A name, number, file or variant that can't be; correct the call."""

    id = "usage"
    exit_code = 2
    usual_remedy = "`lab VERB --help` has the words and an example"


class LabNotFound(LabError):
    """There is no such lab, node, gateway or fault; `lab ls` and `lab status` say what there is."""

    id = "not-found"
    exit_code = 3
    usual_remedy = "`lab ls` and `lab status` say what there is"


class LabConflict(LabError):
    """Something that this lab did not make has the name or the addresses that it needs; it is never removed."""

    id = "conflict"
    exit_code = 4
    usual_remedy = "`lab ls` and `docker ps -a` say whose it is; choose another name (`--name`)"


class LabNotReady(LabError, TimeoutError):
    """A readiness probe did not succeed before its deadline; the message names it and has the machine's last lines.

    *logs* are those lines; they are the evidence `logs` as well.
    """

    id = "not-ready"
    exit_code = 5
    usual_remedy = "`lab logs MACHINE` has what it said, `lab status` what runs; the same again goes on from here"

    def __init__(
        self,
        what: str,
        *,
        cause: str = "",
        remedy: str = "",
        logs: str = "",
        evidence: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(what, cause=cause, remedy=remedy, evidence={**(evidence or {}), "logs": logs.splitlines()})
        self.logs = logs

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text}\nLast lines of its log:\n{self.logs.rstrip()}" if self.logs.strip() else text


class EnvironmentUnfit(LabError):
    """This machine lacks something that the lab needs; do what the remedy says, `lab doctor` has the whole list."""

    id = "environment-unfit"
    exit_code = 6
    usual_remedy = "`lab doctor` has all that this machine lacks"


class FaultUnavailable(EnvironmentUnfit):
    """No mechanism for this fault works on these nodes; nothing was changed, and the cause says what was tried."""

    id = "fault-unavailable"

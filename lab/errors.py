"""What can go wrong with a lab, and the exit code that says so.

    LabError                    1   anything that failed
    ├── LabUsageError           2   a name or a value that can't be
    ├── LabNotFound             3   no such lab, node or gateway
    ├── LabConflict             1   something that is not ours stands in the way
    ├── LabNotReady (TimeoutError)  5   a probe did not succeed in time
    └── EnvironmentUnfit        6   this machine lacks something; the remedy says what

Each names the thing, the cause and the remedy; the CLI prints `str(error)` and exits with `exit_code`.
"""

from __future__ import annotations

from typing import ClassVar


class LabError(Exception):
    """The root of the lab's errors: *what* failed, its *cause*, and the *remedy* where there is one."""

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, cause: str = "", remedy: str = "") -> None:
        super().__init__(what, cause, remedy)
        self.what = what
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        parts = [self.what]
        if self.cause:
            parts[0] += f": {self.cause}"
        if self.remedy:
            parts.append(f"Remedy: {self.remedy}")
        return "\n".join(parts)


class LabUsageError(LabError):
    """A name, number or variant that can't be; correct the call."""

    exit_code = 2


class LabNotFound(LabError):
    """There is no such lab, node or gateway; `lab up` makes one, `lab status` says what there is."""

    exit_code = 3


class LabConflict(LabError):
    """Something that this lab did not make has the name or the addresses that it needs; it is never removed."""


class LabNotReady(LabError, TimeoutError):
    """A readiness probe did not succeed before its deadline; *logs* holds the machine's last lines."""

    exit_code = 5

    def __init__(self, what: str, *, cause: str = "", remedy: str = "", logs: str = "") -> None:
        super().__init__(what, cause=cause, remedy=remedy)
        self.logs = logs

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text}\nLast lines of its log:\n{self.logs.rstrip()}" if self.logs.strip() else text


class EnvironmentUnfit(LabError):
    """This machine lacks something that the lab needs; do what the remedy says."""

    exit_code = 6

"""What can go wrong with a lab: a stable id and an exit code for each kind.

    LabError                            1  lab-failed          anything else that failed
    ├── EngineFailed                    1  engine-failed       the container engine refused, or went away
    ├── LabUsageError                   2  usage               a name or a value that can't be
    ├── LabNotFound                     3  not-found           no such lab, machine, fault …
    ├── LabConflict                     4  conflict            something that is not ours stands in the way
    ├── LabNotReady (TimeoutError)      5  not-ready           a probe did not succeed in time
    └── EnvironmentUnfit                6  environment-unfit   this machine lacks something
        └── FaultUnavailable            6  fault-unavailable   no mechanism for this fault works there

Each names the thing, the cause and the remedy, and may carry evidence; the CLI prints `str(error)`, or `as_dict()` where JSON
was asked for, and exits with `exit_code`. Other modules of the lab may add kinds: a subclass says its own `id`, `exit_code` and, in
its docstring's first line, what it means; docs/lab-errors.md is made of these (`python -m lab.errors --write docs/lab-errors.md`).
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

INTERRUPTED: Final = 130
"""What the CLI exits with after ^C, as shells do."""


class LabError(Exception):
    """Something of the lab failed; the message says what, why and the next command to type.

    *what* failed, its *cause*, the *remedy* where there is one, and *evidence*: facts by name, for programs.
    """

    id: ClassVar[str] = "lab-failed"
    exit_code: ClassVar[int] = 1

    def __init__(
        self, what: str, *, cause: str = "", remedy: str = "", evidence: Mapping[str, Any] | None = None
    ) -> None:
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


class LabUsageError(LabError):
    """A name, number, file or variant that can't be; correct the call."""

    id = "usage"
    exit_code = 2


class LabNotFound(LabError):
    """There is no such lab, node, gateway or fault; `lab ls` and `lab status` say what there is."""

    id = "not-found"
    exit_code = 3


class LabConflict(LabError):
    """Something that this lab did not make has the name or the addresses that it needs; it is never removed."""

    id = "conflict"
    exit_code = 4


class LabNotReady(LabError, TimeoutError):
    """A readiness probe did not succeed before its deadline; the message names it and has the machine's last lines.

    *logs* are those lines; they are the evidence `logs` as well.
    """

    id = "not-ready"
    exit_code = 5

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


class FaultUnavailable(EnvironmentUnfit):
    """No mechanism for this fault works on these nodes; nothing was changed, and the cause says what was tried."""

    id = "fault-unavailable"


# -- the table in the docs ---------------------------------------------------------------------------------------------

_EXIT_CODES: Final = {
    0: "done",
    1: "it failed; the message says what, why, and what to type next. `status` and `validate`: not as it should be",
    2: "the call was wrong",
    3: "there is no such thing",
    4: "something that the lab did not make is in the way",
    5: "something did not get ready in time; the message names the probe",
    6: "this machine lacks something",
    INTERRUPTED: "interrupted by ^C; what is there stays, `lab up` goes on from it",
}


def kinds() -> list[type[LabError]]:
    """Return every kind of error that the lab's modules define, by exit code and id."""
    package = importlib.import_module("lab")
    for module in pkgutil.walk_packages(package.__path__, "lab."):
        # Plugins import their host (pytest, testcontainers), which may not be installed.
        if module.name not in {"lab.pytest_plugin", "lab.testcontainers"} and ".testing" not in module.name:
            importlib.import_module(module.name)
    found: list[type[LabError]] = []
    queue: list[type[LabError]] = [importlib.import_module("lab.errors").LabError]
    while queue:
        kind = queue.pop()
        queue += kind.__subclasses__()
        if kind.__module__.startswith("lab."):
            found.append(kind)
    return sorted(found, key=lambda kind: (kind.exit_code, kind.id))


def table() -> str:
    """Return docs/lab-errors.md: exit codes, ids and what an error looks like as JSON."""
    lines = [
        "# The lab's errors",
        "",
        "Made by `python -m lab.errors --write docs/lab-errors.md`; a test compares. Numbers and ids are stable.",
        "",
        "An error goes to stderr: what failed and why, `Remedy:` with the next command to type, and for a probe the last lines of that",
        "machine's log. Where `--json` was given, the last line of stderr is one JSON object instead, and stdout stays empty:",
        "`id`, `exit_code`, `message`, `cause`, `remedy`, and `evidence`, an object whose keys depend on the error.",
        "",
        "| exit code | meaning |",
        "|---|---|",
        *(f"| {code} | {meaning} |" for code, meaning in _EXIT_CODES.items()),
        "",
        "`lab ssh` and `lab exec` end as the command did that they ran (255: ssh could not reach the node; with `all`, the highest code).",
        "",
        "| id | exit code | in Python | meaning |",
        "|---|---|---|---|",
    ]
    for kind in kinds():
        meaning = (kind.__doc__ or "").strip().splitlines()[0].rstrip(".")
        module = "lab" if kind.__module__ == "lab.errors" else kind.__module__
        lines.append(f"| `{kind.id}` | {kind.exit_code} | `{module}.{kind.__name__}` | {meaning} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Write the table (`--write FILE`) or say whether it is up to date (`--check FILE`); called by hand and by tests."""
    if len(arguments) != 2 or arguments[0] not in {"--write", "--check"}:
        sys.stderr.write("usage: python -m lab.errors --write|--check FILE\n")
        return LabUsageError.exit_code
    path = Path(arguments[1])
    if arguments[0] == "--write":
        path.write_text(table(), "utf-8")
        return 0
    return 0 if path.read_text("utf-8") == table() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

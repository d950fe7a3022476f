"""The table of exit codes and error ids in the docs, made from the classes: `python -m lab.reference.errors --write FILE`."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from lab.errors import BROKEN_PIPE, INTERRUPTED, LabError, LabUsageError

_EXIT_CODES: Final = {
    0: "done",
    1: "it failed; the message says what, why, and what to type next. `status`: something does not run",
    2: "the call was wrong",
    3: "there is no such thing",
    4: "something that the lab did not make is in the way",
    5: "something did not get ready in time; the message names the probe",
    6: "this machine lacks something",
    INTERRUPTED: "interrupted by ^C; what is there stays, `lab up` goes on from it",
    BROKEN_PIPE: "who read the output is gone, as in `lab logs \\| head`",
}


def kinds() -> list[type[LabError]]:
    """Return every kind of error that the lab's modules define, by exit code and id."""
    package = importlib.import_module("lab")
    for module in pkgutil.walk_packages(package.__path__, "lab."):
        # Plugins import their host (pytest, testcontainers), which may not be installed.
        if module.name not in {"lab.pytest_plugin", "lab.testcontainers"} and ".testing" not in module.name:
            importlib.import_module(module.name)
    found: list[type[LabError]] = []
    queue: list[type[LabError]] = [LabError]
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
        "Made by `python -m lab.reference.errors --write docs/lab-errors.md`; a test compares. Numbers and ids are stable.",
        "",
        "An error goes to stderr: what failed and why, `Remedy:` with the next command to type, and for a probe the",
        "last lines of that machine's log. Where `--json` was given, the last line of stderr is one JSON object",
        "instead, and stdout stays empty: `id`, `exit_code`, `message`, `cause`, `remedy`, and `evidence`, an object",
        "whose keys depend on the error.",
        "",
        "| exit code | meaning |",
        "|---|---|",
        *(f"| {code} | {meaning} |" for code, meaning in _EXIT_CODES.items()),
        "",
        "`lab ssh` and `lab exec` end as the command did that they ran (255: ssh could not reach the node; with `all`,",
        "the highest code).",
        "",
        "| id | exit code | in Python | meaning |",
        "|---|---|---|---|",
    ]
    for kind in kinds():
        meaning = (kind.__doc__ or "").strip().splitlines()[0].rstrip(".")
        lines.append(f"| `{kind.id}` | {kind.exit_code} | `{kind.__module__}.{kind.__name__}` | {meaning} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Write the table (`--write FILE`) or say whether it is up to date (`--check FILE`); called by hand and by tests."""
    if len(arguments) != 2 or arguments[0] not in {"--write", "--check"}:
        sys.stderr.write("usage: python -m lab.reference.errors --write|--check FILE\n")
        return LabUsageError.exit_code
    path = Path(arguments[1])
    if arguments[0] == "--write":
        path.write_text(table(), "utf-8")
        return 0
    return 0 if path.read_text("utf-8") == table() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

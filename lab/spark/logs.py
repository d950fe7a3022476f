"""What a machine's daemons say, and what they have started: read on the machine, reachable or not."""

from __future__ import annotations

from lab.drivers.machines import Node
from lab.errors import LabError
from lab.names import USER

LINES = 15


def read(machine: Node) -> dict[str, str]:
    """Return the logs of a machine's daemons by name, the last run's before that as `NAME.log.1`; empty for a plain node.

    A machine that can't be asked has one entry that says why. Called by `lab export`.
    """
    found: dict[str, str] = {}
    for daemon in machine.spec.daemons:
        for name in (f"{daemon}.log", f"{daemon}.log.1"):
            try:
                done = machine.exec(["cat", f"{machine.daemon_logs}/{name}"], user="root")
            except LabError as error:
                return {"unread.txt": f"can't be read: {error}\n"}
            if done.exit_code == 0:
                found[name] = done.stdout
    return found


def last_lines(machine: Node) -> str:
    """Return the last lines of each daemon of a machine behind its name; for the error of a probe."""
    parts = []
    for daemon in machine.spec.daemons:
        # With the run before: one that ends at once and is started again has often said nothing yet.
        script = f'cat "$1.log.1" "$1.log" 2> /dev/null | tail -n {LINES} | cut -c 1-300'
        try:
            argv = ["sh", "-c", script, "sh", f"{machine.daemon_logs}/{daemon}"]
            text = machine.exec(argv, user="root").stdout
        except LabError as error:
            text = f"can't be read: {error}"
        parts.append(f"{machine.name}, {daemon}:\n{text.rstrip() or '(it has not been started)'}")
    return "\n".join(parts)


def executors(node: Node) -> set[str]:
    """Return the ids of the standalone applications that have an executor on *node* now; none if it can't be asked."""
    work = f"{node.daemon_files}/spark/work/"
    try:
        # As who runs them: root of a container may not see other users' folders.
        found = node.exec(["sh", "-c", "for p in /proc/[0-9]*/cwd; do readlink $p; done"], user=USER).stdout
    except LabError:
        return set()
    return {line.removeprefix(work).partition("/")[0] for line in found.splitlines() if line.startswith(work)}

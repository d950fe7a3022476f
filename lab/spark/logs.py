"""What a machine's daemons say, and what they have started: read on the machine, reachable or not."""

from __future__ import annotations

from lab.errors import LabError
from lab.machines import Node
from lab.names import USER

FOLDER = "/var/log/daemons"
LINES = 15


def read(machine: Node) -> dict[str, str]:
    """Return the logs of a machine's daemons by name, the last run's before that as `NAME.log.1`; empty for a plain node.

    A machine that can't be asked has one entry that says why. Called by `lab export`.
    """
    found: dict[str, str] = {}
    for daemon in machine.spec.daemons:
        for name in (f"{daemon}.log", f"{daemon}.log.1"):
            try:
                done = machine.exec(["cat", f"{FOLDER}/{name}"], user="root")
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
        script = f"cat {FOLDER}/{daemon}.log.1 {FOLDER}/{daemon}.log 2> /dev/null | tail -n {LINES} | cut -c 1-300"
        try:
            text = machine.exec(["sh", "-c", script], user="root").stdout
        except LabError as error:
            text = f"can't be read: {error}"
        parts.append(f"{machine.name}, {daemon}:\n{text.rstrip() or '(it has not been started)'}")
    return "\n".join(parts)


def executors(node: Node) -> set[str]:
    """Return the ids of the standalone applications that have an executor on *node* now; none if it can't be asked."""
    script = "for p in /proc/[0-9]*/cwd; do readlink $p; done | sed -n 's|^/var/lib/spark/work/\\([^/]*\\)/.*|\\1|p'"
    try:
        # As who runs them: root of a container may not see other users' folders.
        return set(node.exec(["sh", "-c", script], user=USER).stdout.split())
    except LabError:
        return set()

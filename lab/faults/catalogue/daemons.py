"""Faults of a lab's Spark and YARN: a daemon is killed, and stays down until the fault heals."""

from __future__ import annotations

from lab.drivers.machines import Machine, Node
from lab.faults.model import Context, FaultKind, Mechanism, Moves, Option


def runs(machine: Machine, daemon: str) -> bool:
    """Say whether *machine* was made with *daemon*."""
    return isinstance(machine, Node) and daemon in machine.spec.daemons


def _killed(daemon: str, *, leaves: str = "") -> Mechanism:
    """Return the only way: SIGKILL, and a word to the node's own supervisor. *leaves*: an option that says what stays."""

    def refuse(context: Context) -> str:
        return "" if runs(context.node, daemon) else f"this machine was made without a {daemon}"

    def moves(context: Context) -> Moves:
        stay = ["stay"] if leaves and context.options[leaves] == "stay" else []
        node = context.node
        assert isinstance(node, Node)  # `refuse` has seen that it runs the daemon
        return Moves((node.daemon_command("down", daemon, *stay),), (node.daemon_command("up", daemon),))

    return Mechanism("SIGKILL, its supervisor told to wait", moves, claims=(daemon,), refuse=refuse)


KINDS = (
    FaultKind(
        "spark-master-down",
        "spark",
        "The standalone master is gone; what runs goes on.",
        "a connect to its port is refused; after healing it knows its workers and applications",
        (_killed("spark-master"),),
        daemon="spark-master",
    ),
    FaultKind(
        "spark-worker-down",
        "spark",
        "A standalone worker is gone, and the executors with it.",
        "its executors end, the master calls it DEAD after 20 s at most; after healing it is ALIVE",
        (_killed("spark-worker"),),
    ),
    FaultKind(
        "yarn-resourcemanager-down",
        "spark",
        "The ResourceManager is gone.",
        "a connect to its ports is refused; after healing the NodeManagers come back to it",
        (_killed("yarn-resourcemanager"),),
        daemon="yarn-resourcemanager",
    ),
    FaultKind(
        "yarn-nodemanager-down",
        "spark",
        "A NodeManager is gone, and, unless they are told to stay, the containers with it.",
        "the ResourceManager calls it LOST after 20 s; after healing it is RUNNING",
        (_killed("yarn-nodemanager", leaves="containers"),),
        (
            Option(
                "containers",
                "text",
                "end",
                "what becomes of them: they `end` as under systemd, or `stay` as orphans",
                choices=("end", "stay"),
            ),
        ),
    ),
)

"""What one machine may use, and who else may log in: the parts of a lab.toml that a machine's spec keeps as they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


def say(doc: str, **more: Any) -> dict[str, Any]:
    """Return a field's metadata."""
    return {"doc": doc, **more}


@dataclass(frozen=True)
class Limits:
    """What one machine may use at most. The docker driver alone can limit; what its engine can't is an error."""

    cpus: float | None = field(default=None, metadata=say("Processors, fractions allowed.", minimum=0.01, example=0.5))
    memory: int | None = field(
        default=None, metadata=say("Memory, swap included.", kind="size", minimum=16 << 20, example="512m")
    )
    pids: int | None = field(default=None, metadata=say("Processes and threads.", minimum=16, example=200))
    disk: int | None = field(
        default=None,
        metadata=say(
            "Size of the machine's disk; engines can do it on overlay2 over XFS with pquota, on btrfs and on zfs only.",
            kind="size",
            minimum=64 << 20,
            example="2g",
        ),
    )


@dataclass(frozen=True)
class User:
    """One more login user of the nodes. The lab's own key may always log in as them."""

    shell: Literal["bash", "csh", "fish", "sh"] = field(default="bash", metadata=say("The login shell."))
    keys: tuple[str, ...] = field(
        default=(), metadata=say("Public keys, whole lines, that may log in as this user beside the lab's own.")
    )
    groups: tuple[str, ...] = field(default=(), metadata=say("Groups beside the user's own; made if not there."))

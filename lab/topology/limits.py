"""What one machine may use, and who else may log in: the parts of a lab.toml that a machine's spec keeps as they are."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from lab import units

TEN_YEARS: Final = 3650 * 86400
"""Seconds: as long as anything of a lab can last. Clocks and timers take no more than a few hundred years."""


def say(doc: str, *, example: Any = None) -> Meta:
    """Return what a key is for, in one sentence, for the schema, the reference and errors."""
    return Meta(description=doc, examples=None if example is None else [example])


def matching(pattern: str) -> Meta:
    """Return that a text must be all of *pattern*."""
    return Meta(pattern=f"^{pattern}$")


def duration(minimum: float) -> Meta:
    """Return that a number is seconds, from *minimum* to ten years, and may be written as `15s`."""
    return _unit("duration", units.DURATION, minimum, TEN_YEARS)


def size(minimum: int) -> Meta:
    """Return that a number is bytes, from *minimum* to a PiB, and may be written as `512m`."""
    return _unit("size", units.SIZE, minimum, 1 << 50)


def _unit(name: str, pattern: str, minimum: float, maximum: float) -> Meta:
    # The bounds are said of numbers alone and `pattern` of texts alone: that is how a JSON schema has it.
    schema = {"type": ["number", "string"], "pattern": f"^{pattern}$"}
    return Meta(ge=minimum, le=maximum, extra={"unit": name}, extra_json_schema=schema)


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    """What one machine may use at most. The docker driver alone can limit; what its engine can't is an error."""

    cpus: Annotated[float, Meta(ge=0.01, le=4096), say("Processors, fractions allowed.", example=0.5)] | None = None
    memory: Annotated[int, size(16 << 20), say("Memory, swap included.", example="512m")] | None = None
    pids: Annotated[int, Meta(ge=16, le=1 << 22), say("Processes and threads.", example=200)] | None = None
    disk: (
        Annotated[
            int,
            size(64 << 20),
            say(
                "Size of the machine's disk; engines can do it on overlay2 over XFS with pquota, on btrfs and on zfs only.",
                example="2g",
            ),
        ]
        | None
    ) = None


class User(Struct, frozen=True, forbid_unknown_fields=True):
    """One more login user of the nodes. The lab's own key may always log in as them."""

    shell: Annotated[Literal["bash", "csh", "fish", "sh"], say("The login shell.")] = "bash"
    keys: Annotated[
        tuple[str, ...], say("Public keys, whole lines, that may log in as this user beside the lab's own.")
    ] = ()
    groups: Annotated[tuple[str, ...], say("Groups beside the user's own; made if not there.")] = ()

"""Host faults of disks: full, read-only, hanging, or with a folder less."""

from __future__ import annotations

from typing import Final

from lab.drivers.capabilities import Capability
from lab.faults.catalogue.ssh import SYSTEM
from lab.faults.inside import source
from lab.faults.model import Context, FaultKind, Mechanism, Moves, Option, Step

MOUNTS: Final[frozenset[Capability]] = frozenset({"mounts"})
CLEANED: Final = ("/tmp", "/var/tmp", "/run/user")  # noqa: S108 -- the node's own
"""Where machines' own cleaners remove folders."""


def _where(context: Context) -> str:
    path = str(context.options["path"])
    return {"home": context.home, "tmp": "/tmp"}.get(path, path)  # noqa: S108 -- the node's own


def _full(context: Context) -> Moves:
    path, folder = _where(context), context.folder
    disk = f"{folder}/disk"
    size = f"size={context.options['megabytes']}m"
    return Moves(
        (
            ("@write", f"{disk}/.keep", ""),
            ("@mount", folder, disk, "mount", "-t", "tmpfs", "-o", size, context.mark, disk),
            ("@populate", disk, path),
            ("@mount", folder, path, "mount", "--bind", disk, path),
            ("@fill", path, context.mark),
        ),
        (("@unmount", folder),),
    )


def bound(context: Context, path: str, option: str = "") -> Moves:
    """Mount *path* on itself, with a mount option of its own."""
    folder = context.folder
    apply: tuple[Step, ...] = (("@mount", folder, path, "mount", "--bind", path, path),)
    if option:
        apply += (("mount", "-o", f"remount,bind,{option}", path),)
    return Moves(apply, (("@unmount", folder),))


def _never_answered(context: Context) -> Moves:
    """Mount a file system of FUSE whose server answers nothing, and detach it before the server lets those go who wait."""
    folder, path = context.folder, _where(context)
    return Moves(
        (
            ("@write", f"{folder}/hungmount.py", source("hungmount"), "644"),
            ("@mount", folder, path, "true"),
            ("@spawn", folder, "hungmount", path, context.mark),
        ),
        (("@unmount", folder), ("@end", folder, "hungmount")),
    )


def slowed(context: Context, path: str, seconds: float) -> Moves:
    """Have each open and each read below *path* wait for *seconds*, which may be infinite."""
    folder = context.folder
    return bound(context, path) + Moves(
        (
            ("@write", f"{folder}/slowdisk.py", source("slowdisk"), "644"),
            ("@spawn", folder, "slowdisk", path, str(seconds)),
        ),
        (("@end", folder, "slowdisk"),),
    )


def _removed(context: Context) -> Moves:
    path, cleaned = str(context.options["path"]), () if context.node.refusal(SYSTEM) else CLEANED
    whole = path if path.startswith("/") else f"{context.home}/{path}"
    return Moves((("@vanish", whole, context.mark, context.home, *cleaned),), ())


def _denied(context: Context) -> Moves:
    return Moves((("@deny", context.home, context.folder),), (("@allow", context.home, context.folder),))


PATH = Option("path", "text", "home", "home, tmp, or a folder's full path")

KINDS = (
    FaultKind(
        "disk-full",
        "host",
        "No byte can be written below a path, as for a user over quota. What is written there meanwhile is gone once healed.",
        "a write fails with ENOSPC",
        (Mechanism("full tmpfs over the path", _full, elevated=True, claims=("mounts",), needs=MOUNTS),),
        (
            PATH,
            Option("megabytes", "integer", 64, "size of the full disk; what is there now has to fit", 1, 1024),
        ),
    ),
    FaultKind(
        "hung-mount",
        "host",
        "A mount hangs, as one whose server is gone: whoever looks for something below a path waits until it is healed. Files "
        "that are open already are not met.",
        "a command that reads there does not end, and goes on once healed",
        (
            Mechanism(
                "FUSE mount that answers nothing",
                _never_answered,
                elevated=True,
                claims=("mounts",),
                needs=MOUNTS,
            ),
            Mechanism(
                "fanotify permission events, never answered",
                lambda c: slowed(c, _where(c), float("inf")),
                elevated=True,
                claims=("mounts",),
                needs=MOUNTS,
            ),
        ),
        (PATH,),
    ),
    FaultKind(
        "readonly-home",
        "host",
        "The home can't be written to.",
        "a write fails with EROFS, or EACCES where it can't be mounted so",
        (
            Mechanism(
                "read-only bind mount",
                lambda c: bound(c, c.home, "ro"),
                elevated=True,
                claims=("mounts",),
                needs=MOUNTS,
            ),
            Mechanism("home owned by root", _denied, claims=("mounts",), needs=SYSTEM),
        ),
    ),
    FaultKind(
        "noexec-tmp",
        "host",
        "Nothing in /tmp can be executed.",
        "a program there fails with EACCES",
        (
            Mechanism(
                "noexec bind mount",
                lambda c: bound(c, "/tmp", "noexec"),  # noqa: S108 -- the node's own
                elevated=True,
                claims=("mounts",),
                needs=MOUNTS,
            ),
        ),
    ),
    FaultKind(
        "folder-removed",
        "host",
        "A folder is removed under those who use it, as cleaners of caches and temporary folders do.",
        "it is gone; files of it that are open live on",
        (Mechanism("rm -r", _removed),),
        (Option("path", "text", ".cache", "below the home; or a full path below it, or below /tmp"),),
        momentary=True,
    ),
)

"""Files and folders into and out of a container, by the engine's archives: running or not, reachable or not."""

from __future__ import annotations

import io
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import docker.errors

from lab.errors import LabError, LabNotFound

SPOOL_BYTES = 8 << 20
"""An archive up to this size stays in memory."""


def copy_in(container: Any, name: str, source: Path, target: str, *, uid: int) -> None:
    """Copy *source* into the folder *target* of the machine *name*, owned by *uid*; raise LabNotFound."""
    if not source.exists():
        raise LabNotFound(f"there is no {source} here")

    def owned(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = uid
        info.uname = info.gname = ""
        return info

    with tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES) as spool:
        with tarfile.open(fileobj=spool, mode="w") as tar:
            tar.add(source, arcname=source.resolve().name, filter=owned)
        spool.seek(0)
        try:
            container.put_archive(target, spool)
        except docker.errors.NotFound:
            raise LabNotFound(f"{name} has no folder {target}", remedy="make it, or name another") from None
        except docker.errors.APIError as error:
            raise LabError(f"{source} can't be copied to {name}:{target}", cause=str(error.explanation)) from error


def copy_out(container: Any, name: str, source: str, target: Path) -> None:
    """Copy *source* of the machine *name* into the folder *target* of this machine; raise LabNotFound.

    Links stay what they are, wherever they lead on the machine; devices and pipes are left out.
    """
    if not target.is_dir():
        raise LabNotFound(f"there is no folder {target} here", remedy="make it, or name another")
    try:
        stream, _ = container.get_archive(source)
    except docker.errors.NotFound:
        raise LabNotFound(f"{name} has no {source}") from None
    with tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES) as spool:
        for part in stream:
            spool.write(part)
        spool.seek(0, io.SEEK_SET)
        try:
            with tarfile.open(fileobj=spool) as tar:
                members = tar.getmembers()
                # What a node holds is whatever ran there: nothing of it may land outside of target. So links come last, when
                # no file can be written through them any more.
                plain = [each for each in members if each.isfile() or each.isdir() or each.islnk()]
                tar.extractall(target, members=plain, filter="data")
                tar.extractall(target, members=[each for each in members if each.issym()], filter="tar")
        except (tarfile.TarError, OSError) as error:
            raise LabError(f"{name}:{source} can't be copied to {target}", cause=str(error)) from error

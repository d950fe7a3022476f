"""What a start brings along: a launcher's files, a link to the kernelspec's folder, a command for when the kernel has ended."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Callable, Optional

from ..wire import MAX_MESSAGE, items, table, text
from . import processes, spawning
from .disk import Disk
from .private import write_private
from .spawning import StartError
from .spec_folder import LINK

ON_EXIT_DEADLINE = 15.0
"""Seconds that the command after a kernel's end may take."""
FOLDER = "launcher"
"""The folder of a launcher's files, in the kernel's own; `{launcher}` in argv stands for its path."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\Z")
"""Each part of a file's path: so none is empty, hidden, or `..`, and no path is absolute."""
_DEPTH = 4  # parts that a path may have
_PENDING = "on_exit.json"


class Shipment:
    """A launcher's files on this node, and what is to be run after the kernel; owned by its Kernel.

    The command waits on disk, with its environment (0600), so that it is run even if the agent that started the kernel has gone.
    """

    def __init__(self, directory: Path) -> None:
        self.folder = directory / FOLDER
        self._link = directory / LINK
        self._pending = directory / _PENDING
        self.pending = False
        """Whether a command is still to be run."""

    def unpack(self, files: dict[str, str]) -> None:
        """Write *files*, each 0600, in folders of 0700; raises OSError, or StartError for a path that leads anywhere else."""
        if not files:
            return
        paths = {name: name.split("/") for name in files}
        for name, parts in paths.items():
            if len(parts) > _DEPTH or not all(_NAME.match(part) for part in parts):
                raise StartError(f"{name!r} is no name for a launcher's file")
        self.folder.mkdir(mode=0o700, exist_ok=True)
        for name, content in files.items():
            folder = self.folder
            for part in paths[name][:-1]:
                folder /= part
                folder.mkdir(mode=0o700, exist_ok=True)
            write_private(folder / paths[name][-1], content.encode("utf-8", "surrogatepass"))

    def use(self, spec_folder: Optional[Path]) -> dict[str, str]:
        """Keep *spec_folder* for as long as the kernel's own folder; return what argv wants filled in. Raises OSError."""
        if spec_folder is None:
            return {}
        self._link.unlink(missing_ok=True)
        self._link.symlink_to(spec_folder)
        return {"resource_dir": str(spec_folder)}

    def prepare(self, argv: list[str], environment: dict[bytes, bytes]) -> None:
        """Keep the command for the kernel's end; raises OSError."""
        if argv:
            env = {os.fsdecode(name): os.fsdecode(value) for name, value in environment.items()}
            content = json.dumps({"argv": argv, "env": env}).encode("utf-8", "surrogatepass")
            write_private(self._pending, content)
            self.pending = True

    def look(self) -> None:
        """See whether the agent before left a command to be run."""
        self.pending = self._pending.exists()

    async def finish(self, log: Path, disk: Disk) -> None:
        """Run the command, if there is one, and wait for it, for as long as it may take; raises nothing."""
        if not self.pending:
            return
        try:
            await self._run_pending(log, disk)
        finally:
            self.pending = False  # whatever came of it: a kernel's files wait for it
            disk.do(self._pending.unlink)

    async def _run_pending(self, log: Path, disk: Disk) -> None:
        try:
            found = read_pending(await disk.done(ON_EXIT_DEADLINE, self._pending.read_bytes))
        except (OSError, asyncio.TimeoutError):
            return
        if found is None:
            return
        argv, environment = found
        try:
            process, _ = await spawning.spawn_aside(argv, environment, None, 0o077, log, -1, ON_EXIT_DEADLINE)
        except StartError as error:
            print(f"{argv}: {error}", file=sys.stderr, flush=True)
            return
        code = await _wait(process.poll)
        if code is None:
            print(f"{argv}: still running after {ON_EXIT_DEADLINE:g} s", file=sys.stderr, flush=True)
            processes.end_group(process.pid, signal.SIGKILL)
            await _wait(process.poll)


def read_pending(content: bytes) -> Optional[tuple[list[str], dict[bytes, bytes]]]:
    """Return argv and environment of the command in *content*, None where that is malformed."""
    try:
        wanted = json.loads(content.decode("utf-8", "surrogatepass"))
        argv = items(text(MAX_MESSAGE), least=1)(wanted["argv"])
        values = table(text(MAX_MESSAGE))(wanted["env"])
        return argv, {os.fsencode(name): os.fsencode(value) for name, value in values.items()}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


async def _wait(poll: Callable[[], Optional[int]]) -> Optional[int]:
    deadline = asyncio.get_running_loop().time() + ON_EXIT_DEADLINE
    while (code := poll()) is None and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.02)
    return code

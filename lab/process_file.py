"""Small JSON files in a lab's folder that say which processes something belongs to: the lease, its users, the pool of nodes.

Each is read by processes that come and go, and any of them may be killed at any time. So each is written whole, changed under a
lock of its own, and an entry counts only as long as its process lives (`Process.status`), which its pid alone can't tell.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from lab import files
from lab.names import check_name
from lab.state import LOCK_SECONDS, StateFolder, locked


class ProcessFile:
    """The file *name* in the folder of a lab; its lock is `KIND-LAB`, and *what* is how errors call it."""

    def __init__(self, lab_name: str, name: str, *, kind: str, what: str) -> None:
        self.path: Path = StateFolder(check_name(lab_name)).path / name
        self._folder = StateFolder(lab_name)
        self._lock = f"{kind}-{lab_name}"
        self._what = what

    def locked(self, seconds: float = LOCK_SECONDS) -> AbstractContextManager[None]:
        """Hold the file among all processes of this user; raises LabConflict when it isn't free within *seconds*."""
        return locked(self._lock, what=self._what, seconds=seconds)

    def read(self) -> Any:
        """Return what the file says; None where there is none, or where it is not JSON."""
        try:
            return json.loads(self.path.read_text())
        except (OSError, ValueError):
            return None

    def write(self, content: Any) -> None:
        """Write the file, and make the lab's folder if there is none yet. Raises OSError."""
        self._folder.write(self.path, json.dumps(content))

    def rewrite(self, content: Any) -> None:
        """Write the file where the lab's folder is; raise FileNotFoundError where it is gone.

        A late writer would bring the folder of a removed lab back with `write`.
        """
        files.write(self.path, json.dumps(content))

    def remove(self) -> bool:
        """Delete the file; return True if there was one."""
        there = self.path.exists()
        self.path.unlink(missing_ok=True)
        return there

"""What a node says of itself to the doctor, where its home is at fault."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from eg_distributed.agent import boot, checkup

_RUN = """
import sys, types
boot = types.ModuleType("boot")
exec(open({boot!r}).read(), vars(boot))
exec(open({checkup!r}).read())
PROBE_DEADLINE = 1
{change}
checkup(boot, {{"sentinel": "", "protocol": "4"}})
"""


def report(home: Path, change: str, *around: str) -> dict[str, Any]:
    """Run the checkup in a process of its own, with *change* made to what it stands on; *around* is a command to run it by."""
    code = _RUN.format(boot=boot.__file__, checkup=checkup.__file__, change=change)
    env = {"HOME": str(home), "XDG_CACHE_HOME": str(home)}
    done = subprocess.run(
        [*around, sys.executable, "-I", "-c", code], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_a_node_that_is_well_says_so(short: Path) -> None:
    """The folder is the boot's own, locks work in it, and nothing but the folder was made."""
    told = report(short, "")
    assert told["folder"].startswith(f"{short}/eg-distributed/")
    assert (told["lock"], told["agent"], told["old"]) == ("", False, False)
    assert told["free"] > 0
    assert told["nofile"][1] != 0


def test_the_limit_of_sshds_files_is_told(short: Path) -> None:
    """The limit is that of the nearest sshd above, past the shell; without one it is not known, and that is no error."""
    shell = 'echo sshd > /proc/$$/comm; ulimit -S -n 321; sh -c \'"$@"; exit $?\' sh "$@"; exit $?'
    assert report(short, "", "/bin/sh", "-c", shell, "sh")["sshd_files"] == 321
    assert report(short, "os.getppid = lambda: 0")["sshd_files"] == 0


def test_a_disk_that_hangs_costs_its_deadline(short: Path) -> None:
    """A folder that does not answer, or a lock that is never given, is what is told; the rest is told as well."""
    told = report(short, "boot.folder = lambda: __import__('time').sleep(50)")
    assert told["why"] == "no answer within 1 s"
    told = report(short, "lock = lambda path: __import__('time').sleep(50)")
    assert told["lock"] == "no answer within 1 s"
    assert told["python"]


def test_locks_that_fail_are_told_by_their_error(short: Path) -> None:
    """The system's own word is passed on, whether no place takes a lock or the boot's own lock file fails."""
    told = report(short, "def flock(*arguments): raise OSError(37, 'No locks available')\nfcntl.flock = flock")
    assert "locks fail there (No locks available)" in told["why"]
    told = report(short, "def lock(path): raise OSError(37, 'No locks available')")
    assert "No locks available" in told["lock"]

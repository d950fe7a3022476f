"""Find changes of a module that no test notices: `nox -s mutants`, with cosmic-ray.

    python scripts/mutants.py [--minutes 30] [--sample 100] [MODULE …]

Each change (another operator, another number, a loop that does not run) is made in a copy of the tree, and the module's tests run
there. Those that no test notices are printed with their diff: each is a test that is missing, or no change of what the module
does. What has been tried is kept in `.mutants`, and the next run goes on with the rest; remove that after
the code has changed. A module has hundreds of changes, and each takes as long as its tests: `--sample` draws some of them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / ".mutants"
MODULES = {
    "balancing": ("balancing.py", "test_balancing.py"),
    "turns": ("turns.py", "test_turns.py"),
    "streams": ("streams.py", "test_streams.py", "agent/test_streams.py"),
    "node": ("node.py", "test_node_in_time.py", "test_node.py", "test_malformed.py", "test_abandoned.py"),
    "kernel": ("kernel.py", "test_kernel_in_time.py", "test_kernel.py"),
    "server": ("agent/server.py", "agent/test_server_in_time.py", "agent/test_server.py", "test_malformed.py"),
}
"""Each module, below eg_distributed/, and the tests that are to notice, below tests/unit/."""
_PLUGINS = ("pytest_asyncio.plugin", "pytest_timeout", "xdist")
"""What our options of pytest need; all others would take longer to import than most tests to run."""
_PATIENCE = 5
"""A change that makes the tests take longer than so many times what they take without is noticed: a loop without an end, say."""


def main(arguments: Sequence[str]) -> int:
    """Try the changes of all modules, or of those that are named; return 1 if the tests of one fail without any."""
    parser = argparse.ArgumentParser(prog="python scripts/mutants.py")
    parser.add_argument("--minutes", type=float, default=30, help="for each module (default: %(default)s)")
    parser.add_argument("--sample", type=int, default=0, help="changes to draw of each module's (default: all)")
    parser.add_argument("module", nargs="*", choices=[[], *MODULES], help=f"{', '.join(MODULES)}; default: all")
    options = parser.parse_args(arguments)
    KEPT.mkdir(exist_ok=True)
    return max(try_changes(name, options.minutes, options.sample) for name in options.module or MODULES)


def draw(session: Path, count: int) -> None:
    """Leave *count* of the changes that *session* lists, drawn by chance but the same each time."""
    with contextlib.closing(sqlite3.connect(session)) as database, database:
        listed = sorted(row[0] for row in database.execute("SELECT job_id FROM work_items"))
        places = {  # ids are by chance; what they change is not
            row[0]: row[1:]
            for row in database.execute(
                "SELECT job_id, start_pos_row, start_pos_col, operator_name, occurrence FROM mutation_specs"
            )
        }
        listed.sort(key=lambda job: places[job])
        left_out = set(listed) - set(random.Random(count).sample(listed, min(count, len(listed))))
        for deletion in ("DELETE FROM mutation_specs WHERE job_id = ?", "DELETE FROM work_items WHERE job_id = ?"):
            database.executemany(deletion, [(job,) for job in left_out])


def try_changes(name: str, minutes: float, sample: int) -> int:
    """Try the changes of one module for so long, or *sample* of them (0: all), and print those that no test noticed."""
    with tempfile.TemporaryDirectory(prefix="mutants") as folder:
        copy = Path(folder)
        for part in ("eg_distributed", "tests", "lab"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        module, *tests = MODULES[name]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        command += [word for plugin in _PLUGINS for word in ("-p", plugin)] + [f"tests/unit/{each}" for each in tests]
        environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        began = os.times().elapsed
        if subprocess.run(command, cwd=copy, env=environment, check=False).returncode:
            print(f"the tests of {name} fail without any change")
            return 1
        seconds = (os.times().elapsed - began) * _PATIENCE + 10
        (copy / "cosmic-ray.toml").write_text(
            f'[cosmic-ray]\nmodule-path = ["eg_distributed/{module}"]\ntimeout = {seconds:.1f}\nexcluded-modules = []\n'
            f'test-command = "{" ".join(command)}"\n[cosmic-ray.distributor]\nname = "local"\n',
            "utf-8",
        )
        session = KEPT / f"{name}.sqlite"

        def run(*words: str, timeout: float | None = None) -> None:
            subprocess.run(words, cwd=copy, env=environment, check=True, timeout=timeout)

        if not session.exists():
            run("cosmic-ray", "init", "cosmic-ray.toml", str(session))
            if sample:
                draw(session, sample)
        try:
            run("cosmic-ray", "exec", "cosmic-ray.toml", str(session), timeout=minutes * 60)
        except subprocess.TimeoutExpired:
            print(f"{name}: not all changes were tried within {minutes:g} minutes; the next run goes on")
        run("cr-report", "--surviving-only", "--show-diff", str(session))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

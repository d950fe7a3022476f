"""Find changes of a module that no test notices: `nox -s mutants`; cosmic-ray knows which changes there are.

    python scripts/mutants.py [--minutes 30] [--sample 100] [MODULE …]

Each change (a condition turned round, another operator or number, a loop that does not run) is made in a copy of the tree, and
the module's tests run there: first those in virtual time, which take a second, then the others. What no test notices is printed
with its diff: each is a test that is missing, or no change of what the module does. What has been tried is kept in `.mutants`,
and the next run goes on with the rest; remove that after the code has changed. `--sample` draws some of a module's hundreds.

Each run of tests is a fork of this process, which has already imported what tests need of others: that takes longer than they do.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import importlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / ".mutants"
MODULES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "balancing": ("balancing.py", ("test_balancing.py",), ()),
    "turns": ("turns.py", ("test_turns.py",), ()),
    "streams": ("streams.py", ("test_streams.py",), ("agent/test_streams.py",)),
    "node": ("node.py", ("test_node_in_time.py",), ("test_node.py", "test_malformed.py", "test_abandoned.py")),
    "kernel": ("kernel.py", ("test_kernel_in_time.py",), ("test_kernel.py", "test_leases.py")),
    "server": (
        "agent/server.py",
        ("agent/test_server_in_time.py",),
        ("agent/test_server.py", "agent/test_leases.py", "test_malformed.py"),
    ),
    "agent-streams": ("agent/streams.py", ("agent/test_streams.py",), ("agent/test_kept_output.py",)),
}
"""Each module, below eg_distributed/, and the tests that are to notice, below tests/unit/: the quick ones, and the others."""
_KINDS = re.compile(
    r"core/(AddNot|ReplaceUnaryOperator_Delete_Not|ReplaceAndWithOr|ReplaceOrWithAnd|ReplaceTrueWithFalse|ReplaceFalseWithTrue"
    r"|ExceptionReplacer|ZeroIterationForLoop|ReplaceBreakWithContinue|ReplaceContinueWithBreak|NumberReplacer"
    r"|ReplaceComparisonOperator_(Lt_LtE|LtE_Lt|Gt_GtE|GtE_Gt|Eq_NotEq|NotEq_Eq|Eq_GtE|NotEq_GtE|Is_IsNot|IsNot_Is)"
    r"|ReplaceBinaryOperator_(Sub_Add|Add_Sub|Mul_Div|BitOr_BitAnd|BitAnd_BitOr))"
)
"""The changes that are tried. cosmic-ray replaces each operator by each other one, and what notices one of these notices all."""
_PLUGINS = ("pytest_asyncio.plugin", "pytest_timeout", "xdist")
"""What our options of pytest need; all others would take longer to import than most tests to run."""
_IMPORTED = ("pytest", *_PLUGINS, "asyncssh", "hypothesis", "traitlets.config")
_PATIENCE = 5
"""A change that makes the tests take longer than so many times what they take without is noticed: a loop without an end, say."""


class Change(NamedTuple):
    """One change, as cosmic-ray names it, and the line that it is in."""

    operator: str
    arguments: str
    occurrence: int
    line: int


def main(arguments: Sequence[str]) -> int:
    """Try the changes of all modules, or of those that are named; return 1 if the tests of one fail without any."""
    parser = argparse.ArgumentParser(prog="python scripts/mutants.py")
    parser.add_argument("--minutes", type=float, default=30, help="for each module (default: %(default)s)")
    parser.add_argument("--sample", type=int, default=0, help="changes to draw of each module's (default: all)")
    parser.add_argument("module", nargs="*", choices=[[], *MODULES], help=f"{', '.join(MODULES)}; default: all")
    options = parser.parse_args(arguments)
    KEPT.mkdir(exist_ok=True)
    os.environ |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True  # a change of the same length within a second would not be seen
    for module in _IMPORTED:
        importlib.import_module(module)
    return max(try_changes(name, options.minutes, options.sample) for name in options.module or MODULES)


def changes_of(module: str, source: str, sample: int) -> list[Change]:
    """Return what can be changed in *module*, or *sample* of it (0: all), drawn by chance but the same each time."""
    with tempfile.TemporaryDirectory(prefix="mutants") as folder:
        configuration, session = Path(folder, "cosmic-ray.toml"), Path(folder, "session.sqlite")
        configuration.write_text(
            f'[cosmic-ray]\nmodule-path = ["eg_distributed/{module}"]\ntimeout = 1.0\nexcluded-modules = []\n'
            'test-command = ""\n[cosmic-ray.distributor]\nname = "local"\n',
            "utf-8",
        )
        subprocess.run(("cosmic-ray", "init", str(configuration), str(session)), cwd=ROOT, check=True)
        with contextlib.closing(sqlite3.connect(session)) as database:
            rows = database.execute(
                "SELECT operator_name, operator_args, occurrence, start_pos_row, start_pos_col FROM mutation_specs"
            ).fetchall()
    without = [*places_without_effect(source)]
    found = sorted(
        Change(operator, arguments, occurrence, line)
        for operator, arguments, occurrence, line, column in rows
        if _KINDS.fullmatch(operator) and not any(begin <= (line, column) < end for begin, end in without)
    )
    random.Random(1).shuffle(found)
    return found[:sample] if sample else found


def places_without_effect(source: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Yield what is not changed of *source*: annotations, which nothing evaluates, and constants, which tests take from there."""
    tree = ast.parse(source)
    found: list[ast.AST | None] = [node for node in tree.body if isinstance(node, (ast.Assign, ast.AnnAssign))]
    for node in ast.walk(tree):
        found += [getattr(node, "annotation", None), getattr(node, "returns", None)]
    for each in found:
        if isinstance(each, (ast.expr, ast.stmt)):
            yield (each.lineno, each.col_offset), (each.end_lineno or 0, each.end_col_offset or 0)


def changed(source: str, change: Change) -> str:
    """Return *source* with *change* made."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    arguments = json.loads(json.loads(change.arguments))  # a text of JSON, in JSON
    return mutate_code(source, get_operator(change.operator)(**arguments), change.occurrence) or source


def run_tests(tree: Path, tests: Sequence[str], seconds: float, said: Path) -> bool:
    """Return True if *tests* pass in *tree* within *seconds*; what they say is in *said*."""
    process = os.fork()
    if not process:
        run_as_child(tree, tests, said)
    status, until = None, time.monotonic() + seconds
    while status is None and time.monotonic() < until:
        ended, code = os.waitpid(process, os.WNOHANG)
        status = code if ended else None
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):  # with all that the tests have started and not ended
        os.killpg(process, signal.SIGKILL)
    if status is None:
        os.waitpid(process, 0)
    return status == 0


def run_as_child(tree: Path, tests: Sequence[str], said: Path) -> None:
    """Run *tests* in this process, and end it; its code is pytest's, or 70 where it is not *tree* that is tested."""
    import pytest

    code = 70
    try:
        os.setsid()
        os.chdir(tree)
        sys.path[:] = [str(tree), *(each for each in sys.path if each and not (Path(each) / "eg_distributed").exists())]
        output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for standard in (1, 2):
            os.dup2(output, standard)
        plugins = [word for plugin in _PLUGINS for word in ("-p", plugin)]
        ended = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *plugins, *(f"tests/unit/{each}" for each in tests)])
        if str(sys.modules["eg_distributed"].__file__).startswith(str(tree)):
            code = int(ended)
    finally:
        os._exit(code)


def try_changes(name: str, minutes: float, sample: int) -> int:
    """Try the changes of one module for so long, or *sample* of them (0: all), and print those that no test noticed."""
    module, *batches = MODULES[name]
    source = (ROOT / "eg_distributed" / module).read_text("utf-8")
    changes = changes_of(module, source, sample)
    kept = KEPT / f"{name}.jsonl"
    tried: dict[tuple[str, int], bool] = {}
    if kept.exists():
        for line in kept.read_text("utf-8").splitlines():
            operator, occurrence, is_noticed = json.loads(line)
            tried[operator, occurrence] = is_noticed
    with tempfile.TemporaryDirectory(prefix="mutants") as folder:
        tree, said = Path(folder, "tree"), Path(folder, "said")
        for part in ("eg_distributed", "tests", "lab"):
            shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", tree)
        patience = []
        for tests in batches:
            began = time.monotonic()
            if tests and not run_tests(tree, tests, 3600, said):
                print(f"the tests of {name} fail without any change:\n{said.read_text('utf-8')}")
                return 1
            patience.append((time.monotonic() - began) * _PATIENCE + 10)
        until = time.monotonic() + minutes * 60
        target = tree / "eg_distributed" / module
        with kept.open("a", encoding="utf-8") as file:
            for change in changes:
                if (change.operator, change.occurrence) in tried or time.monotonic() > until:
                    continue
                target.write_text(changed(source, change), "utf-8")
                is_noticed = not all(
                    run_tests(tree, tests, seconds, said)
                    for tests, seconds in zip(batches, patience, strict=True)
                    if tests
                )
                tried[change.operator, change.occurrence] = is_noticed
                print(json.dumps([change.operator, change.occurrence, is_noticed]), file=file, flush=True)
    report(name, module, source, changes, tried)
    return 0


def report(name: str, module: str, source: str, changes: list[Change], tried: dict[tuple[str, int], bool]) -> None:
    """Print the changes that were not noticed, and how many there are."""
    left = [each for each in changes if not tried.get((each.operator, each.occurrence), True)]
    for change in sorted(left, key=lambda each: each.line):
        print(f"\n{module}:{change.line}: {change.operator} {change.occurrence}")
        lines = difflib.unified_diff(source.splitlines(), changed(source, change).splitlines(), lineterm="", n=1)
        print("\n".join([*lines][3:]))
    of_these = sum((each.operator, each.occurrence) in tried for each in changes)
    print(f"\n{name}: {len(left)} of {of_these} changes were not noticed; {len(changes) - of_these} were not tried")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

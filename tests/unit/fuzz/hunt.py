"""Hunt for inputs that a parser does not expect, guided by the code that they reach: `nox -s fuzz`, with atheris.

    python -m tests.unit.fuzz.hunt [--seconds 20] [--kept FOLDER] [TARGET …]

Each target has a process of its own, since libFuzzer ends the one that it runs in; it may take 2 GB, and 10 s for one input.
Inputs that reach something new are kept in FOLDER for the next hunt. One that gets through is printed, and kept there as
`crash-…`; it becomes an entry of `FOUND` in test_targets.py when its fault is mended.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str]) -> int:
    """Hunt through all targets, or those that are named; return 1 if anything got through."""
    parser = argparse.ArgumentParser(prog="python -m tests.unit.fuzz.hunt")
    parser.add_argument("--seconds", type=int, default=20, help="for each target (default: %(default)s)")
    parser.add_argument("--kept", type=Path, default=Path(".fuzz"), help="folder of inputs (default: %(default)s)")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("target", nargs="*")
    options = parser.parse_args(arguments)
    if options.here:
        hunt(options.target[0], options.kept / options.target[0], options.seconds)
    from .targets import TARGETS

    if unknown := set(options.target) - TARGETS.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}; targets are {', '.join(TARGETS)}")
    failed = []
    for name in options.target or TARGETS:
        print(f"== {name}", flush=True)
        own = [sys.executable, "-m", "tests.unit.fuzz.hunt", "--here", f"--seconds={options.seconds}"]
        if subprocess.run([*own, f"--kept={options.kept}", name], check=False).returncode:
            failed.append(name)
    print(f"something got through {len(failed)} of {len(options.target or TARGETS)} targets", *failed, sep="\n  ")
    return 1 if failed else 0


def hunt(name: str, kept: Path, seconds: int) -> None:
    """Feed one target until its time is over; does not return."""
    import atheris

    with atheris.instrument_imports(include=["eg_distributed"]):
        from .targets import TARGETS

    target = TARGETS[name]
    kept.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (kept / f"seed-{number}").write_bytes(seed)
    options = [
        f"-max_total_time={seconds}",
        "-timeout=10",
        "-rss_limit_mb=2048",
        "-max_len=65536",
        "-print_final_stats=0",
    ]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={kept}/", "-verbosity=0", str(kept)], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

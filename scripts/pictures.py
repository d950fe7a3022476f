"""Make the picture of a lab's session in the README: `uv run python -m scripts.pictures docs/lab-session.svg`.

The commands are run as they are shown, on a lab of their own, which is removed again. (The pictures of JupyterLab are made by
its tests: `nox -s jupyterlab -- tests/jupyterlab --pictures docs`.)
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = 96
SECONDS = 600
SESSION = (
    "uv run lab up --with jupyterlab",
    "uv run lab ssh node1 -- hostname",
    "uv run lab fault add pause node2 --for 20s",
    "uv run lab status",
    "uv run lab down",
)
_FONTS = re.compile(r"\s*@font-face \{.*?\}\n", re.DOTALL)
"""Rich names fonts on another site, which no picture in a page may load."""


def lines(command: str) -> Iterator[Text]:
    """Run *command* and yield what its terminal shows in the end: steps that are done, and its answer."""
    yield Text.assemble(("$ ", "bold green"), (command, "bold"))
    done = subprocess.run(
        command.split(),
        cwd=ROOT,
        env={**os.environ, "LAB_NAME": "picture", "COLUMNS": str(COLUMNS), "VIRTUAL_ENV": ""},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )
    if done.returncode not in {0, 1}:  # `status` ends with 1 where a machine is paused
        raise SystemExit(f"{command} failed: {done.stdout}")
    for line in done.stdout.splitlines():
        if line.startswith("... "):  # gives way to its `✓` on a terminal
            continue
        shown = re.sub(r"token=\w+", "token=…", line).replace(f"{Path.home()}/", "~/")
        yield Text(shown, "green" if line.startswith("✓") else "", no_wrap=True, overflow="ellipsis")
    yield Text()


def main(arguments: Sequence[str]) -> int:
    """Write the picture to the file that *arguments* name."""
    if len(arguments) != 1:
        print("usage: python -m scripts.pictures FILE.svg", file=sys.stderr)
        return 2
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True, color_system="truecolor")
        for command in SESSION:
            for line in lines(command):
                console.print(line)
    picture = console.export_svg(title="a lab, and a host that hangs", unique_id="lab")
    Path(arguments[0]).write_text(_FONTS.sub("\n", picture), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

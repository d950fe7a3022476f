"""Calls the command `lab` in this process."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lab import cli


def run(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of `lab ARGUMENTS`."""
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    captured = capsys.readouterr()
    return int(caught.value.code or 0), captured.out, captured.err

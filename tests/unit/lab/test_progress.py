import io
import re

import pytest
from rich.console import Console

from lab.progress import StderrProgress


def test_off_a_terminal_progress_is_plain_lines() -> None:
    """Each step is a line when it begins and one with its duration when it is over; details are dropped."""
    out = io.StringIO()
    progress = StderrProgress(Console(file=out, force_terminal=False, width=200))
    progress.step("network")
    progress.detail("layer 3 of 9")
    progress.step("nodes [3]")
    progress.note("removing node4.lab.test")
    progress.close(ok=False)
    text = re.sub(r"\(\d+\.\d s\)", "(t)", out.getvalue())
    assert text.splitlines()[::2] == ["... network", "... nodes [3]", text.splitlines()[-1]]
    assert "network (t)" in text
    assert "layer" not in text
    assert "removing node4.lab.test" in text
    assert text.splitlines()[-1] in {"✗ nodes [3] (t)", "failed nodes [3] (t)"}
    assert "\x1b" not in text


def test_on_a_terminal_progress_is_live(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done becomes a line with its duration, what is going on is redrawn; NO_COLOR takes the colours away."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    out = io.StringIO()
    progress = StderrProgress(Console(file=out, force_terminal=True, width=100))
    progress.step("network")
    progress.detail("layer 3 of 9")
    progress.step("nodes")
    progress.close(ok=True)
    text = out.getvalue()
    assert "network (0.0 s)" in text
    assert "nodes (0.0 s)" in text
    assert "... network" not in text
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", text)

"""What a launcher's errors say of the kernel's log."""

import re
from pathlib import Path

import pytest

import eg_distributed
from eg_distributed.launchers.spark.errors import LaunchError


def test_the_kernels_log_comes_with_the_command_that_prints_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A remedy that points to the log names the command, with the kernel's id where it is known."""
    monkeypatch.setenv("KERNEL_ID", "k-1")
    said = str(LaunchError("the JVM ended", "see the kernel's log for what it said", "node1"))
    assert said == "node1: the JVM ended; see the kernel's log (`jupyter distributed logs k-1`) for what it said"
    monkeypatch.delenv("KERNEL_ID")
    assert "`jupyter distributed logs KERNEL`" in str(LaunchError("x", "see the kernel's log", "node1"))


def test_no_message_points_to_the_log_without_the_command() -> None:
    """Messages of the R launcher, which are not made by LaunchError, have the command as well."""
    files = list(Path(eg_distributed.__file__).parent.rglob("*.R"))
    told = [line for file in files for line in file.read_text().splitlines() if "see the kernel's log" in line]
    assert told
    assert [line for line in told if not re.search(r"see the kernel's log \(\", \.?log_command\(\)", line)] == []

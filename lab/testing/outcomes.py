"""How a test that uses the lab ends: skipped for what a local lab can't have, failed for what it left, with its timeline.

A part of the pytest plugin, which registers it. Imported by every pytest of this environment: it loads nothing of the lab.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Final, TypeVar

import pytest

if TYPE_CHECKING:
    from lab.testing.visit import Visit

T = TypeVar("T")

visit_key: Final[pytest.StashKey[Visit]] = pytest.StashKey()
"""A test's stay in the lab; only tests that use the lab have one."""
leaked_key: Final = pytest.StashKey[bool]()
"""Set when a test has left something behind."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, T, T]:
    """Skip a test whose fixtures ask a local lab for what it can't have."""
    return (yield from _skipping(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, T, T]:
    """Skip a test that asks a local lab for what it can't have."""
    return (yield from _skipping(item))


def _skipping(item: pytest.Item) -> Generator[None, T, T]:
    """Run what the hook wraps, and skip the test if it fails for what a local lab lacks."""
    try:
        return (yield)
    except Exception as error:  # tests raise anything; to name the lab's own error here would load the lab everywhere
        _skip_if_unfit(item, error)
        raise


def _skip_if_unfit(item: pytest.Item, error: Exception) -> None:
    """Skip with the lab's reason if *error* says what only an engine could do; in a lab of containers it is a failure."""
    if visit_key not in item.stash:
        return
    from lab.errors import EnvironmentUnfit

    found = item.stash[visit_key].lab
    if isinstance(error, EnvironmentUnfit) and found is not None and not found.is_whole:
        pytest.skip(str(error))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the timeline of what happened meanwhile into the report of a failed test, and mark what was left behind."""
    report = yield
    if report.when == "teardown" and report.failed and item.stash.get(leaked_key, False):
        report.lab_leaked = True  # type: ignore[attr-defined]  # reports carry what plugins put there, through xdist too
    if report.failed and visit_key in item.stash:
        told = item.stash[visit_key].report()
        if told:
            report.sections.append(("lab timeline (UTC)", told))
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(report: pytest.CollectReport | pytest.TestReport) -> tuple[str, str, str] | None:
    """Call a test that left something behind FAILED: to pytest, what goes wrong after a test's end is an ERROR of a fixture."""
    return ("failed", "F", "FAILED") if report.failed and getattr(report, "lab_leaked", False) else None

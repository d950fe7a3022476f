"""Seeds of the simulation: those that every run has, or the ones that `--seed` names."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

SEEDS = (1, 2, 3)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--seed`."""
    parser.addoption("--seed", action="append", type=int, default=[], help="simulate this seed; may be repeated")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what takes a `seed` for each of them."""
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", metafunc.config.getoption("--seed", []) or SEEDS)


@pytest.fixture(autouse=True)
def collected_seldom() -> Iterator[None]:
    """Look for garbage seldom: a site is made of millions of objects that stay."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, 50, 100)
    yield
    gc.set_threshold(*before)
    gc.collect()

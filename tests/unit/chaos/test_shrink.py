"""What is shrunk still fails, and has nothing in it that it can fail without."""

from __future__ import annotations

from itertools import combinations

import pytest

from tests.chaos.shrink import ddmin


@pytest.mark.parametrize("needed", [*combinations(range(12), 1), *combinations(range(12), 2), (0, 5, 11), (3, 4, 5, 6)])
async def test_what_is_needed_is_left(needed: tuple[int, ...]) -> None:
    """Of twelve steps those are left, in their order, without which it does not fail."""

    async def fails(steps: list[int]) -> bool:
        return set(needed) <= set(steps)

    assert await ddmin(range(12), fails) == list(needed)


async def test_the_tries_have_a_bound() -> None:
    """Each try is a minute on a lab: there are no more than were asked for, and what is left by then still fails."""
    tried: list[list[int]] = []

    async def fails(steps: list[int]) -> bool:
        tried.append(steps)
        return {7, 70} <= set(steps)

    left = await ddmin(range(100), fails, tries=9)
    assert len(tried) == 9
    assert {7, 70} <= set(left)
    assert len(left) < 100


async def test_one_step_is_as_short_as_it_gets() -> None:
    """Nothing is tried where there is nothing to leave out."""

    async def fails(steps: list[int]) -> bool:
        raise AssertionError(steps)

    assert await ddmin([1], fails) == [1]

"""A thousand hosts, ten gateways, a hundred thousand kernels: run by `nox -s simulation`, alone."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path

import pytest

from .site import BACK_WITHIN, Site
from .world import World

HOSTS, GATEWAYS, KERNELS = 1000, 10, 100_000
KERNEL_KILOBYTES = 60.0
"""What a kernel may take of this process, which is all gateways and all agents, with its share of everything else."""


@pytest.mark.skipif(not os.environ.get("SIMULATE_AT_SCALE"), reason="takes minutes: `nox -s simulation`")
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_kernels(tmp_path: Path) -> None:
    """They start at once, spread evenly, outlive an outage of everything, and every host is back soon, with one login."""
    gc.disable()  # nothing that counts is garbage before the end
    began = time.perf_counter()
    world = World(1, hosts=HOSTS, gateways=GATEWAYS, folder=tmp_path, orphan_timeout=0.0)
    site = Site(world, kernels=KERNELS, batches=100)
    figures = site.figures
    try:
        world.run(lambda _: site.live())
    finally:
        gc.enable()
        print(f"{HOSTS} hosts, {GATEWAYS} gateways, {KERNELS} kernels: {time.perf_counter() - began:.0f} s")
        print(figures.show())
    assert figures.started == KERNELS
    assert max(figures.back) <= BACK_WITHIN
    assert figures.logins_twice == 0
    assert figures.memory * 1024 / KERNELS < KERNEL_KILOBYTES

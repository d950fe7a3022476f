"""A thousand hosts, ten gateways, a hundred thousand kernels: run by `nox -s simulation`, alone."""

from __future__ import annotations

import gc
import logging
import os
import time
from pathlib import Path

import pytest

from .site import BACK_WITHIN, SHARED, Site
from .world import World

HOSTS, GATEWAYS, KERNELS = 1000, 10, 100_000
KERNEL_KILOBYTES = 60.0
"""What a kernel may take of this process, which is all gateways and agents, with its share of everything else."""
SPREAD = 2 * SHARED
"""By how many kernels the hosts of a set may differ: of starts by other gateways in the same moment none knows."""
CPU_SECONDS = 240.0
"""What it may compute: twice what it is to take on a quiet machine. Beside other work a processor does less in a second."""


@pytest.mark.skipif(not os.environ.get("SIMULATE_AT_SCALE"), reason="takes minutes: `nox -s simulation`")
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_kernels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They start a thousand at a time, spread evenly, and outlive outages of all hosts, of some, of a gateway, and the end of all
    gateways' processes at once: everybody is back soon, with one login for each host, and no line of output is lost."""
    caplog.set_level(logging.ERROR)  # pytest keeps what is logged: a line for each start, and each attempt to come back
    gc.disable()  # nothing that counts is garbage before the end
    began, computed = time.perf_counter(), time.process_time()
    world = World(1, hosts=HOSTS, gateways=GATEWAYS, folder=tmp_path, orphan_timeout=0.0)
    world.check_seconds = 5.0
    site = Site(world, kernels=KERNELS, batches=100)
    figures = site.figures
    try:
        world.run(lambda _: site.live())
    finally:
        gc.enable()
        seconds, computed = time.perf_counter() - began, time.process_time() - computed
        print(
            f"{HOSTS} hosts, {GATEWAYS} gateways, {KERNELS} kernels: {seconds:.0f} s, of which {computed:.0f} s computing"
        )
        print(figures.show())
    assert figures.started == KERNELS
    assert max(figures.spread_while_starting, *figures.spread) <= SPREAD
    assert figures.longest_back <= BACK_WITHIN
    assert figures.logins_twice == 0
    assert figures.memory["lose_one_gateway"] * 1024 / KERNELS < KERNEL_KILOBYTES
    assert computed < CPU_SECONDS

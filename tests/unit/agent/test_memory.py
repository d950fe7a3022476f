"""The agent's memory."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.agents import Visitor, standin

CHUNKS = """
import sys
from pathlib import Path
from eg_distributed.agent import memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

memory.return_what_is_freed()
before = resident()
for _ in range(3):
    kept = [b"x" * (1 << 20)]  # the larger ones that are freed, the larger what glibc then has in its heap
    kept.clear()
    kept = [b"x" * (256 * 1024) for _ in range(400)]
    last = kept[-1]  # at the top of the heap, which could not shrink below it
    kept.clear()
print(resident() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library")
def test_freed_chunks_go_back_to_the_system() -> None:
    """A hundred megabytes of kept output, once freed, are no longer the process's, though a later piece still lives."""
    run = subprocess.run([sys.executable, "-c", CHUNKS], capture_output=True, text=True, timeout=60, check=True)
    assert int(run.stdout) < 20 * 1024 * 1024


PIECES = """
from pathlib import Path
from eg_distributed.agent import memory
from eg_distributed.connections import AT_ONCE
from eg_distributed.streams import Budget, Flow

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

memory.return_what_is_freed()
budget = Budget(1 << 30)
before = resident()
flow = Flow(1 << 40, budget)
for _ in range(1600):
    flow.push(b"x" * AT_ONCE)
last = b"x" * 100_000  # at the top of the heap
memory.give_back_after_a_flood(budget)
kept = resident() - before
flow.leave_budget()
flow._chunks.clear()
memory.give_back_after_a_flood(budget)
print(kept, resident() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="another C library")
def test_what_a_flood_leaves_goes_back_to_the_system() -> None:
    """Once a hundred megabytes of output in small pieces are sent, they are no longer the process's."""
    run = subprocess.run([sys.executable, "-c", PIECES], capture_output=True, text=True, timeout=60, check=True)
    kept, left = map(int, run.stdout.split())
    assert kept > 90 * 1024 * 1024
    assert left < 10 * 1024 * 1024


async def test_kernels_do_not_inherit_it(visitor: Visitor) -> None:
    """How the agent's memory is managed is no matter of the kernels': nothing of it is in their environment."""
    await visitor.ready("k1", standin("say:{connection_file}"))
    pid = (await visitor.request("list"))[0]["pid"]
    assert b"MALLOC" not in Path(f"/proc/{pid}/environ").read_bytes()

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


async def test_kernels_do_not_inherit_it(visitor: Visitor) -> None:
    """How the agent's memory is managed is no matter of the kernels': nothing of it is in their environment."""
    await visitor.ready("k1", standin("say:{connection_file}"))
    pid = (await visitor.request("list"))[0]["pid"]
    assert b"MALLOC" not in Path(f"/proc/{pid}/environ").read_bytes()

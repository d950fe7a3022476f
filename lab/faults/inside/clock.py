"""Make one process see another time of day: `clock.py jump NOTE SECONDS PATTERN`, `clock.py back NOTE`.

Containers share the host's clock, and a time namespace has no time of day. But processes ask the kernel's vDSO, code that
every process has in its own memory: in one process it is replaced by the system call and an addition. Needs the right to
write other processes' memory; knows x86-64. A process that makes the bare system call itself isn't met.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import struct
import sys
import time
from pathlib import Path

SECONDS = 2.0


def code(name: str, offset: int) -> bytes:
    """Return the function that stands in for the vDSO's *name*, adding *offset* seconds to the time of day."""
    rcx = b"\x48\xb9" + struct.pack("<q", offset)  # mov rcx, offset
    if name == "clock_gettime":  # (edi clock, rsi timespec): 228; CLOCK_REALTIME 0, CLOCK_REALTIME_COARSE 5
        head = b"\xb8\xe4\0\0\0\x0f\x05\x85\xc0\x75\x16\x85\xff\x74\x05\x83\xff\x05\x75\x0d"
        return head + rcx + b"\x48\x01\x0e\xc3"
    if name == "gettimeofday":  # (rdi timeval, rsi zone): 96
        return b"\xb8\x60\0\0\0\x0f\x05\x85\xc0\x75\x12\x48\x85\xff\x74\x0d" + rcx + b"\x48\x01\x0f\xc3"
    # time (rdi time_t or null): 201
    return b"\xb8\xc9\0\0\0\x0f\x05" + rcx + b"\x48\x01\xc8\x48\x85\xff\x74\x03\x48\x89\x07\xc3"


def functions(image: bytes) -> dict[str, tuple[int, int]]:
    """Return address (from the image's start) and size of the vDSO's functions."""
    table, size, count = struct.unpack_from("<Q", image, 32)[0], *struct.unpack_from("<HH", image, 54)
    dynamic: dict[int, int] = {}
    for number in range(count):
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", image, table + number * size)
        if kind == 2:
            for place in range(offset, offset + length, 16):
                tag, value = struct.unpack_from("<QQ", image, place)
                dynamic.setdefault(tag, value)
    strings, symbols = dynamic[5], dynamic[6]
    found = {}
    # The strings stand behind the symbols, which say nowhere how many they are.
    for place in range(symbols, max(symbols, strings), 24):
        name, _, _, _, value, length = struct.unpack_from("<IBBHQQ", image, place)
        text = image[strings + name : image.index(b"\0", strings + name)].decode("ascii", "replace")
        if text.startswith("__vdso_"):
            found[text[7:]] = (value, length)
    return found


def stat(pid: int) -> tuple[str, int, int]:
    """Return state, parent and start time."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], int(fields[1]), int(fields[19])


def find(pattern: str) -> int:
    """Return the one process whose command line holds *pattern*; not one of those that look for it."""
    own, pid = set(), os.getpid()
    while pid:
        own.add(pid)
        pid = stat(pid)[1]
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in own:
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if pattern == entry.name or (not pattern.isdigit() and pattern in line):
                found.append(int(entry.name))
    if len(found) != 1:
        sys.exit(f"{len(found)} processes match {pattern!r}, and it has to be one")
    return found[0]


def stopped(pid: int, spans: list[tuple[int, int]]) -> None:
    """Stop the process at a moment when none of its threads is in the code that is to be changed, or exit with the reason."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        os.kill(pid, signal.SIGSTOP)
        try:
            if out_of(pid, spans, deadline):
                return
        except FileNotFoundError:
            continue  # a thread has ended since it was listed
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.003)
    sys.exit(f"process {pid} did not stop, or was never out of the clock's code")


def out_of(pid: int, spans: list[tuple[int, int]], deadline: float) -> bool:
    """Wait until all threads of a process stand still; return whether none is in *spans*, and all stand."""
    tasks = list(Path(f"/proc/{pid}/task").iterdir())
    while any(thread_state(task) not in "Tt" for task in tasks):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.001)
    places = [(task / "syscall").read_text().split()[-1] for task in tasks]
    return not any(p.startswith("0x") and any(a <= int(p, 16) < b for a, b in spans) for p in places)


def thread_state(task: Path) -> str:
    """Return a thread's state."""
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


def patch(pid: int, pieces: list[tuple[int, bytes]], was: str) -> None:
    """Write *pieces* into the process's memory between two of its instructions; it runs on unless it *was* stopped."""
    try:
        stopped(pid, [(address, address + len(piece)) for address, piece in pieces])
        with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
            for address, piece in pieces:
                memory.seek(address)
                memory.write(piece)
    finally:
        if was not in "Tt":
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def jump(note: str, offset: int, pattern: str) -> None:
    """Change the clock's code and note what stood there."""
    if platform.machine() != "x86_64":
        sys.exit(f"its code is known for x86_64, not for {platform.machine()}")
    pid = find(pattern)
    line = next((x for x in Path(f"/proc/{pid}/maps").read_text().splitlines() if x.endswith("[vdso]")), "")
    if not line:
        sys.exit(f"process {pid} has no vDSO")
    begin, end = (int(part, 16) for part in line.split()[0].split("-"))
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        memory.seek(begin)
        image = memory.read(end - begin)
    old, new = [], []
    there = functions(image)
    for name in ("clock_gettime", "gettimeofday", "time"):
        address, size = there.get(name, (0, 0))
        piece = code(name, offset)
        if not size:
            continue
        if size < len(piece):
            sys.exit(f"the kernel's {name} is too short to be replaced")
        old.append((begin + address, image[address : address + len(piece)].hex()))
        new.append((begin + address, piece))
    if not new:
        sys.exit("the kernel's vDSO tells no time")
    was, _, started = stat(pid)
    Path(note).write_text(json.dumps({"pid": pid, "started": started, "was": was, "old": old}))
    patch(pid, new, was)


def back(note: str) -> None:
    """Put back what stood there, if the process still runs."""
    if not Path(note).exists():
        return
    told = json.loads(Path(note).read_text())
    try:
        if stat(told["pid"])[2] == told["started"]:
            # As it was before the jump: who was killed in the middle of that has left it stopped.
            patch(told["pid"], [(address, bytes.fromhex(text)) for address, text in told["old"]], told["was"])
    except (FileNotFoundError, ProcessLookupError):
        return


if __name__ == "__main__":
    if sys.argv[1] == "jump":
        jump(sys.argv[2], int(float(sys.argv[3])), sys.argv[4])
    else:
        back(sys.argv[2])

"""Be a file system whose server is gone: `hungmount.py FOLDER NAME MARK`. Prints `ready`. Needs CAP_SYS_ADMIN and /dev/fuse.

Mounts FUSE over FOLDER and answers what the kernel asks of that folder itself (else nobody could unmount it), and nothing else:
whoever looks for something below it waits, as with a network file system mounted `hard`. SIGKILL lets one go. At SIGTERM, when
the mount has been detached, all that wait are told ESTALE, at which the kernel looks for the path once more, and finds
what was below the mount: so they go on as if the server were back.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import signal
import stat
import struct
import sys
import tempfile
import time
from pathlib import Path

FORGET, GETATTR, INIT, INTERRUPT, DESTROY, BATCH_FORGET, STATX = 2, 3, 26, 36, 38, 42, 52
ASKED = struct.Struct("=IIQQIIIHH")
"""Length, operation, its number, node, uid, gid, pid, two more."""
ANSWER = struct.Struct("=IiQ")
STARTED = struct.Struct("=IIIIHHIIHHI28x")
ATTRIBUTES = struct.Struct("=QII QQQQQQ IIIIIIIIII")
ROOT = 1
AT_ONCE = 1 << 18
"""That more than one may look into a folder at a time; else those behind the first could not even be killed."""
LONG = 1 << 31
LARGEST = 1 << 17
DEVICE = (10, 229)
SECONDS = 0.5
"""For those that were on their way through the mount when it was detached."""


def main(folder: str, name: str) -> None:
    """Serve until SIGTERM."""
    leaving: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: leaving.append(number))
    device = opened()
    found = os.stat(folder)  # noqa: PTH116 -- of the folder below the mount
    mount(device, folder, name, found.st_mode)
    waiting: dict[int, int] = {}  # who waits, by the question's number
    ready, deadline = False, 0.0
    while not deadline or time.monotonic() < deadline:
        if leaving and not deadline:
            deadline = time.monotonic() + SECONDS
            for number in waiting:
                answer(device, number, error=errno.ESTALE)
            waiting.clear()
        if not select.select([device], [], [], 0.05)[0]:
            release(device, waiting)
            continue
        with contextlib.suppress(OSError):  # a question that was taken back meanwhile
            number, operation, node, pid, rest = ask(device)
            if operation == INIT:
                major, minor = struct.unpack_from("=II", rest)
                answer(device, number, STARTED.pack(major, min(minor, 31), 0, AT_ONCE, 0, 0, LARGEST // 2, 1, 0, 0, 0))
                if not ready:
                    print("ready", flush=True)
                    ready = True
            elif operation == GETATTR and node == ROOT:
                answer(device, number, attributes(found))
            elif operation == STATX:
                answer(device, number, error=errno.ENOSYS)  # then it asks by GETATTR
            elif operation == DESTROY:
                answer(device, number)
            elif operation in {FORGET, BATCH_FORGET, INTERRUPT}:
                pass  # these have no answer
            elif deadline:
                answer(device, number, error=errno.ESTALE)
            else:
                waiting[number] = pid


def opened() -> int:
    """Return the kernel's end for us, whether or not this machine's /dev has it."""
    try:
        return os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        pass
    except OSError as error:
        sys.exit(f"/dev/fuse: {error.strerror}")
    path = Path(tempfile.mkdtemp(), "fuse")
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(*DEVICE))
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        sys.exit(f"FUSE: {error.strerror}")
    finally:
        path.unlink(missing_ok=True)
        path.parent.rmdir()


def mount(device: int, folder: str, name: str, mode: int) -> None:
    """Mount it, for all users."""
    options = f"fd={device},rootmode={mode:o},user_id=0,group_id=0,allow_other"
    libc = ctypes.CDLL(None, use_errno=True)
    nosuid_nodev = ctypes.c_ulong(2 | 4)
    if libc.mount(name.encode(), folder.encode(), b"fuse", nosuid_nodev, options.encode()):
        sys.exit(f"mount of FUSE: {os.strerror(ctypes.get_errno())}")


def ask(device: int) -> tuple[int, int, int, int, bytes]:
    """Return the next question: its number, operation, node, who asks, and the rest."""
    data = os.read(device, LARGEST + 4096)
    _, operation, number, node, _, _, pid, _, _ = ASKED.unpack_from(data)
    return number, operation, node, pid, data[ASKED.size :]


def answer(device: int, number: int, payload: bytes = b"", error: int = 0) -> None:
    """Answer a question; one that was taken back is none."""
    with contextlib.suppress(OSError):
        os.write(device, ANSWER.pack(ANSWER.size + len(payload), -error, number) + payload)


def attributes(found: os.stat_result) -> bytes:
    """Return what is told of the folder itself: as it is below the mount, for ever."""
    times = (int(found.st_atime), int(found.st_mtime), int(found.st_ctime))
    whose = (found.st_mode, found.st_nlink, found.st_uid, found.st_gid)
    return ATTRIBUTES.pack(LONG, 0, 0, ROOT, found.st_size, 0, *times, 0, 0, 0, *whose, 0, 4096, 0)


def release(device: int, waiting: dict[int, int]) -> None:
    """Let those go who are being killed: the kernel would have them wait for an answer that it has handed to us."""
    for number, pid in list(waiting.items()):
        lines = []
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        pending = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:"))]
        if any(bits & 1 << signal.SIGKILL - 1 for bits in pending):
            answer(device, number, error=errno.EINTR)
            del waiting[number]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])

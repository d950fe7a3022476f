"""Make files below one mount slow to open and to read: `slowdisk.py MOUNT SECONDS MARK`. Prints `ready`.

Asks the kernel (fanotify) to be asked for every open and every read there, and lets each wait; SECONDS may be `inf`. When this
process ends, however it does, the kernel lets all through. Needs CAP_SYS_ADMIN.
"""

from __future__ import annotations

import ctypes
import math
import os
import select
import signal
import struct
import sys
import time

CONTENT, CLOEXEC, UNLIMITED, ADD, MOUNT = 0x04, 0x01, 0x10, 0x01, 0x10
OPEN_PERM, ACCESS_PERM, ONDIR = 0x10000, 0x20000, 0x40000000
ALLOW = 1
EVENT = struct.Struct("=IBBHQii")


def main(mount: str, delay: float) -> None:
    """Answer until ended."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fanotify_mark.argtypes = [ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p]
    group = libc.fanotify_init(CONTENT | CLOEXEC | UNLIMITED, os.O_RDONLY | os.O_CLOEXEC)
    if group < 0 or libc.fanotify_mark(group, ADD | MOUNT, OPEN_PERM | ACCESS_PERM | ONDIR, -100, mount.encode()):
        sys.exit(f"fanotify: {os.strerror(ctypes.get_errno())}")
    print("ready", flush=True)
    while math.isinf(delay):
        signal.pause()  # what is not read is not answered
    waiting: list[tuple[float, int]] = []  # in the order of their times, since all wait equally long
    while True:
        pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        if select.select([group], [], [], pause)[0]:
            data, place = os.read(group, 65536), 0
            while place < len(data):
                length, _, _, _, _, fd, _ = EVENT.unpack_from(data, place)
                waiting.append((time.monotonic() + delay, fd))
                place += length
        while waiting and waiting[0][0] <= time.monotonic():
            fd = waiting.pop(0)[1]
            os.write(group, struct.pack("=iI", fd, ALLOW))
            os.close(fd)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))

"""Hold connections to sshd that never log in: `holder.py PORT COUNT MARK`. Prints `ready` when sshd has taken them all."""

from __future__ import annotations

import select
import socket
import sys
import time


def take(port: int) -> socket.socket:
    """Connect and wait for the banner: only then sshd counts it."""
    plug = socket.create_connection(("127.0.0.1", port), timeout=3)
    if not plug.recv(256):
        plug.close()
        raise ConnectionError("sshd closed it")
    return plug


def main(port: int, count: int) -> None:
    """Take, and take again what sshd ends for its age."""
    held: list[socket.socket] = []
    said = False
    while True:
        while len(held) < count:
            try:
                held.append(take(port))
            except OSError as error:
                if not said:
                    sys.exit(f"only {len(held)} of {count} connections: {error}")
                time.sleep(0.2)
        if not said:
            print("ready", flush=True)
            said = True
        for plug in select.select(held, [], [], 60)[0]:
            try:
                gone = not plug.recv(65536)
            except OSError:
                gone = True
            if gone:
                held.remove(plug)
                plug.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))

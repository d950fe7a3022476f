"""The keeper: a process beside a lab's owner that renews the lab's lease, and removes the lab when the owner has ended."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time

from lab import events, lease
from lab.drivers import choice
from lab.errors import LabError, LabNotFound
from lab.inventory import look
from lab.lifetime import holding
from lab.lifetime.removal import remove
from lab.processes import own

TRIES = 30
PAUSE_SECONDS = 20.0
"""How often the removal is tried, and how long between tries: an engine may be starting anew."""
NUMBER_SECONDS = 5.0
"""How long `holding.hold` may take to write down this process's number after starting it."""


def _passing() -> tuple[type[Exception], ...]:
    """Return what an engine that starts anew, a full disk or a machine that goes away raises.

    None of it may end a keeper: its lab would be over a minute later, under a living owner.
    """
    return (LabError, OSError, *choice.errors())


def keep(lab_name: str) -> None:
    """Renew the lease until its owner ends, then remove the lab; end as well when the lease is another's or is gone."""
    me = own()
    deadline = time.monotonic() + NUMBER_SECONDS
    tries = 0
    while (held := lease.read(lab_name)) is not None and tries < TRIES:
        if held.is_over():
            tries += 1
            if _remove(lab_name, held):
                return
            time.sleep(PAUSE_SECONDS)
            continue
        if not held.pid and held.expires is not None:
            # A term of fixed length; looked at now and then, since it may be granted anew.
            time.sleep(min(PAUSE_SECONDS, max(0.1, held.expires - time.time())))
            continue
        if not lease.renew(lab_name, me):
            if time.monotonic() > deadline:
                return
            _wait_for_end(held, 0.1)
            continue
        try:
            _extend(lab_name, time.time() + held.seconds)
        except LabNotFound:
            pass  # It is being made.
        except _passing() as error:
            _say(f"the machines could not be told of the lease's next term: {error}")
        _wait_for_end(held, held.seconds / 3)


def _extend(lab_name: str, until: float) -> None:
    """Tell the machines."""
    holding.extend(look(lab_name), until)


def _remove(lab_name: str, held: lease.Lease) -> bool:
    """Remove the lab, unless somebody has given it another lease; say whether there is nothing left to do."""
    _say(f"{held.holder} has ended: removing the lab {lab_name}")
    events.record(lab_name, "lease.over", owner=held.holder)

    def is_wanted() -> bool:
        now = lease.read(lab_name)
        return now is None or not now.is_over()

    try:
        remove(lab_name, unless=is_wanted)
    except _passing() as error:
        _say(f"the lab {lab_name} could not be removed: {error}")
        return False
    return True


def _say(text: str) -> None:
    """Print to the lab's keeper.log; a full disk keeps nobody from going on."""
    with contextlib.suppress(OSError):
        print(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}", flush=True)


def _wait_for_end(held: lease.Lease, seconds: float) -> None:
    """Return when the owner's process has ended, at the latest after *seconds*."""
    try:
        descriptor = os.pidfd_open(held.pid)
    except (AttributeError, OSError):
        # It has ended already, or the kernel is older than pidfds (5.3): then one look a second.
        if not held.is_over():
            time.sleep(min(1.0, seconds))
        return
    try:
        if not held.is_over():
            waiter = select.poll()
            waiter.register(descriptor, select.POLLIN)
            waiter.poll(seconds * 1000)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    keep(sys.argv[1])

"""Taking a lease and giving it back: the lease file, the keeper's process, and the machines, which end themselves.

lab/lease.py says what a lease is; keeper.py is the process that is started here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from lab import events
from lab import lease as leases
from lab.drivers import choice
from lab.drivers.machines import Machine
from lab.errors import LabError
from lab.inventory import Inventory
from lab.names import check_name
from lab.processes import identify
from lab.state import StateFolder


def hold(lab_name: str, *, pid: int | None = None, seconds: float = leases.TERM_SECONDS) -> leases.Lease:
    """Make the lab *lab_name* belong to the process *pid* (default: the calling one); call it before `Lab.up`.

    From now on the lab is removed when that process ends, however it ends. Called by the pytest plugin and by SSHCluster. The
    same call again changes the owner and the term.
    """
    check_name(lab_name)
    owner = leases.mine(pid)
    end_keeper(lab_name)
    lease = leases.Lease(owner.owner, owner.host, owner.pid, owner.started, seconds, time.time() + seconds)
    _start_keeper(lab_name, lease)
    events.record(lab_name, "lease.held", owner=lease.holder, seconds=seconds)
    return lease


def _start_keeper(lab_name: str, lease: leases.Lease) -> None:
    """Write the lease down and start who watches over it. It outlives this process on purpose."""
    leases.write(lab_name, lease, None)
    argv = [sys.executable, "-m", "lab.lifetime.keeper", lab_name]
    log = StateFolder(lab_name).path / "keeper.log"
    with log.open("ab") as out:
        child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/", start_new_session=True, close_fds=True
        )
    # Nobody here waits for it, and Python is not to warn about that.
    child.returncode = 0
    leases.write(lab_name, lease, identify(child.pid))


def grant(lab_name: str, seconds: float) -> leases.Lease:
    """Let the lab *lab_name* live for *seconds* from now, whoever is there then; called by `lab up --lease`, before `Lab.up`.

    A keeper removes it then; its machines end themselves as well, should the keeper be killed.
    """
    end_keeper(check_name(lab_name))
    lease = leases.Lease(leases.user(), socket.gethostname(), seconds=0, expires=time.time() + seconds)
    _start_keeper(lab_name, lease)
    events.record(lab_name, "lease.granted", owner=lease.holder, seconds=seconds)
    return lease


def release(lab_name: str, lab: Inventory | None = None) -> None:
    """End the lease: the lab stays until `lab down`. Called by `--lab-keep`, and when a lab is removed anyway.

    Give *lab* when it shall live on, so that its machines are told. Fine if there is no lease.
    """
    end_keeper(check_name(lab_name))
    if leases.remove(lab_name) and lab is not None:
        extend(lab, leases.NEVER)
        events.record(lab_name, "lease.released")


def end_keeper(lab_name: str) -> None:
    """End who watches over the lease, unless it is the calling process; called by who takes the lab away or its lease over."""
    keeper = leases.keeper_of(lab_name)
    if keeper is not None and keeper.pid != os.getpid():
        keeper.signal(signal.SIGTERM)
        with contextlib.suppress(ChildProcessError):
            # Ours, if this process started it: no zombie stays.
            deadline = time.monotonic() + 5
            while keeper.status and time.monotonic() < deadline and not os.waitpid(keeper.pid, os.WNOHANG)[0]:
                time.sleep(0.01)


def extend(lab: Inventory, until: float) -> None:
    """Tell every machine of *lab* when to end itself. One that is down, hangs or goes away is told at the next renewal.

    Called by the keeper and by `release`. Raises what listing the machines raises, nothing for a single one.
    """

    def tell(machine: Machine) -> None:
        with contextlib.suppress(LabError, OSError, *passing):  # an OSError: a folder that somebody removes just now
            machine.extend_lease(until)

    passing = choice.errors()
    machines = lab.machines
    with ThreadPoolExecutor(4, thread_name_prefix="lab-lease") as pool:
        list(pool.map(tell, machines))

"""What the tests of faults share: one lab of two nodes, and looks at a node from outside."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import asyncssh
import pytest

from lab import Lab, Node, faults
from lab.drivers.machines import Machine
from tests.until import block_until

NAME = os.environ.get("LAB_FAULT_NAME", f"flt{os.environ.get('PYTEST_XDIST_WORKER', '')}")
SHORT = 0.6
"""How long nothing may come before it counts as nothing: a look at this kernel's own bridge takes milliseconds."""


@cache
def _made(name: str) -> Lab:
    lab = Lab.up(name, nodes=2, driver="docker")
    faults.heal(lab)
    return lab


@pytest.fixture(scope="session")
def broken(request: pytest.FixtureRequest, engine: Any) -> Lab:
    """A lab whose nodes are there to be broken; one for all test modules of faults, since each imports this."""
    new = not _made.cache_info().currsize
    lab = _made(NAME)
    if new and not os.environ.get("LAB_KEEP"):
        request.config.add_cleanup(lambda: (lab.down(), None)[1])
    return lab


@pytest.fixture
def node(broken: Lab) -> Iterator[Node]:
    """The node that a test breaks; afterwards it has no fault and takes a login, or the test has failed."""
    found = broken.node("node1")
    yield found
    left = faults.active(broken)
    faults.heal(broken)
    assert not left, left
    assert login(broken, found, "true") == ""


@pytest.fixture
def other(broken: Lab) -> Node:
    """A second node, to look from."""
    return broken.node("node2")


# -- TCP ---------------------------------------------------------------------------------------------------------------


def knock(node: Machine, port: int = 22) -> str:
    """Connect from this machine to the node's own address; return what comes: the banner, `silence`, `closed`, or an error."""
    try:
        with socket.create_connection((node.address, port), timeout=SHORT) as plug:
            plug.settimeout(SHORT)
            try:
                return plug.recv(256).decode().strip() or "closed"
            except TimeoutError:
                return "silence"
    except TimeoutError:
        return "timeout"
    except ConnectionRefusedError:
        return "refused"
    except OSError as error:
        return type(error).__name__


def greeting(node: Machine) -> float:
    """Return the seconds from a connect to sshd's banner."""
    began = time.monotonic()
    with socket.create_connection((node.address, 22), timeout=5) as plug:
        assert plug.recv(256).startswith(b"SSH-2.0")
    return time.monotonic() - began


def open_for_ssh(node: Machine) -> bool:
    """Say whether the node's sshd greets."""
    return knock(node).startswith("SSH-2.0")


def greets(node: Machine) -> bool:
    """Wait until the node's sshd greets: an sshd that reads its configuration anew doesn't for a moment."""
    return block_until("a greeting", lambda: open_for_ssh(node))


def inside(machine: Machine, code: str, timeout: float = 15) -> str:
    """Run Python on a machine by the engine, not through its network or its login; return what it prints."""
    for python in ("/opt/kernel/bin/python", "/opt/gateway/bin/python"):
        done = machine.exec([python, "-c", code], timeout=timeout)
        if done.exit_code not in {126, 127}:
            break
    return done.check().stdout.strip()


def seen_from(machine: Machine, node: Machine) -> str:
    """Connect from one machine of the lab to another's sshd; return `open`, `timeout` or `refused`."""
    return inside(
        machine,
        "import socket\n"
        f"try: print('open' if socket.create_connection(({node.address!r}, 22), {SHORT}) else '')\n"
        "except TimeoutError: print('timeout')\n"
        "except ConnectionRefusedError: print('refused')\n"
        "except OSError as e: print(e)\n",
    )


def lookup(machine: Machine, name: str) -> tuple[str, float]:
    """Resolve a name on a machine; return its address or the error's name, and the seconds that it took."""
    answer = inside(
        machine,
        "import socket, time\nb = time.monotonic()\n"
        f"try: a = socket.getaddrinfo({name!r}, 22, socket.AF_INET)[0][4][0]\n"
        "except OSError as e: a = type(e).__name__\n"
        "print(a, time.monotonic() - b)\n",
    )
    address, seconds = answer.split()
    return address, float(seconds)


# -- SSH ---------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def connected(
    lab: Lab, node: Node, address: str = "", port: int = 22, **options: Any
) -> AsyncIterator[asyncssh.SSHClientConnection]:
    """Log in at the node's own address, with strict host keys."""
    entry = node.entry()
    async with asyncssh.connect(
        address or node.address,
        port,
        **{
            "username": entry.user,
            "client_keys": [str(lab.folder.identity)],
            "known_hosts": asyncssh.import_known_hosts(f"{entry.name} {entry.host_key}\n"),
            "host_key_alias": entry.name,
            "config": None,
            "agent_path": None,
            "connect_timeout": 5,
            "login_timeout": 5,
            **options,
        },
    ) as connection:
        yield connection


def run(lab: Lab, node: Node, command: str, timeout: float = 10, **options: Any) -> asyncssh.SSHCompletedProcess:
    """Run a command over SSH as any client does."""

    async def once() -> asyncssh.SSHCompletedProcess:
        async with connected(lab, node, **options) as connection:
            return await connection.run(command, timeout=timeout)

    return asyncio.run(once())


def login(lab: Lab, node: Node, command: str, **options: Any) -> str:
    """Run a command over SSH; return its stdout, or the name of the error if there is none to have."""
    try:
        return str(run(lab, node, command, **options).stdout).strip()
    except (OSError, asyncssh.Error) as error:
        return type(error).__name__


def login_to(lab: Lab, node: Node, command: str, address: str, port: int) -> str:
    """Do the same at another address and port than a container's."""
    return login(lab, node, command, address=address, port=port)


def failure(lab: Lab, node: Node, command: str) -> str:
    """Run a command over SSH that may fail; return its stderr, empty when it succeeded."""
    done = run(lab, node, command)
    return "" if done.exit_status == 0 else " ".join(map(str, (done.stderr, done.exit_status, done.exit_signal)))


def best(measure: Callable[[], float], tries: int = 3) -> float:
    """Return the least of some measurements: what else the machine does can only make them larger."""
    return min(measure() for _ in range(tries))


def timed(work: Callable[[], Any]) -> float:
    """Return the seconds that *work* takes."""
    began = time.monotonic()
    work()
    return time.monotonic() - began

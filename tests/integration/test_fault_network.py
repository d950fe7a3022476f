"""Network faults, seen from outside, and that they heal."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import asyncssh
import pytest

from lab import Lab, Node
from lab.faults import add
from tests.integration.fault_lab import (
    SHORT,
    best,
    broken,
    connected,
    greeting,
    greets,
    inside,
    knock,
    login,
    lookup,
    node,
    other,
    run,
    seen_from,
    timed,
)

__all__ = ["broken", "node", "other"]

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        ("partition", "timeout"),
        ("drop-new", "timeout"),
        ("refuse", "refused"),
        ("half-open", "silence"),
    ],
)
def test_a_connect_meets_the_fault(broken: Lab, node: Node, fault: str, seen: str) -> None:
    """A connect times out, is refused, or hears nothing; and is greeted once the fault is healed."""
    with add(broken, fault, [node], duration=30) as inflicted:
        assert inflicted.mechanism.startswith("iptables")
        assert knock(node) == seen
    assert greets(node)


def test_a_fault_of_some_peers_leaves_others_alone(broken: Lab, node: Node, other: Node) -> None:
    """With `peers`, only these are met."""
    with add(broken, "refuse", [node], duration=30, peers="node2"):
        assert seen_from(other, node) == "refused"
        assert greets(node)
    assert seen_from(other, node) == "open"


def test_a_gateway_s_own_port_is_met(broken: Lab, node: Node) -> None:
    """Unless another one is named."""
    gateway = broken.gateway
    with add(broken, "refuse", [gateway], duration=30):
        assert knock(gateway, 8888) == "refused"
    assert knock(gateway, 8888) == "silence"  # it waits for a request


@pytest.mark.parametrize("fault", ["refuse", "drop-new", "half-open"])
def test_a_port_s_faults_go_with_a_proxy(broken: Lab, node: Node, fault: str) -> None:
    """What another fault's proxy stands before is met at the port that the client has named."""
    seen = {"refuse": "refused", "drop-new": "timeout", "half-open": "silence"}[fault]
    with add(broken, "stall", [node], duration=60, bytes=1 << 20) as proxy:
        assert "proxy" in proxy.mechanism
        with add(broken, fault, [node], duration=60):
            assert knock(node) == seen
        assert greets(node)


async def test_a_reset_goes_with_a_proxy(broken: Lab, node: Node) -> None:
    """A connection that a proxy carries is reset as others are."""
    with add(broken, "stall", [node], duration=60, bytes=1 << 20):
        async with connected(broken, node) as connection:
            with add(broken, "reset", [node], duration=30), pytest.raises((ConnectionError, asyncssh.Error)):
                await connection.run("echo alive", timeout=5)


@pytest.mark.parametrize(("way", "arrives"), [("in", True), ("out", False)])
def test_a_partition_can_have_one_way(broken: Lab, node: Node, way: str, arrives: bool) -> None:
    """Cut inwards, a node's datagrams still leave; cut outwards, they don't; connects fail both ways."""
    with add(broken, "partition", [node], duration=30, direction=way):
        assert (datagrams(node, 3) > 0) is arrives
        assert knock(node) == "timeout"
    assert datagrams(node, 3) == 3


def test_a_partition_by_groups(broken: Lab, node: Node, other: Node) -> None:
    """Between groups nothing passes, within a group everything; a gateway can be in one."""
    gateway = broken.gateway
    with add(broken, "partition", [node, other, gateway], duration=30, groups="node1|node2,gateway"):
        assert seen_from(other, node) == "timeout"
        assert seen_from(gateway, node) == "timeout"
        assert seen_from(gateway, other) == "open"
    assert seen_from(other, node) == seen_from(gateway, node) == "open"


async def test_dropping_new_connections_spares_open_ones(broken: Lab, node: Node) -> None:
    """While a connect times out, a session that was open answers."""
    async with connected(broken, node) as connection:
        with add(broken, "drop-new", [node], duration=30):
            assert knock(node) == "timeout"
            assert (await connection.run("echo alive", timeout=5)).stdout == "alive\n"


async def test_reset_ends_open_sessions(broken: Lab, node: Node) -> None:
    """An open connection is reset at the next thing that it says."""
    async with connected(broken, node) as connection:
        with add(broken, "reset", [node], duration=30), pytest.raises((ConnectionError, asyncssh.Error)):
            await connection.run("echo alive", timeout=5)
    assert await asyncio.to_thread(login, broken, node, "echo back") == "back"


def test_loss_is_about_as_much_as_was_asked_for(broken: Lab, node: Node) -> None:
    """Of many datagrams, about the given share arrives; all do once healed."""
    with add(broken, "loss", [node], duration=30, percent=50) as fault:
        assert fault.mechanism in {"tc netem loss", "iptables statistic"}
        assert 60 < datagrams(node, 200) < 140  # six standard deviations to either side
    assert datagrams(node, 200) == 200


def test_delay_is_measured(broken: Lab, node: Node) -> None:
    """The banner comes later by what was asked for."""
    with add(broken, "delay", [node], duration=30, milliseconds=500):
        assert 0.5 <= best(lambda: greeting(node)) < 1.5
    assert best(lambda: greeting(node)) < 0.5


def test_jitter_is_measured(broken: Lab, node: Node) -> None:
    """Banners come late by times that differ by as much as was asked for, and not by more."""
    with add(broken, "delay", [node], duration=60, seed=1, milliseconds=500, jitter=400):
        waits = sorted(greeting(node) for _ in range(10))
        assert waits[0] >= 0.1
        assert waits[7] < 1.5  # two may have met a busy machine; 0.9 s and sshd's own time else
        assert waits[7] - waits[0] > 0.3  # of an even spread over 0.8 s
    assert best(lambda: greeting(node)) < 0.5


def test_a_seed_gives_the_same_times_again(broken: Lab, node: Node) -> None:
    """Where a proxy draws them: the kernel's are its own. Those of one seed are nearer to each other than those of two."""

    def waits(seed: int) -> list[float]:
        with add(broken, "delay", [node], duration=60, seed=seed, port=22, milliseconds=500, jitter=450) as fault:
            assert "proxy" in fault.mechanism
            return [greeting(node) for _ in range(4)]

    first, again, other = waits(1), waits(1), waits(2)
    assert apart(first, again) < apart(first, other)


def test_two_delays_add_up_and_heal_one_by_one(broken: Lab, node: Node) -> None:
    """Two faults of one sort are passed one after the other, whichever heals first."""
    first = add(broken, "delay", [node], duration=30, milliseconds=700)
    with add(broken, "delay", [node], duration=30, milliseconds=500):
        assert best(lambda: greeting(node)) >= 1.2
        first.heal()
        assert 0.5 <= best(lambda: greeting(node)) < 1.2
    assert best(lambda: greeting(node)) < 0.5


@pytest.mark.parametrize(("way", "mechanism"), [("out", "tc tbf"), ("both", "userspace proxy behind nat REDIRECT")])
def test_bandwidth_is_measured(broken: Lab, node: Node, way: str, mechanism: str) -> None:
    """A transfer takes its size over the rate, whichever mechanism it is."""

    def transfer() -> None:
        assert len(str(run(broken, node, "head -c 200000 /dev/zero | tr '\\0' x").stdout)) == 200_000

    with add(broken, "bandwidth", [node], duration=30, kbit=1200, direction=way) as fault:
        assert fault.mechanism == mechanism
        assert timed(transfer) > 0.85  # 1.33 s, less the first burst
    assert best(lambda: timed(transfer)) < 0.85


def test_a_stalled_connection_goes_on_when_healed(broken: Lab, node: Node) -> None:
    """So many bytes come, then none; what was kept back comes when the fault is healed, on the same connection."""
    with contextlib.ExitStack() as stack:
        fault = add(broken, "stall", [node], duration=30, bytes=7)
        plug = stack.enter_context(socket.create_connection((node.address, 22), timeout=5))
        plug.settimeout(SHORT)
        assert plug.recv(7, socket.MSG_WAITALL) == b"SSH-2.0"
        with pytest.raises(TimeoutError):
            plug.recv(1)
        fault.heal()
        assert plug.recv(8, socket.MSG_WAITALL) == b"-OpenSSH"


def test_names_resolve_late(broken: Lab, other: Node) -> None:
    """A look-up takes as long as was asked for."""
    with add(broken, "slow-dns", [other], duration=30, milliseconds=400):
        address, seconds = lookup(other, "node1.lab.test")
        assert address == broken.node("node1").address
        assert seconds >= 0.4
    assert best(lambda: lookup(other, "node1.lab.test")[1]) < 0.4


@pytest.mark.parametrize("where", ["node2", "gateway"])
def test_names_are_missing(broken: Lab, where: str) -> None:
    """The named ones don't resolve, short or full; others do; a gateway can be hit too."""
    machine = broken.gateway if where == "gateway" else broken.node(where)
    with add(broken, "name-missing", [machine], duration=30, names="node1.lab.test"):
        assert lookup(machine, "node1")[0] == lookup(machine, "node1.lab.test")[0] == "gaierror"
        assert lookup(machine, "node2")[0] == broken.node("node2").address
    assert lookup(machine, "node1")[0] == broken.node("node1").address


def test_names_lead_elsewhere(broken: Lab, other: Node) -> None:
    """A name gives the wrong address, and the right one again."""
    with add(broken, "wrong-address", [other], duration=30, names="node1", address="192.0.2.7"):
        assert lookup(other, "node1.lab.test")[0] == "192.0.2.7"
    assert lookup(other, "node1.lab.test")[0] == broken.node("node1").address


def apart(some: list[float], others: list[float]) -> float:
    """Return the median distance of two lists' members: one slow moment of this machine doesn't count."""
    return sorted(abs(one - other) for one, other in zip(some, others, strict=True))[len(some) // 2]


def datagrams(node: Node, count: int) -> int:
    """Let *node* send datagrams to this machine; return how many arrive."""
    with _listening() as plug:
        port = plug.getsockname()[1]
        inside(
            node,
            "import socket, subprocess\n"
            "gw = subprocess.check_output(['ip', 'route'], text=True).split('default via ')[1].split()[0]\n"
            "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
            f"for _ in range({count}):\n"
            "  try: s.sendto(b'x', (gw, " + str(port) + "))\n"
            "  except PermissionError: pass\n",  # what the kernel says of a packet that its own rules drop
        )
        got = 0
        with contextlib.suppress(TimeoutError):
            while got < count and plug.recv(16):
                got += 1
        return got


@contextlib.contextmanager
def _listening() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plug:
        plug.bind(("0.0.0.0", 0))
        plug.settimeout(0.3)
        yield plug

"""SSH connections that tests cut, and what is watched while a node has a fault."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator

from lab import Gateway, Node
from lab.names import USER
from tests.integration.client import Execution, GatewayClient, Kernel
from tests.until import until, until_in_thread

# -- SSH connections -------------------------------------------------------------------------------------------------


def ssh_connections(node: Node, gateway: Gateway) -> set[str]:
    """Return the established SSH connections of *gateway* to *node*, by address and port at the gateway."""
    argv = ["ss", "-tnH", "state", "established", "sport", "=", ":22", "and", "dst", "=", gateway.address]
    return {line.split()[3] for line in node.exec(argv).check().stdout.splitlines()}


def cut_ssh(node: Node, gateway: Gateway) -> set[str]:
    """Kill the sshd processes that serve logins to *node*, *gateway*'s among them; return its connections until then."""
    connections = ssh_connections(node, gateway)
    assert connections, f"{gateway.name} has no SSH connection to {node.name}"
    kill_sessions(node)
    return connections


def kill_sessions(node: Node) -> None:
    """Kill the sshd processes that serve logins to *node*, whatever way these came."""
    pids = sessions(node)
    assert pids, f"there is no SSH session on {node.name}"
    node.exec(["kill", "-KILL", *pids], user="root")  # one of them may have gone with another


def sessions(node: Node) -> list[str]:
    """Return the pids of the sshd processes that serve logins to *node*."""
    lines = node.exec(["ps", "-eo", "pid=,args="], user="root").check().stdout.splitlines()
    return [pid for pid, args in (line.split(None, 1) for line in lines) if args.startswith(f"sshd: {USER}")]


async def reconnected(node: Node, gateway: Gateway, earlier: set[str], timeout: float = 20) -> None:
    """Wait until *gateway* has an SSH connection to *node* that is none of *earlier*."""
    await until_in_thread(
        f"{gateway.name} is back on {node.name}", lambda: ssh_connections(node, gateway) - earlier, timeout
    )


# -- what is watched -------------------------------------------------------------------------------------------------

_PRINTING = """
import os, time
_n = 0
while not os.path.exists({stop!r}):
    print("line", _n, "x" * {width}, flush=True)
    _n += 1
    time.sleep({pause})
os.unlink({stop!r})
print("printed", _n)
"""


class PrintingCell:
    """A cell that prints numbered lines until it is told to stop, on the node itself."""

    def __init__(self, kernel: Kernel, node: Node, execution: Execution, stop: str) -> None:
        self.kernel = kernel
        self.execution = execution
        self._node = node
        self._stop = stop

    @classmethod
    async def begin(cls, kernel: Kernel, node: Node, *, width: int = 200, pause: float = 0.01) -> PrintingCell:
        """Start it and wait for its first line."""
        stop = f"/tmp/stop-{uuid.uuid4().hex}"
        execution = await kernel.begin(_PRINTING.format(stop=stop, width=width, pause=pause))
        await execution.printed("line 0 ")
        return cls(kernel, node, execution, stop)

    @property
    def lines(self) -> int:
        """How many lines have come."""
        return self.execution.partial.stdout.count("\n")

    async def progress(self, timeout: float = 30) -> None:
        """Wait until lines come that have not come before."""
        before = self.lines
        await until("the cell's output goes on", lambda: self.lines > before + 5, timeout)

    async def complete(self, timeout: float = 30, *, told: str = "") -> int:
        """Stop it; assert that every line came, in order and once, and that the cell's reply came; return their number.

        With *told* lines may be missing, if the notebook says so in these words.
        """
        await asyncio.to_thread(lambda: self._node.exec(["touch", self._stop]).check())
        result = await self.execution.result(timeout)
        assert result.status == "ok"
        lines = result.stdout.splitlines()
        said = lines.pop().split()
        assert said[0] == "printed"
        numbers = [int(line.split()[1]) for line in lines]
        whole = list(range(int(said[1])))
        if told and told in result.stderr:
            assert numbers == sorted(set(numbers) & set(whole))
        else:
            missing = sorted(set(whole) - set(numbers))
            assert numbers == whole, (
                f"{len(missing)} of {len(whole)} lines are missing, from {missing[:1]} to {missing[-1:]}"
            )
        return len(numbers)


@contextlib.asynccontextmanager
async def never_declared_dead(client: GatewayClient, kernel: Kernel) -> AsyncIterator[None]:
    """Assert that the gateway lists *kernel* as alive all the while, and that no client is told of a restart."""
    seen: set[str] = set()

    async def watch() -> None:
        while True:
            found = {model["id"]: model["execution_state"] for model in await client.list_kernels()}
            seen.add(found.get(kernel.id, "not listed"))
            await asyncio.sleep(0.1)

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
    assert seen <= {"busy", "idle", "starting"}, seen
    assert seen, "the gateway was never asked"
    assert not {"restarting", "autorestarting", "dead"} & set(kernel.states), kernel.states

"""The lab that chaos is made on: three nodes, and a gateway with persistence and kept output that may end and come again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from typing import Any

import httpx

from lab import Gateway, Lab, Node, faults
from lab.errors import LabError, LabNotFound
from lab.observe.leaks import look
from tests.chaos.schedule import NODES

OPTIONS = (
    "--FileKernelSessionManager.enable_persistence=True",
    "--EnterpriseGatewayApp.availability_mode=standalone",
)
ENVIRONMENT = {
    "EG_DISTRIBUTED_KEPT_OUTPUT_LIMIT": str(64 << 20),
    # So that a connection counts as lost within seconds: faults last for seconds here.
    "EG_DISTRIBUTED_KEEPALIVE_INTERVAL": "2",
    "EG_DISTRIBUTED_KEEPALIVE_COUNT": "2",
    "EG_DISTRIBUTED_RETRY_AFTER": "5",
}
GATEWAY = "chaos"
_AGENT_SOURCE = "eg_distributed/agent/sockets.py"
"""A file of the agent's that gets another comment with each upgrade, so that the agent has another digest."""
_KERNEL_FOLDER = re.compile(r".*/eg-distributed/[^/]+/k/[^/]+|/tmp/eg-distributed-[^/]+/k/[^/]+")


class Site:
    """A lab and what tabs and observers have to know of its gateway: where it is, and whether it is up."""

    def __init__(self, lab: Lab, gateway: Gateway) -> None:
        self.lab = lab
        self.gateway = gateway
        self.nodes: list[Node] = lab.nodes[:NODES]
        self.up = asyncio.Event()
        self.url = ""
        self.changing = asyncio.Lock()
        """Held by whoever ends or starts the gateway."""

    @classmethod
    def make(cls, name: str) -> Site:
        """Make the lab *name* whole, and its gateway; blocks for as long as that takes."""
        with contextlib.suppress(
            LabNotFound
        ):  # one that was kept, perhaps by a run that was killed in the middle of trouble
            left = Lab.attach(name)
            left.reset()
        lab = Lab.up(name, nodes=NODES, driver="docker")
        return cls(lab, lab.add_gateway(GATEWAY, env=ENVIRONMENT, options=OPTIONS))

    def node(self, number: int) -> Node:
        """Return node *number* of a schedule, 1 to NODES."""
        return self.nodes[number - 1]

    async def found(self) -> None:
        """Note where the gateway is, once it answers: the engine gives it another port with each start."""
        self.url = await asyncio.to_thread(lambda: self.gateway.url)
        self.up.set()

    async def end_gateway(self, how: str) -> None:
        """End it: `stop` (SIGTERM), `kill`, or `upgrade`, which is a kill after which it brings another agent."""
        self.up.clear()
        if how == "upgrade":
            await asyncio.to_thread(self._change_agent)
        await asyncio.to_thread(self.gateway.stop if how == "stop" else self.gateway.kill)

    async def start_gateway(self) -> None:
        """Start it, and wait until it answers."""
        await asyncio.to_thread(self.gateway.start)
        await self.found()

    def _change_agent(self) -> None:
        script = (
            'for file in /opt/gateway/lib/python3*/site-packages/"$1"; do echo "# another release" >> "$file"; done'
        )
        self.gateway.exec(["sh", "-c", script, "sh", _AGENT_SOURCE], user="root").check()

    # -- healing ---------------------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """Heal all faults and start what is down; blocks. Raises LabError for what does not come back."""
        problems: list[LabError] = []
        for _ in range(3):
            problems.clear()
            try:
                faults.heal(self.lab)
                for machine in (*self.nodes, self.gateway):
                    if machine.state != "running":
                        machine.start()
                for node in self.nodes:
                    node.wait_ready()
                    node.exec(["pkill", "-CONT", "-u", node.user], user="root")  # agents that a step has stopped
            except LabError as error:
                problems.append(error)
            else:
                return
        raise problems[0]

    def fresh(self) -> None:
        """Make nodes and gateway as they were when they were made, for a schedule that is tried again; blocks.

        Kernels are deleted first: to the gateway, one whose agent's folder a reset has removed is nobody's to declare dead.
        """
        self.heal()
        with httpx.Client(base_url=self.gateway.url, trust_env=False, timeout=60) as http:
            for model in http.get("/api/kernels").raise_for_status().json():
                http.delete(f"/api/kernels/{model['id']}")
        self.gateway.kill()
        self.lab.reset(*(node.short_name for node in self.nodes))
        self.gateway.start()

    # -- what there is ---------------------------------------------------------------------------------------------------

    def view(self) -> dict[str, Any]:
        """Return what runs, what the gateway lists and what lies around now, as facts of an event; blocks."""
        names = [node.name for node in self.nodes]
        seen = look(self.lab, [*self.nodes, self.gateway])
        running: dict[str, dict[str, int]] = {}
        others: dict[str, dict[str, int]] = {}
        files: dict[str, list[str]] = {}
        for name in names:
            snapshot = seen.machines.get(name)
            if snapshot is None:
                continue
            kernels, rest = running.setdefault(name, {}), others.setdefault(name, {})
            for process in snapshot.processes:
                if process.kernel:
                    counts = kernels if "ipykernel" in process.command else rest
                    counts[process.kernel] = counts.get(process.kernel, 0) + 1
            files[name] = sorted(path for path in snapshot.files if _KERNEL_FOLDER.fullmatch(path))
        return {
            "listed": sorted(seen.kernels.get(self.gateway.name, {})),
            "running": running,
            "others": {name: found for name, found in others.items() if found},
            "files": {name: found for name, found in files.items() if found},
            "unseen": dict(seen.states),
        }

    def agents_say(self) -> dict[str, Any]:
        """Return the operator's view, by the operator's command: kernels by host, orphans, and hosts that were silent; blocks."""
        argv = [self.gateway.python, "-m", "eg_distributed", "kernels", "--json"]
        done = self.gateway.exec(argv, timeout=90)
        try:
            said = json.loads(done.stdout)
        except ValueError:
            return {"error": (done.stderr or done.stdout)[-300:]}
        hosts: dict[str, list[str]] = {}
        for kernel in said["kernels"]:
            hosts.setdefault(kernel["host"], []).append(kernel["kernel"])
        return {
            "told": {host: sorted(kernels) for host, kernels in hosts.items()},
            "orphans": sorted(kernel["kernel"] for kernel in said["kernels"] if not kernel["claimed"]),
            "silent": said["errors"],
        }

    def kill_kernel(self, kernel_id: str) -> list[str]:
        """SIGKILL a kernel's processes, wherever they are; return the names of the nodes where there were some; blocks."""
        # Nothing of ours but an id of our own making is in the text.
        script = f"""pids=$(grep -lsz '^KERNEL_ID={kernel_id}$' /proc/[0-9]*/environ | cut -d/ -f3)
            [ -n "$pids" ] && kill -KILL $pids"""
        killed = []
        for node in self.nodes:
            with contextlib.suppress(LabError):  # it is down, or can't start a process
                if node.exec(["sh", "-c", script], timeout=10).exit_code == 0:
                    killed.append(node.name)
        return killed

    def end_by_command(self, host: str, kernel_id: str) -> str:
        """End a kernel that no gateway answers for, as an operator does; return what the command said if it failed; blocks."""
        argv = [self.gateway.python, "-m", "eg_distributed", "end", host, kernel_id]
        done = self.gateway.exec(argv, timeout=90)
        return (done.stderr or done.stdout).strip()[-300:] if done.exit_code else ""

"""Carries out the steps of a schedule on a site, each at its time, and writes down what was asked and what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Final

import httpx

from lab import Node, faults
from lab.errors import LabError
from tests.chaos.history import History
from tests.chaos.schedule import Step
from tests.chaos.site import Site
from tests.chaos.tab import Tab
from tests.integration.client import GatewayClient, GatewayError
from tests.integration.faults import kill_sessions
from tests.integration.looks import agents

ANSWER_SECONDS = 90.0
"""For an answer of the gateway: more than it gives any start, so that a late one fails with the gateway's reason."""
STARTED_SECONDS = 60.0
"""How long a step waits for the start of its kernel."""
BYSTANDER_SECONDS = 30.0
"""How long the bystander waits for a reply: none comes for what a gateway that is killed had not passed on."""
BYSTANDS = 0.4
"""Seconds between two cells of the bystander."""

PRINTING = """
import time as _time
for _n in range({lines}):
    print(f"{cell} {{_n}} {filling}\\n", end="", flush=True)
    if {pause}: _time.sleep({pause})
"""
MARKING = """
import os as _os
_mark = {mark!r}
print(f"{cell} = {{_os.getpid()}} {{_mark}}\\n", end="", flush=True)
"""
LOOKING = """
import os as _os
print(f"{cell} = {{_os.getpid()}} {{globals().get('_mark')}}\\n", end="", flush=True)
"""
FILLING = "x" * 120


class Actors:
    """The users of a round's kernels, and whoever breaks nodes and gateway."""

    def __init__(self, site: Site, history: History) -> None:
        self._site = site
        self._history = history
        self.ids: dict[str, str] = {}
        """Kernels' ids by slot; of every start that was asked for, whatever came of it."""
        self.tabs: dict[str, Tab] = {}
        """Tabs of the kernels that were started and not deleted."""
        self._started: dict[str, asyncio.Event] = {}
        self._cells = 0
        self._prints: dict[str, float] = {}  # how long a cell prints, in seconds
        self._requests = 0
        self._bystanding = asyncio.Event()
        self._bystanding.set()
        self._tasks: list[asyncio.Task[None]] = []

    async def act(self, steps: list[Step]) -> None:
        """Do all steps, each at its time, whatever becomes of the others; return when the last is done.

        Raises what a step raised that no gateway and no lab should: a fault of chaos itself.
        """
        self._started = {step.kernel: asyncio.Event() for step in steps if step.do == "start"}
        self._tasks = [asyncio.create_task(self._do(step)) for step in steps if step.do != "bystand"]
        bystanders = [asyncio.create_task(self._do(step)) for step in steps if step.do == "bystand"]
        try:
            await asyncio.gather(*self._tasks)
            self._bystanding.clear()
            await asyncio.gather(*bystanders)
        finally:
            for task in (*self._tasks, *bystanders):
                task.cancel()

    async def close(self) -> None:
        """Close all tabs."""
        for tab in list(self.tabs.values()):
            await tab.close()

    async def _do(self, step: Step) -> None:
        await asyncio.sleep(max(0.0, step.at - self._history.now()))
        if step.kernel and step.do not in {"start", "give-up"} and not await self._is_there(step.kernel):
            self._history.add("seen", "skipped", step=str(step))
            return
        await DEEDS[step.do](self, step)

    async def _is_there(self, slot: str) -> bool:
        started = self._started.get(slot)
        if started is None:
            return False
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(started.wait(), STARTED_SECONDS)
        return slot in self.tabs

    # -- users -----------------------------------------------------------------------------------------------------------

    async def _ask(
        self,
        op: str,
        slot: str,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        seconds: float = ANSWER_SECONDS,
        **facts: Any,
    ) -> tuple[bool, Any]:
        """Ask the gateway for something, and write down both; return whether it was done, and the answer."""
        await self._site.up.wait()
        client = GatewayClient(self._site.url)
        self._requests += 1
        about = {"kernel": slot, "request": self._requests}
        self._history.add("invoke", op, **about, **facts)
        try:
            answer = await client.request(method, path, body, seconds)
        except GatewayError as error:
            self._history.add("fail", op, **about, status=error.status, reason=error.reason)
            return False, None
        except httpx.HTTPError as error:
            self._history.add("info", op, **about, reason=f"{type(error).__name__} {error}")
            return False, None
        finally:
            await client.close()
        host = (answer or {}).get("distributed", {}).get("host", "")
        self._history.add("ok", op, **about, **({"host": host} if host else {}))
        return True, answer

    async def _start(self, step: Step) -> None:
        slot, kernel_id = step.kernel, str(uuid.uuid4())
        self.ids[slot] = kernel_id
        env = {"KERNEL_ID": kernel_id}
        pin = self._site.node(step.node).name if step.node else ""
        if pin:
            env["KERNEL_REMOTE_HOST"] = pin
        try:
            body = {"name": "python_distributed", "env": env}
            done, answer = await self._ask("start", slot, "POST", "/api/kernels", body, id=kernel_id, pin=pin)
            if done:
                if answer["id"] != kernel_id:
                    raise AssertionError(f"asked for the kernel {kernel_id}, and got {answer['id']}")
                tab = self.tabs[slot] = Tab(self._site, self._history, slot, kernel_id)
                await self._mark(tab, held=False)
        finally:
            self._started.get(slot, asyncio.Event()).set()

    async def _give_up(self, step: Step) -> None:
        """Ask for a kernel, and go away before there is one; it may be there already."""
        slot, kernel_id = step.kernel, str(uuid.uuid4())
        self.ids[slot] = kernel_id
        env, pin = {"KERNEL_ID": kernel_id}, self._site.node(step.node).name if step.node else ""
        if pin:
            env["KERNEL_REMOTE_HOST"] = pin
        body = {"name": "python_distributed", "env": env}
        after = float(step.options["after"])
        await self._ask("start", slot, "POST", "/api/kernels", body, after, id=kernel_id, pin=pin, gives_up=after)

    async def _mark(self, tab: Tab, *, held: bool) -> None:
        """Leave something in the kernel that is looked for in the end."""
        mark, cell = uuid.uuid4().hex[:8], self._name(tab.slot)
        await tab.run(cell, MARKING.format(mark=mark, cell=cell), held=held, marks=True)

    def _name(self, slot: str) -> str:
        self._cells += 1
        return f"{slot}/{self._cells}"

    async def look(self, slot: str, seconds: float) -> bool:
        """Run a last cell that says which process it is, and what is left in it; return whether it came to an end in time.

        *seconds* are for the kernel's answer, beside the time for which it may print yet.
        """
        cell = self._name(slot)
        prints = sum(self._prints.get(name, 0.0) for name in self.tabs[slot].unreplied)
        await self.tabs[slot].run(cell, LOOKING.format(cell=cell), looks=True)
        return await self.tabs[slot].replied(cell, seconds + prints)

    async def _numbers(self, slot: str, lines: int, pause: float, **facts: Any) -> str:
        cell, tab = self._name(slot), self.tabs.get(slot)
        if tab is not None:
            self._prints[cell] = lines * pause
            code = PRINTING.format(lines=lines, cell=cell, filling=FILLING, pause=pause)
            await tab.run(cell, code, lines=lines, pause=pause, **facts)
        return cell

    async def _print(self, step: Step) -> None:
        await self._numbers(step.kernel, int(step.options["lines"]), float(step.options["pause"]))

    async def _cell(self, step: Step) -> None:
        await self._numbers(step.kernel, 1, 0)

    async def _bystand(self, step: Step) -> None:
        while self._bystanding.is_set() and (tab := self.tabs.get(step.kernel)) is not None:
            cell = await self._numbers(step.kernel, 1, 0, bystands=True)
            await tab.replied(cell, BYSTANDER_SECONDS)
            await asyncio.sleep(BYSTANDS)

    async def _interrupt(self, step: Step) -> None:
        await self._ask("interrupt", step.kernel, "POST", f"/api/kernels/{self.ids[step.kernel]}/interrupt")

    async def _restart(self, step: Step) -> None:
        slot, tab = step.kernel, self.tabs[step.kernel]
        async with tab.held():
            done, _ = await self._ask("restart", slot, "POST", f"/api/kernels/{self.ids[slot]}/restart")
            if done:
                answered = await tab.handshake(30)
                self._history.add("seen", "handshake", kernel=slot, answered=answered)
                await self._mark(tab, held=True)

    async def _reconnect(self, step: Step) -> None:
        await self.tabs[step.kernel].away(float(step.options["away"]))

    async def _delete(self, step: Step) -> None:
        await self.delete(step.kernel)

    async def delete(self, slot: str) -> None:
        """Delete a kernel, and close its tab."""
        tab = self.tabs.pop(slot, None)
        if tab is not None:
            await tab.close()
        await self._ask("delete", slot, "DELETE", f"/api/kernels/{self.ids[slot]}")

    async def _kill_kernel(self, step: Step) -> None:
        """Have the kernel's processes end by themselves, as without memory."""
        kernel_id = self.ids[step.kernel]
        self._history.add("invoke", "kill-kernel", kernel=step.kernel)
        killed = await asyncio.to_thread(self._site.kill_kernel, kernel_id)
        self._history.add("ok", "kill-kernel", kernel=step.kernel, killed=killed)

    # -- trouble ---------------------------------------------------------------------------------------------------------

    async def _fault(self, step: Step) -> None:
        options = dict(step.options)
        name, lasts, cut = options.pop("name"), float(options.pop("for")), bool(options.pop("cut", False))
        node = self._site.node(step.node)
        self._history.add("invoke", "fault", name=name, node=node.name, cut=cut)
        about = {"name": name, "node": node.name}
        try:
            # Heals by itself soon after we should have done it, whatever becomes of us.
            fault = await asyncio.to_thread(
                lambda: faults.add(self._site.lab, name, [node], duration=lasts + 120, **options)
            )
        except LabError as error:  # two faults that can't be together, or a node that is down meanwhile
            self._history.add("fail", "fault", **about, reason=str(error)[:300])
            return
        self._history.add("ok", "fault", **about, id=fault.id)
        if cut:
            with contextlib.suppress(AssertionError, LabError):  # there is no session, or the node can't run anything
                await asyncio.to_thread(kill_sessions, node)
        await asyncio.sleep(lasts)
        try:
            await asyncio.to_thread(fault.heal)
        except LabError as error:  # such as a node that is down meanwhile; it is healed in the end
            self._history.add("seen", "unhealed", **about, reason=str(error)[:300])
        else:
            self._history.add("seen", "healed", **about, id=fault.id)

    async def _agents(self, step: Step) -> list[str]:
        try:
            return list(map(str, await asyncio.to_thread(agents, self._site.node(step.node))))
        except LabError:
            return []  # the node is down, or can't start a process

    async def _signal(self, node: Node, name: str, pids: list[str]) -> None:
        if pids:
            with contextlib.suppress(LabError):
                await asyncio.to_thread(node.exec, ["kill", f"-{name}", *pids], user="root")

    async def _kill_agent(self, step: Step) -> None:
        node = self._site.node(step.node)
        found = await self._agents(step)
        self._history.add("invoke", "kill-agent", node=node.name, pids=found)
        await self._signal(node, "KILL", found)
        self._history.add("ok", "kill-agent", node=node.name)

    async def _stop_agent(self, step: Step) -> None:
        node = self._site.node(step.node)
        found = await self._agents(step)
        self._history.add("invoke", "stop-agent", node=node.name, pids=found)
        await self._signal(node, "STOP", found)
        if found:
            await asyncio.sleep(float(step.options["for"]))
        await self._signal(node, "CONT", found)
        self._history.add("ok", "stop-agent", node=node.name)

    async def _gateway(self, step: Step) -> None:
        how = str(step.options["how"])
        async with self._site.changing:
            self._history.add("invoke", "gateway", how=how)
            await self._site.end_gateway(how)
            self._history.add("seen", "gateway-down", how=how)
            await asyncio.sleep(float(step.options["away"]))
            try:
                await self._site.start_gateway()
            except LabError as error:
                self._history.add("fail", "gateway", how=how, reason=str(error)[-1000:])
                await self._site.start_gateway()
            self._history.add("ok", "gateway", how=how)
        if how == "stop":
            await self._close_what_is_gone()

    async def _trouble_gateway(self, step: Step, name: str, **options: Any) -> None:
        async with self._site.changing:
            self._history.add("invoke", step.do)
            try:
                fault = await asyncio.to_thread(
                    lambda: faults.add(self._site.lab, name, [self._site.gateway], duration=60, **options)
                )
                await asyncio.sleep(float(step.options["for"]))
                await asyncio.to_thread(fault.heal)
            except LabError as error:
                self._history.add("fail", step.do, reason=str(error)[:300])
            else:
                self._history.add("ok", step.do)

    async def _freeze(self, step: Step) -> None:
        """Have the gateway's machine stand still."""
        await self._trouble_gateway(step, "pause")

    async def _uplink(self, step: Step) -> None:
        """Cut the gateway off from all nodes at once; its clients still reach it."""
        await self._trouble_gateway(step, "partition", peers=[node.name for node in self._site.nodes])

    async def _close_what_is_gone(self) -> None:
        """Close the tabs of kernels that an orderly end of the gateway took along, as their users do who are told 404."""
        client = GatewayClient(self._site.url)
        with contextlib.suppress(GatewayError, httpx.HTTPError):
            there = {model["id"] for model in await client.list_kernels()}
            for slot in [slot for slot in self.tabs if self.ids[slot] not in there]:
                await self.tabs.pop(slot).close()
        await client.close()


DEEDS: Final[dict[str, Callable[[Actors, Step], Awaitable[None]]]] = {
    "start": Actors._start,
    "give-up": Actors._give_up,
    "bystand": Actors._bystand,
    "print": Actors._print,
    "cell": Actors._cell,
    "interrupt": Actors._interrupt,
    "restart": Actors._restart,
    "reconnect": Actors._reconnect,
    "delete": Actors._delete,
    "kill-kernel": Actors._kill_kernel,
    "fault": Actors._fault,
    "kill-agent": Actors._kill_agent,
    "stop-agent": Actors._stop_agent,
    "gateway": Actors._gateway,
    "freeze": Actors._freeze,
    "uplink": Actors._uplink,
}
"""What a step may `do`."""

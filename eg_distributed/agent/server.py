"""The agent's process: its socket, its gateways, and the kernels and streams that they ask for."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, Callable

from ..protocol import CHANNELS, MAX_MESSAGE, PROTOCOL, Message, encode, read_message
from ..streams import StreamBroken
from . import processes
from .kernels import EXITED, STARTING, Kernel
from .spawning import StartError
from .streams import Streams

IDLE = 300.0
"""Seconds without a kernel and without a visitor after which the agent leaves."""
EXITED_KEPT = 3600.0
"""Seconds for which the record of an ended kernel waits for a gateway to ask."""
TICK = 1.0
BACKLOG = 1024
"""Connections that may wait to be accepted: a gateway that comes back opens one for each stream at once."""
FOLDER_KEPT = 3600.0
"""Seconds for which a kernel's folder without a record, of a start that was cut short, is left alone."""
SILENCE = 60.0
"""Seconds after which a gateway that says nothing, not even a ping, is gone: its machine or the network was lost, and TCP,
which has nothing to send to it, would not notice for hours."""


class Gateway:
    """One control connection: a gateway's, identified by *owner* (stable) and *incarnation* (one life of its process)."""

    def __init__(self, owner: str, incarnation: str, writer: asyncio.StreamWriter) -> None:
        self.owner = owner
        self.incarnation = incarnation
        self.kernels: set[str] = set()  # the kernels it answers for
        self.heard = time.monotonic()
        self._writer = writer

    def send(self, message: Message) -> None:
        """Queue *message*; a gateway that does not read loses its connection, not our memory."""
        if self._writer.transport.get_write_buffer_size() > MAX_MESSAGE:
            self._writer.transport.abort()
        elif not self._writer.is_closing():
            self._writer.write(encode(message))

    def abort(self) -> None:
        """Close the connection at once; what is queued is lost."""
        self._writer.transport.abort()


class Agent:
    """The truth about this node for one user; *directory* (0700) holds the socket and the kernels' records."""

    def __init__(
        self, directory: Path, digest: str, idle: float = IDLE, umask: int = 0o077, open_files: int = -1
    ) -> None:
        self.directory = directory
        self.digest = digest
        self.idle = idle
        self.umask = umask  # of kernels: the login's own, not ours
        self.open_files = open_files  # the same of the soft limit of open files; -1: as ours
        self.kernels: dict[str, Kernel] = {}
        self.gateways: set[Gateway] = set()
        self.streams = Streams(self.kernels, self._notify)
        self._unclaimed: dict[str, float] = {}  # kernel id: since when no gateway answers for it
        self._orphans: set[str] = set()  # unclaimed for so long that they are being ended
        self._last_tick = time.monotonic()
        self._idle_since = time.monotonic()
        self._leave = asyncio.Event()
        self._visitors = 0
        self._finishing: list[Kernel] = []  # ended and forgotten, with something still to be run after them
        self._ending: set[asyncio.Task[None]] = set()
        self._methods: dict[str, Callable[[Gateway, Message], Any]] = {
            "start": self._start,
            "endpoints": self._endpoints,
            "signal": self._signal,
            "stop": self._stop,
            "forget": self._forget,
            "adopt": self._adopt,
            "list": self._list,
            "log": self._log,
            "ping": self._ping,
            "leave": self._leave_now,
        }

    # -- life ----------------------------------------------------------------------------------------------------

    async def run(self, listening: socket.socket) -> None:
        """Serve until idle, or until told to leave; kernels outlive the agent and are found again by the next one."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._leave.set)
        self._restore()
        server = await asyncio.start_unix_server(self._accept, sock=listening, backlog=BACKLOG)
        try:
            while not self._leave.is_set():
                self._tick()
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._leave.wait(), TICK)
        finally:
            # In this order: as long as this agent listens no boot starts another one, so the name is still our socket's.
            with contextlib.suppress(OSError):
                os.unlink(socket_path(self.directory))
            server.close()

    def _restore(self) -> None:
        for directory in (self.directory / "k").glob("*"):
            kernel = Kernel.load(directory, self._notify)
            if kernel is not None:
                self.kernels[kernel.id] = kernel
                self._unclaimed[kernel.id] = time.monotonic()
                kernel.save()
                kernel.watch()
            elif not (directory / "record.json").exists():
                with contextlib.suppress(OSError):  # somebody else removes it as well
                    if time.time() - directory.stat().st_mtime > FOLDER_KEPT:
                        shutil.rmtree(directory)

    def _tick(self) -> None:
        """Whatever is due: unowned kernels, forgotten records, abandoned streams, our own idleness."""
        now = time.monotonic()
        for gateway in list(self.gateways):
            if now - self._last_tick > SILENCE / 2:
                gateway.heard = now  # this node stood still, so nobody can have been heard
            elif now - gateway.heard > SILENCE:
                self._dismiss(gateway)
        self._last_tick = now
        for kernel_id, since in list(self._unclaimed.items()):
            kernel = self.kernels.get(kernel_id)
            if kernel is None:
                del self._unclaimed[kernel_id]
                continue
            if kernel_id in self._orphans:
                continue
            if kernel.state == EXITED:
                if now - since > EXITED_KEPT:
                    self._drop(kernel)
            elif kernel.orphan_timeout > 0 and now - since > kernel.orphan_timeout:
                self._end_orphan_soon(kernel)
        self.streams.tick()
        self._finishing = [kernel for kernel in self._finishing if not kernel.discarded]
        if self.kernels or self._visitors or self._finishing:
            self._idle_since = now
        elif now - self._idle_since > self.idle:
            self._leave.set()

    def _end_orphan_soon(self, kernel: Kernel) -> None:
        self._orphans.add(kernel.id)
        task = asyncio.ensure_future(self._end_orphan(kernel))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _end_orphan(self, kernel: Kernel) -> None:
        """End a kernel that nobody answers for; nothing of it stays, since nobody will ask, unless somebody came meanwhile."""
        await kernel.stop(grace=5.0)
        self._orphans.discard(kernel.id)
        if kernel.id in self._unclaimed and self.kernels.get(kernel.id) is kernel:
            self._let_go(kernel)

    def _drop(self, kernel: Kernel) -> None:
        """Forget an ended kernel and all that is left of it."""
        self.kernels.pop(kernel.id, None)
        self._unclaimed.pop(kernel.id, None)
        for gateway in self.gateways:
            gateway.kernels.discard(kernel.id)
        kernel.discard()
        if not kernel.discarded:
            self._finishing.append(kernel)
        self._tell_load()

    def _let_go(self, kernel: Kernel) -> None:
        """Forget an ended kernel that nobody wants anything more of, and close what gateways still have open to it.

        A kernel that merely ends, or is replaced by a restart, is only dropped: its streams end by themselves, after their
        last byte.
        """
        self.streams.close_of(kernel)
        self._drop(kernel)

    # -- connections ---------------------------------------------------------------------------------------------

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._visitors += 1
        try:
            hello = await asyncio.wait_for(read_message(reader), 10.0)
            if hello is None:
                return
            if hello.get("type") == "control":
                await self._serve_gateway(hello, reader, writer)
            elif hello.get("type") == "stream":
                await self.streams.serve(hello, reader, writer)
        except (OSError, ValueError, TypeError, KeyError, StreamBroken, asyncio.TimeoutError) as error:
            print(f"connection ended: {error!r}", file=sys.stderr, flush=True)
        finally:
            self._visitors -= 1
            with contextlib.suppress(OSError):
                writer.close()

    async def _serve_gateway(self, hello: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gateway = Gateway(hello["gateway"], hello["incarnation"], writer)
        for earlier in list(self.gateways):
            if (earlier.owner, earlier.incarnation) == (gateway.owner, gateway.incarnation):
                self._dismiss(earlier)  # half open: had its link not been lost, there would be no other one
        living = {gateway.incarnation, *(g.incarnation for g in self.gateways if g.owner == gateway.owner)}
        self.streams.close_earlier_lives(gateway.owner, living)
        self.gateways.add(gateway)
        kernels = [kernel.describe() for kernel in self.kernels.values()]
        gateway.send({"ok": True, "protocol": PROTOCOL, "digest": self.digest, "kernels": kernels})
        try:
            while gateway in self.gateways:  # what a dismissed one had still queued must not begin anything
                request = await read_message(reader)
                if request is None:
                    return
                gateway.heard = time.monotonic()
                task = asyncio.ensure_future(self._answer(gateway, request))
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)
        finally:
            self._dismiss(gateway)

    def _dismiss(self, gateway: Gateway) -> None:
        """A gateway is gone, or counts as gone: nobody answers for its kernels until somebody adopts them."""
        self.gateways.discard(gateway)
        claimed = set().union(*(other.kernels for other in self.gateways))
        for kernel_id in gateway.kernels - claimed:
            self._unclaimed[kernel_id] = time.monotonic()
        gateway.kernels.clear()
        gateway.abort()

    # -- events --------------------------------------------------------------------------------------------------

    def _notify(self, kernel: Kernel, event: str, fields: Message) -> None:
        message = {"event": event, "kernel": kernel.id, "attempt": kernel.attempt, **fields}
        for gateway in self.gateways:
            if kernel.id in gateway.kernels:
                gateway.send(message)
        if event == "exited":
            if kernel.id in self._unclaimed:
                self._unclaimed[kernel.id] = time.monotonic()  # its record waits from now on
            self._tell_load()

    def _tell_load(self) -> None:
        """Tell every gateway which kernels run here: what balancing counts."""
        running = [kernel.id for kernel in self.kernels.values() if kernel.state != EXITED]
        for gateway in self.gateways:
            gateway.send({"event": "load", "kernels": running})

    # -- requests ------------------------------------------------------------------------------------------------

    async def _answer(self, gateway: Gateway, request: Message) -> None:
        method = self._methods.get(request.get("method", ""))
        try:
            if method is None:
                raise ValueError(f"no method {request.get('method')!r}")
            result = await method(gateway, request.get("params") or {})
            gateway.send({"id": request.get("id"), "result": result})
        except StartError as error:
            kind = "host" if error.host_fault else "start"
            gateway.send({"id": request.get("id"), "error": str(error), "kind": kind})
        except KeyError as error:
            gateway.send({"id": request.get("id"), "error": f"unknown kernel or field {error}", "kind": "gone"})
        except Exception as error:  # noqa: BLE001 - a defect of one request must reach its gateway and not end the agent
            gateway.send({"id": request.get("id"), "error": repr(error), "kind": "internal"})

    async def _start(self, gateway: Gateway, params: Message) -> Message:
        if gateway not in self.gateways:
            raise StartError("the gateway that asked is gone", host_fault=True)
        kernel_id = params["kernel"]
        previous = self.kernels.get(kernel_id)
        if previous is not None:
            if previous.state != EXITED:
                text = f"kernel {kernel_id} already runs on this node (pid {previous.pid})"
                raise StartError(text, host_fault=True)  # one that could not be ended here may start elsewhere
            self._drop(previous)
        kernel = Kernel(kernel_id, self._kernel_directory(kernel_id), self._notify)
        self.kernels[kernel_id] = kernel
        gateway.kernels.add(kernel_id)
        try:
            given = {**params, "umask": self.umask, "open_files": self.open_files}
            await kernel.start(given, self._ports_taken())
        except BaseException:  # a malformed request included: a kernel that has no process must not be counted
            self._drop(kernel)
            raise
        self._tell_load()
        if gateway not in self.gateways:  # it left meanwhile
            self._unclaimed[kernel_id] = time.monotonic()
        return kernel.describe()

    def _ports_taken(self) -> set[int]:
        """Return the ports that were given to kernels which have not ended, whether they have bound them yet or not."""
        taken: set[int] = set()
        for kernel in self.kernels.values():
            if kernel.state != EXITED and kernel.connection.get("transport") == "tcp":
                taken.update(int(kernel.connection.get(f"{channel}_port", 0)) for channel in CHANNELS)
        return taken

    def _kernel_directory(self, kernel_id: str) -> Path:
        """Return a short name, since a UNIX socket's path may have 107 bytes; the record in it says whose it is."""
        short = "".join(c for c in kernel_id if c.isalnum())[:12]
        taken = {kernel.directory.name for kernel in self.kernels.values()}
        name = short
        while name in taken or (self.directory / "k" / name).exists():
            name = short + "-" + os.urandom(2).hex()
        return self.directory / "k" / name

    async def _endpoints(self, gateway: Gateway, params: Message) -> None:
        self.kernels[params["kernel"]].set_connection(params["connection"], int(params.get("pid") or 0))

    async def _signal(self, gateway: Gateway, params: Message) -> bool:
        return self.kernels[params["kernel"]].send_signal(int(params["signum"]))

    async def _stop(self, gateway: Gateway, params: Message) -> Message:
        kernel = self.kernels.get(params["kernel"])
        if kernel is None or (params.get("attempt") and kernel.attempt != params["attempt"]):
            return {"stopped": False}
        await kernel.stop(float(params.get("grace", 5.0)))
        if params.get("forget"):
            self._let_go(kernel)
        return {"stopped": True, "exit_code": kernel.exit_code}

    async def _forget(self, gateway: Gateway, params: Message) -> None:
        kernel = self.kernels.get(params["kernel"])
        if kernel is not None and kernel.state == EXITED:
            self._let_go(kernel)

    async def _adopt(self, gateway: Gateway, params: Message) -> Message:
        """Make the gateway the one that answers for these kernels; what is missing is gone."""
        found = {}
        for kernel_id in params["kernels"]:
            kernel = self.kernels.get(kernel_id)
            if kernel is not None and gateway in self.gateways:
                gateway.kernels.add(kernel_id)
                if kernel.owner != gateway.owner:
                    kernel.owner = gateway.owner
                    kernel.save()
                self._unclaimed.pop(kernel_id, None)
                tail = await kernel.read_tail() if kernel.state == EXITED else ""
                found[kernel_id] = {**kernel.describe(), "log": tail, "response": kernel.response}
        return found

    async def _list(self, gateway: Gateway, params: Message) -> list[Message]:
        claimed = {kernel_id for other in self.gateways for kernel_id in other.kernels}
        return [{**k.describe(), "claimed": k.id in claimed} for k in self.kernels.values()]

    async def _log(self, gateway: Gateway, params: Message) -> str:
        return await self.kernels[params["kernel"]].read_tail(int(params.get("size", 65536)))

    async def _ping(self, gateway: Gateway, params: Message) -> Message:
        return {
            "pid": os.getpid(),
            "digest": self.digest,
            "starting": self._count(STARTING),
            "running": len(self.kernels),
        }

    def _count(self, state: str) -> int:
        return sum(kernel.state == state for kernel in self.kernels.values())

    async def _leave_now(self, gateway: Gateway, params: Message) -> bool:
        """Leave if no kernel is here and nobody else is served; for clean-up and upgrades."""
        if self.kernels or self.gateways - {gateway} or any(not kernel.discarded for kernel in self._finishing):
            return False
        asyncio.get_running_loop().call_soon(self._leave.set)
        return True


def socket_path(directory: Path) -> Path:
    """Return where the agent in *directory* listens: releases that speak the same protocol share one agent."""
    return directory / f"agent-{PROTOCOL}.sock"


def main(directory: str, digest: str, umask: str = "077") -> None:
    """Run an agent in *directory*; called by the archive's `__main__`, started by `boot`.

    The socket is bound under a name of its own and then moved, so that whoever sees the real name can connect.
    """
    processes.reset_signals()
    os.umask(0o077)
    os.chdir("/")
    home = Path(directory)
    (home / "k").mkdir(mode=0o700, exist_ok=True)
    path = str(socket_path(home))
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    temporary = path + ".new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    listening.bind(temporary)
    listening.listen(BACKLOG)
    os.rename(temporary, path)
    agent = Agent(home, digest, umask=int(umask, 8), open_files=processes.raise_file_limit())

    async def serve() -> None:
        # asyncio.Event must be made where its loop runs on Python 3.9.
        agent._leave = asyncio.Event()
        await agent.run(listening)

    asyncio.run(serve())

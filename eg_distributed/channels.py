"""A kernel's five channels at the gateway: local endpoints whose connections are resumable streams to the agent.

The endpoints, UNIX sockets or else loopback ports, stand for as long as the gateway has the kernel: over cuts of the SSH
connection, over restarts of the kernel, and, at the same paths, over restarts of the gateway. ZMQ never notices.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import random
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .agent.sockets import peer
from .connections import Connection
from .counters import HostCounters
from .link.deadlines import within
from .protocol import CHANNELS, StreamAnswer, StreamHello
from .streams import Relay, StreamBroken
from .wire import MAX_ANSWER, LocalWriter, Reader, Writer, encode, one_line, read_message

log = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"
_MAX_PATH = 107  # of a UNIX socket on Linux
_ANSWER_DEADLINE = 15.0  # seconds for the agent's answer to a stream's hello; then the stream is tried anew
_BACKLOG = 100
"""Connections to one socket that wait to be taken, as asyncio has it."""
_OUTPUT_FIRST = 1.0
"""Seconds, at most, that requests to a kernel wait for the subscribers of its output that are connected here already."""
_RETRY, _LAST_RETRY = 0.2, 5.0
"""Seconds before a stream that could not be opened, on a node that is connected, is tried again: twice as many each time."""


class Endpoints:
    """Listens at *prefix*-1 to *prefix*-5, ZMQ's `ipc` names for the five channels; owned by a RemoteKernel.

    *how* is `ipc` for that, `tcp` for loopback ports instead, which this user alone may connect to, and `auto` for those only
    where no UNIX socket can be had: a path that is too long, a file system without them. *usable(resuming)* waits until a
    stream can be opened; *open_link* opens a byte connection to the agent; *note* is called with the error of a stream that could
    not be opened, and with None when one was; *identity* is the gateway's and its incarnation. *lease* returns the number that is
    held of the kernel.
    """

    def __init__(
        self,
        prefix: Path,
        kernel_id: str,
        identity: tuple[str, str],
        usable: Callable[[bool], Awaitable[None]],
        open_link: Callable[[], Awaitable[tuple[Reader, Writer]]],
        note: Callable[[Exception | None], None],
        limit: int,
        how: str = "auto",
        lease: Callable[[], int] = lambda: 0,
    ) -> None:
        self.prefix = prefix
        self._how = how
        self._ports: list[int] = []
        self._had_sockets = False
        # Of the sockets that were made, with what tells them from later ones.
        self._names: dict[str, tuple[int, int]] = {}
        self._id = kernel_id
        self._identity = identity
        self._usable = usable
        self._open_link = open_link
        self._note = note
        self._lease = lease
        self._limit = limit
        self._bound: list[
            tuple[str, socket.socket]
        ] = []  # by their channels: those that listen, and are not served yet
        self._servers: list[asyncio.base_events.Server] = []
        self._generation = 0  # of what listens
        self._relays: set[Relay] = set()
        self._opening: set[Relay] = set()  # of output: those that the agent has not yet
        self._are_open = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.on_broken: Callable[[], None] | None = None
        """Called when a stream of output could not be resumed, so that some of it is lost."""
        self.counters: HostCounters | None = None
        """Where the bytes of the streams are counted: of the host on which the kernel is."""

    @property
    def connection_info(self) -> dict[str, Any]:
        """What a Jupyter client needs to connect, but for the key."""
        numbers = self._ports or range(1, len(CHANNELS) + 1)
        ports = {f"{channel}_port": number for channel, number in zip(CHANNELS, numbers, strict=True)}
        where = {"transport": "tcp", "ip": _LOOPBACK} if self._ports else {"transport": "ipc", "ip": str(self.prefix)}
        return {**where, **ports}

    async def open(self, before: Mapping[str, Any] | None = None) -> None:
        """Listen; called again after a restart, since Jupyter's clean-up removes the sockets' names.

        As `bind` and `serve`, at once. Streams that are open stay so.
        """
        self.bind(before)
        await self.serve()

    def take_over(self, before: Mapping[str, Any]) -> None:
        """See to it that `connection_info` is final, and leave the rest to `serve`; from any thread, if no other knows of these.

        *before* is the connection information that an earlier process of this gateway gave out. Where that names the sockets of
        `prefix` they are made in `serve`, since five files take milliseconds on a busy disk, and ZMQ waits for them.
        Raises OSError as `bind`.
        """
        if self._how != "tcp" and before.get("transport") == "ipc" and before.get("ip") == str(self.prefix):
            self._had_sockets = True
        else:
            self.bind(before)

    def bind(self, before: Mapping[str, Any] | None = None) -> None:
        """Make the sockets; who connects to them waits for `serve`.

        *before* is the connection information that an earlier process of this gateway gave out: its ports are taken again if they
        are free. Raises OSError, for instance, with `ipc`, for a path that is too long.
        """
        if self._ports:
            return  # nobody removes those
        self._stop_listening()
        if self._how != "tcp":
            try:
                self._bind_sockets()
            except OSError as error:
                self._stop_listening()
                # Clients of a kernel that has had its sockets know those alone.
                if self._how == "ipc" or self._had_sockets:
                    raise
                log.warning(
                    "kernel %s: its channels are loopback ports, as there is no UNIX socket: %s", self._id, error
                )
            else:
                self._had_sockets = True
                return
        again = before or {}
        self._bind_ports(
            [again.get(f"{channel}_port", 0) if again.get("transport") == "tcp" else 0 for channel in CHANNELS]
        )

    async def serve(self) -> None:
        """Take the connections to the sockets, which are made if they aren't there; nothing if that is done already."""
        if not self._bound and not self._servers:
            self.bind()
        loop = asyncio.get_running_loop()
        while self._bound:
            channel, listening = self._bound.pop(0)
            generation = self._generation
            if listening.family == socket.AF_UNIX:
                accepted = functools.partial(Connection, self._accept(channel))
                server = await loop.create_unix_server(accepted, sock=listening)
            else:
                accepted = functools.partial(Connection, self._for_us(channel))
                server = await loop.create_server(accepted, sock=listening)
            if generation == self._generation:
                self._servers.append(server)
            else:
                server.close()  # others have been bound meanwhile, or none is wanted any more

    def _bind_ports(self, wanted: Sequence[int]) -> None:
        """Bind the *wanted* ports, 0 for any; another one where somebody has it now."""
        ports = []
        try:
            for channel, port in zip(CHANNELS, wanted, strict=True):
                try:
                    listening = _listen(socket.AF_INET, (_LOOPBACK, port))
                except OSError:
                    if not port:
                        raise
                    listening = _listen(socket.AF_INET, (_LOOPBACK, 0))
                self._bound.append((channel, listening))
                ports.append(listening.getsockname()[1])
        except OSError:
            self._stop_listening()
            raise
        self._ports = ports

    def _bind_sockets(self) -> None:
        if len(os.fsencode(self.prefix)) + 2 > _MAX_PATH:
            raise OSError(f"{self.prefix}: too long for a UNIX socket; set Distributed.runtime_dir to a shorter folder")
        # Without its parents: who makes the runtime folder sees to it that it is private, and that was before this.
        self.prefix.parent.mkdir(mode=0o700, exist_ok=True)
        for number, channel in enumerate(CHANNELS, 1):
            path = f"{self.prefix}-{number}"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            self._bound.append((channel, _listen(socket.AF_UNIX, path)))
            self._names[path] = _file(path)

    def _stop_listening(self) -> None:
        self._generation += 1
        for server in self._servers:
            server.close()  # not waited for: from Python 3.12 on that would wait for the open streams as well
        self._servers.clear()
        for _, listening in self._bound:
            listening.close()
        self._bound.clear()

    async def close(self) -> None:
        """Close every stream and remove the sockets; their names are gone before anything is waited for.

        By the time the last stream has ended, a kernel that was started with the same id may listen by those names.
        """
        self.unbind()
        self.drop_streams()
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def unbind(self) -> None:
        """Listen no more, and remove the sockets; streams that are open stay so. Waits for nothing."""
        self._stop_listening()
        self._ports.clear()
        for number in range(1, len(CHANNELS) + 1):
            path = f"{self.prefix}-{number}"
            with contextlib.suppress(OSError):
                # Not those of another gateway with the same folder, which has taken the kernel over.
                if self._names.get(path) in (None, _file(path)):
                    os.unlink(path)
        with contextlib.suppress(OSError):
            self.prefix.parent.rmdir()

    def drop_streams(self) -> None:
        """Close the streams that are open; ZMQ connects again by itself. For a kernel that moves to another node."""
        for relay in list(self._relays):
            relay.close()

    def _for_us(self, channel: str) -> Callable[[Reader, LocalWriter], None]:
        """As `_accept`, for a port: what a socket's file modes do there. Kernels' output needs no key to be listened to."""
        accept = self._accept(channel)

        def accepted(reader: Reader, writer: LocalWriter) -> None:
            if peer(writer) == os.getuid():
                accept(reader, writer)
            else:
                log.warning("kernel %s: another user of this machine may not use its %s channel", self._id, channel)
                writer.close()

        return accepted

    def _accept(self, channel: str) -> Callable[[Reader, LocalWriter], None]:
        def accepted(reader: Reader, writer: LocalWriter) -> None:
            relay = Relay(reader, writer, self._limit)
            relay.flow.on_moved = self._count
            task = asyncio.ensure_future(self._carry(channel, relay))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return accepted

    def _count(self, to_kernel: int, from_kernel: int) -> None:
        if self.counters is not None:
            self.counters.bytes_to_kernels += to_kernel
            self.counters.bytes_from_kernels += from_kernel

    async def _carry(self, channel: str, relay: Relay) -> None:
        """Carry one connection, over as many links as it takes."""
        running = asyncio.ensure_future(relay.run())
        self._relays.add(relay)
        gateway, incarnation = self._identity
        hello = StreamHello(
            kernel=self._id,
            channel=channel,
            stream=secrets.token_hex(8),
            gateway=gateway,
            incarnation=incarnation,
            resume=False,
            received=0,
        )
        resume, pause = False, _RETRY
        if channel == "iopub":
            self._opening.add(relay)
        try:
            while not relay.closed.is_set():
                if not resume and relay.flow.finished:
                    return  # it came and went before the kernel could be reached: ZMQ sends nothing before it is greeted
                await _or_closed(self._usable(resume), relay)
                if channel != "iopub" and not resume:
                    await self._after_output(relay)
                if relay.closed.is_set():
                    return
                try:
                    resume = await self._serve(relay, hello, resume)
                    pause = _RETRY
                except (OSError, asyncio.TimeoutError) as error:  # two things before Python 3.11
                    log.debug("stream %s of %s waits: %s", hello.stream, channel, error)
                    self._note(error)
                    await _pause(pause * random.uniform(1, 1.5), relay)
                    pause = min(2 * pause, _LAST_RETRY)
        except StreamBroken as error:
            self._report(channel, relay, one_line(str(error)))
        finally:
            relay.close()
            self._relays.discard(relay)
            self._note_open(relay)
            await asyncio.wait({running})

    async def _after_output(self, relay: Relay) -> None:
        """Wait for the streams of output that are being opened: ZMQ connects to a kernel that was started again in any order.

        Whoever sends a cell at once would else miss what it prints until its subscription arrives.
        """
        if self._opening:
            self._are_open.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await within(_or_closed(self._are_open.wait(), relay), _OUTPUT_FIRST)

    def _note_open(self, relay: Relay) -> None:
        """Note that the agent has the stream of output *relay*, or that it is gone."""
        self._opening.discard(relay)
        if not self._opening:
            self._are_open.set()

    async def _serve(self, relay: Relay, hello: StreamHello, resume: bool) -> bool:
        """Carry the stream over one link; returns whether the agent has it now. Raises OSError if no link can be had."""
        opening = asyncio.ensure_future(self._open_link())
        try:
            reader, writer = await within(opening, _ANSWER_DEADLINE)
        except asyncio.CancelledError:
            if opening.done() and not opening.cancelled() and opening.exception() is None:
                opening.result()[1].close()
            raise
        try:
            now = replace(hello, resume=resume, received=relay.flow.received, lease=self._lease())
            writer.write(encode(now.write()))
            message = await within(read_message(reader, MAX_ANSWER), _ANSWER_DEADLINE)
            answer = None if message is None else StreamAnswer.read(message)
        except asyncio.CancelledError:
            writer.close()
            raise
        except (OSError, asyncio.TimeoutError, ValueError) as error:
            writer.close()
            # The agent may have made the stream although its answer was lost: then it can only be resumed.
            raise ConnectionError(repr(error)) from error
        if answer is None:
            writer.close()
            raise ConnectionError("the agent closed the connection")
        self._note(None)
        if not answer.ok:
            writer.close()
            if resume and not answer.taken and not (relay.flow.finished and relay.flow.backlog <= 1):
                raise StreamBroken(answer.error or "no reason given")
            # Never opened: ZMQ connects again by itself. Or nothing but our end of the stream had not been acknowledged.
            relay.close()
            return False
        self._note_open(relay)
        if answer.stalled:
            log.warning(
                "kernel %s: its %s channel could not be read for %.1f s while the node was out of reach and the replay buffer "
                "full; the kernel itself may have dropped output",
                self._id, hello.channel, answer.stalled,
            )  # fmt: skip
        await relay.serve(reader, writer, answer.received)
        return True

    def _report(self, channel: str, relay: Relay, why: str) -> None:
        """Say that a stream could not be resumed: what was under way on it is lost, and that must not be silent."""
        log.error(
            "kernel %s: the %s channel was interrupted for good (%s); up to %d bytes from the gateway and unknown output of the "
            "kernel are lost",
            self._id, channel, why, relay.flow.backlog,
        )  # fmt: skip
        if channel == "iopub" and self.on_broken is not None:
            self.on_broken()


def _file(path: str) -> tuple[int, int]:
    """Return what tells a file from a later one of its name, which may have its inode's number; raises OSError."""
    found = os.stat(path)
    return found.st_ino, found.st_ctime_ns


def _listen(family: socket.AddressFamily, address: str | tuple[str, int]) -> socket.socket:
    """Return a socket that listens at *address*; raises OSError."""
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setblocking(False)
        if family != socket.AF_UNIX:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except BaseException:  # whatever it is, the socket is nobody's
        listening.close()
        raise
    return listening


async def _pause(seconds: float, relay: Relay) -> None:
    """Wait so long, or until the stream is closed at this end."""
    await _or_closed(asyncio.sleep(seconds), relay)


async def _or_closed(waiting: Awaitable[object], relay: Relay) -> None:
    """Wait for *waiting*, or until the stream is closed at this end."""
    tasks = {asyncio.ensure_future(waiting), asyncio.ensure_future(relay.closed.wait())}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()

"""A node: one host from the gateway's side. Holds the link, asks the agent, hears its events, and comes back after a cut."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import Any

from . import ssh
from .errors import AgentUnavailable, HostError, HostUnresponsive, KernelGone, KernelStartFailed
from .protocol import PROTOCOL, Message, Reader, Writer, encode, read_message
from .settings import Distributed

log = logging.getLogger(__name__)

_FIRST_BACKOFF, _LAST_BACKOFF = 0.2, 5.0
"""Seconds between attempts to come back, each with up to half as much again of jitter."""
_IDLE_BACKOFF = 60.0
"""The same where only ended kernels wait for the host: it may have been taken away for good."""
_MISSED = 3  # signs of life that an agent may leave unanswered
_PING = 15.0  # seconds between two signs of life to the agent, which gives up a gateway that is silent for a minute


class Node:
    """The connection to one host and its agent; one per host, shared by all kernels there, owned by the Cluster.

    *listen* is told every event about a kernel, and after each (re)connection what became of those that *wanted* names
    (event `found`). All methods run on the cluster's loop.
    """

    def __init__(
        self,
        name: str,
        settings: Distributed,
        identity: tuple[str, str],
        listen: Callable[[Message], None],
        wanted: Callable[[], list[str]],
    ) -> None:
        self.name = name
        self.running: set[str] = set()  # kernels of all gateways, as the agent says
        self.last_error: HostError | None = None
        self.failed_at = 0.0
        self.connections = 0  # made so far
        self.connected = asyncio.Event()
        self.disconnected_at = 0.0
        self.abandoned: dict[tuple[str, str], float] = {}  # (kernel, attempt): since when it must not live on there
        self._settings = settings
        self._identity = identity
        self._listen = listen
        self._wanted = wanted
        self._link: ssh.Link | None = None
        self._writer: Writer | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._serving: asyncio.Task[None] | None = None
        self._coming_back: asyncio.Task[None] | None = None
        self._claiming: set[asyncio.Task[None]] = set()
        self._abandoning: set[asyncio.Task[None]] = set()
        self._replies: dict[int, asyncio.Future[Any]] = {}
        self._last_id = 0
        self._closed = False

    # -- connecting ----------------------------------------------------------------------------------------------

    async def connect(self) -> None:
        """Have a connection: return at once if there is one, else make it, together with whoever else wants it.

        Raises HostError. Cancellation: the attempt goes on for the others.
        """
        if self.connected.is_set():
            return
        if self._connecting is None:
            self._connecting = asyncio.ensure_future(self._connect())
            self._connecting.add_done_callback(self._connect_ended)
        await asyncio.shield(self._connecting)

    def _connect_ended(self, task: asyncio.Task[None]) -> None:
        self._connecting = None
        if not task.cancelled() and isinstance(error := task.exception(), HostError):
            self.failed(error)

    def failed(self, error: HostError) -> None:
        """Remember that the host could not be reached, or not take a kernel, just now."""
        self.last_error, self.failed_at = error, time.monotonic()

    async def _connect(self) -> None:
        try:
            link = await ssh.connect(self.name, self._settings)
        except HostError:
            raise
        except Exception as error:  # whatever it is, it is this host's: starts move on, and coming back goes on
            log.exception("%s: an error that nobody expected", self.name)
            raise AgentUnavailable(
                f"connecting failed unexpectedly ({error!r})", host=self.name, remedy="see the gateway's log"
            ) from error
        self.connections += 1
        try:
            reader, writer = await asyncio.wait_for(link.open(), self._settings.request_timeout)
            owner, incarnation = self._identity
            writer.write(encode({"type": "control", "gateway": owner, "incarnation": incarnation}))
            hello = await asyncio.wait_for(read_message(reader), self._settings.request_timeout)
            if hello is None or hello.get("protocol") != PROTOCOL:
                raise AgentUnavailable("its agent speaks another protocol", host=self.name, remedy="end that agent")
        except (OSError, asyncio.TimeoutError, ValueError) as error:
            link.close()
            raise AgentUnavailable(
                f"its agent does not answer ({error!r})",
                host=self.name,
                remedy="see agent.log in ~/.cache/eg-distributed",
            ) from error
        except BaseException:  # cancellation included: no link may be left behind
            link.close()
            raise
        self._link, self._writer = link, writer
        self.running = {kernel["kernel"] for kernel in hello["kernels"] if kernel["state"] != "exited"}
        self.last_error = None
        self._serving = asyncio.ensure_future(self._serve(link, reader))
        try:
            await self._take_back()
        except HostError:
            link.close()
            raise
        except Exception as error:  # a defective answer is this host's trouble, and must not end our coming back
            link.close()
            raise AgentUnavailable(
                f"its agent's answers make no sense ({error!r})", host=self.name, remedy="end that agent"
            ) from error
        if self._link is not link:
            raise HostUnresponsive(
                "the connection was lost again at once", host=self.name, remedy="check the network to the host"
            )
        self.connected.set()

    async def _take_back(self) -> None:
        """Claim our kernels again, learn what became of them meanwhile, and end the starts that we gave up."""
        await self._claim(self._wanted())
        for kernel_id, attempt in list(self.abandoned):
            # Not waited for: one that can't be killed must not keep the others waiting.
            self.abandon(kernel_id, attempt)

    async def _claim(self, kernels: list[str]) -> None:
        """Tell the agent that we answer for *kernels*, and hear what has become of each."""
        if kernels:
            found = await self.request("adopt", {"kernels": kernels})
            for kernel_id in kernels:
                self._listen({"event": "found", **(found.get(kernel_id) or {"kernel": kernel_id, "state": "missing"})})

    async def _serve(self, link: ssh.Link, reader: Reader) -> None:
        """Hear the agent until the link is lost, then come back if anything of ours is there."""
        watching = asyncio.ensure_future(link.wait_closed())
        hearing = asyncio.ensure_future(self._hear(reader))
        pinging = asyncio.ensure_future(self._ping(link))
        try:
            await asyncio.wait({watching, hearing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (watching, hearing, pinging):
                task.cancel()
            link.close()
            self._lost()

    async def _ping(self, link: ssh.Link) -> None:
        """Tell the agent that we live, and give up a link whose agent doesn't: SSH's keep-alives ask sshd alone."""
        missed = 0
        while missed < _MISSED:
            await asyncio.sleep(_PING)
            try:
                await self.request("ping", {})
                missed = 0
            except HostError:
                missed += 1
        log.warning("%s: its agent has not answered for %d s: reconnecting", self.name, _MISSED * _PING)
        link.close()

    async def _hear(self, reader: Reader) -> None:
        while True:
            try:
                message = await read_message(reader)
            except (ValueError, TypeError):
                log.warning("%s sent no proper message: reconnecting", self.name)
                return
            if message is None:
                return
            if "event" not in message:
                reply = self._replies.pop(message.get("id", 0), None)
                if reply is not None and not reply.done():
                    reply.set_result(message)
            elif message["event"] == "load":
                self.running = set(message["kernels"])
            else:
                try:
                    self._listen(message)
                except Exception:  # what one kernel's adapter makes of it must not cut off all kernels of the host
                    log.exception("%s: an event was not taken: %r", self.name, message.get("event"))

    def _lost(self) -> None:
        """The link is gone: whoever waits for an answer hears so, and kernels there are unknown, not dead."""
        self.connected.clear()
        if self._writer is not None:
            self._writer.close()  # a link to this machine's own agent holds no connections that it could close
        self._link = self._writer = None
        self.disconnected_at = asyncio.get_running_loop().time()
        replies, self._replies = self._replies, {}
        for reply in replies.values():
            if not reply.done():
                reply.set_exception(
                    HostUnresponsive("the connection was lost", host=self.name, remedy="check the network to the host")
                )
                reply.exception()  # seen: its waiter may have gone already
        self._start_coming_back()

    def _start_coming_back(self) -> None:
        if not self._closed and (self._coming_back is None or self._coming_back.done()):
            self._coming_back = asyncio.ensure_future(self._come_back())

    def keep_connected(self, fresh: str) -> None:
        """Connect, and stay so for as long as kernels are wanted; *fresh* is one that this node is to be asked about now.

        Does not wait: what the node says of the kernel comes as an event.
        """
        if self.connected.is_set():
            self._claiming.add(task := asyncio.ensure_future(self._claim_or_reconnect(fresh)))
            task.add_done_callback(self._claiming.discard)
        else:
            self._start_coming_back()

    async def _claim_or_reconnect(self, kernel_id: str) -> None:
        try:
            await self._claim([kernel_id])
        except HostError as error:
            # Whether the claim arrived is unknown, and without it nobody would tell us of the kernel: begin anew with all.
            log.warning("%s: claiming kernel %s failed, reconnecting: %s", self.name, kernel_id, error)
            if self._link is not None:
                self._link.close()

    def abandon(self, kernel_id: str, attempt: str) -> None:
        """See to it that nothing of a start lives on there, now or as soon as the node is back; waits for nothing."""
        self._abandoning.add(task := asyncio.ensure_future(self.end(kernel_id, attempt)))
        self.mark_abandoned(kernel_id, attempt)
        task.add_done_callback(self._abandoning.discard)

    def mark_abandoned(self, kernel_id: str, attempt: str) -> None:
        """Have a start ended when the node is next connected, unless `end` has done so before."""
        self.abandoned.setdefault((kernel_id, attempt), time.monotonic())

    async def end(self, kernel_id: str, attempt: str) -> None:
        """End a start and forget it, now or, if the node does not answer, as soon as it is back. Raises nothing.

        By its attempt, since the kernel may have been started there again meanwhile.
        """
        self.mark_abandoned(kernel_id, attempt)
        try:
            await self.request("stop", {"kernel": kernel_id, "attempt": attempt, "grace": 0, "forget": True})
        except (HostError, KernelGone) as error:
            log.debug("%s: attempt %s of kernel %s is not ended yet: %s", self.name, attempt, kernel_id, error)
            if not self.connected.is_set() and self._connecting is None:
                self._start_coming_back()
        else:
            self.abandoned.pop((kernel_id, attempt), None)

    async def _come_back(self) -> None:
        """Reconnect, ever more patiently, for as long as something of ours is there."""
        backoff, said = _FIRST_BACKOFF, ""
        while not self._closed and not self.connected.is_set() and (self._wanted() or self._still_abandoned()):
            try:
                await self.connect()
                log.info("%s is back", self.name)
                return
            except HostError as error:
                log.log(logging.DEBUG if str(error) == said else logging.WARNING, "cannot reconnect: %s", error)
                said = str(error)
            await asyncio.sleep(backoff * random.uniform(1, 1.5))
            backoff = min(backoff * 2, _LAST_BACKOFF if self._wanted() else _IDLE_BACKOFF)

    def _still_abandoned(self) -> bool:
        """Whether something is to be ended there; what the node's agent has ended as an orphan by now is not."""
        lifetime = self._settings.orphan_timeout
        if lifetime > 0:
            now = time.monotonic()
            self.abandoned = {start: since for start, since in self.abandoned.items() if now - since <= lifetime}
        return bool(self.abandoned)

    # -- talking -------------------------------------------------------------------------------------------------

    async def request(self, method: str, params: Message, timeout: float | None = None) -> Any:
        """Ask the agent and return its answer; *timeout* in seconds, the request_timeout setting by default.

        Raises HostUnresponsive without an answer in time, KernelStartFailed or KernelGone as the agent says.
        """
        if self._writer is None:
            raise HostUnresponsive("not connected", host=self.name, remedy="check the network to the host")
        self._last_id += 1
        number = self._last_id
        reply: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._replies[number] = reply
        seconds = self._settings.request_timeout if timeout is None else timeout
        try:
            self._writer.write(encode({"id": number, "method": method, "params": params}))
            message = await asyncio.wait_for(reply, seconds)
        except asyncio.TimeoutError:
            raise HostUnresponsive(
                f"no answer to {method!r} within {seconds:g} s",
                host=self.name,
                remedy="check whether the host hangs or is overloaded",
            ) from None
        except OSError as error:
            raise HostUnresponsive(f"the connection was lost ({error})", host=self.name) from error
        finally:
            self._replies.pop(number, None)
        if "error" in message:
            raise self._agent_error(message)
        return message.get("result")

    def _agent_error(self, message: Message) -> Exception:
        text = str(message["error"])
        if message.get("kind") == "start":
            return KernelStartFailed(
                text, host=self.name, remedy="check argv, PATH and the files that the kernelspec names, on that host"
            )
        if message.get("kind") == "host":
            return AgentUnavailable(text, host=self.name, remedy="free disk, memory, processes or ports on the host")
        if message.get("kind") == "gone":
            return KernelGone(text, host=self.name, remedy="start the kernel again")
        return AgentUnavailable(f"its agent failed: {text}", host=self.name, remedy="see agent.log on the host")

    async def open(self) -> tuple[Reader, Writer]:
        """Open a byte connection to the agent, for one stream; raises OSError if the node is not connected."""
        if self._link is None:
            raise ConnectionError("not connected")
        return await self._link.open()

    async def close(self) -> None:
        """Close the connection; kernels there live on. Called by the cluster when it ends."""
        self._closed = True
        for task in (self._coming_back, self._connecting, self._serving):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        if self._link is not None:
            self._link.close()

"""What other rooms know of a way to a host: the kinds of link that need no SSH, and how far a login has come."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

from eg_distributed.clock import monotonic
from eg_distributed.connections import connect_unix
from eg_distributed.wire import Reader, Writer

if TYPE_CHECKING:
    from .configuration import Configuration

__all__ = [
    "BANNER",
    "CONNECTING",
    "KEYS",
    "Link",
    "LocalLink",
    "Progress",
    "is_gateway",
]

CONNECTING, BANNER, KEYS = "connecting", "waiting for sshd's first words", "exchanging keys"
"""Phases of a login that messages tell the seconds of."""


def is_gateway(name: str) -> bool:
    """Whether *name* means this machine, so that no SSH is needed; looks no name up, since that may block."""
    bare = name.lower().rstrip(".").split("%")[0]
    own = socket.gethostname().lower()
    if bare in ("localhost", "localhost.localdomain", "ip6-localhost", own, own.split(".")[0]):
        return True
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        return False
    if address.is_loopback:
        return True
    with socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(address), 22))  # UDP: chooses a route and sends nothing
            return str(probe.getsockname()[0]) == str(address)  # the way to one's own address begins there
        except OSError:
            return False


@dataclasses.dataclass
class Progress:
    """How far a login has come, for messages, and for the node, which tells a slow host from a dead one by it."""

    phase: str = "reading ssh_config"
    answered: bool = False
    """True once the host's sshd has said its first words."""
    hop: Progress | None = None
    """The login to the jump host that is under way."""
    steps: list[tuple[str, float]] = dataclasses.field(default_factory=list)
    """Each finished phase with its seconds."""
    configuration: Configuration | None = None
    began: float = dataclasses.field(default_factory=monotonic)
    _since: float = dataclasses.field(default_factory=monotonic)

    def enter(self, phase: str) -> None:
        """End the phase that is under way, and begin *phase*."""
        now = monotonic()
        self.steps.append((self.phase, now - self._since))
        self.phase, self._since = phase, now

    def has_answered(self) -> bool:
        """Return True if the host, or the jump host that is gone through, has answered: then it is slow, and not dead."""
        return self.answered or (self.hop is not None and self.hop.has_answered())

    def say(self) -> str:
        """Return what is done, as part of a sentence: `connected in 0.01 s, sshd answered in 0.20 s`."""
        words = {CONNECTING: "connected in", BANNER: "sshd answered in", KEYS: "keys were exchanged in"}
        return ", ".join(f"{words[phase]} {seconds:.2f} s" for phase, seconds in self.steps if phase in words)


class Link(ABC):
    """An open way to one host's agent; made by `connect`, owned by a Node."""

    turn: Callable[[], contextlib.AbstractAsyncContextManager[None]] = staticmethod(contextlib.nullcontext)
    """What a further login of the link is made in; set by its Node, whose logins take turns."""

    @abstractmethod
    async def open(self) -> tuple[Reader, Writer]:
        """Open a byte connection to the agent's socket; raises OSError."""

    @abstractmethod
    def close(self) -> None:
        """Close the link and all that was opened through it."""

    @abstractmethod
    async def wait_closed(self) -> None:
        """Wait until the link is gone, for whatever reason."""


class LocalLink(Link):
    """Plain UNIX connections to an agent on this machine."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._closed = asyncio.Event()

    async def open(self) -> tuple[Reader, Writer]:
        """Connect to the agent's socket."""
        made = await connect_unix(self._path)
        return made, made

    def close(self) -> None:
        """Nothing is held; only those who wait are told."""
        self._closed.set()

    async def wait_closed(self) -> None:
        """Wait for `close`: the machine itself does not go away."""
        await self._closed.wait()

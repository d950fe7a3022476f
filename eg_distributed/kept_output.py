"""What an agent kept of a kernel's output while no gateway was there, taken piece by piece; its partner is on the node."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from typing import NamedTuple

from .agent.kept_output import HEARD, RECORD, SILENCE
from .agent.zmtp import NotZmtp, split
from .errors import HostUnresponsive, KernelGone
from .node import Node
from .protocol import ForgetOutput, OutputPart, TakeOutput
from .wire import Malformed

_LONGEST = 64 << 20  # bytes of a record, of which agents keep a quarter


class Kept(NamedTuple):
    """One message, or what is missing where it stands."""

    parts: list[bytes]
    """As ZMQ has them; none where only something is missing."""
    lost: int = 0
    """Messages that were heard before it and could not be kept."""
    unheard: float | None = None
    """Seconds, at most, in which nobody listened where this stands; None: somebody did."""


class Records:
    """Reads the records that an agent sends in pieces which end anywhere."""

    def __init__(self) -> None:
        self.position = 0
        """What to ask for next."""
        self._expected: int | None = 0  # the number of the next message; None: whichever comes
        self._partial = b""

    @property
    def number(self) -> int:
        """Up to which number messages were read, or counted as missing."""
        return self._expected or 0

    def take(self, part: OutputPart) -> Iterator[Kept]:
        """Yield what *part* completes; raises Malformed."""
        try:
            data = base64.b64decode(part.data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise Malformed(f"no base64: {error}") from None
        if part.is_after:
            self._expected = None
        if part.start != self.position:
            self._partial = b""
        self.position = part.position
        data = self._partial + data
        at = 0
        while at + RECORD.size <= len(data):
            kind, number, length = RECORD.unpack_from(data, at)
            if length > _LONGEST:
                raise Malformed(f"a record of {length} bytes")
            if at + RECORD.size + length > len(data):
                break
            message = data[at + RECORD.size : at + RECORD.size + length]
            at += RECORD.size + length
            yield self._read(kind, number, message)
        self._partial = data[at:]
        if part.is_all and self._expected is not None and part.numbered > self._expected:
            lost, self._expected = part.numbered - self._expected, part.numbered
            yield Kept([], lost)

    def _read(self, kind: int, number: int, message: bytes) -> Kept:
        lost = 0
        if kind in (HEARD, SILENCE):
            if self._expected is not None:
                lost = max(number - self._expected, 0)
            self._expected = number + 1 if kind == HEARD else number
        if kind == SILENCE:
            return Kept([], lost, int(message[:12]) / 1000 if message[:12].isdigit() else 0.0)
        try:
            return Kept(split(message), lost)
        except NotZmtp as error:
            raise Malformed(str(error)) from None


async def take(node: Node | None, kernel_id: str, session: str, position: int, after: str = "") -> OutputPart:
    """Ask for one piece; on the cluster's loop. Raises HostError, also where the node is not connected, and KernelGone."""
    if node is None:
        raise KernelGone("the kernel is on no node", remedy="start it again")
    if not node.connected.is_set():
        raise HostUnresponsive("not connected", host=node.name, remedy="check the network to the host")
    if not node.keeps_output:  # an older release's
        return OutputPart("", position, position, is_all=True)
    part = await node.request(TakeOutput(kernel_id, session, position, after))
    node.counters.kept_output_bytes += len(part.data) * 3 // 4  # base64
    return part


async def forget(node: Node | None, kernel_id: str) -> None:
    """Tell the agent that all has been taken; as `take`."""
    if node is not None:
        if not node.connected.is_set():
            raise HostUnresponsive("not connected", host=node.name, remedy="check the network to the host")
        if node.keeps_output:
            await node.request(ForgetOutput(kernel_id))

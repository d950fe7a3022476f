"""Who answers for each kernel: one gateway at a time, told from all earlier ones by a number that only grows.

A gateway that is cut off goes on believing that it has its kernels, and cannot be asked. So the number is kept here, where the
kernels are. Each new owner gets a higher one, and what comes with an older one is refused, however late it comes.

    gateway A   start ─ lease 1 ── signal(1): done ── ✂ cut off ─────────────── back: adopt(1): taken, B has it with 2
    gateway B                                            adopt: lease 2 ── signal(2): done

Rejected: a time after which an owner has to renew what it has. Clocks of gateways and nodes differ, a gateway that stood still
acts on what it has checked before, and a short outage of one gateway would take kernels from it that no other one wants.
"""

from __future__ import annotations

from typing import Mapping, Optional

from ..protocol import Found
from .kernels import Kernel

REMEMBERED = 10_000
"""Kernels that are gone whose last owners are remembered: those that had more than one start or owner, the latest of them."""


class TakenOver(Exception):
    """Another gateway, *owner*, has a kernel now, with the number *lease*."""

    def __init__(self, kernel: str, owner: str, lease: int) -> None:
        super().__init__(f"kernel {kernel} was taken over by gateway {owner}")
        self.owner = owner
        self.lease = lease


def is_lost(kernel: Kernel, held: int, process: tuple[str, str]) -> bool:
    """Return True if *kernel* was taken over from *process*, a gateway and its incarnation, since it was given the number *held*.

    0 is held by an operator's command, and by older releases, which are never refused. Nor is who has the latest number and may
    not know it yet: the answer to a start, or to an adoption, may have been lost.
    """
    return _is_older(held, process, kernel.lease, kernel.holder)


def _is_older(held: int, process: tuple[str, str], lease: int, holder: tuple[str, str]) -> bool:
    """Return True if the process *holder*, another one than *process*, was given a *lease* later than the number *held*."""
    return 0 < held < lease and (holder[0] != process[0] or holder[1] not in ("", process[1]))


class Leases:
    """The numbers of an agent's *kernels*, and of those that it had; owned by the agent."""

    def __init__(self, kernels: Mapping[str, Kernel]) -> None:
        self._kernels = kernels
        self._gone: dict[str, tuple[int, tuple[str, str]]] = {}  # the latest last

    def latest(self, kernel_id: str) -> tuple[int, str]:
        """Return the highest number that was given of a kernel, and which gateway has it; 0 and "" where none is known."""
        kernel = self._kernels.get(kernel_id)
        if kernel is not None:
            return kernel.lease, kernel.holder[0]
        lease, holder = self._gone.get(kernel_id, (0, ("", "")))
        return lease, holder[0]

    def taker(self, kernel_id: str, held: int, process: tuple[str, str], elsewhere: Optional[Found]) -> tuple[int, str]:
        """Return with which number which gateway took a kernel over that is not here, since *process* was given *held* of it.

        0 and "" where none did: the kernel is just gone, or only *elsewhere*, with an agent whose record is this.
        """
        lease, holder = self._gone.get(kernel_id, (0, ("", "")))
        if elsewhere is not None and elsewhere.lease >= lease:
            lease, holder = elsewhere.lease, (elsewhere.owner, "")
        return (lease, holder[0]) if _is_older(held, process, lease, holder) else (0, "")

    def check(self, kernel_id: str, held: int, process: tuple[str, str]) -> None:
        """Raise TakenOver if a kernel was taken over from *process* since it was given the number *held*; see `is_lost`."""
        kernel = self._kernels.get(kernel_id)
        if kernel is not None and is_lost(kernel, held, process):
            raise TakenOver(kernel_id, kernel.holder[0], kernel.lease)

    def next(self, kernel_id: str, held: int) -> int:
        """Return the number for a start of a kernel, of which who starts it held the number *held* before, perhaps elsewhere."""
        return max(self.latest(kernel_id)[0], held) + 1

    def remember(self, kernel: Kernel) -> None:
        """Note who had a kernel that is forgotten: a gateway that had it before may come back, and would take it for dead."""
        if kernel.lease > 1:
            self._gone.pop(kernel.id, None)
            self._gone[kernel.id] = (kernel.lease, kernel.holder)
            while len(self._gone) > REMEMBERED:
                del self._gone[next(iter(self._gone))]

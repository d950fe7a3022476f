"""Who answers for each kernel: one gateway at a time, told from all earlier ones by a number that only grows.

A gateway that is cut off goes on believing that it has its kernels, and cannot be asked. So the number is kept here, where the
kernels are. Each new owner gets a higher one, and what comes with an older one is refused, however late it comes.

    gateway A   start ─ lease 1 ── signal(1): done ── ✂ cut off ─────────────── back: adopt(1): taken, B has it with 2
    gateway B                                            adopt: lease 2 ── signal(2): done

Rejected: a time after which an owner has to renew what it has. Clocks of gateways and nodes differ, a gateway that stood still
acts on what it has checked before, and a short outage of one gateway would take kernels from it that no other one wants.
"""

from __future__ import annotations

from typing import Mapping

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
    if not 0 < held < kernel.lease:
        return False
    owner, incarnation = kernel.holder
    return owner != process[0] or incarnation not in ("", process[1])


class Leases:
    """The numbers of an agent's *kernels*, and of those that it had; owned by the agent."""

    def __init__(self, kernels: Mapping[str, Kernel]) -> None:
        self._kernels = kernels
        self._gone: dict[str, tuple[int, str]] = {}  # the latest last

    def latest(self, kernel_id: str) -> tuple[int, str]:
        """Return the highest number that was given of a kernel, and which gateway has it; 0 and "" where none is known."""
        kernel = self._kernels.get(kernel_id)
        return (kernel.lease, kernel.owner) if kernel is not None else self._gone.get(kernel_id, (0, ""))

    def check(self, kernel_id: str, held: int, process: tuple[str, str]) -> None:
        """Raise TakenOver if a kernel was taken over from *process* since it was given the number *held*; see `is_lost`."""
        kernel = self._kernels.get(kernel_id)
        if kernel is not None and is_lost(kernel, held, process):
            raise TakenOver(kernel_id, kernel.owner, kernel.lease)

    def next(self, kernel_id: str, held: int) -> int:
        """Return the number for a start of a kernel, of which who starts it held the number *held* before, perhaps elsewhere."""
        return max(self.latest(kernel_id)[0], held) + 1

    def remember(self, kernel: Kernel) -> None:
        """Note who had a kernel that is forgotten: a gateway that had it before may come back, and would take it for dead."""
        if kernel.lease > 1:
            self._gone.pop(kernel.id, None)
            self._gone[kernel.id] = (kernel.lease, kernel.owner)
            while len(self._gone) > REMEMBERED:
                del self._gone[next(iter(self._gone))]

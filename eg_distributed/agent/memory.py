"""What the agent no longer needs goes back to the node: its C library would keep it, for as long as the agent lives."""

from __future__ import annotations

from ..streams import Budget

_LARGE = 8 * 1024 * 1024
"""Bytes that were kept, of which enough may be left over to be worth a look."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_THRESHOLD = 128 * 1024


def return_what_is_freed() -> None:
    """Have glibc return memory to the system as soon as it is freed; does nothing where another C library is in use.

    It gives large blocks back at once at first, but raises its idea of "large" with each that is freed, up to 32 MiB. Chunks of
    kept output then lie in the heap, which shrinks from its top alone: one flood, and the agent had a gigabyte until its end. A
    threshold that is set stays. By mallopt and not by MALLOC_MMAP_THRESHOLD_, which kernels would inherit.
    """
    try:
        import ctypes  # here: some Pythons are built without it

        mallopt = ctypes.CDLL(None).mallopt
    except (ImportError, OSError, AttributeError, MemoryError):  # MemoryError: a system that forbids executable memory
        return
    mallopt(_MMAP_THRESHOLD, _THRESHOLD)
    mallopt(_TRIM_THRESHOLD, _THRESHOLD)


def give_back_after_a_flood(budget: Budget) -> None:
    """Return to the system what large output has left free in the heap, once it has been sent; called each second.

    Its pieces are smaller than the threshold, so that they need not be had from the system one by one, and the heap shrinks from
    its top alone. Does nothing where another C library is in use.
    """
    if budget.most < _LARGE or budget.kept > budget.most // 4:
        return
    budget.most = budget.kept
    try:
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)
    except (ImportError, OSError, AttributeError, MemoryError):
        return

"""What the agent no longer needs goes back to the node: its C library would keep it, for as long as the agent lives."""

from __future__ import annotations

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

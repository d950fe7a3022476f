"""What a client runs that knows no kernel provisioners: a word on what to install, and not the kernel, on its own machine.

VS Code, for one, executes a kernelspec's argv whatever its metadata say. So argv begins with a command that prints and fails,
and ignores the rest; the rest is what our adapters start on a host. Rejected: argv in the stanza's config, which would be there
once for each stanza, and nobody's eye would fall on it.
"""

from __future__ import annotations

from collections.abc import Sequence

from eg_distributed.errors import RequestInvalid

__all__ = ["guarded", "without_guard"]

_MARK = "eg_distributed-kernel:"
_TEXT = (
    "This kernel runs on a remote host, and this program would start it here, since it knows no kernel provisioners. Use "
    "JupyterLab, Notebook 7, nbclient or another client of jupyter_client 8 or later, with: "
    'pip install \\"eg_distributed[server]\\"'
)
_GUARD = ("sh", "-c", f'echo "{_TEXT}" >&2; exit 78', _MARK)
"""The shell's own words; the mark is its `$0`, and what follows are arguments that it does not look at."""


def guarded(argv: Sequence[str]) -> list[str]:
    """Return *argv* behind the guard; called for kernelspecs that are installed. Guarded twice is guarded once."""
    return [*_GUARD, *without_guard(argv)]


def without_guard(argv: Sequence[str]) -> list[str]:
    """Return what *argv* starts on a host; called by adapters. The guard's text may be an older release's.

    A site may have put a wrapper before it (`conda run`). Raises RequestInvalid where the guard itself was edited: what is
    meant to be executed is not known then.
    """
    if _MARK not in argv:
        return list(argv)
    behind = argv.index(_MARK) + 1
    begin = behind - len(_GUARD)
    if begin < 0 or tuple(argv[begin : begin + 2]) != _GUARD[:2] or behind == len(argv):
        raise RequestInvalid(
            f"argv of the kernelspec is neither what was installed nor a kernel's: it has {_MARK!r} behind {list(argv[:2])}",
            remedy=f"take out what stands before and including {_MARK!r}, and write the command that is to run on hosts",
        )
    return [*argv[:begin], *argv[behind:]]

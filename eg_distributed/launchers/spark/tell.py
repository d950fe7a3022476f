"""Words for a driver that is no Python itself: what its session waits for, and what Spark's errors mean.

Run by `spark_scala.java` and `spark_r.R`: `python3 tell.py watch` prints a line for each piece of news of a session that is being
made, until its input ends; `… explain` reads an error of Spark's for which there is no session, and prints it with host, cause
and remedy; `… stuck` reads what is known of executors (see `stuck`), and prints why no task runs; `… advise` reads what a cell
ended with, and prints which fault of the installation is behind it, if one is.
"""

from __future__ import annotations

import os
import select
import sys
import types

_LOOK = 0.2  # seconds


def main(arguments: list[str]) -> int:
    """Say what *arguments* ask for."""
    from .options import parse
    from .reasons import advise, explain
    from .stuck import say
    from .watch import Watch

    if arguments == ["advise"]:
        told = advise(RuntimeError(_given()))
        if told:
            print(told, flush=True)
        return 0
    options = parse([], os.environ, os.path.dirname(os.path.abspath(__file__)))
    if arguments == ["explain"]:
        print(explain(RuntimeError(_given()), options), flush=True)
        return 0
    if arguments == ["stuck"]:
        print(say(_given()), flush=True)
        return 0
    watch = Watch(lambda: options)
    sys.stderr = sys.stdout
    while not select.select([sys.stdin], [], [], _LOOK)[0]:
        watch.look()
    return 0


def _given() -> str:
    return sys.stdin.buffer.read().decode("utf-8", "replace")


if __name__ == "__main__":
    # So that imports are relative here, too.
    _package = types.ModuleType("eg_distributed_launcher")
    _package.__path__ = [os.path.dirname(os.path.abspath(__file__))]
    sys.modules[_package.__name__] = _package
    __package__ = _package.__name__
    sys.exit(main(sys.argv[1:]))

"""Words for a driver that is no Python itself: what its session waits for, and what Spark's errors mean.

Run by `spark_scala.java` while it makes a session: `python3 tell.py watch` prints a line for each piece of news until its
input ends; `… explain` reads an error of Spark's, and prints it with host, cause and remedy; `… stuck` reads what is known of
executors (see `..stuck`), and prints why no task runs.
"""

from __future__ import annotations

import os
import select
import sys
import types

_LOOK = 0.2  # seconds


def main(arguments: list[str]) -> int:
    """Say what *arguments* ask for."""
    from ..options import parse
    from ..reasons import explain
    from ..stuck import say
    from ..watch import Watch

    options = parse([], os.environ, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if arguments == ["explain"]:
        print(explain(RuntimeError(sys.stdin.read()), options), flush=True)
        return 0
    if arguments == ["stuck"]:
        print(say(sys.stdin.read()), flush=True)
        return 0
    watch = Watch(lambda: options)
    sys.stderr = sys.stdout
    while not select.select([sys.stdin], [], [], _LOOK)[0]:
        watch.look()
    return 0


if __name__ == "__main__":
    # So that imports are relative here, too.
    _package = types.ModuleType("eg_distributed_launcher")
    _package.__path__ = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
    sys.modules[_package.__name__] = _package
    __package__ = f"{_package.__name__}.scala"
    sys.exit(main(sys.argv[1:]))

"""What a cell is told whose job gets no executor, for drivers that are no Python themselves."""

from __future__ import annotations

import socket

from .reasons import stuck


def say(asked: str) -> str:
    """Return that, with the host, of what a driver *asked*.

    Its lines: `true` or `false`, whether an executor has ever registered; where executors find the driver (host:port); and
    one for each executor that has gone, with the reason. Called for Scala's and R's kernels.
    """
    ever, _, rest = asked.partition("\n")
    driver, _, reasons = rest.partition("\n")
    return f"{socket.gethostname()}: {stuck(ever.strip().lower() == 'true', reasons.splitlines(), driver.strip())}"

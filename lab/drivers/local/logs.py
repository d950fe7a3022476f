"""The log of a local machine as `init.py` writes it: each line behind the time at which it came."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from typing import Final

_STAMPED: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d{3})Z (.*)", re.DOTALL)


def told(lines: Iterable[str], *, since: float | None = None, timestamps: bool = False) -> Iterator[str]:
    """Yield *lines* (without their ends) from *since* (UNIX seconds) on, as the machine printed them or with their *timestamps*.

    A line without a time (of an `init.py` that could not begin) has that of the line before it.
    """
    wanted = since is None
    for line in lines:
        stamp = _STAMPED.match(line)
        if stamp is not None and since is not None:
            moment = datetime.strptime(stamp[1], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc)
            wanted = moment.timestamp() + float(stamp[2]) >= since
        if wanted:
            yield line if timestamps or stamp is None else stamp[3]

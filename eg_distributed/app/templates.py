"""`templates`: what the hosts keep to fork kernels from, what that costs, and why starts that may be warm were not."""

from __future__ import annotations

import asyncio
import json
import sys
import time

from eg_distributed.cluster import Cluster
from eg_distributed.errors import DistributedError
from eg_distributed.hosts import HostSet
from eg_distributed.protocol import TemplateSeen, WarmStarts
from eg_distributed.wire import one_line

from .tables import age, table

__all__ = ["show"]

_COLUMNS = ("HOST", "PID", "AGE", "KERNELS", "FORKED", "MEMORY", "INTERPRETER")


def show(cluster: Cluster, hosts: HostSet, *, as_json: bool) -> int:
    """Ask each of *hosts*, print its templates, and return the process's exit code: 1 if a host did not answer."""
    found = cluster.submit(_ask(cluster, hosts)).result()
    answers = {host: answer for host, answer in found.items() if isinstance(answer, WarmStarts)}
    errors = {host: str(answer) for host, answer in found.items() if isinstance(answer, DistributedError)}
    if as_json:
        print(json.dumps({"hosts": {host: each.write() for host, each in answers.items()}, "errors": errors}, indent=2))
    else:
        rows = [_row(host, each) for host, answer in answers.items() for each in answer.templates]
        print(table(_COLUMNS, rows) if rows else "no templates")
        for host, answer in answers.items():
            if answer.forked or answer.cold:
                print(f"{host}: {answer.forked} starts were forked, {sum(answer.cold.values())} were cold")
            for why, count in sorted(answer.cold.items(), key=lambda each: -each[1]):
                print(f"  {count} cold: {one_line(why)}")
    for error in errors.values():
        print(f"error: {error}", file=sys.stderr)
    return 1 if errors else 0


async def _ask(cluster: Cluster, hosts: HostSet) -> dict[str, WarmStarts | DistributedError]:
    async def ask(host: str) -> WarmStarts | DistributedError:
        try:
            return await cluster.find_templates(host)
        except DistributedError as error:
            return error

    return dict(zip(hosts, await asyncio.gather(*(ask(host) for host in hosts)), strict=True))


def _row(host: str, each: TemplateSeen) -> tuple[str, ...]:
    what = " ".join(each.argv) + (f" with {', '.join(each.preload)}" if each.preload else "")
    if each.is_retired:
        what += " (forked no more)"
    memory = f"{each.memory / 1e6:.0f} MB"
    since = age(time.time() - each.since)
    return host, str(each.pid), since, str(each.kernels), str(each.forked), memory, one_line(what)

"""`kernelspecs list`: which kernelspecs hosts have for a Jupyter server's launcher, and why others are left out."""

from __future__ import annotations

import asyncio
import json
import sys

from eg_distributed.cluster import Cluster
from eg_distributed.errors import HostError
from eg_distributed.hosts import HostSet
from eg_distributed.protocol import HostKernelspecs
from eg_distributed.wire import one_line

__all__ = ["show"]


def show(cluster: Cluster, hosts: HostSet, *, as_json: bool) -> int:
    """Ask each of *hosts*, print what it says, and return the process's exit code: 1 if a host did not answer."""
    found = cluster.submit(_ask(cluster, hosts)).result()
    answers = {host: answer for host, answer in found.items() if isinstance(answer, HostKernelspecs)}
    errors = {host: str(answer) for host, answer in found.items() if isinstance(answer, HostError)}
    if as_json:
        told = {
            host: {
                "kernelspecs": [{key: value for key, value in each.write().items() if key != "logos"} for each in answer.each()],
                "left_out": answer.left_out,
                "unread": answer.unread,
            }
            for host, answer in answers.items()
        }  # fmt: skip
        print(json.dumps({"hosts": told, "errors": errors}, indent=2))
    else:
        for host, answer in answers.items():
            print("\n".join([f"{host}:", *_lines(answer)]))
    for error in errors.values():
        print(f"error: {error}", file=sys.stderr)
    return 1 if errors else 0


def _lines(answer: HostKernelspecs) -> list[str]:
    lines = []
    for each in answer.each():
        where = f" (environment {each.prefix})" if each.is_environment else ""
        lines.append(f"{each.name}: {each.display_name}{where}, runs {each.argv[0]}, from {each.folder}")
    lines += [f"left out: {reason}" for reason in answer.left_out]
    lines += [f"did not answer in time: {root}" for root in answer.unread]
    return [f"  {one_line(line, 1000)}" for line in lines or ["none"]]


async def _ask(cluster: Cluster, hosts: HostSet) -> dict[str, HostKernelspecs | HostError]:
    async def ask(host: str) -> HostKernelspecs | HostError:
        try:
            return await cluster.find_kernelspecs(host, cluster.settings.kernelspec_environments)
        except HostError as error:
            return error

    return dict(zip(hosts, await asyncio.gather(*map(ask, hosts)), strict=True))

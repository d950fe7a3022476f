"""`kernelspecs list`: which kernelspecs of its hosts a Jupyter server's launcher has, and why others are left out."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from typing import Any

from traitlets.config import Config
from traitlets.config.loader import ConfigFileNotFound, PyFileConfigLoader

from eg_distributed.cluster import Cluster
from eg_distributed.errors import DistributedError
from eg_distributed.hosts import HostSet
from eg_distributed.kernelspecs.guard import without_guard
from eg_distributed.kernelspecs.host_kernelspecs import believed, offered
from eg_distributed.protocol import HostKernelspecs
from eg_distributed.wire import one_line

__all__ = ["jupyters_config", "show"]


def jupyters_config() -> Config:
    """Return what the user's Jupyter programs read: jupyter_config.py and jupyter_server_config.py, where Jupyter is installed.

    Raises ConfigFileNotFound for one that cannot be read.
    """
    found = Config()
    try:
        from jupyter_core.paths import jupyter_config_path
    except ImportError:
        return found
    for folder in reversed(jupyter_config_path()):
        for name in ("jupyter_config.py", "jupyter_server_config.py"):
            try:
                found.merge(PyFileConfigLoader(name, path=folder).load_config())
            except ConfigFileNotFound:
                continue
    return found


def show(cluster: Cluster, hosts: HostSet, *, as_json: bool) -> int:
    """Ask each of *hosts*, print what its launcher would have, and return the process's exit code: 1 if a host did not answer."""
    found = cluster.submit(_ask(cluster, hosts)).result()
    answers = {host: answer for host, answer in found.items() if isinstance(answer, HostKernelspecs)}
    errors = {host: str(answer) for host, answer in found.items() if isinstance(answer, DistributedError)}
    left_out = {host: _left_out(host, answer) for host, answer in answers.items()}
    cluster.settings.remote_hosts = hosts
    rows = [_row(each.name, json.loads(each.kernel_json)) for each in offered(answers, cluster.settings)]
    if as_json:
        unread = {host: answer.unread for host, answer in answers.items()}
        print(json.dumps({"kernelspecs": rows, "left_out": left_out, "unread": unread, "errors": errors}, indent=2))
    else:
        for row in rows:
            print(f"{row['name']}: {row['display_name']}, runs {one_line(row['program'])} on {', '.join(row['hosts'])}")
        if not rows:
            print("no kernelspecs")
        for host, answer in answers.items():
            for reason in left_out[host]:
                print(f"left out, {host}: {reason}")
            for root in answer.unread:
                print(f"not looked through in time, {host}: {one_line(root)}")
    for error in errors.values():
        print(f"error: {error}", file=sys.stderr)
    return 1 if errors else 0


def _left_out(host: str, answer: HostKernelspecs) -> list[str]:
    reasons = [one_line(reason, 1000) for reason in answer.left_out]
    for _ in believed(host, answer, reasons):
        pass
    return reasons


def _row(name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    hosts = spec["metadata"]["kernel_provisioner"]["config"]["remote_hosts"]
    program = without_guard(spec["argv"])[0]
    return {"name": name, "display_name": spec["display_name"], "program": program, "hosts": hosts}


async def _ask(cluster: Cluster, hosts: HostSet) -> dict[str, HostKernelspecs | DistributedError]:
    async def ask(host: str) -> HostKernelspecs | DistributedError:
        try:
            return await cluster.find_kernelspecs(host, cluster.settings.kernelspec_environments)
        except DistributedError as error:  # whatever an agent says instead, the other hosts are shown
            return error

    return dict(zip(hosts, await asyncio.gather(*map(ask, hosts)), strict=True))

"""Checks of this machine: room, ports, certificates, tools, and what earlier labs left."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lab.drivers import checkout
from lab.drivers.findings import Finding
from lab.drivers.probing import existing, megabytes_free, run, tool
from lab.state import cache_root, state_root

ENVIRONMENT_MEGABYTES: Final = 1500
"""The gateway's and the nodes' environments of local labs."""
MEMORY_MEGABYTES: Final = 1000
"""Three nodes and a gateway with a kernel on each, idle."""
CLUSTER_MEGABYTES: Final = 2500
"""Two nodes with a Spark master and YARN on them, and one kernel with an executor."""
INOTIFY_INSTANCES: Final = 64
"""Jupyter servers and editors take one each; below this, many nodes meet `too many open files`."""


def checks() -> Iterator[Finding]:
    """Yield what concerns every driver."""
    yield _checkout()
    yield _uv()
    yield _certificates()
    yield _folders()
    yield _disk()
    yield _memory()
    yield _inotify()
    yield _ports()
    yield _ssh_client()
    yield _leftovers()


def _checkout() -> Finding:
    lacking = [name for name in ("pins.sha256", "images", "eg_distributed") if not (checkout.ROOT / name).exists()]
    if lacking:
        return Finding("checkout", "missing", f"{checkout.ROOT} holds no {', '.join(lacking)}", "clone the repository")
    return Finding("checkout", "ok", str(checkout.ROOT))


def _uv() -> Finding:
    try:
        binary = checkout.uv_binary()
    except (FileNotFoundError, ImportError) as error:
        return Finding("uv", "missing", str(error), "`pip install uv`, or `uv sync` in the checkout")
    done, said = run([str(binary), "--version"])
    return Finding("uv", "ok" if done else "missing", said, "" if done else "`uv sync` in the checkout")


def _certificates() -> Finding:
    named = os.environ.get("SSL_CERT_FILE", "")
    if named and not Path(named).is_file():
        remedy = "correct or unset SSL_CERT_FILE: uv and pip fail on it"
        return Finding("CA bundle", "warning", f"SSL_CERT_FILE names {named}, which is not there", remedy)
    count = checkout.ca_bundle().count(b"-----BEGIN CERTIFICATE-----")
    if not count:
        remedy = "install ca-certificates, and the proxy's own certificate if there is one"
        return Finding("CA bundle", "missing", "no certificate authority is trusted here", remedy)
    return Finding("CA bundle", "ok", f"{count} authorities go into the builds")


def _folders() -> Finding:
    for folder in (state_root(), cache_root()):
        if not os.access(existing(folder), os.W_OK | os.X_OK):
            remedy = "set XDG_STATE_HOME and XDG_CACHE_HOME to folders that are yours"
            return Finding("folders", "missing", f"{folder} can't be written", remedy)
    return Finding("folders", "ok", f"{state_root()}, {cache_root()}")


def _disk() -> Finding:
    free = min(megabytes_free(folder) for folder in (state_root(), cache_root()))
    if free < 50:
        return Finding("disk", "missing", f"{free} MB free for state and cache", "make room, or set XDG_CACHE_HOME")
    if free < ENVIRONMENT_MEGABYTES:
        found = f"{free} MB free; the environments of local labs take {ENVIRONMENT_MEGABYTES} MB"
        return Finding("disk", "warning", found, "make room, or set XDG_CACHE_HOME")
    return Finding("disk", "ok", f"{free} MB free for state and cache")


def _memory() -> Finding:
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) // 1000
    except (OSError, KeyError, ValueError):
        return Finding("memory", "unknown", "this system does not tell")
    if free < MEMORY_MEGABYTES:
        found = f"{free} MB available; three nodes take {MEMORY_MEGABYTES} MB"
        return Finding("memory", "warning", found, "end something, or `lab up --nodes 1`")
    if free < CLUSTER_MEGABYTES:
        found = f"{free} MB available; with Spark and YARN two nodes and a kernel take {CLUSTER_MEGABYTES} MB"
        return Finding("memory", "ok", found)
    return Finding("memory", "ok", f"{free} MB available")


def _inotify() -> Finding:
    path = Path("/proc/sys/fs/inotify/max_user_instances")
    try:
        limit = int(path.read_text())
    except (OSError, ValueError):
        return Finding("inotify", "unknown", "this system does not tell")
    if limit < INOTIFY_INSTANCES:
        return Finding("inotify", "warning", f"{limit} instances", "`sysctl fs.inotify.max_user_instances=512`")
    return Finding("inotify", "ok", f"{limit} instances")


def _ports() -> Finding:
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            probe.listen()
    except OSError as error:
        return Finding("ports", "missing", f"no loopback port can be had: {error}", "see `ip address show lo`")
    return Finding("ports", "ok", "loopback ports can be had; none is fixed")


def _ssh_client() -> Finding:
    found = tool("ssh")
    if found is None:
        return Finding("ssh client", "warning", "there is none", "install openssh-client; until then `lab exec`")
    return Finding("ssh client", "ok", found)


def _leftovers() -> Finding:
    from lab.lifetime.garbage import find_garbage

    found = find_garbage()
    if found:
        words = "; ".join(f"{each.what} ({each.why})" for each in found[:5])
        return Finding("leftovers", "warning", words, "`lab gc --dry-run`, then `lab gc`")
    return Finding("leftovers", "ok", "none")

"""Checks of this machine: room, ports, certificates, tools, interpreters, and what earlier labs left."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lab.doctor.findings import BOTH, DOCKER, LOCAL, Finding
from lab.doctor.probing import existing, megabytes_free, run, tool
from lab.drivers import checkout
from lab.errors import LabError
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
    """Yield what concerns both drivers, then what local labs need."""
    yield _checkout()
    yield _uv()
    yield _certificates()
    yield _folders()
    yield _disk()
    yield _memory()
    yield _clusters()
    yield _inotify()
    yield _ports()
    yield _ssh_client()
    yield _gateway_python()
    yield _sshd()
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
        return Finding(
            "disk", "missing", f"{free} MB free for state and cache", "make room, or set XDG_CACHE_HOME", BOTH
        )
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


def _clusters() -> Finding:
    """Say what `--with` would have to fetch; never a warning, since plain labs need none of it."""
    from lab.drivers import artefacts

    name = "Spark and YARN"
    try:
        kept = {"Spark": artefacts.python_archive(), "Hadoop's jars": artefacts.hadoop_archive()}
    except LabError as error:
        return Finding(name, "unknown", str(error), "mend the checkout", DOCKER)
    lacking = [what for what, path in kept.items() if not path.exists()]
    if lacking:
        return Finding(name, "ok", f"the first `--with` fetches {' and '.join(lacking)}, 400 MB", drivers=DOCKER)
    return Finding(name, "ok", f"what they need is in {artefacts.folder()}", drivers=DOCKER)


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


def _gateway_python() -> Finding:
    """Look for an interpreter that Enterprise Gateway 3.3 can run with; the same question that a local `up` asks."""
    from lab.drivers.local.environments import PYTHONS

    name, wanted = "gateway python", PYTHONS["gateway"]
    remedy = "`uv python install 3.11`, or install python3.11 with the system's packages"
    try:
        # --system: not the checkout's own environment, which a new one isn't made from either.
        arguments = ("--no-project", "--system", "--no-python-downloads", wanted)
        path = checkout.run_uv("python", "find", *arguments).strip()
    except (LabError, FileNotFoundError, ImportError):
        if os.environ.get("UV_PYTHON_DOWNLOADS", "automatic") in {"never", "manual"}:
            return Finding(name, "missing", f"there is no Python {wanted}", remedy, LOCAL)
        return Finding(name, "warning", f"there is no Python {wanted}; uv will try to download one", remedy, LOCAL)
    done, said = run([path, "-c", "import distutils.util"])
    if not done:
        remedy = "`apt-get install python3-distutils`, or `uv python install 3.11`"
        return Finding(name, "missing", f"{path} lacks distutils ({said})", remedy, LOCAL)
    return Finding(name, "ok", path, drivers=LOCAL)


def _sshd() -> Finding:
    from lab.drivers.local.ssh_servers import openssh

    path, why = openssh()
    if not path:
        remedy = "mend that for the real thing (it need not run), or take asyncssh's"
        return Finding("sshd", "warning", f"local nodes run asyncssh's server: {why}", remedy, LOCAL)
    return Finding("sshd", "ok", path, drivers=LOCAL)


def _leftovers() -> Finding:
    from lab.lifetime.garbage import find_garbage

    found = find_garbage()
    if found:
        words = "; ".join(f"{each.what} ({each.why})" for each in found[:5])
        return Finding("leftovers", "warning", words, "`lab gc --dry-run`, then `lab gc`")
    return Finding("leftovers", "ok", "none")

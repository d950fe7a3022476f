"""What `lab doctor` asks of what local labs stand on: /proc, namespaces, an interpreter for the gateway, an sshd."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Final

from lab.drivers import checkout
from lab.drivers.findings import Finding
from lab.drivers.local.environments import PYTHONS
from lab.drivers.local.ssh_servers import openssh
from lab.drivers.probing import run, tool
from lab.errors import LabError

_UTIL: Final = "install util-linux"


def checks() -> Iterator[Finding]:
    """Yield what is found."""
    if sys.platform.startswith("linux"):
        yield _namespaces()
    else:
        yield Finding("local nodes", "missing", f"they need Linux's /proc, this is {sys.platform}", "use docker")
    yield _gateway_python()
    yield _sshd()


def _namespaces() -> Finding:
    unshare = tool("unshare")
    root = os.geteuid() == 0
    words = ["--uts", "--mount", "--pid", "--fork"]
    if unshare is None:
        return Finding("namespaces", "warning", "there is no unshare: local nodes share one host name", _UTIL)
    done, said = run([unshare, *([] if root else ["--user", "--map-root-user"]), *words, "true"])
    if done:
        found = f"each local node can have its own host name and processes ({'root' if root else 'user namespaces'})"
        return Finding("namespaces", "ok", found)
    remedy = "`sysctl kernel.unprivileged_userns_clone=1` or `sysctl kernel.apparmor_restrict_unprivileged_userns=0`"
    return Finding("namespaces", "warning", f"local nodes share one host name ({said})", remedy)


def _gateway_python() -> Finding:
    """Look for an interpreter that Enterprise Gateway 3.3 can run with; the same question that a local `up` asks."""
    name, wanted = "gateway python", PYTHONS["gateway"]
    remedy = "`uv python install 3.11`, or install python3.11 with the system's packages"
    try:
        # --system: not the checkout's own environment, which a new one isn't made from either.
        arguments = ("--no-project", "--system", "--no-python-downloads", wanted)
        path = checkout.run_uv("python", "find", *arguments).strip()
    except (LabError, FileNotFoundError, ImportError):
        if os.environ.get("UV_PYTHON_DOWNLOADS", "automatic") in {"never", "manual"}:
            return Finding(name, "missing", f"there is no Python {wanted}", remedy)
        return Finding(name, "warning", f"there is no Python {wanted}; uv will try to download one", remedy)
    done, said = run([path, "-c", "import distutils.util"])
    if not done:
        remedy = "`apt-get install python3-distutils`, or `uv python install 3.11`"
        return Finding(name, "missing", f"{path} lacks distutils ({said})", remedy)
    return Finding(name, "ok", path)


def _sshd() -> Finding:
    path, why = openssh()
    if not path:
        remedy = "mend that for the real thing (it need not run), or take asyncssh's"
        return Finding("sshd", "warning", f"local nodes run asyncssh's server: {why}", remedy)
    return Finding("sshd", "ok", path)

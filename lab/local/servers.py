"""The SSH server of a local node: OpenSSH's sshd where this user can run one, else one made of asyncssh."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.errors import EnvironmentUnfit, LabUsageError
from lab.specs import NodeSpec

KINDS = ("auto", "openssh", "asyncssh")
ADDRESS = "127.0.0.1"


def choose(kind: str) -> str:
    """Return `openssh` or `asyncssh` for what was asked for; raise EnvironmentUnfit where OpenSSH's can't run."""
    if kind not in KINDS:
        raise LabUsageError(f"there is no SSH server {kind!r}", remedy=f"choose one of {', '.join(KINDS)}")
    if kind == "asyncssh":
        return kind
    path, why = openssh()
    if kind == "openssh" and not path:
        raise EnvironmentUnfit("OpenSSH's sshd can't run here", cause=why, remedy="mend that, or `--sshd asyncssh`")
    return "openssh" if path else "asyncssh"


def openssh() -> tuple[str, str]:
    """Return the path of OpenSSH's sshd if this user can run it, or why not."""
    found = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if not found:
        return "", "it is not installed (Debian's package: openssh-server)"
    if os.geteuid() == 0 and not Path("/run/sshd").is_dir():
        return "", "root's sshd wants the folder /run/sshd, which only its service makes (`mkdir /run/sshd`)"
    return found, ""


def configure(facts: Mapping[str, Any], spec: NodeSpec, folder: Path, host_key: Path) -> dict[str, Any]:
    """Return `argv` of the node's SSH server, and `files` that it reads (path: text). Writes nothing."""
    if facts["sshd"] == "openssh":
        return _openssh(facts, spec, folder, host_key)
    if spec.sshd_options:
        raise EnvironmentUnfit(
            f"{spec.name} can't have sshd options",
            cause="its server is asyncssh's, which knows no sshd_config",
            remedy="install OpenSSH's server, or leave them out",
        )
    config = {
        "port": facts["port"],
        "host_key": str(host_key),
        "certificate": f"{host_key}-cert.pub" if "authority" in facts else "",
        "authorized_keys": str(folder / "authorized_keys"),
    }
    path = folder / "server.json"
    return {"argv": [sys.executable, "-m", "lab.local.server", str(path)], "files": {str(path): json.dumps(config)}}


def _openssh(facts: Mapping[str, Any], spec: NodeSpec, folder: Path, host_key: Path) -> dict[str, Any]:
    variables = " ".join(f'"{name}={value}"' for name, value in facts["env"].items() if '"' not in value)
    lines = [
        *spec.sshd_options,
        f"Port {facts['port']}",
        f"ListenAddress {ADDRESS}",
        f"HostKey {host_key}",
        f"AuthorizedKeysFile {folder / 'authorized_keys'}",
        "PidFile none",
        "UsePAM no",
        # The folder may be below a shared one; who can write there is this user's own business.
        "StrictModes no",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        f"SetEnv {variables}",
    ]
    if "authority" in facts:
        lines.append(f"HostCertificate {host_key}-cert.pub")
    path = folder / "sshd_config"
    found, _ = openssh()
    # The configuration last: faults change it and have sshd read it again.
    return {"argv": [found, "-D", "-e", "-f", str(path)], "files": {str(path): "\n".join(lines) + "\n"}}

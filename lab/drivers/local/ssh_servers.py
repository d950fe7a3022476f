"""The SSH server of a local node: OpenSSH's sshd where this user can run one, else one made of asyncssh."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from lab.drivers.local import namespaces, programs
from lab.errors import EnvironmentUnfit, LabUsageError
from lab.keys import read_or_generate
from lab.topology.specs import NodeSpec

KINDS = ("auto", "openssh", "asyncssh")
ADDRESS = "127.0.0.1"
TRIAL_SECONDS = 20.0
_WANTED = re.compile(r"Missing privilege separation directory: (\S+)")


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
    """Return the path of OpenSSH's sshd if this user can run it and log in to it, or why not."""
    found = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if not found:
        return "", "it is not installed (Debian's package: openssh-server)"
    if why := closed(pwd.getpwuid(os.getuid()), _shadow()):
        return "", why
    why, lacking = _tried(found)
    return ("", why) if why and not lacking else (found, "")


def closed(user: pwd.struct_passwd, shadow: str) -> str:
    """Return why sshd would not let *user* in, whatever the key; *shadow* is /etc/shadow as far as it can be read."""
    # Only what this user can read counts: its sshd can read no more.
    hashed = next((line.split(":")[1] for line in shadow.splitlines() if line.startswith(f"{user.pw_name}:")), "")
    if hashed.startswith("!"):
        return f"sshd refuses locked accounts, and {user.pw_name} is one (`passwd --status {user.pw_name}`)"
    if not os.access(user.pw_shell or "/bin/sh", os.X_OK):
        return f"sshd refuses users without a shell, and {user.pw_shell} can't be run"
    closing = next((path for path in ("/etc/nologin", "/run/nologin") if Path(path).exists()), "")
    if closing and user.pw_uid:
        return f"sshd refuses everybody but root while there is {closing}"
    return ""


def _shadow() -> str:
    try:
        return Path("/etc/shadow").read_text(errors="surrogateescape")
    except OSError:
        return ""


def lacking() -> str:
    """Return the empty folder that sshd wants and this machine lacks, but a node's own view of it can have."""
    path, _ = openssh()
    return _tried(path)[1] if path else ""


@cache
def _tried(sshd: str) -> tuple[str, str]:
    """Have *sshd* look at a configuration; return why it would not run, and the folder if that is all it lacks."""
    with tempfile.TemporaryDirectory(prefix="eglab-") as folder:
        key, config = Path(folder, "key"), Path(folder, "config")
        read_or_generate(key, "trial")
        config.write_text("UsePAM no\n")
        argv = [sshd, "-t", "-f", str(config), "-h", str(key)]
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TRIAL_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error), ""
    said = done.stderr.strip().rpartition("\n")[2]
    if not done.returncode:
        return "", ""
    wanted = _WANTED.search(said)
    if wanted is None:
        return said or f"`sshd -t` ends with {done.returncode}", ""
    path = Path(wanted[1]).resolve()
    kind, reason = namespaces.isolation()
    if kind == "root" and path.is_relative_to("/run"):
        return said, str(path)
    return f"root's sshd wants the folder {path}, which only its service makes; no node can have its own ({reason})", ""


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
    return {
        "argv": [facts["interpreter"], programs.SERVER, str(path)],
        "files": {str(path): json.dumps(config)},
    }


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
        f"Subsystem sftp internal-sftp -d {facts['home']}",
        f"SetEnv {variables}",
    ]
    if "authority" in facts:
        lines.append(f"HostCertificate {host_key}-cert.pub")
    path = folder / "sshd_config"
    found, _ = openssh()
    # The configuration last: faults change it and have sshd read it again.
    files = {str(path): "\n".join(lines) + "\n"}
    return {"argv": [found, "-D", "-e", "-f", str(path)], "files": files, "needs": lacking()}

"""The local driver: writes what a machine is into its folder, and starts it if it doesn't run as written."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lab import checkout
from lab.errors import EnvironmentUnfit
from lab.kernelspecs import default_kernelspecs
from lab.keys import KeyPair, read_or_generate
from lab.local import environments, processes
from lab.local.machines import ADDRESS, LocalGateway, LocalNode
from lab.machines import Gateway, GatewaySpec, Node, NodeSpec
from lab.names import DEFAULT_GATEWAY, fqdn, short_name, sort_key
from lab.progress import Progress, Silent
from lab.state import StateFolder

_PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "LD_LIBRARY_PATH")
"""What a machine's processes get of our environment: a login on a real node would know nothing of it either."""


def _nothing() -> None:
    """Stand in until the lab says who wants to know of changes."""


class LocalDriver:
    """One lab of this user's processes. Its truth is the lab's folder and /proc."""

    kind = "local"

    def __init__(self, name: str, folder: StateFolder) -> None:
        self.name = name
        self.folder = folder
        self.changed: Callable[[], None] = _nothing
        self._machines = folder.path / "machines"
        self._environments: dict[str, Path] = {}
        processes.require_proc()

    def exists(self) -> bool:
        """Look for a machine's folder, or for processes of one that is gone."""
        return self._machines.exists() or bool(processes.belonging(self._machines))

    def prepare(self, progress: Progress) -> None:
        """Make the environments that the lock asks for."""
        self._environments = {role: environments.ensure(role, progress) for role in ("gateway", "node")}
        launcher = self.folder.path / "launch_ipykernel.py"
        self.folder.write(launcher, checkout.launcher().decode())

    def nodes(self) -> list[Node]:
        """Read the folders whose role is node."""
        found = [LocalNode(folder, self.folder.identity, self._tell) for folder in self._folders("node")]
        return sorted(found, key=lambda node: sort_key(node.name))

    def gateways(self) -> list[Gateway]:
        """Read the folders whose role is gateway."""
        found = [LocalGateway(folder, self._tell) for folder in self._folders("gateway")]
        return sorted(found, key=lambda gateway: (gateway.name != DEFAULT_GATEWAY, gateway.name))

    def put_node(self, spec: NodeSpec, identity: str) -> Node:
        """Write an sshd's configuration and start it; refuse variants that need a machine of its own."""
        if spec.shell != "bash" or spec.noisy or spec.python != "3.11":
            raise EnvironmentUnfit(
                f"a local lab can't have a node like {spec.name}",
                cause="its nodes share this machine's login shell, start-up files and python3",
                remedy="start a container engine and use `lab up --driver docker`",
            )
        self._ready()
        short = short_name(spec.name)
        key = read_or_generate(self.folder.host_keys / short, fqdn(short))
        folder = self._machines / short
        facts = self._kept(folder)
        facts |= {
            "role": "node",
            "home": str(folder / "home"),
            "run": str(self._runtime(short)),
            "host_key": key.public,
            "trusted": spec.trusted,
            "user": pwd.getpwuid(os.getuid()).pw_name,
            "port": facts.get("port") or processes.free_port(),
        }
        # The cache in the short folder as well: an agent's sockets live there, and nodes must never share an agent.
        places = {"HOME": facts["home"], "XDG_RUNTIME_DIR": facts["run"], "XDG_CACHE_HOME": facts["run"]}
        login = {**places, "LAB_NODE": fqdn(short), **spec.login_env}
        facts["env"] = self._environment(folder, login)
        facts["argv"] = self._sshd(folder, spec, facts, key)
        self._put(folder, facts)
        node = LocalNode(folder, self.folder.identity, self._tell)
        self.authorize(node, identity)
        node.resume()
        return node

    def authorize(self, node: Node, identity: str) -> None:
        """Write authorized_keys; OpenSSH's sshd reads it at every login, asyncssh's server when it starts."""
        assert isinstance(node, LocalNode)
        (node.folder / "authorized_keys").write_text(f"{identity}\n")

    def put_gateway(self, spec: GatewaySpec) -> Gateway:
        """Install the checkout's wheel for it and start it; a changed wheel or spec starts it anew."""
        self._ready()
        folder = self._machines / spec.name
        facts = self._kept(folder)
        environment = self._environments["gateway"]
        port = facts.get("port") or processes.free_port()
        facts |= {
            "role": "gateway",
            "home": str(folder / "home"),
            "run": str(self._runtime(spec.name)),
            "hosts": list(spec.hosts),
            "port": port,
            "python": str(environment / "bin" / "python"),
            "wheel": checkout.digest(checkout.wheel_sources()),
        }
        home = {
            "HOME": facts["home"],
            "XDG_RUNTIME_DIR": facts["run"],
            # The product's own default is a folder in /tmp, which a killed gateway would leave behind.
            "EG_DISTRIBUTED_RUNTIME_DIR": facts["run"],
            "JUPYTER_PATH": str(folder / "jupyter"),
            "PYTHONPATH": str(folder / "site"),
            "PATH": f"{environment / 'bin'}:{os.environ.get('PATH', os.defpath)}",
        }
        # No login here: user and port of a node are in the ssh_config of the gateway's home.
        facts["env"] = self._environment(folder, {**home, **spec.environment(ADDRESS, {})})
        options = {"ip": ADDRESS, "port": port, "port_retries": 0}
        facts["argv"] = [
            str(environment / "bin" / "jupyter-enterprisegateway"),
            *(f"--EnterpriseGatewayApp.{name}={value}" for name, value in options.items()),
            *spec.options,
        ]
        if self._put(folder, facts):
            environments.install_wheel(environment, folder / "site")
        gateway = LocalGateway(folder, self._tell)
        specs = default_kernelspecs(
            python=str(self._environments["node"] / "bin" / "python"),
            launcher=str(self.folder.path / "launch_ipykernel.py"),
        )
        for name, kernelspec in {**specs, **spec.kernelspecs}.items():
            gateway.add_kernelspec(name, kernelspec)
        gateway.resume()
        return gateway

    def destroy(self) -> list[str]:
        """End every process with the lab's mark, then delete the machines' folders; the lab deletes its own."""
        folders = list(self._machines.iterdir()) if self._machines.exists() else []
        ended = processes.end_all(self._machines, folders)
        removed = [f"{ended} processes"] if ended else []
        shutil.rmtree(self._machines, ignore_errors=True)
        shutil.rmtree(self._runtime(), ignore_errors=True)
        return removed

    def _tell(self) -> None:
        self.changed()

    def _ready(self) -> None:
        if not self._environments:
            self.prepare(Silent())

    def _folders(self, role: str) -> list[Path]:
        if not self._machines.exists():
            return []
        return [folder for folder in self._machines.iterdir() if self._kept(folder).get("role") == role]

    @staticmethod
    def _kept(folder: Path) -> dict[str, Any]:
        """Return what machine.json says, nothing if there is none or half of one."""
        try:
            found: dict[str, Any] = json.loads((folder / "machine.json").read_text())
        except (OSError, ValueError):
            return {}
        return found

    def _runtime(self, machine: str = "") -> Path:
        """Return the short folder for a machine's UNIX sockets: their paths must stay below 108 bytes."""
        unique = hashlib.sha256(str(self.folder.path).encode()).hexdigest()[:8]
        return Path(tempfile.gettempdir(), f"eglab-{os.getuid()}-{unique}", machine)

    def _environment(self, folder: Path, variables: Mapping[str, str]) -> dict[str, str]:
        passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        return {**passed, **variables, processes.MARK: str(folder)}

    def _put(self, folder: Path, facts: dict[str, Any]) -> bool:
        """Write machine.json; if the facts have changed, end what runs there. Return whether they had."""
        told = {name: value for name, value in facts.items() if name not in {"process", "fingerprint"}}
        fingerprint = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
        new = facts.get("fingerprint") != fingerprint
        if new:
            processes.end_all(folder, [folder], grace=2)
            (folder / "home").mkdir(parents=True, exist_ok=True, mode=0o700)
            self.folder.write(folder / "machine.json", json.dumps({**facts, "fingerprint": fingerprint}, indent=2))
        return new

    def _sshd(self, folder: Path, spec: NodeSpec, facts: Mapping[str, Any], key: KeyPair) -> list[str]:
        """Write the SSH server's configuration and return its argv: OpenSSH's where it can run, else asyncssh's."""
        del key
        keys, host_key = folder / "authorized_keys", self.folder.host_keys / short_name(spec.name)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        openssh = _openssh()
        if openssh is not None:
            shown = {**facts["env"]}
            variables = " ".join(f'"{name}={value}"' for name, value in shown.items() if '"' not in value)
            lines = [
                *spec.sshd_options,
                f"Port {facts['port']}",
                f"ListenAddress {ADDRESS}",
                f"HostKey {host_key}",
                f"AuthorizedKeysFile {keys}",
                "PidFile none",
                "UsePAM no",
                # The folder may be below a shared one; who can write there is this user's own business.
                "StrictModes no",
                "PasswordAuthentication no",
                "KbdInteractiveAuthentication no",
                f"SetEnv {variables}",
            ]
            self.folder.write(folder / "sshd_config", "\n".join(lines) + "\n")
            return [openssh, "-D", "-e", "-f", str(folder / "sshd_config")]
        if spec.sshd_options:
            raise EnvironmentUnfit(
                f"{spec.name} can't have sshd options", cause="OpenSSH's sshd can't run here", remedy="install it"
            )
        config = {"port": facts["port"], "host_key": str(host_key), "authorized_keys": str(keys)}
        self.folder.write(folder / "server.json", json.dumps(config))
        return [sys.executable, "-m", "lab.local.server", str(folder / "server.json")]


def _openssh() -> str | None:
    """Return OpenSSH's sshd if this user can run one; root's wants a folder that only its service makes."""
    found = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found and os.geteuid() == 0 and not Path("/run/sshd").is_dir():
        return None
    return found

"""The local driver: writes what a machine is into its folder, and starts it if it doesn't run as written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from lab import lease
from lab.drivers import checkout
from lab.drivers.local import environments, namespaces, processes, programs, spark_daemons, ssh_servers
from lab.drivers.local.files import write_server_files
from lab.drivers.local.gateway import LocalGateway
from lab.drivers.local.machine import ADDRESS
from lab.drivers.local.node import LocalNode
from lab.drivers.machines import Gateway, Node
from lab.errors import EnvironmentUnfit, LabNotFound
from lab.kernelspecs import default_kernelspecs, jupyterlab_kernelspecs
from lab.keys import Authority, read_key, read_or_generate, token_variable
from lab.names import DEFAULT_GATEWAY, short_name, sort_key
from lab.ports import free_port, is_free
from lab.progress import Progress, Silent
from lab.state import StateFolder, cache_root
from lab.topology.daemons import JUPYTERLAB
from lab.topology.limits import Limits
from lab.topology.specs import GatewaySpec, NodeSpec, differences

M = TypeVar("M", bound=Node | Gateway)

QUIET: Final = ("--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",)
"""A lab asks nobody outside for news."""
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "LD_LIBRARY_PATH")
"""What a machine's processes get of our environment: a login on a real node would know nothing of it either."""


def _nothing() -> None:
    """Stand in until the lab says who wants to know of changes."""


class LocalDriver:
    """One lab of this user's processes. Its truth is the lab's folder and /proc."""

    kind = "local"
    is_whole = False

    def __init__(self, name: str, folder: StateFolder, sshd: str = "auto") -> None:
        self.name = name
        self.sshd = sshd
        self.folder = folder
        self.changed: Callable[[], None] = _nothing
        self._machines = folder.path / "machines"
        self._environments: dict[str, Path] = {}
        processes.require_proc()

    def exists(self) -> bool:
        """Look for a machine's folder, or for processes of one that is gone."""
        return self._machines.exists() or bool(processes.belonging(self._machines))

    def stranger(self) -> str:
        """Return nothing: these are this user's processes."""
        return ""

    def prepare(self, progress: Progress, machines: Iterable[NodeSpec | GatewaySpec] = ()) -> None:
        """Make the environments that the lock asks for; say what this machine's kernel keeps nodes from having."""
        specs = list(machines)
        wanted = [spec for spec in specs if isinstance(spec, NodeSpec)]
        for spec in wanted:
            _check(spec)
        if not self._machines.exists():
            progress.note(
                "Enterprise Gateways listen on this machine's loopback, without a token: all its users can start kernels as you"
            )
        spark_daemons.prepare({daemon for spec in wanted for daemon in spec.daemons}, progress)
        kind, reason = namespaces.isolation()
        if kind == "none":
            progress.note(f"nodes share {namespaces.SHARED}: this kernel gives no namespaces ({reason})")
        roles = dict.fromkeys(("gateway", "node", *(spec.image for spec in specs if isinstance(spec, GatewaySpec))))
        self._environments = {role: environments.ensure(role, progress) for role in roles}
        launcher = self.folder.path / "launch_ipykernel.py"
        self.folder.write(launcher, checkout.launcher().decode())

    def reasons(self, spec: NodeSpec | GatewaySpec) -> list[str]:
        """Compare machine.json with what would be written now."""
        kept = self._kept(self._machines / short_name(spec.name))
        if not kept:
            raise LabNotFound(f"the lab {self.name} has no machine {short_name(spec.name)}")
        facts = self._node(spec, make=False) if isinstance(spec, NodeSpec) else self._gateway(spec)
        if kept.get("fingerprint") == _fingerprint(facts):
            return []
        found = ["this checkout's wheel has changed"] if kept.get("wheel") != facts.get("wheel") else []
        found += differences(str(kept.get("definition", "")), str(facts["definition"]))
        return found or ["the lab makes such machines in another way now"]

    def nodes(self) -> list[Node]:
        """Read the folders whose role is node."""
        return sorted(self._nodes("node"), key=lambda node: sort_key(node.name))

    def services(self) -> list[Node]:
        """Read the folders whose role is service."""
        return sorted(self._nodes("service"), key=lambda service: service.name)

    def _nodes(self, role: str) -> list[Node]:
        return self._found(role, lambda folder: LocalNode(folder, self.folder.identity, self._tell))

    def gateways(self) -> list[Gateway]:
        """Read the folders whose role is gateway."""
        found = self._found("gateway", lambda folder: LocalGateway(folder, self._tell))
        return sorted(found, key=lambda gateway: (gateway.name != DEFAULT_GATEWAY, gateway.name))

    def put_node(self, spec: NodeSpec, identity: str) -> Node:
        """Write an sshd's configuration and start it; refuse variants that need a machine of its own."""
        _check(spec)
        self._ready()
        facts = self._node(spec, make=True)
        folder = self._machines / short_name(spec.name)
        self._put(folder, facts)
        node = LocalNode(folder, self.folder.identity, self._tell)
        self.authorize(node, identity)
        node.resume()
        return node

    def authorize(self, node: Node, identity: str) -> None:
        """Write authorized_keys; OpenSSH's sshd reads it at every login, asyncssh's server when it starts."""
        assert isinstance(node, LocalNode)
        authority = node.certified
        own = f"cert-authority {authority}" if authority else identity
        (node.folder / "authorized_keys").write_text(f"{own}\n")
        if authority:
            spec = node.spec
            signing = Authority(self.folder.authority, self.name, make=False)
            certificate = signing.sign_host(node.host_key, [node.name, node.short_name, ADDRESS], spec.validity)
            (self.folder.host_keys / f"{node.short_name}-cert.pub").write_text(f"{certificate}\n")

    def put_gateway(self, spec: GatewaySpec) -> Gateway:
        """Install the checkout's wheel for it and start it; a changed wheel or spec starts it anew."""
        if spec.limits != Limits():
            raise _unfit(spec.name, "limits")
        self._ready()
        folder = self._machines / spec.name
        installed = folder / "site.complete"
        if self._put(folder, self._gateway(spec)) or not installed.exists():
            installed.unlink(missing_ok=True)
            shutil.rmtree(folder / "jupyter", ignore_errors=True)
            environments.install_wheel(environments.ensure(spec.image, Silent()), folder / "site")
            if spec.program == JUPYTERLAB:
                config = folder / "site" / "etc" / "jupyter" / "labconfig"
                config.mkdir(parents=True)
                shutil.copy(checkout.ROOT / "images" / "jupyterlab" / "page_config.json", config)
            installed.touch()
        gateway = LocalGateway(folder, self._tell)
        python = str(spark_daemons.kernel_python(spec.clusters) or self._environments["node"] / "bin" / "python")
        if spec.program == JUPYTERLAB:
            specs = jupyterlab_kernelspecs(spec.hosts, python=python)
        else:
            specs = default_kernelspecs(python=python, launcher=str(self.folder.path / "launch_ipykernel.py"))
        more = spark_daemons.kernels(self._machines, spec.clusters)
        for name, kernelspec in {**specs, **more, **spec.kernelspecs}.items():
            gateway.add_kernelspec(name, kernelspec)
        gateway.resume()
        return gateway

    def _node(self, spec: NodeSpec, *, make: bool) -> dict[str, Any]:
        """Return the facts of a node that is *spec*; keys and port are made if *make* says so, else as they are."""
        short = short_name(spec.name)
        folder = self._machines / short
        kept = self._kept(folder)
        host_key = self.folder.host_keys / short
        kind, _ = namespaces.isolation()
        facts: dict[str, Any] = {
            "role": "service" if spec.is_service else "node",
            "name": spec.name,
            "home": str(folder / "home"),
            "run": kept.get("run") or str(self._runtime(short)),
            "host_key": (read_or_generate(host_key, spec.name) if make else read_key(host_key)).public,
            "trusted": spec.trusted,
            "user": pwd.getpwuid(os.getuid()).pw_name,
            "port": self._port(folder, kept) if make else kept.get("port", 0),
            "definition": spec.definition(),
            "isolation": kind,
            "tmp": kept["tmp"] if kept.get("isolation") == kind else self._own_tmp(folder, kind),
            **_caller(kept),
        }
        if spec.auth == "certificates":
            facts["authority"] = Authority(self.folder.authority, self.name, make=make).public
        # The cache in the short folder as well: an agent's sockets live there, and nodes must never share an agent.
        places = {"HOME": facts["home"], "XDG_RUNTIME_DIR": facts["run"], "XDG_CACHE_HOME": facts["run"]}
        facts["env"] = self._environment(folder, facts, {**places, "LAB_NODE": spec.name, **spec.login_env})
        facts |= spark_daemons.facts(spec, folder, facts, kept)
        # A lab keeps its kind of server, whatever has been installed since, until somebody asks for another by name.
        facts["sshd"] = ssh_servers.choose(kept.get("sshd", "auto") if self.sshd == "auto" else self.sshd)
        facts |= ssh_servers.configure(facts, spec, folder, host_key)
        facts["files"] = {**facts.pop("cluster_files", {}), **facts["files"]}
        if "needs" in kept:
            # The machine's own sshd may have made that folder since: no reason to end a node that has its own.
            facts["needs"] = facts.get("needs") or kept["needs"]
        facts["passwd"] = str(folder / "passwd") if kind != "none" else ""
        facts["init"] = self._init(folder, facts)
        return facts

    def _gateway(self, spec: GatewaySpec) -> dict[str, Any]:
        """Return the facts of a gateway that is *spec*."""
        folder = self._machines / spec.name
        environment = environments.folder(spec.image)
        kept = self._kept(folder)
        port = self._port(folder, kept)
        facts: dict[str, Any] = {
            "role": "gateway",
            "name": spec.name,
            "home": str(folder / "home"),
            "run": kept.get("run") or str(self._runtime(spec.name)),
            "hosts": list(spec.hosts),
            "port": port,
            "python": str(environment / "bin" / "python"),
            "wheel": checkout.digest(checkout.wheel_sources()),
            "definition": spec.definition(),
            # A gateway's host name matters to nobody, and its kernels' sockets do: it stays in the machine's namespaces.
            "isolation": "none",
            **_caller(kept),
        }
        home = {
            "HOME": facts["home"],
            "XDG_RUNTIME_DIR": facts["run"],
            # The product's own default is a folder in /tmp, which a killed gateway would leave behind.
            "EG_DISTRIBUTED_RUNTIME_DIR": facts["run"],
            # The second is what the wheel has for all of an environment; it stands in a folder of its own.
            "JUPYTER_PATH": f"{folder / 'jupyter'}:{folder / 'site' / 'share' / 'jupyter'}",
            "JUPYTER_CONFIG_PATH": str(folder / "site" / "etc" / "jupyter"),
            "PYTHONPATH": str(folder / "site"),
            "PATH": f"{environment / 'bin'}:{facts['passed'].get('PATH', os.defpath)}",
            # Enterprise Gateway starts nothing for root, who is the only user that a lab of root's processes has.
            "EG_UNAUTHORIZED_USERS": "" if os.getuid() == 0 else "root",
            **token_variable(spec, self.folder.identity),
        }
        # No login here: user and port of a node are in the ssh_config of the gateway's home.
        facts["env"] = self._environment(folder, facts, {**home, **spec.environment(ADDRESS, {})})
        options: dict[str, object] = {"ip": ADDRESS, "port": port, "port_retries": 0}
        program, app = "jupyter-enterprisegateway", "EnterpriseGatewayApp"
        if spec.program == JUPYTERLAB:
            program, app = "jupyter-lab", "ServerApp"
            options |= {"open_browser": False, "allow_root": True, "root_dir": facts["home"]}
        facts["argv"] = [
            str(environment / "bin" / program),
            *(f"--{app}.{name}={value}" for name, value in options.items()),
            *(QUIET if spec.program == JUPYTERLAB else ()),
            *spec.options,
        ]
        facts["init"] = self._init(folder, facts)
        return facts

    @staticmethod
    def _init(folder: Path, facts: Mapping[str, Any]) -> list[str]:
        places = {name: facts[name] for name in ("tmp", "run", "passwd", "hosts_file", "needs") if facts.get(name)}
        words = ("run", facts["isolation"], facts["name"], str(folder / "lease"), json.dumps(places))
        init = namespaces.command(*words, python=facts["interpreter"])
        return [*init, *spark_daemons.supervised(facts, folder)]

    @staticmethod
    def _port(folder: Path, kept: Mapping[str, Any]) -> int:
        """Return the port that the machine has, or a new one: another program may have taken it while it was down."""
        port = kept.get("port")
        if port and (processes.main_process(folder).status or is_free(port)):
            return int(port)
        return free_port()

    def _own_tmp(self, folder: Path, isolation: str) -> str:
        """Return the folder that a node has as its /tmp; nothing where what it needs is below the machine's."""
        needed = (self._machines, cache_root(), Path(sys.prefix), Path(sys.base_prefix), checkout.ROOT)
        hidden = any(path.is_relative_to("/tmp") for path in needed)  # noqa: S108 -- the folder known by this name
        return "" if isolation == "none" or hidden else str(folder / "tmp")

    def destroy(self) -> list[str]:
        """End every process with the lab's mark, then delete the machines' folders; the lab deletes its own."""
        folders = list(self._machines.iterdir()) if self._machines.exists() else []
        ended = processes.end_all(self._machines, folders)
        removed = [f"{ended} processes"] if ended else []
        # Where the machines say that their sockets are: whoever made them may have had another TMPDIR.
        made = {Path(run).parent for folder in folders if (run := self._kept(folder).get("run"))}
        shutil.rmtree(self._machines, ignore_errors=True)
        for runtime in made | {self._runtime()}:
            if runtime.name == self._runtime().name:
                shutil.rmtree(runtime, ignore_errors=True)
        return removed

    def _tell(self) -> None:
        self.changed()

    def _ready(self) -> None:
        if not self._environments:
            self.prepare(Silent())

    def _found(self, role: str, read: Callable[[Path], M]) -> list[M]:
        """Return the machines of *role*; one that somebody removes while we look is as good as not there."""
        found = []
        folders: list[Path] = []
        with contextlib.suppress(FileNotFoundError):
            folders = list(self._machines.iterdir())
        for folder in folders:
            with contextlib.suppress(FileNotFoundError):
                if self._kept(folder).get("role") == role:
                    found.append(read(folder))
        return found

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

    @staticmethod
    def _environment(folder: Path, facts: Mapping[str, Any], variables: Mapping[str, str]) -> dict[str, str]:
        return {**facts["passed"], **variables, processes.MARK: str(folder)}

    def _put(self, folder: Path, facts: dict[str, Any]) -> bool:
        """Write machine.json; if the facts have changed, end what runs there. Return whether they had."""
        kept, fingerprint = self._kept(folder), _fingerprint(facts)
        new = kept.get("fingerprint") != fingerprint
        if new:
            processes.end_all(folder, [folder], grace=2)
            (folder / "home").mkdir(parents=True, exist_ok=True, mode=0o700)
            write_server_files(facts)
            until = lease.expiry(self.name)
            if until is not None:
                (folder / "lease").write_text(f"{until:.0f}\n")
            self.folder.write(folder / "machine.json", json.dumps({**facts, "fingerprint": fingerprint}, indent=2))
        return new


def _caller(kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a machine has of whoever made it: part of our environment, and our interpreter.

    A machine keeps it: an `up` from another shell must not end the processes of a lab that is whole.
    """
    interpreter = str(kept.get("interpreter", ""))
    return {
        "passed": kept.get("passed", {name: os.environ[name] for name in _PASSED_ON if name in os.environ}),
        "interpreter": interpreter if os.access(interpreter, os.X_OK) else sys.executable,
    }


def _fingerprint(facts: Mapping[str, Any]) -> str:
    text = programs.with_former_names(json.dumps(facts, sort_keys=True))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _check(spec: NodeSpec) -> None:
    """Raise EnvironmentUnfit for what only a machine of its own can have, naming it."""
    bare = NodeSpec(spec.name)
    own = ("shell", "noisy", "python", "users", "packages", "limits")
    odd = [name for name in own if getattr(spec, name) != getattr(bare, name)]
    if odd:
        raise _unfit(spec.name, ", ".join(odd))


def _unfit(name: str, what: str) -> EnvironmentUnfit:
    return EnvironmentUnfit(
        f"a local lab can't have a machine like {name}: its {what}",
        cause="local nodes share this machine's login shell, start-up files, python3, users and packages, without limits",
        remedy="start a container engine and use `lab up --driver docker`, or leave it out",
    )

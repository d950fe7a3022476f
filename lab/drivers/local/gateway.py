"""A gateway as processes: Enterprise Gateway or JupyterLab, and its local kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from lab.drivers.local.machine import LocalMachine
from lab.drivers.machines import Gateway
from lab.errors import LabNotFound
from lab.files import write
from lab.keys import TOKEN, HostEntry, known_hosts, ssh_config
from lab.topology.specs import GatewaySpec, gateway_spec


class LocalGateway(LocalMachine, Gateway):
    """Enterprise Gateway or JupyterLab in an environment of its own, with a home of its own."""

    def __init__(self, folder: Path, changed: Callable[[], None]) -> None:
        super().__init__(folder, changed)
        self.name = self.short
        self.hosts = tuple(self.facts["hosts"])
        self.python = str(self.facts["python"])
        self.token = str(self.facts.get("env", {}).get(TOKEN, ""))

    @property
    def spec(self) -> GatewaySpec:
        """From machine.json."""
        return gateway_spec(self.name, self.hosts, str(self.facts.get("definition", "")))

    @property
    def url(self) -> str:
        """On the port that the gateway was made with."""
        return f"http://127.0.0.1:{self.own_port}"

    def _make(self, path: str, mode: int) -> Path:
        """Return a folder of the gateway's, made now if it lacks; raise LabNotFound where the gateway has been removed."""
        folder = self.folder / path
        try:
            folder.mkdir(exist_ok=True, mode=mode)
        except FileNotFoundError:
            raise LabNotFound(f"the gateway {self.name} is gone", remedy="`lab up` makes it again") from None
        return folder

    def write_files(self, files: Mapping[str, str]) -> None:
        """Write below the folder that JUPYTER_PATH names."""
        root = self._make("jupyter", 0o755)
        for path, text in files.items():
            target = root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)

    def trust(self, nodes: Iterable[HostEntry], identity: str, certificate: str = "") -> None:
        """Write ~/.ssh of the gateway's own home; names lead to loopback ports by its config alone."""
        entries = list(nodes)
        folder = self._make("home/.ssh", 0o700)
        key, hosts = folder / "id_ed25519", folder / "known_hosts"
        texts = {
            key: identity,
            hosts: known_hosts(entries),
            folder / "config": ssh_config(entries, identity=key, known_hosts_file=hosts),
        }
        if certificate:
            texts[folder / "id_ed25519-cert.pub"] = f"{certificate}\n"
        for path, text in texts.items():
            write(path, text)

"""A gateway as a container."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import docker.errors

from lab.drivers.docker.engine import put_files
from lab.drivers.docker.machine import UID, ContainerMachine
from lab.drivers.machines import Gateway
from lab.errors import EngineFailed, LabNotFound
from lab.keys import TOKEN, HostEntry, known_hosts
from lab.names import (
    LABEL_DEFINITION,
    LABEL_HOSTS,
)
from lab.topology.specs import GatewaySpec, gateway_spec

KERNELS = "/usr/local/share/jupyter"
"""`write_files` of a gateway is relative to this."""


class ContainerGateway(ContainerMachine, Gateway):
    """An Enterprise Gateway or a JupyterLab in a container; its disk survives `kill` and `start`."""

    default_user = "gateway"
    needs_privilege = True
    own_port = 8888

    def __init__(self, container: Any, changed: Callable[[], None]) -> None:
        super().__init__(container, changed)
        self.name = self.short
        self.hosts = tuple(filter(None, container.labels.get(LABEL_HOSTS, "").split(",")))
        variables = container.attrs["Config"]["Env"] or ()
        self.token = next((each.partition("=")[2] for each in variables if each.startswith(f"{TOKEN}=")), "")

    @property
    def spec(self) -> GatewaySpec:
        """From the label."""
        return gateway_spec(self.name, self.hosts, self._container.labels.get(LABEL_DEFINITION, ""))

    @property
    def url(self) -> str:
        """On the loopback port that the engine chose."""
        return f"http://127.0.0.1:{self._published(self.own_port)}"

    def write_files(self, files: Mapping[str, str]) -> None:
        """Write below /usr/local/share/jupyter, at once, running or not."""
        content = {path: text.encode() for path, text in files.items()}
        put_files(self._container, KERNELS, content, uid=UID, gid=UID)

    def trust(self, nodes: Iterable[HostEntry], identity: str, certificate: str = "") -> None:
        """Write the gateway user's ~/.ssh: names and addresses, since EG's own proxy looks up by address."""
        files = {"known_hosts": known_hosts(nodes).encode(), "id_ed25519": identity.encode()}
        if certificate:
            files["id_ed25519-cert.pub"] = f"{certificate}\n".encode()
        try:
            self._replace_files("/home/gateway/.ssh", files, mode=0o600, owner=UID)
        except docker.errors.NotFound:
            raise LabNotFound(f"the gateway {self.name} is gone", remedy="`lab up` makes it again") from None
        except docker.errors.APIError as error:
            raise EngineFailed(
                f"the gateway {self.name} can't be told of its nodes", cause=str(error.explanation)
            ) from error

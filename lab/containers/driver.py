"""The docker driver: finds a lab by its labels, and makes containers be what a spec says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import docker
import docker.errors

from lab.containers import images, network
from lab.containers.engine import connect, put_files, remove_container
from lab.containers.machines import UID, ContainerGateway, ContainerNode
from lab.errors import LabConflict, LabError
from lab.kernelspecs import default_kernelspecs
from lab.keys import read_or_generate
from lab.machines import Gateway, GatewaySpec, Node, NodeSpec
from lab.names import (
    DEFAULT_GATEWAY,
    LABEL,
    LABEL_ADDRESS,
    LABEL_HOST_KEY,
    LABEL_HOSTS,
    LABEL_MACHINE,
    LABEL_ROLE,
    LABEL_SPEC,
    LABEL_TRUSTED,
    USER,
    fqdn,
    resource_name,
    short_name,
    sort_key,
)
from lab.progress import Progress, Silent
from lab.state import StateFolder


def _nothing() -> None:
    """Stand in until the lab says who wants to know of changes."""


class DockerDriver:
    """One lab on a container engine. Holds no state: every question goes to the engine."""

    kind = "docker"

    def __init__(self, name: str, folder: StateFolder) -> None:
        self.name = name
        self.folder = folder
        self.changed: Callable[[], None] = _nothing
        self._client = connect()
        self._images: dict[str, str] = {}

    def exists(self) -> bool:
        """Look for containers and for the network by their labels."""
        return bool(self._containers() or network.find(self._client, self.name))

    def prepare(self, progress: Progress) -> None:
        """Build the images that changed and make the network."""
        self._images = images.ensure(self._client, progress)
        progress.step("network")
        network.ensure(self._client, self.name)

    def nodes(self) -> list[Node]:
        """List the containers whose role is node."""
        found = [ContainerNode(c, self.folder, self._tell) for c in self._containers("node")]
        return sorted(found, key=lambda node: sort_key(node.name))

    def gateways(self) -> list[Gateway]:
        """List the containers whose role is gateway."""
        found = [ContainerGateway(c, self._tell) for c in self._containers("gateway")]
        return sorted(found, key=lambda gateway: (gateway.name != DEFAULT_GATEWAY, gateway.name))

    def put_node(self, spec: NodeSpec, identity: str) -> Node:
        """Make the node's container, anew if its spec or its image has changed, with the host key that it always had."""
        short = short_name(spec.name)
        key = read_or_generate(self.folder.host_keys / short, fqdn(short))
        address = self._address(short, "node")
        environment = {
            "LAB_SSHD_OPTIONS": "\n".join(spec.sshd_options),
            "LAB_SHELL": spec.shell,
            "LAB_NOISY": "1" if spec.noisy else "0",
            "LAB_PYTHON": spec.python,
            "LAB_LOGIN_ENV": "\n".join(f"{name}={value}" for name, value in spec.login_env.items()),
        }
        labels = {LABEL_HOST_KEY: key.public, LABEL_TRUSTED: "yes" if spec.trusted else "no"}
        settings = {"environment": environment, "cap_add": ["NET_ADMIN"], "ports": {"22/tcp": ("127.0.0.1", None)}}
        container, new = self._container(short, "node", fqdn(short), address, labels, settings)
        if new:
            host_key = {"ssh_host_ed25519_key": key.private.encode()}
            put_files(container, "/etc/ssh", host_key, mode=0o600)
        node = ContainerNode(container, self.folder, self._tell)
        self.authorize(node, identity)
        node.resume()
        return node

    def authorize(self, node: Node, identity: str) -> None:
        """Write authorized_keys, which works on stopped containers too."""
        assert isinstance(node, ContainerNode)
        keys = {"authorized_keys": f"{identity}\n".encode()}
        put_files(node._container, "/home/lab/.ssh", keys, mode=0o600, uid=UID, gid=UID)

    def put_gateway(self, spec: GatewaySpec) -> Gateway:
        """Make the gateway's container, anew if its spec or its image (and so our wheel) has changed."""
        address = self._address(spec.name, "gateway")
        settings = {
            "environment": spec.environment(address, {"EG_REMOTE_USER": USER, "EG_SSH_PORT": "22"}),
            "command": list(spec.options),
            "ports": {"8888/tcp": ("127.0.0.1", None)},
        }
        labels = {LABEL_HOSTS: ",".join(spec.hosts)}
        container, _ = self._container(spec.name, "gateway", fqdn(spec.name), address, labels, settings)
        gateway = ContainerGateway(container, self._tell)
        for name, kernelspec in {**default_kernelspecs(), **spec.kernelspecs}.items():
            gateway.add_kernelspec(name, kernelspec)
        gateway.resume()
        return gateway

    def destroy(self) -> list[str]:
        """Remove by label: no file of ours is needed for it."""
        removed = []
        for container in self._containers():
            remove_container(container)
            removed.append(f"container {container.name}")
        for found in self._client.networks.list(filters={"label": f"{LABEL}={self.name}"}):
            try:
                found.remove()
            except docker.errors.NotFound:
                continue
            except docker.errors.APIError as error:
                raise LabConflict(
                    f"the network {found.name} can't be removed",
                    cause=str(error.explanation),
                    remedy="something that the lab did not make hangs on it: disconnect it",
                ) from error
            removed.append(f"network {found.name}")
        return removed

    def _tell(self) -> None:
        self.changed()

    def _containers(self, role: str | None = None) -> list[Any]:
        labels = [f"{LABEL}={self.name}"] + ([f"{LABEL_ROLE}={role}"] if role else [])
        # Containers that vanish between listing and looking are as good as never listed.
        return list(self._client.containers.list(all=True, filters={"label": labels}, ignore_removed=True))

    def _address(self, machine: str, role: str) -> str:
        """Return the machine's pinned address: the one it has, or a free one of the lab's network."""
        subnet = network.subnet_of(network.ensure(self._client, self.name))
        taken = {}
        for container in self._containers():
            taken[container.labels.get(LABEL_MACHINE)] = container.labels.get(LABEL_ADDRESS, "")
        if network.contains(subnet, taken.get(machine, "")):
            return str(taken[machine])
        return network.address_for(subnet, machine, role, set(taken.values()))

    def _container(
        self, machine: str, role: str, hostname: str, address: str, labels: dict[str, str], settings: dict[str, Any]
    ) -> tuple[Any, bool]:
        """Return the machine's container, made now (True) unless one of exactly this spec and image is there."""
        if not self._images:
            self._images = images.ensure(self._client, Silent())
        net = network.ensure(self._client, self.name)
        image = self._images[role]
        spec = json.dumps([image, net.id, hostname, address, labels, settings], sort_keys=True)
        fingerprint = hashlib.sha256(spec.encode()).hexdigest()[:16]
        name = resource_name(self.name, machine)
        existing = self._find(name)
        if existing is not None:
            if existing.labels.get(LABEL_SPEC) == fingerprint and existing.status not in {"dead", "removing"}:
                return existing, False
            remove_container(existing)
        try:
            endpoint = self._client.api.create_endpoint_config(
                ipv4_address=address, aliases=list(dict.fromkeys([hostname, machine]))
            )
            created = self._client.containers.create(
                image,
                name=name,
                hostname=hostname,
                init=True,
                detach=True,
                network=net.name,
                networking_config={net.name: endpoint},
                labels={
                    LABEL: self.name,
                    LABEL_ROLE: role,
                    LABEL_MACHINE: machine,
                    LABEL_ADDRESS: address,
                    LABEL_SPEC: fingerprint,
                    **labels,
                },
                **settings,
            )
        except docker.errors.APIError as error:
            raise LabError(f"the container {name} can't be made", cause=str(error.explanation)) from error
        return created, True

    def _find(self, name: str) -> Any | None:
        try:
            container = self._client.containers.get(name)
        except docker.errors.NotFound:
            return None
        if container.labels.get(LABEL) != self.name:
            raise LabConflict(
                f"the container {name} is in the way",
                cause=f"it lacks the label {LABEL}={self.name}, so it isn't this lab's",
                remedy=f"`docker rm {name}` if nobody needs it, or choose another name for the lab",
            )
        return container

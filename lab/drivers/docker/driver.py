"""The docker driver: finds a lab by its labels, and makes containers be what a spec says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import docker
import docker.errors

from lab import lease
from lab.drivers.docker import images, network
from lab.drivers.docker.blueprints import Blueprint, Blueprints, unlimited
from lab.drivers.docker.engine import connect, engine_id, put_files, remove_container, security
from lab.drivers.docker.gateway import ContainerGateway
from lab.drivers.docker.node import ContainerNode
from lab.drivers.machines import Gateway, Node
from lab.drivers.spark_kernelspecs import offered
from lab.errors import EnvironmentUnfit, LabConflict, LabNotFound
from lab.kernelspecs import default_kernelspecs, jupyterlab_kernelspecs
from lab.keys import Authority, read_or_generate
from lab.names import (
    DEFAULT_GATEWAY,
    LABEL,
    LABEL_ADDRESS,
    LABEL_MACHINE,
    LABEL_ROLE,
    LABEL_SPEC,
    LABEL_USER,
    resource_name,
    short_name,
    sort_key,
)
from lab.progress import Progress, Silent
from lab.state import StateFolder
from lab.topology.daemons import JUPYTERLAB
from lab.topology.specs import GatewaySpec, NodeSpec


def _nothing() -> None:
    """Stand in until the lab says who wants to know of changes."""


class DockerDriver:
    """One lab on a container engine. Holds no state: every question goes to the engine."""

    kind = "docker"
    is_whole = True

    def __init__(self, name: str, folder: StateFolder) -> None:
        self.name = name
        self.folder = folder
        self.changed: Callable[[], None] = _nothing
        self._client = connect()
        self._on_engine()
        self._is_rootless = "rootless" in security(self._client)
        self._images: dict[str, str] = {}
        # Two nodes made at once must not choose the same free address: a promised one has no container yet.
        self._addressing = threading.Lock()
        self._promised: dict[str | None, str] = {}

    def _on_engine(self) -> None:
        """Raise EnvironmentUnfit if this lab's folder says that it is on another engine than the one that answers."""
        known = self.folder.on_engine
        if known is not None and self.folder.made_by == self.kind and known != engine_id(self._client):
            raise EnvironmentUnfit(
                f"the lab {self.name} is on another container engine",
                cause=f"its folder names the engine {known}, and {engine_id(self._client)} answers",
                remedy="use the DOCKER_HOST or the docker context of then, or another name; if that engine is no more, delete "
                f"{self.folder.path}",
            )

    def exists(self) -> bool:
        """Look for containers and for the network by their labels."""
        return bool(self._containers() or network.find(self._client, self.name))

    def stranger(self) -> str:
        """Look at the labels, unless this user's folder is this lab's."""
        if self.folder.made_by == self.kind:
            return ""
        net = network.find(self._client, self.name)
        there = [*(found.labels for found in self._containers()), (net.attrs.get("Labels") or {}) if net else {}]
        owners = {labels[LABEL_USER] for labels in there if LABEL_USER in labels}
        return "" if not owners or lease.me() in owners else min(owners)

    def prepare(self, progress: Progress, machines: Iterable[NodeSpec | GatewaySpec] = ()) -> None:
        """Build the images that changed and make the network."""
        self.folder.write(self.folder.engine, engine_id(self._client))
        self._images = images.ensure(self._client, progress, {(each.image, each.packages) for each in machines})
        progress.step("network")
        network.ensure(self._client, self.name, self.folder.of_pool)

    def reasons(self, spec: NodeSpec | GatewaySpec) -> list[str]:
        """Compare the container's labels with what would be made now."""
        short = short_name(spec.name)
        found = self._find(resource_name(self.name, short))
        if found is None:
            raise LabNotFound(f"the lab {self.name} has no machine {short}")
        net = network.find(self._client, self.name)
        if net is None:
            return ["the lab's network is gone"]
        if found.status in {"dead", "removing"}:
            return [f"its container is {found.status}"]
        wanted = self._blueprints(images.tags([(spec.image, spec.packages)]), net).make(
            spec, self._address_in(net, short, spec)
        )
        return [] if found.labels.get(LABEL_SPEC) == wanted.fingerprint else wanted.differences(found)

    def nodes(self) -> list[Node]:
        """List the containers whose role is node."""
        found = [ContainerNode(c, self.folder, self._tell) for c in self._containers("node")]
        return sorted(found, key=lambda node: sort_key(node.name))

    def services(self) -> list[Node]:
        """List the containers whose role is service."""
        found = [ContainerNode(c, self.folder, self._tell) for c in self._containers("service")]
        return sorted(found, key=lambda service: service.name)

    def gateways(self) -> list[Gateway]:
        """List the containers whose role is gateway."""
        found = [ContainerGateway(c, self._tell) for c in self._containers("gateway")]
        return sorted(found, key=lambda gateway: (gateway.name != DEFAULT_GATEWAY, gateway.name))

    def put_node(self, spec: NodeSpec, identity: str) -> Node:
        """Make the node's container, anew if its spec or its image has changed, with the host key that it always had."""
        read_or_generate(self.folder.host_keys / short_name(spec.name), spec.name)
        if spec.auth == "certificates":
            Authority(self.folder.authority, self.name)
        container = self._container(spec)
        if container.status not in {"running", "paused"}:
            # Not only a new one: whoever made it may have been interrupted before its key was in.
            key = read_or_generate(self.folder.host_keys / short_name(spec.name), spec.name)
            put_files(container, "/etc/ssh", {"ssh_host_ed25519_key": key.private.encode()}, mode=0o600)
        node = ContainerNode(container, self.folder, self._tell)
        self.authorize(node, identity)
        node.resume()
        return node

    def authorize(self, node: Node, identity: str) -> None:
        """Write authorized_keys and certificates, which works on stopped containers too."""
        assert isinstance(node, ContainerNode)
        node.authorize(identity)

    def put_gateway(self, spec: GatewaySpec) -> Gateway:
        """Make the gateway's container, anew if its spec or its image (and so our wheel) has changed."""
        container = self._container(spec)
        gateway = ContainerGateway(container, self._tell)
        own = jupyterlab_kernelspecs(spec.hosts) if spec.program == JUPYTERLAB else default_kernelspecs()
        for name, kernelspec in {**own, **offered(spec.clusters), **spec.kernelspecs}.items():
            gateway.add_kernelspec(name, kernelspec)
        gateway.resume()
        return gateway

    def destroy(self) -> list[str]:
        """Remove by label: no file of ours is needed for it."""
        removed = []
        for container in self._containers():
            remove_container(container)
            removed.append(f"container {container.name}")
        for volume in self._client.volumes.list(filters={"label": f"{LABEL}={self.name}"}):
            volume.remove(force=True)
            removed.append(f"volume {volume.name}")
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

    def _address_in(self, net: Any, machine: str, spec: NodeSpec | GatewaySpec) -> str:
        """Return the machine's pinned address: the one it has, or a free one of the lab's network *net*."""
        subnet = network.subnet_of(net)
        # The plain list, not docker-py's objects: those cost a look at every container, each time.
        listed = self._client.api.containers(all=True, filters={"label": f"{LABEL}={self.name}"})
        labels = [found.get("Labels") or {} for found in listed]
        taken = {each.get(LABEL_MACHINE): each.get(LABEL_ADDRESS, "") for each in labels} | self._promised
        if network.contains(subnet, taken.get(machine, "")):
            return str(taken[machine])
        role = "gateway" if isinstance(spec, GatewaySpec) else "service" if spec.is_service else "node"
        return network.address_for(subnet, machine, role, set(taken.values()))

    def _blueprints(self, tags: Mapping[str, str], net: Any) -> Blueprints:
        return Blueprints(self.name, self.folder, tags, str(net.id), sets_limits=not self._is_rootless)

    def _container(self, spec: NodeSpec | GatewaySpec) -> Any:
        """Return the machine's container, made now unless one of exactly this spec and image is there."""
        variant = (spec.image, spec.packages)
        if images.key(variant[1], variant[0]) not in self._images:
            self._images = {**self._images, **images.ensure(self._client, Silent(), [variant])}
        net = network.ensure(self._client, self.name, self.folder.of_pool)
        short = short_name(spec.name)
        with self._addressing:
            address = self._promised[short] = self._address_in(net, short, spec)
        try:
            wanted = self._blueprints(self._images, net).make(spec, address)
            existing = self._find(wanted.name)
            if existing is not None:
                if existing.labels.get(LABEL_SPEC) == wanted.fingerprint and existing.status not in {
                    "dead",
                    "removing",
                }:
                    return existing
                remove_container(existing)
            created = self._create(wanted, net)
        finally:
            self._promised.pop(short, None)
        until = lease.expiry(self.name)
        if until is not None:
            put_files(created, "/run/lab", {"lease": f"{until:.0f}\n".encode()})
        return created

    def _create(self, wanted: Blueprint, net: Any) -> Any:
        for volume in wanted.settings.get("volumes", ()):
            # With our label, so that `down` finds it; the engine keeps one that is there.
            self._client.volumes.create(volume, labels={LABEL: self.name, LABEL_USER: lease.me()})
        aliases = list(dict.fromkeys([wanted.hostname, wanted.machine]))
        endpoint = self._client.api.create_endpoint_config(ipv4_address=wanted.address, aliases=aliases)
        try:
            return self._client.containers.create(
                wanted.image,
                name=wanted.name,
                hostname=wanted.hostname,
                init=True,
                detach=True,
                network=net.name,
                networking_config={net.name: endpoint},
                labels={**wanted.all_labels(), LABEL_USER: lease.me(), **lease.labels(self.name)},
                **wanted.settings,
            )
        except docker.errors.APIError as error:
            raise unlimited(wanted, str(error.explanation)) from error

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

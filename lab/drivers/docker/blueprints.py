"""What a container must be to play a machine, and the fingerprint by which `up` sees that it isn't (any more)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from lab.drivers.docker import images
from lab.errors import EnvironmentUnfit, LabError
from lab.keys import Authority, read_key, token_variable
from lab.names import (
    LABEL,
    LABEL_ADDRESS,
    LABEL_AUTHORITY,
    LABEL_DEFINITION,
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
)
from lab.state import StateFolder
from lab.topology import daemons as kinds
from lab.topology.limits import Limits
from lab.topology.specs import GatewaySpec, NodeSpec, differences

CERTIFIED: Final = ("TrustedUserCAKeys /etc/ssh/lab_ca.pub", "HostCertificate /etc/ssh/ssh_host_ed25519_key-cert.pub")

OPEN_FILES: Final = {"Name": "nofile", "Soft": 1024, "Hard": 16384}
"""A machine's limits of open files. Else a container inherits its engine's: some have 10^9, and a program that closes every
descriptor that there may be then takes minutes. The soft one is what most logins get. The hard one is enough for hundreds of
kernels, and low enough for engines that run confined themselves, which may not raise their own (20000, say)."""

SHARED: Final = "shared"
"""The volume of machines with daemons, and of gateways that share a folder, at /shared: a file system of a cluster elsewhere."""


@dataclass(frozen=True)
class Blueprint:
    """One container to be; *settings* go to the engine as they are."""

    lab: str
    machine: str
    role: str
    hostname: str
    address: str
    image: str
    network: str
    labels: Mapping[str, str]
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What the engine calls the container."""
        return resource_name(self.lab, self.machine)

    @property
    def fingerprint(self) -> str:
        """Equal for equal containers; a lease is no part of it, since it changes while the machine stays."""
        parts = [self.image, self.network, self.hostname, self.address, dict(self.labels), dict(self.settings)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def all_labels(self) -> dict[str, str]:
        """Return the labels of the container."""
        return {
            LABEL: self.lab,
            LABEL_ROLE: self.role,
            LABEL_MACHINE: self.machine,
            LABEL_ADDRESS: self.address,
            LABEL_SPEC: self.fingerprint,
            **self.labels,
        }

    def differences(self, container: Any) -> list[str]:
        """Return in words why *container*, whose fingerprint is another, is not this."""
        found = []
        if container.attrs["Config"]["Image"] != self.image:
            found.append("its image has changed")
        if container.labels.get(LABEL_ADDRESS) != self.address:
            found.append("its address is of another network")
        if container.labels.get(LABEL_HOST_KEY, "") != self.labels.get(LABEL_HOST_KEY, ""):
            found.append("its host key is not in the lab's folder")
        if container.labels.get(LABEL_AUTHORITY, "") != self.labels.get(LABEL_AUTHORITY, ""):
            found.append("its certificate is of another authority")
        found += differences(container.labels.get(LABEL_DEFINITION, ""), self.labels[LABEL_DEFINITION])
        return found or ["the lab makes such machines in another way now"]


class Blueprints:
    """Draws blueprints for one lab; *tags* are the images, *network* is the id of its network. Touches nothing.

    Without *sets_limits* machines have the engine's own limits of open files: one without root may not raise them.
    """

    def __init__(
        self, lab: str, folder: StateFolder, tags: Mapping[str, str], network: str, *, sets_limits: bool = True
    ) -> None:
        self._lab = lab
        self._folder = folder
        self._tags = tags
        self._network = network
        self._ulimits = {"ulimits": [OPEN_FILES]} if sets_limits else {}

    def make(self, spec: NodeSpec | GatewaySpec, address: str) -> Blueprint:
        """Return the container for *spec* at *address*."""
        return self._node(spec, address) if isinstance(spec, NodeSpec) else self._gateway(spec, address)

    def _node(self, spec: NodeSpec, address: str) -> Blueprint:
        short = short_name(spec.name)
        options = list(spec.sshd_options)
        labels = {
            LABEL_HOST_KEY: read_key(self._folder.host_keys / short).public,
            LABEL_TRUSTED: "yes" if spec.trusted else "no",
            LABEL_DEFINITION: spec.definition(),
        }
        if spec.auth == "certificates":
            labels[LABEL_AUTHORITY] = Authority(self._folder.authority, self._lab, make=False).public
            options += CERTIFIED
        users = [f"{name}:{user.shell}:{','.join(user.groups)}" for name, user in spec.users.items()]
        environment = {
            "LAB_SSHD_OPTIONS": "\n".join(options),
            "LAB_SHELL": spec.shell,
            "LAB_NOISY": "1" if spec.noisy else "0",
            "LAB_PYTHON": spec.python,
            "LAB_LOGIN_ENV": "\n".join(f"{name}={value}" for name, value in spec.login_env.items()),
            "LAB_USERS": "\n".join(users),
        }
        settings: dict[str, Any] = {
            "environment": environment,
            "cap_add": ["NET_ADMIN"],
            "ports": {"22/tcp": ("127.0.0.1", None)},
            **self._ulimits,
            **limited(spec.limits),
        }
        if spec.daemons:
            environment["LAB_DAEMONS"] = " ".join(spec.daemons)
            settings["volumes"] = {resource_name(self._lab, SHARED): {"bind": "/shared", "mode": "rw"}}
            ports = {f"{kinds.PORTS[kind]}/tcp": ("127.0.0.1", None) for kind in kinds.of(spec.daemons)}
            settings["ports"] = {**settings["ports"], **(ports if spec.is_service else {})}
        image = self._tags[images.key(spec.packages, spec.image)]
        role = "service" if spec.is_service else "node"
        return Blueprint(self._lab, short, role, spec.name, address, image, self._network, labels, settings)

    def _gateway(self, spec: GatewaySpec, address: str) -> Blueprint:
        login = {"EG_REMOTE_USER": USER, "EG_SSH_PORT": "22"}
        settings = {
            "environment": {**token_variable(spec, self._folder.identity), **spec.environment(address, login)},
            "command": list(spec.options),
            # For faults between a gateway and its nodes; Enterprise Gateway's own user has none of it.
            "cap_add": ["NET_ADMIN"],
            "ports": {"8888/tcp": ("127.0.0.1", None)},
            **self._ulimits,
            **limited(spec.limits),
        }
        if spec.shares:
            settings["volumes"] = {resource_name(self._lab, SHARED): {"bind": "/shared", "mode": "rw"}}
        labels = {LABEL_HOSTS: ",".join(spec.hosts), LABEL_DEFINITION: spec.definition()}
        image = self._tags[spec.image]
        return Blueprint(
            self._lab, spec.name, "gateway", fqdn(spec.name), address, image, self._network, labels, settings
        )


def limited(limits: Limits) -> dict[str, Any]:
    """Return the engine's settings for *limits*."""
    found: dict[str, Any] = {}
    if limits.cpus is not None:
        found["nano_cpus"] = int(limits.cpus * 1e9)
    if limits.memory is not None:
        # The same number for both: a node that may swap runs on after its memory is out, which is no limit.
        found |= {"mem_limit": limits.memory, "memswap_limit": limits.memory}
    if limits.pids is not None:
        found["pids_limit"] = limits.pids
    if limits.disk is not None:
        found["storage_opt"] = {"size": str(limits.disk)}
    return found


def unlimited(wanted: Blueprint, explanation: str) -> LabError:
    """Return the error for a container that the engine refused: about a limit that it can't do, or about anything else."""
    if "storage_opt" in wanted.settings and ("storage" in explanation or "quota" in explanation):
        return EnvironmentUnfit(
            f"{wanted.machine} can't have a disk limit here",
            cause=explanation,
            remedy="leave `limits.disk` out, use the fault `disk-full`, or give the engine a file system with project "
            "quotas (XFS mounted with pquota, btrfs or zfs)",
        )
    return LabError(f"the container {wanted.name} can't be made", cause=explanation)

"""What one node or one gateway shall be: what drivers are given, and what labels keep of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from lab.errors import LabUsageError
from lab.names import check_name, fqdn, is_meant, node_number, short_name
from lab.topology import daemons as kinds
from lab.topology.limits import Limits, User

_CHOICES: Final = {
    "shell": ("bash", "csh", "fish"),
    "python": ("3.11", "3.9", "none"),
    "auth": ("keys", "certificates"),
}


PROGRAMS: Final = ("enterprise-gateway", "jupyterlab")
"""What a gateway can run."""


@dataclass(frozen=True)
class NodeSpec:
    """One node to be; *name* is its full name. Unknown variants raise LabUsageError.

    *group* and *template* are empty for nodes that `Lab.add_node` made: they belong to no group of a topology.
    """

    name: str
    sshd_options: tuple[str, ...] = ()
    shell: str = "bash"
    noisy: bool = False
    python: str = "3.11"
    trusted: bool = True
    login_env: Mapping[str, str] = field(default_factory=dict)
    group: str = ""
    template: str = ""
    roles: tuple[str, ...] = ()
    users: Mapping[str, User] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    auth: str = "keys"
    validity: float = 30 * 86400.0
    """Seconds that certificates are good for."""
    daemons: tuple[str, ...] = ()
    """What runs beside sshd: lab/topology/daemons.py has the names."""

    @property
    def is_service(self) -> bool:
        """Whether it is a master's machine, on which no kernels are started."""
        return kinds.is_master(self.daemons)

    @property
    def image(self) -> str:
        """The image that has its daemons."""
        return kinds.image(self.daemons)

    def __post_init__(self) -> None:
        check_name(short_name(self.name), "node")
        for what, choices in _CHOICES.items():
            value = getattr(self, what)
            if value not in choices:
                raise LabUsageError(
                    f"{self.name} can't have {what} {value!r}", remedy=f"choose one of {', '.join(choices)}"
                )
        for line in (*self.sshd_options, *self.login_env, *self.login_env.values()):
            if "\n" in line:
                raise LabUsageError(f"{self.name} can't have the option {line!r}", cause="it holds a line break")

    def definition(self) -> str:
        """Return this as one line of JSON, for a label."""
        return json.dumps(msgspec.to_builtins(self), sort_keys=True)

    def matches(self, pattern: str) -> bool:
        """Return True if *pattern* (`node1`, `node1.lab.test`, `node*`, `@role`) means this node."""
        return is_meant(pattern, self.name, self.roles)


@dataclass(frozen=True)
class GatewaySpec:
    """One gateway to be; *hosts* are full names, *options* go behind its program's command line.

    *patterns* is what *hosts* were chosen by, None for all nodes; *group* is empty for `Lab.add_gateway`'s.
    """

    name: str
    hosts: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    kernelspecs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    group: str = ""
    template: str = ""
    patterns: tuple[str, ...] | None = None
    limits: Limits = field(default_factory=Limits)
    clusters: tuple[str, ...] = ()
    """The clusters (`spark`, `yarn`) whose kernelspecs it offers."""
    shares: bool = False
    """Whether it has the folder that the lab's machines share, at /shared."""
    program: str = "enterprise-gateway"
    """What runs there: `enterprise-gateway`, or `jupyterlab`, which starts kernels on hosts itself."""

    @property
    def image(self) -> str:
        """The image, and the environment, that has its program."""
        return "gateway" if self.program == "enterprise-gateway" else self.program

    @property
    def packages(self) -> tuple[str, ...]:
        """Debian's packages beside the image's own; no gateway has any."""
        return ()

    def __post_init__(self) -> None:
        check_name(self.name, "gateway")
        if self.program not in PROGRAMS:
            raise LabUsageError(
                f"{self.name} can't run {self.program!r}", remedy=f"choose one of {', '.join(PROGRAMS)}"
            )
        for name in self.kernelspecs:
            check_kernelspec_name(name)

    def environment(self, address: str, login: Mapping[str, str]) -> dict[str, str]:
        """Return what its program, and we in it, read from the environment.

        *address* is where stock kernels answer to; *login* is how to reach nodes where no ssh_config says it.
        """
        of_gateway = {"EG_LIST_KERNELS": "True", "EG_RESPONSE_IP": address}
        return {
            "EG_REMOTE_HOSTS": ",".join(self.hosts),
            "EG_KERNEL_LAUNCH_TIMEOUT": "30",
            **(of_gateway if self.program == "enterprise-gateway" else {}),
            **login,
            **self.env,
        }

    def definition(self) -> str:
        """Return this as one line of JSON, for a label."""
        return json.dumps(msgspec.to_builtins(self), sort_keys=True)

    def serving(self, nodes: Iterable[NodeSpec]) -> GatewaySpec:
        """Return this gateway with the hosts that its patterns mean among *nodes*."""
        chosen = [
            node.name for node in nodes if self.patterns is None or any(node.matches(each) for each in self.patterns)
        ]
        return dataclasses.replace(self, hosts=tuple(chosen))


def node_spec(name: str, definition: str) -> NodeSpec:
    """Return the spec that a label's *definition* tells of the node *name*; a bare one where it can't be read."""
    try:
        found = json.loads(definition)
        users = {user: User(**_tuples(facts)) for user, facts in found.pop("users", {}).items()}
        limits = Limits(**found.pop("limits", {}))
        return NodeSpec(**_tuples(found), users=users, limits=limits)
    except (ValueError, TypeError, LabUsageError):
        # Made by another version of the lab: `up` makes it anew anyway, and only its place in the row counts.
        numbered = node_number(name) is not None
        return NodeSpec(fqdn(name), group="node" if numbered else "", template="node{n}" if numbered else "")


def gateway_spec(name: str, hosts: tuple[str, ...], definition: str) -> GatewaySpec:
    """Return the spec that a label's *definition* tells of the gateway *name*; as `node_spec`."""
    try:
        found = json.loads(definition)
        limits = Limits(**found.pop("limits", {}))
        return GatewaySpec(**_tuples(found), limits=limits)
    except (ValueError, TypeError, LabUsageError):
        return GatewaySpec(name, hosts, group="gateway" if name == "gateway" else "", template=name)


def _tuples(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def differences(old: str, new: str) -> list[str]:
    """Return in words what is not the same in two definitions, e.g. `shell: 'bash' -> 'csh'`."""
    try:
        before, after = json.loads(old), json.loads(new)
    except ValueError:
        return ["an older lab made it"]
    found = []
    for name in sorted({*before, *after}):
        first, second = before.get(name), after.get(name)
        if first != second:
            found.append(f"{name}: {_short(first)} -> {_short(second)}")
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_kernelspec_name(name: str) -> str:
    """Return *name* if Jupyter takes it for a kernelspec; it becomes a folder's name, so nothing else may pass."""
    if not name or not all(c.isalnum() or c in "._-" for c in name) or name.startswith("."):
        raise LabUsageError(f"{name!r} can't be the name of a kernelspec", remedy="use letters, digits, '.', '_', '-'")
    return name


def machine_name(name: str) -> str:
    """Return the full name for a node's short or full name; called with names that users typed."""
    for part in name.split("."):
        check_name(part, "node")
    return fqdn(name)

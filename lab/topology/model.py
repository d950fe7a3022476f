"""What a `lab.toml` of version 1 can say. The reader, the JSON schema and the reference are made from these classes.

A field's metadata holds what its type can't say: `doc` (one sentence), `key` (its name in the file where Python has
taken the word), `kind` (`duration`: seconds or "15s"; `size`: bytes or "512m"), `minimum`, `pattern`, `example`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from lab.names import DOMAIN
from lab.topology.limits import Limits, User, say

VERSION: Final = 1

NAME: Final = "[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?"
TEMPLATE: Final = r"[a-z0-9-]*(\{n\})?[a-z0-9-]*"
DOMAIN_PATTERN: Final = r"[a-z0-9-]+(\.[a-z0-9-]+)*"
PACKAGE: Final = r"[a-z0-9][a-z0-9+.-]+(=[A-Za-z0-9.+:~-]+|/[a-z][a-z-]*)?"
LOGIN: Final = r"[a-z_][a-z0-9_-]{0,30}"


@dataclass(frozen=True)
class Auth:
    """How the lab's logins and hosts prove who they are."""

    kind: Literal["keys", "certificates"] = field(
        default="keys",
        metadata=say(
            "`keys`: authorized_keys and host keys in known_hosts. `certificates`: a certificate authority of the lab "
            "signs the hosts' keys and the login key; no node has an authorized_keys."
        ),
    )
    validity: float = field(
        default=30 * 86400.0,
        metadata=say("How long certificates are good for.", kind="duration", minimum=1, example="8h"),
    )


@dataclass(frozen=True)
class NodeGroup:
    """Nodes that are alike."""

    count: int = field(default=3, metadata=say("How many.", minimum=0))
    name: str = field(
        default="",
        metadata=say(
            "Template of their names, `{n}` counts from 1; without it a group has one node. "
            "By default the group's name and `{n}`.",
            pattern=TEMPLATE,
            example="node{n}",
        ),
    )
    domain: str = field(default=DOMAIN, metadata=say("What follows the name in the full name.", pattern=DOMAIN_PATTERN))
    roles: tuple[str, ...] = field(
        default=(),
        metadata=say("Words that gateways' hosts (`@role`), tests and faults choose nodes by.", pattern=NAME),
    )
    sshd: Mapping[str, str | int | bool | tuple[str, ...]] = field(
        default_factory=dict,
        metadata=say("sshd_config keywords; what isn't here is as Debian ships it.", example={"MaxSessions": 10}),
    )
    shell: Literal["bash", "csh", "fish"] = field(default="bash", metadata=say("The login shell of the user `lab`."))
    python: Literal["3.11", "3.9", "none"] = field(
        default="3.11", metadata=say("What `python3` is for a login; `none`: there is none.")
    )
    noisy: bool = field(default=False, metadata=say("A banner, a message of the day and start-up files that print."))
    trusted: bool = field(default=True, metadata=say("Whether the gateways know the nodes' host keys."))
    login_env: Mapping[str, str] = field(
        default_factory=dict, metadata=say("Variables that every login gets.", example={"LANG": "C.UTF-8"})
    )
    users: tuple[str, ...] | None = field(
        default=None, metadata=say("Which of [users] these nodes have; all, if it isn't said.", pattern=LOGIN)
    )
    packages: tuple[str, ...] = field(
        default=(),
        metadata=say(
            "Debian packages beside the image's own; `name=version`, or `name/release` for one of another release.",
            pattern=PACKAGE,
            example=["r-base-core", "openssh-server/bookworm-backports"],
        ),
    )
    limits: Limits = field(default_factory=Limits, metadata=say("What each of them may use."))


@dataclass(frozen=True)
class GatewayGroup:
    """Enterprise Gateways that are alike."""

    count: int = field(default=1, metadata=say("How many.", minimum=0))
    name: str = field(
        default="",
        metadata=say(
            "Template of their names; by default the group's name, with `{n}` if there are several.", pattern=TEMPLATE
        ),
    )
    env: Mapping[str, str] = field(
        default_factory=dict,
        metadata=say("Its environment.", example={"EG_LOAD_BALANCING_ALGORITHM": "least-connection"}),
    )
    options: tuple[str, ...] = field(
        default=(),
        metadata=say("What goes behind its command line.", example=["--EnterpriseGatewayApp.max_kernels=9"]),
    )
    hosts: tuple[str, ...] | None = field(
        default=None,
        metadata=say(
            "Nodes by short or full name, by pattern (`gpu*`) or by role (`@spark`); all nodes, if it isn't said.",
            example=["@kernel"],
        ),
    )
    kernelspecs: tuple[str, ...] | None = field(
        default=None, metadata=say("Which of [kernelspecs] it offers; all, if it isn't said.")
    )
    limits: Limits = field(default_factory=Limits, metadata=say("What each of them may use."))


@dataclass(frozen=True)
class KernelspecEntry:
    """One kernel.json, offered beside the lab's own three."""

    argv: tuple[str, ...] = field(metadata=say("The kernel's command line on the node."))
    display_name: str = field(default="", metadata=say("What notebooks show; by default the kernelspec's name."))
    language: str = field(default="python", metadata=say("The kernel's language."))
    env: Mapping[str, str] = field(default_factory=dict, metadata=say("The kernel's environment."))
    metadata: Mapping[str, Any] = field(
        default_factory=dict, metadata=say("As in kernel.json; our process proxy, if it names none.")
    )


@dataclass(frozen=True)
class FaultStep:
    """One line of the fault plan."""

    fault: str = field(metadata=say("Its name in `lab fault catalogue`.", example="partition"))
    at: float = field(
        default=0.0, metadata=say("When, counted from the plan's start.", kind="duration", minimum=0, example="10s")
    )
    nodes: tuple[str, ...] = field(
        default=(), metadata=say("Nodes by name, pattern or `@role`; all, if it isn't said.", example=["node1"])
    )
    duration: float | None = field(
        default=None,
        metadata=say(
            "How long; to the plan's end, if it isn't said.", key="for", kind="duration", minimum=0, example="15s"
        ),
    )
    options: Mapping[str, Any] = field(default_factory=dict, metadata=say("The fault's own options."))

    def as_dict(self) -> dict[str, Any]:
        """Return what `lab.faults.run_plan` takes."""
        return {
            "at": self.at,
            "fault": self.fault,
            "nodes": list(self.nodes) or "all",
            "for": self.duration,
            "options": dict(self.options),
        }


def default_nodes() -> dict[str, NodeGroup]:
    """Return what a file without [nodes] means: node1, node2, node3."""
    return {"node": NodeGroup()}


def default_gateways() -> dict[str, GatewayGroup]:
    """Return what a file without [gateways] means; an empty [gateways] means none."""
    return {"gateway": GatewayGroup()}


@dataclass(frozen=True)
class Topology:
    """A whole lab.toml. Get one by `lab.topology.load`, or make one in Python."""

    version: Literal[1] = field(default=1, metadata=say("The file's format; must be there.", required=True))
    name: str | None = field(
        default=None, metadata=say("The lab's name, where neither --name nor LAB_NAME says it.", pattern=NAME)
    )
    driver: Literal["docker", "local"] | None = field(
        default=None, metadata=say("By default docker where an engine answers, else local.")
    )
    sshd: Literal["auto", "openssh", "asyncssh"] = field(
        default="auto", metadata=say("The SSH server of local nodes; docker nodes always have OpenSSH's.")
    )
    lease: float | None = field(
        default=None,
        metadata=say(
            "The lab ends by itself this long after the `up` that read it; by default it stays.",
            kind="duration",
            minimum=10,
            example="2h",
        ),
    )
    clusters: tuple[Literal["spark", "yarn"], ...] = field(
        default=(),
        metadata=say(
            "Clusters on the nodes. `spark`: a standalone master, and a worker on each node. `yarn`: a ResourceManager, "
            "and a NodeManager on each node.",
            key="with",
            example=["spark"],
        ),
    )
    auth: Auth = field(default_factory=Auth, metadata=say("Keys or certificates."))
    users: Mapping[str, User] = field(default_factory=dict, metadata=say("Login users beside `lab`.", pattern=LOGIN))
    nodes: Mapping[str, NodeGroup] = field(
        default_factory=default_nodes, metadata=say("Groups of nodes by name.", pattern=NAME)
    )
    gateways: Mapping[str, GatewayGroup] = field(
        default_factory=default_gateways,
        metadata=say("Gateways by name; an empty table means none.", pattern=NAME),
    )
    kernelspecs: Mapping[str, KernelspecEntry] = field(
        default_factory=dict, metadata=say("Kernelspecs by name.", pattern="[A-Za-z0-9_-][A-Za-z0-9._-]*")
    )
    seed: int | None = field(default=None, metadata=say("Of the fault plan's chances."))
    faults: tuple[FaultStep, ...] = field(default=(), metadata=say("The fault plan, a timeline."))

    def fault_plan(self) -> list[dict[str, Any]]:
        """Return the plan for `lab.faults.run_plan`, in order of time."""
        return [step.as_dict() for step in sorted(self.faults, key=lambda step: step.at)]

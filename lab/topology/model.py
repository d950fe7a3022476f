"""What a `lab.toml` of version 1 can say. The reader, the JSON schema and the reference are made from these classes.

The types are msgspec's: ranges and patterns are checked by it, and its schema is the published one. `rename` gives a key its name
in the file where Python has taken the word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct, field

from lab.names import DOMAIN
from lab.topology.limits import Limits, User, duration, matching, say

VERSION: Final = 1
MOST: Final = 1000
"""Machines of one group: their names are made before the lab's are counted (checks.py)."""

NAME: Final = "[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?"
TEMPLATE: Final = r"[a-z0-9-]*(\{n\})?[a-z0-9-]*"
DOMAIN_PATTERN: Final = r"[a-z0-9-]+(\.[a-z0-9-]+)*"
PACKAGE: Final = r"[a-z0-9][a-z0-9+.-]+(=[A-Za-z0-9.+:~-]+|/[a-z][a-z-]*)?"
LOGIN: Final = r"[a-z_][a-z0-9_-]{0,30}"
POOL: Final = r"[0-9]{1,3}(\.[0-9]{1,3}){3}/[0-9]{1,2}"
KERNELSPEC: Final = "[A-Za-z0-9_-][A-Za-z0-9._-]*"

Name = Annotated[str, matching(NAME)]
Login = Annotated[str, matching(LOGIN)]


class Auth(Struct, frozen=True, forbid_unknown_fields=True):
    """How the lab's logins and hosts prove who they are."""

    kind: Annotated[
        Literal["keys", "certificates"],
        say(
            "`keys`: authorized_keys and host keys in known_hosts. `certificates`: a certificate authority of the lab "
            "signs the hosts' keys and the login key; no node has an authorized_keys."
        ),
    ] = "keys"
    validity: Annotated[float, duration(1), say("How long certificates are good for.", example="8h")] = 30 * 86400.0


class NodeGroup(Struct, frozen=True, forbid_unknown_fields=True):
    """Nodes that are alike."""

    count: Annotated[int, Meta(ge=0, le=MOST), say("How many.")] = 3
    name: Annotated[
        str,
        matching(TEMPLATE),
        say(
            "Template of their names, `{n}` counts from 1; without it a group has one node. "
            "By default the group's name and `{n}`.",
            example="node{n}",
        ),
    ] = ""
    domain: Annotated[str, matching(DOMAIN_PATTERN), say("What follows the name in the full name.")] = DOMAIN
    roles: Annotated[
        tuple[Name, ...], say("Words that gateways' hosts (`@role`), tests and faults choose nodes by.")
    ] = ()
    sshd: Annotated[
        Mapping[str, str | int | bool | tuple[str, ...]],
        say("sshd_config keywords; what isn't here is as Debian ships it.", example={"MaxSessions": 10}),
    ] = {}
    shell: Annotated[Literal["bash", "csh", "fish"], say("The login shell of the user `lab`.")] = "bash"
    python: Annotated[Literal["3.11", "3.9", "none"], say("What `python3` is for a login; `none`: there is none.")] = (
        "3.11"
    )
    noisy: Annotated[bool, say("A banner, a message of the day and start-up files that print.")] = False
    trusted: Annotated[bool, say("Whether the gateways know the nodes' host keys.")] = True
    login_env: Annotated[Mapping[str, str], say("Variables that every login gets.", example={"LANG": "C.UTF-8"})] = {}
    users: Annotated[tuple[Login, ...], say("Which of [users] these nodes have; all, if it isn't said.")] | None = None
    packages: Annotated[
        tuple[Annotated[str, matching(PACKAGE)], ...],
        say(
            "Debian packages beside the image's own; `name=version`, or `name/release` for one of another release.",
            example=["r-base-core", "openssh-server/bookworm-backports"],
        ),
    ] = ()
    limits: Annotated[Limits, say("What each of them may use.")] = field(default_factory=Limits)


class GatewayGroup(Struct, frozen=True, forbid_unknown_fields=True):
    """Gateways that are alike."""

    count: Annotated[int, Meta(ge=0, le=MOST), say("How many.")] = 1
    program: Annotated[
        Literal["enterprise-gateway", "jupyterlab"],
        say(
            "`enterprise-gateway`: Jupyter Enterprise Gateway. `jupyterlab`: JupyterLab on its own server, with kernelspecs for "
            "the nodes and a token in its URL."
        ),
    ] = "enterprise-gateway"
    name: Annotated[
        str,
        matching(TEMPLATE),
        say("Template of their names; by default the group's name, with `{n}` if there are several."),
    ] = ""
    env: Annotated[
        Mapping[str, str], say("Its environment.", example={"EG_LOAD_BALANCING_ALGORITHM": "least-connection"})
    ] = {}
    options: Annotated[
        tuple[str, ...],
        say("What goes behind its command line.", example=["--EnterpriseGatewayApp.max_kernels=9"]),
    ] = ()
    hosts: (
        Annotated[
            tuple[str, ...],
            say(
                "Nodes by short or full name, by pattern (`gpu*`) or by role (`@spark`); all nodes, if it isn't said.",
                example=["@kernel"],
            ),
        ]
        | None
    ) = None
    kernelspecs: Annotated[tuple[str, ...], say("Which of [kernelspecs] it offers; all, if it isn't said.")] | None = (
        None
    )
    limits: Annotated[Limits, say("What each of them may use.")] = field(default_factory=Limits)


class KernelspecEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """One kernel.json, offered beside the lab's own three."""

    argv: Annotated[tuple[str, ...], say("The kernel's command line on the node.")]
    display_name: Annotated[str, say("What notebooks show; by default the kernelspec's name.")] = ""
    language: Annotated[str, say("The kernel's language.")] = "python"
    env: Annotated[Mapping[str, str], say("The kernel's environment.")] = {}
    metadata: Annotated[Mapping[str, Any], say("As in kernel.json; our process proxy, if it names none.")] = {}


class FaultStep(Struct, frozen=True, forbid_unknown_fields=True, rename={"duration": "for"}):
    """One line of the fault plan."""

    fault: Annotated[str, say("Its name in `lab fault catalogue`.", example="partition")]
    at: Annotated[float, duration(0), say("When, counted from the plan's start.", example="10s")] = 0.0
    nodes: Annotated[
        tuple[str, ...], say("Nodes by name, pattern or `@role`; all, if it isn't said.", example=["node1"])
    ] = ()
    duration: (
        Annotated[float, duration(0), say("How long; to the plan's end, if it isn't said.", example="15s")] | None
    ) = None
    options: Annotated[Mapping[str, Any], say("The fault's own options.")] = {}

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


class Topology(Struct, frozen=True, forbid_unknown_fields=True, rename={"clusters": "with"}):
    """A whole lab.toml. Get one by `lab.topology.load`, or make one in Python."""

    version: Annotated[Literal[1], say("The file's format; must be there.")] = 1
    name: Annotated[Name, say("The lab's name, where neither --name nor LAB_NAME says it.")] | None = None
    driver: (
        Annotated[
            str,
            say(
                "What makes the machines: `docker`, `local`, or another driver that is registered. By default docker where an "
                "engine answers, else local.",
                example="local",
            ),
        ]
        | None
    ) = None
    sshd: Annotated[
        Literal["auto", "openssh", "asyncssh"],
        say("The SSH server of local nodes; docker nodes always have OpenSSH's."),
    ] = "auto"
    lease: (
        Annotated[
            float,
            duration(10),
            say("The lab ends by itself this long after the `up` that read it; by default it stays.", example="2h"),
        ]
        | None
    ) = None
    pool: (
        Annotated[
            str,
            matching(POOL),
            say(
                "The network (/8 to /24) that a docker lab's /24 is taken of, when the lab is made; LAB_POOL wins. By default "
                "10.213.0.0/16, 172.30.0.0/16 and 192.168.200.0/21 are tried.",
                example="172.31.0.0/16",
            ),
        ]
        | None
    ) = None
    clusters: Annotated[
        tuple[Literal["spark", "yarn", "jupyterlab"], ...],
        say(
            "Clusters on the nodes. `spark`: a standalone master, and a worker on each node. `yarn`: a ResourceManager, "
            "and a NodeManager on each node. And `jupyterlab`: a gateway of this name that is a JupyterLab.",
            example=["spark"],
        ),
    ] = ()
    auth: Annotated[Auth, say("Keys or certificates.")] = field(default_factory=Auth)
    users: Annotated[Mapping[Login, User], say("Login users beside `lab`.")] = {}
    nodes: Annotated[Mapping[Name, NodeGroup], say("Groups of nodes by name.")] = field(default_factory=default_nodes)
    gateways: Annotated[Mapping[Name, GatewayGroup], say("Gateways by name; an empty table means none.")] = field(
        default_factory=default_gateways
    )
    kernelspecs: Annotated[
        Mapping[Annotated[str, matching(KERNELSPEC)], KernelspecEntry], say("Kernelspecs by name.")
    ] = {}
    seed: Annotated[int, say("Of the fault plan's chances.")] | None = None
    faults: Annotated[tuple[FaultStep, ...], say("The fault plan, a timeline.")] = ()

    def fault_plan(self) -> list[dict[str, Any]]:
        """Return the plan for `lab.faults.run_plan`, in order of time."""
        return [step.as_dict() for step in sorted(self.faults, key=lambda step: step.at)]

"""Every knob, as traits: set in the gateway's configuration (`c.Distributed.connect_timeout = 3`) or by environment."""

from __future__ import annotations

import math
import os
import socket
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from traitlets import Bool, Enum, Float, Integer, TraitError, TraitType, Unicode
from traitlets.config import Configurable

__all__ = ["Distributed", "options_table"]

_HEADER = """# Options

Made from the traits by `nox -s docs`; set them in the gateway's configuration file (`c.Distributed.connect_timeout = 3`) or by
environment. A configuration file wins over the environment, and the environment over the default.

"""

_TRUE = ("true", "1", "yes", "on")
_FALSE = ("", "false", "0", "no", "off")


class Names(TraitType):  # type: ignore[type-arg] # generic only in traitlets' later releases
    """Some names: a list of texts, or one text with commas between them."""

    default_value = ()
    info_text = "a list of names, or a text with commas between them"

    def validate(self, obj: Any, value: Any) -> tuple[str, ...]:
        """Return *value* as a tuple, without blanks and empty names; called by traitlets."""
        parts = value.split(",") if isinstance(value, str) else value
        parts = list(parts) if isinstance(parts, Iterable) else [None]
        if not all(isinstance(part, str) for part in parts):
            self.error(obj, value)
        return tuple(name for part in parts if (name := part.strip()))


class Folders(TraitType):  # type: ignore[type-arg] # the same
    """Folders here and what they are called elsewhere: a dictionary, or one text `HERE=THERE` with commas between them."""

    default_value: Any = {}  # noqa: RUF012 - never written to: `validate` makes another
    info_text = "a dictionary of folders, or a text HERE=THERE with commas between them"

    def validate(self, obj: Any, value: Any) -> dict[str, str]:
        """Return *value* as a dictionary of absolute paths here; called by traitlets."""
        if isinstance(value, str):
            pairs = [part.partition("=") for part in value.split(",") if part.strip()]
            if not all(equals for _, equals, _ in pairs):
                self.error(obj, value)
            value = {here.strip(): there.strip() for here, _, there in pairs}
        if not isinstance(value, Mapping) or not all(isinstance(part, str) for pair in value.items() for part in pair):
            self.error(obj, value)
        return {os.path.normpath(os.path.expanduser(here)): there for here, there in value.items()}  # noqa: PTH111


_ENVIRONMENTS = (
    *("~/*conda*", "~/*conda*/envs/*", "~/*forge*", "~/*forge*/envs/*", "~/*mamba*/envs/*", "~/.conda/envs/*"),
    *("~/.local/share/mamba/envs/*", "~/.pyenv/versions/*", "~/.virtualenvs/*", "~/.local/share/virtualenvs/*"),
    *(
        "~/envs/*",
        "~/venvs/*",
        "~/.venv",
        "~/venv",
        "/opt/*",
        "/opt/*/envs/*",
        "/usr/local/*conda*",
        "/usr/local/*conda*/envs/*",
    ),
)
_SERVERS = "Of kernels without Enterprise Gateway, which has its own: "
"""How the help of a setting begins that is a kernel provisioner's; see `Distributed`."""
_GATEWAYS = "Of Enterprise Gateway: "
"""How the help of one begins that a Jupyter server has no use for."""


class Distributed(Configurable):
    """Settings of the cluster. Names that Enterprise Gateway's users already set keep them; ours begin with EG_DISTRIBUTED_.

    A value in a configuration file wins over the environment, and the environment over the default.

    Some are for kernels without Enterprise Gateway alone (`provisioner` in their metadata): their variables are Enterprise
    Gateway's, which reads them itself, so they are looked at only *for_provisioner*.
    """

    user = Unicode("", help="Login name on the hosts; empty: ssh_config's User, else the gateway's own.").tag(
        config=True, env="EG_REMOTE_USER"
    )
    port = Integer(0, min=0, max=65535, help="SSH port of the hosts; 0: ssh_config's Port, else 22.").tag(
        config=True, env="EG_SSH_PORT"
    )
    password = Unicode("", help="Password for the login. Keys are better.").tag(
        config=True, env="EG_REMOTE_PWD", secret=True
    )
    gss = Bool(False, help="Log in by Kerberos (needs asyncssh's gssapi extra).").tag(
        config=True, env="EG_REMOTE_GSS_SSH"
    )
    ssh_config = Unicode(
        "", help="ssh_config file to honour, as by `ssh -F`; empty: ~/.ssh/config and /etc/ssh/ssh_config."
    ).tag(config=True, env="EG_DISTRIBUTED_SSH_CONFIG")
    python = Unicode(
        "python3", help="The nodes' interpreter for the agent: Python 3.9 or later, nothing else needed."
    ).tag(config=True, env="EG_DISTRIBUTED_PYTHON")
    log_dir = Unicode(
        "",
        help="Folder for kernels' logs on the nodes; empty: the agent's own, which keeps them for a day after a kernel's end.",
    ).tag(config=True, env="EG_KERNEL_LOG_DIR")
    load_balancer = Unicode(
        "", help="Name of a load balancer from an entry point; empty: the gateway's own load_balancing_algorithm."
    ).tag(config=True, env="EG_DISTRIBUTED_LOAD_BALANCER")
    allow_any_host = Bool(
        False,
        help="Let KERNEL_REMOTE_HOST name hosts outside the kernel's own host set; never the gateway's own machine, by any "
        "name or way.",
    ).tag(config=True, env="EG_DISTRIBUTED_ALLOW_ANY_HOST")
    transport = Enum(
        ["auto", "ipc", "tcp"],
        "auto",
        help="How kernels listen on their node: UNIX sockets (ipc), loopback ports (tcp), or ipc for Python and tcp otherwise.",
    ).tag(config=True, env="EG_DISTRIBUTED_TRANSPORT")
    endpoints = Enum(
        ["auto", "ipc", "tcp"],
        "auto",
        help="How the gateway listens for its kernels' clients: UNIX sockets (ipc), loopback ports that no other user may "
        "connect to (tcp), or the latter only where there can be no UNIX sockets.",
    ).tag(config=True, env="EG_DISTRIBUTED_ENDPOINTS")
    replace_launchers = Bool(
        True,
        help="Start Enterprise Gateway's own Spark kernelspecs (run.sh, unchanged) by our launcher, which works on current "
        "versions and needs nothing of the kernelspec on the nodes.",
    ).tag(config=True, env="EG_DISTRIBUTED_REPLACE_LAUNCHERS")
    folder_limit = Integer(
        32 * 1024 * 1024,
        min=0,
        max=1 << 32,
        help="Bytes that a kernelspec's folder may have to be brought to the nodes, where its argv names `{resource_dir}`. 0: "
        "none is, and the path is the gateway's.",
    ).tag(config=True, env="EG_DISTRIBUTED_FOLDER_LIMIT")
    warm_starts = Bool(
        False,
        help="Fork Python kernels from a template on their node that has imported ipykernel already, where that makes no "
        "difference to them; a kernelspec may say otherwise for itself (`warm`, `preload`).",
    ).tag(config=True, env="EG_DISTRIBUTED_WARM_STARTS")
    connect_timeout = Float(
        0.0,
        min=0.0,
        help="Seconds for TCP, for each address of a host, and for sshd's first words; 0: ConnectTimeout of ssh_config, else 5.",
    ).tag(config=True, env="EG_DISTRIBUTED_CONNECT_TIMEOUT")
    login_timeout = Float(
        30.0, min=0.1, help="Seconds for the login once sshd has answered: a slow host is not a dead one."
    ).tag(config=True, env="EG_DISTRIBUTED_LOGIN_TIMEOUT")
    bootstrap_timeout = Float(20.0, min=0.1, help="Seconds for the agent to come up on a node after the login.").tag(
        config=True, env="EG_DISTRIBUTED_BOOTSTRAP_TIMEOUT"
    )
    request_timeout = Float(5.0, min=0.1, help="Seconds for an answer of an agent.").tag(
        config=True, env="EG_DISTRIBUTED_REQUEST_TIMEOUT"
    )
    queue_starts = Bool(
        True,
        help="Have starts wait for their turn on their host: about as many at once as it has processors, and fair between users "
        "(KERNEL_USERNAME). The launch timeout counts from when the host begins with a start.",
    ).tag(config=True, env="EG_DISTRIBUTED_QUEUE_STARTS")
    keepalive_interval = Float(5.0, min=0.1, help="Seconds of silence after which a connection is probed.").tag(
        config=True, env="EG_DISTRIBUTED_KEEPALIVE_INTERVAL"
    )
    keepalive_count = Integer(
        3, min=1, help="Unanswered probes after which a connection counts as lost and is made anew."
    ).tag(config=True, env="EG_DISTRIBUTED_KEEPALIVE_COUNT")
    retry_after = Float(
        15.0, min=0, help="Seconds for which a host that failed is only tried when no other is left."
    ).tag(config=True, env="EG_DISTRIBUTED_RETRY_AFTER")
    host_lost_policy = Enum(
        ["wait", "restart-elsewhere"],
        "wait",
        help="What becomes of the kernels of a host that is out of reach: they are waited for, however long that takes (wait), "
        "or given up after host_lost_after, so that they may start again on another host of theirs (restart-elsewhere).",
    ).tag(config=True, env="EG_DISTRIBUTED_HOST_LOST_POLICY")
    host_lost_after = Float(
        600.0,
        min=0,
        help="With host_lost_policy restart-elsewhere: seconds without contact after which a host's kernels are given up. They "
        "count while another host is reached, and for kernels that have another host which is; after 900 their streams can't "
        "go on where they were. 0: never.",
    ).tag(config=True, env="EG_DISTRIBUTED_HOST_LOST_AFTER")
    orphan_timeout = Float(
        86400.0, min=0, help="Seconds after which a node ends a kernel that no gateway answers for; 0: never."
    ).tag(config=True, env="EG_DISTRIBUTED_ORPHAN_TIMEOUT")
    replay_limit = Integer(
        16 * 1024 * 1024,
        min=1024 * 1024,
        help="Bytes that the gateway keeps of each stream until the node has acknowledged them.",
    ).tag(config=True, env="EG_DISTRIBUTED_REPLAY_LIMIT")
    kept_output_limit = Integer(
        64 * 1024 * 1024,
        min=0,
        max=1 << 40,
        help="Bytes of each kernel's output that its node keeps on disk while no gateway is there, for clients that come back "
        "to one with Enterprise Gateway's persistence; the oldest give way. An agent keeps 1 GiB for all kernels. 0: none.",
    ).tag(config=True, env="EG_DISTRIBUTED_KEPT_OUTPUT_LIMIT")
    websocket_message_limit = Integer(
        256 * 1024 * 1024,
        min=1024,
        help="Bytes that one message of a client to a kernel may have, such as a file in an upload widget; a larger one closes "
        "its websocket. The notebook server in front of the gateway has a limit of its own.",
    ).tag(config=True, env="EG_DISTRIBUTED_WEBSOCKET_MESSAGE_LIMIT")
    gateway_id = Unicode(
        "", help="What nodes know this gateway's kernels by; must differ between gateways. Empty: host name and port."
    ).tag(config=True, env="EG_DISTRIBUTED_GATEWAY_ID")
    runtime_dir = Unicode(
        "",
        help="Folder (made 0700) for kernels' sockets on the gateway; empty: one in /tmp for the user and gateway_id.",
    ).tag(config=True, env="EG_DISTRIBUTED_RUNTIME_DIR")

    metrics_port = Integer(
        0,
        min=0,
        max=65535,
        help=_GATEWAYS
        + "port on which it shows its numbers to Prometheus (/metrics); 0: none. A Jupyter server has a /metrics.",
    ).tag(config=True, env="EG_DISTRIBUTED_METRICS_PORT")
    metrics_address = Unicode(
        "127.0.0.1",
        help=_GATEWAYS + "address of metrics_port. There is no login: whoever reaches it reads hosts' names.",
    ).tag(config=True, env="EG_DISTRIBUTED_METRICS_ADDRESS")
    metrics_textfile = Unicode(
        "",
        help=_GATEWAYS
        + "file (*.prom) to which it writes the same, for the textfile collector of node_exporter; empty: none.",
    ).tag(config=True, env="EG_DISTRIBUTED_METRICS_TEXTFILE")
    metrics_interval = Float(15.0, min=1.0, help=_GATEWAYS + "seconds between two writes of metrics_textfile.").tag(
        config=True, env="EG_DISTRIBUTED_METRICS_INTERVAL"
    )

    remote_hosts = Names(help=_SERVERS + "the hosts of kernelspecs that name none.").tag(
        config=True, env="EG_REMOTE_HOSTS", provisioner=True
    )
    inherited_envs = Names(help=_SERVERS + "variables of this process that kernels get. No other reaches them.").tag(
        config=True, env="EG_INHERITED_ENVS", provisioner=True
    )
    client_envs = Names(
        help=_SERVERS + "variables that kernels get, beside KERNEL_*, if who starts them gives them a value; `*`: any."
    ).tag(config=True, env="EG_CLIENT_ENVS", provisioner=True)
    kernel_launch_timeout = Float(
        30.0, min=0.1, max=86400.0, help=_SERVERS + "seconds for a start, unless KERNEL_LAUNCH_TIMEOUT says otherwise."
    ).tag(config=True, env="EG_KERNEL_LAUNCH_TIMEOUT", provisioner=True)
    port_range = Unicode("0..0", help=_SERVERS + "ports that kernels may use on their nodes; 0..0: any.").tag(
        config=True, env="EG_PORT_RANGE", provisioner=True
    )
    authorized_users = Names(
        help=_SERVERS + "who may start kernels, by KERNEL_USERNAME (default: who runs this process); none: anybody."
    ).tag(config=True, env="EG_AUTHORIZED_USERS", provisioner=True)
    unauthorized_users = Names(help=_SERVERS + "who may not.").tag(
        config=True, env="EG_UNAUTHORIZED_USERS", provisioner=True
    )
    impersonation_enabled = Bool(
        False, help=_SERVERS + "whether kernels run as KERNEL_USERNAME, by launchers that can do so."
    ).tag(config=True, env="EG_IMPERSONATION_ENABLED", provisioner=True)
    folders = Folders(
        help=_SERVERS
        + "what folders of this machine are called on the hosts, where that differs, so that kernels start in "
        'their notebook\'s: `{"/Users/me/work": "/home/me/work"}`, or `/Users/me/work=/home/me/work`.'
    ).tag(config=True, env="EG_DISTRIBUTED_FOLDERS", provisioner=True)

    keep_kernels = Bool(
        False,
        help=_SERVERS
        + "whether those of a Jupyter server run on when it is stopped, for its next start within orphan_timeout. Of "
        "one that is killed they do in any case.",
    ).tag(config=True, env="EG_DISTRIBUTED_KEEP_KERNELS", provisioner=True)
    host_kernelspecs = Enum(
        ["auto", "both", "any", "each", "off"],
        "auto",
        help=_SERVERS
        + "which kernelspecs of the hosts in `remote_hosts` a Jupyter server's launcher has beside its own: one for any "
        "host where several hosts have the same, and one for each host (both); only the former, and the latter where one host "
        "alone has it (any); only the latter (each); both where there are at most eight hosts, else any (auto); none (off). "
        "Other than off, a server with a page that is open is connected to each of these hosts.",
    ).tag(config=True, env="EG_DISTRIBUTED_HOST_KERNELSPECS", provisioner=True)
    kernelspec_environments = Names(
        _ENVIRONMENTS,
        help=_SERVERS
        + "where conda and virtual environments with kernelspecs are on the hosts: paths with `~` and `*`. "
        "Jupyter's own folders there, and the environments of programs on PATH, are looked at in any case.",
    ).tag(config=True, env="EG_DISTRIBUTED_KERNELSPEC_ENVIRONMENTS", provisioner=True)
    kernelspecs_shown = Names(
        ("*",),
        help=_SERVERS
        + "which of the hosts' kernelspecs the launcher has: patterns of their names, with or without the host's, such "
        "as `python3*` or `ir.node1`.",
    ).tag(config=True, env="EG_DISTRIBUTED_KERNELSPECS_SHOWN", provisioner=True)
    kernelspecs_hidden = Names(help=_SERVERS + "which of those it does not have.").tag(
        config=True, env="EG_DISTRIBUTED_KERNELSPECS_HIDDEN", provisioner=True
    )
    kernelspec_name = Unicode(
        "{kernelspec}.{host}",
        help=_SERVERS + "what the hosts' kernelspecs are called in notebooks; `{host}` is `any` for any host.",
    ).tag(config=True, env="EG_DISTRIBUTED_KERNELSPEC_NAME", provisioner=True)
    kernelspec_display_name = Unicode(
        "{display_name} · {host}",
        help=_SERVERS + "what people read in the launcher; `{host}` is `any host` for any host.",
    ).tag(config=True, env="EG_DISTRIBUTED_KERNELSPEC_DISPLAY_NAME", provisioner=True)
    kernelspec_refresh = Float(
        60.0,
        min=1.0,
        help=_SERVERS
        + "seconds after which a host is asked again for its kernelspecs, when a client next asks the server for them. "
        "Nobody waits for that: hosts are asked in the background.",
    ).tag(config=True, env="EG_DISTRIBUTED_KERNELSPEC_REFRESH", provisioner=True)

    gone_timeout = 0.0
    """See `protocol.ControlHello`; no setting of its own, but of processes that cannot come back, by `orphan_timeout`."""

    def __init__(self, **kwargs: Any) -> None:
        for_provisioner: bool = kwargs.pop("for_provisioner", False)
        super().__init__(**kwargs)
        given = set(kwargs) | set(self.config.get(type(self).__name__, {}))
        for name, trait in self.traits(env=lambda env: env is not None).items():
            value = os.environ.get(trait.metadata["env"])
            is_read = for_provisioner or not trait.metadata.get("provisioner")
            if name not in given and value and is_read:
                try:
                    setattr(self, name, _parse(trait, value))
                except TraitError as error:
                    raise ValueError(f"{trait.metadata['env']}={value!r} is out of range: {error}") from None

    def connect_seconds(self) -> float:
        """Return the seconds for TCP and sshd's first words where ssh_config does not say."""
        return self.connect_timeout or 5.0

    def identity(self, port: int = 0) -> str:
        """Return what nodes know this gateway by; *port* is its HTTP port, to tell two gateways of one machine apart."""
        return self.gateway_id or f"{socket.gethostname()}:{port}"


def _parse(trait: TraitType[Any, Any], text: str) -> Any:
    """Turn an environment variable's *text* into the trait's type; a wrong one is a ValueError that names the variable."""
    name = trait.metadata["env"]
    if isinstance(trait, Enum) and text not in (known := trait.values or ()):
        raise ValueError(f"{name}={text!r} is none of {', '.join(known)}")
    try:
        if isinstance(trait, Bool):
            return {**dict.fromkeys(_TRUE, True), **dict.fromkeys(_FALSE, False)}[text.strip().lower()]
        if isinstance(trait, Integer):
            return int(text)
        return _finite(text) if isinstance(trait, Float) else text
    except (KeyError, ValueError):
        kind = type(trait).__name__.lower()
        raise ValueError(f"{name}={text!r} is no {kind}") from None


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def options_table() -> str:
    """Return the table of all settings as Markdown; `docs/options.md` is made of it."""
    rows = ["| setting | environment | default | meaning |", "|---|---|---|---|"]
    for name, trait in Distributed.class_traits(config=True).items():
        default = f"`{trait.default_value!r}`"
        rows.append(f"| `Distributed.{name}` | `{trait.metadata['env']}` | {default} | {trait.help} |")
    return "\n".join(rows) + "\n"


def _main(mode: str, path: str) -> int:
    """Write the options table to *path*, or check that it is there as it would be written."""
    text = _HEADER + options_table()
    target = Path(path)
    if mode == "--write":
        target.write_text(text, "utf-8")
    elif target.read_text("utf-8") != text:
        print(f"{path} is not what the traits say: run `nox -s docs`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))

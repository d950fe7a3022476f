"""Who is measured: the same kernel, started by each in its own way, behind the server that it is made for."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.peers import environments
from lab.drivers import checkout
from lab.kernelspecs import KERNEL_PYTHON, LAUNCHER, OURS, PROVISIONER, STOCK

Json = dict[str, Any]
SERVER: Final = ("-m", "jupyter_server")
ENTERPRISE_GATEWAY: Final = ("-c", "from enterprise_gateway.enterprisegatewayapp import launch_instance as run; run()")
LOCAL: Final = "local"
"""The contender that all others are held against: no SSH, no other machine, nothing of ours."""
WARM: Final = "ours_warm"
GP_LAUNCHER: Final = "/opt/gateway_provisioners/launch_ipykernel.py"
"""Where the benchmark puts gateway_provisioners' launcher on nodes; its documentation has people do the same."""
_PLAIN: Final = ("-m", "ipykernel_launcher", "-f", "{connection_file}")


@dataclass(frozen=True)
class Contender:
    """One of them. *environment* makes what its server runs in; *specs* returns a kernelspec for each name, given addresses."""

    key: str
    label: str
    environment: Callable[[], Path]
    program: tuple[str, ...]
    specs: Callable[[Sequence[str]], list[Json]]
    far_env: Callable[[float], Mapping[str, str]] = lambda _: {}
    """Variables of its server where a round trip to the node takes so many seconds."""
    ours: bool = False
    """Whether the guard holds it against what was measured before."""
    remote: bool = True


def _spec(argv: Sequence[str], metadata: Json | None = None, **more: Any) -> Json:
    return {"argv": list(argv), "display_name": "bench", "language": "python", "metadata": metadata or {}, **more}


def _provisioned(name: str, config: Json) -> Json:
    return {"kernel_provisioner": {"provisioner_name": name, "config": config}}


def local_spec() -> Json:
    """Return the kernelspec of a kernel on this machine."""
    return _spec([str(environments.kernel() / "bin" / "python"), *_PLAIN])


def _local(_: Sequence[str]) -> list[Json]:
    return [local_spec()]


def _ours(**config: Any) -> Callable[[Sequence[str]], list[Json]]:
    def specs(hosts: Sequence[str]) -> list[Json]:
        stanza = _provisioned(PROVISIONER, {"remote_hosts": list(hosts), **config})
        return [_spec([KERNEL_PYTHON, *_PLAIN], stanza)]

    return specs


def _proxied(class_name: str, argv: Sequence[str], **config: Any) -> Callable[[Sequence[str]], list[Json]]:
    def specs(hosts: Sequence[str]) -> list[Json]:
        stanza = {"process_proxy": {"class_name": class_name, "config": {"remote_hosts": ",".join(hosts), **config}}}
        return [_spec(argv, stanza)]

    return specs


def _stock_argv() -> list[str]:
    argv = [KERNEL_PYTHON, LAUNCHER]
    for option in ("kernel-id", "response-address", "public-key", "port-range"):
        argv += [f"--RemoteProcessProxy.{option}", "{" + option.replace("-", "_") + "}"]
    return [*argv, "--RemoteProcessProxy.spark-context-initialization-mode", "none"]


def _gateway_provisioners(hosts: Sequence[str]) -> list[Json]:
    # As `jupyter ssh-spec install` writes it, without what an empty {transport_encryption} makes of its unquoted command line.
    argv = [KERNEL_PYTHON, GP_LAUNCHER, "--cluster-type", "none"]
    for option in ("kernel-id", "port-range", "response-address", "public-key"):
        argv += [f"--{option}", "{" + option.replace("-", "_") + "}"]
    return [_spec(argv, _provisioned("distributed-provisioner", {"remote_hosts": list(hosts)}))]


def _longer_timeout(round_trip: float) -> Mapping[str, str]:
    # By default, 10 ms, no kernel that is farther lives: each is taken for dead, and started again. No more than it needs,
    # since it waits so long in the server's loop, ten times a second.
    return {"GP_SOCKET_TIMEOUT": f"{1.2 * round_trip:g}"} if round_trip > 0.008 else {}


def _sshpyk(hosts: Sequence[str]) -> list[Json]:
    # One alias a kernelspec is all that it takes; the benchmark goes through them in turns.
    found = []
    for host in hosts:
        config = {"ssh_host_alias": alias(host), "ssh_config": "{home}/.ssh/config", "launch_timeout": 60}
        config |= {"remote_python": KERNEL_PYTHON, "remote_kernel_name": "python3"}
        argv = ["sshpyk-kernel", "-f", "{connection_file}"]
        found.append(_spec(argv, _provisioned("sshpyk-provisioner", config), interrupt_mode="message"))
    return found


def alias(host: str) -> str:
    """Return the name in ssh_config by which sshpyk knows the address *host*: it wants one, with a connection of its own."""
    return f"sshpyk-{host}"


def warm_starts_are_there() -> bool:
    """Return True if this checkout has a fork server."""
    return importlib.util.find_spec("eg_distributed.agent.warm") is not None


def contenders() -> list[Contender]:
    """Return all of them, in the order of the tables; us warm only where this checkout has a fork server."""
    wheel = checkout.requirements

    def server(name: str, *, ours: bool = False) -> Callable[[], Path]:
        return lambda: environments.ensure(name, environments.own(name), wheel=ours)

    def gateway() -> Path:
        return environments.ensure("gateway", wheel("gateway"), wheel=True)

    has_warm = warm_starts_are_there()
    cold: Json = {"warm": False} if has_warm else {}
    warm = [
        Contender(WARM, "us, warm", server("ours", ours=True), SERVER, _ours(warm=True), ours=True),
    ]
    plain = (KERNEL_PYTHON, *_PLAIN)
    return [
        *(warm if has_warm else []),
        Contender("ours", "us, jupyter_server", server("ours", ours=True), SERVER, _ours(**cold), ours=True),
        Contender(
            "ours_eg", "us, Enterprise Gateway", gateway, ENTERPRISE_GATEWAY, _proxied(OURS, plain, **cold), ours=True
        ),
        Contender("stock", "Enterprise Gateway's own", gateway, ENTERPRISE_GATEWAY, _proxied(STOCK, _stock_argv())),
        Contender(
            "gateway_provisioners",
            "gateway_provisioners 0.5",
            server("gateway_provisioners"),
            SERVER,
            _gateway_provisioners,
            far_env=_longer_timeout,
        ),
        Contender("sshpyk", "sshpyk 1.25", server("sshpyk"), SERVER, _sshpyk),
        Contender(LOCAL, "local kernel", server("local"), SERVER, _local, remote=False),
    ]

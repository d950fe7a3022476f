"""Where the driver is reached, and where it keeps what it needs for a while: the node's part of the settings."""

from __future__ import annotations

import contextlib
import random
import re
import shlex
import socket
import tempfile
from pathlib import Path
from typing import Mapping, Optional

from .errors import LaunchError
from .options import SparkOptions
from .properties import conf_dir
from .waiting import within

_RESOLVE_DEADLINE = 2.0  # seconds for the node's own name; a resolver that hangs must not hold up the kernel
_MARGIN = 16  # ports that Spark may go on to if the one that we found free is taken meanwhile (spark.port.maxRetries)
_LOOPBACK = re.compile(r"localhost(?:\.|\Z)|127\.|::1\Z")
_ATTEMPT = re.compile(r"[0-9A-Za-z]{1,64}\Z")


def settle(options: SparkOptions) -> SparkOptions:
    """Return *options* with what only the node knows: the driver's name, its ports, its folder for temporary files."""
    added: dict[str, str] = {}
    if not options.master.startswith("local"):
        host = driver_host(options)
        added["spark.driver.host"] = host
        added["spark.driver.bindAddress"] = host if _is_loopback(host) else "0.0.0.0"
        added.update(_ports(options))
    if options.on_yarn:
        added.update(_containers_env(options.env.get("SPARK_YARN_USER_ENV", "")))
    scratch = scratch_folder(options.env)
    if scratch is not None:
        with contextlib.suppress(OSError):  # then Spark uses the system's own folder
            scratch.mkdir(mode=0o700, exist_ok=True)
            if "SPARK_LOCAL_DIRS" not in options.env and "spark.local.dir" not in options.settings:
                options.env["SPARK_LOCAL_DIRS"] = str(scratch)
            # Whoever says where shuffled data goes, which is large, has not said that of the rest.
            _own_folder(options, scratch)
    return options.with_settings(added)


def _own_folder(options: SparkOptions, scratch: Path) -> None:
    """Have the driver's JVM keep its small files in *scratch*; whatever the kernelspec says itself comes later, and wins."""
    own = [f"-Djava.io.tmpdir={scratch}"]
    if not _has_metastore(options):
        # Else two drivers of one user on a node are in each other's way.
        own.append(f"-Dderby.system.home={scratch}")
    # Not by spark.driver.defaultJavaOptions, which are the languages' own to say.
    given = options.env.get("SPARK_SUBMIT_OPTS", "")
    options.env["SPARK_SUBMIT_OPTS"] = f"{shlex.join(own)} {given}".strip()


def _has_metastore(options: SparkOptions) -> bool:
    """Return True if a site or a user says where Hive keeps its tables' names; else that is a Derby in a folder of its own."""
    env = options.env
    folders = [
        str(conf_dir(env)),
        *(env.get(name, "") for name in ("HADOOP_CONF_DIR", "YARN_CONF_DIR", "HIVE_CONF_DIR")),
    ]
    if any(folder and (Path(folder) / "hive-site.xml").exists() for folder in folders):
        return True
    return any(name.endswith((".ConnectionURL", "hive.metastore.uris")) for name in options.settings)


def _containers_env(given: str) -> dict[str, str]:
    """Return settings for what SPARK_YARN_USER_ENV (NAME=VALUE,NAME=VALUE) wants in YARN's containers.

    Spark itself has forgotten the variable; Enterprise Gateway's instructions still name it.
    """
    pairs = [pair.partition("=") for pair in re.split(r",(?=[A-Za-z_]\w*=)", given) if "=" in pair]
    kinds = ("spark.yarn.appMasterEnv", "spark.executorEnv")
    return {f"{kind}.{name.strip()}": value for name, _, value in pairs for kind in kinds}


def scratch_folder(env: Mapping[str, str]) -> Optional[Path]:
    """Return the folder for the driver's temporary files, one a start; None if it can't be told from other starts' folders.

    What a driver that was killed leaves there is removed after it (`end.py`).
    """
    attempt = env.get("EG_ATTEMPT", "")
    return Path(tempfile.gettempdir()) / f"eg-distributed-spark-{attempt}" if _ATTEMPT.match(attempt) else None


def driver_host(options: SparkOptions) -> str:
    """Return the name under which executors reach this node.

    The gateway's name for it, or its own, if that means the address that this node has on the way to the cluster; else the
    address itself. A name that means 127.0.1.1, as Debian's /etc/hosts has it, is worth nothing to others, even if it means the
    right address besides: the driver would listen at the first one.
    """
    address = _address_towards(_cluster_host(options))
    names = [options.env.get("EG_NODE", ""), socket.gethostname(), _fqdn()]
    for name in sorted((name for name in dict.fromkeys(names) if name), key=lambda name: "." not in name):
        found = _addresses(name)
        if address in found and (_LOOPBACK.match(address) or not any(_LOOPBACK.match(other) for other in found)):
            return name
    return address


def _cluster_host(options: SparkOptions) -> str:
    if options.master.startswith("spark://"):
        return options.master[len("spark://") :].split(",")[0].rpartition(":")[0].strip("[]")
    if options.on_yarn:
        from .yarn import ResourceManagers

        found = ResourceManagers.of(options.env).addresses
        return found[0][0] if found else ""
    return ""


def _address_towards(host: str) -> str:
    """Return this node's address on the way to *host*, as the routing table has it; nothing is sent.

    A loopback address counts only where the kernelspec says loopback: /etc/hosts may have it for a name that others know too.
    """
    for target in (host, "192.0.2.1"):  # the second is nobody's (RFC 5737): the default route's address
        for address in _addresses(target):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((address, 9))
                found = str(probe.getsockname()[0])
                if not _LOOPBACK.match(found) or _LOOPBACK.match(host):
                    return found
    return "127.0.0.1"


def _addresses(name: str) -> list[str]:
    if not name:
        return []
    return within(_RESOLVE_DEADLINE, lambda: _resolve(name), [])


def _resolve(name: str) -> list[str]:
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)]
    except OSError:
        return []


def _fqdn() -> str:
    return within(_RESOLVE_DEADLINE, socket.getfqdn, "")


def _is_loopback(host: str) -> bool:
    """Return True if all addresses of *host* are loopback: then there is no other one at which to listen."""
    found = _addresses(host)
    return bool(found) and all(address.startswith("127.") or address == "::1" for address in found)


def _ports(options: SparkOptions) -> dict[str, str]:
    """Return settings for ports within the gateway's range, if it has one; else Spark picks what is free. Raises LaunchError."""
    low, _, high = options.env.get("EG_PORT_RANGE", "").partition("..")
    if not (low.isdigit() and high.isdigit() and int(high) > int(low) > 0):
        return {}
    names = ("spark.driver.port", "spark.driver.blockManager.port", "spark.ui.port")
    last = max(int(high) - _MARGIN, int(low))
    candidates = list(range(int(low), last + 1))
    random.shuffle(candidates)
    candidates += range(last + 1, int(high) + 1)  # with less room behind them
    chosen: dict[str, str] = {}
    for port in candidates:
        if len(chosen) == len(names):
            break
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
            chosen[names[len(chosen)]] = str(port)
    if len(chosen) < len(names):
        raise LaunchError(
            f"EG_PORT_RANGE={low}..{high} has no {len(names)} free ports on this node, which a driver needs",
            "widen the range, or end other kernels on this node",
        )
    chosen["spark.port.maxRetries"] = str(min(_MARGIN, int(high) - max(map(int, chosen.values()))))
    return chosen

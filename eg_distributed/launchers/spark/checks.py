"""Whether the cluster can be reached at all, asked before Spark does: it would take from one minute to fifteen to say so."""

from __future__ import annotations

import contextlib
import functools
import queue
import socket
import struct
import threading
import time
from typing import Any, Iterator, Optional

from .errors import LaunchError
from .options import SparkOptions
from .yarn import ResourceManagers

_CONNECT_TIMEOUT = 3.0  # seconds for a connection to a master; a network that drops packets says nothing
_ANSWER_TIMEOUT = (
    8.0  # seconds for a word of its: one that collects garbage takes its time, one that was stopped takes all of it
)
_TO_SPARK = struct.pack(">qbi", 8 + 1 + 4 + 7, 6, 7) + b"/jars/-"
"""A request of Spark's own protocol, for a file that is none: answered at once, and not worth a line in the master's log."""
_TO_HADOOP = b"GET / HTTP/1.0\r\n\r\n"
"""What Hadoop's RPC server answers whatever the cluster's security is: that it is no web server."""


def check_configuration(options: SparkOptions) -> None:
    """Raise LaunchError if there is no YARN configuration where one is needed; asks nobody."""
    if options.on_yarn and not ResourceManagers.of(options.env).addresses:
        raise LaunchError(
            "there is no YARN configuration (HADOOP_CONF_DIR and YARN_CONF_DIR name no folder with a yarn-site.xml)",
            "set HADOOP_CONF_DIR in the kernelspec's env to the folder with the cluster's client configuration",
        )


def check_cluster(options: SparkOptions) -> None:
    """Raise LaunchError if the master or the ResourceManager can't be reached, or the queue takes no application."""
    if options.master.startswith("spark://"):
        remedy = "start the master, or correct --master in SPARK_OPTS"
        _reach(_masters(options.master), _TO_SPARK, "the Spark master", remedy)
    elif options.on_yarn:
        check_configuration(options)
        managers = ResourceManagers.of(options.env)
        remedy = "start the ResourceManager, or correct yarn.resourcemanager.* in the node's yarn-site.xml"
        _reach(managers.addresses, _TO_HADOOP, "YARN's ResourceManager", remedy)
        _check_queue(managers, options.settings.get("spark.yarn.queue", "default"))


def _masters(url: str) -> list[tuple[str, int]]:
    found = []
    for entry in url[len("spark://") :].split(","):
        host, _, port = entry.rpartition(":")
        if not host or not port.isdigit():
            raise LaunchError(f"--master {url} names no host and port", "write spark://HOST:7077")
        found.append((host.strip("[]"), int(port)))
    return found


def _reach(addresses: list[tuple[str, int]], question: bytes, what: str, remedy: str) -> None:
    """Raise LaunchError unless at one of *addresses* somebody says something to *question*, asked at all of them at once."""
    answers: queue.Queue[tuple[str, Optional[str]]] = queue.Queue()
    for host, port in addresses:
        ask = functools.partial(_ask, host, port, question, answers)
        threading.Thread(target=ask, name="spark-check", daemon=True).start()
    causes = {f"{host}:{port}": f"{host}:{port}: no answer in time" for host, port in addresses}
    deadline = time.monotonic() + _CONNECT_TIMEOUT + _ANSWER_TIMEOUT + 1
    with contextlib.suppress(queue.Empty):
        for _ in addresses:
            where, cause = answers.get(timeout=max(0.0, deadline - time.monotonic()))
            if cause is None:
                return
            causes[where] = f"{where}: {cause}"
    raise LaunchError(f"{what} can't be reached ({', '.join(causes.values())})", remedy)


def _ask(host: str, port: int, question: bytes, answers: queue.Queue[tuple[str, Optional[str]]]) -> None:
    answers.put((f"{host}:{port}", _refusal(host, port, question)))


def _refusal(host: str, port: int, question: bytes) -> Optional[str]:
    """Return why nobody is there, None if somebody is: whoever answers, or closes the connection, is not stopped."""
    connected = False
    try:
        with socket.create_connection((host, port), _CONNECT_TIMEOUT) as connection:
            connected = True
            connection.settimeout(_ANSWER_TIMEOUT)
            connection.sendall(question)
            connection.recv(4096)  # the whole answer: one closed unread is a reset, and a warning in the master's log
    except socket.gaierror as error:
        return f"the name is unknown ({error.strerror})"
    except socket.timeout:
        return (
            f"it takes connections, but says nothing for {_ANSWER_TIMEOUT:g} s"
            if connected
            else f"no answer within {_CONNECT_TIMEOUT:g} s"
        )
    except OSError as error:
        return None if connected else error.strerror or str(error)
    return None


def _check_queue(managers: ResourceManagers, name: str) -> None:
    """Raise LaunchError if the scheduler says that there is no such queue, or that it is closed; silence is no objection."""
    answer = managers.ask("scheduler")
    info = ((answer or {}).get("scheduler") or {}).get("schedulerInfo") or {}
    if info.get("type") != "capacityScheduler":
        return
    queues = list(_queues(info))
    known = [queue for queue in queues if name in (queue.get("queueName"), queue.get("queuePath"))]
    leaves = ", ".join(sorted(str(queue.get("queueName")) for queue in queues if not _children(queue)))
    if not known and not _may_be_made(queues):
        raise LaunchError(f"YARN has no queue {name!r}", f"name one of its queues with --queue: {leaves}")
    if known and known[0].get("state", "RUNNING") != "RUNNING":
        raise LaunchError(
            f"YARN's queue {name!r} is {known[0]['state']}: it takes no applications",
            f"name another one with --queue ({leaves}), or have it opened",
        )


def _queues(queue: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for child in _children(queue):
        yield child
        yield from _queues(child)


def _children(queue: dict[str, Any]) -> list[dict[str, Any]]:
    found = (queue.get("queues") or {}).get("queue") or []
    return found if isinstance(found, list) else [found]


def _may_be_made(queues: list[dict[str, Any]]) -> bool:
    """Whether the cluster makes queues when they are asked for, so that a missing one is no fault."""
    return any(queue.get("autoCreationEligibility", "off") != "off" for queue in queues)

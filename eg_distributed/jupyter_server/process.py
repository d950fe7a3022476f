"""This process's clusters, and what nodes know it by.

A server is somebody: whoever starts it again, with the same folders as the same user, has the same name, so that nodes know its
kernels for its own. Any other process (nbclient, papermill, `jupyter run`, a script) is nobody: it cannot be started
again as what it was, so it has a name that nothing else ever has, and nodes end its kernels a minute after it is gone. One that
is only cut off comes back, and is given the time in which its streams can go on.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import getpass
import hashlib
import logging
import os
import re
import secrets
import shutil
import socket
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from traitlets import TraitError
from traitlets.config import Config

from eg_distributed.cluster import Cluster
from eg_distributed.errors import RequestInvalid
from eg_distributed.settings import Distributed

__all__ = ["Server", "cluster_for", "server_cluster", "server_of"]

log = logging.getLogger(__name__)

GONE_TIMEOUT = 60.0
"""Seconds after which nodes end the kernels of a process that is gone and cannot come back."""
ORPHAN_TIMEOUT = 900.0
"""The same of one that may only be cut off: for longer no stream can go on where it was, see agent/streams.py."""
_SLOTS = 64  # servers of one user in the same folders at once that have names of their own
_LOCK = "owner.lock"
_ATTEMPTS = 4  # folders of sockets that are tried, one after the other
_TOKEN = re.compile(r"[0-9a-f]{16}\Z")
_ANCESTORS = 8  # steps from a kernel manager to its server


class Server(Protocol):
    """What is needed of jupyter_server's ServerApp."""

    root_dir: str
    runtime_dir: str


def server_of(manager: object) -> Server | None:
    """Return the jupyter_server that *manager*, a kernel manager, belongs to; None for any other process's."""
    module = sys.modules.get("jupyter_server.serverapp")  # not imported for this: without one there is none
    ancestor: Any = manager
    for _ in range(_ANCESTORS if module is not None else 0):
        ancestor = getattr(ancestor, "parent", None)
        if ancestor is None:
            return None
        if isinstance(ancestor, module.ServerApp):  # type: ignore[union-attr] # there are no rounds without it
            server: Server = ancestor
            return server
    return None


# -- names ---------------------------------------------------------------------------------------------------------


@dataclass
class Name:
    """What nodes know a process by, for as long as it holds *lock*."""

    text: str
    lock: int = -1
    """A locked descriptor, open until the process ends; -1: the name is nobody else's anyway."""


def own_name(prefix: str = "") -> Name:
    """Return a name that no other process has or will have; *prefix* is the `gateway_id` setting."""
    return Name(f"{prefix or socket.gethostname()}:{os.getpid()}-{secrets.token_hex(4)}")


def server_name(server: Server) -> Name:
    """Return the name of the server of this user, root folder and runtime folder: the first that no living server has.

    It is written in a file of the runtime folder, which the server holds locked, so that two servers that run at once never
    have one name, and one that is started again, on whatever port or in whatever container, has that of before.
    """
    folder = Path(server.runtime_dir) / "eg-distributed"
    about = f"{os.getuid()} {os.path.abspath(server.root_dir)}"  # noqa: PTH100 - links stay: they may be what differs
    stem = hashlib.sha256(about.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for slot in range(_SLOTS):
            lock = _locked(folder / f"{stem}-{slot}")
            if lock is not None:
                return Name(f"{_user()}-{_token(lock)}", lock)
    except OSError as error:  # a disk that is full, or knows no locks
        log.warning("%s: servers cannot be told apart there, so nodes know this one by its process: %s", folder, error)
    return own_name()


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return str(os.getuid())


def _locked(path: Path) -> int | None:
    """Return *path* opened and locked, None if another process has the lock; raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _token(lock: int) -> str:
    """Return what is written in the file *lock*, which is ours; written now, if nothing of ours is."""
    token = os.pread(lock, 64, 0).decode("ascii", "replace").strip()
    if not _TOKEN.match(token):
        token = secrets.token_hex(8)
        os.ftruncate(lock, 0)
        os.pwrite(lock, token.encode(), 0)
    return token


# -- folders of sockets --------------------------------------------------------------------------------------------


def _own_folder(name: str) -> tuple[str, int]:
    """Make a folder for the sockets of the process called *name*, and remove those of processes that were killed.

    Returns its path and the lock that tells others that we live; "" and -1 where none can be had, which is the cluster's to say.
    """
    stem = f"eg-distributed-{os.getuid()}-"
    parent = Path("/tmp")  # noqa: S108 - short, as UNIX sockets' paths have to be; the folder is private, and looked at
    _remove_left(parent, stem)
    for attempt in range(_ATTEMPTS):
        token = hashlib.sha256(f"{name}{attempt or ''}".encode()).hexdigest()[:8]
        folder = parent / (stem + token)
        try:
            folder.mkdir(mode=0o700)
            lock = _locked(folder / _LOCK)
            if lock is not None and _is_there(folder / _LOCK, lock):
                return str(folder), lock
            if lock is not None:
                os.close(lock)
        except OSError as error:
            log.debug("%s cannot be made: %s", folder, error)
    return "", -1


def _is_there(path: Path, lock: int) -> bool:
    """Return False if *path* is another file than the one locked by *lock*: who removes what is left may have come first."""
    return os.path.samestat(path.lstat(), os.fstat(lock))


def _remove_left(parent: Path, stem: str) -> None:
    """Remove the folders of processes that had a name of their own, and were killed; those of gateways have no lock."""
    for lock in parent.glob(f"{stem}*/{_LOCK}"):
        with contextlib.suppress(OSError):  # another process removes it just now
            if lock.parent.lstat().st_uid != os.getuid():
                continue
            descriptor = _locked(lock)
            if descriptor is not None:
                shutil.rmtree(lock.parent, ignore_errors=True)
                os.close(descriptor)


# -- clusters ------------------------------------------------------------------------------------------------------


@dataclass
class _Clusters:
    """Those of this process: one of its server, one of everything else that starts kernels in it."""

    process: int
    made: dict[bool, Cluster] = field(default_factory=dict)
    """By whether it is a server's."""
    locks: list[int] = field(default_factory=list)


_lock = threading.Lock()  # kernel managers that block may each be on a thread of its own
_clusters = _Clusters(os.getpid())


def cluster_for(manager: object, config: Config) -> Cluster:
    """Return the cluster that starts *manager*'s kernels, made with the *config* of the first; raises RequestInvalid."""
    global _clusters
    server = server_of(manager)
    with _lock:
        if _clusters.process != os.getpid():  # forked: the thread, and the connections, are the parent's
            _clusters = _Clusters(os.getpid())
        cluster = _clusters.made.get(server is not None)
        if cluster is None:
            cluster = _clusters.made[server is not None] = _new_cluster(server, config)
        return cluster


def server_cluster() -> Cluster | None:
    """Return the cluster of this process's server; None before its first kernel. Makes none, so it may be asked at any time."""
    return _clusters.made.get(True) if _clusters.process == os.getpid() else None


def _new_cluster(server: Server | None, config: Config) -> Cluster:
    try:
        settings = Distributed(config=config, for_provisioner=True)
    except (TraitError, ValueError) as error:
        raise RequestInvalid(f"a setting is wrong: {error}", remedy="correct it and start again") from error
    settings.kept_output_limit = 0  # nobody comes back for it yet
    folder = ""
    if server is None:
        name = own_name(settings.gateway_id)
        _end_soon(settings, config)
        if not settings.runtime_dir:
            folder, lock = _own_folder(name.text)
            settings.runtime_dir = folder
            _clusters.locks.append(lock)
    else:
        name = Name(settings.gateway_id) if settings.gateway_id else server_name(server)
        _clusters.locks.append(name.lock)
        if not settings.gateway_id and name.lock == -1:  # it cannot have its name again either
            _end_soon(settings, config)
    cluster = Cluster(settings, name.text)
    atexit.register(_close, cluster, folder, os.getpid())
    log.debug("nodes know this process as %s", name.text)
    return cluster


def _end_soon(settings: Distributed, config: Config) -> None:
    """Have nodes end the kernels soon after this process's end, as nobody comes back as it; unless somebody has said when."""
    variable = type(settings).orphan_timeout.metadata["env"]
    if "orphan_timeout" not in config.get("Distributed", {}) and not os.environ.get(variable):
        settings.orphan_timeout, settings.gone_timeout = ORPHAN_TIMEOUT, GONE_TIMEOUT


def _close(cluster: Cluster, folder: str, process: int) -> None:
    """End the kernels that are left, and everything of ours, at this process's end."""
    if process != os.getpid():  # a forked child's end is not its parent's
        return
    cluster.close(end_untaken=True)
    if folder:
        shutil.rmtree(folder, ignore_errors=True)

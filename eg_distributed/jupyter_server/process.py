"""This process's clusters, and what nodes know it by.

A server is somebody: whoever starts it again, with the same folders as the same user, has the same name, so that nodes know its
kernels for its own. Any other process (nbclient, papermill, `jupyter run`, a script, a server without our extension) is nobody:
nothing finds its kernels again, so it has a name that nothing else ever has, and nodes end its kernels a minute after it is gone.
One that is only cut off comes back, and is given the time in which its streams can go on.
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
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from traitlets import TraitError
from traitlets.config import Config

from eg_distributed.cluster import Cluster
from eg_distributed.errors import RequestInvalid
from eg_distributed.settings import Distributed

from .store import RECORDS, Store

__all__ = [
    "Keeper",
    "Server",
    "cluster_for",
    "cluster_soon_for",
    "folder_for",
    "has_left_kernels",
    "keep_by",
    "keeper_of",
    "server_cluster",
    "server_of",
    "settings_for",
]

log = logging.getLogger(__name__)

GONE_TIMEOUT = 60.0
"""Seconds after which nodes end the kernels of a process that is gone and cannot come back."""
ORPHAN_TIMEOUT = 900.0
"""The same of one that may only be cut off: for longer no stream can go on where it was, see agent/streams.py."""
_SLOTS = 64  # servers of one user in the same folders at once that have names of their own
_LOCK = "owner.lock"
_KEPT = ".d"
"""What the name of a server's store has beside that of its lock."""
_LOOKS, _LOOK = 4, 0.05  # looks at a lock that is held, and seconds after each
_ATTEMPTS = 4  # folders of sockets that are tried, one after the other
_TOKEN = re.compile(r"[0-9a-f]{16}\Z")
_ANCESTORS = 8  # steps from a kernel manager to its server


class Server(Protocol):
    """What is needed of jupyter_server's ServerApp."""

    root_dir: str
    runtime_dir: str


class Keeper(Protocol):
    """What has kernels of a server found again by its next process."""

    store: Store | None
    """None: there is none yet, or can be none."""

    async def prepare(self) -> None:
        """Have the store, if there can be one; called before anything that may make the server's cluster, on any loop."""
        ...

    def taken(self, manager: Any, owner: str) -> None:
        """Let go of the kernel of *manager*, which the server *owner* has now; called on the server's thread."""
        ...


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
    """A locked descriptor, open until the process ends; -1: nobody holds others back from the name."""
    kept: Path | None = None
    """Where what the next process of that name needs is to be; None: there will be none."""


def own_name(prefix: str = "") -> Name:
    """Return a name that no other process has or will have; *prefix* is the `gateway_id` setting."""
    return Name(f"{prefix or socket.gethostname()}:{os.getpid()}-{secrets.token_hex(4)}")


def server_name(server: Server) -> Name:
    """Return the name of the server of this user, root folder and runtime folder: the first that no living server has.

    It is written in a file of the runtime folder, which the server holds locked, so that two servers that run at once never
    have one name, and one that is started again, on whatever port or in whatever container, has that of before.
    """
    folder = names_of(server)
    stem = _stem(server)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        slots = [folder / f"{stem}-{slot}" for slot in range(_SLOTS)]
        # The first with kernels to be found again: who starts one of two servers again means the one that was killed.
        for path in sorted(slots, key=lambda path: not any(kept_by(path).glob(RECORDS))):
            lock = _locked_soon(path)
            if lock is not None:
                return Name(f"{_user()}-{_token(lock)}", lock, kept_by(path))
    except OSError as error:  # a disk that is full, or knows no locks
        log.warning("%s: servers cannot be told apart there, so nodes know this one by its process: %s", folder, error)
    return own_name()


def given_name(server: Server, text: str) -> Name:
    """Return the name *text*, which the `gateway_id` setting gives; one server at a time keeps anything by it."""
    path = names_of(server) / f"id-{_digest(text)}"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _locked_soon(path)
    except OSError as error:
        log.warning("%s: kernels of this server will not be found again: %s", path.parent, error)
        return Name(text)
    if lock is None:
        log.error(
            "another server runs with the gateway_id %r, so kernels of this one will not be found again; give each its own, "
            "or none",
            text,
        )
        return Name(text)
    return Name(text, lock, kept_by(path))


def has_left_kernels(server: Server, given: str) -> bool:
    """Return True if an earlier process of *server*, with the gateway_id *given* if any, has left kernels to be found again.

    It makes nothing on the disk.
    """
    name = f"id-{_digest(given)}" if given else f"{_stem(server)}-*"
    return any(names_of(server).glob(f"{name}{_KEPT}/{RECORDS}"))


def names_of(server: Server) -> Path:
    """Return the folder of the locks and stores of all servers that have a runtime folder."""
    return Path(server.runtime_dir) / "eg-distributed"


@contextlib.contextmanager
def while_locked(lock: Path) -> Iterator[bool]:
    """Hold the *lock* of another server's name for the block; False where that server runs. Raises OSError."""
    descriptor = _locked(lock)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def forget_name(lock: Path) -> None:
    """Remove a server's name, whose *lock* the caller holds, and all that it keeps. Raises OSError."""
    token = lock.read_text("ascii", "replace").strip()
    shutil.rmtree(kept_by(lock))
    if _TOKEN.match(token):
        for path in lock.parent.glob(f"delivered-*-{token}*"):
            path.unlink(missing_ok=True)
    lock.unlink()


def kept_by(lock: Path) -> Path:
    """Return where the store of the server is that has the *lock*."""
    return lock.with_name(lock.name + _KEPT)


def _stem(server: Server) -> str:
    """Return how the names of *server*'s locks begin."""
    return _digest(f"{os.getuid()} {os.path.abspath(server.root_dir)}")  # noqa: PTH100 - links stay: they may be what differs


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


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
        if _is_there(path, descriptor):
            return descriptor
    except (BlockingIOError, FileNotFoundError):  # the latter: as below
        pass
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)  # who removes what is left over has removed it just now, or has it locked
    return None


def _locked_soon(path: Path) -> int | None:
    """Do as `_locked` for a moment: a server that looks at what others keep holds their locks as long as that takes."""
    for _ in range(_LOOKS):
        lock = _locked(path)
        if lock is not None:
            return lock
        time.sleep(_LOOK)
    return None


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

    made: dict[bool, Cluster] = field(default_factory=dict)
    """By whether it is a server's."""
    locks: list[int] = field(default_factory=list)
    name: Name | None = None
    """The server's."""
    keeper: Keeper | None = None
    """What has the server's kernels found again, once it has a store; None: nothing does."""


_lock = threading.Lock()  # kernel managers that block may each be on a thread of its own
_naming = threading.Lock()  # held by a thread aside, while a disk may hang
_clusters = _Clusters()


def cluster_for(manager: object, config: Config) -> Cluster:
    """Return the cluster that starts *manager*'s kernels, made with the *config* of the first; raises RequestInvalid."""
    server = server_of(manager)
    with _lock:
        cluster = _clusters.made.get(server is not None)
        if cluster is None:
            cluster = _clusters.made[server is not None] = _new_cluster(server, config)
        return cluster


async def cluster_soon_for(manager: object, config: Config) -> Cluster:
    """Do as `cluster_for`; a server that had no hosts so far begins to keep what its next process needs, waiting for no disk."""
    keeper = keeper_of(manager)
    if keeper is not None:
        await keeper.prepare()
    return cluster_for(manager, config)


def server_cluster() -> Cluster | None:
    """Return the cluster of this process's server; None before its first kernel. Makes none, so it may be asked at any time."""
    return _clusters.made.get(True)


def folder_for(server: Server, settings: Distributed) -> Path | None:
    """Return where *server* is to keep what its next process needs; None where no later process can be this server again."""
    return _name_of_server(server, settings).kept


def keep_by(keeper: Keeper) -> None:
    """Have *keeper* know of the server's kernels from now on; called by the server extension."""
    with _lock:
        _clusters.keeper = keeper


def keeper_of(manager: object) -> Keeper | None:
    """Return what has the kernel of *manager* found again; None where nothing does."""
    if server_of(manager) is None:
        return None
    with _lock:
        return _clusters.keeper


def _forked() -> None:
    """Let go of what is the parent's, in a child that was forked.

    A lock of a file would outlive the parent with the child, and its name with it. One of threads may be held by a thread that is
    not here. Who asks a cluster without its thread for anything would wait for ever.
    """
    global _clusters, _lock, _naming
    _lock, _naming = threading.Lock(), threading.Lock()
    for lock in _clusters.locks:
        with contextlib.suppress(OSError):
            os.close(lock)
    for cluster in _clusters.made.values():
        cluster.leave_to_parent()
    _clusters = _Clusters()


os.register_at_fork(after_in_child=_forked)


def settings_for(config: Config) -> Distributed:
    """Return what *config* and the environment say; raises RequestInvalid."""
    try:
        return Distributed(config=config, for_provisioner=True)
    except (TraitError, ValueError) as error:
        raise RequestInvalid(f"a setting is wrong: {error}", remedy="correct it and start again") from error


def _name_of_server(server: Server, settings: Distributed) -> Name:
    with _naming:
        if _clusters.name is None:
            given = settings.gateway_id
            _clusters.name = given_name(server, given) if given else server_name(server)
            _clusters.locks.append(_clusters.name.lock)
        return _clusters.name


def _new_cluster(server: Server | None, config: Config) -> Cluster:
    settings = settings_for(config)
    folder = ""
    if server is None or _clusters.keeper is None or _clusters.keeper.store is None:
        # Nothing finds its kernels again, so its name is not to make nodes keep them for a next process.
        name = own_name(settings.gateway_id)
        settings.kept_output_limit = 0  # nobody comes back for it
        _end_soon(settings, config)
        if not settings.runtime_dir:
            folder, lock = _own_folder(name.text)
            settings.runtime_dir = folder
            _clusters.locks.append(lock)
    else:
        name = _name_of_server(server, settings)
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

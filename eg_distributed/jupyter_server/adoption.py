"""Kernels that outlive their server: found again at its start, under their ids, with their sessions; kept at its end, if wanted.

    server A   start ─ record written ─ ✂ SIGKILL, a power cut, or a stop with `keep_kernels`
    server A'  begin: records read ─ listed as unknown ─ HTTP is served ─ the host answers: idle or busy, watched, restarted
                                                                         └─ it knows no such kernel: listed no more

Nothing here waits for a host. A kernel whose host is silent stays listed as unknown, with its record, and is taken up when that
is back. One that ended while no server was there is listed no more when its host says so, instead of being started again: who
comes back after a night does not want what the night has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any
from weakref import WeakSet

from jupyter_client.kernelspec import KernelSpec, NoSuchKernel
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from jupyter_core.utils import ensure_async

from eg_distributed.aside import aside
from eg_distributed.clients import channels
from eg_distributed.cluster import Cluster
from eg_distributed.errors import DistributedError
from eg_distributed.hosts import parse_hosts
from eg_distributed.kernel import RemoteKernel, State
from eg_distributed.link.deadlines import within
from eg_distributed.settings import Distributed

from . import listed, taken
from .activity import learn_state
from .left_over import look_after
from .listening import found_again
from .process import folder_for, has_left_kernels, keep_by, keeper_of, names_of, server_cluster, settings_for
from .provisioner import DistributedProvisioner
from .store import Record, Store

__all__ = ["SESSIONS", "Adoption", "begin", "prepare"]

log = logging.getLogger(__name__)

_ALL_FOUND = 30.0  # seconds, at most, that the cluster's thread does nothing while kernels are found
_PROBES = 20  # found kernels whose state is asked for at once
SESSIONS = "sessions.db"
_STORE = 5.0  # seconds that a start waits for the folder of records where there was none so far
_DATABASE = 1.0  # seconds that a locked database is waited for at the start
UNKNOWN = "unknown"
"""The `execution_state` of a kernel whose host has not answered yet."""


def prepare(app: Any) -> None:
    """Have *app*'s next process find the kernels that it has; before anything makes its cluster, whose name follows from it."""
    if getattr(getattr(app, "gateway_config", None), "gateway_enabled", False):
        return  # its kernels are a gateway's
    settings = settings_for(app.config)
    adoption = Adoption(app, settings)
    keep_by(adoption)
    if parse_hosts(settings.remote_hosts) or has_left_kernels(app, settings.gateway_id):
        adoption.store = adoption.opened()
    cleanup_kernels = app.cleanup_kernels

    @functools.wraps(cleanup_kernels)
    async def cleaned_up() -> None:
        if not await adoption.stop():
            await cleanup_kernels()

    app.cleanup_kernels = cleaned_up


def begin(app: Any) -> None:
    """Take up the kernels of *app*'s earlier process, if `prepare` could do its part; see `extension`."""
    adoption = keeper_of(app.kernel_manager)
    if not isinstance(adoption, Adoption) or adoption.app is not app or adoption.store is None:
        return  # there are no hosts, or why is in the log already
    store = adoption.store
    app.io_loop.add_callback(adoption.look_after_others)
    channels.take_many_sockets(app.kernel_manager.context)  # each kernel that is found is watched by one
    for step in (
        functools.partial(store.describe, adoption.about()),
        adoption.keep_sessions,
        adoption.find_all,
        adoption.forget_sessions,
    ):
        try:
            step()
        except (OSError, sqlite3.Error) as error:  # a disk that is full: what can be done without it is done
            log.error("%s: what this server keeps cannot all be used: %s", store.folder, error)


class Adoption:
    """The kernels of one server that were there before it, or are to be there after it.

    All methods run on the server's thread but `prepare`, which any loop may await, `opened` and `about`.
    """

    def __init__(self, app: Any, settings: Distributed) -> None:
        self.app = app
        self.kernels: Any = app.kernel_manager
        self.settings = settings
        self.store: Store | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._probing: asyncio.Semaphore | None = None
        self._specs: dict[str, Any] = {}  # while kernels are found: many have the same
        self._cluster: Cluster | None = None
        self._is_looking = False
        self._unseen: WeakSet[Any] = WeakSet()  # managers of found kernels whose hosts have not answered yet

    # -- the store -----------------------------------------------------------------------------------------------

    def opened(self) -> Store | None:
        """Return the store, and have this server's name locked; None where there can be none. Raises OSError."""
        folder = folder_for(self.app, self.settings)
        if folder is None:
            return None  # why is in the log already
        store = Store(folder)
        store.open()
        return store

    def about(self) -> dict[str, Any]:
        """Return what the store says of this server."""
        about = {"root": self.app.root_dir, "machine": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        return {**about, "orphan_timeout": self.settings.orphan_timeout}

    async def prepare(self) -> None:
        """Have the store now that there is a kernel for it: a server without hosts has no lock and no file until then."""
        if self.store is not None or server_cluster() is not None:  # what nodes know the server by is settled by then
            return

        def opened() -> Store | None:
            store = self.opened()
            if store is not None:
                with contextlib.suppress(OSError):  # it is of use to `jupyter distributed adopt` alone
                    store.describe(self.about())
            return store

        try:
            store = await within(aside(("own store", self.app.runtime_dir), opened), _STORE)
        except (OSError, asyncio.TimeoutError) as error:
            log.error(
                "kernels on hosts end with this server: what its next process needs cannot be kept in %s: %r",
                names_of(self.app), error,
            )  # fmt: skip
            return
        if server_cluster() is None:  # else another start has come first, with the same answer
            self.store = store
            self.app.io_loop.add_callback(self.keep_sessions)
            self.app.io_loop.add_callback(self.look_after_others)

    def look_after_others(self) -> None:
        """Have what other servers have left over removed while this one runs; on its loop."""
        if self.store is not None and not self._is_looking:
            self._is_looking = True
            self._begin(look_after(self.store))

    # -- at the start --------------------------------------------------------------------------------------------

    def find_all(self) -> None:
        """List all kernels of which there is a record. What is wrong with one is told, and the others are found."""
        if self.store is None:
            return
        records, errors = self.store.read()
        for name, error in errors.items():
            log.error(
                "the record %s in %s cannot be used: %s. Its kernel runs on until orphan_timeout: `jupyter distributed kernels "
                "--orphans` lists it, `jupyter distributed end` ends it",
                name, self.store.folder, error,
            )  # fmt: skip
        found_all = threading.Event()
        try:
            found = [record for record in records if self.find(record, found_all)]
        finally:
            found_all.set()
        if found:
            self.app.log.info(
                "%d kernels of before are found again: %d hosts are asked", len(found), len({r.host for r in found})
            )
        if self._cluster is not None:
            self.app.io_loop.add_callback(self._cluster.serve_adopted)  # once HTTP is served

    def serve(self) -> None:
        """Have the hosts of kernels that were found be asked for them; called while the server runs."""
        if self._cluster is not None:
            self._cluster.serve_adopted()

    def find(self, record: Record, found_all: threading.Event | None = None) -> bool:
        """List the kernel of *record*, and have its host asked for it; False, and told in the log, where that cannot be.

        Until *found_all* is set the cluster's thread takes up none: it would take turns with this one, some milliseconds at a
        time, with each kernel of a thousand.
        """
        if record.kernel in self.kernels:
            return False
        try:
            manager = self._new_manager(record)
            provisioner: DistributedProvisioner = manager.provisioner
            call = self.app.io_loop.add_callback
            gone = functools.partial(call, self._ended, manager)
            is_first = self._cluster is None
            self._cluster, kernel = provisioner.find(record, lambda _: gone())
            if is_first and found_all is not None:
                self._cluster.call_soon(found_all.wait, _ALL_FOUND)
            self._connect(manager, kernel, record)
        except Exception as error:
            # Whatever one record makes of itself in jupyter_client, the server has to start, and the other kernels to be found.
            known = isinstance(error, (DistributedError, OSError, ValueError))
            log.error(
                "kernel %s on %s cannot be found again, and its record is kept for the next start: %s",
                record.kernel, record.host, error if known else repr(error), exc_info=not known,
            )  # fmt: skip
            return False
        seen = functools.partial(call, self._seen, manager)
        cluster = self._cluster

        def verified() -> None:
            # After what its host has just said is taken as a whole: it may be that the kernel has ended.
            cluster.call_soon(lambda: None if kernel.state is State.DEAD else seen())

        kernel.on_verified = verified
        if kernel.is_sure:  # by now
            verified()
        return True

    def _new_manager(self, record: Record) -> Any:
        """Return a kernel manager as the server makes them, with its provisioner."""
        kernels = self.kernels
        manager = kernels.kernel_manager_factory(
            connection_file=str(Path(kernels.connection_dir) / f"kernel-{record.kernel}.json"),
            parent=kernels,
            log=kernels.log,
            kernel_name=record.name,
            kernel_spec_manager=kernels.kernel_spec_manager,
        )
        if lacks := listed.missing(kernels, manager):
            raise ValueError(f"{type(manager).__name__} has no {', '.join(lacks)}")
        manager.kernel_id = record.kernel
        manager._kernel_spec = spec = self._spec(record)
        manager._launch_args = {**record.launch, "env": dict(record.env)}
        manager.provisioner = KernelProvisionerFactory.instance(parent=kernels).create_provisioner_instance(
            record.kernel, spec, parent=manager
        )
        if not isinstance(manager.provisioner, DistributedProvisioner):
            raise ValueError("its kernelspec names another provisioner")
        return manager

    def _spec(self, record: Record) -> Any:
        """Return the kernelspec as it is now, or as it was if it is gone or another provisioner's."""
        if record.name not in self._specs:
            if not self._specs:  # they may be others for the next who asks
                self.app.io_loop.call_later(1.0, self._specs.clear)
            try:
                spec = self.kernels.kernel_spec_manager.get_kernel_spec(record.name)
            except NoSuchKernel:
                spec = None
            except Exception as error:  # noqa: BLE001 - a manager of specs may be anybody's
                log.warning("kernelspec %s cannot be read, so it is taken as it was: %r", record.name, error)
                spec = None
            self._specs[record.name] = spec
        spec = self._specs[record.name]
        stanza = (spec.metadata or {}).get("kernel_provisioner") if spec is not None else None
        if isinstance(stanza, dict) and stanza.get("provisioner_name") == "eg-distributed":
            return spec
        return KernelSpec(resource_dir=record.resource_dir, **record.spec)

    def _connect(self, manager: Any, kernel: RemoteKernel, record: Record) -> None:
        """List the kernel, where its clients find it."""
        for channel in ("shell", "iopub", "stdin", "hb", "control"):
            setattr(manager, f"{channel}_port", 0)
        info = manager.provisioner.connection_info
        manager.load_connection_info(info)
        is_same = kernel.connection_info == record.connection and Path(manager.connection_file).exists()
        manager._connection_file_written = is_same  # so that it is removed with the kernel
        manager.write_connection_file()
        manager.execution_state, manager.reason = UNKNOWN, ""
        listed.enter(self.kernels, manager)
        found_again(manager, kernel)
        manager.execution_state = UNKNOWN
        manager.reason = f"The kernel is on {record.host}, which has not answered yet since this server's start."
        self._unseen.add(manager)

    # -- what the hosts say --------------------------------------------------------------------------------------

    def _seen(self, manager: Any) -> None:
        """The host has the kernel: watch it as any other, and learn what it does."""
        self._unseen.discard(manager)
        if self.kernels._kernels.get(manager.kernel_id) is not manager or manager.shutting_down:
            return
        manager.reason = ""
        manager.start_restarter()
        self._begin(manager.provisioner.write_record())
        self._begin(self._learn_state(manager))

    async def _learn_state(self, manager: Any) -> None:
        if self._probing is None:
            self._probing = asyncio.Semaphore(_PROBES)
        async with self._probing:
            await learn_state(manager, UNKNOWN)

    def _ended(self, manager: Any) -> None:
        """The kernel has ended: if its host has not had it since our start, it is listed no more."""
        provisioner = manager.provisioner
        if manager not in self._unseen or manager.shutting_down or not listed.remove(self.kernels, manager):
            return  # it was seen, so that its restarter does the rest; or it is being restarted or deleted
        self._unseen.discard(manager)
        kernel = self._cluster.kernels.get(manager.kernel_id) if self._cluster is not None else None
        log.warning(
            "kernel %s on %s ended while no server was there: %s. Its notebook starts a new one",
            manager.kernel_id, provisioner.host, getattr(kernel, "death", "") or "nothing is known of its end",
        )  # fmt: skip
        provisioner.let_go()
        manager.cleanup_connection_file()
        self.forget_sessions_of(manager.kernel_id)

    def taken(self, manager: Any, owner: str) -> None:
        """Let go of the kernel of *manager*, which the server *owner* has now."""
        self._unseen.discard(manager)
        assert self.store is not None  # else it had not been anybody's to take
        self._begin(taken.let_go(self.app, manager, self.store, owner, self.forget_sessions_of))

    def _begin(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("what follows a kernel that was found again failed: %r", error, exc_info=error)

    # -- at the end ----------------------------------------------------------------------------------------------

    async def stop(self) -> bool:
        """End the kernels that are not to be kept, if any are to be; called at a graceful stop. False: end all of them.

        Those that are kept stay listed to the very end. The server answers connections that it has, and a page that does not find
        its kernel gives it up; its session would be forgotten with it.
        """
        for task in self._tasks:
            task.cancel()
        kernels = self.kernels
        kept = {kernel_id for kernel_id, manager in kernels._kernels.items() if self._keeps(manager)}
        if not kept:
            return False
        timeout = self.settings.orphan_timeout
        self.app.log.info(
            "%d kernels run on, for this server's next start%s (Distributed.keep_kernels)",
            len(kept), f" within {timeout:.0f} s" if timeout else "",
        )  # fmt: skip
        others = {*kernels.list_kernel_ids(), *kernels._pending_kernels} - kept
        ended = await asyncio.gather(
            *(ensure_async(kernels.shutdown_kernel(each)) for each in others), return_exceptions=True
        )
        for kernel_id, error in zip(others, ended, strict=True):
            if isinstance(error, BaseException):
                log.error("kernel %s could not be ended as it should: %r", kernel_id, error)
        return True

    def _keeps(self, manager: Any) -> bool:
        """Return True if the kernel of *manager* is to outlive the server; one that is just being deleted is not."""
        provisioner = manager.provisioner
        if (
            not self.settings.keep_kernels
            or manager.shutting_down
            or not isinstance(provisioner, DistributedProvisioner)
        ):
            return False
        if provisioner.is_kept:
            manager.stop_restarter()
            manager._connection_file_written = False  # the next server's as well
        return provisioner.is_kept

    # -- sessions ------------------------------------------------------------------------------------------------

    def keep_sessions(self) -> None:
        """Have the server's sessions in a file of ours, unless the user has said where they are to be."""
        sessions = self.app.session_manager
        if (
            self.store is None
            or getattr(sessions, "database_filepath", None) != ":memory:"
            or not hasattr(sessions, "_cursor")
        ):
            return
        path = self.store.folder / SESSIONS
        try:
            try:
                _try_database(path)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                log.error("%s is broken, and put aside: %s. Notebooks find their kernels by REST alone", path, error)
                path.replace(path.with_suffix(".broken"))
                _try_database(path)
        except (OSError, sqlite3.Error) as error:
            log.warning("sessions will not be found again: %s cannot be used: %s", path, error)
            return
        if sessions._cursor is not None:
            try:
                self._move_sessions(path)
            except sqlite3.Error as error:
                log.warning("sessions will not be found again: they cannot be moved to %s: %s", path, error)
            return
        sessions.database_filepath = str(path)
        # Each change would wait for the disk on the server's loop. What a power cut breaks is put aside, above.
        sessions.cursor.execute("PRAGMA synchronous=OFF")

    def _move_sessions(self, path: Path) -> None:
        """Have the sessions that the server keeps in its memory so far be in *path* from now on; raises sqlite3.Error."""
        sessions = self.app.session_manager
        before, now = sessions.connection, sqlite3.connect(path, isolation_level=None)
        try:
            now.row_factory = before.row_factory
            now.execute("PRAGMA synchronous=OFF")
            before.backup(now)
            cursor = now.cursor()
        except sqlite3.Error:
            now.close()
            raise
        sessions._connection, sessions._cursor = now, cursor
        sessions.database_filepath = str(path)
        before.close()

    def forget_sessions_of(self, kernel_id: str) -> None:
        """Remove the sessions of a kernel that is not here any more."""
        try:
            self.app.session_manager.cursor.execute("DELETE FROM session WHERE kernel_id=?", (kernel_id,))
        except sqlite3.Error as error:
            log.warning("kernel %s: its session stays listed until it is asked for: %s", kernel_id, error)

    def forget_sessions(self) -> None:
        """Remove the sessions of kernels that are not here; the server itself does so when it is asked for each."""
        sessions = self.app.session_manager
        if self.store is None or not getattr(sessions, "database_filepath", "").startswith(str(self.store.folder)):
            return
        cursor = sessions.cursor
        stale = [
            (row["kernel_id"],)
            for row in cursor.execute("SELECT DISTINCT kernel_id FROM session").fetchall()
            if row["kernel_id"] not in self.kernels and row["kernel_id"] not in self.kernels._pending_kernels
        ]
        cursor.executemany("DELETE FROM session WHERE kernel_id=?", stale)


def _try_database(path: Path) -> None:
    """Make the database of sessions, this user's alone, if it is not there, and write to it; raises OSError or sqlite3.Error."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    path.chmod(0o600)
    connection = sqlite3.connect(path, timeout=_DATABASE, isolation_level=None)
    try:
        connection.execute("CREATE TABLE IF NOT EXISTS session (session_id, path, name, type, kernel_id)")
        connection.execute("DELETE FROM session WHERE session_id IS NULL")
        connection.execute("SELECT session_id, path, name, type, kernel_id FROM session").fetchall()
    finally:
        connection.close()

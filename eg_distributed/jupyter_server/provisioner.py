"""The kernel provisioner `eg-distributed`: a stanza in a kernelspec's metadata is all that a kernel on a host needs.

jupyter_client makes one provisioner for each kernel manager, and keeps it over restarts. A manager that blocks may run each call
on an event loop of its own, so nothing here is bound to a loop: what is waited for are the cluster's futures, and `poll` reads
what is known.

Of a host that does not answer two things are refused before anything is done, since jupyter_client begins both with a message
that would lie in wait for the host's return: a restart, which then would end a kernel that nobody replaces, and an interrupt by
message, which would hit whatever cell runs then. No method of a provisioner is called before that message, so the manager's
own two methods are wrapped.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from typing import Any, NoReturn

from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase

from eg_distributed.clock import monotonic
from eg_distributed.cluster import Cluster
from eg_distributed.errors import DistributedError, RequestInvalid
from eg_distributed.kernel import RemoteKernel, State
from eg_distributed.request import StartRequest

from . import listening
from .process import Keeper, cluster_for, cluster_soon_for, keeper_of, server_of
from .recording import Recording, goes_on
from .refusal import Refusal
from .request import request_for
from .store import Record

__all__ = ["DistributedProvisioner"]

log = logging.getLogger(__name__)

_ENDING = 1.0
"""Seconds after the request to end for which a kernel that cannot be seen is waited for; it ends when its host is back."""
_FORGOTTEN = 60.0  # seconds
_RELEASE = 5.0  # seconds, at most, that the end of a kernel waits for its node to forget it
_REACHED = 5.0  # seconds that a restart waits, at most, for one of the hosts to which it could go
_LOOK = 10.0  # seconds between two looks at whether a kernel that may come back is still listed
_END = 10.0  # seconds that `wait` waits, at most, for a kernel that has not ended yet
_CLOSED = 0
"""What `poll` answers, as jupyter_client's own provisioner does, where no exit code is known."""


class DistributedProvisioner(KernelProvisionerBase):
    """Runs a manager's kernel on one of `remote_hosts`, over SSH; made by jupyter_client's factory, once for each manager."""

    def __init__(self, *, kernel_id: str, kernel_spec: Any, parent: Any, **config: Any) -> None:
        """Take what the factory hands on; *config* is that of the kernelspec's stanza."""
        super().__init__(kernel_id=kernel_id, kernel_spec=kernel_spec, parent=parent)
        self._manager: Any = parent
        self._stanza = config
        self._cluster: Cluster | None = None
        self._kernel: RemoteKernel | None = None
        self._request: StartRequest | None = None
        self._handed: tuple[dict[str, Any], dict[str, str]] | None = (
            None  # the last env, and this process's when it came
        )
        self._has_process = False
        self._was_launched = False
        self._ending_since: float | None = None  # in monotonic time; None: nobody has asked for the end
        self._is_servers = server_of(parent) is not None
        self.recording = Recording(parent, kernel_spec, keeper_of(parent))
        self._launched = False  # by a launcher
        self._is_launching = self._is_first_start = False
        self._timer: asyncio.TimerHandle | None = None  # the next `_watch_again`
        self._is_async = inspect.iscoroutinefunction(parent.restart_kernel)
        self._wrap("restart_kernel", self._before_restart)
        if kernel_spec.interrupt_mode == "message":
            self._wrap("interrupt_kernel", functools.partial(self._make_sure, "the interrupt was not sent"))

    # -- what is refused -----------------------------------------------------------------------------------------

    def _wrap(self, name: str, first: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Have the manager's method *name* do *first* before anything else, as a coroutine or blocking, as that method is."""
        original = getattr(self._manager, name)

        @functools.wraps(original)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            await first()
            return await original(*args, **kwargs)

        @functools.wraps(original)
        def blocking(*args: Any, **kwargs: Any) -> Any:
            with ThreadPoolExecutor(1) as pool:  # the caller's thread may have a loop that runs, as in a notebook
                pool.submit(asyncio.run, first()).result()
            return original(*args, **kwargs)

        setattr(self._manager, name, awaited if inspect.iscoroutinefunction(original) else blocking)

    async def _before_restart(self) -> None:
        """Raise if the restart cannot be done: where no host answers on which the kernel could start."""
        if self._was_launched and not self._has_process and not self._is_listed():
            self._manager.stop_restarter()  # deleted, which jupyter_client does not tell us, while its restarter went on
            self._let_go()
            raise RequestInvalid(f"kernel {self.kernel_id} has been deleted", remedy="start another one")
        kernel, cluster = self._kernel, self._cluster
        if kernel is not None and cluster is not None and kernel.state is not State.DEAD:
            try:
                await cluster.run(kernel.make_sure("the restart was not begun"))
            except DistributedError as error:
                if not await cluster.run(cluster.reaches_any(kernel.elsewhere, _REACHED)):
                    self._raise(error)
        self._cancel_timer()

    async def _make_sure(self, what: str) -> None:
        kernel, cluster = self._kernel, self._cluster
        if kernel is None or cluster is None or kernel.state is State.DEAD:
            return
        try:
            await cluster.run(kernel.make_sure(what))
        except DistributedError as error:
            self._raise(error)

    def _raise(self, error: DistributedError) -> NoReturn:
        """Raise *error* in the form that who asked can show."""
        raise Refusal(error) if self._is_servers else error

    # -- starting ------------------------------------------------------------------------------------------------

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Make the request of what the kernel is started with; called for each start and restart.

        Not by the base class, which fills the client's whole environment into the kernelspec's.
        """
        self._cancel_timer()
        self._is_launching, self._is_first_start = True, False
        try:
            if kwargs.pop("transport_encryption", None) == "required" or (
                getattr(self._manager, "transport_encryption", "disabled") == "required"
            ):
                raise RequestInvalid(
                    "transport_encryption is required, which kernels on hosts do not have: all they say goes through SSH",
                    remedy="set it to auto or disabled",
                )
            self._cluster = await cluster_soon_for(self._manager, self.config)
            env = dict(kwargs.get("env") or {})
            if self._handed is None or self._handed[0] != env:  # with a restart jupyter_client hands the same on again
                self._handed = env, dict(os.environ)
            self._request = request_for(
                self._manager, self._stanza, kwargs, self._cluster.settings, os.environ, self._handed[1]
            )
        except DistributedError as error:
            self._start_failed()
            self._raise(error)
        return {"cmd": self._request.argv}

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        """Start the kernel, or start it again on its host; return where it is: sockets of this machine, whatever the host."""
        assert self._cluster is not None
        assert self._request is not None
        try:
            kernel = await self._cluster.run(self._cluster.start(self._request))
        except DistributedError as error:
            self._start_failed()
            self._raise(error)
        except BaseException:  # cancellation, and what nobody expected: if it comes as the start ends, the kernel runs
            if not self._was_launched:
                self._let_go()
            self._start_failed()
            raise
        self._kernel, self._launched = kernel, self._request.transport == "launcher"
        # No `on_exit`: the restarter asks `poll`, and a kernel without one ends with the cluster, and so with this process,
        # unless its record is written.
        kernel.on_exit = None
        self._listen_to(kernel)
        if self._is_servers:
            listening.started(self._manager, self._cluster, kernel)
        self._is_first_start = not self._was_launched
        if self._is_first_start:
            self._guard_first_start()
        self._has_process = self._was_launched = True
        self._is_launching = False
        self._ending_since = None
        info: Any = {**kernel.connection_info, "key": kernel.key.encode()}
        self.connection_info = info
        return info

    async def post_launch(self, **kwargs: Any) -> None:
        """Have the kernel be found again, now that its clients can reach it; called at the end of each start and restart."""
        await self.write_record()

    def _listen_to(self, kernel: RemoteKernel) -> None:
        """Have the kernel's handle say what others are to know. Its callbacks are called on the cluster's loop."""
        kernel.on_loss = functools.partial(log.warning, "kernel %s: %s", kernel.id)
        keeper, loop = self.recording.keeper, getattr(self._manager, "loop", None)
        if keeper is not None and loop is not None:
            kernel.on_taken = lambda kernel: loop.add_callback(self._taken, keeper, kernel)

    def _taken(self, keeper: Keeper, kernel: RemoteKernel) -> None:
        if kernel is self._kernel:
            keeper.taken(self._manager, kernel.taken_by)

    def _start_failed(self) -> None:
        """After a restart that failed, leave nothing behind, and have the restarter try again.

        jupyter_client stops the restarter for a restart, and starts it again only with the kernel. Without it nobody would be
        told that the kernel is dead, and JupyterLab shows "restarting" for ever. The restarter's own limit ends its tries.
        """
        self._has_process = self._is_launching = False
        if not self._was_launched:
            return
        manager = self._manager
        # One that was given up with its host may yet be back.
        self._kernel = self._cluster.kernels.get(self.kernel_id) if self._cluster is not None else None
        if self._kernel is None:
            self.recording.drop_soon(self.kernel_id)  # nobody calls `cleanup` for what could not be started again
        manager.cleanup_connection_file()  # jupyter_client forgets to where a start has failed
        restarter = getattr(manager, "_restarter", None)
        if restarter is not None and manager.autorestart and self._is_async:  # else each call has a loop of its own
            restarter._restarting = True  # so that the next failure counts as one more in a row
            self._watch_in(restarter.time_to_dead, restarter)

    def _watch_in(self, seconds: float, restarter: Any) -> None:
        self._cancel_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._watch_again, restarter)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _watch_again(self, restarter: Any = None) -> None:
        """Start *restarter*, unless somebody has restarted or deleted the kernel meanwhile; a deleted one may not come back."""
        self._timer = None
        if self._has_process or self._is_launching:
            return
        if not self._is_listed():
            self._let_go()
            return
        if restarter is not None and not self._manager.shutting_down:
            restarter.start()
        if self._kernel is not None:
            self._watch_in(_LOOK, None)

    @property
    def host(self) -> str:
        """Where the kernel is; empty: nowhere."""
        node = self._kernel.node if self._kernel is not None else None
        return node.name if node is not None else ""

    @property
    def is_kept(self) -> bool:
        """Whether the kernel outlives this process, and the server's next one finds it."""
        return self.recording.is_written and self._kernel is not None and self._kernel.state is not State.DEAD

    def end_with_process(self) -> None:
        """Have the kernel end with this process; its record is the caller's to drop."""
        if self._kernel is not None:
            self._kernel.on_exit = None

    def be_taken(self) -> None:
        """Have nothing of the kernel any more, which is another server's."""
        self._kernel, self._has_process, self.recording.is_written = None, False, False
        self._cancel_timer()

    def let_go(self) -> None:
        """Have the cluster end the kernel and forget it, if it knows one, and no later process find it."""
        self._let_go()
        if self._is_servers:
            listening.ended(self.kernel_id, is_sure=True)

    def _let_go(self) -> None:
        """Have the cluster end the kernel and forget it, if it knows one; waits for nothing."""
        self._kernel, self._has_process = None, False
        self._cancel_timer()
        self.recording.drop_soon(self.kernel_id)
        if self._cluster is not None and not self._cluster.is_closed:
            self._cluster.call_soon(self._cluster.release_soon, self.kernel_id)

    def _guard_first_start(self) -> None:
        """Let the kernel go if what the manager does after its first launch fails: nobody would ever ask for its end.

        That is before the manager's manager lists it. After a restart a failure leaves a kernel that is listed, and runs.
        """
        manager = self._manager
        reconcile, post_start = manager._reconcile_connection_info, manager._async_post_start_kernel

        @contextlib.contextmanager
        def guard() -> Iterator[None]:
            try:
                yield
            except BaseException:  # cancellation included
                if self._is_first_start:
                    self._is_first_start = self._was_launched = False
                    self._let_go()
                raise

        @functools.wraps(reconcile)
        def reconciled(*args: Any, **kwargs: Any) -> Any:
            manager._reconcile_connection_info = reconcile
            with guard():
                return reconcile(*args, **kwargs)

        @functools.wraps(post_start)
        async def started(*args: Any, **kwargs: Any) -> Any:
            manager._async_post_start_kernel = post_start
            with guard():
                return await post_start(*args, **kwargs)

        manager._reconcile_connection_info, manager._async_post_start_kernel = reconciled, started

    def _is_listed(self) -> bool:
        """Return False if the manager's own manager has let it go, which it does without a word where a start has failed."""
        kernels = getattr(self._manager.parent, "_kernels", None)
        return not isinstance(kernels, dict) or kernels.get(self.kernel_id) is self._manager

    # -- the record ----------------------------------------------------------------------------------------------

    async def get_provisioner_info(self) -> dict[str, Any]:
        """Return what another process needs to go on with the kernel; `load_provisioner_info` takes it."""
        info = await super().get_provisioner_info()
        record = self._record()
        return info if record is None else {**info, "distributed": record.write()}

    async def load_provisioner_info(self, provisioner_info: dict[str, Any]) -> None:
        """Go on with a kernel of an earlier process; raises DistributedError, OSError or ValueError where that cannot be."""
        await super().load_provisioner_info(provisioner_info)
        self.find(Record.read(provisioner_info.get("distributed")))

    def find(
        self, record: Record, on_exit: Callable[[RemoteKernel], None] | None = None
    ) -> tuple[Cluster, RemoteKernel]:
        """Go on with the kernel of *record*, which an earlier process of this server started, or another one.

        Returns its cluster and its handle, and waits for nothing: until its host answers the kernel is UNKNOWN. *on_exit* is
        called on the cluster's loop when it has ended. Raises DistributedError or OSError where there can be no sockets for it.
        """
        cluster = self._cluster = cluster_for(self._manager, self.config)
        kernel = cluster.adopt(
            record.kernel, record.host, record.attempt, record.connection, record.agent, on_exit or goes_on
        )
        kernel.hosts = tuple(record.elsewhere)
        self._kernel, self._launched = kernel, record.launched
        self._has_process = self._was_launched = self.recording.is_written = True
        self._handed = dict(record.env), {}
        self._listen_to(kernel)
        info: Any = {**kernel.connection_info, "key": kernel.key.encode()}
        self.connection_info = info
        return cluster, kernel

    def _record(self) -> Record | None:
        if self._kernel is None or self._cluster is None:
            return None
        handed = self._handed or ({}, {})
        return self.recording.make(self._kernel, handed, self._launched, self._cluster.settings.client_envs)

    async def write_record(self) -> None:
        """Have the kernel found again by this server's next process; called when it has started, and when it was found."""
        if self._kernel is not None:
            await self.recording.write(self._kernel, self._record())

    # -- state, signals, end -------------------------------------------------------------------------------------

    @property
    def is_lost(self) -> bool:
        """Whether the kernel was given up with its host, which has been out of reach for too long."""
        return self._kernel is not None and self._kernel.lost

    @property
    def has_process(self) -> bool:
        """Whether there is a kernel; False once it has been waited for, or could not be started again."""
        kernel = self._kernel
        return kernel is not None and (self._has_process or kernel.state is State.ALIVE)

    @property
    def process(self) -> object:
        """What is another one after each start, for whoever holds a connection to the kernel; as jupyter_client's own has it."""
        return None if self._kernel is None else self._kernel.attempt

    @property
    def death(self) -> str:
        """What is said of the kernel's end, if nobody had asked for that; empty while it lives."""
        return "" if self._kernel is None else self._kernel.death

    async def poll(self) -> int | None:
        """Return None while the kernel is not known to have ended; called every 3 s, and every 0.1 s at the end.

        One whose host is out of reach lives, until its end is asked for: then nobody waits for the host.
        """
        kernel = self._kernel
        if kernel is None:
            return _CLOSED
        if self._is_servers and _is_unseen(kernel) and hasattr(self._manager, "last_activity"):
            # So that no culler takes it for idle: of what it does there nothing arrives.
            self._manager.last_activity = datetime.now(timezone.utc)
        if kernel.state is State.DEAD or (_is_unseen(kernel) and self._has_waited()):
            return _CLOSED if kernel.exit_code is None else kernel.exit_code
        return None

    def _has_waited(self) -> bool:
        """Return True if the end was asked for some moments ago; a shutdown that was broken off is forgotten after a minute."""
        return self._ending_since is not None and _ENDING < monotonic() - self._ending_since < _FORGOTTEN

    async def wait(self) -> int | None:
        """Return how the kernel ended; called when it has, or when it has been killed."""
        until = monotonic() + _END
        while (code := await self.poll()) is None and monotonic() < until:
            await asyncio.sleep(0.1)
        self._has_process = False
        return code

    async def send_signal(self, signum: int) -> None:
        """Send *signum* and return when it has arrived. Raises DistributedError (in a server its HTTP form) where it cannot.

        But not for the interrupt with which each shutdown begins: that must not keep the kernel from being ended.
        """
        kernel, cluster = self._kernel, self._cluster
        if kernel is None or cluster is None or kernel.state is State.DEAD or signum == 0:
            return
        if self._manager.shutting_down:
            await self._tell(kernel, signum)
            return
        try:
            await cluster.run(kernel.signal(signum))
        except DistributedError as error:
            self._raise(error)

    async def _tell(self, kernel: RemoteKernel, signum: int) -> None:
        """Send *signum* to a kernel that is being ended, if it can be seen; what is not ended so is ended by `cleanup`."""
        self._begin_to_end()
        if self._cluster is not None and kernel.state is not State.DEAD and not _is_unseen(kernel):
            try:
                await self._cluster.run(kernel.signal(signum))
            except DistributedError as error:
                log.warning("kernel %s: signal %d did not arrive: %s", kernel.id, signum, error)

    def _begin_to_end(self) -> None:
        if self._ending_since is None or monotonic() - self._ending_since >= _FORGOTTEN:
            self._ending_since = monotonic()

    async def terminate(self, restart: bool = False) -> None:
        """Send SIGTERM; called where a kernel has not heeded the request to shut down."""
        if self._kernel is not None:
            await self._tell(self._kernel, signal.SIGTERM)

    async def kill(self, restart: bool = False) -> None:
        """Send SIGKILL; called where it has not heeded that either, and for a shutdown or restart *now*."""
        if self._kernel is not None:
            await self._tell(self._kernel, signal.SIGKILL)

    async def shutdown_requested(self, restart: bool = False) -> None:
        """Take note that the kernel was asked to end: its end is no surprise, and a launcher is to end with it."""
        kernel, cluster = self._kernel, self._cluster
        self._begin_to_end()
        if kernel is not None and cluster is not None:
            kernel.expect_end()
            if cluster.is_closed:
                return
            if self._launched:
                cluster.submit(kernel.end_launcher(kernel.attempt))

    async def cleanup(self, restart: bool = False) -> None:
        """Forget the kernel, unless it is about to be started again; called at the end of every shutdown, maybe twice.

        Returns when its node has forgotten it, or when the node takes too long for that.
        """
        kernel, cluster = self._kernel, self._cluster
        if not restart:
            self._cancel_timer()
            await self.recording.drop(self.kernel_id)
        if restart or kernel is None or cluster is None:
            return
        self._kernel, self._has_process = None, False
        if self._is_servers:
            listening.ended(kernel.id, is_sure=kernel.is_sure)
        if cluster.is_closed:  # at this process's end: whoever was registered for that before us comes after us
            return

        async def release() -> None:
            releasing = cluster.release_soon(kernel.id)
            if not _is_unseen(kernel):
                await asyncio.wait({releasing}, timeout=_RELEASE)

        await cluster.run(release())


def _is_unseen(kernel: RemoteKernel) -> bool:
    """Return True if nothing is known of the kernel: its host is out of reach, or has been silent for some seconds."""
    return kernel.state is State.UNKNOWN or kernel.out_of_reach_since is not None

"""The process proxy for Enterprise Gateway 3.x: a kernelspec's `class_name` is all that changes.

Enterprise Gateway builds one proxy for each start and each restart, awaits `launch_process`, and calls everything else
synchronously on its event loop. So nothing here waits for the network: `poll` reads cached state, and signals and
clean-up are handed to the cluster's thread.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import signal
from pathlib import Path
from typing import Any, ClassVar, Final

from enterprise_gateway.mixins import JSONErrorsMixin
from enterprise_gateway.services.kernels.handlers import MainKernelHandler
from enterprise_gateway.services.processproxies.processproxy import BaseProcessProxyABC, RemoteProcessProxy
from enterprise_gateway.services.sessions.handlers import SessionRootHandler
from enterprise_gateway.services.sessions.kernelsessionmanager import FileKernelSessionManager
from jupyter_server.services.kernels.handlers import ZMQChannelsHandler
from tornado.web import HTTPError
from traitlets import TraitError

from eg_distributed.clients import channels, kept_output, notebooks, service
from eg_distributed.clients import out_of_reach as outages
from eg_distributed.clients.delivered import Delivered
from eg_distributed.clients.limits import limit_messages
from eg_distributed.cluster import Cluster
from eg_distributed.errors import DistributedError, KernelTaken
from eg_distributed.kernel import RemoteKernel, State
from eg_distributed.request import check_env
from eg_distributed.settings import Distributed

from . import metrics, out_of_reach, patches, reconnects, taken
from .departed import ClientGone, notice_departures, unless_client_leaves
from .request import requested_env, start_request
from .status_line import keep_reasons

log = logging.getLogger(__name__)

_NO_LONGER_MEANT: Final = ("EG_ENABLE_TUNNELING", "EG_RESPONSE_IP", "EG_RESPONSE_PORT", "EG_RESPONSE_ADDR_ANY")
"""Settings of Enterprise Gateway's own proxies that name ports and tunnels; here all goes through the SSH connection."""
_LAST_WRITE = 1.0  # seconds, at the gateway's end, for what sessions have got to be written
_CLIENT_GONE: Final = 499
"""The status of a request whose client has gone, as web servers log it: HTTP has none, since nobody is there to read it."""


class DistributedProcessProxy(RemoteProcessProxy):
    """Runs a kernel on one of `remote_hosts`, over SSH; one instance a start, made by Enterprise Gateway."""

    _cluster: ClassVar[Cluster | None] = None

    def __init__(self, kernel_manager: Any, proxy_config: dict[str, Any]) -> None:
        # Not RemoteProcessProxy.__init__: it opens port 8877 and starts the accept loop that blocks the gateway.
        self.response_socket = None  # before its checks: what raises for them looks at it
        # Of a kernel that is found again, as persisted: the base class sets it to 0.0.0.0.
        self._known_ip = kernel_manager.ip
        try:
            BaseProcessProxyABC.__init__(self, kernel_manager, proxy_config or {})
        except (HTTPError, RuntimeError, ValueError) as error:  # its checks of settings, else "Unknown server error"
            text = error.reason if isinstance(error, HTTPError) else error
            reason = " ".join(f"A setting of this kernelspec or of the gateway is invalid: {text}".split())
            raise HTTPError(500, reason=reason) from error
        self.start_time = None
        self.assigned_ip: str | None = None
        self.assigned_host = ""
        self.comm_ip = None
        self.comm_port = 0
        self.tunneled_connect_info = None
        self.tunnel_processes: dict[str, Any] = {}
        # Any text will do: it only keeps Enterprise Gateway from writing a connection file with ports of this machine.
        kernel_manager.response_address = "chosen on the node"
        # Read here, on the gateway's own thread: the trait's default is the loop of whichever thread asks first.
        self._gateway_loop = kernel_manager.loop
        self._restarting = False
        self._launched = False  # by one of Enterprise Gateway's launchers
        self._kernel: RemoteKernel | None = None
        self._signalled: asyncio.Future[DistributedError | None] | None = None
        self.cluster = self._shared_cluster(kernel_manager)
        self._observe_restart()

    @classmethod
    def _shared_cluster(cls, kernel_manager: Any) -> Cluster:
        """Return the gateway's one cluster, made for the first kernel."""
        if DistributedProcessProxy._cluster is None:
            app = getattr(getattr(kernel_manager, "parent", None), "parent", None)
            try:
                settings = Distributed(config=getattr(app, "config", None) or kernel_manager.config)
            except (TraitError, ValueError) as error:  # told to who starts a kernel, since nobody else can mend it now
                log.error("a setting is wrong, so no kernel can start: %s", error)
                reason = f"A setting of the gateway is wrong: {error}. Correct it and restart the gateway."
                raise HTTPError(500, reason=reason) from error
            channels.take_many_sockets(kernel_manager.parent.context)
            limit_messages(ZMQChannelsHandler, settings.websocket_message_limit)
            sessions = getattr(app, "kernel_session_manager", None)
            is_persistent = getattr(sessions, "enable_persistence", False)
            if settings.kept_output_limit and is_persistent and isinstance(sessions, FileKernelSessionManager):
                kept_output.delivered = Delivered(Path(sessions._get_sessions_loc()) / "delivered")
                atexit.register(kept_output.delivered.settled, _LAST_WRITE)
            else:  # nobody would come back for it
                settings.kept_output_limit = 0
            cluster = Cluster(settings, settings.identity(getattr(app, "port", 0)))
            taken.identity = cluster.identity[0]
            atexit.register(cluster.close, end_untaken=True)
            for name in _NO_LONGER_MEANT:
                if os.environ.get(name):
                    log.info("%s means nothing to kernels of %s: all they say goes through SSH", name, cls.__name__)
            DistributedProcessProxy._cluster = cluster
            outages.begin(cluster, kernel_manager.parent, kernel_manager.loop.add_callback)
            metrics.begin(cluster, kernel_manager.loop.add_callback)
        return DistributedProcessProxy._cluster

    def _observe_restart(self) -> None:
        """Learn whether `cleanup` belongs to a restart, which Enterprise Gateway doesn't say: then the host is kept."""
        manager = self.kernel_manager
        original = type(manager).cleanup_resources

        def cleanup_resources(restart: bool = False) -> Any:
            self._restarting = restart
            return original(manager, restart=restart)

        manager.cleanup_resources = cleanup_resources

    # -- starting ------------------------------------------------------------------------------------------------

    async def launch_process(self, kernel_cmd: list[str], **kwargs: Any) -> DistributedProcessProxy:
        """Start the kernel; awaited by Enterprise Gateway for a start and a restart. Raises HTTPError."""
        kwargs["env"] = requested_env(self.kernel_manager)
        try:
            check_env(kwargs["env"])  # the cluster does so as well, but Enterprise Gateway reads it before
            await super().launch_process(kernel_cmd, **kwargs)  # authorization, KERNEL_ID and the like
            request = start_request(
                self.kernel_manager,
                self.proxy_config,
                kwargs["env"],
                self.cluster.settings,
                kernel_id=self.kernel_id,
                port_range=(self.lower_port, self.upper_port) if self.upper_port else None,
                launch_timeout=self.kernel_launch_timeout,
            )
            self._launched = request.transport == "launcher"
            starting = self.cluster.run(self.cluster.start(request))
            self._kernel = await unless_client_leaves(self.kernel_id, starting)
        except ClientGone:
            self._stay_listed()
            reason = f"Kernel {self.kernel_id}: its client went away while it started, so the start was cancelled."
            log.warning("%s", reason)
            raise HTTPError(_CLIENT_GONE, reason=reason) from None
        except KernelTaken as error:  # a restart of what is another gateway's by now
            self._gateway_loop.add_callback(taken.let_go, self, error.owner)
            self.log_and_raise(http_status_code=error.http_status, reason=str(error))
        except DistributedError as error:
            self._stay_listed()
            self.log_and_raise(http_status_code=error.http_status, reason=str(error))
        except HTTPError:  # Enterprise Gateway's own: a user who is not authorized
            self._stay_listed()
            raise
        except Exception as error:  # a balancer of the site's own, say; unanswered, its kernel could never be deleted
            log.exception("kernel %s: an error that nobody expected", self.kernel_id)
            self._stay_listed()
            reason = f"The start failed unexpectedly ({error!r}). See the gateway's log."
            self.log_and_raise(http_status_code=500, reason=reason)
        assert self._kernel is not None
        self._listen_to(self._kernel)
        kept_output.forget(self.kernel_id)  # of an attempt before this one
        self._take_over(self._kernel)
        if self._kernel.state is State.DEAD:  # it ended between its start and our listening
            self._exited(self._kernel)
        return self

    def _stay_listed(self) -> None:
        """After a restart that failed, leave the kernel as dead and not as nothing, and have the restarter try again.

        Jupyter's shutdown begins with an interrupt, which refuses a kernel that is None: nobody could delete or restart it
        any more. And Enterprise Gateway leaves the restarter stopped and the kernel marked as restarting, so that
        every later request would wait. The restarter's own limit ends its tries.
        """
        manager = self.kernel_manager
        manager.kernel = self
        # The kernel that was to be replaced, if it has been given up with its host only: it may yet be back.
        self._kernel = self.cluster.kernels.get(self.kernel_id)
        if self._kernel is not None:
            self._kernel.on_exit = self._exited
        if manager.restarting:
            manager.execution_state = "dead"  # else the last that its kernel said, for ever
            manager.restarting = False
            manager.execution_state = (
                "dead"  # not what its last message said, "busy" as a rule; a later start says what it is
            )
            if manager._restarter is not None:
                manager._restarter._restarting = True  # so that the next failure counts as one more in a row
                manager.loop.call_later(manager._restarter.time_to_dead, self._watch_again)

    def _watch_again(self) -> None:
        """Start the restarter, unless somebody has restarted or ended the kernel meanwhile: it would end the new one."""
        manager = self.kernel_manager
        if manager.process_proxy is self and not (manager.restarting or manager.shutting_down):
            manager._restarter.start()

    def _take_over(self, kernel: RemoteKernel) -> None:
        """Tell the kernel manager where its kernel is: sockets on this machine, whatever the host."""
        assert kernel.node is not None
        self.assigned_host = self.assigned_ip = self.ip = kernel.node.name
        self.pid = kernel.pid
        self._connect_manager(kernel)
        patches.renew_session_key(self.kernel_id, self.kernel_manager.session.key)

    def _connect_manager(self, kernel: RemoteKernel) -> None:
        """Give the kernel manager the endpoints. Not by the base class's method, which logs the kernel's key."""
        manager = self.kernel_manager
        manager.shell_port = manager.iopub_port = manager.stdin_port = manager.hb_port = manager.control_port = 0
        manager.load_connection_info(info=kernel.connection_info)
        manager._connection_file_written = True  # lets Jupyter's clean-up remove what it may have written

    async def confirm_remote_startup(self) -> None:
        """Nothing: `launch_process` returns only when the kernel is ready. Abstract in the base class."""

    async def handle_timeout(self) -> None:
        """Nothing, for the same reason."""

    # -- state, signals, end -------------------------------------------------------------------------------------

    def poll(self) -> bool | None:
        """Return None while the kernel is not known to be dead, else False; called every 3 s, and every 0.1 s at the end."""
        return False if self._kernel is None or self._kernel.state is State.DEAD else None

    def wait(self) -> None:
        """Return at once: Enterprise Gateway calls this on its loop, after `poll` has said that the kernel is dead."""

    def send_signal(self, signum: int) -> bool | None:
        """Send *signum* on its way to the kernel; 0 only asks whether it lives."""
        if signum == 0 or self._kernel is None:
            return self.poll()
        sending = self.cluster.submit(self._signal(self._kernel, signum))
        with contextlib.suppress(RuntimeError):  # without a loop there is no request to be answered
            self._signalled = asyncio.wrap_future(sending, loop=asyncio.get_running_loop())
        return None

    def take_signalled(self) -> asyncio.Future[DistributedError | None] | None:
        """Return the future of why the last signal did not arrive (None: it did), once; None if none was sent since."""
        signalled, self._signalled = self._signalled, None
        return signalled

    async def _signal(self, kernel: RemoteKernel, signum: int) -> DistributedError | None:
        """Signal the kernel; return why the signal did not arrive, None if it did or the kernel has ended."""
        try:
            await kernel.signal(signum)
        except DistributedError as error:
            log.warning("kernel %s: signal %d did not arrive: %s", kernel.id, signum, error)
            return error
        return None

    def kill(self) -> bool | None:
        """Send SIGKILL."""
        return self.send_signal(signal.SIGKILL)

    def terminate(self) -> bool | None:
        """Send SIGTERM."""
        return self.send_signal(signal.SIGTERM)

    def shutdown_listener(self) -> None:
        """Called right after a shutdown was requested: make sure that a launcher ends, and that no end is a surprise."""
        if self._kernel is not None:
            self._kernel.expect_end()
        if self._launched and self._kernel is not None:
            self.cluster.submit(self._kernel.end_launcher(self._kernel.attempt))

    def cleanup(self) -> None:
        """Forget the kernel, unless it is about to be started again; called at the end of every shutdown."""
        if not self._restarting:
            if self._kernel is None or self._kernel.is_sure:
                kept_output.forget(self.kernel_id)
            else:
                kept_output.let_go(self.kernel_id)
            self.cluster.call_soon(self.cluster.release_soon, self.kernel_id)

    def _listen_to(self, kernel: RemoteKernel) -> None:
        """Have the kernel's handle say what the gateway's users are to know."""
        kernel.on_exit = self._exited
        kernel.on_taken = self._taken
        call = self._gateway_loop.add_callback
        kernels = self.kernel_manager.parent
        kernel.on_loss = lambda text: call(service.tell_loss, kernels, self.kernel_id, text)
        kernel.on_stalled = lambda: call(service.note_dropped, self.kernel_id)

    def _exited(self, kernel: RemoteKernel) -> None:
        """The kernel is dead: have the restarter see it now, not at its next look. Called on the cluster's loop."""
        self._gateway_loop.add_callback(self._wake_restarter)

    def _taken(self, kernel: RemoteKernel) -> None:
        """Another gateway has the kernel. Called on the cluster's loop."""
        self._gateway_loop.add_callback(taken.let_go, self, kernel.taken_by)

    async def _wake_restarter(self) -> None:
        manager = self.kernel_manager
        restarter = manager._restarter
        if manager.process_proxy is not self or manager.shutting_down:
            return
        if self._kernel is not None and self._kernel.death:
            notebooks.tell_clients(self.kernel_id, self._kernel.death)
        if restarter is None:
            return
        if restarter._pcallback is not None:  # it watches; else somebody is ending the kernel already
            await restarter.poll()

    # -- persistence ---------------------------------------------------------------------------------------------

    def get_process_info(self) -> dict[str, Any]:
        """Return what is kept for a restart of the gateway."""
        info: dict[str, Any] = super().get_process_info()
        if self._kernel is not None:
            info["distributed"] = {
                "host": self.assigned_host,
                "attempt": self._kernel.attempt,
                "agent": self._kernel.agent_kept,
                "gateway": self.cluster.identity[0],
                "launched": self._launched,
            }
        return info

    def load_process_info(self, process_info: dict[str, Any]) -> None:
        """Find the kernel again that an earlier process of this gateway started, or another gateway; does not wait for its host.

        Called before the gateway's loop runs, or, in replication mode, on it, when a client asks for the kernel. Until the host
        answers, the kernel counts as alive.
        """
        # As it was persisted; the next line puts the host's name into it.
        info = {**self.kernel_manager.get_connection_info(), "ip": self._known_ip}
        super().load_process_info(process_info)
        ours = process_info.get("distributed")
        if not ours:
            log.warning("kernel %s was started by another process proxy and cannot be found again", self.kernel_id)
            return
        info["key"] = info["key"].decode() if isinstance(info["key"], bytes) else info["key"]
        try:
            self._kernel = self.cluster.adopt(
                self.kernel_id, ours["host"], ours["attempt"], info, ours.get("agent"), self._exited
            )
        except (DistributedError, OSError) as error:
            # Enterprise Gateway has no guard here: raised, this would keep the whole gateway from starting.
            log.error("kernel %s on %s cannot be found again: %s", self.kernel_id, ours["host"], error)
            return
        self._listen_to(self._kernel)
        if self.cluster.settings.kept_output_limit:
            kept_output.adopt(self.cluster, self._kernel, self.kernel_manager)
            self._kernel.on_replied = lambda: self._gateway_loop.add_callback(service.note_replied, self.kernel_id)
        # Before HTTP is served that is when the loop begins to run, and all kernels have been found.
        self._gateway_loop.add_callback(self.cluster.serve_adopted)
        self.assigned_host = ours["host"]
        self._connect_manager(self._kernel)  # the runtime folder may have another name now, a port another owner
        self._launched = bool(ours.get("launched"))
        # Enterprise Gateway forgets this one thing when it finds a kernel again, and every restart of it then answers 500.
        self.kernel_manager.parent._kernel_ports[self.kernel_id] = self.kernel_manager.ports
        taken.count_found(self.kernel_manager, self.kernel_id)
        if ours.get("gateway") != self.cluster.identity[0]:
            # Once it is: until then the session is its owner's, which this gateway must not delete at its end.
            note = (taken.note_owner, self.kernel_manager, self.kernel_id)
            self._kernel.on_verified = lambda: self._gateway_loop.add_callback(*note)
            if self._kernel.is_sure:  # by now: written twice is written once
                self._gateway_loop.add_callback(*note)


reconnects.install()  # before others wrap what it compares
keep_reasons(JSONErrorsMixin)
for _handler in (MainKernelHandler, SessionRootHandler):
    notice_departures(_handler)
patches.turn_nagle_off()
patches.parse_dates_quickly()
patches.keep_environments_apart()
patches.say_why_restarts_fail()
taken.keep_sessions()
reconnects.note_cells()
out_of_reach.install()
__all__ = ["DistributedProcessProxy"]

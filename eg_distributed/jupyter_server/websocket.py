"""jupyter_server 2's websockets with our ends: `eg_distributed.clients` says what they are for. Of all kernels, local ones too.

jupyter_server asks its settings which class a websocket's connection to its kernel has. Ours is a subclass of its own, and so has
its options, its limits, its protocols. A class that somebody has configured stays, and so does jupyter_server's own where it has
not what ours rests upon.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import time
from collections.abc import Awaitable, Iterator
from typing import Any, Final

from jupyter_client.jsonutil import json_default
from jupyter_server.services.kernels.connection.base import (
    deserialize_binary_message,
    deserialize_msg_from_ws_v1,
    serialize_msg_to_ws_v1,
)
from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection
from jupyter_server.services.kernels.websocket import KernelWebsocketHandler
from tornado.web import HTTPError
from tornado.websocket import WebSocketClosedError

from eg_distributed.clients import channels, ending, kept_output, opening, out_of_reach, service, sessions
from eg_distributed.clients.connection import Connection
from eg_distributed.clients.frames import Header
from eg_distributed.clients.limits import limit_messages

from .listening import found_again
from .printed import Printed, made_at
from .process import settings_for
from .provisioner import DistributedProvisioner

__all__ = ["DistributedConnection", "begin", "found_again"]

log = logging.getLogger(__name__)

_V1: Final = "v1.kernel.websocket.jupyter.org"
_LATE: Final = 2.0
"""Seconds after which a message was not printed just now, but has waited on its way: for its host, its client, or a cut."""
_SETTING: Final = "kernel_websocket_connection_class"
NEEDED: Final = {
    ZMQChannelsWebsocketConnection: (
        *(
            "_close_future",
            "_handle_kernel_info_reply",
            "_limit_rate",
            "_open_sockets",
            "_register_session",
            "channels",
        ),
        *("connect", "create_stream", "disconnect", "handle_incoming_message", "handle_outgoing_message", "get_part"),
        *(
            "kernel_info_channel",
            "kernel_info_timeout",
            "multi_kernel_manager",
            "on_kernel_restarted",
            "on_restart_failed",
        ),
        *("prepare", "request_kernel_info", "session_key", "subprotocol", "websocket_handler", "write_stderr"),
    ),
    KernelWebsocketHandler: ("on_message", "on_pong", "max_message_size"),
}
"""What ours rests upon, private members among it."""
NEEDED_OF_KERNELS: Final = (
    *("_kernel_buffers", "_kernel_connections", "buffer_offline_messages", "get_buffer", "start_buffering"),
    *("notify_connect", "notify_disconnect", "add_restart_callback", "remove_restart_callback", "connect_iopub"),
)
"""The same of the mapping kernel manager."""


class _Connection(Connection):
    """A websocket of jupyter_server 2: a handler, and a connection that stands between it and the kernel."""

    refusals = (HTTPError,)
    ends: ZMQChannelsWebsocketConnection

    @property
    def handler(self) -> Any:
        """Return tornado's WebSocketHandler."""
        return self.ends.websocket_handler

    @property
    def kernels(self) -> Any:
        """Return the mapping kernel manager."""
        return self.ends.multi_kernel_manager

    @property
    def has_agent(self) -> bool:
        """Whether the kernel is of our provisioner."""
        return isinstance(self.ends.kernel_manager.provisioner, DistributedProvisioner)

    def process(self) -> object:
        """Return the provisioner's process, which is another one after each start; None for one that does not say."""
        return getattr(self.ends.kernel_manager.provisioner, "process", None)

    def take(self, stream: Any, parts: list[bytes]) -> None:
        """Take a message by the connection's method, which a subclass may have made its own."""
        self.ends.handle_outgoing_message(stream, parts)

    def write(self, stream: Any, parts: list[bytes]) -> None:
        """Send the client a message as jupyter_server does."""
        ZMQChannelsWebsocketConnection.handle_outgoing_message(self.ends, stream, parts)

    def show(self, kind: str, content: dict[str, Any], cell: Header) -> None:
        """Send the client a message of *kind* on iopub as if its kernel had sent it, for the output of *cell*."""
        ends = self.ends
        message = ends.session.msg(kind, content=content, parent=cell)
        with contextlib.suppress(WebSocketClosedError):
            if ends.subprotocol == _V1:
                packed = serialize_msg_to_ws_v1(message, "iopub", ends.session.pack)
                self.handler.write_message(packed, binary=True)
            else:
                message["channel"] = "iopub"
                self.handler.write_message(json.dumps(message, default=json_default))

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        """Close the websocket; its end comes later."""
        self.handler.close(code, reason)


class DistributedConnection(ZMQChannelsWebsocketConnection):
    """What a websocket's handler asks for its kernel; jupyter_server makes one for each websocket."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._distributed = _Connection(self)
        self._awaited: Awaitable[None] | None = None
        self._printed = Printed()
        self._told: object = None  # the end of the kernel that was told last

    # -- its begin -------------------------------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Wait until the kernel is there, and has said who it is, or for as long as that may take."""
        try:
            await super().prepare()
        except BaseException:  # whatever it is: it will never open, and another one of its session may
            opening.give_up(self._distributed)
            self._forget_question()
            raise
        finally:
            self._distributed.is_arriving = False

    async def _register_session(self) -> None:
        """Note that this connection is the latest of its session; the one before serves until this one opens."""
        self.session_key = f"{self.kernel_id}:{self.session.session}"
        sessions.note_arrival(self._distributed)

    def request_kernel_info(self) -> Any:
        """Ask on the control channel as well: a kernel that runs a cell answers on no other."""
        answered = super().request_kernel_info()
        if self.kernel_info_channel is not None and not self._kernel_info_future.done():
            asked = {"shell": self.kernel_info_channel}
            asked["control"] = control = self.multi_kernel_manager.connect_control(self.kernel_id)
            control.on_recv(self._handle_kernel_info_reply)
            kept_output.note_question("control", self.session.send(control, "kernel_info_request"))
            # Not when this connection no longer waits for the answer: others may, and the kernel may be slow.
            call_soon = asyncio.get_running_loop().call_soon
            self._kernel_info_future.add_done_callback(lambda _: call_soon(sessions.close_channels, asked))
        return answered

    def _forget_question(self) -> None:
        """Have the next connection ask the kernel who it is, if this one has asked, and has had no answer."""
        manager, question = self.kernel_manager, self._kernel_info_future
        if self.kernel_info_channel is not None and not question.done():
            if getattr(manager, "_kernel_info_future", None) is question:
                del manager._kernel_info_future
            question.set_result({})  # for those that wait for it

    def create_stream(self) -> None:
        """Make the four channels, under a name that no other connection has."""
        channels.make(self._distributed)

    def connect(self) -> asyncio.Future[None]:  # type: ignore[override, unused-ignore] # as jupyter_server's own
        """Take over what is left of the session, or make channels; then serve, as soon as the kernel answers on them."""
        handler = self.websocket_handler
        handler.set_nodelay(True)  # Nagle's algorithm and delayed ACKs add 40 ms to a cell
        self._listen_to(handler)
        self._open_sockets.add(self)
        return asyncio.ensure_future(opening.open_connection(self._distributed))

    def _listen_to(self, handler: Any) -> None:
        """Have *handler* hand on what jupyter_server's own keeps: pongs, and what tornado is to wait for after a message."""
        on_pong, on_message = handler.on_pong, handler.on_message

        @functools.wraps(on_pong)
        def hear_pong(data: bytes) -> None:
            on_pong(data)
            service.note_pong(self._distributed, data)

        @functools.wraps(on_message)
        def hear_message(message: str | bytes) -> Awaitable[None] | None:
            on_message(message)
            awaited, self._awaited = self._awaited, None
            return awaited

        handler.on_pong, handler.on_message = hear_pong, hear_message

    # -- its service -----------------------------------------------------------------------------------------------

    def handle_incoming_message(self, incoming_msg: Any) -> None:
        """Pass on what the client says, and tell it where its kernel's host does not answer."""
        watching = out_of_reach.watch()
        if watching is not None and watching.is_silent(self.kernel_id):
            try:
                watching.cell_sent(self._distributed, self._header_of(incoming_msg))
            except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
                log.debug("kernel %s: a message whose header cannot be read: %r", self.kernel_id, error)
        self._awaited = opening.hear(self._distributed, incoming_msg, super().handle_incoming_message)

    def _header_of(self, message: Any) -> Header:
        """Return the header of a message that came over the websocket; raises what its parsers raise."""
        header: Header
        if self.subprotocol == _V1:
            header = json.loads(deserialize_msg_from_ws_v1(message)[1][0])
            return header
        header = (deserialize_binary_message(message) if isinstance(message, bytes) else json.loads(message))["header"]
        return header

    def handle_outgoing_message(self, stream: Any, outgoing_msg: list[Any]) -> None:
        """Send the client a message of a channel; what is written to it is kept until it says that it came."""
        if isinstance(stream, str):
            stream = self.channels[stream]
        service.note_cell(self._distributed, stream, outgoing_msg)
        service.pass_through(self._distributed, stream, outgoing_msg)

    def _limit_rate(self, channel: str, msg: dict[str, Any], msg_list: list[bytes]) -> bool:
        """Return True for output that comes too fast, unless it has waited on its way and was not printed as fast as it comes."""
        if channel == "iopub" and self.limit_rate:
            msg["header"] = header = self.get_part("header", msg["header"], msg_list)
            made, kind = made_at(header), header.get("msg_type")
            if made is not None:
                size = sum(len(part) for part in msg_list) if kind == "stream" else 0
                self._printed.note(made, size, self.rate_limit_window)
                is_slow = self._printed.is_below(
                    self.iopub_msg_rate_limit, self.iopub_data_rate_limit, self.rate_limit_window
                )
                if is_slow and time.time() - made > _LATE:
                    return False
        return bool(super()._limit_rate(channel, msg, msg_list))

    def on_kernel_restarted(self) -> None:
        """Tell the client how its kernel ended, and that it is started again."""
        self._tell_death()
        super().on_kernel_restarted()

    def on_restart_failed(self) -> None:
        """Tell the client how its kernel ended, and that it is dead."""
        self._tell_death()
        super().on_restart_failed()

    def _tell_death(self) -> None:
        """Say it once, however often the kernel's restart is tried."""
        provisioner = self.kernel_manager.provisioner
        death, process = getattr(provisioner, "death", ""), self._distributed.process()
        if death and process != self._told:
            self._told = process
            service.tell(self._distributed, death)

    # -- its end ---------------------------------------------------------------------------------------------------

    def disconnect(self) -> None:  # type: ignore[override, unused-ignore] # the same
        """Leave the channels to the session's next connection if no client is left, else close them; may be called twice."""
        ending.end(self._distributed)
        self._forget_question()
        self._open_sockets.discard(self)
        if not self._close_future.done():
            self._close_future.set_result(None)


def missing(kernels: Any) -> list[str]:
    """Return what jupyter_server, whose mapping kernel manager is *kernels*, has not of what ours rests upon."""
    found = [f"{each.__name__}.{name}" for each, names in NEEDED.items() for name in names if not hasattr(each, name)]
    return found + [f"mapping kernel manager.{name}" for name in NEEDED_OF_KERNELS if not hasattr(kernels, name)]


def _all_open() -> Iterator[Connection]:
    """Yield the open connections of a server whose connections are not ours: they can still be told something, and closed."""
    for connection in list(ZMQChannelsWebsocketConnection._open_sockets):
        yield _Connection(connection)


def begin(app: Any) -> None:
    """Have the websockets of *app*, a ServerApp, be ours; called before it serves HTTP."""
    kernels, settings = app.kernel_manager, app.web_app.settings
    configured = settings.get(_SETTING)
    # jupyter_server's own, said by somebody, is one as well.
    if configured is not ZMQChannelsWebsocketConnection or _SETTING in app.config.get("ServerApp", {}):
        log.info("clients' connections are %r, as configured, and so do not get what ours would give them", configured)
        sessions.listed = _all_open
        return
    if other := missing(kernels):
        log.warning(
            "jupyter_server's connections are not those that we know (%s is missing), so they stay as they are: output that is "
            "printed while a client is cut off is lost. Remedy: jupyter_server 2.14 or later, up to 2.21.",
            ", ".join(other),
        )
        sessions.listed = _all_open
        return
    kept_output.calls_itself = "server"
    channels.take_many_sockets(kernels.context)
    settings[_SETTING] = app.kernel_websocket_connection_class = DistributedConnection
    # A property, which handlers of one's own can't have.
    limit_messages(KernelWebsocketHandler, settings_for(app.config).websocket_message_limit)

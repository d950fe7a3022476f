"""jupyter_server 1.24's websocket handler with our ends: `clients` says what they are for.

All of it replaces methods of a class of jupyter_server 1.24, the last release that Enterprise Gateway 3.x accepts. `install`
compares the text of each with the one that we know, and leaves the class as it is where one differs.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator
from typing import Any, Final

from enterprise_gateway.services.kernels import handlers as gateways_handlers
from jupyter_server.services.kernels import handlers
from jupyter_server.services.kernels.handlers import ZMQChannelsHandler
from tornado.web import HTTPError
from tornado.websocket import WebSocketClosedError, WebSocketHandler
from traitlets import log

from eg_distributed.clients import channels, ending, kept_output, opening, service, sessions
from eg_distributed.clients.connection import Connection
from eg_distributed.clients.frames import Header

KNOWN: Final = {
    "_on_zmq_reply": "3db0af7871f78ab87593e4dbb3114d99ba12407e66a083ce49b2c4eeadbd78e5",
    "_register_session": "f74620e4a220f0fb9735a07d820bcf7bede836dac7084165526790b6cf0d74a8",
    "create_stream": "c5ad658b20bf05a074afcdae12703acfaf5f1fde3f2df60df3b1c52f3556375b",
    "get": "38c7fda94fa31272bdbef357fabaa6c42ba010eebf80415be4369d8b870aa1f3",
    "on_close": "17beefe9ce92a2d61dc62a86b7cb285cf7f45f1242702ec40f13c69a260377bb",
    "on_message": "608fa71766c406853fd297a7fb572ff9f294477768db23703b7f9cf9e8b8657d",
    "open": "a0c530414ade4f55a0f5b9994f58d803ff419021a688452bc8410b03f93b1e73",
    "request_kernel_info": "b4edbc7038bd64d7cbc4e999c226ec605111ea5218d79b7b7ccbe734fce06a18",
}
"""The methods that are replaced or wrapped, and the sha256 of each one's text in jupyter_server 1.24.0."""
_ORIGINAL: Final[Callable[[Any, Any, list[bytes]], None]] = ZMQChannelsHandler._on_zmq_reply


class _Connection(Connection):
    """A websocket of jupyter_server 1.24, whose handler is all in one."""

    refusals = (HTTPError,)

    @property
    def handler(self) -> Any:
        """Return tornado's WebSocketHandler."""
        return self.ends

    @property
    def kernels(self) -> Any:
        """Return Enterprise Gateway's mapping kernel manager."""
        return self.handler.kernel_manager

    @property
    def has_agent(self) -> bool:
        """Whether the kernel is of our process proxy, which alone has a cluster."""
        return hasattr(self.kernels.get_kernel(self.kernel_id).kernel, "cluster")

    def process(self) -> object:
        """Return the kernel's process proxy, which is another one after each start."""
        return self.kernels.get_kernel(self.kernel_id).kernel

    def take(self, stream: Any, parts: list[bytes]) -> None:
        """Take a message by the handler's method, which others may have wrapped."""
        self.handler._on_zmq_reply(stream, parts)

    def write(self, stream: Any, parts: list[bytes]) -> None:
        """Send the client a message as jupyter_server does."""
        _ORIGINAL(self.handler, stream, parts)

    def show(self, kind: str, content: dict[str, Any], cell: Header) -> None:
        """Send the client a message of *kind* on iopub as if its kernel had sent it, for the output of *cell*."""
        handler = self.handler
        message = handler.session.msg(kind, content=content, parent=cell)
        with contextlib.suppress(WebSocketClosedError):
            if handler.subprotocol == "v1.kernel.websocket.jupyter.org":
                packed = handlers.serialize_msg_to_ws_v1(message, "iopub", handler.session.pack)
                handler.write_message(packed, binary=True)
            else:
                message["channel"] = "iopub"
                handler.write_message(json.dumps(message, default=handlers.json_default))

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        """Close the websocket; its end comes later."""
        if code is None:
            self.handler.close()
        else:
            WebSocketHandler.close(self.handler, code, reason)  # jupyter_server's own takes no code


def connection_of(handler: Any) -> Connection:
    """Return what is noted of *handler*."""
    noted = vars(handler).get("_distributed")
    if isinstance(noted, Connection):
        return noted
    handler._distributed = made = _Connection(handler)
    return made


def install() -> None:
    """Replace the ends of jupyter_server's websocket handler; called when our process proxy is imported, before other patches.

    Where a method's text is not the one that we know, nothing is replaced, and the log says so.
    """
    other = sorted(name for name, digest in KNOWN.items() if _digest(name) != digest)
    other += sorted((KNOWN.keys() | {"on_pong"}) & vars(gateways_handlers.ZMQChannelsHandler).keys() - {"get"})
    if other:
        log.get_logger().warning(
            "The websocket handler of this Enterprise Gateway or jupyter_server is not the one we know (%s differs), so it stays"
            " as it is: the first cell of a notebook in JupyterLab may wait for ever. Remedy: Enterprise Gateway 3.3.0 with"
            " jupyter_server 1.24.0.",
            ", ".join(other),
        )
        sessions.listed = _all_open  # they can still be told something
        return
    for session_key, handler in ZMQChannelsHandler._open_sessions.items():
        if handler.channels:  # opened before our process proxy was imported
            sessions.serving[session_key] = connection_of(handler)
    ZMQChannelsHandler.get = _forgetting_at_its_end(ZMQChannelsHandler.get)
    ZMQChannelsHandler._register_session = _register_session
    ZMQChannelsHandler.request_kernel_info = _asking_on_control_too(ZMQChannelsHandler.request_kernel_info)
    ZMQChannelsHandler.create_stream = _create_stream
    ZMQChannelsHandler.open = _open
    ZMQChannelsHandler._on_zmq_reply = _on_zmq_reply
    ZMQChannelsHandler.on_message = _while_channels_are_open(ZMQChannelsHandler.on_message)
    ZMQChannelsHandler.on_pong = _on_pong
    ZMQChannelsHandler.on_close = _on_close


def note_cells() -> None:
    """Have each connection know to which cell its last message belonged; called at import, after `install`."""
    original = ZMQChannelsHandler._on_zmq_reply

    @functools.wraps(original)
    def reply_noting_cell(self: Any, stream: Any, msg_list: list[Any]) -> None:
        service.note_cell(connection_of(self), stream, msg_list)
        original(self, stream, msg_list)

    ZMQChannelsHandler._on_zmq_reply = reply_noting_cell


def _digest(name: str) -> str:
    """Return the sha256 of a method's text, empty where there is none to read."""
    try:
        return hashlib.sha256(inspect.getsource(getattr(ZMQChannelsHandler, name)).encode()).hexdigest()
    except (AttributeError, OSError, TypeError):
        return ""


def _all_open() -> Iterator[Connection]:
    """Yield the open connections of jupyter_server's own handlers."""
    for handler in list(ZMQChannelsHandler._open_sessions.values()):
        yield connection_of(handler)


def _forgetting_at_its_end(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `get`, which lasts as long as the connection: one that fails before it is open has no other end."""

    @functools.wraps(original)
    async def get(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            await original(self, *args, **kwargs)
        finally:
            opening.give_up(connection_of(self))

    return get


async def _register_session(self: Any) -> None:
    """Note that this connection is the latest of its session; the one before serves until this one opens."""
    self.session_key = f"{self.kernel_id}:{self.session.session}"
    sessions.note_arrival(connection_of(self))


def _asking_on_control_too(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `request_kernel_info`: a kernel that runs a cell answers on its control channel only.

    A gateway that was started again knows of no answer, and would have a client wait a minute for the cell's end.
    """

    @functools.wraps(original)
    def request_kernel_info(self: Any) -> Any:
        answered = original(self)
        if self.kernel_info_channel is not None and not answered.done():
            control = self.kernel_manager.connect_control(self.kernel_id)
            control.on_recv(self._handle_kernel_info_reply)
            kept_output.note_question("control", self.session.send(control, "kernel_info_request"))
            answered.add_done_callback(lambda _: control.close())
        return answered

    return request_kernel_info


def _create_stream(self: Any) -> None:
    """Make the four channels, under a name that no other connection has."""
    channels.make(connection_of(self))


async def _open(self: Any, kernel_id: str) -> None:
    """Take over what is left of the session, or make channels; then serve, as soon as the kernel answers on them."""
    super(ZMQChannelsHandler, self).open()  # starts the pings that find dead peers
    await opening.open_connection(connection_of(self))


@functools.wraps(_ORIGINAL)
def _on_zmq_reply(self: Any, stream: Any, msg_list: list[bytes]) -> None:
    service.pass_through(connection_of(self), stream, msg_list)


def _on_pong(self: Any, data: bytes) -> None:
    """Drop what the client has confirmed; any pong is a sign of life."""
    super(ZMQChannelsHandler, self).on_pong(data)
    service.note_pong(connection_of(self), data)


def _while_channels_are_open(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `on_message`: a connection that was replaced uses its successor's channels, which may be closed by now."""

    @functools.wraps(original)
    def on_message(self: Any, ws_msg: Any) -> Any:
        return opening.hear(connection_of(self), ws_msg, functools.partial(original, self))

    return on_message


def _on_close(self: Any) -> None:
    """Leave the channels to the session's next connection if no client is left, else close them; may be called twice."""
    ending.end(connection_of(self))
    if not self._close_future.done():
        self._close_future.set_result(None)

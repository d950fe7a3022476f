"""What the gateway itself says in people's notebooks: in the output of the cell that it concerns, as the kernel would."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from typing import Any

from jupyter_server.services.kernels import handlers
from jupyter_server.services.kernels.handlers import ZMQChannelsHandler
from tornado.websocket import WebSocketClosedError

from .frames import header_of, parent_of

Header = dict[str, Any]
"""The header of a message: here, of the request that the cell was sent with."""


def note_cells() -> None:
    """Have each websocket know what its last message on iopub belonged to: as a rule the cell that runs."""
    original = ZMQChannelsHandler._on_zmq_reply

    @functools.wraps(original)
    def reply_noting_cell(self: Any, stream: Any, msg_list: list[Any]) -> None:
        if getattr(stream, "channel", None) == "iopub" and (parent := parent_of(msg_list)):
            self._last_parent = parent
        original(self, stream, msg_list)

    ZMQChannelsHandler._on_zmq_reply = reply_noting_cell


def clients(kernel_id: str) -> Iterator[Any]:
    """Yield the handlers of the kernel's open websockets; on the gateway's loop."""
    for handler in list(ZMQChannelsHandler._open_sessions.values()):
        if handler.kernel_id == kernel_id and handler.ws_connection is not None:
            yield handler


def last_cell(handler: Any) -> Header:
    """Return the header of the cell that ran last, or runs, as this client heard; empty if it has heard of none."""
    return header_of(getattr(handler, "_last_parent", b""))


def show(handler: Any, kind: str, content: dict[str, Any], cell: Header) -> None:
    """Send a client a message of *kind* on iopub as if its kernel had sent it, for the output of *cell*."""
    message = handler.session.msg(kind, content=content, parent=cell)
    with contextlib.suppress(WebSocketClosedError):
        if handler.subprotocol == "v1.kernel.websocket.jupyter.org":
            packed = handlers.serialize_msg_to_ws_v1(message, "iopub", handler.session.pack)
            handler.write_message(packed, binary=True)
        else:
            message["channel"] = "iopub"
            handler.write_message(json.dumps(message, default=handlers.json_default))


def tell_clients(kernel_id: str, text: str) -> None:
    """Show *text* as the kernel's stderr in the cell that ran last, in every open notebook; called on the gateway's loop.

    Notebooks hear that a kernel which died is restarted, and no more: not how it ended, nor what it said last.
    """
    for handler in clients(kernel_id):
        iopub = handler.channels.get("iopub")
        if iopub is not None and not iopub.closed():
            iopub.flush()  # what the kernel itself had said comes first
        show(handler, "stream", {"name": "stderr", "text": f"{text}\n"}, last_cell(handler))

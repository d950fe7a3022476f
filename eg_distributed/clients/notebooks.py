"""What the server itself says in people's notebooks: in the output of the cell that it concerns, as the kernel would."""

from __future__ import annotations

from . import sessions
from .connection import Connection
from .frames import Header, header_of


def last_cell(connection: Connection) -> Header:
    """Return the header of the cell that ran last, or runs, as this client heard; empty if it has heard of none."""
    return header_of(connection.last_parent)


def tell_clients(kernel_id: str, text: str) -> None:
    """Show *text* as the kernel's stderr in the cell that ran last, in every open notebook; called on the server's loop.

    Notebooks hear that a kernel which died is restarted, and no more: not how it ended, nor what it said last.
    """
    for connection in sessions.of_kernel(kernel_id):
        iopub = connection.channels.get("iopub")
        if iopub is not None and not iopub.closed():
            iopub.flush()  # what the kernel itself had said comes first
        connection.show("stream", {"name": "stderr", "text": f"{text}\n"}, last_cell(connection))

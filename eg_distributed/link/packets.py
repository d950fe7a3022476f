"""What asyncssh sends beside what it is told to: an empty packet before each one, which only ciphers in CBC mode need.

There it keeps who can have a client send what he likes from guessing what was sent before. Our first choice, and all that
OpenSSH offers by itself, have no such weakness, and OpenSSH sends none. It is a message to encrypt, a system call, and one for
sshd to decrypt, for each packet of each cell; asyncssh has no option for it.
"""

from __future__ import annotations

import functools
from typing import Any

import asyncssh

__all__ = ["leave_out_empty_packets"]

_IGNORE = 2
"""SSH_MSG_IGNORE, see RFC 4253, section 11.2; nothing else of asyncssh's sends it."""


def leave_out_empty_packets(connection: asyncssh.SSHClientConnection) -> None:
    """Have *connection* send no packet that says nothing, unless its cipher is one in CBC mode; called when it begins."""
    send = connection.send_packet

    @functools.wraps(send)
    def send_what_says_something(kind: int, *parts: bytes, handler: Any = None) -> None:
        # Asked each time: the cipher is known after the first exchange of keys, and may be another one after a later one.
        if kind == _IGNORE and not str(connection.get_extra_info("send_cipher", "-cbc")).endswith("-cbc"):
            return
        send(kind, *parts, handler=handler)

    # It calls itself for the empty ones, by this name. A release that does it otherwise sends them as before.
    setattr(connection, "send_packet", send_what_says_something)  # noqa: B010 - a method is no attribute to mypy

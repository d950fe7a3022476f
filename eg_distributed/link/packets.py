"""What asyncssh does for each packet, and nobody needs: left out, since each message of each cell is one.

It has no options for these. What is replaced is replaced on one connection or channel; a release that has other names for it does
all of it as before.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from typing import Any

import asyncssh

__all__ = ["leave_out_needless", "log_no_packets"]

_IGNORE = 2
"""SSH_MSG_IGNORE, see RFC 4253, section 11.2; nothing else of asyncssh's sends it."""
_SELDOM = 0.1
"""Of the time between two probes: by so much earlier one may come."""


def leave_out_needless(connection: asyncssh.SSHClientConnection) -> None:
    """Have *connection* do without; called when it begins."""
    _send_no_empty_ones(connection)
    _set_timer_seldom(connection)
    log_no_packets(connection)


def _send_no_empty_ones(connection: asyncssh.SSHClientConnection) -> None:
    """Have *connection* send no packet that says nothing, unless its cipher is one in CBC mode.

    asyncssh sends one before each packet. In CBC mode that keeps who can have a client send what he likes from guessing what was
    sent before. Our first choice, and all that OpenSSH offers by itself, have no such weakness, and OpenSSH sends none. It is a
    message to encrypt, a system call, and a packet for sshd to decrypt.
    """
    send = connection.send_packet

    @functools.wraps(send)
    def send_what_says_something(kind: int, *parts: bytes, handler: Any = None) -> None:
        # Asked each time: the cipher is known after the first exchange of keys, and may be another one after a later one.
        if kind == _IGNORE and "-cbc" not in str(connection.get_extra_info("send_cipher", "-cbc")):
            return
        send(kind, *parts, handler=handler)

    _replace(connection, "send_packet", send_what_says_something)  # it calls itself for the empty ones, by this name


def _set_timer_seldom(connection: asyncssh.SSHClientConnection) -> None:
    """Have *connection* put off its next probe at most ten times between two of them, not with all that it receives."""
    put_off: Callable[[], None] | None = getattr(connection, "_reset_keepalive_timer", None)
    if put_off is None:
        return
    loop, last = asyncio.get_running_loop(), float("-inf")

    def put_off_seldom() -> None:
        nonlocal last
        now = loop.time()
        if now - last >= _SELDOM * getattr(connection, "_keepalive_interval", 0):
            last = now
            put_off()

    _replace(connection, "_reset_keepalive_timer", put_off_seldom)


def log_no_packets(handler: asyncssh.SSHClientConnection | asyncssh.SSHUNIXChannel[bytes]) -> None:
    """Have *handler* describe no packets, unless asyncssh's log is wanted: it makes the words before it asks."""
    if not logging.getLogger("asyncssh").isEnabledFor(logging.DEBUG):
        for name in ("log_sent_packet", "log_received_packet"):
            _replace(handler, name, _log_nothing)


def _log_nothing(*_: object, **__: object) -> None:
    pass


def _replace(owner: object, name: str, function: Callable[..., None]) -> None:
    if hasattr(owner, name):
        setattr(owner, name, function)

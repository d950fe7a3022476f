"""A TCP connection to a host: all addresses of its name are tried, each with the whole deadline (RFC 8305)."""

from __future__ import annotations

import asyncio
import fcntl
import socket
from pathlib import Path
from typing import Any

from eg_distributed.aside import aside
from eg_distributed.link.deadlines import within

__all__ = ["dial", "look_up"]

_STAGGER = 0.25
"""Seconds after which the next address is tried beside the one before it."""
_MOST_ADDRESSES = 16
_ADDRESS_OF_INTERFACE = 0x8915
"""Linux's SIOCGIFADDR."""

Address = tuple[int, int, int, str, Any]


async def look_up(hostname: str, port: int, family: int, seconds: float) -> list[Address]:
    """Return the addresses of *hostname*, families in turn; raises OSError, or asyncio.TimeoutError after *seconds*.

    A name that does not resolve is a socket.gaierror.
    """

    def find() -> list[Address]:
        return list(socket.getaddrinfo(hostname, port, family, socket.SOCK_STREAM))

    found = await within(aside(("name", hostname, port, family), find), seconds)
    first = [each for each in found if each[0] == found[0][0]]
    others = [each for each in found if each[0] != found[0][0]]
    turns = [each for pair in zip(first, others, strict=False) for each in pair]
    return (turns + first[len(others) :] + others[len(first) :])[:_MOST_ADDRESSES]


async def dial(
    addresses: list[Address], seconds: float, bind_address: str = "", bind_interface: str = ""
) -> socket.socket:
    """Return a connected socket to the first of *addresses* that answers within *seconds* of its own attempt.

    It comes from *bind_address*, or from an address of *bind_interface*, where they are given.

    Raises the first address's OSError, or asyncio.TimeoutError where none answered at all.
    """
    attempts: list[asyncio.Task[socket.socket]] = []
    waiting = list(addresses)
    try:
        while waiting or any(not attempt.done() for attempt in attempts):
            if waiting:
                attempts.append(asyncio.ensure_future(_dial_one(waiting.pop(0), seconds, bind_address, bind_interface)))
            pending = {attempt for attempt in attempts if not attempt.done()}
            if pending:
                await asyncio.wait(pending, timeout=_STAGGER if waiting else None, return_when=asyncio.FIRST_COMPLETED)
            for attempt in attempts:
                if attempt.done() and not attempt.cancelled() and attempt.exception() is None:
                    attempts.remove(attempt)
                    return attempt.result()
        errors = [attempt.exception() for attempt in attempts]
        # One that was refused says more than one that was silent.
        refused = [error for error in errors if not isinstance(error, asyncio.TimeoutError)]
        raise (refused[0] if refused else None) or asyncio.TimeoutError()
    finally:
        for attempt in attempts:
            attempt.cancel()
        if attempts:
            await asyncio.wait(attempts)
        for attempt in attempts:
            if not attempt.cancelled() and attempt.exception() is None:
                attempt.result().close()


async def _dial_one(address: Address, seconds: float, bind_address: str, bind_interface: str) -> socket.socket:
    family, kind, protocol, _, target = address
    way = socket.socket(family, kind, protocol)
    try:
        way.setblocking(False)
        if bind_address:
            way.bind((bind_address, 0))
        elif bind_interface:
            way.bind(_address_of(bind_interface, way))
        await within(asyncio.get_running_loop().sock_connect(way, target), seconds)
    except BaseException:  # cancellation included: nothing may stay open
        way.close()
        raise
    return way


def _address_of(interface: str, way: socket.socket) -> tuple[object, ...]:
    """Return an address of *interface* that the unconnected socket *way* can be bound to; raises OSError.

    As ssh, an address of the whole network before one of this machine or of the link. The system's calls, since Python has no
    getifaddrs.
    """
    try:
        if way.family == socket.AF_INET:
            answer = fcntl.ioctl(way.fileno(), _ADDRESS_OF_INTERFACE, interface.encode()[:15].ljust(40, b"\0"))
            return socket.inet_ntop(socket.AF_INET, answer[20:24]), 0
        lines = [line.split() for line in Path("/proc/net/if_inet6").read_text("ascii").splitlines()]
        found = sorted((int(scope, 16), number, text) for text, number, _, scope, _, name in lines if name == interface)
        if found:
            _, number, text = found[0]
            return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(text)), 0, 0, int(number, 16)
    except OSError as error:
        raise OSError(f"BindInterface {interface} of ssh_config has no suitable address: {error.strerror}") from error
    raise OSError(f"BindInterface {interface} of ssh_config has no suitable address")

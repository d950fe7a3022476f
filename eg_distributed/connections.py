"""Connections that hand over what comes by a call. Standard library only, since the agent carries this file to its node.

With asyncio's streams each message that passes through wakes a task, which costs another turn of the loop, and is read into a
buffer of 256 KiB that is made for it and mostly given back: on a node that alone were three system calls for each. Here whoever
listens is called with what has come, in the turn in which it came, and all connections of a thread share one buffer. Whoever
speaks a protocol of messages reads as from asyncio's reader, until somebody listens.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any, Callable, Optional, cast

from .wire import LocalWriter, Reader

_ENOUGH = 64 * 1024
"""Bytes that wait in a socket's transport from which on its peer is waited for; asyncio's own default."""
AT_ONCE = 64 * 1024
"""Bytes that are taken from a socket at once. Blocks of 128 KiB and more the agent has from the system, and gives back to it, one
by one (see agent/memory.py), which takes three times as long as all else that is done with them."""
MOST_UNREAD = 256 * 1024
"""Bytes that wait for a reader before no more are taken."""


class Incoming:
    """What comes over a connection: to be read, or, from `listen` on, handed over as it comes. Fed by its subclass."""

    def __init__(self) -> None:
        self._unread = bytearray()
        self._has_ended = False
        self._error: Optional[Exception] = None
        self.failure: Optional[Exception] = None
        """What went wrong where that was not the connection; it is over then, too."""
        self._waiter: Optional[asyncio.Future[None]] = None
        self._take: Optional[Callable[[bytes], None]] = None
        self._end: Optional[Callable[[], None]] = None
        self._is_paused = False

    # -- for whoever reads ---------------------------------------------------------------------------------------

    async def read(self, n: int = -1) -> bytes:
        """Return up to *n* bytes, b"" at the end, all up to it if *n* is negative; raises OSError, as the connection ended."""
        while n < 0 and not self._has_ended:
            await self._more()
        while not self._unread and not self._has_ended:
            await self._news()
        if not self._unread and self._error is not None:
            raise self._error
        return self._taken(len(self._unread) if n < 0 else n)

    async def readexactly(self, n: int) -> bytes:
        """Return *n* bytes; raises IncompleteReadError, or OSError, as the connection ended."""
        while len(self._unread) < n:
            if self._error is not None:
                raise self._error
            if self._has_ended:
                raise asyncio.IncompleteReadError(self._taken(n), n)
            await self._more()
        return self._taken(n)

    def _taken(self, n: int) -> bytes:
        taken = bytes(self._unread[:n])
        del self._unread[:n]
        if len(self._unread) < MOST_UNREAD:
            self.resume_reading()
        return taken

    async def _more(self) -> None:
        """Return once more has come; also where it comes within the call that resumes, as a channel gives what it has kept."""
        before = len(self._unread)
        self.resume_reading()
        if len(self._unread) == before and not self._has_ended:
            await self._news()

    async def _news(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    # -- for whoever listens -------------------------------------------------------------------------------------

    def listen(self, take: Callable[[bytes], None], end: Callable[[], None], *, is_paused: bool = False) -> None:
        """Have *take* called with each piece, at once with what has come before, and *end* when no more comes.

        Neither raises. `pause_reading` and `resume_reading` are the listener's from now on; with *is_paused* it begins as after
        the former.
        """
        self._take, self._end = take, end
        if is_paused:
            self.pause_reading()
            self._tell_end()
        else:
            was_paused, self._is_paused = self._is_paused, False
            self._go_on(was_paused)

    def leave(self) -> None:
        """Call the listener no more; what comes from now on waits for a reader, up to MOST_UNREAD."""
        self._take = self._end = None

    def pause_reading(self) -> None:
        """Take no more from the connection, so that the other end waits."""
        if not self._is_paused:
            self._is_paused = True
            if not self._has_ended:
                self._pause()

    def resume_reading(self) -> None:
        """Go on with it."""
        if self._is_paused:
            self._is_paused = False
            self._go_on(True)

    def _go_on(self, was_paused: bool) -> None:
        """Hand over what waits, and have more come."""
        if self._take is not None and self._unread:
            unread = bytes(self._unread)
            self._unread.clear()
            self._take(unread)
        # Not before: a channel that is resumed gives at once what it has kept, which comes behind that. And not where the
        # listener has paused it meanwhile.
        if was_paused and not self._is_paused and not self._has_ended:
            self._resume()
        self._tell_end()

    def _tell_end(self) -> None:
        """Tell the listener of the end, once, behind all that it is handed."""
        if self._has_ended and self._end is not None and not self._unread:
            end, self._end = self._end, None
            end()

    # -- for the subclass ----------------------------------------------------------------------------------------

    def _pause(self) -> None:
        raise NotImplementedError

    def _resume(self) -> None:
        raise NotImplementedError

    def _came(self, data: bytes) -> None:
        if self._take is not None:
            self._take(data)
            return
        self._unread += data
        if len(self._unread) >= MOST_UNREAD:
            self.pause_reading()
        self._wake()

    def _ended(self, error: Optional[Exception] = None) -> None:
        if self._has_ended:
            return
        self._has_ended, self._error = True, error
        self._wake()
        self._tell_end()

    def eof_received(self) -> bool:
        """Note the end; the way back stays open. What asyncio and asyncssh call, as the next two of `Outgoing`."""
        self._ended()
        return True

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Outgoing:
    """Whether what is written to a connection is taken; told by its subclass."""

    def __init__(self) -> None:
        self.is_full = False
        """Whether as much waits to be sent as should: who writes on fills memory."""
        self.on_room: Optional[Callable[[], None]] = None
        """Called when it is full no more, or over."""
        self._is_over = False
        self._drained: Optional[asyncio.Future[None]] = None

    def write(self, data: bytes) -> None:
        """Queue *data*."""
        raise NotImplementedError

    async def drain(self) -> None:
        """Wait until it is not full; raises ConnectionResetError where it is over."""
        while self.is_full and not self._is_over:
            if self._drained is None:
                self._drained = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._drained)
        if self._is_over:
            raise ConnectionResetError("the connection is closed")

    def _filled(self) -> None:
        self.is_full = True

    def _emptied(self) -> None:
        self.is_full = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None
        if self.on_room is not None:
            self.on_room()

    def pause_writing(self) -> None:
        """Note that enough waits."""
        self._filled()

    def resume_writing(self) -> None:
        """Note that it went."""
        self._emptied()

    def _is_lost(self) -> None:
        self._is_over = True
        self._emptied()


_buffers = threading.local()


def _buffer() -> memoryview:
    """Return this thread's buffer: what is read into it is copied out before anything else is read."""
    found = getattr(_buffers, "view", None)
    if found is None:
        found = _buffers.view = memoryview(bytearray(AT_ONCE))
    return cast("memoryview", found)


class Connection(Incoming, Outgoing, asyncio.BufferedProtocol):
    """A connected socket; its reader and its writer in one.

    *accepted* is called with both when it is made: for servers. What comes after `connection_lost` is nothing.
    """

    transport: asyncio.Transport

    def __init__(self, accepted: Optional[Callable[[Connection, Connection], object]] = None) -> None:
        Incoming.__init__(self)
        Outgoing.__init__(self)
        self._accepted = accepted
        self._serving: Optional[asyncio.Future[Any]] = None
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # -- the transport's calls -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = cast("asyncio.Transport", transport)
        if self._accepted is not None:
            accepted, self._accepted = self._accepted, None
            serving = accepted(self, self)
            if asyncio.iscoroutine(serving):
                self._serving = asyncio.ensure_future(serving)  # kept: the loop itself holds tasks weakly

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next piece goes."""
        return _buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """Take the piece that is there."""
        self._came(bytes(_buffer()[:nbytes]))

    def connection_lost(self, exc: Optional[Exception]) -> None:
        """Note that nothing can be sent any more either."""
        self._ended(exc)
        self._is_lost()
        if not self._closed.done():
            self._closed.set_result(None)

    def _pause(self) -> None:
        self.transport.pause_reading()

    def _resume(self) -> None:
        self.transport.resume_reading()

    # -- the writer ----------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Queue *data*."""
        self.transport.write(data)

    def close(self) -> None:
        """Close after what is queued."""
        self.transport.close()

    def is_closing(self) -> bool:
        """Whether it is closed, or about to be."""
        return self.transport.is_closing()

    async def wait_closed(self) -> None:
        """Wait until it is closed."""
        await asyncio.shield(self._closed)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what the transport knows of itself."""
        return self.transport.get_extra_info(name, default)


async def connect_unix(path: str) -> Connection:
    """Return a connection to the UNIX socket at *path*; raises OSError."""
    _, made = await asyncio.get_running_loop().create_unix_connection(Connection, path)
    return made


async def connect_tcp(host: str, port: int) -> Connection:
    """Return a connection to a TCP port; raises OSError."""
    _, made = await asyncio.get_running_loop().create_connection(Connection, host, port)
    return made


# -- what others have made -----------------------------------------------------------------------------------------


def handing_over(reader: Reader) -> Incoming:
    """Return what hands over what *reader* brings."""
    return reader if isinstance(reader, Incoming) else _Asked(reader)


def telling(writer: LocalWriter) -> Outgoing:
    """Return what tells whether *writer* is full."""
    return writer if isinstance(writer, Outgoing) else _Watched(writer)


class _Asked(Incoming):
    """Hands over what a reader brings that has to be asked for each piece: a bridge's, and those of tests."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self._reader = reader
        self._goes_on = asyncio.Event()
        self._goes_on.set()
        self._asking: Optional[asyncio.Task[None]] = None

    def listen(self, take: Callable[[bytes], None], end: Callable[[], None], *, is_paused: bool = False) -> None:
        super().listen(take, end, is_paused=is_paused)
        self._asking = asyncio.ensure_future(self._ask())

    def leave(self) -> None:
        super().leave()
        if self._asking is not None:
            self._asking.cancel()

    async def _ask(self) -> None:
        try:
            data = b"more"
            while data:
                await self._goes_on.wait()
                data = await self._reader.read(AT_ONCE)
                if data:
                    self._came(data)
        except OSError:
            pass  # what is reset has ended as well
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing more comes, and whoever listens has to hear so
            self.failure = error
        self._ended()

    def _pause(self) -> None:
        self._goes_on.clear()

    def _resume(self) -> None:
        self._goes_on.set()


class _Watched(Outgoing):
    """Tells of a writer that can only be waited for whether it is full: of asyncio's own, and of those of tests."""

    def __init__(self, writer: LocalWriter) -> None:
        super().__init__()
        self._writer = writer
        self._draining: Optional[asyncio.Task[None]] = None

    def write(self, data: bytes) -> None:
        self._writer.write(data)
        if not self.is_full and self._writer.transport.get_write_buffer_size() > _ENOUGH:
            self._filled()
            self._draining = asyncio.ensure_future(self._wait())

    async def _wait(self) -> None:
        try:
            await self._writer.drain()
        except OSError:
            pass  # it is gone, and takes no more for that reason
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody waits for room that nothing makes
            asyncio.get_running_loop().call_exception_handler({"message": "a writer has failed", "exception": error})
        self._emptied()

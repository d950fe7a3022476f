"""What comes over a connection is read or handed over, whole and in order, and neither end fills the other's memory."""

from __future__ import annotations

import asyncio
import random
import socket

import pytest

from eg_distributed.connections import (
    MOST_UNREAD,
    Connection,
    Incoming,
    connect_tcp,
    connect_unix,
    handing_over,
    telling,
)
from tests.until import until

from .agents import DEADLINE

BYTES = random.Random(7).randbytes(3 * MOST_UNREAD + 5)


async def joined() -> tuple[Connection, socket.socket]:
    """Return a connection and the socket at its other end."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    _, made = await asyncio.get_running_loop().create_unix_connection(Connection, sock=ours)
    return made, theirs


class Listener:
    """Keeps what it is handed."""

    def __init__(self) -> None:
        self.got = bytearray()
        self.ends = 0

    def take(self, data: bytes) -> None:
        self.got += data

    def end(self) -> None:
        self.ends += 1


async def test_what_comes_is_read_in_pieces_and_as_asked_for() -> None:
    """A message is read by its length, however it comes, and the rest as it is there, up to the end."""
    made, other = await joined()
    reading = asyncio.ensure_future(made.readexactly(5))
    for byte in b"hello":
        other.send(bytes([byte]))
        await asyncio.sleep(0)
    assert await asyncio.wait_for(reading, DEADLINE) == b"hello"
    other.send(b"and more")
    assert await made.read(3) == b"and"
    assert await made.read(100) == b" more"
    other.send(b"cut")
    other.close()
    with pytest.raises(asyncio.IncompleteReadError) as caught:
        await made.readexactly(4)
    assert caught.value.partial == b"cut"
    assert await made.read() == b""
    made.close()


async def test_more_than_is_taken_at_once_is_read_whole() -> None:
    """A message that is larger than what may wait for a reader comes whole, and so does all up to the end."""
    made, other = await joined()
    loop = asyncio.get_running_loop()
    sending = asyncio.ensure_future(loop.sock_sendall(other, BYTES * 2))
    assert await asyncio.wait_for(made.readexactly(len(BYTES)), DEADLINE) == BYTES
    reading = asyncio.ensure_future(made.read())
    await sending
    other.close()
    assert await asyncio.wait_for(reading, DEADLINE) == BYTES
    made.close()


async def test_what_nobody_reads_stays_with_who_sent_it() -> None:
    """No more than a few pieces wait for a reader who does not come."""
    made, other = await joined()
    sending = asyncio.ensure_future(asyncio.get_running_loop().sock_sendall(other, BYTES * 10))
    await until("it is read no more", lambda: len(made._unread) >= MOST_UNREAD)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(made._unread) < 2 * MOST_UNREAD
    assert not sending.done()
    sending.cancel()
    made.close()
    other.close()


async def test_who_listens_gets_all_of_it_and_the_end_once() -> None:
    """What came before is handed over at once, what comes later as it comes, and both ends of a pause are heard."""
    made, other = await joined()
    other.send(b"before ")
    assert await made.read(1) == b"b"
    listener = Listener()
    made.listen(listener.take, listener.end)
    assert listener.got == b"efore "
    made.pause_reading()
    made.pause_reading()
    other.send(b"during ")
    for _ in range(5):
        await asyncio.sleep(0)
    assert listener.got == b"efore "
    made.resume_reading()
    await until("it goes on", lambda: listener.got == b"efore during ")
    other.close()
    await until("the end is heard", lambda: listener.ends == 1)
    made.close()
    await asyncio.wait_for(made.wait_closed(), DEADLINE)
    assert listener.ends == 1


async def test_who_listens_after_the_end_hears_of_it() -> None:
    """An end that came before anybody listened is told at once, behind what came before it."""
    made, other = await joined()
    other.send(b"last words")
    other.close()
    await until("it has come", lambda: made._has_ended)
    listener = Listener()
    made.listen(listener.take, listener.end)
    assert (bytes(listener.got), listener.ends) == (b"last words", 1)
    made.close()


async def test_who_has_left_is_called_no_more() -> None:
    """From `leave` on nothing is handed over, and nobody hears of the end."""
    made, other = await joined()
    listener = Listener()
    made.listen(listener.take, listener.end)
    made.leave()
    other.send(b"late")
    other.close()
    await until("it has come", lambda: made._has_ended)
    assert (bytes(listener.got), listener.ends) == (b"", 0)
    made.close()


async def test_a_connection_that_is_not_read_is_full_until_it_is() -> None:
    """`is_full`, `drain` and `on_room` tell of an other end that reads nothing, and of its going on."""
    made, other = await joined()
    rooms = []
    made.on_room = lambda: rooms.append(made.is_full)
    await made.drain()
    made.write(BYTES)
    assert made.is_full
    draining = asyncio.ensure_future(made.drain())
    await asyncio.sleep(0)
    assert not draining.done()
    got = b""
    while len(got) < len(BYTES):
        got += await asyncio.get_running_loop().sock_recv(other, MOST_UNREAD)
    await asyncio.wait_for(draining, DEADLINE)
    assert got == BYTES
    assert rooms == [False]
    other.close()
    made.close()


async def test_who_waits_for_a_connection_that_is_lost_hears_so() -> None:
    """Readers get the reset, who waits for room a ConnectionResetError, and who waits for its end goes on."""
    made, other = await joined()
    made.write(BYTES)
    draining = asyncio.ensure_future(made.drain())
    await asyncio.sleep(0)
    made.transport.abort()
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(draining, DEADLINE)
    assert await made.read(1) == b""
    await asyncio.wait_for(made.wait_closed(), DEADLINE)
    other.close()


async def test_a_server_and_its_clients(short: object) -> None:
    """A server is called with each connection; a coroutine of it is kept until it ends, and the same goes for TCP."""
    loop = asyncio.get_running_loop()

    async def echo(reader: Connection, writer: Connection) -> None:
        writer.write(await reader.readexactly(4))
        writer.close()

    unix = await loop.create_unix_server(lambda: Connection(echo), f"{short}/s")
    tcp = await loop.create_server(lambda: Connection(echo), "127.0.0.1", 0)
    for made in (await connect_unix(f"{short}/s"), await connect_tcp("127.0.0.1", tcp.sockets[0].getsockname()[1])):
        made.write(b"ping")
        assert await asyncio.wait_for(made.read(), DEADLINE) == b"ping"
        made.close()
    for server in (unix, tcp):
        server.close()


class Prompt(Incoming):
    """As asyncssh's channels do, it hands over what it has kept within the call by which it is resumed."""

    def __init__(self, pieces: list[bytes]) -> None:
        super().__init__()
        self._kept = pieces
        self._goes_on()

    def _goes_on(self) -> None:
        while self._kept and not self._is_paused:
            self._came(self._kept.pop(0))

    _resume = _goes_on

    def _pause(self) -> None:
        pass


PIECES = [BYTES[start : start + 50_000] for start in range(0, len(BYTES), 50_000)]


async def test_what_comes_within_the_call_that_resumes_is_read_whole() -> None:
    """A reader waits for no news that it has had already, whether it reads so many bytes or all."""
    assert await asyncio.wait_for(Prompt(list(PIECES)).readexactly(len(BYTES)), DEADLINE) == BYTES
    ending = Prompt(list(PIECES))
    reading = asyncio.ensure_future(ending.read())
    await asyncio.sleep(0)
    ending._ended()
    assert await asyncio.wait_for(reading, DEADLINE) == BYTES


@pytest.mark.parametrize("pauses", [False, True])
async def test_what_comes_within_the_call_that_resumes_comes_behind_what_waited(*, pauses: bool) -> None:
    """Who begins to listen gets what had come before first; who pauses at once gets the rest when it goes on."""
    source, listener = Prompt(list(PIECES)), Listener()

    def take(data: bytes) -> None:
        listener.take(data)
        if pauses:
            source.pause_reading()

    source.listen(take, listener.end)
    while len(listener.got) < len(BYTES):
        before = len(listener.got)
        source.resume_reading()
        assert len(listener.got) > before
    assert listener.got == BYTES


async def test_who_begins_with_a_pause_gets_what_had_come_behind_it() -> None:
    """Nothing is handed over before the listener goes on, and then all of it, in order, and the end behind it."""
    made, other = await joined()
    other.send(b"before ")
    await until("it has come", lambda: bool(made._unread))
    listener = Listener()
    made.listen(listener.take, listener.end, is_paused=True)
    other.send(b"during")
    other.close()
    for _ in range(5):
        await asyncio.sleep(0)
    assert (bytes(listener.got), listener.ends) == (b"", 0)
    made.resume_reading()
    await until("the end is heard", lambda: listener.ends == 1)
    assert listener.got == b"before during"
    made.close()


class Defective:
    """A reader and a writer with a defect."""

    def __init__(self) -> None:
        self.transport = self

    async def read(self, n: int = -1) -> bytes:
        raise ValueError("a defect")

    def write(self, data: bytes) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 1 << 30

    async def drain(self) -> None:
        raise ValueError("a defect")


async def test_a_reader_with_a_defect_has_ended() -> None:
    """Who listens hears of the end once, and finds why."""
    listener, brings = Listener(), handing_over(Defective())  # type: ignore[arg-type]
    brings.listen(listener.take, listener.end)
    await until("the end is heard", lambda: listener.ends == 1)
    assert repr(brings.failure) == "ValueError('a defect')"


async def test_a_writer_with_a_defect_is_not_full_for_ever() -> None:
    """Who waits for room goes on, and the log has the defect."""
    rooms: list[bool] = []
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(repr(context["exception"])))
    takes = telling(Defective())  # type: ignore[arg-type]
    takes.on_room = lambda: rooms.append(takes.is_full)
    takes.write(b"x")
    assert takes.is_full
    await until("there is room", lambda: rooms == [False])
    assert told == ["ValueError('a defect')"]

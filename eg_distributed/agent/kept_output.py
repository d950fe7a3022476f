"""What kernels say while no gateway's process is there to hear it: kept for the next one, on disk up to a limit.

A kernel's PUB socket sends to who listens, and drops what nobody takes. So the agent listens itself, from the moment a gateway's
control connection ends until the gateway that adopts the kernel says that it needs this no more. Until then nothing is removed:
each of the gateway's clients that come back takes all of it, from what it has got on.

There are three sources, and the gateway gets each message of the first two in this order, with some twice where they meet:

    before   the streams of output that the ended process left: what it had not acknowledged, and a tail of what it had, since
             what was on its way through it is gone with it. In memory, up to the first message of the next source
    after    what the agent has heard itself, in a spool beside the kernel's record, which the next agent takes over
    replies  of the kernel to clients of the ended process, to whose addresses it sends them: only on the streams of then,
             which stay open for that, for as long as the kernel runs

All is taken as records: kind (1 byte), number (8 bytes), length (4 bytes), and a message as ZMTP has it.
Numbers count what was heard, so a gap in them is what could not be kept: the spool outgrew its limit, the disk was full or slow
for too long.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import struct
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Optional

from ..clock import monotonic
from ..protocol import OutputPart, Replied, TakeOutput
from ..streams import CHUNK
from ..wire import Reader
from . import zmtp
from .aside import aside
from .kernels import RUNNING, Kernel, Notify
from .streams import Streams

RECORD = struct.Struct(">BQI")
BEFORE, HEARD, SILENCE, REPLY = range(4)
"""Kinds of records. A SILENCE has, for a message, the milliseconds for which nobody listened."""
FOLDER = "output-"
"""How the name of a spool's folder begins, beside the kernel's record; then follows when it was made."""
KEPT_BY_ALL = 1024 * 1024 * 1024
"""Bytes that all spools of an agent may have together."""
LARGEST = 16 * 1024 * 1024
"""Bytes of a message that is kept; a larger one counts as lost."""
PENDING = 8 * 1024 * 1024
"""Bytes that wait for the disk, at most, for each kernel; one message may have more."""
REPLIES = 16 * 1024 * 1024
"""Bytes of replies that are kept for each kernel."""
ADOPTED_KEPT = 900.0
"""Seconds after its adoption, or after somebody last took of it, for which a kernel's output is kept where its gateway does
not say that it has it."""
DEFAULT_LIMIT = 64 * 1024 * 1024
"""Bytes of a kernel's spool that was found on disk, until a gateway says more."""
_SETTLING = 1.0  # seconds after a subscription within which a kernel that says nothing may not have noticed it
_NEVER_SETTLED = 5.0  # the same where no subscription can be had
_FIRST_PAUSE, _LAST_PAUSE = 0.2, 5.0  # seconds between two attempts to listen
_RETRY = 0.5  # seconds that who takes output waits for one more attempt to write it
_DEADLINE = 3.0  # seconds for a kernel to take a connection, and to greet; for a disk, less than gateways wait
_AFTER = 1 << 60  # positions from here on are the spool's
_SEGMENTS = 8  # of a full spool
_sizes = threading.Lock()


class Total:
    """What all spools of an agent have together, in bytes; changed in threads."""

    def __init__(self, limit: int = KEPT_BY_ALL) -> None:
        self.limit = limit
        self.bytes = 0

    def add(self, count: int) -> bool:
        """Count *count* bytes more, or fewer; return whether that is within the limit."""
        with _sizes:
            self.bytes += count
            return self.bytes <= self.limit


class Spool:
    """Records in a folder, oldest first, as files of an eighth of *limit* each; whole files give way. Called in threads.

    A position is the count of bytes that were ever appended before; the name of a file is that of its first byte.
    """

    def __init__(self, folder: Path, limit: int, total: Total) -> None:
        self.limit = limit
        self._folder = folder
        self._total = total
        self._files: list[tuple[int, int]] = []  # position, size
        self._lock = threading.Lock()
        self._is_removed = False

    def restore(self) -> tuple[int, float]:
        """Take over what an earlier agent has left; return the number of the next message, and when it last wrote.

        Raises OSError.
        """
        with self._lock:
            starts = sorted(int(name, 16) for name in os.listdir(self._folder) if len(name) == 16)
            number, written = 0, os.stat(self._folder).st_mtime
            for start, behind in zip(starts, [*starts[1:], None]):
                written = max(written, os.stat(self._path(start)).st_mtime)
                data = self._path(start).read_bytes()[: None if behind is None else behind - start]
                whole = 0
                while whole + RECORD.size <= len(data):
                    kind, found, length = RECORD.unpack_from(data, whole)
                    if whole + RECORD.size + length > len(data):
                        break
                    whole += RECORD.size + length
                    number = found + 1 if kind == HEARD else number
                self._files.append((start, whole))
                self._total.add(whole)
        return number, written

    def _path(self, start: int) -> Path:
        return self._folder / f"{start:016x}"

    @property
    def oldest(self) -> int:
        """The position of the oldest byte."""
        return self._files[0][0] if self._files else 0

    def append(self, records: list[bytes]) -> None:
        """Write *records*, at the expense of the oldest, and take from the list what is written. Raises OSError."""
        with self._lock:
            if self._is_removed:
                records.clear()
                return
            self._folder.mkdir(mode=0o700, exist_ok=True)
            while records:
                count = size = 0
                while count < len(records) and size < self.limit // _SEGMENTS:
                    size += len(records[count])
                    count += 1
                self._write(b"".join(records[:count]))
                del records[:count]

    def _write(self, data: bytes) -> None:
        start, size = self._files[-1] if self._files else (0, 0)
        if not self._files or size >= self.limit // _SEGMENTS:
            start, size = start + size, 0
            self._files.append((start, 0))
        try:
            # One that somebody has removed is not made again: what was in it would be zeros.
            flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | (0 if size else os.O_CREAT)
            descriptor = os.open(str(self._path(start)), flags, 0o600)
            try:
                os.ftruncate(descriptor, size)  # what a write that failed has left
                written = 0
                while written < len(data):
                    written += os.pwrite(descriptor, data[written:], size + written)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            if not size:
                self._files.pop()
                raise
            self._total.add(-size)
            self._files[-1] = (start + size, 0)
            self._write(data)
            return
        except OSError:
            if not size:
                self._files.pop()
            raise
        self._files[-1] = (start, size + len(data))
        fits = self._total.add(len(data))
        while len(self._files) > 1 and (sum(each for _, each in self._files) > self.limit or not fits):
            fits = self._drop_oldest()

    def _drop_oldest(self) -> bool:
        start, size = self._files.pop(0)
        with contextlib.suppress(OSError):
            self._path(start).unlink()
        return self._total.add(-size)

    def read(self, position: int, size: int) -> tuple[int, bytes]:
        """Return up to *size* bytes from *position* on, or from the oldest if that is later, and where they begin.

        Raises OSError.
        """
        with self._lock:
            for start, length in self._files:
                if position < start + length:
                    position = max(position, start)
                    try:
                        with open(self._path(start), "rb") as file:
                            file.seek(position - start)
                            data = file.read(min(size, start + length - position))
                    except FileNotFoundError:  # somebody has removed it: the numbers tell of what is missing
                        position = start + length
                        continue
                    if not data:
                        raise OSError(0, f"{self._path(start)} was cut")
                    return position, data
            return max(position, self.oldest), b""

    def find(self, needle: bytes) -> Optional[int]:
        """Return the position behind the message that has *needle* in its header, None if there is none. Raises OSError."""
        with self._lock:
            files = list(self._files)
        for start, length in reversed(files):
            try:
                data = self._path(start).read_bytes()[:length]
            except FileNotFoundError:  # it gave way meanwhile
                continue
            if (behind := behind_message(data, needle)) is not None:
                return start + behind
        return None

    def remove(self) -> None:
        """Remove all of it; what is still appended is dropped."""
        with self._lock:
            self._is_removed = True
            self._total.add(-sum(size for _, size in self._files))
            self._files = []
            shutil.rmtree(self._folder, ignore_errors=True)


def behind_message(records: bytes, needle: bytes) -> Optional[int]:
    """Return where the record ends whose message has *needle* in its header, None if there is none."""
    at = 0
    if needle not in records:
        return None
    while at + RECORD.size <= len(records):
        length: int = RECORD.unpack_from(records, at)[2]
        begin, at = at + RECORD.size, at + RECORD.size + length
        message = records[begin:at]
        if needle in message and needle in zmtp.header(message):
            return at
    return None


def records_of(chunks: list[bytes], first: bytes, limit: int) -> bytes:
    """Return, as records, up to *limit* bytes of a stream's messages, in *chunks*, before the one with the header *first*.

    Called in a thread.
    """
    data = b"".join(chunks)
    behind = data.find(first) if first else -1
    ends = []
    for begin, end in zmtp.find_messages(data):
        if 0 <= behind < end:
            break
        ends.append((begin, end))
    records: list[bytes] = []
    size = 0
    for begin, end in reversed(ends):
        size += RECORD.size + end - begin
        if size > limit:
            break
        records.append(RECORD.pack(BEFORE, 0, end - begin) + data[begin:end])
    return b"".join(reversed(records))


class Keeping:
    """The output of one kernel that is being kept. *of* is the gateway that had it, and its incarnation; None: unknown."""

    def __init__(self, kernel: Kernel, of: Optional[tuple[str, str]], limit: int, total: Total) -> None:
        self.kernel = kernel
        self.of = of
        self.adopted_at: Optional[float] = None
        self.number = 0  # of the next message
        # Not the folder of the one before, which is still being removed perhaps.
        folder = kernel.directory / f"{FOLDER}{time.time_ns():016x}" if of is not None else found_in(kernel)
        self._spool = Spool(folder or kernel.directory / FOLDER, limit, total)
        self._key = ("output", kernel.directory.parent)
        self._began = monotonic()
        self._subscribed_at: Optional[float] = None
        self._first = b""  # the header of message 0
        self._before: Optional[bytes] = None
        self._preparing: Optional[asyncio.Task[None]] = None
        self._pending: deque[bytes] = deque()
        self._pending_bytes = 0
        self._failure = ""
        self._is_failing = False  # what is pending could not be written, and waits for the next attempt
        self._try_again = asyncio.Event()
        self._is_closed = False
        # Also where the kernel says nothing: the next agent finds the folder, and so that there was one before.
        self._writing = asyncio.ensure_future(self._write())
        self._listening = asyncio.ensure_future(self._listen())

    # -- listening -----------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Listen to the kernel for as long as it runs, whatever ends one connection."""
        silent_since = None
        if self.of is None:
            silent_since = monotonic()
            with contextlib.suppress(OSError, ValueError):
                self.number, written = await aside(self._key, None, self._spool.restore)
                # The agent of before lived until then at least. Nothing else outlives it, and so this may be too much.
                silent_since -= max(time.time() - written, 0.0)
        pause = _FIRST_PAUSE
        while self.kernel.state == RUNNING:
            try:
                reader, writer = await asyncio.wait_for(self.kernel.connect("iopub"), _DEADLINE)
                try:
                    await asyncio.wait_for(zmtp.subscribe(reader, writer), _DEADLINE)
                    if silent_since is not None:
                        self._add(SILENCE, str(int(1000 * (monotonic() - silent_since))).encode())
                    self._subscribed_at = self._subscribed_at or monotonic()
                    pause, silent_since = _FIRST_PAUSE, None
                    await self._hear(reader)
                finally:
                    silent_since = silent_since or monotonic()
                    writer.transport.abort()
            except (OSError, ValueError, asyncio.TimeoutError) as error:
                self._note(f"it cannot be listened to: {error!r}")
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LAST_PAUSE)

    async def _hear(self, reader: Reader) -> None:
        """Take all that comes, as fast as it comes: who does not read has the kernel drop what it says."""
        framer = zmtp.Framer(min(LARGEST, self._spool.limit // 2))
        while data := await reader.read(CHUNK):
            for message in framer.feed(data):
                if message is not None:
                    if not self.number:
                        self._first = zmtp.header(message)
                    self._add(HEARD, message)
                self.number += 1
            await asyncio.sleep(0)  # a kernel that floods us must not hold up the others

    def _add(self, kind: int, message: bytes) -> None:
        record = RECORD.pack(kind, self.number, len(message)) + message
        self._pending.append(record)
        self._pending_bytes += len(record)
        self._keep_to_limit()
        if self._writing.done():
            self._writing = asyncio.ensure_future(self._write())

    def _keep_to_limit(self) -> None:
        """Drop the oldest of what waits for the disk where that is too much; the gap in the numbers tells of it."""
        while self._pending_bytes > PENDING and len(self._pending) > 1:  # a message may be larger by itself
            self._pending_bytes -= len(self._pending.popleft())

    async def _write(self) -> None:
        """Write what is pending, and try again what cannot be written: disks fill up, and threads run out, for a while."""
        pause = _FIRST_PAUSE
        while True:
            batch = list(self._pending)
            self._pending.clear()
            self._pending_bytes = 0
            try:
                await aside(self._key, None, self._spool.append, batch)
                self._is_failing, pause = False, _FIRST_PAUSE
            except OSError as error:
                self._note(f"it cannot be written: {error}")
                self._pending.extendleft(reversed(batch))
                self._pending_bytes += sum(map(len, batch))
                self._keep_to_limit()
                self._is_failing = bool(self._pending)
            if not self._pending or self._is_closed:
                return
            if self._is_failing:
                self._try_again.clear()
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._try_again.wait(), pause)
                pause = min(2 * pause, _LAST_PAUSE)

    def _note(self, what: str) -> None:
        if what != self._failure:
            self._failure = what
            print(f"output of kernel {self.kernel.id}: {what}", file=sys.stderr, flush=True)

    # -- taking --------------------------------------------------------------------------------------------------

    def set_limit(self, limit: int) -> None:
        """Keep up to *limit* bytes from now on."""
        self._spool.limit = limit

    def _has_settled(self) -> bool:
        """Return True if all that the kernel says is heard, or can't be."""
        if self.of is None:
            return True
        if self._subscribed_at is None:
            return monotonic() - self._began > _NEVER_SETTLED or self.kernel.state != RUNNING
        return monotonic() - self._subscribed_at > _SETTLING

    def prepare(self, streams: Streams) -> asyncio.Task[None]:
        """Take what the streams of before have, which are needed no more then; begun once it has settled."""
        if self._preparing is None or (self._preparing.done() and self._before is None):
            self._preparing = asyncio.ensure_future(self._prepare(streams))
        return self._preparing

    async def _prepare(self, streams: Streams) -> None:
        left = [stream.relay.flow.kept()[1] for stream in streams.left_of(self.kernel, "iopub")]
        longest = max(left, key=lambda chunks: sum(map(len, chunks)), default=[])
        with contextlib.suppress(OSError):  # of threads, of which there are too many: it is tried again
            # Without a deadline, since it has an end, and would be begun anew: no disk is looked at.
            self._before = await aside(
                ("records", self.kernel.directory), None, records_of, longest, self._first, self._spool.limit
            )
            streams.close_left(self.kernel, "iopub")

    def prepare_if_due(self, streams: Streams) -> None:
        """Take it before anybody asks for it, where streams hold memory for that; called each second."""
        if self._before is not None:
            streams.close_left(self.kernel, "iopub")  # of a later process: what came on them was heard here as well
        elif self._has_settled() and streams.left_of(self.kernel, "iopub"):
            self.prepare(streams)

    async def take(self, position: int, after: str, streams: Streams) -> OutputPart:
        """Return what there is from *position* on, or behind the message *after*; raises OSError, asyncio.TimeoutError."""
        if not self._has_settled():
            return OutputPart("", position, position, is_all=False)
        await asyncio.wait({self.prepare(streams)}, timeout=_DEADLINE)
        if self._before is None:
            return OutputPart("", position, position, is_all=False)
        is_after = False
        if after and not position:
            needle = json.dumps(after).encode()  # in quotes: kernels count, and 27 is in 271 as well
            behind: Optional[int] = await aside(self._key, _DEADLINE, self._spool.find, needle)
            if behind is not None:
                position, is_after = _AFTER + behind, True
            elif (behind := behind_message(self._before, needle)) is not None:
                position = behind
        if position < len(self._before):
            data = self._before[position : position + TakeOutput.PIECE]
            return _part(data, position, is_all=False)
        if self._is_failing:  # who waits for it is worth one more attempt
            self._try_again.set()
            await asyncio.wait({self._writing}, timeout=_RETRY)
        # What still cannot be written then is lost for who asks, and shows in the numbers.
        numbered, was_written = self.number, self._is_failing or (not self._pending and self._writing.done())
        asked = max(position - _AFTER, 0)
        start, data = await aside(self._key, _DEADLINE, self._spool.read, asked, TakeOutput.PIECE)
        return _part(data, _AFTER + start, is_all=not data and was_written, numbered=numbered, is_after=is_after)

    def close(self) -> None:
        """Listen no more, and remove what is kept; what is under way at a disk goes on by itself."""
        self._listening.cancel()
        self._is_closed = True
        self._try_again.set()
        if self._preparing is not None:
            self._preparing.cancel()
        removing = asyncio.ensure_future(aside(self._key, None, self._spool.remove))
        _removing.add(removing)
        removing.add_done_callback(_removing.discard)
        # Whatever it raises: the folder goes with the kernel's.
        removing.add_done_callback(lambda done: done.cancelled() or done.exception())


_removing: set[asyncio.Future[None]] = set()


def found_in(kernel: Kernel) -> Optional[Path]:
    """Return the folder of the spool that an earlier agent has left, the newest if there are more; None without one."""
    return max(kernel.directory.glob(FOLDER + "*"), default=None)


def _part(data: bytes, start: int, *, is_all: bool, numbered: int = 0, is_after: bool = False) -> OutputPart:
    return OutputPart(base64.b64encode(data).decode(), start, start + len(data), is_all, numbered, is_after)


class _Replies:
    """The replies of one kernel, as records, by the session of their client."""

    def __init__(self) -> None:
        self._sessions: dict[str, tuple[int, bytearray]] = {}  # the position of what follows, and that
        self._bytes = 0

    def add(self, session: str, message: bytes) -> None:
        """Keep a reply, if there is room."""
        if self._bytes + len(message) > REPLIES:
            print(f"no room for a reply of {len(message)} bytes", file=sys.stderr, flush=True)
            return
        self._sessions.setdefault(session, (0, bytearray()))[1].extend(RECORD.pack(REPLY, 0, len(message)) + message)
        self._bytes += RECORD.size + len(message)

    def take(self, session: str, position: int) -> OutputPart:
        """Forget what lies before *position*, and return what follows."""
        begin, data = self._sessions.get(session, (0, bytearray()))
        passed = min(max(position - begin, 0), len(data))
        del data[:passed]
        self._bytes -= passed
        if session in self._sessions:
            self._sessions[session] = (begin + passed, data)
        piece = bytes(data[: TakeOutput.PIECE])
        return _part(piece, begin + passed, is_all=len(piece) == len(data))


class KeptOutput:
    """All that is kept of an agent's kernels; owned by the agent, which calls `tick` each second."""

    def __init__(self, streams: Streams, notify: Notify) -> None:
        self._streams = streams
        streams.on_too_many = self._collect_and_tell
        self._notify = notify
        self._total = Total()
        self._keeping: dict[str, Keeping] = {}
        self._replies: dict[Kernel, _Replies] = {}

    def begin(self, kernel: Kernel, of: tuple[str, str], limit: int) -> None:
        """Keep what *kernel* says: the last gateway that answered for it, the process *of*, has gone."""
        keeping = self._keeping.get(kernel.id)
        if keeping is not None and keeping.kernel is kernel:
            keeping.adopted_at = None  # who had adopted it has gone as well, and may not have taken anything
        elif limit and kernel.state == RUNNING and kernel.connection and keeping is None:
            self._keeping[kernel.id] = Keeping(kernel, of, limit, self._total)

    def hand_over(self, kernel: Kernel, of: tuple[str, str], limit: int) -> None:
        """Keep what *kernel* says for another gateway, which takes it over from the process *of*, whether that is there or not.

        `adopt` by the other one follows.
        """
        keeping = self._keeping.get(kernel.id)
        self.begin(kernel, of, limit)
        if keeping is not None and keeping.kernel is kernel and keeping.of is not None:
            # Whose it was before has missed what the one in between got, should it take the kernel over again.
            keeping.of = of

    def find(self, kernel: Kernel) -> None:
        """Go on keeping what an earlier agent kept of *kernel*, if it did."""
        if kernel.state == RUNNING and kernel.id not in self._keeping and found_in(kernel) is not None:
            self._keeping[kernel.id] = Keeping(kernel, None, DEFAULT_LIMIT, self._total)

    def is_keeping(self, kernel: Kernel, channel: str) -> bool:
        """Return True if what *kernel* says on *channel* is kept for its gateway's next process."""
        keeping = self._keeping.get(kernel.id)
        return (keeping is not None and keeping.kernel is kernel) or (channel == "shell" and kernel in self._replies)

    def adopt(self, kernel: Kernel, by: tuple[str, str], limit: int) -> None:
        """A gateway's process answers for *kernel*: the one of before has lost nothing, another one takes what is kept."""
        keeping = self._keeping.get(kernel.id)
        if keeping is None:
            return
        if not limit:
            self.forget(kernel)
            self._streams.close_left(kernel, "shell")
            return
        if keeping.of == by:
            # Streams of a process before it stay: the reply to a cell that it had sent may still come on them.
            self._streams.give_back(kernel, by)
            self.forget(kernel)
            return
        keeping.set_limit(limit)
        keeping.adopted_at = keeping.adopted_at or monotonic()
        if keeping.of is not None:
            self._streams.leave(kernel, keeping.of)
        self._collect(kernel)

    async def take(self, kernel: Kernel, session: str, position: int, after: str) -> OutputPart:
        """Return what is kept of *kernel* from *position* on; of its replies to *session*, if one is named.

        Raises OSError, asyncio.TimeoutError.
        """
        if session:
            self._collect(kernel)
            replies = self._replies.get(kernel)
            return replies.take(session, position) if replies else _part(b"", position, is_all=True)
        keeping = self._keeping.get(kernel.id)
        if keeping is None or keeping.kernel is not kernel:
            return _part(b"", position, is_all=True)
        if keeping.adopted_at is not None:
            keeping.adopted_at = monotonic()  # not while somebody takes it, however slowly
        return await keeping.take(position, after, self._streams)

    def forget(self, kernel: Kernel) -> None:
        """What was kept of *kernel*'s output has been taken, or is wanted by nobody. Replies may still come."""
        keeping = self._keeping.get(kernel.id)
        if keeping is not None and keeping.kernel is kernel:
            del self._keeping[kernel.id]
            keeping.close()
            self._streams.close_left(kernel, "iopub")

    def drop(self, kernel: Kernel) -> None:
        """*kernel* has ended, and is forgotten."""
        self.forget(kernel)
        self._replies.pop(kernel, None)

    def _collect(self, kernel: Kernel) -> bool:
        """Take the replies that have come on streams which were left; return True if there are any."""
        came = False
        for stream in self._streams.left_of(kernel, "shell"):
            begin, chunks = stream.relay.flow.kept()
            if begin + sum(map(len, chunks)) <= stream.collected:
                continue
            data, at = b"".join(chunks), max(stream.collected - begin, 0)
            replies = self._replies.setdefault(kernel, _Replies())
            for start, end in zmtp.find_messages(data, at):
                message, at = data[start:end], end
                session = _session_of(zmtp.parent(message))
                if session:
                    replies.add(session, message)
                    came = True
            stream.collected = begin + at
        return came

    def _collect_and_tell(self, kernel: Kernel) -> None:
        if self._collect(kernel):
            self._notify(kernel, Replied(kernel.id, kernel.attempt))

    def tick(self) -> None:
        """Collect replies and tell of them, and forget what nobody came for."""
        for kernel in self._streams.kernels_with_left():
            self._collect_and_tell(kernel)
        now = monotonic()
        for keeping in list(self._keeping.values()):
            keeping.prepare_if_due(self._streams)
            if keeping.adopted_at is not None and now - keeping.adopted_at > ADOPTED_KEPT:
                self.forget(keeping.kernel)


def _session_of(header: bytes) -> str:
    """Return the session in the header of a request, empty if it has none."""
    try:
        session = json.loads(header[: 64 * 1024])["session"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return session if isinstance(session, str) and len(session) <= 256 else ""

"""Kernels for a login that has what the agent's own has not: other groups, other limits.

Both are given to a login by its system, and no process can take them afterwards. So the boot of a login whose groups or limits
are not those of the agent leaves a process behind, the nursery, which starts kernels for the agent as children of its own. It
lasts as long as its connection to the agent, which closes it once a newer login counts and its kernels have ended.

    agent    ── birth ──►  nursery     argv, environment, …; answered with the process, or why there is none
             ◄── exit ──               the code, when the process ends; it stays a zombie until it is reaped
             ── reap ──►               its number may be given to others from now on

Rejected: an agent for each login. A gateway would have to know which of them has which kernel, and counts would be theirs apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Awaitable, Callable, Optional, Protocol, Tuple, Union

from ..wire import (
    MAX_MESSAGE,
    LocalWriter,
    Malformed,
    Message,
    Reader,
    Wire,
    checked,
    encode,
    flag,
    integer,
    items,
    number,
    optional,
    read_message,
    table,
    text,
)
from . import processes
from .processes import end_group
from .spawning import StartError, spawn_aside

_WAY = 0.5
"""Seconds, of those that a start has, for the way to the nursery and back."""
_LAST_BIRTHS = 5.0
"""Seconds that a nursery whose agent has gone waits for what is being executed, to end it."""
_VARIABLES = 100_000
_GONE = "what starts kernels for the newest login has ended"
_pid = integer(1, 1 << 31)


@dataclass(eq=False, repr=False)
class NurseryHello(Wire):
    """Opens a nursery's connection to its agent; *standing* says what its login has."""

    standing: str = checked(text(64))


@dataclass(eq=False, repr=False)
class Birth(Wire):
    """What the agent wants to have started; see `spawning.spawn`."""

    id: int = checked(integer(0, 1 << 62))
    argv: list[str] = checked(items(text(MAX_MESSAGE), least=1))
    env: dict[str, str] = checked(table(text(MAX_MESSAGE), _VARIABLES))
    cwd: Optional[str] = checked(optional(text()))
    umask: int = checked(integer(-1, 0o777))
    log: str = checked(text())
    open_files: int = checked(integer(-1, 1 << 62))
    seconds: float = checked(number(0, 1e6))


@dataclass(eq=False, repr=False)
class Born(Wire):
    """The nursery's answer: a process, or an error with whose fault it is."""

    id: int = checked(integer(0, 1 << 62))
    pid: Optional[int] = checked(optional(_pid), None)
    warning: str = checked(text(), "")
    error: str = checked(text(), "")
    host_fault: bool = checked(flag, False)
    remedy: str = checked(text(), "")


@dataclass(eq=False, repr=False)
class Died(Wire):
    """A process of the nursery has ended."""

    died: int = checked(_pid)
    code: Optional[int] = checked(optional(integer(-(1 << 31), 1 << 31)))


class Foster:
    """A process that a nursery started: what `Kernel` needs of subprocess.Popen."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self.pid = pid
        self.code: Optional[int] = None
        self.over = asyncio.Event()
        """The nursery has said how it ended, or has gone."""
        self.nursery: Optional[Nursery] = nursery

    async def exit_code(self, started: str) -> Optional[int]:
        """Wait for its end; return its exit code, None where that can't be known. It is not reaped by that."""
        await self.over.wait()
        if self.nursery is None and self.code is None:
            return await processes.exit_code(self.pid, started, is_child=False)
        return self.code

    def poll(self) -> Optional[int]:
        """Return the exit code if it has ended, which is reaped by that; of one whose nursery has gone, 0."""
        if not self.over.is_set():
            return None
        if self.nursery is not None:
            self.nursery.reap(self)
            self.nursery = None
        return self.code or 0


class Others(Protocol):
    """A kernel's process that is another's child; see `Foster`."""

    pid: int

    async def exit_code(self, started: str) -> Optional[int]:
        """Wait for its end, and return its code."""

    def poll(self) -> Optional[int]:
        """Return the code if it has ended, and reap it."""


Spawned = Union["subprocess.Popen[bytes]", Others]
"""A kernel's process, whoever's child it is."""
Spawner = Callable[..., Awaitable[Tuple[Spawned, str]]]
"""`spawn_aside`, or what does as it does."""


class Nursery:
    """The agent's end of a nursery's connection; owned by `Nurseries`."""

    def __init__(self, standing: str, reader: Reader, writer: LocalWriter) -> None:
        self.standing = standing
        self.children: dict[int, Foster] = {}
        self._reader, self._writer = reader, writer
        self._waiting: dict[int, asyncio.Future[Born]] = {}
        self._number = 0
        self.closed = False

    @property
    def is_needed(self) -> bool:
        """Whether it has a process, or is about to."""
        return bool(self.children or self._waiting)

    async def serve(self) -> None:
        """Hear it until its connection ends; then its processes are strangers. Raises OSError and BrokenFraming."""
        try:
            while (message := await read_message(self._reader)) is not None:
                with contextlib.suppress(Malformed):
                    self._hear(message)
        finally:
            self.close()
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(StartError(_GONE, host_fault=True))
            for child in self.children.values():
                child.nursery = None
                child.over.set()

    def _hear(self, message: Message) -> None:
        if "died" in message:
            died = Died.read(message)
            child = self.children.get(died.died)
            if child is not None:
                child.code = died.code
                child.over.set()
            return
        born = Born.read(message)
        future = self._waiting.get(born.id)
        if future is not None and not future.done():
            if born.pid is not None:  # now: its end may be the next message
                self.children[born.pid] = Foster(self, born.pid)
            future.set_result(born)
        elif born.pid is not None:
            self._tell({"end": born.pid})

    async def spawn(
        self,
        argv: list[str],
        environment: dict[bytes, bytes],
        cwd: Optional[str],
        umask: int,
        log: Path,
        open_files: int,
        seconds: float,
    ) -> tuple[Foster, str]:
        """Do as `spawn_aside`; raises StartError. One that does not answer in time is given up, and so are its starts."""
        if self.closed:
            raise StartError(_GONE, host_fault=True)
        self._number += 1
        number, future = self._number, asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        env = {_text(name): _text(value) for name, value in environment.items()}
        birth = {"id": number, "argv": argv, "env": env, "cwd": cwd, "umask": umask, "log": str(log)}
        self._tell({**birth, "open_files": open_files, "seconds": max(seconds - _WAY, _WAY)})
        try:
            born: Born = await asyncio.wait_for(future, seconds)
        except asyncio.TimeoutError:
            self.close()
            raise StartError("what starts kernels for the newest login does not answer", host_fault=True) from None
        finally:
            del self._waiting[number]
        if born.pid is None:
            raise StartError(born.error, host_fault=born.host_fault, remedy=born.remedy)
        return self.children[born.pid], born.warning

    def reap(self, child: Foster) -> None:
        """Let the system have the number of *child*, which has ended."""
        self.children.pop(child.pid, None)
        self._tell({"reap": child.pid})

    def close(self) -> None:
        """Have it end; what is queued for one that stands still is dropped."""
        self.closed = True
        self._writer.transport.abort()

    def _tell(self, message: Message) -> None:
        if self._writer.transport.get_write_buffer_size() > MAX_MESSAGE:
            self.close()
        elif not self.closed:
            self._writer.write(encode(message))


class Nurseries:
    """The nurseries of an agent, by what their logins have; owned by the agent, whose own login has *own*."""

    MOST = 4
    """Nurseries at once; of one more, the oldest goes, and its kernels' exit codes with it."""

    def __init__(self, own: str) -> None:
        self._own = self._newest = own
        self._missed = ""  # the standing whose nursery was missed last; told once
        self._known: dict[str, Nursery] = {}

    def has(self, standing: str) -> bool:
        """Note that the newest login has *standing*; return True if kernels can be started so."""
        self._newest = standing or self._own
        return self._newest == self._own or standing in self._known

    @property
    def is_own(self) -> bool:
        """Whether kernels start with what the agent's own login has."""
        return self._newest == self._own

    async def spawn(self, *arguments: Any, **named: Any) -> tuple[Spawned, str]:
        """Do as `spawn_aside`, by the newest login's nursery where it takes one; raises StartError."""
        nursery = None if self._newest == self._own else self._known.get(self._newest)
        if nursery is not None and not nursery.closed:
            return await nursery.spawn(*arguments, **named)
        if self._newest not in (self._own, self._missed):
            self._missed = self._newest
            what = "the newest login's nursery has ended: kernels start with an earlier login's groups and limits"
            print(what, file=sys.stderr, flush=True)
        return await spawn_aside(*arguments, **named)

    async def serve(self, hello: NurseryHello, reader: Reader, writer: LocalWriter) -> None:
        """Have kernels start there for as long as its connection lasts; raises OSError and BrokenFraming."""
        if hello.standing in self._known:  # two logins at once
            writer.close()
            return
        self._known[hello.standing] = nursery = Nursery(hello.standing, reader, writer)
        while len(self._known) > self.MOST:
            self._known.pop(next(iter(self._known))).close()
        try:
            await nursery.serve()
        finally:
            if self._known.get(hello.standing) is nursery:
                del self._known[hello.standing]

    def tick(self) -> None:
        """Let those go that no newer start needs and whose kernels have ended; called each second."""
        for standing, nursery in list(self._known.items()):
            if standing != self._newest and not nursery.is_needed:
                del self._known[standing]
                nursery.close()


# -- the nursery's own end ---------------------------------------------------------------------------------------


class _Ward:
    """The processes that a nursery has started."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._unwanted: set[int] = set()
        self._over = False
        self._births: set[asyncio.Task[None]] = set()  # what is being executed
        self._watches: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until the agent closes the connection, or has ended; processes that it knows of outlive it."""
        try:
            while (message := await read_message(self._reader)) is not None:
                with contextlib.suppress(Malformed):
                    self._do(message)
        finally:
            self._over = True
            if self._births:
                await asyncio.wait(set(self._births), timeout=_LAST_BIRTHS)

    def _do(self, message: Message) -> None:
        """Do what the agent says; raises Malformed."""
        if "reap" in message:
            process = self._processes.pop(_pid(message["reap"]), None)
            if process is not None:
                process.poll()
        elif "end" in message:
            pid = _pid(message["end"])
            if pid in self._processes:
                self._unwanted.add(pid)
                end_group(pid)
        else:
            try:
                birth = Birth.read(message)
            except Malformed as error:
                self._writer.write(encode({"id": message.get("id"), "error": str(error)}))
                return
            self._births.add(task := asyncio.ensure_future(self._start(birth)))
            task.add_done_callback(self._births.discard)

    async def _start(self, birth: Birth) -> None:
        environment = {_bytes(name): _bytes(value) for name, value in birth.env.items()}
        try:
            process, warning = await spawn_aside(
                birth.argv, environment, birth.cwd, birth.umask, Path(birth.log), birth.open_files, birth.seconds
            )
        except StartError as error:
            why = {"error": str(error), "host_fault": error.host_fault, "remedy": error.remedy}
            self._writer.write(encode({"id": birth.id, **why}))
            return
        if self._over:  # no one will hear of it
            end_group(process.pid)
            return
        self._processes[process.pid] = process
        self._writer.write(encode({"id": birth.id, "pid": process.pid, "warning": warning}))
        self._watches.add(task := asyncio.ensure_future(self._watch(process)))
        task.add_done_callback(self._watches.discard)

    async def _watch(self, process: subprocess.Popen[bytes]) -> None:
        """Tell how the process ends. It is reaped when the agent says so, or at once if nobody wants it."""
        started = processes.start_time(process.pid) or ""
        code = await processes.exit_code(process.pid, started, is_child=True)
        if process.pid in self._unwanted:
            self._unwanted.discard(process.pid)
            self._processes.pop(process.pid).poll()
        else:
            self._writer.write(encode({"died": process.pid, "code": code}))


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def _bytes(value: str) -> bytes:
    return value.encode("utf-8", "surrogateescape")


def main(path: str, standing: str) -> None:
    """Be the nursery of the agent at *path*; called by the archive's `__main__`, started by `boot`."""
    processes.reset_signals()
    os.umask(0o077)
    os.chdir("/")

    async def serve() -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(encode({"type": "nursery", "standing": standing}))
        try:
            await _Ward(reader, writer).run()
        except (OSError, ValueError) as error:
            print(f"nursery: {error!r}", file=sys.stderr, flush=True)
        finally:
            # Not by returning: Python would wait for a thread, and one may hang on a disk for good.
            os._exit(0)

    asyncio.run(serve())

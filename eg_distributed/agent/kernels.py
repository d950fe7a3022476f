"""A kernel on its node: started from an argv array and an environment dictionary, watched, signalled, recorded on disk."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import AbstractSet, Any, Callable, Optional

from ..protocol import CHANNELS, Answered, Description, Exited, KernelEvent, LogEntry, LogPart, Ready, Start
from ..wire import LocalWriter, Reader
from . import impersonation, processes
from .aside import aside
from .disk import Disk
from .endpoints import (
    Handles,
    accepts,
    choose_endpoints,
    connect,
    is_address_taken,
    listening_process,
    write_connection_file,
)
from .forks import Fork
from .kept_logs import KeptLog, keep
from .launcher_answer import ResponseListener, owners, remove_connection_files
from .launcher_files import Shipment
from .logs import append, cap, log_size, part, tail
from .nursery import Spawned, Spawner
from .private import write_private
from .records import LONGEST, RECORD, KernelRecord
from .spawning import LOG_REMEDY, StartError, fill, kernel_environment, spawn_aside, step
from .wrappers import Family

LOG_CAP = 10 * 1024 * 1024
"""Bytes that a kernel's log may have; past it, the older half goes."""
START_DEADLINE = 4.0
"""Seconds for all that a start does on disks and asks directories of users; less than gateways wait for its answer."""
LOG_DEADLINE = 3.0
"""Seconds for one look at a log."""
SETTLE_DEADLINE = 0.5
"""Seconds that what depends on a record waits for the disk to have it: one that hangs must not hold up what is well."""
SETTLING = 0.05
"""Seconds that a kernel stays, once all its sockets accept, before it counts as ready: some open them and then give up."""
_LEAST = 0.5  # seconds that a step of a start has in any case
TAKEN_PORT_CHECK = 1.0
"""Seconds between two looks at whether a kernel that is not ready yet complains of a port that another program has."""
TAKEN_PORT_PATIENCE = 2.0
"""Seconds that such a kernel has to help itself, before it is started on other ports."""
WRAPPER_GRACE = 5.0
"""Seconds that a wrapper may run on after its kernel has ended, to tidy up and to say how that ended."""
LISTENER_DEADLINE = 2.0
"""Seconds for a launcher's listener to accept a connection."""
TAIL = 4096
"""Bytes of the log's end that go with an exit."""
STARTING, RUNNING, EXITED = "starting", "running", "exited"
ARGV_SHOWN = 4096
"""Characters of a kernel's argv that its description has: `kernels` lists it, and nothing runs it again."""
Notify = Callable[["Kernel", KernelEvent], None]


class Kernel:
    """One kernel of this node; created by the agent on a start request, or from its record after the agent restarted.

    *directory* (0700) holds its record, connection file, log and sockets; *disk*, the agent's, writes them. *notify* takes the
    kernel and its event.
    """

    def __init__(self, kernel_id: str, directory: Path, notify: Notify, disk: Optional[Disk] = None) -> None:
        self.id = kernel_id
        self.directory = directory
        self.state = STARTING
        self.exit_code: Optional[int] = None
        self.pid = 0
        self.started = ""
        self.start_time = time.time()
        self.end_time = 0.0
        self.owner = ""
        self.holder = (
            "",
            "",
        )  # the process that holds the lease: its owner and an incarnation; empty: it is not known which
        self.lease = 0  # see leases.py
        self.host_set = ""
        self.attempt = ""
        self.argv: list[str] = []
        self.transport = "ipc"
        self.temporary = "/tmp"  # where its launcher puts temporary files
        self.connection: dict[str, Any] = {}
        self.family = Family(0, "")
        self.interrupt_pid = 0  # what a launcher named
        self.interrupt_started = ""
        self.listener_port = 0  # where the launcher of another user's kernel takes signals for it
        self.interrupt_signal = 0
        self.shipment = Shipment(directory)
        self.discarded = False
        self.log = directory / "kernel.log"
        self.keep_log = False
        self.warning = ""  # what the user who started it should know
        self.orphan_timeout = 0.0
        self.exited = asyncio.Event()
        self._learned = asyncio.Event()  # set once it is known which process is the kernel
        self._log_start = 0
        self._log_base = 0  # bytes of the log that its cap has cost so far
        self.has_log = False
        """Whether its log is to be kept below its cap."""
        self._log_lock = asyncio.Lock()  # nothing is read while the log's older half is being dropped
        self._notify = notify
        self._disk = disk or Disk()
        self._process: Optional[Spawned] = None
        self._spawner: Spawner = spawn_aside
        self.response = ""  # what its launcher answered, until the gateway has made endpoints of it
        self._users = impersonation.listeners("")  # who may be the kernel behind a launcher
        self._listener: Optional[ResponseListener] = None
        self._unwanted = False
        self._removing = False  # its files are about to go, and no other is written
        self._handles = Handles()
        self._held: list[socket.socket] = []  # its ports, until it has them itself
        self._start_again: Optional[Callable[[], Any]] = None  # on other ports; until it is ready, and once
        self._stopping = False
        self._leftovers = False  # something of its process group is being ended
        self._tasks: set[asyncio.Task[None]] = set()

    # -- starting ------------------------------------------------------------------------------------------------

    @property
    def _connection_file(self) -> str:
        return str(self.directory / "connection.json")

    async def start(
        self,
        asked: Start,
        taken: Callable[[], AbstractSet[int]],
        *,
        spec_folder: Optional[Path] = None,
        login: Optional[dict[str, str]] = None,
        umask: int = -1,
        open_files: int = -1,
        waited: float = 0.0,
        spawner: Spawner = spawn_aside,
    ) -> None:
        """Start the process that *asked* describes; readiness or exit is told by `notify` later.

        *taken* returns the ports that other kernels were given, bound by now or not. *spec_folder* is what `{resource_dir}`
        stands for. *login* (its environment), *umask* and *open_files* (the soft limit) are the login's; without, the agent's.
        *waited* are seconds that the request has taken so far, of those that its gateway waits. *spawner* executes it.

        Raises StartError if nothing could be executed; then nothing is left behind.
        """
        self.owner, self.host_set, self.attempt = asked.owner, asked.host_set, asked.attempt
        self.transport = asked.transport
        self.orphan_timeout = asked.orphan_timeout
        self._spawner = spawner
        loop = asyncio.get_running_loop()
        until = loop.time() + START_DEADLINE - waited
        try:
            environment = kernel_environment(asked.spec_env, asked.env, login)
            temporary = os.fsdecode(environment.get(b"TMPDIR", b""))
            if 0 < len(temporary) <= LONGEST:  # a longer one is no folder, and would make the record malformed
                self.temporary = temporary
            await self._check_user(asked, environment)
            with step("choose what the kernel listens on"):
                substitutions = await self._substitutions(asked, taken())
            self.interrupt_signal = _signal_number(asked.interrupt_signal)

            def lay_out() -> None:
                self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                self.shipment.unpack(asked.files)
                self._write_connection_file()
                substitutions.update(self.shipment.use(spec_folder))
                self.shipment.prepare([fill(word, substitutions) for word in asked.on_exit], environment)

            await self._in_folder(lay_out, until)
            self.argv = [fill(argument, substitutions) for argument in asked.argv]
            await self._open_log(asked.log_dir, until)
            await self._spawn(environment, asked.cwd, umask, open_files, max(until - loop.time(), _LEAST))

            async def start_again() -> None:
                with step("choose what the kernel listens on"):
                    self.connection, self._held = choose_endpoints(self.directory, asked, taken())
                await self._in_folder(self._write_connection_file, loop.time() + START_DEADLINE)
                # Not held this time: what complains may be a kernel that cannot share a port even with who does not listen.
                self._release_ports()
                await self._spawn(environment, asked.cwd, umask, open_files, START_DEADLINE)

            if self._held or self.is_forked:
                self._start_again = start_again
        except BaseException as error:  # cancellation included
            self._fail(str(error) or "the start was given up")
            raise
        self.save()
        self.watch()

    async def _check_user(self, asked: Start, environment: dict[bytes, bytes]) -> None:
        """Raise StartError if the kernel is to be another user's, and can't be."""
        user = impersonation.user_of(asked)
        if not user:
            return
        check = impersonation.check
        try:
            self._users = await aside(("user", user), impersonation.DEADLINE, check, user, asked, environment)
        except asyncio.TimeoutError:
            raise StartError(
                f"whether a kernel may run as {user} was not known within {impersonation.DEADLINE:g} s: sudo, or what the node "
                "asks for its users, does not answer",
                remedy="see how long `sudo -l` and `getent passwd` take on that host",
            ) from None
        except OSError as error:
            raise StartError(f"cannot ask whether a kernel may run as {user}: {error}", host_fault=True) from error

    async def _substitutions(self, asked: Start, taken: AbstractSet[int]) -> dict[str, str]:
        """Choose endpoints, and hold their ports until the kernel is ready; return what argv wants filled in."""
        given = {"connection_file": self._connection_file, "launcher": str(self.shipment.folder)}
        given["python"] = sys.executable or "python3"  # for launchers: new enough, which the node's python3 may not be
        if self.transport == "launcher":
            self._listener = ResponseListener(self._take_response, self._users)
            return {**given, "response_address": await self._listener.open()}
        self.connection, self._held = choose_endpoints(self.directory, asked, taken)
        return given

    async def _in_folder(self, job: Callable[[], Any], until: float) -> None:
        """Have the agent's disk do *job*, which makes files of this kernel; raises StartError if that is not done by *until*."""
        what = f"write the kernel's files into {self.directory}"
        try:
            with step(what):
                await self._disk.done(max(until - asyncio.get_running_loop().time(), _LEAST), job)
        except asyncio.TimeoutError:
            raise StartError(f"cannot {what}: the disk does not answer", host_fault=True) from None

    def _write_connection_file(self) -> None:
        """Write what the kernel listens on to where it reads that; a launcher makes such a file itself."""
        if self.connection and self.transport != "launcher":
            write_connection_file(self.directory, self.connection)

    def _release_ports(self) -> None:
        """Let the ports go that were held for the kernel."""
        for port in self._held:
            port.close()
        self._held = []

    def _take_response(self, payload: str) -> None:
        """Hand a launcher's answer on. It answers once, so it is kept for a gateway that is cut off just now."""
        self.response = payload
        self._notify(self, Answered(self.id, self.attempt, payload))

    def _fail(self, why: str) -> None:
        """Leave nothing of a start that failed but *why*, as its log, nor anybody who waits for the kernel's end."""
        self.state, self.end_time = EXITED, time.time()
        self._release_ports()
        self.exited.set()
        # Our own folder, whatever the operator's: that may be what failed, or hang.
        self.log, self.keep_log, self._log_start = self.directory / "kernel.log", False, 0
        text = f"not started: {why}\n".encode("utf-8", "replace")
        self._disk.do(functools.partial(write_private, self.log, text))
        self.discard()

    async def _open_log(self, log_dir: Optional[str], until: float) -> None:
        if log_dir:
            self.keep_log = True  # an operator who names a folder wants to find logs there afterwards
            self.log = Path(os.path.expanduser(log_dir)) / f"kernel-{self.id}.log"
        try:
            with step(f"make the folder of the kernel's log, {self.log.parent}", host_fault=False, remedy=LOG_REMEDY):
                remaining = max(until - asyncio.get_running_loop().time(), _LEAST)
                self._log_start = await asyncio.wait_for(self._on_disk(log_size, self.log), remaining)
        except asyncio.TimeoutError:
            text = f"the folder of its log, {self.log.parent}, does not answer"
            raise StartError(text, host_fault=True) from None

    async def _spawn(
        self, environment: dict[bytes, bytes], cwd: Optional[str], umask: int, open_files: int, seconds: float
    ) -> None:
        process, self.warning = await self._spawner(
            self.argv, environment, cwd, umask, self.log, open_files, seconds=seconds
        )
        self._process, self.pid = process, process.pid
        # None only if it has ended already; then there is nothing to mix it up with.
        self.started = processes.start_time(self.pid) or "ended"
        self.family = Family(self.pid, self.started)

    @property
    def is_starting(self) -> bool:
        """Whether it is neither ready nor ended."""
        return self.state == STARTING

    @property
    def is_forked(self) -> bool:
        """Whether its process was forked from a template."""
        return isinstance(self._process, Fork)

    # -- watching ------------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Begin to watch for readiness, exit, and the log's size; called once the process exists.

        Of one that ended while no agent watched, only what is to follow its end is left to do.
        """
        if self.state == EXITED:
            self._own(self._finish_late())
            return
        self._own(self._watch_exit())
        self.has_log = True
        self._own(self.cap_log())
        if self.family.kernel is not None:
            self._learned.set()
        if self.state == RUNNING:
            self._disk.do(self._take_handles)
        if self.state == STARTING and self.connection:
            self._own(self._watch_ready())
        elif self.state == RUNNING and self.family.kernel is None:  # a record of an older release
            self._own(self._learn())

    async def _learn(self) -> None:
        """Learn which process is the kernel, once it listens. A launcher's kernel is the one that the launcher named."""
        if self.transport != "launcher":
            family = self.family
            listening = await processes.in_thread(listening_process, self.connection, self.pid)
            await processes.in_thread(family.learn, listening, self._connection_file, reads_lines=True)
            if family is self.family:  # else it has been started again meanwhile
                self.save()
                self._learned.set()

    def _own(self, coroutine: Any) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def set_connection(self, info: dict[str, Any], pid: int) -> None:
        """Take what a launcher answered, decrypted by the gateway: endpoints, and the *pid* to interrupt (0: unknown)."""
        if info.get("transport") != "ipc":
            info["ip"] = "127.0.0.1"  # whatever a launcher says: its kernel is on this node, and binds 0.0.0.0
        self.connection, self.response = info, ""
        started = processes.start_time(pid) if pid > 0 else None
        if started:
            self.interrupt_pid, self.interrupt_started = pid, started
        port = int(info.get("comm_port") or 0)
        # Not asked of `started`: /proc may hide others' processes.
        if port and pid > 0 and not processes.may_signal(pid):
            self.listener_port = port
        self._stop_listening()
        self.save()
        if self.state == STARTING:
            self._own(self._watch_ready())
            if port != self.listener_port:
                self._own(self._tell_listener(port, "shutdown", 1))

    async def _tell_listener(self, port: int, what: str, value: int) -> None:
        """Ask a launcher's listener for something, as Enterprise Gateway does: to signal its kernel ("signum"), or to end.

        It is ended once we know the kernel's process, unless that is another user's: whoever reaches the *port* could signal the
        kernel by it, and we signal from here. And a launcher whose kernel has ended, or failed to start, waits for its listener,
        which nobody else would end.
        """
        with contextlib.suppress(OSError, asyncio.TimeoutError):  # it has ended already, or hangs
            _, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), LISTENER_DEADLINE)
            writer.write(json.dumps({what: value}).encode())
            writer.close()

    async def connect(self, channel: str) -> tuple[Reader, LocalWriter]:
        """Connect to *channel*; raises OSError."""
        return await connect(self.connection, channel, self._handles)

    def _take_handles(self) -> None:
        """See to it that the kernel can be connected to also where the names of its sockets are gone."""
        self._handles.take(self.connection)

    async def _watch_ready(self) -> None:
        """Push `ready` as soon as all five sockets accept; a process on this machine is asked, so it is asked often."""
        family = self.family
        waiting = list(CHANNELS)
        pause = 0.002
        patience = _Patience(self)
        while waiting and self.state == STARTING and family is self.family:
            if accepts(self.connection, waiting[0]):
                waiting.pop(0)
                if not waiting:
                    if not (self.is_forked and self.transport == "ipc"):  # that one has nothing to give up for
                        await asyncio.sleep(SETTLING)
                    waiting = [channel for channel in CHANNELS if not accepts(self.connection, channel)]
            else:
                await asyncio.sleep(pause)
                pause = min(pause * 1.2, 0.05)
                if self._start_again is not None and await patience.is_over(len(waiting)):
                    self.send_signal(signal.SIGKILL)  # what watches its exit starts it again
        if family is not self.family:
            return
        if self.state != STARTING:
            return
        if await self._is_anothers():
            if family is self.family and self.state == STARTING:
                self._refuse()
            return
        await self._learn()
        if self.exited.is_set() or family is not self.family:
            return
        self.state = RUNNING
        self._start_again = None
        self._release_ports()
        self.save()
        self._disk.do(self._take_handles)
        await self._disk.settle(SETTLE_DEADLINE)  # an agent that is killed now leaves the next one a kernel that runs
        if self.state == RUNNING:
            self._notify(self, Ready(self.id, self.attempt, self.pid))

    async def _is_anothers(self) -> bool:
        """Return True if another user listens where the kernel should: cells, with its key's signature, would go there."""
        if self.transport == "ipc":  # in a folder that nobody else may enter
            return False
        found: set[int] = await processes.in_thread(owners, self.connection)
        if self.transport == "tcp":
            # We chose the ports. One on which no listener is seen, though it accepts, is led elsewhere by the system itself, to a
            # container for example, which no other user can have it do.
            found.discard(-1)
        return not found <= self._users

    def _refuse(self) -> None:
        """End a start at whose ports another user listens; on ports that we chose, it is begun again on others."""
        said = "refused: what answered for this kernel's launcher listens as another user\n"
        if self.transport == "tcp":
            said = "refused: another user listens on a port of this kernel: address already in use\n"
        self._own(self._note(said))
        self.send_signal(signal.SIGKILL)

    async def _note(self, said: str) -> None:
        """Append to the kernel's log; what can't be written there is lost."""
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            await self._on_disk(append, self.log, said.encode())

    async def _watch_exit(self) -> None:
        code = await self._ended()
        # Now, while the numbers of its groups are certainly theirs.
        rest = await processes.in_thread(self.family.rest)
        if await self._started_again(rest):
            return
        self.state, self.exit_code, self.end_time = EXITED, code, time.time()
        self._release_ports()
        self._handles.close()
        self._leftovers = bool(rest)
        self._stop_listening()
        if self.listener_port:
            self._own(self._tell_listener(self.listener_port, "shutdown", 1))
        self.save()
        self.exited.set()
        self._notify(self, Exited(self.id, self.attempt, exit_code=code, log=await self.read_tail()))
        await self._end_leftovers(rest)
        await self._finish()

    async def _started_again(self, rest: list[processes.Process]) -> bool:
        """Start a kernel again that ended because another program had one of its ports; return True if it was started.

        Between the choice of a port and the kernel's own listening, what else runs on the node can take it. One that was forked
        is started again for whatever it ended: if it was not for the fork, it ends again.
        """
        if self.state != STARTING or self._start_again is None or self._stopping:
            return False
        start_again, self._start_again = self._start_again, None
        forked = self._process if isinstance(self._process, Fork) else None
        if forked is None and not is_address_taken(await self.read_tail()):
            return False
        await self._end_leftovers(rest)
        if self._stopping:
            return False
        try:
            said = b"another program has a port that was chosen for this kernel: it is started again on others\n"
            if forked is not None:
                said = b"this kernel was forked from a template, and ended before it was ready: it is started again\n"
            await self._on_disk(append, self.log, said)
            self._log_start = await self._on_disk(log_size, self.log)
            await start_again()
        except (StartError, OSError, asyncio.TimeoutError) as error:
            print(f"kernel {self.id} was not started again: {error!r}", file=sys.stderr, flush=True)
            return False
        self.save()
        self._own(self._watch_exit())
        self._own(self._watch_ready())
        return True

    async def _ended(self) -> Optional[int]:
        """Wait until the kernel has ended; return its exit code, or the one that its wrapper makes of it.

        The process that was executed is the kernel, or a wrapper that ends after it, or one that has left it alone.
        """
        if self._process is not None and not isinstance(self._process, subprocess.Popen):
            executed = asyncio.ensure_future(self._process.exit_code(self.started))
        else:
            is_child = self._process is not None
            executed = asyncio.ensure_future(processes.exit_code(self.pid, self.started, is_child=is_child))
        learned = asyncio.ensure_future(self._learned.wait())
        try:
            await asyncio.wait({executed, learned}, return_when=asyncio.FIRST_COMPLETED)
            if not self._learned.is_set() and not await self._is_left_alone(failed=bool(executed.result())):
                return await executed
            kernel = self.family.kernel
            if kernel is None or not self.family.is_wrapped:
                return await executed
            ended = asyncio.ensure_future(processes.exit_code(kernel.pid, kernel.started, is_child=False))
            await asyncio.wait({executed, ended}, return_when=asyncio.FIRST_COMPLETED)
            if executed.done():
                await asyncio.wait({ended}, timeout=1.0)
                if not ended.done():  # what a wrapper says that ended long before its kernel is of something else
                    return await ended
            await asyncio.wait({executed}, timeout=WRAPPER_GRACE)
            code = ended.result()
            return code if code is not None or not executed.done() else executed.result()
        finally:
            learned.cancel()
            executed.cancel()

    async def _is_left_alone(self, failed: bool) -> bool:
        """Wait for a kernel whose wrapper ended before it listened; return False if there is none, or it ends as well.

        A wrapper that *failed* has left nothing that is worth waiting for; what it left is only found, to be ended.
        """
        while self.transport != "launcher":
            found = await processes.in_thread(self.family.find_starting, self._connection_file, reads_lines=True)
            if failed or not found:
                break
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._learned.wait(), 0.2)
            if self._learned.is_set():
                break
        return self._learned.is_set()

    async def _finish_late(self) -> None:
        if processes.start_time(self.pid) is None:  # else another process has its pid now, and its group
            await self._end_leftovers(await processes.in_thread(self.family.rest))
        await self._finish()

    async def _finish(self) -> None:
        """Run what its launcher wants to have run after the kernel; then its files may go, if they were to go before."""
        await self.shipment.finish(self.log, self._disk)
        self._leftovers = False
        if self._unwanted:
            self._remove()

    async def _end_leftovers(self, rest: list[processes.Process]) -> None:
        """End what the kernel and its wrappers left in their groups: listeners of launchers, children of cells."""
        await self.family.end_rest(rest)
        pause = 0.002
        while self._process is not None and self._process.poll() is None:  # not even SIGKILL ends what waits for a disk
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 1.0)

    async def cap_log(self) -> None:
        """Drop the older half of a log that is too large; called when it begins to be watched, and by LogCaps.

        The kernel appends to the file itself, so that it outlives an agent that dies.
        """
        with contextlib.suppress(OSError):
            async with self._log_lock:
                # Without a deadline: whenever it comes to an end, what it has dropped counts.
                dropped = await aside(("cap", self.log.parent), None, cap, self.log, LOG_CAP)
                if dropped:
                    self._log_start = max(0, self._log_start - dropped)  # of earlier starts some may still be there
                    self._log_base += dropped
                    self.save()

    async def _on_disk(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call *function* in a thread: a log may be on a mount that hangs. Raises asyncio.TimeoutError, and what it raises."""
        return await aside(("log", self.log.parent), LOG_DEADLINE, function, *arguments)

    @property
    def log_start(self) -> int:
        """Where the output of this start begins in the log: an operator's has that of earlier starts as well."""
        return self._log_start

    async def read_tail(self, size: int = TAIL) -> str:
        """Return the last *size* bytes, at most, of what the kernel printed since its start; nothing from a disk that hangs."""
        try:
            return str(await self._on_disk(tail, self.log, self._log_start, size))
        except (OSError, asyncio.TimeoutError):
            return ""

    async def read_part(self, position: int, size: int) -> LogPart:
        """Return what it printed from *position* on, up to *size* bytes; raises OSError and asyncio.TimeoutError."""
        ended = self.state == EXITED  # seen before the log is read: what is printed after that is nothing
        await asyncio.wait_for(self._log_lock.acquire(), LOG_DEADLINE)
        try:
            told, behind = await self._on_disk(
                functools.partial(part, final=ended), self.log, self._log_start, self._log_base, position, size
            )
        finally:
            self._log_lock.release()
        return LogPart(told, behind, ended and behind == position, self.exit_code)

    # -- signals, end --------------------------------------------------------------------------------------------

    def send_signal(self, signum: int) -> bool:
        """Signal the kernel; return False if it has ended.

        Deadly signals go to its whole group and to its wrappers'. Others go to the kernel and what it started in its group:
        wrappers (see `wrappers.py`), and behind a launcher that named the interpreter's pid spark-submit and the launcher's
        listener, would die of an interrupt. A kernel that a launcher runs as another user gets them from its launcher's listener.
        """
        if self.listener_port:
            self._own(self._tell_listener(self.listener_port, "signum", signum))
            if signum not in (signal.SIGKILL, signal.SIGTERM):
                return self.state != EXITED
        if signum == signal.SIGINT and self.interrupt_signal:
            # What its kernelspec has instead, for the kernel alone: a JVM beside it may not take it for the same thing.
            kernel = self.family.kernel or self.family.executed
            return processes.signal_one(kernel.pid, kernel.started, self.interrupt_signal)
        if signum not in (signal.SIGKILL, signal.SIGTERM) and self.interrupt_pid:
            delivered = processes.signal_process(self.interrupt_pid, self.interrupt_started, signum, group=False)
            if signum == signal.SIGINT and processes.catches(self.interrupt_pid, signal.SIGUSR2):
                # As the launcher's own listener would: its handler cancels Spark's jobs.
                processes.signal_process(self.interrupt_pid, self.interrupt_started, signal.SIGUSR2, group=False)
            return delivered
        if signum not in (signal.SIGKILL, signal.SIGTERM):
            return self.family.interrupt(signum)
        if self.state == STARTING and self.transport != "launcher":
            self.family.find_starting(self._connection_file)
        delivered = self.family.end(signum) or bool(self.listener_port)
        if self.interrupt_pid and self.interrupt_pid != self.pid:
            delivered |= processes.signal_process(self.interrupt_pid, self.interrupt_started, signum, group=False)
        return delivered

    async def stop(self, grace: float) -> None:
        """End the kernel: SIGTERM, and SIGKILL after *grace* seconds; returns once it has ended."""
        if self.state == EXITED:
            return
        self._stopping = True
        if grace > 0 and self.send_signal(signal.SIGTERM):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.exited.wait(), grace)
        while not self.exited.is_set():
            self.send_signal(signal.SIGKILL)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.exited.wait(), 1.0)

    @property
    def is_being_ended(self) -> bool:
        """Whether the kernel was told to end, and has not ended yet."""
        return self._stopping and not self.exited.is_set()

    def _stop_listening(self) -> None:
        """A launcher's answer is awaited no more."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def discard(self) -> None:
        """Remove every file of the kernel but its log, which is kept for a while; it must have ended, or never begun.

        If something of its group still runs, or is still to be run after its end, they go after that. Called again, it does
        nothing: what has the kernel's id then may be a newer attempt.
        """
        if self._unwanted:
            return
        self._unwanted = True
        self._handles.close()
        self._stop_listening()
        if self.transport == "launcher":
            self._own(self._remove_connection_files())
        if not (self.pid and (self.shipment.pending or self._leftovers)):
            self._remove()

    async def _remove_connection_files(self) -> None:
        """Remove what the launcher left, told by the kernel's id and its age: the next attempt's is newer."""
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            await aside(
                ("temporary", self.temporary),
                LOG_DEADLINE,
                remove_connection_files,
                self.id,
                self.temporary,
                time.time(),
            )

    def _remove(self) -> None:
        """Remove the kernel's folder, once, and keep its log."""
        if self._removing:
            return
        self._removing = True
        log = KeptLog(self.log_entry(), self.log, self._log_start, self._log_base)

        def remove() -> bool:
            try:
                # Once, unless the log has stayed where it is: an operator's does so in any case.
                if not self.discarded or (not self.keep_log and self.log.exists()):
                    keep(self.directory.parents[1], self.directory.name, log, move=not self.keep_log)
                shutil.rmtree(self.directory, ignore_errors=True)
                return not os.path.lexists(self.directory)
            except OSError:
                return False
            finally:
                self.discarded = True

        self._disk.do_until(remove)

    # -- the record on disk --------------------------------------------------------------------------------------

    def describe(self) -> Description:
        """Return what gateways may know of the kernel; no key, no environment."""
        return Description(
            kernel=self.id,
            attempt=self.attempt,
            owner=self.owner,
            host_set=self.host_set,
            argv=shown_argv(self.argv),
            state=self.state,
            exit_code=self.exit_code,
            pid=self.pid,
            start_time=self.start_time,
            log_path=str(self.log),
        )

    def log_entry(self) -> LogEntry:
        """Return what `jupyter distributed logs` is told of this start."""
        return LogEntry(self.id, self.attempt, self.state, self.exit_code, self.start_time, self.end_time)

    def save(self) -> None:
        """Write the record, so that a restarted agent finds the kernel again; nothing for one whose files are gone."""
        if not self._removing:
            # A full disk must not end a running kernel, nor one that hangs hold up the others.
            self._disk.put(self.directory / RECORD, json.dumps(self.record()).encode())

    def record(self) -> dict[str, Any]:
        """Return what the next agent has to know."""
        return {
            **self.describe().write(),
            "agent": [os.getpid(), processes.start_time(os.getpid())],
            "started": self.started,
            "transport": self.transport,
            "temporary": self.temporary,
            "users": sorted(self._users),
            "connection": self.connection,
            "family": self.family.write(),
            "interrupt": [self.interrupt_pid, self.interrupt_started],
            "listener": self.listener_port,
            "interrupt_signal": self.interrupt_signal,
            "keep_log": self.keep_log,
            "log_start": self._log_start,
            "log_base": self._log_base,
            "end_time": self.end_time,
            "orphan_timeout": self.orphan_timeout,
            "lease": self.lease,
        }

    def make_again(self) -> str:
        """Write the kernel's files again, after its folder was removed while it ran; return what can't be.

        Called by the agent's disk. Raises OSError.
        """
        if self._removing:
            return ""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.connection and self.transport != "launcher":
            write_private(Path(self._connection_file), json.dumps(self.connection, indent=2).encode())
        write_private(self.directory / RECORD, json.dumps(self.record()).encode())
        if self.connection.get("transport") == "ipc" and not os.path.exists(f"{self.connection['ip']}-1"):
            return f"kernel {self.id} takes no new connections until it is restarted: its UNIX sockets were removed"
        return ""

    @classmethod
    def load(cls, directory: Path, notify: Notify, disk: Optional[Disk] = None) -> Optional[Kernel]:
        """Return the kernel recorded in *directory*, None if there is none or another living agent has it."""
        try:
            record = KernelRecord.read(json.loads((directory / RECORD).read_bytes()))
        except (OSError, ValueError, RecursionError):
            return None
        agent_pid, agent_started = record.agent
        if record.state not in (STARTING, RUNNING, EXITED):
            return None
        if agent_pid != os.getpid() and processes.is_running(agent_pid, agent_started):
            return None
        kernel = cls(record.kernel, directory, notify, disk)
        for name in (
            "attempt", "owner", "host_set", "argv", "state", "exit_code", "pid", "start_time", "started", "transport",
            "connection", "keep_log", "interrupt_signal", "temporary", "end_time", "orphan_timeout", "lease",
        ):  # fmt: skip
            setattr(kernel, name, getattr(record, name))
        kernel.family = Family(kernel.pid, kernel.started)
        kernel.family.read(record.family)
        kernel.interrupt_pid, kernel.interrupt_started = record.interrupt
        kernel.listener_port = record.listener
        kernel._users = frozenset(record.users) if record.users is not None else kernel._users
        kernel.shipment.look()
        kernel.log, kernel._log_start, kernel._log_base = Path(record.log_path), record.log_start, record.log_base
        if kernel.state != EXITED and not (kernel.family.is_running() or kernel._is_starting()):
            kernel.state = EXITED
        if kernel.state == EXITED:
            kernel.end_time = kernel.end_time or time.time()
            kernel.exited.set()
        return kernel

    def _is_starting(self) -> bool:
        """Return True if a kernel that was starting when its agent ended may still become one, without its wrapper."""
        if self.state != STARTING or self.transport == "launcher":
            return False
        return self.family.find_starting(self._connection_file)


class _Patience:
    """How long a kernel is waited for that complains of a port which another program has, and does not end by itself."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._looked = self._since = time.monotonic()
        self._waiting = 0

    async def is_over(self, waiting: int) -> bool:
        """Return True if the kernel has complained for a while and *waiting*, its channels that are not open, are no fewer."""
        now = time.monotonic()
        if waiting != self._waiting:
            self._since, self._waiting = now, waiting
        if now - self._looked < TAKEN_PORT_CHECK:
            return False
        self._looked = now
        return now - self._since > TAKEN_PORT_PATIENCE and is_address_taken(await self._kernel.read_tail())


def shown_argv(argv: list[str]) -> list[str]:
    """Return the words of *argv*, up to ARGV_SHOWN characters of all of them."""
    shown: list[str] = []
    room = ARGV_SHOWN
    for word in argv:
        if len(word) > room:
            return [*shown, word[:room] + "…"]
        shown.append(word)
        room -= len(word) + 1
    return shown


def _signal_number(name: Optional[str]) -> int:
    """Return the number of the signal *name* ("SIGUSR2"), 0 for none; raises StartError."""
    if not name:
        return 0
    try:
        return int(signal.Signals[name])
    except KeyError:
        raise StartError(f"interrupt_signal {name!r} is no signal of this node") from None

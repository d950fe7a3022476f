"""The agent's end of a template, and the kernels that were forked from it; `template.py` is the other end."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from typing import NamedTuple, Optional

from ..clock import monotonic
from ..wire import integer, optional
from . import processes
from .processes import end_group

SOURCE: bytes = globals()["__loader__"].get_data(os.path.join(os.path.dirname(__file__), "template.py"))
"""The text of `template.py`; read now, since another release may remove this one's files while its agent runs."""
MAKE_DEADLINE = 60.0
"""Seconds for a template's imports."""
FORK_DEADLINE = 1.5
"""Seconds for a fork, of those that a start has; what a cold start needs has to be left."""
PER_KERNEL = ("KERNEL_", "JPY_", "PWD", "OLDPWD")
"""Beginnings of variables that each kernel has its own values of: a template has none of them."""
_READ_IN_C = re.compile(
    "PATH|HOME|PYTHON|LD_|LANG|LC_|LOC|TZ|TMPDIR|GLIBC_|MALLOC_|GCONV_|NLSPATH|HOSTALIASES|RES_|OPENSSL_|SSL_|ZMQ_|SQLITE_|"
    "OMP_|GOMP_|KMP_|MKL_|OPENBLAS_|GOTO_|BLIS_|VECLIB_|NUMEXPR_|NPY_|CUDA_|NVIDIA_|HIP_|ROC|HSA_|VIRTUAL_ENV|__"
)
"""Beginnings of variables that Python and C libraries read as they are loaded, where no template sees it."""
_ANSWER = 1 << 18  # bytes of a template's message
_pid, _code = integer(2, 1 << 31), optional(integer(-64, 255))


class Cold(Exception):
    """A start cannot be warm. The text is for operators."""

    def __init__(self, text: str, is_stale: bool = False, is_slow: bool = False) -> None:
        super().__init__(text)
        self.is_stale = is_stale
        """Whether the template is of no more use."""
        self.is_slow = is_slow
        """Whether another one would be of no use either."""


class Kind(NamedTuple):
    """What a template is made of, but for its environment."""

    word: str
    """argv's first."""
    program: str
    flags: tuple[str, ...]
    preload: tuple[str, ...]
    is_limited: bool
    """Whether it has a soft limit of open files of its own."""


class Wish(NamedTuple):
    """A start that could be warm."""

    kind: Kind
    environment: dict[bytes, bytes]
    umask: int
    open_files: int


class Fork:
    """A kernel's process that was forked from a template; see `Foster`."""

    def __init__(self, template: Template, pid: int) -> None:
        self.pid = pid
        self.kind = template.kind
        self._template: Optional[Template] = template
        self._code: Optional[int] = None

    async def exit_code(self, started: str) -> Optional[int]:
        """Wait for its end; return its exit code, None where that can't be known. It is not reaped by that."""
        self._code = await processes.exit_code(self.pid, started, is_child=False, ask=self._ask)
        return self._code

    async def _ask(self) -> Optional[int]:
        return None if self._template is None else await self._template.code(self.pid)

    def poll(self) -> Optional[int]:
        """Return the exit code if it has ended, which is reaped by that; 0 if it is not known."""
        if processes.look(self.pid) is not None and self._template is not None:
            return None
        if self._template is not None:
            self._template.reap(self.pid)
            self._template = None
        return self._code or 0


class Template:
    """The agent's end of a template; owned by `Templates`."""

    def __init__(self, wish: Wish, process: subprocess.Popen[bytes], channel: socket.socket) -> None:
        self.kind = wish.kind
        self.pid = process.pid
        self.since = time.time()
        self.used = monotonic()
        self.forked = 0
        self.children: set[int] = set()
        self.is_retired = False
        self.is_closed = False
        self._environment = wish.environment
        self._reads: frozenset[bytes] = frozenset()
        self._process = process
        self._channel = channel
        self._codes: dict[int, asyncio.Future[Optional[int]]] = {}
        self._hearing: Optional[asyncio.Task[None]] = None

    async def prepare(self, since_ns: int) -> None:
        """Have it import what it is to import; raises Cold if it can't be forked, and OSError."""
        loop = asyncio.get_running_loop()
        environment = self._environment
        found = sorted(item for item in environment.items() if item[0] != b"LC_CTYPE")
        asked = {
            "preload": list(self.kind.preload),
            "has_lc_ctype": b"LC_CTYPE" in environment,
            "environment": hashlib.sha256(repr(found).encode()).hexdigest(),
            "since_ns": since_ns,
        }
        for message in (SOURCE, json.dumps(asked).encode()):
            await loop.sock_sendall(self._channel, message)
        try:
            answer = json.loads(await asyncio.wait_for(loop.sock_recv(self._channel, _ANSWER), MAKE_DEADLINE) or b"{}")
            if "refused" in answer:
                raise Cold(str(answer["refused"]))
            if answer["pid"] != self.pid:
                raise Cold("its interpreter is started by another program, which stays")
            if answer["reads_folder"]:
                raise Cold("what it imports reads in which folder it is")
            self._reads = frozenset(os.fsencode(name) for name in answer["reads"])
        except asyncio.TimeoutError:
            raise Cold(f"what it imports takes more than {MAKE_DEADLINE:g} s") from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:  # it has ended, or something else answers
            raise Cold("it ended while it imported") from error
        self._hearing = asyncio.ensure_future(self._hear())

    def serves(self, wish: Wish) -> bool:
        """Return True if a kernel of *wish* would have imported just what this process has."""
        return not self.is_retired and wish.kind == self.kind and not self.differs(wish.environment)

    def differs(self, theirs: dict[bytes, bytes]) -> str:
        """Return a variable in which this process differs from *theirs*, and which it has read; empty: there is none."""
        ours = self._environment
        for name in ours.keys() | theirs.keys():
            if ours.get(name) == theirs.get(name):
                continue
            text = name.decode("utf-8", "surrogateescape")
            if name in self._reads or _READ_IN_C.match(text):
                return text
            # What modules of a site read in C nobody knows.
            if self.kind.preload and not text.startswith(PER_KERNEL):
                return text
        return ""

    async def _hear(self) -> None:
        """Take its answers until it has ended."""
        loop = asyncio.get_running_loop()
        try:
            while message := await loop.sock_recv(self._channel, _ANSWER):
                answer = json.loads(message)
                future = self._codes.get(answer["pid"])
                if future is not None and not future.done():
                    future.set_result(_code(answer["code"]))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            print(f"template {self.pid} ended: {error!r}", file=sys.stderr, flush=True)
        finally:
            self.close()

    async def fork(self, argv: list[str], wish: Wish, folder: str, log: int, seconds: float) -> Fork:
        """Return a kernel's process; raises Cold."""
        self.used = monotonic()
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._channel, [b"fork"], [theirs.fileno(), log])
            except OSError as error:  # it takes nothing any more, or has ended
                ours.close()
                raise Cold(f"the template takes nothing: {error.strerror}", is_stale=True) from error
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        child: Optional[Fork] = None
        is_kernel = False
        environment = {**wish.environment, b"PWD": os.fsencode(folder)}
        asked = {
            "argv": [text_of(os.fsencode(word)) for word in argv],
            "env": {text_of(name): text_of(value) for name, value in environment.items()},
            "cwd": folder,
            "umask": wish.umask,
            "open_files": wish.open_files,
        }
        try:
            body = json.dumps(asked).encode()
            writer.write(b"%d\n" % len(body) + body)
            deadline = monotonic() + seconds
            said: dict[str, object] = {}
            while not said or child is None:  # which of the two comes first is not known
                line = await asyncio.wait_for(reader.readline(), max(deadline - monotonic(), 0.0))
                if not line:
                    break
                answer = json.loads(line)
                if "pid" in answer:
                    child = self._child(answer["pid"])
                else:
                    said = dict(answer)
            if "cold" in said or not said or child is None:
                raise Cold(
                    str(said.get("cold", "the fork ended before it was a kernel")), bool(said.get("stale", True))
                )
            writer.write(b"!")  # from now on it is known by its number, and becomes the kernel
            is_kernel = True
            self.forked += 1
            return child
        except asyncio.TimeoutError:
            raise Cold("the fork was no kernel in time", is_stale=True, is_slow=True) from None
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise Cold(f"the fork's answer: {error!r}", is_stale=True) from error
        finally:
            writer.close()
            if child is not None and not is_kernel:
                end_group(child.pid)
                with contextlib.suppress(OSError):
                    os.kill(child.pid, signal.SIGKILL)  # it may have no group of its own yet
                self._owe(child)

    def _child(self, pid: object) -> Fork:
        """Return the child *pid*; raises ValueError for what is none, which any cell could say in the template's place."""
        found = processes.look(_pid(pid))
        if found is not None and found.parent != self.pid:  # else it has ended, or is a zombie
            raise ValueError(f"{pid} is another's child")
        child = Fork(self, _pid(pid))
        self.children.add(child.pid)
        return child

    def _owe(self, child: Fork) -> None:
        """Reap a child that has become no kernel, once it has ended."""

        async def reap() -> None:
            await processes.exit_code(child.pid, processes.start_time(child.pid) or "", is_child=False)
            self.reap(child.pid)

        task = asyncio.ensure_future(reap())
        _reaping.add(task)
        task.add_done_callback(_reaping.discard)

    async def code(self, pid: int) -> Optional[int]:
        """Return the exit code of a child that has ended, None where it is not told."""
        if self.is_closed:
            return None
        future = self._codes.setdefault(pid, asyncio.get_running_loop().create_future())
        try:
            self._tell(f"code {pid}")
            return await asyncio.wait_for(future, FORK_DEADLINE)
        except asyncio.TimeoutError:
            return None
        finally:
            self._codes.pop(pid, None)

    def reap(self, pid: int) -> None:
        """Let the system have the number of a child that has ended; the last one's end is this one's, if it is retired."""
        self.children.discard(pid)
        self._tell(f"reap {pid}")
        if self.is_retired and not self.children:
            self.close()

    def _tell(self, message: str) -> None:
        if not self.is_closed:
            try:
                self._channel.send(message.encode())
            except OSError:  # one that stands still holds what it was told; it is of no use any more
                self.close()

    def retire(self) -> None:
        """Fork it no more; it ends with the last of its kernels."""
        self.is_retired = True
        if not self.children:
            self.close()

    def close(self) -> None:
        """Have it end now. Its kernels run on, and how they end is not known any more where the system does not tell."""
        if self.is_closed:
            return
        self.is_retired = self.is_closed = True
        if self._hearing is not None:
            self._hearing.cancel()
        self._channel.close()
        with contextlib.suppress(OSError):
            self._process.kill()  # one that hangs would not hear of it
        for future in self._codes.values():
            if not future.done():
                future.set_result(None)

    @property
    def is_gone(self) -> bool:
        """Whether the process has ended, and is reaped."""
        return self.is_closed and self._process.poll() is not None


_reaping: set[asyncio.Task[None]] = set()


def text_of(value: bytes) -> str:
    """Return bytes of an environment or a command line as text that can be turned back."""
    return value.decode("utf-8", "surrogateescape")

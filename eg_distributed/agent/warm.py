"""Warm starts: kernels that are forked from a template which has imported what they would import.

A template is made for a start that could have been forked, had there been one, once that start has been answered. It serves the
starts of the same interpreter and modules whose environment differs from its own in nothing that an import has read; all
others, and whatever goes wrong on the way, are cold starts, of which nobody but the operator's numbers hears. `template.py` is
the other end, and says what a fork can't give.

Rejected: a fork without a template of the agent's own, by the agent. It has threads, another interpreter and no modules. A
subreaper, so that kernels were the agent's children: what cells leave behind would be, too, and has to find init above it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Callable, Optional

from ..clock import monotonic
from ..protocol import Start, TemplateSeen
from .aside import aside
from .forks import FORK_DEADLINE, MAKE_DEADLINE, PER_KERNEL, Cold, Fork, Kind, Template, Wish, text_of
from .nursery import Spawned, Spawner
from .spawning import StartError, executable, first_enterable, open_log

MOST = 4
"""Templates from which kernels are forked, at once. One more, and the one that was used longest ago is forked no more."""
MOST_RETIRED = 8
"""Those that are forked no more, and stay for the exit codes of their kernels; of one more, those codes are lost."""
IDLE = 900.0
"""Seconds after its last fork that a template without kernels is kept."""
MAKE_AFTER = 1.0
"""Seconds between the answer to a start and the template that is made for the next one: its first cell goes first."""
RETRY = 600.0
"""Seconds for which no template is made where it failed, or where none of the last few was of any use."""
UNUSED = 3
"""Templates of one interpreter that end without a fork, one after another, before that."""
LEAST_MEMORY = 0.05
"""The share of the machine's memory that has to be available for a template to be made, or kept without kernels."""
MEMORY_CHECK = 10.0
REASONS = 32
"""Reasons for cold starts that are counted apart."""
LIKES = 256
"""Users' kernelspecs of which is kept how their last start went."""
_LAUNCHER = ["-m", "ipykernel_launcher"]
_PYTHON = re.compile(r"python[0-9.]*\Z")
_FLAG = re.compile(r"-(?:[EIsSBuObqP]+|[XW].+)\Z")
_BOOT = "import os;exec(compile(os.read({0},1<<20),'<template>','exec'),g:={{'__name__':'template'}});g['main']({0})"


class Templates:
    """The templates of an agent, which owns it; they write what goes wrong with them to a log in *folder*."""

    def __init__(self, folder: Path) -> None:
        self.forked = 0
        """Starts that were warm."""
        self.cold: Counter[str] = Counter()
        """Starts that were wished to be warm, and were not, by why."""
        self._folder = folder
        self._went: dict[tuple[str, tuple[str, ...], str], bool] = {}  # whether the last start of its like was warm
        self._templates: list[Template] = []
        # By kernel and attempt: starts for whose like one is to be made.
        self._awaited: dict[tuple[str, str], Wish] = {}
        self._making: Optional[asyncio.Task[None]] = None
        self._failed: dict[Kind, float] = {}  # until when none is made
        self._unused: Counter[Kind] = Counter()
        self._looked = -MEMORY_CHECK  # at the memory
        self._is_short = False
        self._is_closed = False

    # -- starts ------------------------------------------------------------------------------------------------------

    def may_fork(self, asked: Start) -> bool:
        """Return True if the kernel of *asked* will be forked, as far as that can be told: if the last one of its like was.

        Where none was there before, if there is a template of its interpreter. Asked before the start waits for its turn.
        """
        kinds = [(each.kind.word, each.kind.preload) for each in self._templates if not each.is_retired]
        return asked.warm and (asked.argv[0], tuple(asked.preload)) in kinds and self._went.get(_like(asked), True)

    def _note(self, asked: Start, *, is_forked: bool) -> None:
        self._went.pop(_like(asked), None)
        self._went[_like(asked)] = is_forked
        while len(self._went) > LIKES:
            self._went.pop(next(iter(self._went)))

    def spawner(
        self, asked: Start, cold: Spawner, *, is_own: bool, is_cold: Callable[[], None] = lambda: None
    ) -> Spawner:
        """Return what executes the kernel of *asked*: a fork where it can be one, else *cold*, which does as `spawn_aside`.

        *is_own*: whether the kernel is to have the agent's own groups and limits. *is_cold* is called before one that was to be
        forked is executed.
        """
        if not asked.warm:
            return cold
        forked: Optional[Fork] = None
        is_first = True

        async def spawn(
            argv: list[str],
            environment: dict[bytes, bytes],
            cwd: Optional[str],
            umask: int,
            log: Path,
            open_files: int,
            seconds: float,
        ) -> tuple[Spawned, str]:
            nonlocal forked, is_first
            began = monotonic()
            if is_first:
                is_first = False
                try:
                    kind = _kind(asked, argv, environment, is_own=is_own and umask >= 0)
                    kind = kind._replace(is_limited=open_files >= 0)
                    wish = Wish(await _found(kind, environment, seconds / 4), environment, umask, open_files)
                    forked, warning = await self._fork(asked, wish, argv, cwd, log, seconds)
                    self._note(asked, is_forked=True)
                    return forked, warning
                except Cold as error:
                    self._count_cold(str(error))
                    self._note(asked, is_forked=False)
            elif forked is not None:  # it has just ended, and was not ready yet
                self._count_cold("the kernel ended before it was ready")
                self._retire_for(forked)
            is_cold()
            remaining = max(seconds - (monotonic() - began), seconds / 4)
            return await cold(argv, environment, cwd, umask, log, open_files, seconds=remaining)

        return spawn

    async def _fork(
        self, asked: Start, wish: Wish, argv: list[str], cwd: Optional[str], log: Path, seconds: float
    ) -> tuple[Fork, str]:
        template = next((each for each in self._templates if each.serves(wish)), None)
        if template is None:
            self._await(asked, wish)
            others = [each.differs(wish.environment) for each in self._templates if each.kind == wish.kind]
            raise Cold(f"templates have another {others[0]}" if others and others[0] else "there is no template yet")
        seconds = min(seconds / 2, FORK_DEADLINE)
        deadline = monotonic() + seconds
        home = os.fsdecode(wish.environment.get(b"HOME", b"")) or "/"
        try:
            (folder, warning), descriptor = await aside(
                ("spawn", cwd, home, log.parent),
                seconds,
                _lay_out,
                cwd,
                home,
                log,
                late=lambda found: os.close(found[1]),
            )
        except (asyncio.TimeoutError, StartError, OSError, ValueError):
            raise Cold("its folder or its log has to be looked at") from None
        try:
            child = await template.fork(argv, wish, folder, descriptor, max(deadline - monotonic(), 0.1))
            if warning:
                with contextlib.suppress(OSError):  # a disk that is full by now
                    os.write(descriptor, f"{warning}\n".encode("utf-8", "replace"))
        except Cold as error:
            if error.is_stale:
                template.retire()
                self._await(asked, wish)
            if error.is_slow:  # or each start would wait for a fork in vain
                self._hold_off(wish.kind)
            raise
        finally:
            os.close(descriptor)
        self.forked += 1
        self._unused.pop(wish.kind, None)
        return child, warning

    def _await(self, asked: Start, wish: Wish) -> None:
        """Have a template made for the like of a start, once that is answered."""
        if len(self._awaited) < MOST * MOST:
            self._awaited[asked.kernel, asked.attempt] = wish

    def _count_cold(self, why: str) -> None:
        known = why in self.cold or len(self.cold) < REASONS
        self.cold[why if known else "others"] += 1

    def _retire_for(self, forked: Fork) -> None:
        """Fork no more what *forked* was forked from."""
        self._hold_off(forked.kind)
        for template in self._templates:
            if template.kind == forked.kind:
                template.retire()

    def answered(self, kernel: str, attempt: str) -> None:
        """Take note that a start has been answered: a template for the next one may be made."""
        wish = self._awaited.pop((kernel, attempt), None)
        if wish is not None and self._may_make(wish):
            self._making = asyncio.ensure_future(self._make(wish))

    def forget(self, kernel: str, attempt: str) -> None:
        """Take note that a start has come to nothing."""
        self._awaited.pop((kernel, attempt), None)

    def _may_make(self, wish: Wish) -> bool:
        self._look_at_memory()
        is_making = self._making is not None and not self._making.done()
        if is_making or self._is_closed or self._is_short or any(each.serves(wish) for each in self._templates):
            return False
        until = self._failed.get(wish.kind, 0.0)
        return until < monotonic()

    async def _make(self, wish: Wish) -> None:
        """Make a template for the like of *wish*; what is in the way is written to the agent's log."""
        await asyncio.sleep(MAKE_AFTER)
        try:
            await self._make_now(wish)
        except (Cold, OSError, asyncio.TimeoutError) as error:
            print(f"no template of {wish.kind.program}: {error}", file=sys.stderr, flush=True)
            self._hold_off(wish.kind)

    def _hold_off(self, kind: Kind) -> None:
        while len(self._failed) >= REASONS:
            self._failed.pop(next(iter(self._failed)))
        self._failed[kind] = monotonic() + RETRY

    async def _make_now(self, wish: Wish) -> None:
        own = {name: value for name, value in wish.environment.items() if not text_of(name).startswith(PER_KERNEL)}
        wish = wish._replace(environment={**own, b"PWD": b"/"})
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        since = time.time_ns()
        try:
            # The thread's to close: while it hangs, its descriptor must not become that of something else.
            process = await aside(
                ("template", wish.kind.program), MAKE_DEADLINE, self._execute, wish, theirs, late=_end
            )
        except BaseException:  # cancellation included
            ours.close()
            raise
        ours.setblocking(False)
        template = Template(wish, process, ours)
        try:
            await template.prepare(since)
        except BaseException:  # cancellation included: it would import for nobody
            template.close()
            raise
        finally:
            self._templates.append(template)  # also one that has failed: it has to be reaped
        self._keep_bounds()

    def _execute(self, wish: Wish, channel: socket.socket) -> subprocess.Popen[bytes]:
        """Execute a template's interpreter at the other end of *channel*; in a thread, since disks may hang. Raises OSError."""
        with channel:
            process = self._spawn(wish, channel.fileno())
        if wish.open_files >= 0:
            with contextlib.suppress(OSError, ValueError):
                hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)[1]
                resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (wish.open_files, hard))
        return process

    def _spawn(self, wish: Wish, channel: int) -> subprocess.Popen[bytes]:
        kind = wish.kind
        log = os.open(
            self._folder / "template.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW, 0o600
        )
        try:
            return subprocess.Popen(
                [kind.word, *kind.flags, "-c", _BOOT.format(channel), "eg_distributed-template", *kind.preload],
                env=wish.environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                umask=wish.umask,
                executable=kind.program,
                pass_fds=(channel,),
            )
        finally:
            os.close(log)

    # -- life --------------------------------------------------------------------------------------------------------

    def _keep_bounds(self) -> None:
        """Let go of the templates that are too many."""
        usable = sorted((each for each in self._templates if not each.is_retired), key=lambda each: each.used)
        for template in usable[: max(len(usable) - MOST, 0)]:
            template.retire()
        retired = [each for each in self._templates if each.is_retired and not each.is_closed]
        for template in retired[: max(len(retired) - MOST_RETIRED, 0)]:
            template.close()

    def tick(self) -> None:
        """Let those go that have been of no use for long, or are in the way; called each second."""
        if not self._templates and self._making is None:
            return
        self._look_at_memory()
        now = monotonic()
        for template in list(self._templates):
            if not template.children and (self._is_short or now - template.used > IDLE):
                template.retire()
            if template.is_gone:
                self._templates.remove(template)
                self._count_use(template)
        self._keep_bounds()

    def _look_at_memory(self) -> None:
        now = monotonic()
        if now - self._looked > MEMORY_CHECK:
            self._looked, self._is_short = now, _available_memory() < LEAST_MEMORY

    def _count_use(self, template: Template) -> None:
        """Make none for a while where none is of any use: each start may have another environment."""
        if template.forked:
            return
        self._unused[template.kind] += 1
        if self._unused[template.kind] >= UNUSED:
            del self._unused[template.kind]
            self._hold_off(template.kind)

    def close(self) -> None:
        """End all templates; their kernels run on."""
        self._is_closed = True
        if self._making is not None:
            self._making.cancel()
        for template in self._templates:
            template.close()

    def seen(self) -> list[TemplateSeen]:
        """Return what operators are told of the templates; in a thread, since it reads their memory."""
        return [
            TemplateSeen(
                pid=each.pid,
                argv=[each.kind.word, *each.kind.flags],
                preload=list(each.kind.preload),
                forked=each.forked,
                kernels=len(each.children),
                memory=_pss(each.pid),
                since=each.since,
                is_retired=each.is_retired,
            )
            for each in list(self._templates)
            if not each.is_closed
        ]


def _like(asked: Start) -> tuple[str, tuple[str, ...], str]:
    """Return what starts have in common that went alike, as far as that is known before they begin."""
    return asked.argv[0], tuple(asked.preload), asked.env.get("KERNEL_USERNAME", "")


def _kind(asked: Start, argv: list[str], environment: dict[bytes, bytes], *, is_own: bool) -> Kind:
    """Return what a template for *asked* would be made of; raises Cold where a kernel can't be forked."""
    if asked.files or asked.transport == "launcher" or asked.env.get("EG_IMPERSONATION_ENABLED", "").lower() == "true":
        raise Cold("a launcher or another user has a part in it")
    if not is_own:
        raise Cold("it is to have another login's groups or limits")
    if not _PYTHON.match(Path(argv[0]).name) or ("/" in argv[0] and not argv[0].startswith("/")):
        raise Cold("its program is no Python that is named in full")
    flags = argv[1 : argv.index("-m")] if "-m" in argv else []
    if argv[1 + len(flags) :][:2] != _LAUNCHER or not all(_FLAG.match(flag) for flag in flags):
        raise Cold("its command is not `python -m ipykernel_launcher`")
    if not any("{connection_file}" in word for word in asked.argv[3 + len(flags) :]):
        raise Cold("its command names no connection file")
    folders = environment.get(b"PYTHONPATH", b"").split(b":") if environment.get(b"PYTHONPATH") else []
    if not all(folder.startswith(b"/") for folder in folders):
        raise Cold("its PYTHONPATH has a folder that is not named in full")
    return Kind(argv[0], argv[0], tuple(flags), tuple(asked.preload), False)


async def _found(kind: Kind, environment: dict[bytes, bytes], seconds: float) -> Kind:
    """Return *kind* with the path of its program; raises Cold where that is not found in time."""
    if "/" in kind.word:
        return kind
    try:
        program = await aside(("path", environment.get(b"PATH")), seconds, executable, kind.word, environment)
    except (StartError, OSError, asyncio.TimeoutError):
        raise Cold("its program is not found at once") from None
    return kind._replace(program=program)


def _lay_out(cwd: Optional[str], home: str, log: Path) -> tuple[tuple[str, str], int]:
    """Return the folder in which a kernel starts with what is said of that, and its log; raises StartError and OSError."""
    return first_enterable(cwd, home), open_log(log)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a template that came too late."""
    process.kill()
    process.wait()


def _available_memory() -> float:
    """Return the share of this machine's memory that is available; 1 where it is not told."""
    found = {}
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                name, _, rest = line.partition(":")
                found[name] = int(rest.split()[0])
        return found["MemAvailable"] / found["MemTotal"]
    except (OSError, ValueError, KeyError, IndexError):
        return 1.0


def _pss(pid: int) -> int:
    """Return the bytes of memory that a process has, of shared pages its share; 0 where it is not told."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            for line in file:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0

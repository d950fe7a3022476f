"""`jupyter distributed doctor [HOST…]`: what stands between the gateway and a kernel on each host, step by step.

It goes the way of a kernel's start and says after each step what it found and how long that took. The first step that fails ends
the examination of its host, since the others stand on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass, field

from eg_distributed.cluster import Cluster
from eg_distributed.errors import DistributedError, HostKeyRejected, HostUnresponsive, LoginRefused
from eg_distributed.hosts import HostSet
from eg_distributed.link import examination
from eg_distributed.link.dial import Address
from eg_distributed.link.examination import Checkup, Login, Way
from eg_distributed.link.login import connect_seconds
from eg_distributed.request import StartRequest

_AT_ONCE = 16  # hosts that are examined side by side
_LOCAL_DEADLINE = 10.0  # seconds for what happens on this machine: ssh_config, names
_KERNEL_DEADLINE = 20.0  # seconds for the kernel of the dry run, beside what its connection may take
_LISTED = 5.0  # seconds for the list of kernels beside it
_SLOW_SHELL = 3.0  # seconds of a login shell's start that are worth a word
_CLOCK = 5.0  # seconds by which a node's clock may differ
_LITTLE_DISK = 200 * 1024 * 1024
_FEW_CHANNELS = 512  # files of a session's sshd
_FEW_FILES, _FEW_PROCESSES = 1024, 64

_KERNEL = """
import json, socket, sys, time
info = json.load(open(sys.argv[1]))
held = []
for channel in ("shell", "iopub", "stdin", "hb", "control"):
    listening = socket.socket(socket.AF_UNIX)
    listening.bind("%s-%d" % (info["ip"], info[channel + "_port"]))
    listening.listen(5)
    held.append(listening)
time.sleep(60)
"""
"""A kernel as far as the agent can tell: it listens on its five channels. It ends by itself should we not be there to end it."""


@dataclass
class Step:
    """One step of an examination. *status* is ok, warning, failed or skipped."""

    name: str
    status: str
    said: str
    seconds: float | None = None
    remedy: str = ""


@dataclass
class Examined:
    """What was found of one host."""

    host: str
    usable: bool = True
    seconds: float = 0.0
    mend: str = ""
    """The first thing to mend; empty: nothing."""
    steps: list[Step] = field(default_factory=list)


class _Case:
    """The examination of one host: what its steps learn, and what they leave open for the next ones."""

    def __init__(self, host: str, cluster: Cluster, open_things: contextlib.AsyncExitStack) -> None:
        self.host = host
        self.settings = cluster.settings
        self._cluster = cluster
        self._open = open_things
        self._way: Way | None = None
        self._addresses: list[Address] = []
        self._banner: asyncio.StreamReader | None = None
        self._login: Login | None = None
        self._refusal: LoginRefused | None = None
        self._checkup: Checkup | None = None

    @property
    def _is_local(self) -> bool:
        return self._way is not None and self._way.here

    # -- the way there -------------------------------------------------------------------------------------------

    async def config(self) -> Step:
        """What the settings and ssh_config say, and who read it."""
        way = self._way = await examination.read_way(self.host, self.settings)
        if way.here:
            return Step("config", "ok", "this machine, and the gateway's own user: reached without SSH")
        found = way.configuration
        through = f" through {way.proxy}" if way.proxy else ""
        notes = f"; {'; '.join(found.notes[:3])}" if found.notes else ""
        return Step(
            "config", "ok", f"{found.user}@{found.hostname}:{found.port}{through}, as read by {found.reader}{notes}"
        )

    async def name(self) -> Step:
        """How the name was found."""
        if (skipped := self._skipped("name")) is not None:
            return skipped
        assert self._way is not None
        self._addresses = await examination.find_addresses(self._way, self.settings)
        shown = list(dict.fromkeys(str(address[4][0]) for address in self._addresses))
        return Step("name", "ok", ", ".join(shown[:4]) + ", …" * (len(shown) > 4))

    async def tcp(self) -> Step:
        """Whether the SSH port accepts."""
        if (skipped := self._skipped("tcp")) is not None:
            return skipped
        assert self._way is not None
        self._banner = await self._open.enter_async_context(examination.tcp(self._way, self._addresses, self.settings))
        return Step("tcp", "ok", f"port {self._way.configuration.port} accepts")

    async def banner(self) -> Step:
        """Which SSH server answers."""
        if (skipped := self._skipped("banner")) is not None:
            return skipped
        assert self._banner is not None
        return Step("banner", "ok", await examination.read_banner(self._banner, self.host))

    async def key(self) -> Step:
        """Whether the host's key is trusted; the login is tried here, since it checks the key in the way that counts."""
        if self._is_local:
            return Step("key", "skipped", "")
        try:
            self._login = await examination.log_in_as_starts_do(self.host, self.settings)
        except LoginRefused as error:  # behind the key
            self._refusal = error
            return Step("key", "ok", "trusted")
        self._open.callback(self._login.connection.abort)
        return Step("key", "ok", f"trusted: {self._login.key}", self._login.seconds.get("exchanging keys"))

    async def login(self) -> Step:
        """Whether the host lets us in."""
        if self._is_local:
            return Step("login", "skipped", "")
        if self._refusal is not None:
            raise self._refusal
        assert self._login is not None
        return Step("login", "ok", f"as {self._login.user}", self._login.seconds.get("logging in"))

    def _skipped(self, step: str) -> Step | None:
        """Return the step that can't be taken by itself: there is none on this machine, nor around a proxy."""
        if self._is_local:
            return Step(step, "skipped", "")
        if self._way is not None and self._way.proxy:
            return Step(step, "skipped", f"left to the {self._way.proxy}")
        return None

    # -- what is there -------------------------------------------------------------------------------------------

    async def shell(self) -> Step:
        """What start-up files print, and how long they take."""
        found = self._checkup = await examination.check_up(self.host, self.settings, self._login)
        said = f"prints {found.noise} bytes first, at last {found.last_noise[-60:]!r}" if found.noise else "quiet"
        if found.seconds > _SLOW_SHELL:
            return Step("shell", "warning", f"{said}, slow", found.seconds, "see what start-up files wait for")
        return Step("shell", "ok", said, found.seconds)

    async def python(self) -> Step:
        """Which python3 the agent will run by."""
        report = self._report
        said = f"{report.python} ({report.executable}) on {report.node} as {report.user}"
        if report.old:
            remedy = "install python3 (3.9 or later) on the host, or name the interpreter in Distributed.python"
            return Step("python", "failed", f"{said}: the agent needs 3.9 or later", remedy=remedy)
        return Step("python", "ok", said)

    async def place(self) -> Step:
        """Where the agent's files go, and whether there is room."""
        report = self._report
        if not report.folder:
            remedy = "give the login a writable ~/.cache or /tmp that takes UNIX sockets"
            return Step("place", "failed", report.why or "there is none", remedy=remedy)
        agent = "an agent is there" if report.agent else "no agent yet"
        free = f", {_size(report.free)} free" if report.free >= 0 else ""
        said = f"{report.folder}, {agent}{free}"
        if report.passed_over:
            said += f"; passed over: {'; '.join(report.passed_over)}"
            return Step("place", "warning", said, remedy="see what is wrong with the place that was passed over")
        if 0 <= report.free < _LITTLE_DISK:
            return Step("place", "warning", said, remedy="free disk space there: kernels' logs and files need some")
        return Step("place", "ok", said)

    async def locks(self) -> Step:
        """Whether files can be locked there: two gateways that bring an agent up at once need it."""
        if self._report.lock:
            said = f"locks fail in {self._report.folder}: {self._report.lock}"
            return Step("locks", "failed", said, remedy="have locks work on that file system (NFS: its lock service)")
        return Step("locks", "ok", "work")

    async def limits(self) -> Step:
        """How many files and processes a login may have."""
        report = self._report
        files, processes = report.nofile, report.nproc
        said = f"nofile {_limit(files)}, nproc {_limit(processes)} ({report.processes} in use)"
        if report.sshd_files:
            said += f", sshd's nofile {report.sshd_files if report.sshd_files > 0 else 'unlimited'}"
        if 0 < report.sshd_files < _FEW_CHANNELS:
            return Step(
                "limits",
                "warning",
                said,
                remedy="raise LimitNOFILE of sshd's unit (`systemctl edit ssh`): each channel of a kernel's client takes one, "
                "and the gateway makes a further SSH connection for so many of them",
            )
        if 0 <= files[1] < _FEW_FILES:
            return Step(
                "limits",
                "warning",
                said,
                remedy="raise nofile for the login (limits.conf): each kernel's streams need some",
            )
        if 0 <= processes[0] < report.processes + _FEW_PROCESSES:
            return Step(
                "limits", "warning", said, remedy="raise nproc for the login (limits.conf): kernels' threads count"
            )
        return Step("limits", "ok", said)

    async def clock(self) -> Step:
        """How far the node's clock is from ours."""
        assert self._checkup is not None
        ahead = self._checkup.clock
        if abs(ahead) > _CLOCK:
            way = "ahead" if ahead > 0 else "behind"
            return Step(
                "clock", "warning", f"{abs(ahead):.0f} s {way}", remedy="have NTP set it: tickets and logs need it"
            )
        return Step("clock", "ok", f"differs by less than {_CLOCK:g} s")

    @property
    def _report(self) -> examination.Report:
        assert self._checkup is not None
        return self._checkup.report

    # -- a kernel ------------------------------------------------------------------------------------------------

    async def kernel(self) -> Step:
        """Whether a kernel starts, as for a user: an agent that is brought up, and a process that is started, seen and ended."""
        request = StartRequest(
            f"doctor-{secrets.token_hex(4)}",
            ["{python}", "-c", _KERNEL, "{connection_file}"],
            (self.host,),
            language="python",
            key=secrets.token_hex(8),
            launch_timeout=self.kernel_seconds,
            queues=False,  # a host that starts many kernels is well: that queue is no part of what is examined
        )
        kernel = await self._cluster.start(request)
        try:
            (listed,) = (await self._cluster.list_kernels((self.host,), _LISTED)).values()
        finally:
            await self._cluster.release(kernel.id)
        waiting = sum(each.before >= 0 for each in listed) if isinstance(listed, list) else 0
        told = f"; {waiting} starts wait for their turn there" if waiting else ""
        return Step("kernel", "ok", f"one was started and ended{told}")

    @property
    def kernel_seconds(self) -> float:
        """How long the dry run may take."""
        return self.login_seconds + self.settings.bootstrap_timeout + _KERNEL_DEADLINE

    @property
    def connect_seconds(self) -> float:
        """How long TCP, and sshd's first words, may take."""
        return connect_seconds(self.settings, self._way.configuration if self._way else None)

    @property
    def login_seconds(self) -> float:
        """How long a login may take by the settings."""
        return 2 * self.connect_seconds + self.settings.login_timeout


_STEPS: tuple[tuple[str, Callable[[_Case], Awaitable[Step]], Callable[[_Case], float]], ...] = (
    ("config", _Case.config, lambda case: 2 * _LOCAL_DEADLINE),
    ("name", _Case.name, lambda case: case.connect_seconds + _LOCAL_DEADLINE),
    # Some have deadlines of their own, whose errors say more.
    ("tcp", _Case.tcp, lambda case: 2 * case.connect_seconds + _LOCAL_DEADLINE),
    ("banner", _Case.banner, lambda case: case.connect_seconds),
    ("key", _Case.key, lambda case: case.login_seconds + _LOCAL_DEADLINE),
    ("login", _Case.login, lambda case: _LOCAL_DEADLINE),
    ("shell", _Case.shell, lambda case: 2 * case.settings.bootstrap_timeout + _LOCAL_DEADLINE),
    ("python", _Case.python, lambda case: _LOCAL_DEADLINE),
    ("place", _Case.place, lambda case: _LOCAL_DEADLINE),
    ("locks", _Case.locks, lambda case: _LOCAL_DEADLINE),
    ("limits", _Case.limits, lambda case: _LOCAL_DEADLINE),
    ("clock", _Case.clock, lambda case: _LOCAL_DEADLINE),
    ("kernel", _Case.kernel, lambda case: case.kernel_seconds + _LOCAL_DEADLINE),
)
"""What is done, in order, and within how many seconds."""


async def examine(host: str, cluster: Cluster) -> Examined:
    """Go the way of a kernel's start to *host*, up to the first step that fails; on the cluster's loop."""
    found = Examined(host)
    began = time.monotonic()
    async with contextlib.AsyncExitStack() as open_things:
        case = _Case(host, cluster, open_things)
        for name, take, deadline in _STEPS:
            step = await _take(name, take(case), deadline(case), host)
            found.steps.append(step)
            if step.status == "failed":
                found.usable = False
                break
    found.seconds = time.monotonic() - began
    worst = [step for kind in ("failed", "warning") for step in found.steps if step.status == kind]
    if worst:
        found.mend = f"{worst[0].name}: {worst[0].remedy or worst[0].said}"
    return found


async def _take(name: str, taking: Awaitable[Step], seconds: float, host: str) -> Step:
    """Take one step within *seconds*, and time it; what fails becomes a step that failed."""
    began = time.monotonic()
    try:
        step = await asyncio.wait_for(taking, seconds)
    except asyncio.TimeoutError:
        late = HostUnresponsive(f"no answer within {seconds:g} s", host=host, remedy=_LATE.get(name, ""))
        step = Step(name, "failed", late.cause, remedy=late.remedy)
    except DistributedError as error:
        if name == "key" and not isinstance(error, HostKeyRejected):
            name = "login"  # the key was not at fault
        step = Step(name, "failed", error.cause, remedy=error.remedy)
        if not error.remedy:
            step.said = str(error)
    # What one host's examination stumbles over must not hide what was found of the others.
    except Exception as error:  # noqa: BLE001
        step = Step(
            name, "failed", f"an unexpected error: {error!r}", remedy="see whether a newer release is well there"
        )
    if step.seconds is None and step.status != "skipped":
        step.seconds = time.monotonic() - began
    return step


_LATE = {
    "config": "see what ssh_config has to be waited for: `Match exec`, or files on a mount that hangs",
    "name": "check DNS: the resolver does not answer",
    "banner": "check the host's load: the port accepts, but sshd says nothing",
}
"""What to do where a step ran out of time."""


# -- saying it -------------------------------------------------------------------------------------------------------


def run(cluster: Cluster, hosts: HostSet, *, as_json: bool = False) -> int:
    """Examine *hosts* side by side and print what was found; return the exit code: 1 where one is not usable."""
    free = asyncio.Semaphore(_AT_ONCE)

    async def in_turn(host: str) -> Examined:
        async with free:
            return await examine(host, cluster)

    results = []
    with _without_warnings():
        examinations = [cluster.submit(in_turn(host)) for host in hosts]
        for examination_of_one in examinations:
            found = examination_of_one.result()
            results.append(found)
            if not as_json:
                print(_text(found), flush=True)
    if as_json:
        print(json.dumps({"hosts": [asdict(found) for found in results]}, indent=2))
    return 0 if all(found.usable for found in results) else 1


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence the cluster for a while: the errors of hosts are steps here, and would be there twice as its warnings."""
    logger = logging.getLogger("eg_distributed")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


_LINES = (
    ("config",),
    ("name",),
    ("tcp", "banner"),
    ("key",),
    ("login",),
    ("shell", "python"),
    ("place", "locks"),
    ("limits", "clock"),
    ("kernel",),
)
"""Which steps share a line."""
_MARKS = {"ok": "ok", "skipped": "-", "warning": "!", "failed": "FAIL"}


def _text(found: Examined) -> str:
    """Return what was found of one host, in about ten lines."""
    lines = [f"{found.host}: {'usable' if found.usable else 'NOT USABLE'} ({found.seconds:.1f} s)"]
    for names in _LINES:
        steps = [step for step in found.steps if step.name in names]
        told = [f"{step.said}{_seconds(step)}" for step in steps if step.said]
        if not told:
            continue
        worst = max(steps, key=lambda step: list(_MARKS).index(step.status))
        name = worst.name if worst.status in ("failed", "warning") else "/".join(names)
        lines.append(f"  {_MARKS[worst.status]:4}  {name:12}  {'; '.join(told)}")
    if found.mend:
        lines.append(f"  mend first: {found.mend}")
    return "\n".join(lines)


def _seconds(step: Step) -> str:
    return f" [{step.seconds:.2f} s]" if step.seconds is not None and step.seconds >= 0.005 else ""


def _limit(values: list[int]) -> str:
    return "/".join("unlimited" if value < 0 else str(value) for value in values)


def _size(count: int) -> str:
    return f"{count / 1e9:.0f} GB" if count >= 1e10 else f"{count / 1e6:.0f} MB"

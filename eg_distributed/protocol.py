"""The messages between a gateway and an agent, typed once for both ends; standard library only.

The agent carries this file to its node. A connection to the agent's socket opens with one *hello*, which says what the
connection is for:

    control   requests, replies and events of one gateway, as messages, until either side closes
    stream    one of a kernel's ZMQ connections, as the frames of `streams.py`, resumable under the stream's id
    folder    a kernelspec's folder for the node to keep: its archive, as bytes, if the agent wants it

Requests carry `id`, `method` and `params`; replies `id` and `result` or `error`; events `event` and their fields. Each
message is a dataclass, read with the bounds of its fields (see `wire.py`). Unknown fields, methods and events are those of a
newer release, and no error.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Iterator, TypeVar

from .wire import (
    MAX_ANSWER,
    MAX_MESSAGE,
    Check,
    Malformed,
    Message,
    W,
    Wire,
    checked,
    flag,
    integer,
    items,
    number,
    one_of,
    optional,
    scalar,
    shown,
    table,
    text,
    texts,
)

PROTOCOL = 4
"""Version of everything in this file, in streams.py and of the agent's requests: one more for whatever an older gateway or
agent would not understand. Version 4: names of a launcher's files may have folders; the greeting names kernels by id and
state only; gateways bring kernelspecs' folders."""
OLDEST_PROTOCOL = PROTOCOL - 1
"""The oldest version that a gateway still speaks with an agent that cannot make room for a new one."""
FOLDERS_PROTOCOL = 4
"""The version from which on a launcher's files may lie in folders, and kernelspecs' folders be brought."""

CHANNELS = ("shell", "iopub", "stdin", "hb", "control")
"""A kernel's five channels, in the order of their ports in an `ipc` connection file (1 to 5)."""

SENTINEL = b"\x1e eg-distributed agent \x1e"
"""What precedes the agent's first answer, so that the noise of a login can be told from it."""

R = TypeVar("R")
_ID, _PATH = 256, 4096  # characters of an identifier, of a path
_LEASE = integer(0, 1 << 62)  # see Adopt; 0: none
WARNING = 3 * _PATH
"""Characters of a warning that comes with a start."""


def _ports(value: Any) -> tuple[int, int] | None:
    """Check a range of ports: null, or its first and last port."""
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise Malformed(f"{shown(value)} instead of a first and a last port")
    low, high = (integer(0, 65535)(port) for port in value)
    return low, high


def _record(kind: type[W]) -> Check:
    return kind.read


# -- hellos ------------------------------------------------------------------------------------------------------


@dataclass(eq=False, repr=False)
class ControlHello(Wire):
    """Opens a control connection; sent by a gateway's Node, and by the boot when it looks for an agent."""

    gateway: str = checked(text(_ID))
    """The gateway's stable identity."""
    incarnation: str = checked(text(_ID))
    """One life of its process."""
    protocol: int = checked(integer(0, 1 << 16), OLDEST_PROTOCOL)
    """What the gateway speaks; version 3 did not say so."""
    host: str = checked(text(_ID), "?")
    """The name by which the gateway knows this host: a machine may be listed by two, each with a connection of its own."""
    keep_output: int = checked(integer(0, 1 << 40), 0)
    """Bytes of each kernel's output to be kept while no gateway is there; 0: none, as older releases mean."""
    gone_timeout: float = checked(number(0, 1e12), 0.0)
    """Seconds after the end of the gateway's process, as far as it can be told from a cut, after which its kernels are ended,
    whatever their own orphan_timeout is; 0: that alone counts, as older agents and releases mean."""
    type: str = checked(one_of("control"), "control")


@dataclass(eq=False, repr=False)
class StreamHello(Wire):
    """Opens or resumes a stream; sent by a kernel's Endpoints for each connection of a client."""

    kernel: str = checked(text(_ID))
    channel: str = checked(text(_ID))
    stream: str = checked(text(_ID))
    gateway: str = checked(text(_ID))
    incarnation: str = checked(text(_ID))
    resume: bool = checked(flag)
    received: int = checked(integer(0, 1 << 62))
    """Bytes that the gateway has delivered so far."""
    lease: int = checked(_LEASE, 0)
    """The number that the gateway holds of the kernel; see `Adopt`."""
    type: str = checked(one_of("stream"), "stream")


@dataclass(eq=False, repr=False)
class KernelBrief(Wire):
    """What the greeting says of a kernel: what balancing counts. Other fields may come with it."""

    kernel: str = checked(text(_ID))
    state: str = checked(text(_ID))


@dataclass(eq=False, repr=False)
class AgentIdentity(Wire):
    """Who an agent is: agents in one folder, which find each other's records, have one *id*."""

    id: str = checked(text(_ID))
    folder: str = checked(text(_PATH))
    """The folder's path, for messages."""
    machine: str = checked(text(_ID), "")
    boot: str = checked(text(_ID), "")
    """The boot of the machine in which the agent runs; empty: unknown."""

    @property
    def place(self) -> tuple[str, str, str] | None:
        """What two names of one machine have in common: the agent's folder, the machine and its boot; None where unknown.

        Not the folder alone: clones of one machine that share a home have that in common as well, and are two machines.
        """
        return (self.id, self.machine, self.boot) if self.machine and self.boot else None

    def knows_end_of(self, starter: AgentIdentity) -> bool:
        """Return True if a kernel of *starter* that this agent does not have is dead.

        So it is where both have the same records, and where the machine was booted since.
        """
        is_later_boot = self.machine == starter.machine and "" not in (self.boot, starter.boot)
        return self.id == starter.id or (is_later_boot and self.boot != starter.boot)


@dataclass(eq=False, repr=False)
class Welcome(Wire):
    """The agent's answer to a ControlHello."""

    protocol: int = checked(integer(0, 1 << 16))
    digest: str = checked(text(_ID))
    kernels: list[KernelBrief] = checked(items(_record(KernelBrief)))
    ok: bool = checked(flag, True)
    agent: AgentIdentity | None = checked(optional(_record(AgentIdentity)), None)
    """None: an agent of a release that had no identity."""
    keeps_output: bool = checked(flag, False)
    """Whether it knows `TakeOutput`."""


@dataclass(eq=False, repr=False)
class StreamAnswer(Wire):
    """The agent's answer to a StreamHello: how many bytes it has delivered, or why there is no stream."""

    ok: bool = checked(flag)
    received: int = checked(integer(0, 1 << 62), 0)
    stalled: float = checked(number(0, 1e12), 0.0)
    """Seconds for which the kernel's socket could not be read while the gateway was away."""
    taken: bool = checked(flag, False)
    """Whether there is none because another gateway has adopted the kernel."""
    error: str | None = checked(optional(text()), None)


@dataclass(eq=False, repr=False)
class FolderHello(Wire):
    """Announces the archive of a kernelspec's folder; sent by a gateway's SpecFolders when a start was answered with `folder`."""

    digest: str = checked(text(_ID))
    """SHA-256 of the archive, as hex digits."""
    size: int = checked(integer(0, 1 << 32))
    """Bytes of the archive, which follow if the agent wants them."""
    type: str = checked(one_of("folder"), "folder")


@dataclass(eq=False, repr=False)
class FolderAnswer(Wire):
    """The agent's answer to a FolderHello, and once more when it has the archive: whether the folder is there now, or why not."""

    ok: bool = checked(flag)
    wanted: bool = checked(flag, False)
    """Whether the archive is to be sent."""
    error: str | None = checked(optional(text()), None)


# -- what is said of a kernel ------------------------------------------------------------------------------------


@dataclass(eq=False, repr=False)
class Description(Wire):
    """What gateways may know of a kernel; no key, no environment."""

    kernel: str = checked(text(_ID))
    attempt: str = checked(text(_ID))
    owner: str = checked(text(_ID))
    host_set: str = checked(text())
    argv: list[str] = checked(items(text(MAX_ANSWER)))
    """As it was executed, cut to what is worth showing."""
    state: str = checked(text(_ID))
    """starting, running or exited; of a Found also ELSEWHERE and TAKEN_OVER, of a Listed also QUEUED."""
    exit_code: int | None = checked(optional(integer(-(1 << 31), 1 << 31)))
    pid: int = checked(integer(0, 1 << 31))
    start_time: float = checked(number(0, 1e12))
    """Seconds since the epoch."""
    log_path: str = checked(text(_PATH))


@dataclass(eq=False, repr=False)
class Started(Description):
    """The answer to `Start`."""

    warning: str = checked(text(WARNING), "")
    """What the user should know of the start: a working directory other than the one that was asked for."""
    lease: int = checked(_LEASE, 0)
    """The number that the gateway holds of the kernel from now on; see `Adopt`. 0: an agent of a release without leases."""
    warm: str = checked(one_of("", "forked", "cold"), "")
    """How a start went that may have been warm; empty: of one that may not, or of an agent of a release that knows none."""


@dataclass(eq=False, repr=False)
class Listed(Description):
    """An entry of the answer to `ListKernels`."""

    claimed: bool = checked(flag, False)
    """Whether a connected gateway answers for the kernel."""
    awaited: bool = checked(flag, False)
    """Whether a stream to it is used, or kept for a gateway that may come back."""
    lease: int = checked(_LEASE, 0)
    """The number that its gateway holds, or the last one held."""
    before: int = checked(integer(-1, 1 << 31), -1)
    """Of one that is `queued`: how many starts come before it; -1: it is not."""


QUEUED = "queued"
"""The state of a Listed whose start waits for its turn; see agent/admission.py."""
ELSEWHERE = "elsewhere"
"""The state of a Found that another living agent has, one that is ending as a rule. `ready` or `exited` follows when the agent
that said so has taken the kernel over."""
TAKEN_OVER = "taken"
"""The state of a Found that another gateway has adopted since: its owner answers for it, and the gateway that asked does not."""


@dataclass(eq=False, repr=False)
class Found(Description):
    """What the agent says of a kernel that a gateway adopts. `Missing` stands for one that it does not have."""

    log: str = checked(text(), "")
    """The end of its output, if it has exited."""
    response: str = checked(text(), "")
    """What its launcher answered while no gateway was connected."""
    lease: int = checked(_LEASE, 0)
    """The number that the gateway holds of the kernel from now on; of one that is TAKEN_OVER, its owner's."""


@dataclass(eq=False, repr=False)
class Missing(Wire):
    """The agent has no such kernel. Made at the gateway: on the wire it is an entry that is not there."""

    kernel: str = checked(text(_ID))


# -- requests ----------------------------------------------------------------------------------------------------


class Request(Wire, Generic[R]):
    """A question to the agent; R is what `answer` makes of its result."""

    METHOD: ClassVar[str]

    @staticmethod
    def answer(result: Any, /) -> Any:
        """Return a reply's *result* as R; raises Malformed."""
        raise NotImplementedError


@dataclass(eq=False, repr=False)
class Start(Request[Started]):
    """Start a kernel. Sent by RemoteKernel.start_on, for each attempt; the agent answers when the process exists."""

    METHOD: ClassVar[str] = "start"

    kernel: str = checked(text(_ID))
    attempt: str = checked(text(_ID))
    owner: str = checked(text(_ID))
    host_set: str = checked(text())
    argv: list[str] = checked(items(text(MAX_MESSAGE), least=1))
    spec_env: dict[str, str] = checked(table(text(MAX_MESSAGE)))
    """Of the kernelspec: expanded once, on the node."""
    env: dict[str, str] = checked(table(text(MAX_MESSAGE)))
    """Of the client and the gateway: data, never expanded; wins over `spec_env`."""
    transport: str = checked(one_of("ipc", "tcp", "launcher"))
    key: str = checked(text(_PATH))
    signature_scheme: str = checked(text(_ID))
    orphan_timeout: float = checked(number(0, 1e12))
    """Seconds without a gateway after which the kernel is ended; 0: never."""
    cwd: str | None = checked(optional(text(_PATH)), None)
    kernel_name: str = checked(text(_PATH), "")
    log_dir: str | None = checked(optional(text(_PATH)), None)
    port_range: tuple[int, int] | None = checked(_ports, None)
    files: dict[str, str] = checked(table(text(MAX_MESSAGE), 1000), {})
    """A launcher's files: relative paths and texts."""
    interrupt_signal: str | None = checked(optional(text(_ID)), None)
    """The name of the signal that stands for SIGINT; empty: SIGINT itself."""
    on_exit: list[str] = checked(items(text()), [])
    """argv to be run on the node after the kernel has ended."""
    spec_folder: str = checked(text(_ID), "")
    """The digest of the folder that `{resource_dir}` in argv stands for; empty: it was filled in by the gateway."""
    believed: int = checked(integer(-1, 1 << 31), -1)
    """How many kernels the node was picked for having. An agent that has more, starts of others included, refuses with `busier`,
    and tells in a `Load` before which ones; -1: the node was not picked for that."""
    lease: int = checked(_LEASE, 0)
    """The number that the gateway holds of the attempt before, on whichever host that was; as of a Signal. 0: there was none."""
    queues: bool = checked(flag, False)
    """Whether the start waits for its turn among those of the node, which a `Queue` tells of; one of an older gateway, which
    would take that for a node that hangs, begins at once."""
    warm: bool = checked(flag, False)
    """Whether the kernel may be forked from a template, where that makes no difference to it; see agent/warm.py."""
    preload: list[str] = checked(texts(_ID, 100), [])
    """Modules that such a template imports beside the kernel's own."""

    answer = staticmethod(Started.read)


@dataclass(eq=False, repr=False)
class SetEndpoints(Request[None]):
    """Tell the agent what a launcher's answer, decrypted by the gateway, says of its kernel."""

    METHOD: ClassVar[str] = "endpoints"

    kernel: str = checked(text(_ID))
    connection: Message = checked(table(scalar, 100))
    pid: int = checked(integer(0, 1 << 31), 0)
    """The process to be interrupted; 0: unknown."""
    lease: int = checked(_LEASE, 0)
    """As of a Signal."""

    answer = staticmethod(lambda result: None)


@dataclass(eq=False, repr=False)
class Signal(Request[bool]):
    """Signal a kernel; the answer is False if it has ended."""

    METHOD: ClassVar[str] = "signal"

    kernel: str = checked(text(_ID))
    signum: int = checked(integer(0, 64))
    lease: int = checked(_LEASE, 0)
    """The number that the gateway holds of the kernel: refused with `taken` where a later one was given. 0: an operator's
    command, or an older release; not compared."""

    answer = staticmethod(flag)


@dataclass(eq=False, repr=False)
class Stopped(Wire):
    """The answer to `Stop`; *stopped* is False if there is no such kernel or attempt."""

    stopped: bool = checked(flag)
    exit_code: int | None = checked(optional(integer(-(1 << 31), 1 << 31)), None)


@dataclass(eq=False, repr=False)
class Stop(Request[Stopped]):
    """End a kernel: SIGTERM, and SIGKILL after *grace* seconds. Answered when it has ended."""

    METHOD: ClassVar[str] = "stop"

    kernel: str = checked(text(_ID))
    attempt: str = checked(text(_ID), "")
    """The attempt to be ended; empty: whichever runs."""
    grace: float = checked(number(0, 86400), 5.0)
    forget: bool = checked(flag, False)
    """Whether the agent shall also drop its record and files."""
    lease: int = checked(_LEASE, 0)
    """As of a Signal. With 0, what another connected gateway answers for is refused as well, unless `force`."""
    force: bool = checked(flag, False)
    """An operator's: whoever has the kernel."""

    answer = staticmethod(Stopped.read)


@dataclass(eq=False, repr=False)
class Adopt(Request[Message]):
    """Make this gateway the one that answers for *kernels*; the answer has a Found, unread, for each that is there.

    A kernel has one owner at a time, and a number, its lease, that grows with each new one. A gateway that has been away says
    which number it holds. If it is not the latest, another one has adopted the kernel meanwhile: the Found is TAKEN_OVER.
    A gateway that holds none takes the kernel over, by whomever it is owned: it was asked to go on with a kernel of before.
    """

    METHOD: ClassVar[str] = "adopt"
    MOST: ClassVar[int] = 10
    """Kernels of one request: the answer has the ends of their logs and what their launchers said, and stays within MAX_ANSWER
    even where JSON escapes each character."""

    kernels: list[str] = checked(texts(_ID))
    leases: dict[str, int] = checked(table(_LEASE), {})
    """The numbers that it holds, by kernel; none for one that it takes over."""
    late: list[str] = checked(texts(_ID), [])
    """Those that it was asked for so long ago that it takes them over from no gateway that is connected."""

    # Not read here: one entry that is malformed must not hide the others.
    answer = staticmethod(table(lambda entry: entry))


@dataclass(eq=False, repr=False)
class ListKernels(Request["list[Listed]"]):
    """Ask for all kernels of the node."""

    METHOD: ClassVar[str] = "list"

    answer = staticmethod(items(_record(Listed)))


@dataclass(eq=False, repr=False)
class ReadLog(Request[str]):
    """Ask for up to *size* bytes of the end of what a kernel printed."""

    METHOD: ClassVar[str] = "log"

    kernel: str = checked(text(_ID))
    size: int = checked(integer(0, MAX_ANSWER // 8), 65536)

    answer = staticmethod(text(MAX_ANSWER))


@dataclass(eq=False, repr=False)
class LogEntry(Wire):
    """The log of one start of a kernel, which runs or has ended."""

    kernel: str = checked(text(_ID))
    attempt: str = checked(text(_ID))
    state: str = checked(text(_ID))
    """starting, running or exited."""
    exit_code: int | None = checked(optional(integer(-(1 << 31), 1 << 31)))
    start_time: float = checked(number(0, 1e12))
    """Seconds since the epoch."""
    end_time: float = checked(number(0, 1e12), 0.0)
    """The same of its end; 0: it has not ended."""


@dataclass(eq=False, repr=False)
class FindLogs(Request["list[LogEntry]"]):
    """Ask for the logs of the kernels whose ids begin with *kernel*: of those that run, and of those that ended lately.

    Sent for `jupyter distributed logs`. An agent of an older release has no such method, and says so.
    """

    METHOD: ClassVar[str] = "logs"
    MOST: ClassVar[int] = 200
    """Entries of one answer, the newest ones."""

    kernel: str = checked(text(_ID))

    answer = staticmethod(items(_record(LogEntry)))


@dataclass(eq=False, repr=False)
class LogPart(Wire):
    """The answer to `ReadLogPart`."""

    text: str = checked(text(MAX_ANSWER))
    position: int = checked(integer(0, 1 << 62))
    """Where the next part begins."""
    ended: bool = checked(flag)
    """Whether nothing will follow: the kernel has ended, and this is the end of its log."""
    exit_code: int | None = checked(optional(integer(-(1 << 31), 1 << 31)), None)


@dataclass(eq=False, repr=False)
class ReadLogPart(Request[LogPart]):
    """Ask for what a kernel printed from *position* on, which is counted in bytes; sent for `jupyter distributed logs`.

    Where that was dropped because the log outgrew its cap, the part begins with the oldest that is left.
    """

    METHOD: ClassVar[str] = "log_part"

    kernel: str = checked(text(_ID))
    attempt: str = checked(text(_ID))
    position: int = checked(integer(0, 1 << 62), 0)
    size: int = checked(integer(16, MAX_ANSWER // 8), MAX_ANSWER // 8)

    answer = staticmethod(LogPart.read)


@dataclass(eq=False, repr=False)
class OutputPart(Wire):
    """The answer to `TakeOutput`: some bytes of the records that `agent/kept_output.py` describes."""

    data: str = checked(text(MAX_ANSWER))
    """In base64."""
    start: int = checked(integer(0, 1 << 62))
    """The position of the first of them: later than what was asked for where older records gave way."""
    position: int = checked(integer(0, 1 << 62))
    """Where the next part begins."""
    is_all: bool = checked(flag)
    """Whether there is nothing more for now."""
    numbered: int = checked(integer(0, 1 << 62), 0)
    """How many messages of its output the agent has seen, kept or not; with *is_all*."""
    is_after: bool = checked(flag, False)
    """Whether it begins behind the message that was asked for, among those that are numbered."""


@dataclass(eq=False, repr=False)
class TakeOutput(Request[OutputPart]):
    """Ask for what a kernel said while no gateway was there: on iopub, or its replies to the client's *session*.

    Positions begin at 0, and mean nothing but to the agent. Of replies, those before *position* are forgotten.
    """

    METHOD: ClassVar[str] = "output"
    PIECE: ClassVar[int] = MAX_ANSWER // 2
    """Bytes of one answer, at most, before base64."""

    kernel: str = checked(text(_ID))
    session: str = checked(text(_ID), "")
    """Empty: its output."""
    position: int = checked(integer(0, 1 << 62), 0)
    after: str = checked(text(_ID), "")
    """The id of the last message that is not needed any more; with position 0, and of no effect if it is not there."""

    answer = staticmethod(OutputPart.read)


@dataclass(eq=False, repr=False)
class ForgetOutput(Request[None]):
    """Tell the agent that what it kept of a kernel's output has been taken, and that it need not listen to it any more."""

    METHOD: ClassVar[str] = "forget_output"

    kernel: str = checked(text(_ID))

    answer = staticmethod(lambda result: None)


@dataclass(eq=False, repr=False)
class HostKernelspec(Wire):
    """A kernelspec that a node has for its own users; an entry of `HostKernelspecs`."""

    name: str = checked(text(100))
    """Of its folder, in lower case."""
    root: str = checked(text(_PATH))
    """Of what was looked through: the folder of kernelspecs, or the pattern, that led to it."""
    folder: str = checked(text(_PATH))
    """Its own."""
    prefix: str = checked(text(_PATH))
    """Where the environment is that it belongs to; empty: none is known."""
    is_environment: bool = checked(flag)
    """Whether a pattern led to it, so that others of its name may be in other environments."""
    argv: list[str] = checked(items(text(_PATH), 256, least=1))
    """As it is to be executed on the node: the interpreter is that of the environment."""
    display_name: str = checked(text(256))
    language: str = checked(text(100))
    env: dict[str, str] = checked(table(text(_PATH), 200), {})
    interrupt_mode: str = checked(one_of("signal", "message"), "signal")
    debugger: bool = checked(flag, False)
    """Whether JupyterLab may offer its debugger."""
    features: list[str] = checked(texts(100, 50), [])
    """`supported_features` of its metadata."""
    logos: dict[str, str] = checked(table(text(64), 10), {})
    """By the names of their files, which of the answer's logos it has."""


@dataclass(eq=False, repr=False)
class HostKernelspecs(Wire):
    """The answer to `FindKernelspecs`."""

    MOST: ClassVar[int] = 200
    """Kernelspecs of one answer."""

    kernelspecs: list[Any] = checked(items(lambda entry: entry, MOST))
    """A HostKernelspec each, in Jupyter's order; not read here, since one that is malformed must not hide the others."""
    logos: dict[str, str] = checked(table(text(MAX_ANSWER // 2), 500), {})
    """Pictures in base64, by some digest: kernelspecs share them."""
    unread: list[str] = checked(texts(_PATH, 500), [])
    """The roots that could not be looked through in time."""
    left_out: list[str] = checked(texts(_PATH, 50), [])
    """Which kernelspecs are not among them, and why; not all, where there are many."""

    def each(self) -> Iterator[HostKernelspec]:
        """Yield the kernelspecs, but those that are malformed."""
        for entry in self.kernelspecs:
            with contextlib.suppress(Malformed):
                yield HostKernelspec.read(entry)


@dataclass(eq=False, repr=False)
class FindKernelspecs(Request[HostKernelspecs]):
    """Ask for the kernelspecs that the node has for its own users, of the login and in environments.

    Sent for the launcher of a Jupyter server. An agent of an older release has no such method, and says so.
    """

    METHOD: ClassVar[str] = "kernelspecs"

    patterns: list[str] = checked(items(text(_PATH), 64), [])
    """Where environments are: paths with `~` and `*`."""

    answer = staticmethod(HostKernelspecs.read)


@dataclass(eq=False, repr=False)
class TemplateSeen(Wire):
    """A template of the node, from which kernels are forked."""

    pid: int = checked(integer(0, 1 << 31))
    argv: list[str] = checked(items(text(_PATH), 100))
    """Its interpreter, with that one's options."""
    preload: list[str] = checked(texts(_ID, 100))
    forked: int = checked(integer(0, 1 << 62))
    """Kernels that were forked from it so far."""
    kernels: int = checked(integer(0, 1 << 31))
    """Those of them that run."""
    memory: int = checked(integer(0, 1 << 62))
    """Bytes, of pages that it shares with its kernels its share (PSS); 0: not known."""
    since: float = checked(number(0, 1e12))
    """Seconds since the epoch."""
    is_retired: bool = checked(flag, False)
    """Whether it is forked no more, and only waits for the ends of its kernels."""


@dataclass(eq=False, repr=False)
class WarmStarts(Wire):
    """The answer to `FindTemplates`: the templates, and how the node's starts have gone so far that may have been warm."""

    templates: list[TemplateSeen] = checked(items(_record(TemplateSeen), 100))
    forked: int = checked(integer(0, 1 << 62))
    cold: dict[str, int] = checked(table(integer(0, 1 << 62), 100))
    """By why."""


@dataclass(eq=False, repr=False)
class FindTemplates(Request[WarmStarts]):
    """Ask for the node's templates. An agent of an older release has no such method, and says so."""

    METHOD: ClassVar[str] = "templates"

    answer = staticmethod(WarmStarts.read)


@dataclass(eq=False, repr=False)
class Pong(Wire):
    """The answer to `Ping`."""

    pid: int = checked(integer(0, 1 << 31))
    digest: str = checked(text(_ID), "")
    running: int = checked(integer(0, 1 << 31), 0)


@dataclass(eq=False, repr=False)
class Ping(Request[Pong]):
    """Show that the gateway lives, and learn whether the agent does."""

    METHOD: ClassVar[str] = "ping"

    answer = staticmethod(Pong.read)


@dataclass(eq=False, repr=False)
class Leave(Request[bool]):
    """Ask the agent to end itself; the answer is False if it has kernels or serves another gateway."""

    METHOD: ClassVar[str] = "leave"

    answer = staticmethod(flag)


@dataclass(eq=False, repr=False)
class Login(Request[bool]):
    """Tell what a login to the node has today: its environment and its umask, for kernels that start from now on.

    Sent by the boot of each login to an agent that is there already. The answer is False where it takes a nursery to start
    kernels with that login's groups and limits (see agent/nursery.py). An agent of a release that does not know it answers
    with an error, and has its kernels start as its own login was.
    """

    METHOD: ClassVar[str] = "login"

    env: dict[str, str] = checked(table(text(MAX_MESSAGE)))
    umask: int = checked(integer(0, 0o777))
    open_files: int = checked(integer(-1, 1 << 62), -1)
    """The soft limit; -1: unlimited."""
    standing: str = checked(text(64), "")
    """What its groups and limits come to; see `standing` in agent/boot.py."""

    answer = staticmethod(flag)


_REQUESTS: dict[str, type[Request[Any]]] = {
    kind.METHOD: kind
    for kind in (
        Start,
        SetEndpoints,
        Signal,
        Stop,
        Adopt,
        ListKernels,
        ReadLog,
        FindLogs,
        ReadLogPart,
        TakeOutput,
        ForgetOutput,
        FindKernelspecs,
        FindTemplates,
        Ping,
        Leave,
        Login,
    )
}


def write_request(number: int, request: Request[Any]) -> Message:
    """Return *request* as message *number* of its connection."""
    return {"id": number, "method": request.METHOD, "params": request.write()}


def read_request(message: Message) -> Request[Any]:
    """Return the request in *message*; raises Malformed, also for a method that this release does not have."""
    method = message.get("method")
    kind = _REQUESTS.get(method) if isinstance(method, str) else None
    if kind is None:
        raise Malformed(f"no method {shown(method)}")
    return kind.read(message.get("params") or {})


@dataclass(eq=False, repr=False)
class Reply(Wire):
    """The answer to the request *id*: its result, or an error of some *kind*."""

    id: int = checked(integer(0, 1 << 62))
    result: Any = checked(lambda value: value, None)
    error: str | None = checked(optional(text(MAX_ANSWER)), None)
    kind: str = checked(text(_ID), "")
    """start: the kernel's fault; host: another host might do better; folder: the kernelspec's folder has to be brought first;
    gone: no such kernel; taken: another gateway has adopted the kernel; busier: the node has more kernels than it was picked
    for; full: no more starts may wait there; malformed, internal."""
    remedy: str = checked(text(_PATH), "")
    """What to do about the error, where the agent knows better than by its kind."""
    owner: str = checked(text(_ID), "")
    """Of `taken`: the gateway that has the kernel."""
    lease: int = checked(_LEASE, 0)
    """Of `taken`: the number that it holds."""


# -- events ------------------------------------------------------------------------------------------------------


class Event(Wire):
    """What the agent says unasked."""

    EVENT: ClassVar[str]


@dataclass(eq=False, repr=False)
class KernelEvent(Event):
    """An event of one kernel, for the gateway that answers for it; those of earlier attempts are ignored there."""

    kernel: str = checked(text(_ID))
    attempt: str = checked(text(_ID))


@dataclass(eq=False, repr=False)
class Ready(KernelEvent):
    """All five sockets of the kernel accept connections."""

    EVENT: ClassVar[str] = "ready"

    pid: int = checked(integer(0, 1 << 31), 0)
    """The process that was executed, which may be another one than at the start; 0: as it was told then."""


@dataclass(eq=False, repr=False)
class Exited(KernelEvent):
    """The kernel has ended."""

    EVENT: ClassVar[str] = "exited"

    exit_code: int | None = checked(optional(integer(-(1 << 31), 1 << 31)))
    log: str = checked(text(), "")


@dataclass(eq=False, repr=False)
class Answered(KernelEvent):
    """The kernel's launcher has sent its connection information, encrypted for the gateway."""

    EVENT: ClassVar[str] = "response"

    payload: str = checked(text())


@dataclass(eq=False, repr=False)
class Stalled(KernelEvent):
    """The kernel's output could not be read for *seconds*, so that it may have dropped some."""

    EVENT: ClassVar[str] = "stalled"

    seconds: float = checked(number(0, 1e12))


@dataclass(eq=False, repr=False)
class Replied(KernelEvent):
    """The kernel has answered clients of a gateway's process that has ended: their replies may be taken by `TakeOutput`."""

    EVENT: ClassVar[str] = "replied"


@dataclass(eq=False, repr=False)
class Taken(KernelEvent):
    """Another gateway has adopted the kernel: told to the one that answered for it, which does no longer."""

    EVENT: ClassVar[str] = "taken"

    owner: str = checked(text(_ID))
    lease: int = checked(_LEASE)
    """The number of the new owner."""


@dataclass(eq=False, repr=False)
class Queued(KernelEvent):
    """An entry of a `Queue`: what is known of one start there."""

    before: int = checked(integer(-1, 1 << 31))
    """How many starts come before it; -1: its turn has come, and the agent begins with it."""
    begun: int = checked(integer(0, 1 << 62))
    """How many turns have come so far: the queue moves if this does, whatever is before the start."""


@dataclass(eq=False, repr=False)
class Queue(Event):
    """How starts of the gateway wait for their turns. Told when one begins to wait, each second, and when its turn has come."""

    EVENT: ClassVar[str] = "queue"

    starts: list[Queued] = checked(items(_record(Queued)))


@dataclass(eq=False, repr=False)
class Load(Event):
    """The kernels that run on the node or are being started there, of all gateways."""

    EVENT: ClassVar[str] = "load"

    kernels: list[str] = checked(texts(_ID))


_EVENTS: dict[str, type[Event]] = {
    kind.EVENT: kind for kind in (Ready, Exited, Answered, Stalled, Replied, Taken, Queue, Load)
}


def write_event(event: Event) -> Message:
    """Return *event* as a message."""
    return {"event": event.EVENT, **event.write()}


def read_event(message: Message) -> Event | None:
    """Return the event in *message*, None for one that this release does not know; raises Malformed."""
    name = message.get("event")
    if not isinstance(name, str):
        raise Malformed(f"an event named {shown(name)}")
    kind = _EVENTS.get(name)
    return None if kind is None else kind.read(message)

"""The messages between a gateway and an agent, typed once for both ends; standard library only.

The agent carries this file to its node. A connection to the agent's socket opens with one *hello*, which says what the
connection is for:

    control   requests, replies and events of one gateway, as messages, until either side closes
    stream    one of a kernel's ZMQ connections, as the frames of `streams.py`, resumable under the stream's id

A message is a JSON object behind its length (4 bytes, big-endian). Requests carry `id`, `method` and `params`;
replies `id` and `result` or `error`; events `event` and their fields.

Each message is a dataclass here, and its fields carry their checks: `read` turns JSON into the dataclass and raises
`Malformed` for what is missing, of another type, or larger than its bound. A malformed message is an error of that message
alone: its length is known, so the next one can be read. Only a length that is out of bounds ends the connection
(`BrokenFraming`). Unknown fields, methods and events are a newer release's, and no error.
"""

from __future__ import annotations

import asyncio
import json
import struct
from dataclasses import MISSING as _MISSING
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Callable, ClassVar, Generic, Protocol, TypeVar

PROTOCOL = 4
"""Version of everything in this file, in streams.py and of the agent's requests: one more for whatever an older gateway or
agent would not understand. Version 4: names of a launcher's files may have folders; the greeting names kernels by id and
state only."""
OLDEST_PROTOCOL = PROTOCOL - 1
"""The oldest version that a gateway still speaks with an agent that cannot make room for a new one."""
FOLDERS_PROTOCOL = 4
"""The version from which on a launcher's files may lie in folders."""

CHANNELS = ("shell", "iopub", "stdin", "hb", "control")
"""A kernel's five channels, in the order of their ports in an `ipc` connection file (1 to 5)."""

SENTINEL = b"\x1e eg-distributed agent \x1e"
"""What precedes the agent's first answer, so that the noise of a login can be told from it."""

MAX_MESSAGE = 64 * 1024 * 1024
"""Upper bound in bytes of a message to an agent, which starts with files may need; more is a broken peer."""
MAX_ANSWER = 1024 * 1024
"""Upper bound in bytes of a message from an agent. The gateway parses it on the loop that carries all cells, and any cell on
a node can speak in its agent's place, so it is as small as the largest honest message allows."""

Message = dict[str, Any]
"""A message as JSON has it: for connection information and other contents that neither end interprets."""
_LENGTH = struct.Struct(">I")


class Malformed(ValueError):
    """The content of one message is invalid; the connection can go on with the next message."""


class BrokenFraming(ValueError):
    """A message's length is out of bounds, so the next message cannot be found: the connection has to be closed."""


# -- checks of fields --------------------------------------------------------------------------------------------

Check = Callable[[Any], Any]
"""Returns a field's value as it is kept; raises Malformed without naming the field, which `Wire.read` adds."""
W = TypeVar("W", bound="Wire")
R = TypeVar("R")

_ID, _TEXT, _PATH = 256, 128 * 1024, 4096  # characters: of an identifier, of any other text, of a path
_MANY = 10_000  # entries of a list or table that has no smaller bound


def text(limit: int = _TEXT) -> Check:
    """Return a check for a string of at most *limit* characters."""

    def check(value: Any) -> str:
        if not isinstance(value, str):
            raise Malformed(f"{_kind(value)} instead of a text")
        if len(value) > limit:
            raise Malformed(f"a text of {len(value)} characters, at most {limit} are allowed")
        return value

    return check


def integer(low: int, high: int) -> Check:
    """Return a check for a whole number from *low* to *high*."""

    def check(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise Malformed(f"{_kind(value)} instead of a whole number")
        if not low <= value <= high:
            raise Malformed("a number that is out of bounds")
        return value

    return check


def number(low: float, high: float) -> Check:
    """Return a check for a number from *low* to *high*; NaN and infinities fail it."""

    def check(value: Any) -> float:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise Malformed(f"{_kind(value)} instead of a number")
        if not low <= value <= high:
            raise Malformed("a number that is out of bounds")
        return float(value)

    return check


def flag(value: Any) -> bool:
    """Check a boolean."""
    if not isinstance(value, bool):
        raise Malformed(f"{_kind(value)} instead of a boolean")
    return value


def optional(check: Check) -> Check:
    """Return a check for null, or what *check* takes."""
    return lambda value: None if value is None else check(value)


def items(check: Check, limit: int = _MANY, least: int = 0) -> Check:
    """Return a check for a list of *least* to *limit* entries, each of which *check* takes."""

    def check_all(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise Malformed(f"{_kind(value)} instead of a list")
        if len(value) > limit:
            raise Malformed(f"a list of {len(value)} entries, at most {limit} are allowed")
        if len(value) < least:
            raise Malformed(f"a list of {len(value)} entries, at least {least} are needed")
        return [check(entry) for entry in value]

    return check_all


def table(check: Check, limit: int = _MANY) -> Check:
    """Return a check for an object of at most *limit* entries, each of whose values *check* takes."""

    def check_all(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise Malformed(f"{_kind(value)} instead of an object")
        if len(value) > limit:
            raise Malformed(f"an object of {len(value)} entries, at most {limit} are allowed")
        return {name: check(entry) for name, entry in value.items()}

    return check_all


def one_of(*words: str) -> Check:
    """Return a check for one of *words*."""

    def check(value: Any) -> Any:
        if value not in words:
            raise Malformed(f"{_shown(value)} instead of one of {', '.join(words)}")
        return value

    return check


def scalar(value: Any) -> Any:
    """Check a value of connection information: text, number, boolean or null."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return text()(value)


def _ports(value: Any) -> tuple[int, int] | None:
    """Check a range of ports: null, or its first and last port."""
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise Malformed(f"{_shown(value)} instead of a first and a last port")
    low, high = (integer(0, 65535)(port) for port in value)
    return low, high


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:80]}…"


def wire(check: Check, default: Any = _MISSING) -> Any:
    """Declare a dataclass field that *check* guards; one with a *default* may be missing in the message."""
    if isinstance(default, (list, dict)):
        made = type(default)
        return field(default_factory=made, metadata={"check": check})
    return field(default=default, metadata={"check": check})


class Wire:
    """Base of all messages and of the records in them. Subclasses are frozen dataclasses whose fields `wire` declares."""

    @classmethod
    def read(cls: type[W], message: Any) -> W:
        """Return *message*, a decoded JSON value, as this dataclass; raises Malformed, which names the field."""
        if not isinstance(message, dict):
            raise Malformed(f"{cls.__name__}: {_kind(message)} instead of an object")
        values = {}
        for each in fields(cls):  # type: ignore[arg-type]  # every subclass is a dataclass
            if each.name in message:
                try:
                    values[each.name] = each.metadata["check"](message[each.name])
                except Malformed as error:
                    raise Malformed(f"{cls.__name__}.{each.name}: {error}") from None
            elif each.default is _MISSING and each.default_factory is _MISSING:
                raise Malformed(f"{cls.__name__}.{each.name} is missing")
        return cls(**values)

    def write(self) -> Message:
        """Return this as JSON has it; a field that may be null and is null is left out."""
        values = {}
        for each in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            value = getattr(self, each.name)
            if value is not None or each.default is not None:
                values[each.name] = _plain(value)
        return values


def _plain(value: Any) -> Any:
    """Return *value* without dataclasses in it, for JSON."""
    if isinstance(value, Wire) and is_dataclass(value):
        return value.write()
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return value


def _record(kind: type[W]) -> Check:
    return kind.read


# -- hellos ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ControlHello(Wire):
    """Opens a control connection; sent by a gateway's Node, and by the boot when it looks for an agent."""

    gateway: str = wire(text(_ID))
    """The gateway's stable identity."""
    incarnation: str = wire(text(_ID))
    """One life of its process."""
    protocol: int = wire(integer(0, 1 << 16), OLDEST_PROTOCOL)
    """What the gateway speaks; version 3 did not say so."""
    type: str = wire(one_of("control"), "control")


@dataclass(frozen=True)
class StreamHello(Wire):
    """Opens or resumes a stream; sent by a kernel's Endpoints for each connection of a client."""

    kernel: str = wire(text(_ID))
    channel: str = wire(text(_ID))
    stream: str = wire(text(_ID))
    gateway: str = wire(text(_ID))
    incarnation: str = wire(text(_ID))
    resume: bool = wire(flag)
    received: int = wire(integer(0, 1 << 62))
    """Bytes that the gateway has delivered so far."""
    type: str = wire(one_of("stream"), "stream")


@dataclass(frozen=True)
class KernelBrief(Wire):
    """What the greeting says of a kernel: what balancing counts. Other fields may come with it."""

    kernel: str = wire(text(_ID))
    state: str = wire(text(_ID))


@dataclass(frozen=True)
class Welcome(Wire):
    """The agent's answer to a ControlHello."""

    protocol: int = wire(integer(0, 1 << 16))
    digest: str = wire(text(_ID))
    kernels: list[KernelBrief] = wire(items(_record(KernelBrief)))
    ok: bool = wire(flag, True)


@dataclass(frozen=True)
class StreamAnswer(Wire):
    """The agent's answer to a StreamHello: how many bytes it has delivered, or why there is no stream."""

    ok: bool = wire(flag)
    received: int = wire(integer(0, 1 << 62), 0)
    stalled: float = wire(number(0, 1e12), 0.0)
    """Seconds for which the kernel's socket could not be read while the gateway was away."""
    error: str | None = wire(optional(text()), None)


# -- what is said of a kernel ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Description(Wire):
    """What gateways may know of a kernel; no key, no environment."""

    kernel: str = wire(text(_ID))
    attempt: str = wire(text(_ID))
    owner: str = wire(text(_ID))
    host_set: str = wire(text())
    argv: list[str] = wire(items(text(MAX_ANSWER)))
    """As it was executed, cut to what is worth showing."""
    state: str = wire(text(_ID))
    """starting, running or exited."""
    exit_code: int | None = wire(optional(integer(-(1 << 31), 1 << 31)))
    pid: int = wire(integer(0, 1 << 31))
    start_time: float = wire(number(0, 1e12))
    """Seconds since the epoch."""
    log_path: str = wire(text(_PATH))


@dataclass(frozen=True)
class Listed(Description):
    """An entry of the answer to `ListKernels`."""

    claimed: bool = wire(flag, False)
    """Whether a connected gateway answers for the kernel."""


@dataclass(frozen=True)
class Found(Description):
    """What the agent says of a kernel that a gateway adopts. `Missing` stands for one that it does not have."""

    log: str = wire(text(), "")
    """The end of its output, if it has exited."""
    response: str = wire(text(), "")
    """What its launcher answered while no gateway was connected."""


@dataclass(frozen=True)
class Missing(Wire):
    """The agent has no such kernel. Made at the gateway: on the wire it is an entry that is not there."""

    kernel: str = wire(text(_ID))


# -- requests ----------------------------------------------------------------------------------------------------


class Request(Wire, Generic[R]):
    """A question to the agent; R is what `answer` makes of its result."""

    METHOD: ClassVar[str]

    @staticmethod
    def answer(result: Any, /) -> Any:
        """Return a reply's *result* as R; raises Malformed."""
        raise NotImplementedError


@dataclass(frozen=True)
class Start(Request[Description]):
    """Start a kernel. Sent by RemoteKernel.start_on, for each attempt; the agent answers when the process exists."""

    METHOD: ClassVar[str] = "start"

    kernel: str = wire(text(_ID))
    attempt: str = wire(text(_ID))
    owner: str = wire(text(_ID))
    host_set: str = wire(text())
    argv: list[str] = wire(items(text(MAX_MESSAGE), least=1))
    spec_env: dict[str, str] = wire(table(text(MAX_MESSAGE)))
    """Of the kernelspec: expanded once, on the node."""
    env: dict[str, str] = wire(table(text(MAX_MESSAGE)))
    """Of the client and the gateway: data, never expanded; wins over `spec_env`."""
    transport: str = wire(one_of("ipc", "tcp", "launcher"))
    key: str = wire(text(_PATH))
    signature_scheme: str = wire(text(_ID))
    orphan_timeout: float = wire(number(0, 1e12))
    """Seconds without a gateway after which the kernel is ended; 0: never."""
    cwd: str | None = wire(optional(text(_PATH)), None)
    kernel_name: str = wire(text(_PATH), "")
    log_dir: str | None = wire(optional(text(_PATH)), None)
    port_range: tuple[int, int] | None = wire(_ports, None)
    files: dict[str, str] = wire(table(text(MAX_MESSAGE), 1000), {})
    """A launcher's files: relative paths and texts."""
    interrupt_signal: str | None = wire(optional(text(_ID)), None)
    """The name of the signal that stands for SIGINT; empty: SIGINT itself."""
    on_exit: list[str] = wire(items(text()), [])
    """argv to be run on the node after the kernel has ended."""

    answer = staticmethod(Description.read)


@dataclass(frozen=True)
class SetEndpoints(Request[None]):
    """Tell the agent what a launcher's answer, decrypted by the gateway, says of its kernel."""

    METHOD: ClassVar[str] = "endpoints"

    kernel: str = wire(text(_ID))
    connection: Message = wire(table(scalar, 100))
    pid: int = wire(integer(0, 1 << 31), 0)
    """The process to be interrupted; 0: unknown."""

    answer = staticmethod(lambda result: None)


@dataclass(frozen=True)
class Signal(Request[bool]):
    """Signal a kernel; the answer is False if it has ended."""

    METHOD: ClassVar[str] = "signal"

    kernel: str = wire(text(_ID))
    signum: int = wire(integer(0, 64))

    answer = staticmethod(flag)


@dataclass(frozen=True)
class Stopped(Wire):
    """The answer to `Stop`; *stopped* is False if there is no such kernel or attempt."""

    stopped: bool = wire(flag)
    exit_code: int | None = wire(optional(integer(-(1 << 31), 1 << 31)), None)


@dataclass(frozen=True)
class Stop(Request[Stopped]):
    """End a kernel: SIGTERM, and SIGKILL after *grace* seconds. Answered when it has ended."""

    METHOD: ClassVar[str] = "stop"

    kernel: str = wire(text(_ID))
    attempt: str = wire(text(_ID), "")
    """The attempt to be ended; empty: whichever runs."""
    grace: float = wire(number(0, 86400), 5.0)
    forget: bool = wire(flag, False)
    """Whether the agent shall also drop its record and files."""

    answer = staticmethod(Stopped.read)


@dataclass(frozen=True)
class Adopt(Request[Message]):
    """Make this gateway the one that answers for *kernels*; the answer has a Found, unread, for each that is there."""

    METHOD: ClassVar[str] = "adopt"
    MOST: ClassVar[int] = 10
    """Kernels of one request: the answer has the ends of their logs and what their launchers said, and stays within MAX_ANSWER
    even where JSON escapes each character."""

    kernels: list[str] = wire(items(text(_ID)))

    # Not read here: one entry that is malformed must not hide the others.
    answer = staticmethod(table(lambda entry: entry))


@dataclass(frozen=True)
class ListKernels(Request["list[Listed]"]):
    """Ask for all kernels of the node."""

    METHOD: ClassVar[str] = "list"

    answer = staticmethod(items(_record(Listed)))


@dataclass(frozen=True)
class ReadLog(Request[str]):
    """Ask for up to *size* bytes of the end of what a kernel printed."""

    METHOD: ClassVar[str] = "log"

    kernel: str = wire(text(_ID))
    size: int = wire(integer(0, MAX_ANSWER // 8), 65536)

    answer = staticmethod(text(MAX_ANSWER))


@dataclass(frozen=True)
class Pong(Wire):
    """The answer to `Ping`."""

    pid: int = wire(integer(0, 1 << 31))
    digest: str = wire(text(_ID), "")
    starting: int = wire(integer(0, 1 << 31), 0)
    running: int = wire(integer(0, 1 << 31), 0)


@dataclass(frozen=True)
class Ping(Request[Pong]):
    """Show that the gateway lives, and learn whether the agent does."""

    METHOD: ClassVar[str] = "ping"

    answer = staticmethod(Pong.read)


@dataclass(frozen=True)
class Leave(Request[bool]):
    """Ask the agent to end itself; the answer is False if it has kernels or serves another gateway."""

    METHOD: ClassVar[str] = "leave"

    answer = staticmethod(flag)


_REQUESTS: dict[str, type[Request[Any]]] = {
    kind.METHOD: kind for kind in (Start, SetEndpoints, Signal, Stop, Adopt, ListKernels, ReadLog, Ping, Leave)
}


def write_request(number: int, request: Request[Any]) -> Message:
    """Return *request* as message *number* of its connection."""
    return {"id": number, "method": request.METHOD, "params": request.write()}


def read_request(message: Message) -> Request[Any]:
    """Return the request in *message*; raises Malformed, also for a method that this release does not have."""
    method = message.get("method")
    kind = _REQUESTS.get(method) if isinstance(method, str) else None
    if kind is None:
        raise Malformed(f"no method {_shown(method)}")
    return kind.read(message.get("params") or {})


@dataclass(frozen=True)
class Reply(Wire):
    """The answer to the request *id*: its result, or an error of some *kind*."""

    id: int = wire(integer(0, 1 << 62))
    result: Any = wire(lambda value: value, None)
    error: str | None = wire(optional(text(MAX_ANSWER)), None)
    kind: str = wire(text(_ID), "")
    """start: the kernel's fault; host: another host might do better; gone: no such kernel; malformed, internal."""


# -- events ------------------------------------------------------------------------------------------------------


class Event(Wire):
    """What the agent says unasked."""

    EVENT: ClassVar[str]


@dataclass(frozen=True)
class KernelEvent(Event):
    """An event of one kernel, for the gateway that answers for it; those of earlier attempts are ignored there."""

    kernel: str = wire(text(_ID))
    attempt: str = wire(text(_ID))


@dataclass(frozen=True)
class Ready(KernelEvent):
    """All five sockets of the kernel accept connections."""

    EVENT: ClassVar[str] = "ready"


@dataclass(frozen=True)
class Exited(KernelEvent):
    """The kernel has ended."""

    EVENT: ClassVar[str] = "exited"

    exit_code: int | None = wire(optional(integer(-(1 << 31), 1 << 31)), None)
    log: str = wire(text(), "")


@dataclass(frozen=True)
class Answered(KernelEvent):
    """The kernel's launcher has sent its connection information, encrypted for the gateway."""

    EVENT: ClassVar[str] = "response"

    payload: str = wire(text())


@dataclass(frozen=True)
class Stalled(KernelEvent):
    """The kernel's output could not be read for *seconds*, so that it may have dropped some."""

    EVENT: ClassVar[str] = "stalled"

    seconds: float = wire(number(0, 1e12))


@dataclass(frozen=True)
class Load(Event):
    """The kernels that run on the node, of all gateways."""

    EVENT: ClassVar[str] = "load"

    kernels: list[str] = wire(items(text(_ID)))


_EVENTS: dict[str, type[Event]] = {kind.EVENT: kind for kind in (Ready, Exited, Answered, Stalled, Load)}


def write_event(event: Event) -> Message:
    """Return *event* as a message."""
    return {"event": event.EVENT, **event.write()}


def read_event(message: Message) -> Event | None:
    """Return the event in *message*, None for one that this release does not know; raises Malformed."""
    name = message.get("event")
    if not isinstance(name, str):
        raise Malformed(f"an event named {_shown(name)}")
    kind = _EVENTS.get(name)
    return None if kind is None else kind.read(message)


# -- framing -----------------------------------------------------------------------------------------------------


class Reader(Protocol):
    """What is needed of a reader: asyncio's StreamReader and asyncssh's SSHReader both have it."""

    async def read(self, n: int = -1) -> bytes:
        """Return up to *n* bytes, b"" at the end."""
        ...

    async def readexactly(self, n: int) -> bytes:
        """Return *n* bytes or raise IncompleteReadError."""
        ...


class Writer(Protocol):
    """What is needed of a writer: asyncio's StreamWriter and asyncssh's SSHWriter both have it."""

    def write(self, data: bytes) -> None:
        """Queue *data*."""
        ...

    async def drain(self) -> None:
        """Wait until the queue is short again."""
        ...

    def close(self) -> None:
        """Close after what is queued."""
        ...


def encode(message: Message) -> bytes:
    """Return *message* as it goes over a connection."""
    body = json.dumps(message, separators=(",", ":")).encode("utf-8", "surrogatepass")
    return _LENGTH.pack(len(body)) + body


async def read_message(reader: Reader, limit: int = MAX_MESSAGE) -> Message | None:
    """Return the next message of at most *limit* bytes, or None when the peer has closed.

    Raises Malformed for a message that is not a JSON object, after which the next one can be read, and BrokenFraming for one
    that is too long.
    """
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > limit:
            raise BrokenFraming(f"a message of {length} bytes, at most {limit} are allowed")
        body = await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    try:
        message = json.loads(body.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:  # RecursionError: lists within lists, a thousand deep
        raise Malformed(f"a message that is not JSON ({error})") from None
    if not isinstance(message, dict):
        raise Malformed("a message that is not an object")
    return message

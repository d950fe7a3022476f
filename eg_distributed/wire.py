"""How messages go over a connection: their framing, and the checks of what is in them. Standard library only.

The agent carries this file to its node. A message is a JSON object behind its length (4 bytes, big-endian). The messages
themselves are in `protocol.py`, as dataclasses whose fields carry checks. `Wire.read` turns JSON into such a dataclass and
raises `Malformed` for what is missing, of another type, or larger than its bound.

A malformed message is an error of that message alone: its length is known, so the next one can be read. Only a length that
is out of bounds ends the connection (`BrokenFraming`), since where the next message begins is then unknown.
"""

from __future__ import annotations

import asyncio
import json
import struct
from dataclasses import MISSING as _MISSING
from dataclasses import field, fields, is_dataclass
from typing import Any, Callable, Protocol, TypeVar

MAX_MESSAGE = 64 * 1024 * 1024
"""Upper bound in bytes of a message to an agent, which starts with files may need; more is a broken peer."""
MAX_ANSWER = 1024 * 1024
"""Upper bound in bytes of a message from an agent. The gateway parses it on the loop that carries all cells, and any cell on
a node can speak in its agent's place, so it is as small as the largest honest message allows."""

Message = dict[str, Any]
"""A message as JSON has it: for connection information and other contents that neither end interprets."""
_LENGTH = struct.Struct(">I")
_to_json = json.JSONEncoder(separators=(",", ":")).encode  # made once: `json.dumps` makes one for each message


class Malformed(ValueError):
    """The content of one message is invalid; the connection can go on with the next message."""


class BrokenFraming(ValueError):
    """A message's length is out of bounds, so the next message cannot be found: the connection has to be closed."""


# -- checks of fields --------------------------------------------------------------------------------------------

Check = Callable[[Any], Any]
"""Returns a field's value as it is kept; raises Malformed without naming the field, which `Wire.read` adds."""
W = TypeVar("W", bound="Wire")

_TEXT = 128 * 1024  # characters of a text that has no smaller bound
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
        return [check(entry) for entry in _list(value, limit, least)]

    return check_all


def texts(each: int, limit: int = _MANY) -> Check:
    """Return `items(text(each), limit)`, which asks no function for each entry: ids of kernels come by the hundred, often."""
    check = text(each)

    def check_all(value: Any) -> list[Any]:
        return [
            entry if type(entry) is str and len(entry) <= each else check(entry) for entry in _list(value, limit, 0)
        ]

    return check_all


def _list(value: Any, limit: int, least: int) -> list[Any]:
    if not isinstance(value, list):
        raise Malformed(f"{_kind(value)} instead of a list")
    if len(value) > limit:
        raise Malformed(f"a list of {len(value)} entries, at most {limit} are allowed")
    if len(value) < least:
        raise Malformed(f"a list of {len(value)} entries, at least {least} are needed")
    return value


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
            raise Malformed(f"{shown(value)} instead of one of {', '.join(words)}")
        return value

    return check


def scalar(value: Any) -> Any:
    """Check a value of connection information: text, number, boolean or null."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return text()(value)


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def shown(value: Any) -> str:
    """Return *value* for an error's text."""
    text_of = repr(value)
    return text_of if len(text_of) <= 80 else f"{text_of[:80]}…"


def one_line(text: str, limit: int = 500) -> str:
    """Return *text*, which a node said, for one line of a log: no line of its own, no control character, *limit* characters."""
    line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text[: 4 * limit].split()))
    return line if len(line) <= limit else line[: limit - 1] + "…"


def checked(check: Check, default: Any = _MISSING) -> Any:
    """Declare a dataclass field that *check* guards; one with a *default* may be missing in the message."""
    if isinstance(default, (list, dict)):
        made = type(default)
        return field(default_factory=made, metadata={"check": check})
    return field(default=default, metadata={"check": check})


class Wire:
    """Base of all messages and of the records in them. Subclasses are dataclasses whose fields `checked` declares.

    They are made with `eq=False, repr=False`, and compared and shown by the methods here: each method that `dataclass` writes
    for a class costs half a millisecond of an agent's start, and there are thirty classes.
    """

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]  # as of any dataclass that can be compared and changed

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    @classmethod
    def read(cls: type[W], message: Any) -> W:
        """Return *message*, a decoded JSON value, as this dataclass; raises Malformed, which names the field."""
        if not isinstance(message, dict):
            raise Malformed(f"{cls.__name__}: {_kind(message)} instead of an object")
        values = {}
        for name, check, is_needed, _ in _fields(cls):
            if name in message:
                try:
                    values[name] = check(message[name])
                except Malformed as error:
                    raise Malformed(f"{cls.__name__}.{name}: {error}") from None
            elif is_needed:
                raise Malformed(f"{cls.__name__}.{name} is missing")
        return cls(**values)

    def write(self) -> Message:
        """Return this as JSON has it; a field that may be null and is null is left out."""
        values = {}
        for name, _, _, may_be_null in _fields(type(self)):
            value = getattr(self, name)
            if value is not None or not may_be_null:
                values[name] = value if type(value) in _PLAIN else _plain(value)
        return values


_PLAIN = (str, int, float, bool, type(None))
_FieldOf = tuple[str, Check, bool, bool]
"""Of a field: its name, its check, whether a message must have it, and whether it is left out where it is null."""
_known_fields: dict[type, tuple[_FieldOf, ...]] = {}


def _fields(kind: type[Wire]) -> tuple[_FieldOf, ...]:
    """Return the fields of a dataclass; asked for each message, so what `dataclasses` says of them is looked up once."""
    found = _known_fields.get(kind)
    if found is None:
        found = _known_fields[kind] = tuple(
            (
                each.name,
                each.metadata["check"],
                each.default is _MISSING and each.default_factory is _MISSING,
                each.default is None,
            )
            for each in fields(kind)  # type: ignore[arg-type]  # every subclass is a dataclass
        )
    return found


def _plain(value: Any) -> Any:
    """Return *value* without dataclasses in it, for JSON."""
    if isinstance(value, Wire) and is_dataclass(value):
        return value.write()
    if isinstance(value, list):
        return [entry if type(entry) is str else _plain(entry) for entry in value]
    return value


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


class LocalWriter(Writer, Protocol):
    """What is needed of a socket's writer beyond that; asyncio's StreamWriter has it."""

    @property
    def transport(self) -> asyncio.WriteTransport:
        """What it writes to."""
        ...

    def is_closing(self) -> bool:
        """Whether it is closed, or about to be."""
        ...

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what the transport knows of itself."""
        ...


def encode(message: Message) -> bytes:
    """Return *message* as it goes over a connection."""
    body = _to_json(message).encode("utf-8", "surrogatepass")
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

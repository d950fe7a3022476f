"""Reading a lab.toml: strictly, and with the line and the nearest right word in every refusal."""

from __future__ import annotations

import math
import re
import sys
import types
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, Union

import msgspec

from lab import units
from lab.errors import LabNotFound, LabUsageError
from lab.names import nearest
from lab.topology.checks import check
from lab.topology.model import VERSION, Topology

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T", bound=msgspec.Struct)

_UNIONS: Final = (Union, types.UnionType)

Path_ = tuple[str | int, ...]


class Refused(Exception):
    """One thing in the file can't be; *path* leads to it. The reader adds file and line."""

    def __init__(self, path: Path_, why: str, remedy: str = "") -> None:
        super().__init__(why)
        self.path = path
        self.why = why
        self.remedy = remedy


def load(path: str | Path, *, drivers: Collection[str] = ()) -> Topology:
    """Return the topology in the file *path*; raise LabUsageError naming file, line, what is wrong and what is right.

    *drivers* are those that the file may name, of which this room knows none. Empty: any; one that there is not is then refused
    when the lab is made.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise LabNotFound(f"there is no file {path}", remedy="`lab schema` says what goes into one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise LabUsageError(f"{path} can't be read", cause=str(error)) from error
    return loads(text, str(path), drivers=drivers)


def loads(text: str, source: str = "lab.toml", *, drivers: Collection[str] = ()) -> Topology:
    """Return the topology in *text*; *source* is what errors call it, *drivers* as for `load`."""
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # Not TOMLDecodeError alone: a number of 5000 digits and lists within lists end otherwise.
        raise LabUsageError(f"{source} is no TOML", cause=str(error), remedy="mend that line") from error
    try:
        _check_version(data)
        topology = table(Topology, data, ())
        if topology.driver is not None and drivers and topology.driver not in drivers:
            raise _none_of(("driver",), topology.driver, drivers)
        check(topology, Refused)
    except Refused as refused:
        where = f"{source}:{line_of(text, refused.path)}"
        raise LabUsageError(
            f"{where}: {spell(refused.path)}" if refused.path else where, cause=refused.why, remedy=refused.remedy
        ) from None
    return topology


def _check_version(data: Mapping[str, Any]) -> None:
    if "version" not in data:
        raise Refused((), f"version is missing: `version = {VERSION}` has to be there")
    if data["version"] != VERSION or isinstance(data["version"], bool):
        raise Refused(("version",), f"this lab reads version {VERSION}", f"`version = {VERSION}`, or a newer lab")


def table(kind: type[T], data: Any, path: Path_) -> T:
    """Return *data* as *kind*, one of the classes of model.py; raise Refused.

    msgspec decides what fits and makes the objects. What its errors can't tell is looked for before: which group of a table
    of groups it was, so which line; and the right word nearest to a wrong one.
    """
    return msgspec.convert(_checked(kind, data, path), kind)


def _checked(kind: Any, data: Any, path: Path_) -> Any:
    """Return *data*, which is to be a *kind*, with durations and sizes as numbers; raise Refused where msgspec refuses it."""
    bare, says = opened(kind)
    if isinstance(bare, type) and issubclass(bare, msgspec.Struct):
        return _checked_table(bare, _dict(data, path), path)
    origin = typing.get_origin(bare)
    if origin is Mapping:
        name_kind, item_kind = typing.get_args(bare)
        for name in _dict(data, path):
            _checked(name_kind, name, (*path, name))
        return {name: _checked(item_kind, each, (*path, name)) for name, each in data.items()}
    if origin is tuple:
        if not isinstance(data, list):
            raise Refused(path, "must be a list", f"[{data!r}]")
        return [_checked(typing.get_args(bare)[0], each, (*path, number)) for number, each in enumerate(data)]
    return _checked_value(kind, says, data, path)


def _checked_table(kind: type[msgspec.Struct], data: dict[str, Any], path: Path_) -> dict[str, Any]:
    known = {key.encode_name: key for key in msgspec.structs.fields(kind)}
    for name in data:
        if name not in known:
            raise Refused((*path, name), f"unknown key {name!r}", advice(name, known))
    for name, key in known.items():
        if key.required and name not in data:
            doc = next(say.description for say in opened(key.type)[1] if say.description)
            raise Refused(path, f"{name!r} is missing", doc)
    return {name: _checked(known[name].type, data[name], (*path, name)) for name in known if name in data}


def _checked_value(kind: Any, says: Sequence[msgspec.Meta], data: Any, path: Path_) -> Any:
    unit = next((say.extra["unit"] for say in says if say.extra), "")
    found = _number(unit, data, says, path) if unit else data
    try:
        msgspec.convert(found, kind)
    except msgspec.ValidationError:
        raise _refused(kind, says, data, found, path) from None
    for text in found if isinstance(found, list) else [found]:
        if isinstance(text, str) and ("\n" in text or "\0" in text):
            raise Refused(path, "may hold no line break")
    return found


def _number(unit: str, data: Any, says: Sequence[msgspec.Meta], path: Path_) -> float:
    if isinstance(data, bool) or not isinstance(data, (int, float, str)):
        example = next((say.examples[0] for say in says if say.examples), "15s")
        raise Refused(path, f"must be a {unit}, as {example!r}")
    try:
        return units.seconds(data) if unit == "duration" else units.size(data)
    except ValueError as error:
        raise Refused(path, str(error)) from None


def _refused(kind: Any, says: Sequence[msgspec.Meta], data: Any, found: Any, path: Path_) -> Refused:
    """Return in our words why msgspec doesn't take *data*, which is *found* where it has a unit."""
    bare = opened(kind)[0]
    if typing.get_origin(bare) is Literal:
        return _none_of(path, data, typing.get_args(bare))
    least = next((say.ge for say in says if say.ge is not None), None)
    most = next((say.le for say in says if say.le is not None), None)
    pattern = next((say.pattern for say in says if say.pattern), None)
    try:
        msgspec.convert(found, bare)
    except msgspec.ValidationError:
        kinds = typing.get_args(bare) if typing.get_origin(bare) in _UNIONS else (bare,)
        words = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}
        return Refused(path, f"must be {' or '.join(words.get(each, 'a list') for each in kinds)}, not {data!r}")
    if pattern is not None:
        return Refused(path, f"{data!r} can't be: it must match {pattern.removeprefix('^').removesuffix('$')}")
    if isinstance(found, float) and math.isnan(found):  # neither too little nor too much
        return Refused(path, f"must be a number, not {data!r}")
    if most is not None and found > most:
        return Refused(path, f"{units.shown(data)} is too much: {most:.16g} is the most")
    return Refused(path, f"{units.shown(data)} is too little: {least} is the least")


def _none_of(path: Path_, data: Any, choices: Collection[Any]) -> Refused:
    return Refused(path, f"{data!r} is none of {', '.join(map(str, choices))}", advice(str(data), choices))


def _dict(data: Any, path: Path_) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise Refused(path, "must be a table")
    return data


def opened(kind: Any) -> tuple[Any, list[msgspec.Meta]]:
    """Return a type without `Annotated` and `| None`, and what these said of it: a file leaves out what it doesn't say."""
    says: list[msgspec.Meta] = []
    while True:
        if typing.get_origin(kind) is Annotated:
            kind, *more = typing.get_args(kind)
            says += more
        elif typing.get_origin(kind) in _UNIONS and type(None) in typing.get_args(kind):
            rest = [part for part in typing.get_args(kind) if part is not type(None)]
            kind = rest[0] if len(rest) == 1 else Union[tuple(rest)]  # noqa: UP007 -- made at run time
        else:
            return kind, says


def advice(word: str, known: Iterable[Any]) -> str:
    """Return advice that names the right word nearest to *word*, or all of them."""
    right = [str(each) for each in known]
    close = nearest(word, right)
    return f"did you mean {close[0]!r}?" if close else f"known are: {', '.join(right)}"


def spell(path: Path_) -> str:
    """Return `nodes.gpu.limits.cpus` or `faults[2].for` for a path."""
    text = ""
    for part in path:
        text += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if text else part
    return text


_HEADER = re.compile(r"\s*(\[\[?)\s*([^\]]+?)\s*\]\]?\s*(#.*)?$")
_ASSIGNMENT = re.compile(r"\s*((?:[\w-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*(?:[\w-]+|\"[^\"]*\"|'[^']*'))*)\s*=")


def line_of(text: str, path: Path_) -> int:
    """Return the number of the line that *path* is on, or the nearest line around it that can be told.

    TOML's reader of the standard library forgets lines, so this follows headers and assignments; keys inside inline
    tables and lists get the line where those begin.
    """
    best, best_length = 1, 0
    current: Path_ = ()
    counts: dict[Path_, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            current = _words(header.group(2))
            if header.group(1) == "[[":
                counts[current] = counts.get(current, -1) + 1
                current = (*current, counts[current])
            else:
                current = _numbered(current, counts)
            here = current
        elif assignment := _ASSIGNMENT.match(line):
            here = (*current, *_words(assignment.group(1)))
        else:
            continue
        # Either leads to the other: the key inside the table of this line, or the table that this line is inside.
        shared = min(len(path), len(here))
        if path[:shared] == here[:shared] and shared > best_length:
            best, best_length = number, shared
    return best


def _words(dotted: str) -> Path_:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))


def _numbered(path: Path_, counts: Mapping[Path_, int]) -> Path_:
    """Return `("faults", 0, "options")` for `[faults.options]` behind the first `[[faults]]`."""
    for length in range(len(path), 0, -1):
        if path[:length] in counts:
            return (*path[:length], counts[path[:length]], *path[length:])
    return path

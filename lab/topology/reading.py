"""Reading a lab.toml: strictly, and with the line and the nearest right word in every refusal."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from lab import units
from lab.errors import LabNotFound, LabUsageError
from lab.names import nearest
from lab.topology import fields
from lab.topology.checks import check
from lab.topology.model import VERSION, Topology

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")

Path_ = tuple[str | int, ...]


class Refused(Exception):
    """One thing in the file can't be; *path* leads to it. The reader adds file and line."""

    def __init__(self, path: Path_, why: str, remedy: str = "") -> None:
        super().__init__(why)
        self.path = path
        self.why = why
        self.remedy = remedy


def load(path: str | Path) -> Topology:
    """Return the topology in the file *path*; raise LabUsageError naming file, line, what is wrong and what is right."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise LabNotFound(f"there is no file {path}", remedy="`lab schema` says what goes into one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise LabUsageError(f"{path} can't be read", cause=str(error)) from error
    return loads(text, str(path))


def loads(text: str, source: str = "lab.toml") -> Topology:
    """Return the topology in *text*; *source* is what errors call it."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise LabUsageError(f"{source} is no TOML", cause=str(error), remedy="mend that line") from error
    try:
        _check_version(data)
        topology = table(Topology, data, ())
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
    """Return *data* as the dataclass *kind*; raise Refused."""
    if not isinstance(data, dict):
        raise Refused(path, "must be a table")
    known = {key.name: key for key in fields.keys(kind)}
    for name in data:
        if name not in known:
            raise Refused((*path, name), f"unknown key {name!r}", advice(name, known))
    values = {}
    for key in known.values():
        if key.name in data:
            values[key.attribute] = value(key.type, data[key.name], (*path, key.name), key.said)
        elif key.required:
            raise Refused(path, f"{key.name!r} is missing", str(key.said["doc"]))
    return kind(**values)


def value(kind: Any, data: Any, path: Path_, said: Mapping[str, Any]) -> Any:
    """Return *data* as *kind* (a type of a dataclass's field), checked by what is *said* about it; raise Refused."""
    kind = fields.without_none(kind)
    if options := fields.choices(kind):
        if data not in options or isinstance(data, bool):
            raise Refused(path, f"{data!r} is none of {', '.join(map(str, options))}", advice(str(data), options))
        return data
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return table(kind, data, path)
    if fields.is_mapping(kind):
        if not isinstance(data, dict):
            raise Refused(path, "must be a table")
        for name in data:
            _check_pattern(name, (*path, name), said)
        inner: Mapping[str, Any] = {}
        return {name: value(fields.item(kind), each, (*path, name), inner) for name, each in data.items()}
    if fields.is_list(kind):
        if not isinstance(data, list):
            raise Refused(path, "must be a list", f"[{data!r}]")
        return tuple(value(fields.item(kind), each, (*path, number), said) for number, each in enumerate(data))
    return _scalar(kind, data, path, said)


def _scalar(kind: Any, data: Any, path: Path_, said: Mapping[str, Any]) -> Any:
    if kind is Any:
        return data
    if "kind" in said:
        if isinstance(data, bool) or not isinstance(data, (int, float, str)):
            raise Refused(path, f"must be a {said['kind']}, as {said.get('example', '15s')!r}")
        try:
            found: Any = units.seconds(data) if said["kind"] == "duration" else units.size(data)
        except ValueError as error:
            raise Refused(path, str(error)) from None
    else:
        found = _plain(fields.alternatives(kind), data, path)
    if "minimum" in said and found < said["minimum"]:
        raise Refused(path, f"{data!r} is too little: {said['minimum']} is the least")
    if isinstance(found, str):
        _check_pattern(found, path, said)
        if "\n" in found or "\0" in found:
            raise Refused(path, "may hold no line break")
    return found


def _plain(kinds: tuple[Any, ...], data: Any, path: Path_) -> Any:
    words = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}
    for kind in kinds:
        if fields.is_list(kind) and isinstance(data, list):
            return tuple(_plain((fields.item(kind),), each, (*path, number)) for number, each in enumerate(data))
        if kind is float and isinstance(data, int) and not isinstance(data, bool):
            return float(data)
        if kind in words and isinstance(data, kind) and (kind is bool or not isinstance(data, bool)):
            return data
    raise Refused(path, f"must be {' or '.join(words.get(kind, 'a list') for kind in kinds)}, not {data!r}")


def _check_pattern(text: str, path: Path_, said: Mapping[str, Any]) -> None:
    pattern = said.get("pattern")
    if pattern is not None and not re.fullmatch(pattern, text):
        raise Refused(path, f"{text!r} can't be: it must match {pattern}")


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

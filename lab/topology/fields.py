"""The dataclasses of model.py as data: what the reader and the schema both walk over."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union

from lab.topology import model


@dataclass(frozen=True)
class Key:
    """One key of a table: *name* as in the file, *attribute* as in the dataclass, its type and what is said about it."""

    name: str
    attribute: str
    type: Any
    required: bool
    default: Any
    said: Mapping[str, Any]


def keys(table: type) -> tuple[Key, ...]:
    """Return the keys of a dataclass in the order in which they are written there."""
    hints = typing.get_type_hints(table, vars(model))
    return tuple(_keys(table, hints))


def _keys(table: type, hints: Mapping[str, Any]) -> Iterator[Key]:
    for field in dataclasses.fields(table):
        made = field.default_factory is not dataclasses.MISSING
        bare = field.default is dataclasses.MISSING and not made
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        yield Key(
            field.metadata.get("key", field.name),
            field.name,
            hints[field.name],
            bare or bool(field.metadata.get("required")),
            None if bare else default,
            field.metadata,
        )


def without_none(kind: Any) -> Any:
    """Return `X` for `X | None`: a file leaves out what it doesn't say."""
    if typing.get_origin(kind) in {Union, types.UnionType}:
        rest = [part for part in typing.get_args(kind) if part is not type(None)]
        return rest[0] if len(rest) == 1 else Union[tuple(rest)]  # noqa: UP007 -- made at run time
    return kind


def alternatives(kind: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the type itself."""
    return typing.get_args(kind) if typing.get_origin(kind) in {Union, types.UnionType} else (kind,)


def choices(kind: Any) -> tuple[Any, ...]:
    """Return the values of a Literal, nothing for other types."""
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


def item(kind: Any) -> Any:
    """Return the items' type of `tuple[X, …]` or `Mapping[str, X]`."""
    return typing.get_args(kind)[0 if is_list(kind) else 1]


def is_list(kind: Any) -> bool:
    """Say whether *kind* is `tuple[X, …]`."""
    return typing.get_origin(kind) is tuple


def is_mapping(kind: Any) -> bool:
    """Say whether *kind* is `Mapping[str, X]`."""
    return typing.get_origin(kind) is Mapping

"""The JSON schema of a lab.toml, for editors and for `lab schema`; made from the classes of model.py, so it can't be behind.

`python -m lab.topology` writes docs/lab.schema.json; a unit test fails while that is not current.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from lab.topology.model import Topology

FILE: Final = Path(__file__).resolve().parent.parent.parent / "docs" / "lab.schema.json"

_SILENT: Final[tuple[tuple[str, Any], ...]] = (
    ("default", None),
    ("default", {}),
    ("default", []),
    ("default", ()),
    ("required", []),
)
_REFERENCE: Final = "#/$defs/{name}"


def schema() -> dict[str, Any]:
    """Return the schema as a document of draft 2020-12."""
    _, tables = msgspec.json.schema_components([Topology], ref_template=_REFERENCE)
    root = _tidy(tables[Topology.__name__])
    # The reader asks for it by itself: an object that is made in Python has a version without saying so.
    root["required"] = ["version"]
    root |= {"title": "lab.toml", "description": "A lab of SSH nodes and Jupyter Enterprise Gateways."}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **root,
        "$defs": {name: _tidy(tables[name]) for name in _named(root, tables)},
    }


def text() -> str:
    """Return the schema as the file has it."""
    return json.dumps(schema(), indent=2) + "\n"


def _tidy(found: Any) -> Any:
    """Return what msgspec says as a file of TOML has it, and as people write units.

    TOML has no null, so what may be None is a key that may be left out; an empty default says nothing. A number with a pattern is
    one that may be written as a text with a unit.
    """
    if isinstance(found, list):
        return [_tidy(each) for each in found]
    if not isinstance(found, dict):
        return found
    tidy = {key: _tidy(value) for key, value in found.items() if (key, value) not in _SILENT}
    kinds = [each for each in tidy.get("anyOf", ()) if each != {"type": "null"}]
    if len(kinds) == 1:
        del tidy["anyOf"]
        tidy = kinds[0] | tidy
    if tidy.get("type") in {"number", "integer"} and "pattern" in tidy:
        number = {"type": "number", "minimum": tidy.pop("minimum"), "maximum": tidy.pop("maximum")}
        del tidy["type"]
        tidy = {"anyOf": [number, {"type": "string", "pattern": tidy.pop("pattern")}]} | tidy
    return tidy


def _named(found: Any, tables: Mapping[str, Any]) -> list[str]:
    """Return the names of the tables that *found* refers to, each before those that it refers to itself."""
    names: list[str] = []
    for part in found.values() if isinstance(found, dict) else found if isinstance(found, list) else ():
        names += _named(part, tables)
    if isinstance(found, dict) and "$ref" in found:
        name = found["$ref"].rpartition("/")[2]
        names += [name, *_named(tables[name], tables)]
    return list(dict.fromkeys(names))

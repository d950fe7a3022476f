"""The JSON schema of a lab.toml, for editors and for `lab schema`; made from the dataclasses, so it can't be behind.

`python -m lab.topology` writes docs/lab.schema.json; a unit test fails while that is not current.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from lab import units
from lab.topology import fields
from lab.topology.model import Topology

FILE: Final = Path(__file__).resolve().parent.parent.parent / "docs" / "lab.schema.json"

_PLAIN: Final = {str: "string", int: "integer", float: "number", bool: "boolean"}


def schema() -> dict[str, Any]:
    """Return the schema as a document of draft 2020-12."""
    definitions: dict[str, Any] = {}
    root = _table(Topology, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "lab.toml",
        "description": "A lab of SSH nodes and Jupyter Enterprise Gateways.",
        **root,
        "$defs": definitions,
    }


def text() -> str:
    """Return the schema as the file has it."""
    return json.dumps(schema(), indent=2) + "\n"


def _table(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    required = []
    for key in fields.keys(kind):
        found = _value(key.type, key.said, definitions)
        found["description"] = key.said["doc"]
        shown = _shown(key.default)
        if shown not in (None, {}, []):
            found["default"] = shown
        if "example" in key.said:
            found["examples"] = [key.said["example"]]
        properties[key.name] = found
        if key.required:
            required.append(key.name)
    table: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    if required:
        table["required"] = required
    return table


def _value(kind: Any, said: Mapping[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    kind = fields.without_none(kind)
    if options := fields.choices(kind):
        return {"enum": list(options)}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if kind.__name__ not in definitions:
            definitions[kind.__name__] = {}
            definitions[kind.__name__] = {"description": (kind.__doc__ or "").strip(), **_table(kind, definitions)}
        return {"$ref": f"#/$defs/{kind.__name__}"}
    if fields.is_mapping(kind):
        found: dict[str, Any] = {"type": "object", "additionalProperties": _value(fields.item(kind), {}, definitions)}
        if "pattern" in said:
            found["propertyNames"] = {"pattern": f"^{said['pattern']}$"}
        return found
    if fields.is_list(kind):
        return {"type": "array", "items": _value(fields.item(kind), said, definitions)}
    kinds = fields.alternatives(kind)
    if len(kinds) > 1:
        return {"anyOf": [_value(each, said, definitions) for each in kinds]}
    return _scalar(kind, said)


def _scalar(kind: Any, said: Mapping[str, Any]) -> dict[str, Any]:
    if "kind" in said:
        pattern = units.DURATION if said["kind"] == "duration" else units.SIZE
        number: dict[str, Any] = {"type": "number"}
        if "minimum" in said:
            number["minimum"] = said["minimum"]
        return {"anyOf": [number, {"type": "string", "pattern": f"^{pattern}$"}]}
    if kind is Any:
        return {}
    found: dict[str, Any] = {"type": _PLAIN[kind]}
    if "minimum" in said:
        found["minimum"] = said["minimum"]
    if "pattern" in said and kind is str:
        found["pattern"] = f"^{said['pattern']}$"
    return found


def _shown(default: Any) -> Any:
    """Return a default as JSON, None for what stands for `not said`."""
    if dataclasses.is_dataclass(default) or isinstance(default, Mapping):
        # Defaults that are tables are described by their own keys.
        return None
    return list(default) if isinstance(default, tuple) else default

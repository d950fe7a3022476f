"""The rooms: what docs/architecture.md and the contracts of `nox -s lint` say of them is about all that there are."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
ON_NODES = {"agent", "clock", "connections", "protocol", "streams", "wire"}
AN_ADAPTERS = {"__main__", "app", "enterprise_gateway", "jupyter_server"}


def rooms(folder: Path) -> set[str]:
    """Return the names of modules and packages in *folder*."""
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    return modules | {path.parent.name for path in folder.glob("*/__init__.py")}


def contracts() -> dict[str, dict[str, Any]]:
    """Return the import contracts of pyproject.toml by their names."""
    found = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    return {each["name"]: each for each in found["tool"]["importlinter"]["contracts"]}


def names(modules: list[str]) -> set[str]:
    """Return which rooms of eg_distributed are among *modules*."""
    return {module.partition(".")[2] for module in modules if module.startswith("eg_distributed.")}


def table(heading: str) -> list[tuple[list[str], str]]:
    """Return the rows of the table with that heading in docs/architecture.md: the rooms in the first cell, and the second."""
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    body = text.partition(f"| {heading} |")[2].partition("\n\n")[0]
    rows = [line.split(" | ", 1) for line in body.splitlines()[2:]]
    return [(re.findall(r"`(\w+)(?:\.py|/)`", first), second) for first, second in rows]


@pytest.mark.parametrize(
    ("package", "heading", "contract"),
    [
        ("eg_distributed", "room", "eg_distributed: imports go downwards"),
        ("lab", "room of `lab/`", "the rooms of lab/ import downwards"),
    ],
)
def test_the_map_has_every_room_in_the_order_of_imports(package: str, heading: str, contract: str) -> None:
    """Each room is in the map once, and none imports from a row above its own: the rows go down as the layers do."""
    shown = [room for found, _ in table(heading) for room in found]
    assert sorted(shown) == sorted(rooms(ROOT / package))
    layers = [re.split(r"[|:]", layer) for layer in contracts()[contract]["layers"]]
    depth = {room.strip(): number for number, layer in enumerate(layers) for room in layer}
    assert [depth[room] for room in shown] == sorted(depth[room] for room in shown)


@pytest.mark.parametrize("package", ["app", "clients", "enterprise_gateway", "jupyter_server", "link"])
def test_the_map_names_what_is_in_a_large_room(package: str) -> None:
    """The row of a package of many files says of each what it is for."""
    (row,) = (text for found, text in table("room") if package in found)
    assert rooms(ROOT / "eg_distributed" / package) - set(re.findall(r"`(\w+)/?`", row)) == set()


def test_the_contracts_forget_no_room() -> None:
    """A new room is forbidden to what runs on nodes and to launchers, and knows no SSH and no gateway."""
    every = rooms(ROOT / "eg_distributed")
    nodes = contracts()["what runs on nodes imports nothing of the rest"]
    assert names(nodes["source_modules"]) == ON_NODES
    assert names(nodes["forbidden_modules"]) == every - ON_NODES
    launchers = contracts()["launchers import nothing of the rest"]
    assert names(launchers["forbidden_modules"]) == every - {"launchers"}
    assert names(contracts()["only link knows SSH"]["source_modules"]) == every - {"link"}
    core = contracts()["the core has never heard of a gateway"]
    assert names(core["source_modules"]) == every - AN_ADAPTERS


def test_the_labs_contracts_forget_no_room() -> None:
    """A new room of the lab knows no driver by name, and no engine's client; the exceptions have their reasons beside them."""
    drivers = {f"drivers.{room}" for room in rooms(ROOT / "lab" / "drivers")}
    every = rooms(ROOT / "lab") - {"drivers"} | drivers
    both = contracts()["only the choice among drivers knows docker and local"]["source_modules"]
    assert {module.partition(".")[2] for module in both} == every - {
        "drivers.docker",
        "drivers.local",
        "drivers.choice",
    }
    client = contracts()["only the docker driver knows the engine's client"]["source_modules"]
    assert {module.partition(".")[2] for module in client} == every - {"drivers.docker"}


def imported(path: Path) -> Iterator[str]:
    """Yield the top-level packages that the file imports, wherever in it; none for its own package."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize(
    ("room", "allowed"),
    [*((room, set[str]()) for room in sorted(ON_NODES)), ("launchers", {"ipykernel", "psutil", "pyspark"})],
)
def test_what_runs_on_nodes_needs_nothing_that_is_not_there(room: str, allowed: set[str]) -> None:
    """The agent needs the standard library alone, and launchers that and what the kernel they start brings."""
    place = ROOT / "eg_distributed" / room
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    assert files
    assert {name for path in files for name in imported(path)} - sys.stdlib_module_names - allowed == set()

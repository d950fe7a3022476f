"""The extension of JupyterLab's front end: what its files promise, without npm."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "frontend"


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / name).read_text("utf-8"))
    return found


def test_the_lock_names_no_registry() -> None:
    """Each package has a version and a hash, and no address: npm asks the registry that it is told to."""
    packages = {name: told for name, told in read("package-lock.json")["packages"].items() if name}
    assert packages
    assert not [name for name, told in packages.items() if "resolved" in told]
    assert not [name for name, told in packages.items() if not told.get("integrity") or not told.get("version")]


def test_the_page_and_the_server_mean_the_same_events() -> None:
    """The schema's id and its actions are the same in TypeScript and in Python."""
    page = (FOLDER / "src" / "happenings.ts").read_text("utf-8")
    # Read, not imported: jupyter_server is in other environments than that of the unit tests.
    server = (ROOT / "eg_distributed" / "jupyter_server" / "events.py").read_text("utf-8")
    assert re.findall(r"SCHEMA = '(.*)'", page) == re.findall(r'^SCHEMA: Final = "(.*)"$', server, re.MULTILINE) != []
    (listed,) = re.findall(r"ACTIONS: readonly string\[\] = \[(.*)\];", page)
    (meant,) = re.findall(r"^_ACTIONS: Final = \((.*)\)$", server, re.MULTILINE)
    assert re.findall(r"'(\w+)'", listed) == re.findall(r'"(\w+)"', meant) != []


def test_its_version_is_ours() -> None:
    """One release, one number."""
    (ours,) = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert read("package.json")["version"] == read("package-lock.json")["version"] == ours

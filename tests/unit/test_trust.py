"""The page on trust names code and tests that there are, and its examples do what it says."""

from __future__ import annotations

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest

import eg_distributed
from eg_distributed.hosts import parse_hosts
from eg_distributed.link.configuration import configuration_of
from eg_distributed.settings import Distributed

PACKAGE = Path(eg_distributed.__file__).parent
ROOT = PACKAGE.parent
PAGE = (ROOT / "docs" / "trust.md").read_text("utf-8")


def block(language: str) -> str:
    """Return the page's block of code in *language*."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


@cache
def _tests_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text("utf-8"))
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_")
    }


def test_tests_that_are_named_are_there() -> None:
    """Each claim's test can be run by the name that stands behind it; one without a file is in the file named before it."""
    file, named = None, 0
    for path, test in re.findall(r"`(?:((?:unit|integration|server)/[\w/]+\.py)(?:::)?)?(test_\w+)?(?=`)", PAGE):
        if path:
            file = ROOT / "tests" / path
            assert file.is_file(), path
        if test:
            assert file is not None
            assert test in _tests_of(file), f"{file} has no {test}"
            named += 1
    assert named > 25


def test_code_that_is_named_is_there() -> None:
    """Files are below the package, and the names behind them are in one of its files."""
    source = "\n".join(path.read_text("utf-8") for path in PACKAGE.rglob("*.py"))
    for path in re.findall(r"`((?:agent/|link/)?\w+\.py)`", PAGE):
        assert (PACKAGE / path).is_file(), path
    for name in re.findall(r"\.py` `?(_?\w+)`?[,;)]", PAGE):
        assert re.search(rf"\b{name}\b", source), name


def test_variables_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each variable of the example is a setting of ours, or one of Enterprise Gateway's own, and is taken as it stands."""
    theirs = {"EG_PORT", "EG_AUTH_TOKEN", "EG_REMOTE_HOSTS"}
    values = dict(line.split("=", 1) for line in block("sh").splitlines())
    ours = {trait.metadata["env"] for trait in Distributed.class_traits(config=True).values()}
    assert values.keys() - theirs <= ours
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    settings = Distributed()
    assert (settings.user, settings.identity(8889), settings.runtime_dir) == ("team-a", "team-a", "/run/gateway-a")
    assert parse_hosts(values["EG_REMOTE_HOSTS"]) == ("node1.example.org", "node2.example.org")


async def test_the_examples_hosts_lead_to_the_tenants_login(tmp_path: Path) -> None:
    """Each host of the example's kernelspec is one machine's name for one login, with a key of its own."""
    config = tmp_path / "config"
    config.write_text(block("ssh-config"))
    spec = json.loads(block("json"))
    proxy = spec["metadata"]["process_proxy"]
    assert proxy["class_name"] in {f"eg_distributed.{name}" for name in eg_distributed.__all__}
    hosts = parse_hosts(proxy["config"]["remote_hosts"])
    assert hosts == ("node1-team-a", "node2-team-a")
    for host in hosts:
        found = await configuration_of(host, Distributed(ssh_config=str(config)))
        assert (found.user, found.hostname) == ("team-a", host.replace("-team-a", ".example.org"))
        assert [path.name for path in found.identities] == ["team-a"]
        assert found.identities_only

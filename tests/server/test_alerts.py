"""The alerts and the dashboard of the docs are about metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from eg_distributed.cluster import Cluster
from eg_distributed.counters import OUTCOMES
from eg_distributed.metrics import PREFIX, Collector
from eg_distributed.settings import Distributed

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "prometheus"
ALERTS = FOLDER / "alerts.yml"
PROMTOOL = shutil.which("promtool")


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> list[str]:
    """Return those of alerts and dashboard, with a value for what Grafana fills in."""
    board = json.loads((FOLDER / "grafana.json").read_text("utf-8"))
    drawn = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    filled = [expr.replace("$__rate_interval", "5m").replace("$instance", ".*") for expr in drawn]
    return [rule["expr"] for rule in rules()] + filled


@pytest.fixture(scope="module")
def text() -> Iterator[str]:
    """What a scrape of a gateway says that knows a host."""
    cluster = Cluster(Distributed(), "tests")
    cluster.counters.of_host("node1")
    registry = CollectorRegistry()
    registry.register(Collector(lambda: cluster))
    yield generate_latest(registry).decode()
    cluster.close()


def test_each_alert_says_what_and_where() -> None:
    """It has a name of its own, a severity, and words that name the host or the gateway."""
    assert len({rule["alert"] for rule in rules()}) == len(rules())
    for rule in rules():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert "$labels." in rule["annotations"]["summary"]
        assert rule["annotations"]["description"].endswith(".")


@pytest.mark.parametrize("expression", expressions())
def test_each_expression_is_about_a_metric_that_there_is(expression: str, text: str) -> None:
    """Names of metrics, labels and outcomes are those of the collector, and what is opened is closed."""
    names = re.findall(rf"{PREFIX}\w+", expression)
    assert names
    known = set(re.findall(rf"^# TYPE ({PREFIX}\w+)", text, re.MULTILINE))
    assert {re.sub("_bucket$", "", name) for name in names} <= known
    for words in re.findall(r'outcome[=!]~?"([^"]*)"', expression):
        assert set(words.split("|")) <= set(OUTCOMES)
    for labels in re.findall(r"by \(([^)]*)\)", expression):
        assert set(labels.split(", ")) <= {"instance", "host", "state", "outcome", "direction", "le"}
    for opened, closed in ("()", "{}", "[]"):
        assert expression.count(opened) == expression.count(closed)


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool here")
def test_prometheus_reads_them(text: str, tmp_path: Path) -> None:
    """Its own tool has nothing to say against the rules, the expressions and the names."""
    drawn = {"groups": [{"name": "g", "rules": [{"record": f"r{n}", "expr": e} for n, e in enumerate(expressions())]}]}
    (tmp_path / "drawn.yml").write_text(json.dumps(drawn))
    assert PROMTOOL is not None
    for path in (ALERTS, tmp_path / "drawn.yml"):
        subprocess.run([PROMTOOL, "check", "rules", path], check=True)
    said = subprocess.run([PROMTOOL, "check", "metrics"], input=text, text=True, capture_output=True, check=False)
    assert (said.returncode, said.stdout + said.stderr) == (0, "")

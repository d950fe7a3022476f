"""The driver's JVM behind a Python kernel: one, whoever is first, and another one when it has ended."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eg_distributed.launchers.spark.options import SparkOptions, parse
from eg_distributed.launchers.spark.python.jvm import Gateway

DEADLINE = 30.0
JAVA = """#!/bin/sh
printf '\\000\\000\\020\\000\\000\\000\\000\\003abc' > "$_PYSPARK_DRIVER_CONN_INFO_PATH.new"
mv "$_PYSPARK_DRIVER_CONN_INFO_PATH.new" "$_PYSPARK_DRIVER_CONN_INFO_PATH"
exec cat
"""
"""Stands in for Java: says where it listens, as Spark does, and lives as long as its input."""


class SparkContext:
    """pyspark's, as far as its way to a JVM goes."""

    _lock = threading.RLock()
    _gateway: Any = None
    _jvm: Any = None

    @classmethod
    def _ensure_initialized(cls) -> None:
        with cls._lock:
            if cls._gateway is None:
                port, secret = os.environ["PYSPARK_GATEWAY_PORT"], os.environ["PYSPARK_GATEWAY_SECRET"]
                cls._gateway = SimpleNamespace(address=(port, secret), proc=None)
                cls._jvm = object()


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SparkOptions:
    """Options of a Spark and a Java as far as names go, with a pyspark that has no JVM yet."""
    for name in ("spark/jars", "java/bin"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "spark/jars/spark-core_2.12-3.5.9.jar").touch()
    java = tmp_path / "java/bin/java"
    java.write_text(JAVA)
    java.chmod(0o755)
    monkeypatch.setitem(sys.modules, "pyspark", SimpleNamespace(SparkContext=SparkContext))
    monkeypatch.setattr(SparkContext, "_gateway", None)
    monkeypatch.delenv("EG_ATTEMPT", raising=False)
    env = {
        "SPARK_HOME": str(tmp_path / "spark"),
        "JAVA_HOME": str(tmp_path / "java"),
        "SPARK_OPTS": "--master local[1]",
    }
    return parse([], env, "/launcher")


@pytest.fixture
def gateways(options: SparkOptions) -> Iterator[tuple[Gateway, Gateway]]:
    """Two, one after the other, as a kernel's session makes them."""
    both = Gateway(options, 2), Gateway(options, 2)
    yield both
    for gateway in both:
        gateway.end(0)


def process(gateway: Gateway) -> subprocess.Popen[bytes]:
    """Return the JVM's process."""
    assert gateway._process is not None
    return gateway._process


def test_a_jvm_that_has_ended_is_replaced(gateways: tuple[Gateway, Gateway]) -> None:
    """pyspark holds on to a dead JVM for ever; the next attempt has a new one, and no trace of it is in the environment."""
    first, second = gateways
    first.start()
    first.connect()
    assert SparkContext._gateway.address == ("4096", "abc")
    assert SparkContext._gateway.proc is process(first)
    before = SparkContext._gateway
    first.connect()
    assert SparkContext._gateway is before
    process(first).kill()
    process(first).wait(DEADLINE)
    assert not first.runs
    second.start()
    second.connect()
    assert SparkContext._gateway is not before
    assert SparkContext._gateway.proc is process(second)
    assert "PYSPARK_GATEWAY_SECRET" not in os.environ


def test_a_users_own_jvm_is_the_one(gateways: tuple[Gateway, Gateway], monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell that made a session first keeps its JVM, and ours ends."""
    mine = SimpleNamespace(proc=SimpleNamespace(poll=lambda: None))
    monkeypatch.setattr(SparkContext, "_gateway", mine)
    gateway = gateways[0]
    gateway.start()
    gateway.connect()
    process(gateway).wait(DEADLINE)
    assert SparkContext._gateway is mine


def test_a_cell_that_makes_a_session_meanwhile_waits_for_ours(gateways: tuple[Gateway, Gateway]) -> None:
    """Whoever wants a JVM while ours starts gets ours, and starts none beside it."""
    gateway = gateways[0]
    gateway.start()
    with SparkContext._lock:  # what a cell holds while it looks for a JVM
        connecting = threading.Thread(target=gateway.connect)
        connecting.start()
        assert SparkContext._gateway is None
    connecting.join(DEADLINE)
    SparkContext._ensure_initialized()
    found: Any = SparkContext._gateway
    assert found.proc is process(gateway)

"""Which Java a local lab's daemons run on."""

from pathlib import Path

import pytest

from lab.drivers.local import java
from lab.errors import EnvironmentUnfit


@pytest.fixture
def jvms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of Javas, and no other on this machine."""
    found = tmp_path / "jvm"
    found.mkdir()
    monkeypatch.setattr(java, "JVMS", found)
    return found


def install(place: Path, said: str) -> Path:
    """Put a program there that says *said* of its version, as Java does."""
    program = place / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho 'openjdk version \"{said}\" 2025-04-15' >&2\n")
    program.chmod(0o755)
    return place


def test_the_one_nearest_to_17_is_taken(jvms: Path) -> None:
    """Newer and older ones are passed over, and so is a folder without a Java."""
    for name, said in (("a", "25.0.1"), ("b", "21.0.2"), ("d", "1.8.0_402"), ("e", "17.0.15")):
        install(jvms / name, said)
    (jvms / "c").mkdir()
    assert java.find({"PATH": ""}) == jvms / "e"


def test_java_home_comes_first_if_it_fits(jvms: Path, tmp_path: Path) -> None:
    """A JAVA_HOME of 21 is taken before the system's 17, one of 25 is not."""
    install(jvms / "a", "17.0.15")
    chosen, newest = install(tmp_path / "chosen", "21.0.2"), install(tmp_path / "newest", "25")
    assert java.find({"PATH": "", "JAVA_HOME": str(chosen)}) == chosen
    assert java.find({"PATH": "", "JAVA_HOME": str(newest)}) == jvms / "a"


def test_the_one_on_path_is_found(jvms: Path, tmp_path: Path) -> None:
    """By its real folder, not by the link in /usr/bin."""
    home = install(tmp_path / "own", "17.0.1")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "java").symlink_to(home / "bin" / "java")
    assert java.find({"PATH": str(tmp_path / "links")}) == home


def test_without_a_fitting_one_the_package_is_named(jvms: Path) -> None:
    """The error says what there is, what to install, and what works instead."""
    with pytest.raises(EnvironmentUnfit, match="can't have Spark or YARN") as none:
        java.find({"PATH": ""})
    assert "this machine has none" in none.value.cause
    assert "openjdk-17-jre-headless" in none.value.remedy
    assert "--driver docker" in none.value.remedy
    install(jvms / "a", "25")
    with pytest.raises(EnvironmentUnfit, match="Java 25"):
        java.find({"PATH": ""})

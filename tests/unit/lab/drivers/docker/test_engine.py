"""Which engine is asked: the one that the docker CLI would ask."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab.drivers.docker import engine
from lab.drivers.docker import examination as doctor
from lab.errors import EnvironmentUnfit


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A docker configuration folder of the test's own, and no variable of docker's."""
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    return tmp_path


def context(config: Path, name: str, host: str, **endpoint: Any) -> str:
    """Make a context as `docker context create` does; return its host."""
    folder = config / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest()
    folder.mkdir(parents=True)
    meta = {"Name": name, "Metadata": {}, "Endpoints": {"docker": {"Host": host, **endpoint}}}
    (folder / "meta.json").write_text(json.dumps(meta))
    return host


def current(config: Path, name: str) -> None:
    """Make *name* the current context, as `docker context use` does."""
    (config / "config.json").write_text(json.dumps({"currentContext": name}))


def test_an_engine_is_looked_for_as_the_cli_does(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DOCKER_HOST, then DOCKER_CONTEXT, then the current context, then the default; each says where it came from."""
    assert (engine.address().url, engine.address().source) == (engine.DEFAULT, "the default")
    here, there = context(config, "xx", "unix:///x/x.sock"), context(config, "yy", "unix:///y/y.sock")
    monkeypatch.setenv("DOCKER_CONTEXT", "yy")  # a folder without a config.json has contexts, too
    assert (engine.address().url, engine.address().source) == (there, "the context yy, by DOCKER_CONTEXT")
    current(config, "xx")
    assert engine.address().url == there
    monkeypatch.delenv("DOCKER_CONTEXT")
    assert engine.address().url == here
    assert "the context xx, by the current context in" in engine.address().source
    monkeypatch.setenv("DOCKER_CONTEXT", "default")
    assert engine.address().url == engine.DEFAULT
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    assert str(engine.address()) == "tcp://127.0.0.1:1 (DOCKER_HOST)"


def test_an_unknown_context_is_an_error(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docker refuses it; to go on with another engine would make the lab where nobody looks for it."""
    current(config, "gone")
    with pytest.raises(EnvironmentUnfit, match="docker's context 'gone' cannot be used"):
        engine.connect()
    context(config, "xx", "unix:///x/x.sock")
    current(config, "xx")
    monkeypatch.setenv("DOCKER_CONTEXT", "nosuch")
    with pytest.raises(EnvironmentUnfit) as caught:
        engine.connect()
    assert caught.value.cause.startswith("DOCKER_CONTEXT names it")
    found = doctor.connect()[1]
    assert (found.state, "'nosuch'" in found.found, "docker context ls" in found.remedy) == ("missing", True, True)


@pytest.mark.parametrize("content", ["{", "[]", '{"Endpoints": {}}', '{"Endpoints": {"docker": 3}}'])
def test_a_broken_context_is_named(config: Path, content: str) -> None:
    """So is a file that somebody has cut off."""
    context(config, "xx", "unix:///x/x.sock")
    (meta,) = config.glob("contexts/meta/*/meta.json")
    meta.write_text(content)
    current(config, "xx")
    with pytest.raises(EnvironmentUnfit, match="'xx' cannot be used"):
        engine.address()


def test_what_is_no_configuration_names_no_context(config: Path) -> None:
    """As for the CLI, which warns and goes on."""
    (config / "config.json").write_text("[")
    assert engine.address().source == "the default"


def test_a_contexts_certificates_are_used(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `docker context create` copied for TLS, and an engine that is reached by ssh is asked by the ssh program."""
    context(config, "remote", "tcp://10.0.0.1:2376")
    folder = config / "contexts" / "tls" / hashlib.sha256(b"remote").hexdigest() / "docker"
    folder.mkdir(parents=True)
    for name in ("ca.pem", "cert.pem", "key.pem"):
        (folder / name).touch()
    monkeypatch.setenv("DOCKER_CONTEXT", "remote")
    tls = engine.address().settings["tls"]
    assert tls.cert == (str(folder / "cert.pem"), str(folder / "key.pem"))
    assert (tls.ca_cert, tls.verify) == (str(folder / "ca.pem"), True)
    context(config, "far", "ssh://ann@far")
    monkeypatch.setenv("DOCKER_CONTEXT", "far")
    assert engine.address().settings == {"base_url": "ssh://ann@far", "use_ssh_client": True}


def test_the_doctor_names_the_address_and_its_source(config: Path, tmp_path: Path) -> None:
    """A context that leads nowhere is not blamed on the default socket."""
    context(config, "xx", f"unix://{tmp_path}/none.sock")
    current(config, "xx")
    found = doctor.connect()[1]
    assert f"there is no {tmp_path}/none.sock (the context xx, by the current context in" in found.found
    assert "see that the context xx" in found.remedy


@pytest.mark.parametrize(
    ("options", "found", "state"),
    [
        (["name=seccomp,profile=default", "name=cgroupns"], "rootless: no, userns-remap: no, SELinux: no", "ok"),
        (["name=userns", "name=selinux"], "rootless: no, userns-remap: yes, SELinux: yes", "ok"),
        (["name=rootless"], "rootless: yes, userns-remap: no, SELinux: no", "warning"),
        (None, "rootless: no, userns-remap: no, SELinux: no", "ok"),
    ],
)
def test_the_doctor_says_how_the_engine_protects_itself(options: list[str] | None, found: str, state: str) -> None:
    """What a report about a lab that behaves oddly has to have."""
    client = SimpleNamespace(info=lambda: {"SecurityOptions": options})
    assert (doctor._security(client).found, doctor._security(client).state) == (found, state)

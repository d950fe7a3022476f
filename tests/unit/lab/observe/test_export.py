"""One archive of everything: what is in it, and what must not be."""

import io
import json
import stat
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from lab import events
from lab.drivers.machines import ExecResult, Machine
from lab.errors import LabError, LabNotReady
from lab.lab import Lab
from lab.observe.export import export, inspect, without_secrets
from lab.state import StateFolder
from lab.topology.specs import NodeSpec
from tests.unit.lab.fake_lab import fake_lab


class StandIn:
    """A machine of a lab that is no more than its log."""

    default_hosts = ()

    def __init__(self, name: str, log: str | LabError) -> None:
        self.name, self.short_name, self.log = name, name, log
        self.state, self.address = "running", "10.0.0.1"
        self.url = "http://127.0.0.1:1"
        self.spec = NodeSpec(name)

    def read_logs(self, tail: int | None = None, *, since: float | None = None, timestamps: bool = False) -> str:
        if isinstance(self.log, LabError):
            raise self.log
        return self.log

    def exec(self, argv: Sequence[str], user: str | None = None, timeout: float = 30) -> ExecResult:
        raise LabNotReady("it does not answer")

    def share(self) -> None:
        return None

    def inspect(self) -> dict[str, Any]:
        return {"env": ["EG_REMOTE_PWD=hunter2", "PATH=/bin"], "image": "x", "host_key": "ssh-ed25519 AAAA"}


@pytest.fixture
def lab() -> Lab:
    folder = StateFolder("mine")
    folder.write(folder.identity, "-----BEGIN OPENSSH PRIVATE KEY-----")
    folder.write(folder.path / "lab.toml", "version = 1\n")
    events.record("mine", "up")
    events.record("mine", "fault.added", fault="loss")
    gateway = StandIn("gateway", "2026-11-22T20:42:40.5Z second\n")
    node = StandIn("node1", "2026-11-22T20:42:39.5Z first\n2026-11-22T20:42:41Z third\n")
    return fake_lab([node], gateways=[gateway])


def read(path: Path) -> dict[str, str]:
    """Return the archive's files by their names without its own folder."""
    with tarfile.open(path) as archive:
        return {
            member.name.partition("/")[2]: cast("io.BufferedReader", archive.extractfile(member)).read().decode()
            for member in archive
        }


def test_all_is_in_one_archive_in_the_order_of_time(lab: Lab, tmp_path: Path) -> None:
    """Logs of all machines, events and the topology are there, and the timeline merges them."""
    path = export(lab, tmp_path / "new" / "lab.tar.gz")
    files = read(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {
        "README.txt",
        "lab.json",
        "lab.toml",
        "stats.json",
        "gateways/gateway/gateway.log",
        "nodes/node1/sshd.log",
    } <= set(files)
    lines = [json.loads(line) for line in files["timeline.jsonl"].splitlines()]
    assert [line["text"] for line in lines][:3] == ["first", "second", "third"]
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    assert [json.loads(line)["kind"] for line in files["faults.jsonl"].splitlines()] == ["fault.added"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["lab.tar.gz"]


def test_no_secret_is_in_it(lab: Lab, tmp_path: Path) -> None:
    """Neither the private key nor what looks like a password leaves this machine."""
    text = "".join(read(export(lab, tmp_path / "lab.tar.gz")).values())
    assert "PRIVATE KEY" not in text
    assert "hunter2" not in text
    assert "EG_REMOTE_PWD=(hidden)" in text
    assert "ssh-ed25519 AAAA" in text


def test_a_machine_that_can_t_tell_says_why(lab: Lab, tmp_path: Path) -> None:
    """A log that can't be read is a line with the reason, and the rest is there."""
    cast("Any", lab.nodes[0]).log = LabError("the engine is gone")
    files = read(export(lab, tmp_path / "lab.tar.gz"))
    assert "can't be read: the engine is gone" in files["nodes/node1/sshd.log"]
    assert "second" in files["timeline.txt"]
    assert json.loads(files["stats.json"])["unseen"]["node1"]


def test_a_place_that_can_t_be_written(lab: Lab, tmp_path: Path) -> None:
    """A folder that is a file is an error with a remedy, and no half archive stays."""
    (tmp_path / "file").touch()
    with pytest.raises(LabError, match="can't be written"):
        export(lab, tmp_path / "file" / "lab.tar.gz")


def test_secrets_are_known_by_their_names() -> None:
    """Names decide: in dictionaries, in lists of variables, and nowhere else."""
    value = {
        "token": "t",
        "env": ["A_SECRET=x", "B=y", "no variable = z"],
        "n": 1,
        "deep": {"password": "p", "host_key": "k"},
    }
    assert without_secrets(value) == {
        "token": "(hidden)",
        "env": ["A_SECRET=(hidden)", "B=y", "no variable = z"],
        "n": 1,
        "deep": {"password": "(hidden)", "host_key": "k"},
    }
    assert inspect(cast("Machine", StandIn("node1", "")))["env"] == ["EG_REMOTE_PWD=(hidden)", "PATH=/bin"]

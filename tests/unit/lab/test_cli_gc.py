import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from lab import lease as leases
from lab.drivers.local import processes
from lab.lifetime import holding
from lab.lifetime.finding import find_labs
from lab.lifetime.garbage import find_garbage
from lab.names import LABEL, LABEL_ROLE, LABEL_USER
from lab.processes import Process, identify
from lab.state import StateFolder, locked, state_root
from tests.unit.lab.command import run

OLD = time.time() - 3600


def stamp(moment: float) -> str:
    return datetime.fromtimestamp(moment, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000000000Z")


@dataclass
class Thing:
    """A container or a network, as the engine's client shows it."""

    labels: Mapping[str, str]
    status: str = "running"
    made: float = OLD
    name: str = "thing"
    all: list["Thing"] = field(default_factory=list, repr=False)

    @property
    def attrs(self) -> dict[str, Any]:
        return {"Labels": self.labels, "Created": stamp(self.made)}

    def remove(self, **_: Any) -> None:
        self.all.remove(self)


@dataclass
class Engine:
    """As much of an engine's client as looking for labs and removing them takes; lists by label, as the real one does."""

    containers_there: list[Thing] = field(default_factory=list)
    networks_there: list[Thing] = field(default_factory=list)
    volumes: Any = field(default_factory=lambda: Listing([]))
    identity: str = "this-one"

    @property
    def containers(self) -> Any:
        return Listing(self.containers_there)

    @property
    def networks(self) -> Any:
        return Listing(self.networks_there)

    def info(self) -> dict[str, str]:
        return {"ID": self.identity}


@dataclass
class Listing:
    things: list[Thing]

    def list(self, filters: Mapping[str, Any], **_: Any) -> list[Thing]:
        wanted = [filters["label"]] if isinstance(filters["label"], str) else filters["label"]
        for each in self.things:
            each.all = self.things
        return [each for each in self.things if all(self._has(each, label) for label in wanted)]

    @staticmethod
    def _has(thing: Thing, label: str) -> bool:
        name, separator, value = label.partition("=")
        return name in thing.labels and (not separator or thing.labels[name] == value)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """An engine that answers, without anything on it."""
    found = Engine()
    for module in ("driver", "engine"):  # the driver first: it may be imported by this, and is not to keep the fake one
        monkeypatch.setattr(f"lab.drivers.docker.{module}.connect", lambda *_: found)
    return found


def machine(lab: str, role: str = "node", status: str = "running", **labels: str) -> Thing:
    return Thing({LABEL: lab, LABEL_ROLE: role, **labels}, status)


def lease_labels(expires: float) -> dict[str, str]:
    return {leases.LABEL_OWNER: "somebody@elsewhere/0/0", leases.LABEL_EXPIRES: f"{expires:.0f}"}


def make_folder(name: str, made: float = OLD) -> Path:
    folder = StateFolder(name)
    folder.write(folder.ssh_config, "")
    os.utime(folder.path, (made, made))
    return folder.path


def what() -> list[str]:
    return [each.what for each in find_garbage()]


def test_labs_are_found_by_label(engine: Engine) -> None:
    """Machines and networks of one label are one lab; what has no label is none."""
    engine.containers_there += [machine("a"), machine("a", status="exited"), machine("a", "gateway"), Thing({"x": "y"})]
    engine.networks_there += [Thing({LABEL: "a"}), Thing({LABEL: "b"})]
    found = {lab.name: lab for lab in find_labs()}
    assert found.keys() == {"a", "b"}
    assert (found["a"].nodes, found["a"].gateways, found["a"].running) == (2, 1, 2)
    assert found["b"].machines == 0
    assert abs(found["a"].made - OLD) < 1


def test_what_no_lab_could_be_called_is_none(engine: Engine) -> None:
    """A folder or a label that is no lab's name is somebody else's: neither listed nor garbage."""
    engine.networks_there += [Thing({LABEL: "Not A Lab"})]
    (state_root() / "Not A Lab").mkdir(parents=True)
    os.utime(state_root() / "Not A Lab", (OLD, OLD))
    assert find_labs() == []
    assert what() == []


def test_a_lab_in_use_is_no_garbage(engine: Engine) -> None:
    """A lab without a lease stays for ever, one with a lease until its end."""
    engine.containers_there += [machine("a"), machine("b", **lease_labels(time.time() + 60))]
    make_folder("a")
    assert what() == []


def test_a_lab_whose_lease_is_over_is_garbage(engine: Engine) -> None:
    """Its folder says when the lease ended; removing it takes the folder too."""
    engine.containers_there += [machine("a")]
    holding.grant("a", 0)
    assert what() == ["the lab a"]
    (garbage,) = find_garbage()
    assert garbage.remove() == ["container thing", f"folder {StateFolder('a').path}"]
    assert engine.containers_there == []


def test_a_lab_that_is_wanted_again_stays(engine: Engine) -> None:
    """Between the look and the removal an `up` may have given the lab a new lease: who removes looks once more."""
    engine.containers_there += [machine("a")]
    holding.grant("a", 0)
    (garbage,) = find_garbage()
    holding.grant("a", 60)
    try:
        assert garbage.remove() == []
        assert len(engine.containers_there) == 1
        assert StateFolder("a").path.exists()
    finally:
        holding.release("a")


def test_an_empty_folder_that_is_used_again_stays(engine: Engine) -> None:
    """The same for a folder of nothing: a lab of its name is there by now."""
    make_folder("gone")
    (garbage,) = find_garbage()
    engine.containers_there += [machine("gone")]
    assert garbage.remove() == []
    assert StateFolder("gone").path.exists()


def test_a_lab_on_another_engine_is_left_alone(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    """Its folder is no garbage and `down` refuses to call it gone: this engine knows nothing of it."""
    path = make_folder("far")
    folder = StateFolder("far")
    folder.write(folder.driver, "docker")
    folder.write(folder.engine, "another-one")
    os.utime(path, (OLD, OLD))
    assert what() == []
    code, _, err = run(["down", "--name", "far"], capsys)
    assert code == 6
    assert "another container engine" in err
    assert "Remedy: " in err
    assert path.exists()
    folder.write(folder.engine, engine.identity)
    assert run(["down", "--name", "far"], capsys)[0] == 0
    assert not path.exists()


def test_another_users_lab_is_not_taken_over(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    """On a shared engine `up` and `down` of its name are a conflict that names the owner; its lease is not my folder's."""
    engine.containers_there += [machine("lab", **{LABEL_USER: "ann@desk"})]
    for verb in ("up", "down"):
        code, _, err = run([verb], capsys)
        assert (code, "ann@desk" in err, "--name" in err) == (4, True, True)
    make_folder("lab")
    StateFolder("lab").write(StateFolder("lab").driver, "local")
    holding.grant("lab", 60)
    (row,) = json.loads(run(["ls", "--json"], capsys)[1])
    assert (row["owner"], row["expires"], row["folder"]) == ("ann", None, None)
    assert run(["down"], capsys)[0] == 0
    assert len(engine.containers_there) == 1
    assert not StateFolder("lab").path.exists()


def test_my_own_lab_is_found_by_its_labels(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the folder the labels still say that it is mine, and `down` removes it."""
    engine.containers_there += [machine("lab", **{LABEL_USER: leases.me()})]
    assert run(["down"], capsys)[0] == 0
    assert engine.containers_there == []


def test_a_lab_whose_owner_died_is_garbage(engine: Engine) -> None:
    """An owner is a pid with its start time: a later process of the same number is another."""
    engine.containers_there += [machine("dead"), machine("alive")]
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owners = {"dead": Process(child.pid, 1), "alive": identify(child.pid)}
    for name, owner in owners.items():
        assert owner is not None
        mine = leases.mine()
        lease = leases.Lease(mine.owner, mine.host, owner.pid, owner.started, 60, time.time() + 60)
        leases.write(name, lease, None)
    found = what()
    child.communicate(b"\n")
    assert found == ["the lab dead"]
    assert what() == ["the lab alive", "the lab dead"]


def test_a_running_lab_of_somebody_else_is_judged_by_its_machines(engine: Engine) -> None:
    """A label tells the first term only: machines that still run have had theirs renewed, stopped ones not."""
    engine.containers_there += [
        machine("runs", **lease_labels(OLD)),
        machine("over", status="exited", **lease_labels(OLD)),
    ]
    assert what() == ["the lab over"]


def test_half_of_a_lab_is_garbage_once_nobody_makes_it_whole(engine: Engine) -> None:
    """A network alone goes after a while, and not while a `lab up` holds the lab's lock."""
    engine.networks_there += [Thing({LABEL: "old"}), Thing({LABEL: "young"}, made=time.time()), Thing({LABEL: "busy"})]
    with locked("lab-busy", what="the lab busy"):
        assert what() == ["the lab old"]


def test_a_folder_of_nothing_is_garbage_only_where_an_engine_answers(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an engine a docker lab can't be seen, so its folder may be anything but garbage."""
    folder = make_folder("gone")
    make_folder("fresh", made=time.time())
    assert what() == [f"the folder {folder}"]
    monkeypatch.undo()
    monkeypatch.setenv("XDG_STATE_HOME", str(folder.parents[1]))
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/no-engine.sock")
    assert what() == []


@pytest.fixture
def stray() -> Iterator[subprocess.Popen[bytes]]:
    """A process that carries the mark of a local lab that is gone."""
    environment = {**os.environ, processes.MARK: str(state_root() / "lost" / "machines" / "node1")}
    child = subprocess.Popen(["sleep", "600"], env=environment)
    yield child
    child.kill()
    child.wait()


def test_processes_of_a_lab_that_is_gone_are_garbage(engine: Engine, stray: subprocess.Popen[bytes]) -> None:
    """The mark in their environment says whose they are; with the lab's folder there they are its own."""
    (garbage,) = find_garbage()
    assert garbage.lab == "lost"
    (state_root() / "lost" / "machines").mkdir(parents=True)
    assert [each.lab for each in find_garbage() if "processes" in each.what] == []
    assert garbage.remove() == []
    (state_root() / "lost" / "machines").rmdir()
    (state_root() / "lost").rmdir()
    assert garbage.remove() == ["1 processes"]
    assert identify(stray.pid) is None


def test_gc_says_what_it_would_remove(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    """--dry-run names thing and reason and removes nothing; --older-than spares what is younger."""
    folder = make_folder("gone")
    code, out, _ = run(["gc", "--dry-run"], capsys)
    assert code == 0
    assert f"would remove the folder {folder}" in out
    assert folder.exists()
    assert json.loads(run(["gc", "--json", "--older-than", "2h"], capsys)[1]) == []
    (row,) = json.loads(run(["gc", "--json"], capsys)[1])
    assert row["removed"] == [f"folder {folder}"]
    assert not folder.exists()
    assert "nothing is left over" in run(["gc"], capsys)[2]


def test_ls_tells_owners_and_ends(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    """One line a lab: how much of it runs, whose it is, when it ends."""
    engine.containers_there += [machine("a", **lease_labels(time.time() + 3630)), machine("b", status="exited")]
    lines = [line.split() for line in run(["ls"], capsys)[1].splitlines()]
    assert lines[1] == ["a", "docker", "1", "0", "1/1", "1h", "somebody", "in", "1h", "-"]
    assert lines[2] == ["b", "docker", "1", "0", "0/1", "1h", "-", "never", "-"]

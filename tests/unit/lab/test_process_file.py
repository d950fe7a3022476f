"""Files that say which processes something belongs to: as earlier releases wrote them, and never half."""

import json
import os
from pathlib import Path

import pytest

from lab import lease
from lab.errors import LabConflict
from lab.process_file import ProcessFile
from lab.processes import Process, own
from lab.state import StateFolder
from lab.testing.pool import Pool
from lab.testing.sharing import Users


def kept(name: str) -> Path:
    """Return the place of a file of the lab `mine`, whose folder is there."""
    folder = StateFolder("mine").path
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def test_files_of_an_earlier_release_are_read_and_written_as_they_were() -> None:
    """The lease, the users and the pool have the same keys, in the same order, and times in the same unit."""
    me = own()
    held = {"owner": "ann", "host": "h", "pid": 7, "started": 8, "seconds": 60.0, "expires": 1.5, "keeper": me.numbers}
    kept("lease.json").write_text(json.dumps(held))
    assert lease.read("mine") == lease.Lease("ann", "h", 7, 8, 60.0, 1.5)
    assert lease.keeper_of("mine") == me
    assert lease.renew("mine", me)
    assert list(json.loads(kept("lease.json").read_text())) == list(held)
    kept("users.json").write_text(json.dumps([[*me.numbers, "a"], [me.pid, me.started + 1, "b"]]))
    users = Users("mine")
    assert users.living() == [me]
    assert users.is_one("a")
    assert not users.is_one("b")
    entry = {"test": "t", "pid": me.pid, "started": me.started}
    kept("pool.json").write_text(json.dumps({"leases": {"node1": entry}, "waiting": []}))
    pool = Pool("mine")
    assert pool.acquire("u", lambda: ["node1", "node2"], 1) == ["node2"]
    found = json.loads(kept("pool.json").read_text())
    assert found == {"leases": {"node1": entry, "node2": entry | {"test": "u"}}, "waiting": []}


def test_the_dead_have_no_entry() -> None:
    """A pid with another start time is another process: it uses nothing and holds nothing."""
    dead = Process(os.getpid(), own().started + 1)
    kept("users.json").write_text(json.dumps([[*dead.numbers, "a"]]))
    assert Users("mine").living() == []
    entry = {"test": "t", "pid": dead.pid, "started": dead.started}
    kept("pool.json").write_text(json.dumps({"leases": {"node1": entry}, "waiting": [entry | {"ticket": "x"}]}))
    Pool("mine").release([])
    assert json.loads(kept("pool.json").read_text()) == {"leases": {}, "waiting": []}


def test_a_file_is_there_or_says_nothing() -> None:
    """No file and half a file are the same; removing it twice is fine."""
    file = ProcessFile("mine", "x.json", kind="x", what="the x")
    assert file.read() is None
    file.write([1, 2])
    assert file.read() == [1, 2]
    file.path.write_text("[1,")
    assert file.read() is None
    assert file.remove()
    assert not file.remove()


def test_a_removed_lab_gets_its_folder_back_on_purpose_alone() -> None:
    """`rewrite` is for late writers; `write` makes a new lab."""
    file = ProcessFile("mine", "x.json", kind="x", what="the x")
    with pytest.raises(FileNotFoundError):
        file.rewrite([])
    assert not StateFolder("mine").path.exists()
    file.write([])
    file.rewrite([1])
    assert file.read() == [1]


def test_a_file_is_changed_by_one_at_a_time() -> None:
    """The second is told in its own words what is busy."""
    first, second = (ProcessFile("mine", "x.json", kind="x", what="the x") for _ in range(2))
    with first.locked(), pytest.raises(LabConflict, match="the x is busy"), second.locked(0.05):
        pass

"""When a fault is to be healed by itself."""

import dataclasses
import os
from pathlib import Path

import pytest

from lab.faults import add, healing
from lab.faults.notes import Note, Notes, alive, due
from lab.faults.watchdog import RETRY, Patience, _due, overdue
from lab.files import Busy, held
from lab.processes import identify
from tests.unit.lab.faults.machines import Reached, lab


def note(
    identity: str = "a", *, added: float = 0, expires: float | None = None, owner: list[int] | None = None
) -> Note:
    """One fault's note."""
    return Note(identity, "refuse", ["node1.lab.test"], {}, 0, added, expires, owner, "me", ready=True)


@pytest.mark.parametrize(
    ("expires", "living", "reason"),
    [
        (None, True, ""),
        (101, True, ""),
        (100, True, "duration over"),
        (None, False, "owner died"),
        (101, False, "owner died"),
    ],
)
def test_a_fault_is_due_when_its_time_is_over_or_its_owner_dead(
    expires: float | None, living: bool, reason: str
) -> None:
    """Whichever comes first."""
    assert due(note(expires=expires), 100, living) == reason


def test_a_fault_that_never_was_ready_is_due() -> None:
    """Whoever made it is dead or failed; whether its owner lives and how long it should last is no matter then."""
    assert due(dataclasses.replace(note(expires=101), ready=False), 100, True) == "half inflicted"


def test_a_note_that_changed_meanwhile_is_not_healed(reached: Reached) -> None:
    """What the watchdog read without the lock is looked at again with it: the fault may be ready, or last longer, by now."""
    found = lab()
    kept = add(found, "refuse", found.nodes[:1], duration=60)
    [read] = Notes(found.folder.path).read()
    assert not healing.heal_note(found, dataclasses.replace(read, expires=1), "duration over", check=_due)
    assert kept.active
    assert healing.heal_note(found, read, "", check=lambda _: "because")
    assert not kept.active


def test_an_owner_is_a_pid_and_a_start_time() -> None:
    """A later process of the same number is not the owner; nobody's faults live on."""
    own = identify(os.getpid())
    assert own is not None
    pid, began = own.pid, own.started
    assert alive([pid, began])
    assert not alive([pid, began - 1])
    assert not alive([4194304999, began])
    assert alive(None)


def test_the_latest_is_healed_first() -> None:
    """Among those that are due."""
    notes = [note("a", added=1, expires=5), note("b", added=2, expires=5), note("c", added=3, expires=50)]
    assert [(found.id, why) for found, why in overdue(notes, 10, Patience())] == [
        ("b", "duration over"),
        ("a", "duration over"),
    ]


def test_what_failed_is_tried_again_ever_later() -> None:
    """Pauses double up to a longest one, and other faults don't wait."""
    patience = Patience()
    now, pauses = 100.0, []
    for _ in range(8):
        patience.failed("a", now)
        assert patience.ready("b", now)
        step = next(n / 4 for n in range(1, 100) if patience.ready("a", now + n / 4))
        pauses.append(step)
        now += step
    assert pauses[:3] == [RETRY[0], 2 * RETRY[0], 4 * RETRY[0]]
    assert pauses[-1] == RETRY[1]


def test_notes_come_back_as_they_were(tmp_path: Path) -> None:
    """With all that healing needs; half a note is none."""
    notes = Notes(tmp_path)
    with notes.locked():
        kept = note("a", expires=3.5, owner=[1, 2])
        kept.undo["node1.lab.test"] = [["@unchain", "filter", "X"]]
        notes.write(kept)
        (notes.folder / "b.json").write_text('{"id": "b"')
        (notes.folder / "c.json").write_text('{"id": "c"}')
    assert notes.read() == [kept]
    assert (notes.folder / "a.json").stat().st_mode & 0o777 == 0o600
    notes.remove("a")
    notes.remove("a")
    assert notes.read() == []


def test_a_lab_that_is_gone_gets_no_folder_back(tmp_path: Path) -> None:
    """A late watchdog must not bring it back."""
    with pytest.raises(FileNotFoundError), Notes(tmp_path / "gone").locked():
        pass
    assert not (tmp_path / "gone").exists()


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    """The second gives up in time."""
    with held(tmp_path / "lock"), pytest.raises(Busy), held(tmp_path / "lock", 0.05):
        pass
    with held(tmp_path / "lock"):
        pass

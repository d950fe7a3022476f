"""A round is its seed: what is drawn, printed and read again is the same, and keeps to what a site can have."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.faults import catalogue
from tests.chaos import schedule
from tests.chaos.actors import DEEDS
from tests.chaos.schedule import BYSTANDER, LETHAL, NODES, Step, draw

SEEDS = range(40)
FOUND = Path(schedule.__file__).with_name("found")


def test_a_seed_is_a_schedule() -> None:
    """The same seed draws the same round, another one another."""
    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_schedule_is_one_that_can_be_carried_out(seed: int) -> None:
    """Steps are in order of time, each is one that actors know, with a kernel that is started and a node that is there."""
    steps = draw(seed)
    assert [step.at for step in steps] == sorted(step.at for step in steps)
    started = [step.kernel for step in steps if step.do in {"start", "give-up"}]
    assert len(started) == len(set(started))
    for step in steps:
        assert step.do in DEEDS
        assert not step.kernel or step.kernel in started
        assert 0 <= step.node <= NODES


@pytest.mark.parametrize("seed", SEEDS)
def test_the_bystanders_node_is_left_alone(seed: int) -> None:
    """No fault is on the bystander's node, and no agent there is harmed."""
    steps = draw(seed)
    (safe,) = {step.node for step in steps if step.kernel == BYSTANDER and step.node}
    assert safe not in {step.node for step in steps if not step.kernel}


def test_every_fault_that_applies_is_drawn() -> None:
    """Over many seeds each fault of the catalogue comes, but those that are left out with a reason."""
    drawn = {step.options["name"] for seed in range(3000) for step in draw(seed) if step.do == "fault"}
    known = {kind.name for kind in catalogue() if kind.group != "spark"}
    assert drawn == known - schedule.LEFT_OUT.keys() | set(LETHAL)
    assert schedule.LEFT_OUT.keys() <= known


def test_every_deed_is_drawn() -> None:
    """Whatever actors can do comes over some seeds."""
    assert {step.do for seed in range(300) for step in draw(seed)} == set(DEEDS)


def test_a_file_has_the_whole_schedule(tmp_path: Path) -> None:
    """What is written is read again, without the remark above it."""
    file = tmp_path / "steps.jsonl"
    schedule.write(file, draw(5), "found by seed 5\nlines are lost")
    assert schedule.read(file) == draw(5)
    assert file.read_text("utf-8").startswith("# found by seed 5\n# lines are lost\n{")


@pytest.mark.parametrize("file", sorted(FOUND.glob("*.jsonl")), ids=lambda file: file.stem)
def test_what_was_found_can_be_run_again(file: Path) -> None:
    """Each schedule that is kept is one that actors can carry out, and says what it found."""
    assert all(step.do in DEEDS for step in schedule.read(file))
    assert file.read_text("utf-8").startswith("# ")


def test_a_step_can_be_read_by_people() -> None:
    """A step's text has when, what, to whom, where and how."""
    step = Step(3.5, "fault", "", 2, {"name": "pause", "for": 4.0})
    assert str(step) == "  3.5 fault node2 name=pause for=4.0"
    assert Step.parse(step.line()) == step

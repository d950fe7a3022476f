"""Interrupts of a Python kernel: whose jobs they cancel, and until when."""

from __future__ import annotations

import threading

from eg_distributed.launchers.spark.python.cancel import Cancellation

DEADLINE = 30.0
GROUP = "spark.jobGroup.id"


class Context:
    """A SparkContext, as far as jobs are named and cancelled."""

    def __init__(self) -> None:
        self.properties: dict[str, str] = {}
        self.all = threading.Semaphore(0)
        self.groups: list[str] = []
        self.group = threading.Semaphore(0)
        self.may_cancel = threading.Event()
        self.may_cancel.set()

    def getLocalProperty(self, name: str) -> str | None:  # noqa: N802 - Spark's name
        return self.properties.get(name)

    def setLocalProperty(self, name: str, value: str) -> None:  # noqa: N802
        self.properties[name] = value

    def cancelAllJobs(self) -> None:  # noqa: N802
        self.may_cancel.wait(DEADLINE)
        self.all.release()

    def cancelJobGroup(self, group: str) -> None:  # noqa: N802
        self.groups.append(group)
        self.group.release()


def test_what_an_interrupted_cell_begins_later_is_cancelled_too() -> None:
    """All jobs at once; then, for a while, those of that cell alone, however late they come."""
    context = Context()
    cancellation = Cancellation(lambda: context)
    cancellation.begin()
    cancellation.cell_begins()
    interrupted = context.properties[GROUP]
    cancellation.soon()
    cancellation.wait()
    assert context.all.acquire(timeout=DEADLINE)
    cancellation.cell_begins()
    assert context.properties[GROUP] != interrupted
    for _ in range(3):
        assert context.group.acquire(timeout=DEADLINE)
    assert set(context.groups) == {interrupted}
    assert not context.all.acquire(blocking=False)


def test_no_interrupt_is_lost_and_none_comes_late() -> None:
    """One that comes while another is at work has its own turn; the next message waits for both."""
    context = Context()
    cancellation = Cancellation(lambda: context)
    cancellation.begin()
    context.may_cancel.clear()
    cancellation.soon()
    cancellation.soon()
    waited = threading.Thread(target=cancellation.wait)
    waited.start()
    assert not context.all.acquire(blocking=False)
    context.may_cancel.set()
    waited.join(DEADLINE)
    assert context.all.acquire(blocking=False)
    assert context.all.acquire(blocking=False)


def test_a_group_of_the_users_own_stays() -> None:
    """Who names his jobs himself keeps the name; the first interrupt still cancels them."""
    context = Context()
    cancellation = Cancellation(lambda: context)
    cancellation.begin()
    context.properties[GROUP] = "mine"
    cancellation.cell_begins()
    assert context.properties[GROUP] == "mine"
    cancellation.soon()
    cancellation.wait()
    assert context.all.acquire(timeout=DEADLINE)
    assert context.groups == []

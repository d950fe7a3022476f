"""The checker passes histories in which all is well, and names what is wrong in others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.chaos.checker import ENDED, LIVING, check
from tests.chaos.history import Event
from tests.chaos.history import Type as Kind

NODE, OTHER = "node1.lab.test", "node2.lab.test"
LOST = f"Output may be missing here: what the kernel printed in the 1.5 s without a connection to {NODE} could not be kept, …"


class Tale:
    """A history that is told by hand: of one kernel `k1` on `node1`, unless something else is said."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._requests = 0

    def add(self, time: float, kind: Kind, op: str, /, **facts: Any) -> Tale:
        self.events.append(Event(time, kind, op, facts))
        return self

    def ask(
        self, began: float, ended: float, op: str, outcome: Kind = "ok", *, kernel: str = "k1", **facts: Any
    ) -> Tale:
        """Have a client ask for something; facts of the answer are *facts*, but for a start's id and pin."""
        self._requests += 1
        about = {"kernel": kernel, "request": self._requests}
        asked = {"id": f"id-{kernel}", "pin": facts.pop("pin", "")} if op == "start" else {}
        self.add(began, "invoke", op, **about, **asked)
        return self.add(ended, outcome, op, **about, **facts)

    def start(self, time: float = 0.0, kernel: str = "k1", host: str = NODE) -> Tale:
        return self.ask(time, time + 1, "start", kernel=kernel, host=host)

    def cell(
        self,
        time: float,
        runs: Sequence[tuple[float, int, int]] = (),
        reply: float | None = None,
        *,
        cell: str = "k1/1",
        status: str = "ok",
        error: str = "",
        **facts: Any,
    ) -> Tale:
        """Run a cell: *runs* are (time, first, last) of the lines that came."""
        kernel = cell.partition("/")[0]
        self.add(time, "invoke", "cell", kernel=kernel, cell=cell, **facts)
        for when, first, last in runs:
            self.add(when, "seen", "lines", kernel=kernel, cell=cell, first=first, last=last)
        if reply is not None:
            self.add(reply, "ok", "cell", kernel=kernel, cell=cell, status=status, error=error)
        return self

    def look(self, time: float, value: str = "11 a", kernel: str = "k1") -> Tale:
        """Look at a kernel as a round does in its end."""
        cell = f"{kernel}/look"
        self.add(time, "invoke", "cell", kernel=kernel, cell=cell, looks=True)
        self.add(time + 0.1, "seen", "value", kernel=kernel, cell=cell, value=value)
        return self.add(time + 0.2, "ok", "cell", kernel=kernel, cell=cell, status="ok", error="")

    def lists(self, time: float, state: str = "idle", distributed: str = "alive", others: Sequence[str] = ()) -> Tale:
        listed = {"id-k1": [state, distributed, NODE]} if state else {}
        listed |= {other: ["idle", "alive", OTHER] for other in others}
        return self.add(time, "seen", "listed", asked=time - 0.1, kernels=listed)

    def view(self, time: float, when: str = LIVING, **facts: Any) -> Tale:
        usual: dict[str, Any] = {"listed": ["id-k1"], "running": {NODE: {"id-k1": 1}, OTHER: {}}}
        if when == ENDED:
            usual = {"listed": [], "running": {NODE: {}, OTHER: {}}}
        seen = {**usual, "when": when, "others": {}, "files": {}, "unseen": {}, **facts}
        return self.add(time, "seen", "view", **seen)

    def broken(self) -> list[str]:
        """Return the rules that do not hold."""
        events = sorted(self.events, key=lambda event: event.time)
        return [violation.rule for violation in check(events)]


@pytest.fixture
def tale() -> Tale:
    return Tale()


# -- what is well --------------------------------------------------------------------------------------------------------


def test_a_round_in_which_all_is_well(tale: Tale) -> None:
    """Starts, lines, an interrupt, a restart, a deletion and the looks in the end: nothing is wrong."""
    tale.start()
    tale.add(1.1, "invoke", "cell", kernel="k1", cell="k1/m", marks=True)
    tale.add(1.2, "seen", "value", kernel="k1", cell="k1/m", value="11 a")
    tale.add(1.3, "ok", "cell", kernel="k1", cell="k1/m", status="ok", error="")
    tale.lists(1.5).lists(2.5, "busy")
    tale.cell(2, [(2.1, 0, 0), (3, 1, 7), (4, 8, 9)], 4.1, lines=10)
    tale.cell(5, [(6, 0, 3)], 8, cell="k1/2", lines=100, status="error", error="KeyboardInterrupt")
    tale.ask(7, 7.5, "interrupt")
    tale.look(10).view(11, told={NODE: ["id-k1"]}, silent={}, orphans=[])
    tale.ask(12, 13, "delete").lists(14, "")
    tale.view(15, ENDED, told={}, silent={}, orphans=[])
    assert tale.broken() == []


def test_an_empty_history_is_well(tale: Tale) -> None:
    """Nothing has happened, and nothing is wrong."""
    assert tale.broken() == []


# -- life ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "distributed"), [("dead", "alive"), ("idle", "dead"), ("", ""), ("restarting", "")])
def test_a_live_kernel_that_is_listed_as_another_thing(tale: Tale, state: str, distributed: str) -> None:
    """One that is missing in a list, or dead there, is declared dead."""
    assert tale.start().lists(5, state, distributed).broken() == ["a live kernel is declared dead"]


@pytest.mark.parametrize("state", ["starting", "busy", "idle"])
@pytest.mark.parametrize("distributed", ["alive", "unknown", ""])
def test_a_host_that_is_silent_declares_nobody_dead(tale: Tale, state: str, distributed: str) -> None:
    """A kernel whose host does not answer is unknown, which is no death."""
    assert tale.start().lists(5, state, distributed).broken() == []


def test_a_kernel_is_not_expected_while_it_starts_restarts_or_ends(tale: Tale) -> None:
    """A list that was asked for before an answer came need not have what the answer says."""
    tale.start().lists(0.5, "").ask(4, 6, "restart").lists(5, "dead").lists(6.05, "dead").ask(8, 9, "delete").lists(
        8.5, ""
    )
    assert tale.lists(10, "").broken() == []


def test_a_kernel_that_was_restarted_lives_again(tale: Tale) -> None:
    """After the answer to a restart it is expected in the list."""
    assert tale.start().ask(4, 6, "restart").lists(7, "dead").broken() == ["a live kernel is declared dead"]


def test_a_restart_that_failed_leaves_a_kernel_of_which_nothing_is_known(tale: Tale) -> None:
    """Such as that of a pinned kernel whose host hangs, with an error that says so."""
    reason = f"no host could take the kernel: {NODE}: no answer within 5 s"
    assert tale.start().ask(4, 6, "restart", "fail", status=503, reason=reason).lists(7, "dead").broken() == []


@pytest.mark.parametrize("name", ["kill", "reboot", "out-of-memory"])
def test_a_machine_that_crashes_takes_its_kernels_along(tale: Tale, name: str) -> None:
    """Those on other machines are expected to live on."""
    tale.start().start(1, "k2", OTHER).add(5, "invoke", "fault", name=name, node=NODE, cut=False)
    tale.lists(6, "", others=["id-k2"])
    assert tale.broken() == []
    assert tale.lists(7, "").broken() == ["a live kernel is declared dead"]


def test_an_ordinary_fault_ends_no_kernel(tale: Tale) -> None:
    """A partition is no excuse."""
    tale.start().add(5, "invoke", "fault", name="partition", node=NODE, cut=True)
    assert tale.lists(6, "").broken() == ["a live kernel is declared dead"]


@pytest.mark.parametrize("how", ["kill", "upgrade"])
def test_a_gateway_that_is_killed_finds_its_kernels_again(tale: Tale, how: str) -> None:
    """The first list after its start has all that lived."""
    tale.start().add(5, "invoke", "gateway", how=how).add(9, "ok", "gateway", how=how)
    assert tale.lists(9.5, "").broken() == ["a live kernel is declared dead"]


def test_a_gateway_that_ends_in_order_takes_its_kernels_along(tale: Tale) -> None:
    """SIGTERM ends kernels."""
    tale.start().add(5, "invoke", "gateway", how="stop").add(9, "ok", "gateway", how="stop")
    assert tale.lists(9.5, "").broken() == []


def test_a_start_that_was_struck_by_a_crash_is_not_expected_to_live(tale: Tale) -> None:
    """The machine may have ended the kernel before the answer came."""
    tale.add(0.5, "invoke", "fault", name="kill", node=NODE, cut=False).start()
    assert tale.lists(3, "").broken() == []


def test_a_client_that_is_told_of_a_restart(tale: Tale) -> None:
    """Nobody has asked for one; soon after one that was asked for it is no news."""
    tale.start().ask(10, 11, "restart").add(12, "seen", "state", kernel="k1", state="restarting")
    assert tale.broken() == []
    tale.add(30, "seen", "state", kernel="k1", state="restarting")
    assert tale.broken() == ["a live kernel is declared dead"]


def test_a_tab_that_is_told_404(tale: Tale) -> None:
    """A websocket to a live kernel is not refused as one to a kernel that is not there."""
    assert tale.start().add(5, "seen", "refused", kernel="k1", status=404).broken() == [
        "a live kernel is declared dead"
    ]


# -- output --------------------------------------------------------------------------------------------------------------


def test_lines_that_are_lost(tale: Tale) -> None:
    """A gap, and an end that did not come, are both losses."""
    tale.start().cell(2, [(2.1, 0, 3), (3, 6, 9)], 4, lines=10)
    assert tale.broken() == ["lines are lost"]
    assert Tale().start().cell(2, [(2.1, 0, 3)], 4, lines=10).broken() == ["lines are lost"]


def test_lines_that_come_after_the_reply_are_not_lost(tale: Tale) -> None:
    """Output and reply go different ways."""
    assert tale.start().cell(2, [(2.1, 0, 3), (4.5, 4, 9)], 4, lines=10).broken() == []


def test_lines_that_are_doubled(tale: Tale) -> None:
    """A line comes once."""
    assert tale.start().cell(2, [(2.1, 0, 3), (3, 3, 9)], 4, lines=10).broken() == ["lines are doubled"]


def test_lines_that_are_out_of_order(tale: Tale) -> None:
    """Late ones are no better than lost ones."""
    broken = tale.start().cell(2, [(2.1, 0, 3), (3, 6, 9), (3.5, 4, 5)], 4, lines=10).broken()
    assert broken == ["lines are lost", "lines are doubled"]


def test_what_came_just_before_a_gateways_sudden_end_may_come_again(tale: Tale) -> None:
    """What could not be confirmed any more; older lines may not."""
    tale.start().cell(2, [(10, 0, 50), (20, 51, 80), (26, 70, 99)], 27, lines=100)
    tale.add(21, "invoke", "gateway", how="kill").add(25, "ok", "gateway", how="kill")
    assert tale.broken() == []
    tale.cell(5, [(10, 0, 50), (20, 51, 80), (26, 40, 99)], 27, cell="k1/2", lines=100)
    assert tale.broken() == ["lines are doubled"]


def test_what_came_before_a_tabs_close_does_not_come_again(tale: Tale) -> None:
    """Who ends a connection has read what came over it."""
    tale.start().cell(2, [(3, 0, 9), (9, 10, 12), (12, 12, 20)], 13, lines=21).add(10, "seen", "closed", kernel="k1")
    assert tale.broken() == ["lines are doubled"]


def test_a_killed_agent_may_cost_output_that_is_told(tale: Tale) -> None:
    """In words, and only where its agent was ended."""
    tale.start().cell(2, [(3, 0, 50), (8, 90, 99)], 9, lines=100)
    tale.add(4, "invoke", "kill-agent", node=NODE, pids=["7"])
    assert tale.broken() == ["lines are lost"]
    tale.add(7, "seen", "told", kernel="k1", cell="k1/1", text=LOST)
    assert tale.broken() == []


def test_a_killed_agent_of_another_node_costs_nothing(tale: Tale) -> None:
    """A loss that is told needs a cause on the kernel's own node."""
    tale.start().cell(2, [(3, 0, 50), (8, 90, 99)], 9, lines=100)
    tale.add(4, "invoke", "kill-agent", node=OTHER, pids=["7"])
    tale.add(7, "seen", "told", kernel="k1", cell="k1/1", text=LOST)
    assert tale.broken() == ["a loss is told without a cause", "lines are lost"]


def test_what_else_is_said_on_stderr_is_no_loss(tale: Tale) -> None:
    """A cell's own warnings, say."""
    tale.start().add(7, "seen", "told", kernel="k1", cell="k1/1", text="DeprecationWarning")
    assert tale.broken() == []


def test_output_in_anothers_cell(tale: Tale) -> None:
    """A line belongs to its cell."""
    tale.start().cell(2, [(3, 0, 0)], 4, lines=1).add(3, "seen", "stray", kernel="k1", cell="k1/1", text="k2/9 4 xxx")
    assert tale.broken() == ["output is stray"]


# -- replies -------------------------------------------------------------------------------------------------------------


def test_a_cell_without_a_reply(tale: Tale) -> None:
    """A cell that was heard of needs one, across the end of a gateway as well."""
    tale.start().cell(2, [(3, 0, 5)]).add(4, "invoke", "gateway", how="kill").add(6, "ok", "gateway", how="kill")
    assert tale.look(60).broken() == ["a cell has no reply"]


def test_a_cell_that_never_arrived_needs_no_reply(tale: Tale) -> None:
    """It was on its way when the gateway was killed; where none was, it is missed."""
    tale.start().cell(4, lines=5).look(60)
    assert tale.broken() == ["a cell has no reply"]
    tale.add(4.1, "invoke", "gateway", how="kill").add(6, "ok", "gateway", how="kill")
    assert tale.broken() == []


def test_a_cell_of_a_kernel_that_a_gateways_orderly_end_took_along_needs_no_reply(tale: Tale) -> None:
    """Nobody looks at such a kernel in the end."""
    tale.start().cell(4, [(4.1, 0, 0)], lines=5).add(5, "invoke", "gateway", how="stop")
    assert tale.add(9, "ok", "gateway", how="stop").view(60, listed=[], running={}).broken() == []


def test_a_cell_that_its_kernel_dropped_needs_no_reply(tale: Tale) -> None:
    """An interrupt met it between its being taken and its first line; one that came later, or none, leaves it a reply."""
    tale.start().cell(4, lines=5).add(5, "seen", "busy", kernel="k1", cell="k1/1")
    tale.add(6, "seen", "idle", kernel="k1", cell="k1/1").look(60)
    assert tale.broken() == ["a cell has no reply"]
    tale.ask(7, 8, "interrupt")
    assert tale.broken() == ["a cell has no reply"]
    tale.ask(4.5, 6.5, "interrupt")
    assert tale.broken() == []
    tale.add(5.5, "seen", "lines", kernel="k1", cell="k1/1", first=0, last=0)
    assert "a cell has no reply" in tale.broken()


def test_a_cell_of_before_a_restart_needs_no_reply(tale: Tale) -> None:
    """A restart ends what runs."""
    assert tale.start().cell(2, [(3, 0, 5)], lines=9).ask(4, 6, "restart").look(60).broken() == []


def test_a_cell_whose_tab_was_closed_as_it_was_sent_needs_no_reply(tale: Tale) -> None:
    """Nobody knows whether it arrived."""
    tale.start().cell(4, lines=5).add(4, "info", "cell", kernel="k1", cell="k1/1", reason="perhaps not sent")
    assert tale.look(60).broken() == []
    assert tale.add(5, "seen", "busy", kernel="k1", cell="k1/1").broken() == ["a cell has no reply"]


def test_two_replies(tale: Tale) -> None:
    """One is enough, unless it came just before a sudden end of the gateway."""
    tale.start().cell(2, [(3, 0, 0)], 4, lines=1)
    tale.add(8, "ok", "cell", kernel="k1", cell="k1/1", status="ok", error="")
    assert tale.broken() == ["a reply is doubled"]
    assert tale.add(4.1, "invoke", "gateway", how="kill").add(6, "ok", "gateway", how="kill").broken() == []


def test_a_cell_that_fails_without_an_interrupt(tale: Tale) -> None:
    """Nothing else ends a cell of ours."""
    tale.start().cell(2, [(3, 0, 0)], 4, lines=9, status="error", error="KeyboardInterrupt")
    assert tale.broken() == ["a cell failed"]


def test_an_interrupt_of_before_hits_no_later_cell(tale: Tale) -> None:
    """One that could not be sent is not kept for the next cell."""
    reason = f"Kernel 1: the interrupt did not arrive. {NODE}: no answer to signal within 5 s"
    tale.start().ask(5, 6, "interrupt", "fail", status=503, reason=reason)
    tale.cell(20, [(21, 0, 0)], 22, lines=9, status="error", error="KeyboardInterrupt")
    assert tale.broken() == ["a cell failed"]


# -- the end -------------------------------------------------------------------------------------------------------------


def test_a_kernel_that_is_another_one(tale: Tale) -> None:
    """Another process, or one without what was left in it, in the place of one that lived all the while."""
    tale.start().add(1.1, "invoke", "cell", kernel="k1", cell="k1/m", marks=True)
    tale.add(1.2, "seen", "value", kernel="k1", cell="k1/m", value="11 a")
    tale.add(1.3, "ok", "cell", kernel="k1", cell="k1/m", status="ok", error="")
    assert tale.look(60, "12 None").broken() == ["a kernel is another one"]


def test_a_live_kernel_that_does_not_answer(tale: Tale) -> None:
    """In the end, when all is healed."""
    tale.start().add(60, "invoke", "cell", kernel="k1", cell="k1/look", looks=True)
    assert tale.view(150).broken() == ["a cell has no reply", "a live kernel does not answer"]


@pytest.mark.parametrize(
    "facts",
    [
        {"listed": []},
        {"running": {NODE: {}}},
        {"running": {NODE: {"id-k1": 2}}},
        {"running": {NODE: {"id-k1": 1}, OTHER: {"id-k1": 1}}},
        {"running": {NODE: {"id-k1": 1, "id-k9": 1}}},
        {"unseen": {NODE: "is stopped"}},
        {"told": {}, "silent": {}, "orphans": []},
        {"told": {NODE: ["id-k1"]}, "silent": {}, "orphans": ["id-k1"]},
        {"told": {NODE: ["id-k1"]}, "silent": {OTHER: "no answer"}, "orphans": []},
    ],
)
def test_what_runs_is_not_what_is_listed(tale: Tale, facts: dict[str, Any]) -> None:
    """Not listed, not there, twice, on two nodes, unknown to the gateway, unseen, or counted otherwise by its agent."""
    broken = tale.start().view(60, **facts).broken()
    assert set(broken) == {"what runs is not what is listed (living)"}


@pytest.mark.parametrize(
    "facts",
    [
        {"listed": ["id-k1"]},
        {"running": {NODE: {"id-k1": 1}}},
        {"files": {NODE: ["/home/lab/.cache/eg-distributed/x/k/id-k1"]}},
        {"others": {NODE: {"id-k1": 1}}},
    ],
)
def test_what_is_left_behind(tale: Tale, facts: dict[str, Any]) -> None:
    """After all were deleted there is neither a kernel nor a process nor a file of one."""
    broken = tale.start().ask(60, 61, "delete").view(180, ENDED, **facts).broken()
    assert set(broken) == {"what runs is not what is listed (ended)"}


# -- others --------------------------------------------------------------------------------------------------------------


def test_an_error_that_names_no_host(tale: Tale) -> None:
    """Whoever is refused something is told where to look."""
    tale.ask(0, 5, "start", "fail", status=500, reason="Internal Server Error", pin=NODE)
    assert tale.broken() == ["an error names no host"]


def test_a_start_that_may_choose_and_finds_no_host(tale: Tale) -> None:
    """One host is well all the while; a pin to one that is not may fail, and says so."""
    reason = f"no host could take the kernel: {NODE}: the connection was lost. Remedy: check sshd's log"
    tale.ask(0, 5, "start", "fail", status=503, reason=reason, pin=NODE)
    assert tale.broken() == []
    tale.ask(6, 9, "start", "fail", status=503, reason=reason, kernel="k2")
    assert tale.broken() == ["a start found no host"]


def test_a_kernel_that_ends_by_itself_is_not_tried_elsewhere(tale: Tale) -> None:
    """Such as on a host whose disk is full; where nothing is wrong with the host, something is with us."""
    reason = f"Host {NODE}: The kernel exited with code 1 before it was ready. Its output says why"
    tale.ask(6, 9, "start", "fail", status=500, reason=reason)
    assert tale.broken() == ["a start found no host"]
    assert tale.add(5, "invoke", "fault", name="disk-full", node=NODE, cut=False).broken() == []


def test_a_kernel_that_was_given_up_is_not_kept(tale: Tale) -> None:
    """Its client went away, and nobody was told of it; the first start after the gateway's own may go unnoticed."""
    facts = {"id": "id-k2", "pin": "", "gives_up": 1.0}
    tale.add(0, "invoke", "start", kernel="k2", request=9, **facts).add(1, "info", "start", kernel="k2", request=9)
    tale.start(2).view(60, listed=["id-k1", "id-k2"], running={NODE: {"id-k1": 1, "id-k2": 1}})
    assert tale.broken() == []
    tale.add(10, "invoke", "start", kernel="k3", request=10, **{**facts, "id": "id-k3"})
    tale.add(11, "info", "start", kernel="k3", request=10, reason="ReadTimeout")
    tale.view(61, listed=["id-k1"], running={NODE: {"id-k1": 1}})
    assert tale.broken() == []
    tale.events = [event for event in tale.events if event.op != "view"]
    tale.view(61, listed=["id-k1", "id-k3"], running={NODE: {"id-k1": 1, "id-k3": 1}})
    assert tale.broken() == ["what was given up is kept"]


@pytest.mark.parametrize(("state", "broken"), [("alive", ["a dead kernel is taken for alive"]), ("dead", [])])
def test_a_kernel_that_was_killed_is_known_to_be_dead(tale: Tale, state: str, broken: list[str]) -> None:
    """Or it is started again, by whichever process."""
    tale.start().add(5, "invoke", "kill-kernel", kernel="k1").add(6, "ok", "kill-kernel", kernel="k1", killed=[NODE])
    tale.lists(50, "idle", state).view(60, running={NODE: {}})
    assert tale.broken() == broken
    tale.view(60, running={NODE: {"id-k1": 1}})


def test_a_gateway_that_stands_still_is_no_violation(tale: Tale) -> None:
    """Neither its silence nor a bystander's patience counts meanwhile; its kernels have to live."""
    tale.start().start(kernel="by").add(5, "invoke", "freeze").add(29, "ok", "freeze")
    tale.cell(6, [(30, 0, 0)], 30, cell="by/1", lines=1, bystands=True)
    tale.add(29, "seen", "slow", asked=6, seconds=23.0)
    assert tale.broken() == []
    assert tale.lists(32, "", others=["id-by"]).broken() == ["a live kernel is declared dead"]


def test_a_bystander_that_waits(tale: Tale) -> None:
    """A cell on a host that is well is not late, but for an end of the gateway."""
    tale.start(kernel="by").cell(5, [(30, 0, 0)], 30, cell="by/1", lines=1, bystands=True)
    assert tale.broken() == ["a bystander waited"]
    tale.add(6, "invoke", "gateway", how="kill").add(29, "ok", "gateway", how="kill")
    assert tale.broken() == []


def test_a_gateway_that_does_not_answer(tale: Tale) -> None:
    """It answers in time for as long as it is there."""
    tale.add(30, "seen", "slow", asked=10, seconds=20.0)
    tale.add(60, "seen", "no-answer", asked=40, reason="ReadTimeout")
    assert tale.broken() == ["the gateway does not answer"] * 2


def test_a_request_without_an_answer(tale: Tale) -> None:
    """A client's request is answered, unless the gateway ends."""
    tale.ask(0, 90, "start", "info", reason="ReadTimeout")
    assert tale.broken() == ["a request was not answered"]
    tale.add(5, "invoke", "gateway", how="kill").add(9, "ok", "gateway", how="kill")
    assert tale.broken() == []

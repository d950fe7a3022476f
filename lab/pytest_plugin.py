"""The pytest plugin: SSH nodes, a gateway and faults as fixtures. Nothing happens until a test asks for one.

    @pytest.mark.lab(nodes=2)
    def test_a_cut_is_noticed(nodes, gateway, fault):
        with fault("partition", nodes[0]):
            ...

Fixtures: `lab`, `nodes`, `gateway`, `gateway_with`, `fault`. Marker: `lab`. Options: `--lab`, `--lab-keep`, `--lab-nodes`,
`--lab-driver`, `--lab-file`. Settings: `lab_leaks_allowed`, `lab_leak_seconds`, `lab_lease_seconds`.

With pytest-xdist the controller owns the lab: a worker makes it when its first test asks for it, all workers share it, and
the controller removes it at its very end. `pytest_sessionfinish` is too early for that: it may run in the controller before
the last worker is done.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pytest

# What these marks come to has no public name; pytest itself asks in the test's set-up, when its time counts already.
from _pytest.skipping import evaluate_skip_marks, evaluate_xfail_marks

from lab.testing import outcomes
from lab.testing.outcomes import leaked_key, visit_key

if TYPE_CHECKING:
    from lab.drivers.machines import Gateway
    from lab.lab import Lab
    from lab.progress import Progress
    from lab.testing.handles import Faults, LeasedNodes
    from lab.testing.session import SessionLab
    from lab.testing.visit import Visit, Wish

T = TypeVar("T")

MARKER: Final = "lab"
FIXTURES: Final = frozenset({"lab", "nodes", "gateway", "gateway_with", "fault"})
VISIT: Final = "_lab_visit"
"""The fixture behind the others, which also a test with the marker alone has."""
MARKER_HELP: Final = (
    "lab(nodes=1, roles=(), leaks=(), alone=False): run with that many nodes of the lab (or 'all', and the lab for itself) "
    "that have all these roles; leaks are what it may leave behind, as 'kind:pattern'; alone, no other test is there"
)

# The options are read in one process and handed to xdist's workers as one dictionary.
_OPTIONS: Final = ("lab", "lab_keep", "lab_nodes", "lab_driver", "lab_file")

session_key: Final = pytest.StashKey["SessionLab | None"]()
asked_key: Final = pytest.StashKey[dict[str, Any]]()
failed_key: Final = pytest.StashKey[bool]()
trouble_key: Final = pytest.StashKey[Exception]()


# -- the command line --------------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options and the settings."""
    group = parser.getgroup("lab", "lab: SSH nodes, gateways and faults for tests")
    group.addoption(
        "--lab",
        metavar="NAME|auto|none",
        default=os.environ.get("LAB_NAME") or None,
        help="The lab to use: NAME (made if it isn't there), auto (one of this session's own), none (tests that need a lab "
        "are skipped). [auto, where tests are skipped if this machine can have no lab] (env LAB_NAME)",
    )
    group.addoption(
        "--lab-keep",
        choices=("never", "failed", "always"),
        default="never",
        help="Whether a lab that this session made stays: never, if a test failed, always. [never]",
    )
    group.addoption(
        "--lab-nodes",
        type=int,
        default=int(os.environ.get("LAB_NODES") or 0) or None,
        metavar="N",
        help="How many nodes a lab gets that this session makes. [what the most demanding test needs, for each worker of "
        "xdist, >= 3] (env LAB_NODES)",
    )
    group.addoption(
        "--lab-driver",
        metavar="DRIVER",
        default=os.environ.get("LAB_DRIVER") or None,
        help="What makes the lab: docker, local, or another that is registered. A test that the local driver can't serve is "
        "skipped with the reason. [docker if an engine answers, else local; with LAB_REQUIRE_DOCKER=1 docker, or the tests fail] "
        "(env LAB_DRIVER)",
    )
    group.addoption(
        "--lab-file", metavar="lab.toml", default=None, help="The topology of a lab that this session makes."
    )
    parser.addini("lab_leaks_allowed", "What tests may leave behind, one 'kind:pattern' a line.", "linelist", [])
    parser.addini("lab_leak_seconds", "How long what a test left may take to go away.", default="10")
    parser.addini("lab_lease_seconds", "How long the lab lives on without its owner's keeper.", default="60")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and settle who owns the session's lab and what it is called."""
    config.addinivalue_line("markers", MARKER_HELP)
    config.pluginmanager.register(outcomes, "lab-outcomes")
    config.stash[session_key] = None
    handed = getattr(config, "workerinput", {}).get("lab")
    if handed is None:
        handed = {name: config.getoption(name) for name in _OPTIONS}
        required = bool(os.environ.get("LAB_REQUIRE_DOCKER"))
        handed["lab_driver"] = handed["lab_driver"] or ("docker" if required else None)
        handed |= {"explicit": handed["lab"] is not None, "required": required, "owner": os.getpid()}
        if handed["lab"] in (None, "auto"):
            handed["lab"] = f"pytest-{secrets.token_hex(3)}"
    config.stash[asked_key] = handed
    _check_driver(config.getoption("lab_driver"))


def _check_driver(name: str | None) -> None:
    """Raise UsageError for a driver that there is not, if the command line names it.

    Not by `choices` of the option: a conftest.py may register one, and all is parsed once before those are loaded. What the
    environment says is left to the tests that use the lab.
    """
    if name is None or name == os.environ.get("LAB_DRIVER"):
        return
    from lab.drivers import choice

    if name not in choice.names():
        raise pytest.UsageError(f"--lab-driver: {name!r} is none of {', '.join(choice.names())}")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Hand the choice to a worker of xdist; called in the controller."""
    node.workerinput["lab"] = dict(node.config.stash[asked_key])


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say which lab, if somebody asked for one."""
    asked = config.stash[asked_key]
    return f"lab: {asked['lab']}" if asked["explicit"] else None


# -- which tests use it ------------------------------------------------------------------------------------------------


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give each test that has the marker, or uses the plugin's fixtures, a stay in the lab; size the lab for them."""
    most = 0
    for item in items:
        if not isinstance(item, pytest.Function):
            continue
        own = _own_fixtures(item)
        if not own and item.get_closest_marker(MARKER) is None:
            continue
        most = max(most, _wish(item).count or 0)
        if VISIT not in item.fixturenames:
            item.fixturenames.insert(_place(item), VISIT)
    config.stash[asked_key]["most"] = most


def _place(item: pytest.Function) -> int:
    """Return where the test's stay belongs among its fixtures.

    Behind those of modules and sessions, whose machines are no leak of this test; before its own, so that what they take
    away at their end isn't left behind.
    """
    found = item._fixtureinfo.name2fixturedefs
    wide = [name in found and found[name][-1].scope != "function" for name in item.fixturenames]
    return wide.index(False) if False in wide else len(wide)


def _own_fixtures(item: pytest.Function) -> set[str]:
    """Return which of the plugin's fixtures the test uses: a suite may have others of the same names."""
    found = item._fixtureinfo.name2fixturedefs
    return {
        name
        for name in FIXTURES & set(item.fixturenames)
        if name in found and found[name][-1].func.__module__ == __name__
    }


def _wish(item: pytest.Item) -> Wish:
    # Imported for tests that use the lab alone: everybody else's pytest shall not wait for it.
    from lab.testing.wishes import wish_of

    return wish_of(item, _own_fixtures(item) if isinstance(item, pytest.Function) else set())


# -- a test ------------------------------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, T, T]:
    """Get the test its nodes before its time starts to count: making the lab, and waiting for others, is not its fault."""
    if VISIT in getattr(item, "fixturenames", ()) and _has_our_lab(item) and _will_run(item):
        try:
            _visit(item).lease(_session(item.config).get(_progress(item.config)))
        except Exception as error:  # noqa: BLE001 -- told to the test's set-up, where pytest can report it
            item.stash[trouble_key] = error
    try:
        return (yield)
    finally:
        # After the fixtures of its module as well, if it was the last test there: they may have used the lab.
        if visit_key in item.stash:
            item.stash[visit_key].give_back()


def _has_our_lab(item: pytest.Item) -> bool:
    """Whether the test's lab is the plugin's, which is known before its fixtures are set up."""
    assert isinstance(item, pytest.Function)
    found = item._fixtureinfo.name2fixturedefs.get("lab")
    ours = found is None or found[-1].func.__module__ == __name__
    return ours and item.config.stash[asked_key]["lab"] != "none"


def _will_run(item: pytest.Item) -> bool:
    """Whether the test's marks and the command line let it get as far as its fixtures; else no lab is made for it."""
    if item.config.getoption("setupplan", False):
        return False
    try:
        expected = None if item.config.getoption("runxfail") else evaluate_xfail_marks(item)
        return evaluate_skip_marks(item) is None and (expected is None or expected.run)
    except pytest.fail.Exception:
        return False  # a condition that can't be evaluated; pytest says so in the test's set-up


def _visit(item: pytest.Item) -> Visit:
    from lab.testing.visit import Visit

    if visit_key not in item.stash:
        seconds = float(item.config.getini("lab_leak_seconds"))
        item.stash[visit_key] = Visit(_session(item.config), item.nodeid, _wish(item), leak_seconds=seconds)
    return item.stash[visit_key]


def _session(config: pytest.Config) -> SessionLab:
    """Return this process's handle of the session's lab; nothing is made by that."""
    from lab.testing.session import SessionLab, Wanted

    found = config.stash[session_key]
    if found is None:
        asked = config.stash[asked_key]
        wanted = Wanted(
            asked["lab"],
            asked["owner"],
            asked["lab_nodes"] or max(3, asked.get("most", 0) * int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))),
            asked["lab_driver"],
            Path(asked["lab_file"]).absolute() if asked["lab_file"] else None,
            asked["lab_keep"],
            float(config.getini("lab_lease_seconds")),
        )
        found = config.stash[session_key] = SessionLab(wanted)
    return found


def _progress(config: pytest.Config) -> Progress | None:
    """Return who hears how the lab comes up: the terminal, or nobody in a worker of xdist, which has none."""
    from lab.testing.terminal import TerminalProgress

    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return TerminalProgress(reporter) if reporter is not None else None


# -- fixtures ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The session's lab: the one that `--lab` names, or one of its own.

    A test that uses it without the marker has all of it for itself.
    """
    config = request.config
    asked = config.stash[asked_key]
    if asked["lab"] == "none":
        pytest.skip("--lab none")
    session = _session(config)
    found = _tell(config, lambda: session.get())
    yield found
    session.leave()


@pytest.fixture
def _lab_visit(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Visit]:
    """The test's stay in the lab; what it leaves behind fails it."""
    item, config = request.node, request.config
    visit = _visit(item)
    if trouble_key in item.stash:
        _tell(config, lambda: _raise(item.stash[trouble_key]))
    if visit.lab is None:
        # The suite has a fixture `lab` of its own: its lab is known only now.
        _adopt(config, lab)
        _tell(config, lambda: visit.lease(lab))
    _tell(config, visit.begin)
    yield visit
    left = visit.end(config.getini("lab_leaks_allowed"))
    if left:
        request.node.stash[leaked_key] = True
        # The first line is all that a summary shows.
        pytest.fail("left behind: " + "\n             ".join(left), pytrace=False)


@pytest.fixture
def nodes(_lab_visit: Visit) -> LeasedNodes:
    """The nodes that the marker asks for, for this test alone; `nodes(2)` leases two (more) and returns them."""
    from lab.testing.handles import LeasedNodes

    return LeasedNodes(_lab_visit)


@pytest.fixture
def gateway(_lab_visit: Visit) -> Gateway:
    """A gateway that starts kernels on the test's nodes and no others; the lab's own if the test has all of them."""
    return _lab_visit.gateway


@pytest.fixture
def gateway_with(_lab_visit: Visit) -> Callable[..., Gateway]:
    """`gateway_with(env={…}, options=[…])`: a gateway with other settings that starts kernels on the test's nodes alone.

    The process keeps it for its later tests that ask for the same.
    """
    return _lab_visit.gateway_with


@pytest.fixture
def fault(_lab_visit: Visit) -> Faults:
    """`with fault("partition", nodes[0]):` adds a fault of the catalogue; it is healed after the test at the latest.

    `fault.plan([{"at": 2, "fault": "refuse", "nodes": "random", "for": 5}], seed=7)` runs a fault plan on the test's nodes.
    """
    from lab.testing.handles import Faults

    return Faults(_lab_visit)


def _raise(error: Exception) -> None:
    raise error


def _adopt(config: pytest.Config, found: Lab) -> None:
    """Lease nodes of a lab that the suite made by itself."""
    from lab.testing.pool import Pool

    session = _session(config)
    if session.pool is None or session.pool.lab_name != found.name:
        session.adopt(found, Pool(found.name))


def _tell(config: pytest.Config, work: Any) -> Any:
    """Do *work*; fail or skip the test with the lab's own words instead of a traceback through the lab."""
    from lab.errors import EnvironmentUnfit, LabError

    try:
        return work()
    except EnvironmentUnfit as error:
        told, unfit = str(error), True
    except LabError as error:
        told, unfit = str(error), False
    # Out here, so that no chain of the lab's own exceptions is shown before the words.
    if unfit and not (config.stash[asked_key]["explicit"] or config.stash[asked_key]["required"]):
        pytest.skip(told)
    pytest.fail(told, pytrace=False)


# -- the end -----------------------------------------------------------------------------------------------------------


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Remember whether a test failed, for `--lab-keep failed`."""
    session.config.stash[failed_key] = session.testsfailed > 0


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the lab if this session made it, or say how to use it; xdist's workers are gone by now."""
    if session_key not in config.stash or hasattr(config, "workerinput"):
        return
    asked = config.stash[asked_key]
    if asked["lab"] == "none" or (config.stash[session_key] is None and not _somebody_made_it(asked["lab"])):
        return
    told = _session(config).finish(failed=config.stash.get(failed_key, True))
    if told:
        print(f"\n{told}")


def _somebody_made_it(name: str) -> bool:
    """Say whether a worker made the lab, without importing the lab for a session that has none."""
    root = os.environ.get("XDG_STATE_HOME", "")
    base = Path(root) if root.startswith("/") else Path.home() / ".local/state"
    return (base / "eg_distributed_lab" / name / "session.json").exists()

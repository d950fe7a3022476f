"""The pytest plugin in other people's suites: each test here runs a small suite of its own against one real lab."""

import json
import os
import re
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import Lab, events
from lab.faults import active
from lab.state import cache_root, state_root

pytest_plugins = ["pytester"]

NAME = f"it-plugin-{os.getpid() % 10000}"

pytestmark = [pytest.mark.timeout(600), pytest.mark.own_lab(NAME, nodes=2)]

STATE, CACHE = str(state_root().parent), str(cache_root().parent)
"""Asked now: pytester gives every test, and what it runs, a home of its own; labs are where they always are."""
Suite = Callable[..., pytest.RunResult]


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Suite:
    """Run a suite of one file, in a pytest process of its own: `suite(code, "-n", "2")`."""
    monkeypatch.setenv("XDG_STATE_HOME", STATE)
    monkeypatch.setenv("XDG_CACHE_HOME", CACHE)
    for name in ("LAB_NAME", "LAB_NODES", "LAB_DRIVER"):
        monkeypatch.delenv(name, raising=False)

    def run(code: str, *options: str, leak_seconds: float = 10) -> pytest.RunResult:
        settings = f"lab_leak_seconds = {leak_seconds:g}\nasyncio_default_fixture_loop_scope = function\n"
        pytester.makeini(f"[pytest]\n{settings}")
        pytester.makepyfile(textwrap.dedent(code))
        if not any(option.startswith("--lab") for option in options):
            options = (*options, "--lab", request.getfixturevalue("own").name)
        return pytester.runpytest_subprocess("-v", "-p", "no:cacheprovider", *options, timeout=300)

    return run


def test_nodes_are_leased_by_number(suite: Suite) -> None:
    """A test has as many nodes as its marker says, more when it asks, and all of the lab without a marker."""
    result = suite("""
        import pytest

        @pytest.mark.lab(nodes=2)
        def test_two(nodes):
            assert [node.exec(["hostname"]).stdout.strip() for node in nodes] == [node.name for node in nodes]
            assert len(nodes) == 2

        @pytest.mark.lab
        def test_one(nodes, lab):
            assert len(nodes) == 1 and len(lab.nodes) == 2

        def test_as_it_goes_on(nodes):
            first, = nodes(1)
            second, = nodes(1)
            assert {first.name, second.name} == {node.name for node in nodes}

        def test_the_whole_lab(lab, gateway):
            assert gateway.name == "gateway"

        def test_without(tmp_path):
            pass
        """)
    result.assert_outcomes(passed=5)


def test_what_a_marker_can_t_say_is_refused(suite: Suite) -> None:
    """An unknown word is refused with the nearest one, and a wish that no lab can meet names what there is."""
    suite("""
        import pytest

        @pytest.mark.lab(node=2)
        def test_typing_error():
            pass
        """).stderr.fnmatch_lines(["*@pytest.mark.lab has no 'node': did you mean nodes?*"])
    result = suite("""
        import pytest

        @pytest.mark.lab(nodes=3)
        def test_too_many(nodes):
            pass

        @pytest.mark.lab(roles="database")
        def test_a_role_that_no_node_has(nodes):
            pass
        """)
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*needs 3 nodes, the lab * has 2 that fit*", "*has 0 that fit*"])


LEAKS = {
    "process": ("nodes[0].exec(['sh', '-c', 'setsid sleep 4321 > /dev/null 2>&1 &'])", r"process \d+ sleep 4321"),
    "port": (
        "serve(nodes[0])",
        r"port tcp 0\.0\.0\.0:7654 \(python3\)",
    ),
    "file": ("nodes[0].exec(['mkdir', '-p', '/tmp/mine/deep'])", r"file /tmp/mine\b"),
    "changed file": (
        "nodes[0].exec(['sh', '-c', 'echo x >> /etc/environment'], user='root')",
        r"file /etc/environment is changed",
    ),
    "rule": (
        "nodes[0].exec(['iptables', '-A', 'INPUT', '-p', 'tcp', '--dport', '9', '-j', 'DROP'], user='root')",
        r"rule filter -A INPUT -p tcp -m tcp --dport 9 -j DROP",
    ),
    "connection": (
        "connect(nodes[0], lab)",
        r"connection SSH from [\d.]+: \d+, not \d",
    ),
    "kernel": (
        "httpx.post(gateway.url + '/api/kernels', json={'name': 'python_distributed'}, timeout=60).raise_for_status()",
        r"kernel [0-9a-f-]{36} as process \d+ \S+python -m ipykernel_launcher",
    ),
    "state": ("nodes[0].pause()", r"state is paused"),
}


@pytest.mark.parametrize("kind", LEAKS)
def test_what_a_test_leaves_behind_fails_it_by_name(suite: Suite, kind: str) -> None:
    """Each kind of thing that is left is named with its machine, and the test after it is not blamed for it."""
    deed, named = LEAKS[kind]
    result = suite(
        f"""
        import subprocess
        import httpx
        import pytest
        from lab.probes import ProbeFailed, wait_until

        def wait_for(node, text, *options):
            def look():
                if text not in node.exec(["ss", "-Htn", *options]).stdout:
                    raise ProbeFailed(f"no socket {{text}}")
            wait_until(text, look, seconds=30)

        def serve(node):
            node.exec(["sh", "-c", "setsid python3 -m http.server 7654 > /dev/null 2>&1 &"])
            wait_for(node, ":7654", "-l")

        def connect(node, lab):
            subprocess.Popen(["ssh", "-F", str(lab.ssh_config), "-o", "BatchMode=yes", node.name, "sleep 60"])
            wait_for(node, ":22", "state", "established")

        @pytest.mark.lab
        def test_leaves_it(nodes, gateway, lab):
            {deed}

        @pytest.mark.lab(nodes=2)
        def test_is_not_blamed(nodes, gateway):
            assert all(node.state == "running" for node in nodes)
        """,
        leak_seconds=1,
    )
    # Its own part passed; what it left is a failure of this test, and no error of a fixture.
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["FAILED *::test_leaves_it*"])
    assert re.search(rf"left behind: (.*\n)*?.*node\d.lab.test: {named}", result.stdout.str()), result.stdout.str()


def test_what_is_allowed_stays(suite: Suite, own: Lab) -> None:
    """A marker says what its test may leave; a machine that a test made and left is named and removed."""
    result = suite("""
        import pytest

        @pytest.mark.lab(leaks="file:/tmp/wanted*")
        def test_allowed(nodes):
            nodes[0].exec(["touch", "/tmp/wanted-1"])

        def test_machine(lab):
            lab.add_node("leftover")
        """)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*left behind: leftover.lab.test: machine leftover.lab.test"])
    assert [node.short_name for node in own.nodes] == ["node1", "node2"]
    own.node("node1").exec(["rm", "-f", "/tmp/wanted-1"])
    own.node("node2").exec(["rm", "-f", "/tmp/wanted-1"])


def test_a_module_s_machines_are_no_test_s_leak(suite: Suite, own: Lab) -> None:
    """A gateway that a module's fixture makes is there for all tests of the module, and gone after the last one."""
    suite("""
        import pytest

        @pytest.fixture(scope="module")
        def other(lab):
            gateway = lab.add_gateway("other")
            yield gateway
            gateway.remove()

        def test_first(other):
            assert other.state == "running"

        def test_second(other, lab):
            assert other.name in [gateway.name for gateway in lab.gateways]
        """).assert_outcomes(passed=2)
    assert [gateway.name for gateway in own.gateways] == ["gateway"]


def test_two_workers_share_one_lab(suite: Suite, own: Lab) -> None:
    """Under xdist no node is two tests' at a time, kernels stay on their test's nodes, and a whole-lab test is alone."""
    result = suite(
        """
        import httpx
        import pytest
        from lab.stats import measure

        @pytest.mark.parametrize("number", range(4))
        @pytest.mark.lab(nodes=1)
        def test_one(number, nodes, gateway, lab):
            ids = set()
            for _ in range(2):
                answer = httpx.post(f"{gateway.url}/api/kernels", json={"name": "python_distributed"}, timeout=60)
                ids.add(answer.raise_for_status().json()["id"])
            assert {measure(lab).placed.get(each) for each in ids} == {nodes[0].name}
            for each in ids:
                httpx.delete(f"{gateway.url}/api/kernels/{each}", timeout=60).raise_for_status()

        def test_whole(lab, gateway):
            assert sum(measure(lab).nodes.values()) == 0
        """,
        "-n2",
    )
    result.assert_outcomes(passed=5)
    held: dict[str, str] = {}
    nodes_of: dict[str, set[str]] = {}
    seen = [event for event in events.read(own.name) if "test_two_workers" in str(event.get("test"))]
    for event in seen:
        for node in event["nodes"]:
            if event["kind"] == "test.begin":
                assert node not in held, f"{node} is {held[node]}'s and {event['test']}'s"
                held[node] = event["test"]
                nodes_of.setdefault(event["test"], set()).add(node)
            else:
                del held[node]
    assert len(nodes_of) == 5
    assert held == {}
    assert {node for name, nodes in nodes_of.items() if "test_one" in name for node in nodes} == {
        "node1.lab.test",
        "node2.lab.test",
    }
    assert [gateway.name for gateway in own.gateways] == ["gateway"]


def test_alone_is_alone(suite: Suite, own: Lab) -> None:
    """A test that is alone gets the nodes that it asks for, and no other test is under way in the lab meanwhile."""
    suite(
        """
        import pytest

        @pytest.mark.parametrize("number", range(6))
        @pytest.mark.lab
        def test_with_others(nodes, number):
            assert nodes[0].exec(["sleep", "0.3"]).exit_code == 0

        @pytest.mark.parametrize("number", range(2))
        @pytest.mark.lab(nodes=1, alone=True)
        def test_alone(nodes, gateway, number):
            assert len(nodes) == 1
            assert gateway.name != "gateway", "its kernels land on its own node alone"
            assert nodes[0].exec(["sleep", "0.3"]).exit_code == 0
        """,
        "-n2",
    ).assert_outcomes(passed=8)
    under_way: set[str] = set()
    overlaps: list[set[str]] = []
    for event in events.read(own.name):
        if "test_alone_is_alone" in str(event.get("test")):
            if event["kind"] == "test.begin":
                under_way.add(event["test"])
                overlaps.append(set(under_way))
            elif event["kind"] == "test.end":
                under_way.remove(event["test"])
    assert [each for each in overlaps if len(each) > 1 and "::test_alone[" in str(each)] == []


def test_kernels_of_a_test_s_gateways_stay_on_its_nodes(suite: Suite, own: Lab) -> None:
    """Kernelspecs that a test adds, and gateways with other settings, use the test's nodes; the same settings are one gateway."""
    suite(
        """
        import httpx
        import pytest
        from lab.stats import measure
        from lab.testing.session import kernelspecs_of

        def start(gateway, name):
            answer = httpx.post(f"{gateway.url}/api/kernels", json={"name": name}, timeout=60)
            return answer.raise_for_status().json()["id"]

        @pytest.mark.parametrize("number", range(2))
        @pytest.mark.lab(nodes=1)
        def test_kernels(nodes, gateway, gateway_with, lab, number):
            gateway.add_kernelspec("own", kernelspecs_of(lab.gateway)["python_distributed"])
            settings = {"EG_LOAD_BALANCING_ALGORITHM": "least-connection"}
            other = gateway_with(env=settings)
            assert other.name != gateway.name == gateway_with().name
            assert gateway_with(env=settings).name == other.name
            started = [(each, start(each, name)) for each in (gateway, other) for name in ("python_distributed",) * 2]
            started.append((gateway, start(gateway, "own")))
            assert {measure(lab).placed.get(kernel) for _, kernel in started} == {nodes[0].name}
            for each, kernel in started:
                httpx.delete(f"{each.url}/api/kernels/{kernel}", timeout=60).raise_for_status()

        @pytest.mark.lab(nodes=1)
        def test_a_leak_there_is_named(gateway_with):
            start(gateway_with(env={"EG_LOAD_BALANCING_ALGORITHM": "least-connection"}), "python_distributed")
        """,
        leak_seconds=1,
    ).assert_outcomes(passed=3, failed=1)
    assert [gateway.name for gateway in own.gateways] == ["gateway"]


def test_nodes_that_tests_add_are_not_leased(suite: Suite, own: Lab) -> None:
    """A node that a test adds is its own: no wish is met with it, unless by a role that it has."""
    suite("""
        import pytest

        @pytest.fixture(scope="module", autouse=True)
        def added(lab):
            nodes = [lab.add_node("added"), lab.add_node("database", roles=["database"])]
            yield nodes
            for node in nodes:
                node.remove()

        @pytest.mark.lab(nodes="all")
        def test_all(nodes):
            assert [node.short_name for node in nodes] == ["node1", "node2"]

        @pytest.mark.lab(roles="database")
        def test_role(nodes):
            assert [node.short_name for node in nodes] == ["database"]
        """).assert_outcomes(passed=2)
    assert [node.short_name for node in own.nodes] == ["node1", "node2"]


def test_a_fault_is_healed_and_told(suite: Suite, own: Lab) -> None:
    """A fault that a test did not heal is healed after it, is in the failed test's report, and never hits others' nodes."""
    result = suite("""
        import pytest
        from lab.errors import LabUsageError

        @pytest.mark.lab(nodes=1)
        def test_fails(nodes, fault, lab):
            with fault("pause", nodes[0]):
                assert nodes[0].state == "paused"
            assert nodes[0].state == "running"
            fault("pause")
            other = next(node for node in lab.nodes if node.name != nodes[0].name)
            with pytest.raises(LabUsageError, match="has not leased"):
                fault("pause", other)
            assert not "the end"
        """)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*lab timeline (UTC)*", "*event*test.begin*", "*event*fault.added*pause*"])
    assert {node.state for node in own.nodes} == {"running"}
    kinds = [event["kind"] for event in events.read(own.name)]
    assert kinds.count("fault.added") == kinds.count("fault.healed") == 2


FAULTS_LEFT = {
    "key-removed": ("add(lab, 'key-removed', [nodes[0]])", ["*left behind: node1.lab.test: fault key-removed *"]),
    "on a paused node": (
        "add(lab, 'account-locked', [nodes[0]]); nodes[0].pause()",
        [
            "*left behind: node1.lab.test: fault account-locked *",
            "*fault account-locked * can't be healed: it is paused",
        ],
    ),
}


@pytest.mark.parametrize("what", FAULTS_LEFT)
def test_a_fault_that_is_left_is_named_and_healed(suite: Suite, own: Lab, what: str) -> None:
    """A fault that no fixture heals fails its test; it is healed, so that the node takes logins in the next test."""
    deed, named = FAULTS_LEFT[what]
    result = suite(
        f"""
        import subprocess
        import pytest
        from lab.faults import active, add

        @pytest.mark.lab(nodes=2)
        def test_leaves_it(nodes, lab):
            {deed}

        @pytest.mark.lab(nodes=2)
        def test_is_not_blamed(nodes, lab):
            assert active(lab) == []
            subprocess.run(["ssh", "-F", str(lab.ssh_config), "-o", "BatchMode=yes", nodes[0].name, "true"], check=True)
        """,
        leak_seconds=1,
    )
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(named)
    assert {node.state for node in own.nodes} == {"running"}


def test_what_lives_on_through_a_proxy_is_no_leak(suite: Suite, own: Lab) -> None:
    """A gateway's connection that was opened through a fault's proxy lives on when the fault heals, and is no test's leak."""
    suite("""
        import httpx
        import pytest

        @pytest.mark.lab(nodes=1)
        def test_a_kernel_behind_a_delay(nodes, gateway, fault):
            with fault("bandwidth", nodes[0], direction="both", kbit=50_000) as inflicted:
                assert "proxy" in inflicted.mechanism
                answer = httpx.post(f"{gateway.url}/api/kernels", json={"name": "python_distributed"}, timeout=60)
                kernel = answer.raise_for_status().json()["id"]
            httpx.delete(f"{gateway.url}/api/kernels/{kernel}", timeout=60).raise_for_status()
            assert "proxy.py" in nodes[0].exec(["ps", "ax"]).stdout

        @pytest.mark.lab(nodes=2)
        def test_the_next_one(nodes, gateway):
            pass
        """).assert_outcomes(passed=2)


def test_a_plan_and_the_gateway_s_faults(suite: Suite, own: Lab) -> None:
    """`fault.plan` means the test's own nodes alone, and ends with the test; `fault` can hit the test's own gateway."""
    suite("""
        import threading
        import pytest
        from lab.errors import LabUsageError
        from lab.faults import active

        @pytest.mark.lab(nodes=1)
        def test_plan(nodes, fault, lab):
            [found] = fault.plan([{"fault": "refuse", "nodes": "all", "for": 0.5}])
            assert found.nodes == (nodes[0].name,)
            other = next(node for node in lab.nodes if node.name != nodes[0].name)
            with pytest.raises(LabUsageError, match="nodes can't be"):
                fault.plan([{"fault": "refuse", "nodes": [other.name], "for": 1}])

        @pytest.mark.lab(nodes=1)
        def test_plan_beside_the_test(nodes, fault, lab):
            steps = [{"fault": "drop-new", "nodes": "all", "for": 60}, {"at": 50, "fault": "pause", "nodes": "all", "for": 9}]
            threading.Thread(target=fault.plan, args=(steps,), daemon=True).start()
            while not active(lab):
                pass

        @pytest.mark.lab(nodes=1)
        def test_gateway(nodes, gateway, fault, lab):
            with fault("name-missing", gateway) as found:
                assert found.nodes == (gateway.name,)
            with pytest.raises(LabUsageError, match="has not leased"):
                fault("name-missing", lab.gateway)
        """).assert_outcomes(passed=3)
    assert active(own) == []


def test_no_lab_no_tests(suite: Suite) -> None:
    """`--lab none` skips what needs a lab and runs the rest."""
    result = suite(
        """
        import pytest

        @pytest.mark.lab
        def test_marked():
            raise AssertionError

        def test_uses(gateway):
            raise AssertionError

        def test_other():
            pass
        """,
        "--lab=none",
    )
    result.assert_outcomes(passed=1, skipped=2)


def test_tests_that_don_t_run_need_no_lab(suite: Suite) -> None:
    """Marks that keep a test from running, and --setup-plan, are looked at before a lab is made."""
    code = """
        import pytest

        @pytest.mark.lab
        @pytest.mark.skip(reason="not now")
        def test_skip(nodes):
            raise AssertionError

        @pytest.mark.lab
        @pytest.mark.skipif("True", reason="not here")
        def test_skipif(nodes):
            raise AssertionError

        @pytest.mark.xfail(run=False)
        def test_xfail(lab):
            raise AssertionError
        """
    name = f"{NAME}-none"
    suite(code, f"--lab={name}").assert_outcomes(skipped=2, xfailed=1)
    suite(code.replace("skip", "other").replace("xfail", "other"), f"--lab={name}", "--setup-plan")
    assert not (Path(STATE) / "eg_distributed_lab" / name).exists()
    assert not [event for event in events.read(name) if event["kind"] != "lab.down"]


def test_a_suite_s_own_fixtures_stay_its_own(suite: Suite, own: Lab, pytester: pytest.Pytester) -> None:
    """A suite that has a fixture `lab` or `gateway` keeps it; `nodes` leases from its lab."""
    pytester.makeconftest(
        f"""
        import pytest
        from lab import Lab

        @pytest.fixture(scope="session")
        def lab():
            return Lab.attach({own.name!r})

        @pytest.fixture
        def gateway():
            return "mine"
        """
    )
    result = suite(
        """
        def test_own(lab, gateway):
            assert gateway == "mine"

        def test_nodes(nodes):
            assert len(nodes(2)) == 2
        """,
        "--lab=auto",
    )
    result.assert_outcomes(passed=2)


def test_nothing_happens_until_a_test_asks(suite: Suite, tmp_path: Path) -> None:
    """A suite that uses nothing of the lab gets no lab, and does not even load it."""
    told = tmp_path / "modules.json"
    suite(
        f"""
        import json, pathlib, sys

        def test_plain():
            found = [name for name in sys.modules if name in ("docker", "asyncssh", "lab.lab", "lab.testing.session")]
            pathlib.Path({str(told)!r}).write_text(json.dumps(found))
        """,
        "--lab=auto",
    ).assert_outcomes(passed=1)
    assert json.loads(told.read_text()) == []

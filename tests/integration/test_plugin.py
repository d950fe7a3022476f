"""The pytest plugin in other people's suites: each test here runs a small suite of its own against one real lab."""

import json
import os
from pathlib import Path

import pytest

from lab import Lab, events
from tests.integration.fixtures import STATE, Suite

pytest_plugins = ["pytester"]

NAME = f"it-plugin-{os.getpid() % 10000}"

pytestmark = [pytest.mark.timeout(600), pytest.mark.own_lab(NAME, nodes=2)]


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


def test_two_workers_share_one_lab(suite: Suite, own: Lab) -> None:
    """Under xdist no node is two tests' at a time, kernels stay on their test's nodes, and a whole-lab test is alone."""
    result = suite(
        """
        import httpx
        import pytest
        from lab.observe.stats import measure

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
        from lab.observe.stats import measure
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

"""The pytest plugin and what a test leaves behind: it is named and cleaned up, faults among it, and no other test is blamed."""

import os
import re

import pytest

from lab import Lab, events
from lab.faults import active
from tests.integration.fixtures import Suite

pytest_plugins = ["pytester"]

NAME = f"it-leaks-{os.getpid() % 10000}"

pytestmark = [pytest.mark.timeout(600), pytest.mark.own_lab(NAME, nodes=2)]

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

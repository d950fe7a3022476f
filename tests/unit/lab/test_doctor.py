import json
import os
import socket
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab.doctor import Finding, Report, examination, examine, host
from lab.drivers.docker import examination as engine
from lab.drivers.docker import kernel, network
from tests.unit.lab.command import run

DOCKER, LOCAL = frozenset({"docker"}), frozenset({"local"})


def test_without_an_engine_docker_is_missing_and_local_is_judged(capsys: pytest.CaptureFixture[str]) -> None:
    """--driver docker ends with 6 and a remedy; without it the judgement is about the driver that `up` would take."""
    code, out, err = run(["doctor", "--driver", "docker"], capsys)
    assert code == 6
    assert "MISS engine: " in out
    assert "-> " in out
    assert "can't be made here" in err
    report = json.loads(run(["doctor", "--json"], capsys)[1])
    assert report["driver"] == "local"
    assert "engine" not in report["missing"]


def test_every_finding_that_is_not_ok_has_a_remedy() -> None:
    """Nothing is found wrong without saying what to do."""
    report = examine("docker")
    assert [each.name for each in report.findings if each.state in {"warning", "missing"} and not each.remedy] == []


def test_only_what_the_driver_needs_makes_it_unfit() -> None:
    """A local lab needs no engine, a docker lab no interpreter for the gateway."""
    findings = (Finding("engine", "missing", "", drivers=DOCKER), Finding("python", "missing", "", drivers=LOCAL))
    assert [each.name for each in Report("docker", findings).missing] == ["engine"]
    assert [each.name for each in Report("local", findings).missing] == ["python"]
    assert Report("local", (findings[0],)).fit


def test_why_no_engine_answers_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No socket, something else in its place, one that nobody listens on: each has a remedy of its own."""
    path = tmp_path / "engine.sock"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    seen = [engine.connect()[1]]
    path.touch()
    seen.append(engine.connect()[1])
    path.unlink()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        seen.append(engine.connect()[1])
        if os.geteuid() != 0:
            path.chmod(0)
            seen.append(engine.connect()[1])
    words = ["there is no", "is no socket", "nothing answers", "may not use"]
    assert [word in each.found for word, each in zip(words, seen, strict=False)] == [True] * len(seen)
    assert {each.state for each in seen} == {"missing"}
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    assert "DOCKER_HOST" in engine.connect()[1].remedy


def client(**told: Any) -> Any:
    subnets = [{"Subnet": str(pool)} for pool in network.POOLS]
    networks = [SimpleNamespace(name="corp", attrs={"IPAM": {"Config": subnets}})]
    listing = networks if told.pop("full", False) else []
    return SimpleNamespace(
        version=lambda: {"ApiVersion": told.get("api", "1.41")},
        info=lambda: {"DockerRootDir": told.get("root", "/")},
        networks=SimpleNamespace(list=lambda: listing),
    )


def test_an_old_engine_is_a_warning() -> None:
    """An API below the tested one may do, so it is no obstacle; 1.5 is older than 1.41."""
    assert engine._api(client(api="1.5")).state == "warning"
    assert engine._api(client(api="1.43")).state == "ok"


def test_a_taken_subnet_names_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no subnet is free, the finding says who has them, and how to take another pool."""
    monkeypatch.setattr(network, "own_routes", dict)
    found = engine._subnet(client(full=True))
    assert found.state == "missing"
    assert "the network corp" in found.found
    assert "LAB_POOL" in found.remedy
    assert engine._subnet(client()).state == "ok"


def test_a_subnet_of_a_vpns_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lab can be made there, and hides what the VPN leads to."""
    vpn = {"the route to 10.0.0.0/8 by tun0": IPv4Network("10.0.0.0/8")}
    monkeypatch.setattr(network, "own_routes", lambda: vpn)
    assert engine._subnet(client()).state == "ok"
    monkeypatch.setenv("LAB_POOL", "10.213.0.0/16")
    found = engine._subnet(client())
    assert (found.state, "by tun0" in found.found, "LAB_POOL" in found.remedy) == ("warning", True, True)


@pytest.mark.parametrize(("free", "state"), [(100, "missing"), (2000, "warning"), (9000, "ok")])
def test_a_full_disk_is_seen_before_up_meets_it(free: int, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little for a container, too little for building images, enough."""
    monkeypatch.setattr(engine, "megabytes_free", lambda path: free)
    assert engine._disk(client()).state == state


def test_a_missing_match_is_named_with_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel lacks is a warning that says which faults' mechanism it was."""
    monkeypatch.setattr(kernel, "tool", lambda name: f"/sbin/{name}" if name == "iptables" else None)
    monkeypatch.setattr(kernel, "run", lambda argv: ("connlimit" not in argv, "No chain/target/match by that name."))
    found = kernel._iptables(["unshare", "--net"])
    assert (found.state, "connlimit" in found.found, "modprobe xt_connlimit" in found.remedy) == ("warning", True, True)


def test_a_kernel_that_can_not_be_asked_is_unknown() -> None:
    """Where a user can't make a network namespace nothing is claimed."""
    assert kernel._iptables(None).state == "unknown"
    assert kernel._qdisc(None, "netem", ()).state == "unknown"


def test_a_named_but_missing_ca_bundle_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SSL_CERT_FILE without a file breaks uv long before the lab could say why."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "absent.pem"))
    found = host._certificates()
    assert (found.state, "absent.pem" in found.found) == ("warning", True)


def test_a_check_that_breaks_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found before stays, and the failure is a finding itself."""

    def checks() -> Iterator[Finding]:
        yield Finding("first", "ok", "")
        raise OSError("disk on fire")

    monkeypatch.setattr(host, "checks", checks)
    found = {each.name: each for each in examination.examine("local").findings}
    assert found["first"].state == "ok"
    assert "disk on fire" in found["host checks"].found

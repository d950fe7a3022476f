"""What a kernel manager of jupyter_client knows of a kernel, turned into a request; here without jupyter_client."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from eg_distributed.errors import RequestInvalid, RequestRefused
from eg_distributed.jupyter_server import request
from eg_distributed.jupyter_server.request import elsewhere, request_for
from eg_distributed.kernelspecs.guard import guarded
from eg_distributed.request import StartRequest
from eg_distributed.settings import Distributed
from eg_distributed.spec_request import KernelSpec, Session
from tests.unit.jupyter import ARGV, Signing, Spec


@dataclass
class Manager:
    """What of a kernel manager the request is made of."""

    kernel_spec: KernelSpec = field(default_factory=Spec)
    kernel_id: str = "k1"
    kernel_name: str = "mine"
    session: Session = field(default_factory=Signing)


def made(
    launch: dict[str, Any] | None = None,
    own: dict[str, str] | None = None,
    manager: Manager | None = None,
    settings: dict[str, Any] | None = None,
    **config: Any,
) -> StartRequest:
    """Return the request for a kernel on the hosts a, b and c, unless *settings* say otherwise."""
    chosen = Distributed(**{"remote_hosts": "a,b,c", **(settings or {})})
    return request_for(manager or Manager(), config, launch or {}, chosen, own or {})


def test_a_plain_kernelspec_becomes_a_request() -> None:
    """Hosts, argv, key and language are the manager's; what runs where decides on the host."""
    found = made(manager=Manager(Spec(argv=guarded(ARGV))))
    assert found.argv == ARGV
    assert found.spec_argv == tuple(ARGV)
    assert (found.kernel_id, found.hosts, found.key, found.language) == ("k1", ("a", "b", "c"), "secret", "python")
    assert (found.transport, found.balancer, found.pin, found.port_range) == ("auto", "least-connection", None, None)
    assert (found.env["KERNEL_ID"], found.env["KERNEL_LANGUAGE"]) == ("k1", "python")
    assert found.env["EG_IMPERSONATION_ENABLED"] == "False"
    assert found.launch_timeout == 30.0


def test_the_kernelspecs_config_wins() -> None:
    """`remote_hosts` may be a list or a text; `transport` and `port_range` are the kernel's."""
    found = made(remote_hosts=["x", "y"], transport="tcp", port_range="40000..42000")
    assert (found.hosts, found.transport, found.port_range) == (("x", "y"), "tcp", (40000, 42000))
    assert made(remote_hosts="x").hosts == ("x",)


def test_a_typing_error_in_the_config_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """A key that nobody knows is in the log, and stops nothing."""
    made(remote_host="x")
    assert "kernelspec mine: no remote_host is known in its provisioner's config" in caplog.text


@pytest.mark.parametrize("text", ["40000", "2..1", "1..70000", "a..b", "..", "-1..2"])
def test_a_port_range_that_is_none(text: str) -> None:
    """It is refused with an example."""
    with pytest.raises(RequestInvalid, match=r"Write 40000\.\.42000"):
        made(port_range=text)


def test_no_hosts() -> None:
    """The error names where they can be."""
    with pytest.raises(
        RequestInvalid, match=r"Kernelspec 'mine' has no hosts.*c\.Distributed\.remote_hosts, EG_REMOTE_HOSTS"
    ):
        made(settings={"remote_hosts": ""})


def test_rounds_begin_at_a_place_of_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order stays; where it begins is the process's own, which it keeps."""
    own = {"EG_LOAD_BALANCING_ALGORITHM": "round-robin"}
    begun = set()
    for first in (0.0, 0.34, 0.67, 0.999):
        monkeypatch.setattr(request, "_FIRST", first)
        hosts = made(own=own).hosts
        assert "".join(hosts) in ("abc", "bca", "cab")
        assert made(own=own).hosts == hosts
        begun.add(hosts[0])
    assert begun == {"a", "b", "c"}
    assert made().hosts == ("a", "b", "c")


# -- env -----------------------------------------------------------------------------------------------------------

OWN = {"SECRET": "s", "HEIR": "h", "EG_AUTH_TOKEN": "t", "KERNEL_MINE": "k", "KERNEL_ID": "of-the-kernel-around-us"}


def reached(found: StartRequest) -> dict[str, str]:
    """Return what a kernel gets of other people's."""
    ours = {"KERNEL_ID", "KERNEL_LANGUAGE", "KERNEL_USERNAME", "EG_IMPERSONATION_ENABLED"}
    return {name: value for name, value in found.env.items() if name not in ours}


def test_of_this_process_only_what_is_meant_for_kernels_reaches_one() -> None:
    """KERNEL_*, and what is inherited by name; never a token. It is the same whether a caller hands all of it on or nothing."""
    settings = {"inherited_envs": "HEIR, EG_AUTH_TOKEN"}
    for launch in ({}, {"env": dict(OWN)}):
        found = made(launch, OWN, settings=settings)
        assert reached(found) == {"HEIR": "h", "KERNEL_MINE": "k"}
        assert found.env["KERNEL_ID"] == "k1"


def test_what_a_caller_adds_is_passed_on_by_name(caplog: pytest.LogCaptureFixture) -> None:
    """What is not is in the log by its name, and not by its value. `*` is all that was added, not what this process has."""
    launch = {"env": {**OWN, "MINE": "m", "OTHER": "o"}}
    with caplog.at_level(logging.INFO):
        assert reached(made(launch, OWN, settings={"client_envs": ["MINE"]})) == {"MINE": "m", "KERNEL_MINE": "k"}
    assert "not passed on of what it was started with: OTHER (Distributed.client_envs)" in caplog.text
    assert "SECRET" not in caplog.text
    assert reached(made(launch, OWN, settings={"client_envs": "*"})) == {"MINE": "m", "OTHER": "o", "KERNEL_MINE": "k"}


def test_a_variable_that_this_process_has_changed_since_stays_here() -> None:
    """A restart hands on what the server's environment was at the start: nothing of it is the caller's."""
    assert reached(made({"env": {"TOKEN": "old"}}, {"TOKEN": "new"})) == {}
    assert reached(made({"env": {"TOKEN": "old"}}, {})) == {}


def test_a_restart_hands_on_what_this_process_had() -> None:
    """Of the environment of the first start, what has changed here since was not added by the caller; what was added is."""
    then, now = {"TOKEN": "old", "SAME": "s"}, {"TOKEN": "new", "SAME": "s", "MORE": "m"}
    chosen = Distributed(remote_hosts="a", client_envs="*")
    launch = {"env": {**then, "MORE": "m"}}
    found = request_for(Manager(), {}, launch, chosen, now, then)
    assert {"TOKEN", "SAME"}.isdisjoint(found.env)
    assert found.env["MORE"] == "m"


def test_what_a_kernel_is_says_nothing_of_those_that_it_starts() -> None:
    """Within a kernel its own folder, host, time, user and language are not handed on; what a caller says is."""
    own = {
        "KERNEL_ID": "outer",
        "KERNEL_WORKING_DIR": "/outer",
        "KERNEL_REMOTE_HOST": "b",
        "KERNEL_LAUNCH_TIMEOUT": "7",
        "KERNEL_USERNAME": "outer",
        "KERNEL_LANGUAGE": "r",
        "KERNEL_MINE": "m",
    }
    found = made({"env": {**own, "X": "x"}}, own)
    assert (found.pin, found.launch_timeout, found.env["KERNEL_LANGUAGE"]) == (None, 30.0, "python")
    assert found.env["KERNEL_USERNAME"] != "outer"
    assert (found.env["KERNEL_MINE"], found.env["KERNEL_ID"]) == ("m", "k1")
    assert "/outer" not in str(found)
    assert made({"env": {**own, "KERNEL_REMOTE_HOST": "c"}}, own).pin == "c"
    assert made({"env": {}}, {name: value for name, value in own.items() if name != "KERNEL_ID"}).pin == "b"


def test_a_pin_and_a_time() -> None:
    """KERNEL_REMOTE_HOST and KERNEL_LAUNCH_TIMEOUT mean what they do everywhere; the caller's win over this process's."""
    own = {"KERNEL_REMOTE_HOST": "b", "KERNEL_LAUNCH_TIMEOUT": "7"}
    found = made(own=own)
    assert (found.pin, found.launch_timeout) == ("b", 7.0)
    assert made({"env": {"KERNEL_REMOTE_HOST": "c"}}, own).pin == "c"
    with pytest.raises(RequestInvalid, match="is no launch timeout"):
        made(own={"KERNEL_LAUNCH_TIMEOUT": "soon"})


def test_who_may_start_a_kernel() -> None:
    """The kernelspec's authorized users count in place of the setting's, and its unauthorized ones beside them."""
    alice = {"KERNEL_USERNAME": "alice"}
    assert (
        made(own=alice, settings={"authorized_users": "bob"}, authorized_users="alice").env["KERNEL_USERNAME"]
        == "alice"
    )
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"authorized_users": "bob"}, {}),
        ({"unauthorized_users": ["alice"]}, {"authorized_users": "alice"}),
        ({}, {"unauthorized_users": "bob, alice"}),
    ]
    for settings, config in cases:
        with pytest.raises(RequestRefused, match="KERNEL_USERNAME=alice is not authorized"):
            made(own=alice, settings=settings, **config)


# -- folders -------------------------------------------------------------------------------------------------------


def test_where_a_kernel_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the caller's folder; else in the kernelspec's; else in this process's own; the user's own word wins over all."""
    monkeypatch.chdir(tmp_path)
    spec = Manager(Spec(env={"KERNEL_WORKING_DIR": "/spec"}))
    assert made({"cwd": "/asked"}, manager=spec).cwd == "/asked"
    assert made({"cwd": Path("/asked")}, {"KERNEL_WORKING_DIR": "/own"}).cwd == "/own"
    assert made(manager=spec).cwd == "/spec"
    assert made().cwd == str(tmp_path)
    assert made({"cwd": "deep"}).cwd == str(tmp_path / "deep")


def test_a_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose folder was removed starts kernels in their homes."""
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert made().cwd is None


def test_folders_with_other_names_on_the_hosts() -> None:
    """The longest folder that matches counts, whole names only; the notebook's name goes the same way."""
    folders = {"/Users/me": "/home/me", "/Users/me/data": "/data", "/": "/root"}
    assert elsewhere("/Users/me", folders) == "/home/me"
    assert elsewhere("/Users/me/a/b", folders) == "/home/me/a/b"
    assert elsewhere("/Users/me/data/x", folders) == "/data/x"
    assert elsewhere("/Users/meg", folders) == "/root/Users/meg"
    assert elsewhere("/Users/me/../you", {"/Users/me": "/x"}) == "/Users/you"
    launch = {"cwd": "/Users/me/a", "env": {"JPY_SESSION_NAME": "/Users/me/a/b.ipynb"}}
    found = made(launch, settings={"folders": "/Users/me=/home/me"})
    assert (found.cwd, found.env["JPY_SESSION_NAME"]) == ("/home/me/a", "/home/me/a/b.ipynb")
    assert found.env["KERNEL_WORKING_DIR"] == "/home/me/a"


# -- the rest ------------------------------------------------------------------------------------------------------


def test_a_launcher_of_enterprise_gateways_answers_here_as_well() -> None:
    """Its kernelspec needs no other argv: what it answers with is read by the same key."""
    argv = [
        "launch.sh",
        "--response-address",
        "{response_address}",
        "--public-key",
        "{public_key}",
        "--port-range",
        "{port_range}",
    ]
    found = made(manager=Manager(Spec(argv=argv)), port_range="40000..42000")
    assert found.transport == "launcher"
    assert found.decrypt is not None
    assert found.argv[4] not in ("", "{public_key}")
    assert found.argv[6] == "40000..42000"


def test_arguments_of_the_client_follow_argv() -> None:
    """As `jupyter run` and nbclient send them."""
    assert made({"extra_arguments": ["--x", "{kernel_id}"]}).argv == [*ARGV, "--x", "k1"]


def test_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container whose user nobody has named, the number stands for it."""

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert made().env["KERNEL_USERNAME"] == str(os.getuid())

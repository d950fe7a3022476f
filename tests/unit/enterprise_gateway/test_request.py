"""What Enterprise Gateway knows of a kernel, turned into a request; here without Enterprise Gateway."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest

from eg_distributed.enterprise_gateway.request import requested_env, start_request
from eg_distributed.errors import RequestInvalid
from eg_distributed.request import StartRequest
from eg_distributed.settings import Distributed
from eg_distributed.spec_request import KernelSpec, Session
from tests.unit.jupyter import Signing, Spec

RUN_SH = "/usr/local/share/jupyter/kernels/spark_python_yarn_client/bin/run.sh"


@dataclass
class Manager:
    """What of a kernel manager the request is made of."""

    kernel_spec: KernelSpec = field(
        default_factory=lambda: Spec(["python3", "-m", "ipykernel", "-f", "{connection_file}"])
    )
    kernel_name: str = "mine"
    session: Session = field(default_factory=Signing)
    inherited_envs: Iterable[str] = field(default_factory=list)
    client_envs: Iterable[str] = field(default_factory=list)
    impersonation_enabled: bool = False
    remote_hosts: str | list[str] = "a,b"
    load_balancing_algorithm: str | None = "least-connection"
    port_range: str | None = "0..0"
    _launch_args: dict[str, Any] = field(default_factory=dict)


def made(manager: Manager, settings: Distributed | None = None, **config: Any) -> StartRequest:
    """Return the request for *manager*'s kernel."""
    return start_request(
        manager,
        config,
        requested_env(manager),
        settings or Distributed(),
        kernel_id="k1",
        port_range=None,
        launch_timeout=30.0,
    )


def test_a_plain_kernelspec_becomes_a_request() -> None:
    """Hosts, argv, key, language and balancer are the manager's; nothing is shipped and nothing is impersonated."""
    request = made(Manager())
    assert request.argv == ["python3", "-m", "ipykernel", "-f", "{connection_file}"]
    assert (request.kernel_id, request.hosts, request.key, request.language) == ("k1", ("a", "b"), "secret", "python")
    assert (request.transport, request.balancer, request.pin, request.cwd) == ("auto", "least-connection", None, None)
    assert request.env == {"KERNEL_GATEWAY": "1", "EG_IMPERSONATION_ENABLED": "False"}
    assert request.decrypt is None
    assert not request.shipping.files


def test_the_kernelspecs_config_wins_over_the_gateways() -> None:
    """`remote_hosts` and `transport` of the process proxy's config are those of the kernel."""
    request = made(Manager(), remote_hosts="c", transport="tcp")
    assert (request.hosts, request.transport) == (("c",), "tcp")
    assert made(Manager(), Distributed(transport="tcp", load_balancer="round-robin")).balancer == "round-robin"


def test_a_clients_values_are_data_and_the_kernelspecs_are_its_own() -> None:
    """A client's KERNEL_* wins over the kernelspec's default, which counts only where it refers to nothing."""
    spec = Spec(env={"KERNEL_WORKING_DIR": "/spec", "KERNEL_X": "${Y}", "N": 1})
    request = made(Manager(spec, _launch_args={"env": {"KERNEL_USERNAME": "bob", "PATH": "/evil"}}))
    assert request.cwd == "/spec"
    assert request.env["KERNEL_USERNAME"] == "bob"
    assert {"KERNEL_X", "PATH"}.isdisjoint(request.env)
    assert request.spec_env == {"KERNEL_WORKING_DIR": "/spec", "KERNEL_X": "${Y}", "N": "1"}
    sent = {"KERNEL_WORKING_DIR": "/client", "KERNEL_REMOTE_HOST": "b"}
    asked = made(Manager(spec, _launch_args={"env": sent}))
    assert (asked.cwd, asked.pin) == ("/client", "b")


def test_the_environment_of_the_gateway_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an env in the client's request a kernel gets what `inherited_envs` names, and no secret."""
    monkeypatch.setenv("HEIR", "1")
    monkeypatch.setenv("EG_AUTH_TOKEN", "t")
    manager = Manager(inherited_envs=["HEIR", "EG_AUTH_TOKEN"])
    assert requested_env(manager) == {"HEIR": "1", "KERNEL_GATEWAY": "1"}


def test_argv_is_filled_in_as_far_as_the_gateway_knows() -> None:
    """The kernel's id and the client's own arguments are filled in; `python` and the kernelspec's folder are the node's."""
    words = ["{python}", "{prefix}", "{resource_dir}", "{kernel_id}", "{port_range}", "{mine}", "{connection_file}"]
    arguments = {
        "mine": "x",
        "python": "/gateway/python",
        "resource_dir": "/evil",
        "extra_arguments": ["--more"],
        "env": {},
    }
    request = made(Manager(Spec(words), port_range=None, _launch_args=arguments))
    filled = ["{python}", sys.prefix, "{resource_dir}", "k1", "0..0", "x", "{connection_file}", "--more"]
    assert request.argv == filled


def test_a_kernelspec_is_known_again() -> None:
    """Kernels of one kernelspec are of one, whatever their ids and the arguments that clients add."""
    words = ["x", "--id", "{kernel_id}", "{connection_file}"]
    spec = Manager(Spec(words), _launch_args={"extra_arguments": ["--more"], "kernel_id": "other"})
    assert made(spec).own_argv == made(Manager(Spec(words))).own_argv == tuple(words)
    assert made(spec).argv != made(Manager(Spec(words))).argv


def test_a_launcher_of_enterprise_gateways_gets_the_key() -> None:
    """An argv with `{response_address}` is a launcher's: it gets the public key, and its answer can be read."""
    words = ["launch", "--response-address", "{response_address}", "--public-key", "{public_key}"]
    first, second = made(Manager(Spec(words))), made(Manager(Spec(words)))
    assert first.transport == "launcher"
    assert first.argv[2] == "{response_address}"
    assert len(first.argv[4]) > 300
    assert first.argv == second.argv  # one key pair for all kernels of the gateway
    assert first.decrypt is not None
    with pytest.raises(ValueError, match="not readable"):
        first.decrypt("x")


def test_their_spark_launcher_is_replaced_unless_it_is_to_impersonate() -> None:
    """`run.sh` gives way to our launcher with its language's files, except under impersonation or where that is turned off."""
    words = [RUN_SH, "--RemoteProcessProxy.response-address", "{response_address}"]
    found = made(Manager(Spec(words)))
    assert found.argv[:3] == ["{python}", "{launcher}/spark.py", "python"]
    assert "python/kernel.py" in found.shipping.files
    assert "r/spark_r.R" not in found.shipping.files
    assert found.spec_env["EG_KERNELSPEC_FOLDER"] == RUN_SH[: -len("/bin/run.sh")]
    manager = Manager(Spec(words), impersonation_enabled=True, _launch_args={"env": {"KERNEL_USERNAME": "bob"}})
    assert made(manager).argv[0] == RUN_SH
    assert made(Manager(Spec(words)), Distributed(replace_launchers=False)).argv[0] == RUN_SH


def test_a_user_to_run_as_is_checked() -> None:
    """Under impersonation KERNEL_USERNAME is a user's name; a kernelspec may leave its kernels the login user's."""
    manager = Manager(impersonation_enabled=True, _launch_args={"env": {"KERNEL_USERNAME": "bob & id"}})
    with pytest.raises(RequestInvalid, match="is no user's name"):
        made(manager)
    assert made(manager, impersonation=False).env["EG_IMPERSONATION_ENABLED"] == "False"
    manager._launch_args["env"]["KERNEL_USERNAME"] = "bob"
    assert "EG_IMPERSONATION_ENABLED" not in made(manager).env


def test_a_clients_spark_options_reach_no_shell() -> None:
    """For our launcher the reference leaves the kernelspec's options; for another's the client's words are quoted."""
    spec_env = {"SPARK_OPTS": "--master yarn ${KERNEL_EXTRA_SPARK_OPTS}"}
    sent = {"env": {"KERNEL_EXTRA_SPARK_OPTS": "--conf 'spark.x=$(id)'"}}
    ours = ["{python}", "{launcher}/spark.py", "python", "-f", "{connection_file}"]
    assert made(Manager(Spec(ours, spec_env), _launch_args=sent), launcher="spark").spec_env["SPARK_OPTS"] == (
        "--master yarn "
    )
    other = made(Manager(Spec(["x", "{connection_file}"], spec_env), _launch_args=sent))
    assert other.spec_env["SPARK_OPTS"].endswith("--conf 'spark.x=$$(id)'")


@pytest.mark.parametrize(
    ("sent", "said"),
    [({"KERNEL_REMOTE_HOST": "a,b"}, "more than one host"), ({"KERNEL_REMOTE_HOST": "-x"}, "is no host name")],
)
def test_a_pin_is_one_host(sent: dict[str, str], said: str) -> None:
    """What a client names as its host is checked before any host is bothered."""
    with pytest.raises(RequestInvalid, match=said):
        made(Manager(_launch_args={"env": sent}))


def test_the_kernelspecs_folder_is_left_to_the_node() -> None:
    """`{resource_dir}` becomes the node's copy, unless the folder is not brought: then it is the gateway's path."""
    spec = Spec(argv=["{resource_dir}/run.sh", "-f", "{connection_file}"])
    brought = made(Manager(spec))
    assert brought.argv[0] == "{resource_dir}/run.sh"
    assert (brought.shipping.brings_folder, brought.shipping.resource_dir) == (True, "/kernels/mine")
    for request in (made(Manager(spec), bring_folder=False), made(Manager(spec), Distributed(folder_limit=0))):
        assert request.argv[0] == "/kernels/mine/run.sh"
        assert (request.shipping.brings_folder, request.shipping.resource_dir) == (False, "/kernels/mine")
    assert not made(Manager()).shipping.resource_dir
    with pytest.raises(RequestInvalid, match="bring_folder"):
        made(Manager(spec), bring_folder="no")


def test_a_kernelspec_says_whether_it_may_be_forked() -> None:
    """`warm` of its config wins over the setting; `preload` names modules; what is neither is refused."""
    assert [made(Manager(), Distributed(warm_starts=on)).warm for on in (False, True)] == [False, True]
    assert [made(Manager(), Distributed(warm_starts=not on), warm=on).warm for on in (False, True)] == [False, True]
    assert made(Manager(), preload=["numpy", "matplotlib.pyplot"]).preload == ("numpy", "matplotlib.pyplot")
    assert not made(Manager()).preload
    for wrong in (
        {"warm": "yes"},
        {"preload": "numpy"},
        {"preload": ["os; evil"]},
        {"preload": [""]},
        {"preload": ["a"] * 99},
    ):
        with pytest.raises(RequestInvalid, match=next(iter(wrong))):
            made(Manager(), **wrong)


def test_another_user_gets_the_gateways_path() -> None:
    """Under impersonation the copy, which is the login user's alone, would be out of the kernel's reach."""
    spec = Spec(argv=["{resource_dir}/run.sh", "-f", "{connection_file}"])
    env = {"KERNEL_USERNAME": "bob"}
    request = made(Manager(spec, impersonation_enabled=True, _launch_args={"env": env}))
    assert request.argv[0] == "/kernels/mine/run.sh"

import pytest

from lab.drivers.machines import ExecResult
from lab.errors import LabError, LabUsageError
from lab.kernelspecs import OURS, STOCK, default_kernelspecs
from lab.topology.specs import GatewaySpec, NodeSpec, check_kernelspec_name


@pytest.mark.parametrize("variant", [{"shell": "zsh"}, {"python": "2.7"}, {"sshd_options": ("a\nb",)}])
def test_unknown_variants_of_a_node_are_refused(variant: dict[str, object]) -> None:
    """A variant that the image does not know, or that would smuggle in a line, is a usage error."""
    with pytest.raises(LabUsageError):
        NodeSpec("odd", **variant)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b"])
def test_kernelspec_names_stay_inside_their_folder(name: str) -> None:
    """The name becomes a path, so nothing but Jupyter's own alphabet passes."""
    with pytest.raises(LabUsageError):
        check_kernelspec_name(name)


def test_a_gateways_environment_can_be_overridden() -> None:
    """What the caller says wins over the lab's defaults."""
    spec = GatewaySpec("other", ("node1.lab.test", "node2.lab.test"), {"EG_SSH_PORT": "2222"})
    environment = spec.environment("10.213.7.2", {"EG_REMOTE_USER": "lab", "EG_SSH_PORT": "22"})
    assert environment["EG_REMOTE_HOSTS"] == "node1.lab.test,node2.lab.test"
    assert environment["EG_RESPONSE_IP"] == "10.213.7.2"
    assert environment["EG_REMOTE_USER"] == "lab"
    assert environment["EG_SSH_PORT"] == "2222"


def test_a_failed_command_carries_its_last_words() -> None:
    """`check` raises with stderr, so that a test's failure says why."""
    assert ExecResult(("true",), 0, "", "").check().exit_code == 0
    with pytest.raises(LabError, match="no such thing"):
        ExecResult(("ls",), 2, "", "no such thing").check()


def test_three_kernelspecs_differ_in_proxy_and_argv() -> None:
    """Plain and launcher specs run through our proxy, the baseline through Enterprise Gateway's own."""
    specs = default_kernelspecs()
    classes = {name: spec["metadata"]["process_proxy"]["class_name"] for name, spec in specs.items()}
    assert classes == {
        "python_distributed": OURS,
        "python_distributed_eg": OURS,
        "python_distributed_stock": STOCK,
    }
    assert specs["python_distributed"]["argv"][-2:] == ["-f", "{connection_file}"]
    assert specs["python_distributed_eg"]["argv"] == specs["python_distributed_stock"]["argv"]
    assert "{response_address}" in specs["python_distributed_eg"]["argv"]

import json
from collections.abc import Sequence
from typing import Any

import pytest
from click.testing import CliRunner

from lab import Lab, cli
from lab.drivers import make
from lab.errors import EnvironmentUnfit, LabConflict, LabError, LabNotFound, LabNotReady, LabUsageError
from lab.state import StateFolder


def run(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    captured = capsys.readouterr()
    return int(caught.value.code or 0), captured.out, captured.err


@pytest.mark.parametrize("command", ["up", "down", "status", "env", "ssh", "logs"])
def test_every_command_explains_itself_with_an_example(command: str) -> None:
    """`--help` of each command shows how to call it."""
    result = CliRunner().invoke(cli.cli, [command, "--help"])
    assert result.exit_code == 0
    assert "Example: " in result.output


def test_an_unknown_lab_is_not_found(capsys: pytest.CaptureFixture[str]) -> None:
    """Asking for a lab that isn't there ends with 3 and names the remedy; stdout stays empty for scripts."""
    code, out, err = run(["env", "--json", "--name", "nope"], capsys)
    assert (code, out) == (3, "")
    assert "lab up --name nope" in err


@pytest.mark.parametrize("arguments", [["up", "--nodes", "0"], ["up", "--name", "A B"], ["frobnicate"]])
def test_wrong_calls_are_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Impossible numbers, names and commands end with 2."""
    assert run(arguments, capsys)[0] == 2


def test_no_engine_is_an_unfit_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """Asking for docker where no engine answers ends with 6 and a remedy."""
    code, _, err = run(["up", "--driver", "docker"], capsys)
    assert code == 6
    assert "Remedy: " in err


def test_down_is_fine_where_nothing_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Taking away what isn't there succeeds."""
    code, _, err = run(["down", "--name", "nope"], capsys)
    assert code == 0
    assert "no lab nope" in err


def test_down_does_not_forget_a_lab_that_it_can_not_see(capsys: pytest.CaptureFixture[str]) -> None:
    """With the engine away, a docker lab's folder stays and the exit code says that the machine is unfit."""
    folder = StateFolder("away")
    folder.write(folder.ssh_config, "")
    code, _, err = run(["down", "--name", "away"], capsys)
    assert code == 6
    assert "no container engine answers" in err
    assert folder.ssh_config.exists()


def test_exit_codes_are_a_contract() -> None:
    """Scripts may rely on these numbers."""
    codes = {kind.__name__: kind.exit_code for kind in (LabError, LabUsageError, LabNotFound, LabConflict)}
    codes |= {kind.__name__: kind.exit_code for kind in (LabNotReady, EnvironmentUnfit)}
    assert codes == {
        "LabError": 1,
        "LabUsageError": 2,
        "LabNotFound": 3,
        "LabConflict": 4,
        "LabNotReady": 5,
        "EnvironmentUnfit": 6,
    }


def test_an_unknown_driver_is_a_usage_error() -> None:
    """The names of the drivers are closed."""
    with pytest.raises(LabUsageError):
        make("vagrant", "lab", StateFolder("lab"))


def test_env_prints_json_or_exports(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The same facts come as one JSON document or as shell exports that quote what needs quoting."""
    facts: dict[str, Any] = {
        "name": "x",
        "driver": "docker",
        "gateway_url": "http://127.0.0.1:1",
        "nodes": [{"name": "node1.lab.test", "address": "10.213.7.11", "port": 2, "state": "running"}],
        "ssh_config": "/with space/ssh_config",
    }

    class Stub:
        def environment(self) -> dict[str, Any]:
            return facts

    monkeypatch.setattr(Lab, "attach", lambda name: Stub())
    assert json.loads(run(["env", "--json"], capsys)[1]) == facts
    exports = run(["env"], capsys)[1].splitlines()
    assert "export LAB_SSH_CONFIG='/with space/ssh_config'" in exports
    assert "export EG_REMOTE_HOSTS=node1.lab.test" in exports

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lab import Lab
from lab.drivers.choice import make
from lab.errors import EnvironmentUnfit, LabConflict, LabError, LabNotFound, LabNotReady, LabUsageError
from lab.reference import errors
from lab.state import StateFolder, locked
from tests.unit.lab.command import run

DOCS = Path(__file__).parents[3] / "docs"


def test_an_unknown_lab_is_not_found(capsys: pytest.CaptureFixture[str]) -> None:
    """Asking for a lab that isn't there ends with 3 and names the remedy; stdout stays empty for scripts."""
    code, out, err = run(["env", "--name", "nope"], capsys)
    assert (code, out) == (3, "")
    assert "Remedy: `lab up --name nope`" in err


def test_errors_are_json_where_json_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last line of stderr is one object with id, cause and remedy, by the flag and by LAB_JSON."""
    code, out, err = run(["status", "--json", "--name", "nope"], capsys)
    assert (code, out) == (3, "")
    error = json.loads(err.splitlines()[-1])
    assert error["id"] == "not-found"
    assert error["exit_code"] == 3
    assert error["remedy"] == "`lab up --name nope`"
    monkeypatch.setenv("LAB_JSON", "1")
    assert json.loads(run(["up", "--nodes", "0"], capsys)[2].splitlines()[-1])["id"] == "usage"


def test_a_probe_that_failed_shows_the_last_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A time-out names its probe, shows the node's last lines and ends with 5; as JSON the lines are evidence."""

    def fail(*_: Any, **__: Any) -> Lab:
        raise LabNotReady("an SSH login on node1.lab.test did not succeed within 60 s", logs="sshd: no hostkeys\n")

    monkeypatch.setattr(Lab, "up", fail)
    code, out, err = run(["up"], capsys)
    assert (code, out) == (5, "")
    assert "an SSH login on node1.lab.test" in err
    assert "sshd: no hostkeys" in err
    evidence = json.loads(run(["up", "--json"], capsys)[2].splitlines()[-1])["evidence"]
    assert evidence["logs"] == ["sshd: no hostkeys"]


def test_an_engine_that_refuses_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the engine's client raises becomes a message, an id and the next command."""
    import docker.errors

    def fail(*_: Any) -> Lab:
        raise docker.errors.APIError("500 Server Error", explanation="no space left on device")

    monkeypatch.setattr(Lab, "attach", fail)
    code, _, err = run(["status"], capsys)
    assert code == 1
    assert "no space left on device" in err
    assert "Remedy: `lab doctor`" in err


def test_a_full_disk_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What the system refuses becomes a message with the system's own words."""

    def fail(*_: Any, **__: Any) -> Lab:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/var/lib/lab")

    monkeypatch.setattr(Lab, "up", fail)
    code, _, err = run(["up"], capsys)
    assert code == 1
    assert "No space left on device: '/var/lib/lab'" in err
    assert "Remedy: `lab doctor`" in err


def test_an_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """^C is no traceback: it says what is left and what to type; who waits for another process is told so."""

    def interrupt(*_: Any, **__: Any) -> Lab:
        raise KeyboardInterrupt

    monkeypatch.setattr(Lab, "up", interrupt)
    with locked("lab-lab", what="the lab"):
        code, _, err = run(["up"], capsys)
    assert code == 130
    assert "another process works on the lab lab" in err
    assert "`lab down --name lab` removes it" in err
    assert err.endswith("interrupted\n")


def test_a_closed_pipe_is_no_failure_of_ours() -> None:
    """`lab schema | head -0` ends quietly."""
    code = "import sys\nfrom lab.cli import main\nmain(['schema'])"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["up", "--nodes", "0"],
        ["up", "--name", "A B"],
        ["frobnicate"],
        ["scale", "node"],
        ["scale", "node=many"],
        ["cp", "/a", "/b"],
        ["cp", "node1:relative", "/b"],
        ["fault", "heal"],
        ["partition", "node1"],
        ["export", "archive.zip"],
        ["logs", "--since", "yesterday"],
    ],
)
def test_wrong_calls_are_usage_errors(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Impossible numbers, names and commands end with 2, whether or not there is a lab."""
    monkeypatch.setattr(Lab, "attach", lambda name: object())
    assert run(arguments, capsys)[0] == 2


def test_no_engine_is_an_unfit_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """Asking for docker where no engine answers ends with 6 and a remedy."""
    code, _, err = run(["up", "--driver", "docker"], capsys)
    assert code == 6
    assert "Remedy: " in err


def test_exit_codes_are_a_contract() -> None:
    """Scripts may rely on these numbers and ids."""
    kinds = (LabError, LabUsageError, LabNotFound, LabConflict, LabNotReady, EnvironmentUnfit)
    assert {kind.id: kind.exit_code for kind in kinds} == {
        "lab-failed": 1,
        "usage": 2,
        "not-found": 3,
        "conflict": 4,
        "not-ready": 5,
        "environment-unfit": 6,
    }


def test_every_error_has_a_remedy() -> None:
    """Where nobody wrote one for the case, the kind's own says what to type next; a given one stands alone."""
    for kind in errors.kinds():
        assert "\nRemedy: `lab " in str(kind("it failed"))
        assert str(kind("it failed", remedy="mend it")) == "it failed\nRemedy: mend it"


def test_every_kind_of_error_has_an_id_of_its_own() -> None:
    """No two classes of the lab share an id, and none inherits one."""
    kinds = errors.kinds()
    assert all("id" in vars(kind) for kind in kinds)
    assert len({kind.id for kind in kinds}) == len(kinds)


def test_the_documented_errors_are_the_ones_that_there_are() -> None:
    """docs/lab-errors.md is made from the classes: `python -m lab.reference.errors --write docs/lab-errors.md`."""
    assert errors.main(["--check", str(DOCS / "lab-errors.md")]) == 0


@pytest.mark.parametrize(("profile", "told"), [("hostil", "did you mean hostile"), ("refuse", "no fault of logins")])
def test_a_wrong_profile_is_found_before_a_lab_is_made(
    profile: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A typing error, or a fault of another group, costs no minutes; also where nothing would be changed."""
    for more in ([], ["--dry-run"]):
        code, _, err = run(["up", "--name", "wrong-profile", "--profile", profile, *more], capsys)
        assert (code, told in err) == (2, True), err
    assert not StateFolder("wrong-profile").path.exists()


def test_an_unknown_driver_is_a_usage_error() -> None:
    """The names of the drivers are closed."""
    with pytest.raises(LabUsageError):
        make("vagrant", "lab", StateFolder("lab"))

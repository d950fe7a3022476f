import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import click
import pytest
from click.testing import CliRunner

from lab import Lab, cli
from lab.cli.options import DURATION, pairs
from lab.cli.output import print_table
from lab.cli.shell import _place
from lab.errors import LabUsageError
from lab.state import StateFolder
from tests.unit.lab.command import run

VERBS = """
    up down status ls inspect ssh exec cp logs events env ssh-config stop start restart pause unpause reset scale fault partition
    stats export gc doctor validate schema images completion version
"""
READING = """
    status ls inspect logs events env ssh-config stats doctor validate schema version images/ls fault/ls fault/catalogue gc export
"""


def walk(group: click.Group, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from walk(command, *path, name)


COMMANDS = dict(walk(cli.cli))


def test_the_verbs_are_complete() -> None:
    """Every verb that is promised is there, and no other."""
    assert sorted(cli.cli.commands) == sorted(VERBS.split())


@pytest.mark.parametrize("path", COMMANDS, ids="/".join)
def test_every_command_explains_itself_with_an_example(path: tuple[str, ...]) -> None:
    """`--help` of each command shows how to call it."""
    result = CliRunner().invoke(cli.cli, [*path, "--help"])
    assert result.exit_code == 0
    assert "Example: lab" in result.output or 'Example: eval "$(lab' in result.output or "Example: ssh" in result.output


@pytest.mark.parametrize("path", READING.split())
def test_every_reading_verb_speaks_json(path: str) -> None:
    """What tells something tells it as JSON too."""
    names = {option for parameter in COMMANDS[tuple(path.split("/"))].params for option in parameter.opts}
    assert "--json" in names


@pytest.mark.parametrize("path", COMMANDS, ids="/".join)
def test_every_option_has_an_environment_variable(path: tuple[str, ...]) -> None:
    """The help of each option names the variable that stands for it."""
    command = COMMANDS[path]
    if isinstance(command, click.Group):
        return
    text = " ".join(CliRunner().invoke(cli.cli, [*path, "--help"], auto_envvar_prefix="LAB").output.split())
    options = [each for each in command.params if isinstance(each, click.Option)]
    assert text.count("env var: LAB_") == len(options)


def test_an_option_is_read_from_its_environment_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """LAB_NAME means the same everywhere, and an impossible LAB_UP_NODES is refused like --nodes."""
    monkeypatch.setenv("LAB_NAME", "from-env")
    assert "no lab from-env" in run(["status"], capsys)[2]
    monkeypatch.setenv("LAB_UP_NODES", "0")
    assert run(["up"], capsys)[0] == 2


def test_down_is_fine_where_nothing_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Taking away what isn't there succeeds."""
    code, _, err = run(["down", "--name", "nope"], capsys)
    assert code == 0
    assert "no lab nope" in err


def test_down_does_not_forget_a_lab_that_it_can_not_see(capsys: pytest.CaptureFixture[str]) -> None:
    """With the engine away, a docker lab's folder stays and the exit code says that the machine is unfit."""
    folder = StateFolder("away")
    folder.write(folder.driver, "docker")
    folder.write(folder.ssh_config, "")
    code, _, err = run(["down", "--name", "away"], capsys)
    assert code == 6
    assert "no container engine answers" in err
    assert folder.ssh_config.exists()


def test_down_removes_a_lab_that_never_came_to_its_machines(capsys: pytest.CaptureFixture[str]) -> None:
    """An `up` that was local and failed early leaves a folder, which goes without any engine."""
    folder = StateFolder("early")
    folder.write(folder.driver, "local")
    code, _, err = run(["down", "--name", "early"], capsys)
    assert code == 0
    assert "early is gone" in err
    assert not folder.path.exists()


def test_env_prints_json_or_exports(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The same facts come as one JSON document or as shell exports that quote what needs quoting."""
    facts: dict[str, Any] = {
        "name": "x",
        "driver": "docker",
        "gateway_url": "http://127.0.0.1:1",
        "jupyterlab_url": "http://127.0.0.1:2/lab?token=x",
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
    assert "export LAB_JUPYTERLAB_URL='http://127.0.0.1:2/lab?token=x'" in exports


@pytest.mark.parametrize(
    ("shell", "word"), [("bash", "complete -o nosort"), ("zsh", "#compdef lab"), ("fish", "complete")]
)
def test_completion_prints_a_script(shell: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each shell gets its script on stdout."""
    code, out, _ = run(["completion", shell], capsys)
    assert code == 0
    assert word in out


def test_completion_knows_the_verbs() -> None:
    """A shell that asks gets the verbs that begin as typed."""
    environment = {**os.environ, "_LAB_COMPLETE": "bash_complete", "COMP_WORDS": "lab un", "COMP_CWORD": "1"}
    argv = [sys.executable, "-c", "from lab.cli import main; main([])"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["plain,unpause"]


def test_version_says_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    """Without an engine the versions of the rest are still told."""
    found = json.loads(run(["version", "--json"], capsys)[1])
    assert found["python"].startswith("3.")
    assert found["engine"] is None


def test_ls_without_labs_prints_no_rows(capsys: pytest.CaptureFixture[str]) -> None:
    """Scripts get an empty document, people a hint on stderr."""
    assert json.loads(run(["ls", "--json"], capsys)[1]) == []
    code, out, err = run(["ls"], capsys)
    assert (code, out) == (0, "")
    assert "lab up" in err


@pytest.mark.parametrize(
    ("text", "seconds"), [("15s", 15.0), ("200ms", 0.2), ("2m", 120.0), ("1.5h", 5400.0), ("7d", 604800.0), ("3", 3.0)]
)
def test_durations_have_units(text: str, seconds: float) -> None:
    """A bare number is seconds."""
    assert DURATION.convert(text, None, None) == seconds


def test_pairs_keep_what_is_behind_the_first_sign() -> None:
    """Values may hold `=`; words without one are refused."""
    assert pairs(["a=b=c", "d="]) == {"a": "b=c", "d": ""}
    with pytest.raises(LabUsageError):
        pairs(["nothing"])


@pytest.mark.parametrize(
    ("text", "place"),
    [("node1:/etc/x", ("node1", "/etc/x")), ("./a:b", None), ("/tmp/a:b", None), ("plain", None)],
)
def test_a_place_on_a_machine_is_told_from_a_path(text: str, place: tuple[str, str] | None) -> None:
    """A colon behind a slash belongs to a file's name."""
    assert _place(text) == place


def test_a_table_has_as_many_words_in_every_line(capsys: pytest.CaptureFixture[str]) -> None:
    """An empty cell is a dash, so that awk finds the columns."""
    print_table(("A", "B"), [("x", None), ("", 0)])
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [["A", "B"], ["x", "-"], ["-", "0"]]

"""Bash's start-up files, which it reads at a login without a terminal as well: what they do with the command of a login."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from eg_distributed.errors import AgentUnavailable
from eg_distributed.link.connect import connect
from eg_distributed.settings import Distributed
from tests.unit.conftest import Hosts
from tests.unit.ssh_server import Sshd

_AS_SSHD = ("env", "-u", "SHLVL", "SSH_CLIENT=127.0.0.1 2 22", "bash", "-c")


class Bash(str):
    """What `Sshd` runs: the command by bash, as sshd does where bash is the login shell."""

    __slots__ = ()

    def format(self, *args: object, **kwargs: object) -> str:
        """Return the line for the stand-in's own shell."""
        return f"exec {shlex.join(_AS_SSHD)} {shlex.quote(str(kwargs['command']))}"


async def bash(hosts: Hosts, start_up: str) -> Sshd:
    """Make a host whose login shell is bash with this `.bashrc`."""
    (sshd,) = await hosts("node1")
    (sshd.folder / ".bashrc").write_text(start_up)
    sshd.command = Bash()
    return sshd


@pytest.fixture(autouse=True)
def _reads_start_up_files(tmp_path: Path) -> None:
    """Skip where bash does not read them at such a login (SSH_SOURCE_BASHRC, which Debian and Fedora build it with)."""
    (tmp_path / ".bashrc").write_text("echo read\n")
    env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([*_AS_SSHD, "true"], env=env, stdin=subprocess.PIPE, capture_output=True, text=True)
    if done.stdout != "read\n":
        pytest.skip("this bash reads no start-up file for a command of sshd's")


@pytest.mark.parametrize(
    "start_up",
    [
        "read -p 'name? ' name\n",
        "read name\nread -s password\necho thanks\n",
        "head -c 1000000 /dev/urandom\n",
        "echo 'Welcome'; echo 'to node1' >&2\n",
    ],
)
async def test_start_up_files_that_ask_or_talk_do_no_harm(hosts: Hosts, settings: Distributed, start_up: str) -> None:
    """A question takes a blank line and not the agent, and a megabyte of noise is passed over."""
    await bash(hosts, start_up)
    (await connect("node1", settings)).close()


@pytest.mark.parametrize("start_up", ["exec cat\n", "exec bash\n", "exec bash -l\n"])
async def test_start_up_files_that_run_another_shell_are_said(
    hosts: Hosts, settings: Distributed, start_up: str
) -> None:
    """`exec` of another shell takes the agent for commands; what it says of them gives it away."""
    await bash(hosts, start_up)
    with pytest.raises(AgentUnavailable, match="start-up files replace the command by another program"):
        await connect("node1", settings)


@pytest.mark.parametrize(
    ("start_up", "said"),
    [
        ('[ -z "$PS1" ] && exit 1\n', "the login ended with code 1 without a word"),
        ("case $- in *i*) ;; *) exit;; esac\n", "the login ended with code 0 without a word"),
        ("exec /nowhere/zsh\n", "/nowhere/zsh: No such file or directory"),
    ],
)
async def test_start_up_files_that_end_the_login_are_said(
    hosts: Hosts, settings: Distributed, start_up: str, said: str
) -> None:
    """With the exit code where there is no word, and with the shell's own words where there are."""
    await bash(hosts, start_up)
    with pytest.raises(AgentUnavailable, match=said):
        await connect("node1", settings)


async def test_start_up_files_that_wait_cost_the_bootstrap_deadline(hosts: Hosts, settings: Distributed) -> None:
    """One that reads its input to the end never gives it up; the error says that it may be so."""
    settings.bootstrap_timeout = 1.0
    await bash(hosts, "cat > /dev/null\n")
    with pytest.raises(AgentUnavailable, match="one that waits, or reads its input to the end"):
        await connect("node1", settings)

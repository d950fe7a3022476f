"""Hostile logins, seen from outside, and that they heal."""

from typing import Any, ClassVar

import asyncssh
import pytest

from lab import Lab, Node
from lab.faults import add
from tests.integration.fault_lab import best, broken, connected, inside, login, node, other, run, timed

__all__ = ["broken", "node", "other"]

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize(
    ("fault", "options", "command", "hostile", "healed"),
    [
        ("noisy-rc", {"lines": 2}, "echo in", "noisy start-up file", "in"),
        # `$version` is tcsh's own variable, `$FISH_VERSION` fish's, and bash has neither.
        ("csh", {}, "echo shell:$version", "shell:tcsh", "shell:"),
        ("fish", {}, "echo shell:$FISH_VERSION", "shell:3", "shell:"),
        ("restricted-shell", {}, "/bin/echo in || echo stopped", "stopped", "in"),
        ("force-command", {"mode": "refuse"}, "echo in", "", "in"),
        ("python-old", {"version": "3.9"}, "python3 -V", "Python 3.9", "Python 3.11"),
        ("python-old", {"version": "2.7"}, "python3 -V", "Python 2.7", "Python 3.11"),
        ("python-missing", {}, "command -v python3 || echo none", "none", "/usr/bin/python3"),
        ("python-wrapper", {"prints_to": "stdout"}, "python3 -c 'print(6 * 7)'", "module python/3 is loaded\n42", "42"),
        ("umask", {"value": "077"}, "umask", "0077", "0022"),
        ("umask", {"value": "000"}, "umask", "0000", "0022"),
    ],
)
def test_a_command_is_not_just_a_command(
    broken: Lab, node: Node, fault: str, options: dict[str, Any], command: str, hostile: str, healed: str
) -> None:
    """What a command prints shows the fault, and shows no more of it once healed."""
    with add(broken, fault, [node], duration=30, **options):
        said = login(broken, node, command)
        assert hostile in said if hostile else said == ""
    said = login(broken, node, command)
    assert said.startswith(healed) if healed.startswith("Python") else said == healed


def test_a_forced_command_wraps_what_was_asked_for(broken: Lab, node: Node) -> None:
    """By default the command runs, inside the forced one."""
    with add(broken, "force-command", [node], duration=30):
        assert login(broken, node, 'echo "$SSH_ORIGINAL_COMMAND"').startswith("echo")
    assert login(broken, node, 'echo "$SSH_ORIGINAL_COMMAND"') == ""


async def test_a_banner_is_shown(broken: Lab, node: Node) -> None:
    """sshd sends it before the login."""
    with add(broken, "noisy-banner", [node], duration=30):
        async with connected(broken, node, client_factory=Banners):
            assert "Authorised use only" in Banners.shown.pop()
    async with connected(broken, node, client_factory=Banners):
        assert Banners.shown == []


async def test_a_message_of_the_day_is_shown(broken: Lab, node: Node) -> None:
    """An interactive login prints it."""
    with add(broken, "noisy-motd", [node], duration=30):
        assert "Welcome to the noisy cluster" in await interactive(broken, node)
    assert "Welcome to the noisy cluster" not in await interactive(broken, node)


def test_a_shell_is_slow(broken: Lab, node: Node) -> None:
    """A command takes that much longer."""
    with add(broken, "slow-shell", [node], duration=30, seconds=1.5):
        assert timed(lambda: login(broken, node, "true")) >= 1.5
    assert best(lambda: timed(lambda: login(broken, node, "true"))) < 1.5


def test_the_environment_is_big(broken: Lab, node: Node) -> None:
    """A login has 100 KiB of variables, and few once healed."""
    with add(broken, "big-environment", [node], duration=30):
        assert int(login(broken, node, "env | wc -c")) > 100 * 1024
    assert int(login(broken, node, "env | wc -c")) < 10 * 1024


READING = "import time\nb = time.monotonic()\nfor _ in range(10): open('{}').close()\nprint(time.monotonic() - b)"


def test_the_home_is_slow(broken: Lab, node: Node) -> None:
    """Opening files of the home takes that much longer, each; others' don't."""
    home, elsewhere = (f'python3 -c "{READING.format(path)}"' for path in ("/home/lab/.profile", "/etc/profile"))
    with add(broken, "slow-home", [node], duration=30, milliseconds=60):
        assert float(login(broken, node, home)) >= 0.6
        assert best(lambda: float(login(broken, node, elsewhere))) < 0.3
    assert best(lambda: float(login(broken, node, home))) < 0.3


def test_all_of_them_at_once(broken: Lab, node: Node) -> None:
    """The profile `hostile` has all that go together, and a command still runs through it; then nothing of it is left."""
    before = state(node)
    quick = best(lambda: timed(lambda: login(broken, node, "true")))
    with add(broken, "hostile", [node], duration=60, seconds=1.5, milliseconds=60) as fault:
        assert fault.mechanism == "all hostile logins"
        done = run(
            broken,
            node,
            "python3 -c 'import os; print(len(os.environ) > 100, os.environ[\"SHELL\"])'; umask",
            client_factory=Banners,
            timeout=30,
        )
        stdout, stderr = str(done.stdout), str(done.stderr)
        assert "Authorised use only" in Banners.shown.pop()
        assert login(broken, node, "printenv SSH_ORIGINAL_COMMAND").endswith("printenv SSH_ORIGINAL_COMMAND")
        # There for who looks: sshd shows it to nobody whose command is a forced one.
        assert "Welcome to the noisy cluster" in login(broken, node, "cat /etc/motd")
        slow = best(lambda: timed(lambda: login(broken, node, "true")))
        assert slow >= quick + 1.5
        assert float(inside(node, READING.format("/home/lab/.profile"))) >= 0.6
        assert "noisy start-up file" in stdout
        assert "True /bin/tcsh" in stdout
        assert stdout.rstrip().endswith("77")
        assert "module python/3 is loaded" in stderr
    assert state(node) == before
    assert best(lambda: timed(lambda: login(broken, node, "true"))) < slow


class Banners(asyncssh.SSHClient):
    """A client that keeps what sshd shows before the login."""

    shown: ClassVar[list[str]] = []

    def auth_banner_received(self, msg: str, lang: str) -> None:
        """Keep it."""
        Banners.shown.append(msg)


async def interactive(lab: Lab, node: Node) -> str:
    """Return what a login at a terminal prints."""
    async with connected(lab, node) as connection:
        done = await connection.run(None, input="exit\n", term_type="xterm", timeout=30)
        return str(done.stdout)


def state(node: Node) -> str:
    """Return what login faults touch: files, their permissions and contents, accounts, mounts."""
    script = (
        "ls -lAR --time-style=+ /home/lab/.[!c]* /home/lab/.config /home/lab/.cshrc /etc/ssh/sshd_config.d /run/lab-faults; "
        "ls -l --time-style=+ /usr/bin/python3*; getent passwd; mount; "
        "cat /etc/environment /etc/motd /home/lab/.bashrc /etc/ssh/sshd_config; iptables-save | grep LAB"
    )
    return node.exec(["sh", "-c", f"{{ {script}; }} 2>&1"], user="root").stdout

"""How an agent comes up on a node, or says what stands in the way."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import eg_distributed.agent.boot as boot_module
from eg_distributed import ssh
from eg_distributed.agent.boot import MAX_PATH
from eg_distributed.errors import AgentUnavailable
from eg_distributed.protocol import PROTOCOL
from eg_distributed.settings import Distributed
from eg_distributed.ssh import LocalLink
from tests.unit.agent.test_server import echoed
from tests.unit.agents import DEADLINE, PYENV, Visitor, alive, pythons, standin
from tests.unit.conftest import Hosts
from tests.until import until

SOURCE = Path(boot_module.__file__).read_text("utf-8")


def booted(before: str = "", python: str = sys.executable, **config: object) -> tuple[str, dict[str, object]]:
    """Run the boot's source with *python*, after *before* changed its globals; return what preceded the answer, and that."""
    values = {"digest": "d", "archive": "", "sentinel": "SENTINEL", "protocol": str(PROTOCOL), "bridge": "", **config}
    code = f"space = {{}}; exec({SOURCE!r}, space); {before or 'pass'}; space['boot']({values!r})"
    done = subprocess.run([python, "-c", code], stdout=subprocess.PIPE, timeout=DEADLINE, check=True)
    noise, _, answer = done.stdout.decode().partition("SENTINEL")
    return noise, json.loads(answer)


def test_a_python_that_is_too_old_is_named(home: Path) -> None:
    """The answer has the version that is there and the one that is needed, and nothing was written."""
    _, answer = booted("space['OLDEST'] = (99, 0)")
    assert answer["ok"] is False
    assert answer["error"] == f"python3 is {sys.version.split()[0]}, the agent needs 3.9 or later"
    assert list(home.glob("eg-distributed*")) == []


@pytest.mark.parametrize("python", pythons("3.6", "3.7", "3.8"))
def test_old_pythons_can_read_the_boot(home: Path, python: str) -> None:
    """A Python that is too old for the agent is not too old to say so."""
    _, answer = booted(python=python)
    assert "the agent needs 3.9 or later" in str(answer["error"])


async def test_the_version_reaches_the_gateway(hosts: Hosts, settings: Distributed) -> None:
    """The error names the host, what it has and what it needs."""
    old = sorted(PYENV.glob("3.8.*/bin/python"))
    if not old:
        pytest.skip("no Python 3.8")
    await hosts("node1")
    settings.python = str(old[0])
    with pytest.raises(AgentUnavailable, match=r"node1: The agent cannot run: python3 is 3\.8.*needs Python 3\.9"):
        await ssh.connect("node1", settings)


async def test_boots_at_once_give_one_agent(home: Path, settings: Distributed) -> None:
    """Gateways that come at the same moment find the same agent."""
    links = await asyncio.gather(*(ssh.connect("localhost", settings) for _ in range(5)))
    visitors = [await Visitor.at(link, f"gateway {number}", str(number)) for number, link in enumerate(links)]
    pids = {(await visitor.request("ping"))["pid"] for visitor in visitors}
    assert len(pids) == 1
    for visitor in visitors:
        visitor.close()


async def test_an_agent_that_runs_is_used_again(visitor: Visitor, settings: Distributed) -> None:
    """Connecting again starts nothing."""
    other = await Visitor.at(await ssh.connect("localhost", settings), "other", "2")
    assert (await other.request("ping"))["pid"] == (await visitor.request("ping"))["pid"]
    other.close()


async def test_an_agent_outlives_what_started_it(visitor: Visitor) -> None:
    """It is in a session of its own, where no hang-up of a login reaches it, and holds no folder."""
    pid = (await visitor.request("ping"))["pid"]
    assert os.getsid(pid) == os.getpgid(pid) == pid
    assert str(Path(f"/proc/{pid}/cwd").readlink()) == "/"


def boot_of_another_release(**config: object) -> dict[str, object]:
    """Boot with the same code under another digest."""
    archive = base64.b64encode(ssh.agent_archive()[1]).decode()
    values: dict[str, Any] = {"digest": "other", "archive": archive, **config}
    return booted(**values)[1]


async def test_an_idle_agent_of_another_release_makes_room(visitor: Visitor, settings: Distributed) -> None:
    """An agent without kernels that serves nobody is replaced by the release that comes."""
    before = (await visitor.request("ping"))["pid"]
    visitor.close()
    answer = await asyncio.to_thread(boot_of_another_release)
    assert answer["ok"] is True
    assert Path(str(answer["socket"])).name == f"agent-{PROTOCOL}.sock"
    now = await Visitor.at(LocalLink(str(answer["socket"])), "gateway", "2")
    ping = await now.request("ping")
    assert (ping["digest"], ping["pid"] != before) == ("other", True)
    now.close()


async def test_an_agent_that_is_in_use_stays(visitor: Visitor) -> None:
    """An agent that another gateway uses is used by a newer release as well: a node has one truth for each protocol."""
    before = await visitor.request("ping")
    answer = await asyncio.to_thread(boot_of_another_release)
    assert answer["ok"] is True
    other = await Visitor.at(LocalLink(str(answer["socket"])), "other", "2")
    assert (await other.request("ping"))["pid"] == before["pid"]
    other.close()


async def test_protocols_live_side_by_side(visitor: Visitor, home: Path) -> None:
    """An agent of another protocol gets its own socket beside ours."""
    before = (await visitor.request("ping"))["pid"]
    answer = await asyncio.to_thread(boot_of_another_release, protocol="0", archive="")
    assert answer["ok"] is False  # there is no code of that protocol here to start
    assert (await visitor.request("ping"))["pid"] == before
    assert [path.name for path in home.glob("eg-distributed/*/*.sock")] == [f"agent-{PROTOCOL}.sock"]


def test_the_folder_is_private_even_if_it_was_not(home: Path) -> None:
    """A folder of ours that others could read is closed."""
    node = home / "eg-distributed" / os.uname().nodename[:20]
    node.mkdir(parents=True, mode=0o777)
    node.chmod(0o777)
    booted()
    assert stat.S_IMODE(node.stat().st_mode) == 0o700


@pytest.mark.parametrize("obstacle", ["a long path", "a file", "a link", "a relative path"])
def test_another_folder_is_used_where_the_first_one_cannot_be(
    home: Path, monkeypatch: pytest.MonkeyPatch, obstacle: str
) -> None:
    """A home that can't be written, or is too deep for sockets, falls back to a folder in /tmp; a link is never followed."""
    cache = home
    if obstacle == "a long path":
        cache = home / ("x" * MAX_PATH)
    elif obstacle == "a relative path":
        cache = Path("relative")
    else:
        node = home / "eg-distributed" / os.uname().nodename
        node.parent.mkdir()
        if obstacle == "a file":
            node.touch()
        else:
            (home / "elsewhere").mkdir()
            node.symlink_to(home / "elsewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    script = f"space = {{}}; exec({SOURCE!r}, space); print(space['folder']())"
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, timeout=DEADLINE, check=True)
    chosen = Path(done.stdout.decode().strip())
    try:
        assert str(chosen).startswith(f"/tmp/eg-distributed-{os.getuid()}")
        assert stat.S_IMODE(chosen.stat().st_mode) == 0o700
    finally:
        if not any(chosen.iterdir()):
            chosen.rmdir()


async def test_an_agent_that_ends_at_its_start_says_why(home: Path) -> None:
    """An archive that cannot run is an error with the agent's own last words, not a time-out."""
    _, answer = await asyncio.to_thread(booted, archive="bm8gYXJjaGl2ZQ==")
    assert answer["ok"] is False
    assert "the agent ended at its start (exit code 1)" in str(answer["error"])
    assert "SyntaxError" in str(answer["error"])


async def test_a_socket_that_a_dead_agent_left_is_replaced(visitor: Visitor, settings: Distributed) -> None:
    """The name of a socket proves nothing; only an answer does."""
    pid = (await visitor.request("ping"))["pid"]
    os.kill(pid, 9)
    await visitor.ended()
    await until("the agent is dead", lambda: not alive(pid))
    other = await Visitor.at(await ssh.connect("localhost", settings))
    assert (await other.request("ping"))["pid"] != pid
    other.close()


@pytest.mark.parametrize("python", pythons("3.9", "3.10", "3.12", "3.13"))
async def test_the_agent_runs_on_every_supported_python(
    hosts: Hosts, settings: Distributed, short: Path, python: str
) -> None:
    """A node with any Python from 3.9 on starts a kernel, carries its channel and ends it."""
    await hosts("node1")
    settings.python = python
    link = await ssh.connect("node1", settings)
    visitor = await Visitor.at(link)
    pid = (await visitor.ready("k1", standin(python=python)))["pid"]
    _, reader, writer = await visitor.stream("k1")
    data = os.urandom(1 << 20)
    assert await echoed(reader, writer, data) == data
    writer.close()
    assert (await visitor.request("stop", kernel="k1", grace=5))["exit_code"] == -15
    assert not alive(pid)
    executable = Path(f"/proc/{(await visitor.request('ping'))['pid']}/exe").readlink()
    assert executable == Path(python).resolve()
    visitor.close()
    link.close()

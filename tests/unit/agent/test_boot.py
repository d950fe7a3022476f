"""How an agent comes up on a node, or says what stands in the way."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import zipfile
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

import eg_distributed.agent.boot as boot_module
from eg_distributed.agent.boot import MAX_PATH
from eg_distributed.agent.server import socket_path
from eg_distributed.errors import AgentUnavailable
from eg_distributed.link.agent_archive import agent_archive
from eg_distributed.link.connect import connect
from eg_distributed.link.links import LocalLink
from eg_distributed.protocol import PROTOCOL
from eg_distributed.settings import Distributed
from eg_distributed.wire import encode
from tests.unit.agents import (
    DEADLINE,
    PYENV,
    Refusal,
    Visitor,
    alive,
    echoed,
    end_agents,
    own_agent,
    pythons,
    standin,
)
from tests.unit.conftest import Hosts
from tests.until import until

SOURCE = Path(boot_module.__file__).read_text("utf-8")


def packed(archive: bytes) -> str:
    """Return *archive* as a boot's configuration has it."""
    return base64.b64encode(zlib.compress(archive)).decode()


def booted(before: str = "", python: str = sys.executable, **config: object) -> tuple[str, dict[str, object]]:
    """Run the boot's source with *python*, after *before* changed its globals; return what preceded the answer, and that."""
    values = {"digest": "d", "archive": "", "sentinel": "SENTINEL", "protocol": str(PROTOCOL), "bridge": "", **config}
    values = {"older": "", "keep": "", **values}
    code = f"space = {{}}; exec({SOURCE!r}, space); {before or 'pass'}; space['boot']({values!r})"
    # By stdin, as for real: with an archive in it, it is longer than an argument may be.
    reading = "import sys; exec(sys.stdin.read())"
    done = subprocess.run(
        [python, "-c", reading], input=code.encode(), stdout=subprocess.PIPE, timeout=DEADLINE, check=True
    )
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
        await connect("node1", settings)


async def test_boots_at_once_give_one_agent(home: Path, settings: Distributed) -> None:
    """Gateways that come at the same moment find the same agent."""
    links = await asyncio.gather(*(connect("localhost", settings) for _ in range(5)))
    visitors = [await Visitor.at(link, f"gateway {number}", str(number)) for number, link in enumerate(links)]
    pids = {(await visitor.request("ping"))["pid"] for visitor in visitors}
    assert len(pids) == 1
    for visitor in visitors:
        visitor.close()


async def test_an_agent_that_runs_is_used_again(visitor: Visitor, settings: Distributed) -> None:
    """Connecting again starts nothing."""
    other = await Visitor.at(await connect("localhost", settings), "other", "2")
    assert (await other.request("ping"))["pid"] == (await visitor.request("ping"))["pid"]
    other.close()


async def test_an_agent_outlives_what_started_it(visitor: Visitor) -> None:
    """It is in a session of its own, where no hang-up of a login reaches it, and holds no folder."""
    pid = (await visitor.request("ping"))["pid"]
    assert os.getsid(pid) == os.getpgid(pid) == pid
    assert str(Path(f"/proc/{pid}/cwd").readlink()) == "/"


def boot_of_another_release(**config: object) -> dict[str, object]:
    """Boot with the same code under another digest."""
    archive = packed(agent_archive()[1])
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


async def test_an_upgrade_takes_kernels_over_where_nobody_uses_the_agent(visitor: Visitor) -> None:
    """After its gateway's upgrade a kernel runs on under the new release's agent; not while a gateway, or a stream, has it."""
    pid = (await visitor.ready("k1", standin()))["pid"]
    agent = (await visitor.request("ping"))["pid"]
    await asyncio.to_thread(boot_of_another_release)
    assert (await visitor.request("ping"))["pid"] == agent
    _, _, writer = await visitor.stream("k1")
    visitor.close()
    await visitor.ended()
    writer.close()
    await asyncio.to_thread(boot_of_another_release)
    assert alive(agent)  # the stream's gateway may come back
    next_life = await Visitor.at(visitor.link, incarnation="2")
    next_life.close()
    await next_life.ended()
    await asyncio.to_thread(boot_of_another_release, keep="yes")
    assert alive(agent)
    answer = await asyncio.to_thread(boot_of_another_release)
    now = await Visitor.at(LocalLink(str(answer["socket"])), "tests", "now")
    assert (now.hello["digest"], alive(agent)) == ("other", False)
    found = (await now.request("adopt", kernels=["k1"]))["k1"]
    assert (found["state"], found["pid"]) == ("running", pid)
    _, reader, writer = await now.stream("k1", stream="s2")
    assert await echoed(reader, writer, b"ping") == b"ping"
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
    node = Path(boot_module.places()[0])
    assert node.parent == home / "eg-distributed"
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
        node = Path(boot_module.places()[0])
        node.parent.mkdir()
        if obstacle == "a file":
            node.touch()
        else:
            (home / "elsewhere").mkdir()
            node.symlink_to(home / "elsewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    script = f"space = {{}}; exec({SOURCE!r}, space); print(space['folder']()[0])"
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
    _, answer = await asyncio.to_thread(booted, archive=packed(b"no archive"))
    assert answer["ok"] is False
    assert "the agent ended at its start (exit code 1)" in str(answer["error"])
    assert "SyntaxError" in str(answer["error"])


async def test_a_socket_that_a_dead_agent_left_is_replaced(visitor: Visitor, settings: Distributed) -> None:
    """The name of a socket proves nothing; only an answer does."""
    pid = (await visitor.request("ping"))["pid"]
    os.kill(pid, 9)
    await visitor.ended()
    await until("the agent is dead", lambda: not alive(pid))
    other = await Visitor.at(await connect("localhost", settings))
    assert (await other.request("ping"))["pid"] != pid
    other.close()


@pytest.mark.parametrize("python", pythons("3.9", "3.10", "3.12", "3.13"))
async def test_the_agent_runs_on_every_supported_python(
    hosts: Hosts, settings: Distributed, short: Path, python: str
) -> None:
    """A node with any Python from 3.9 on starts a kernel, carries its channel and ends it."""
    await hosts("node1")
    settings.python = python
    link = await connect("node1", settings)
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


# -- an agent of the release before ------------------------------------------------------------------------------


def agent_of_protocol(number: int) -> str:
    """Return the agent's archive with another protocol's number, as text for a boot."""
    _, archive = agent_archive()
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as ours, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as theirs:
        for name in ours.namelist():
            content = ours.read(name).replace(
                f"\nPROTOCOL = {PROTOCOL}\n".encode(), f"\nPROTOCOL = {number}\n".encode()
            )
            theirs.writestr(name, content)
    return packed(buffer.getvalue())


@pytest_asyncio.fixture
async def earlier(home: Path) -> AsyncIterator[Visitor]:
    """A gateway's connection to an agent of the protocol before ours."""
    older = {"digest": "before", "protocol": str(PROTOCOL - 1), "archive": agent_of_protocol(PROTOCOL - 1)}
    _, answer = await asyncio.to_thread(booted, **older)
    assert answer["ok"], answer
    visitor = await Visitor.at(LocalLink(str(answer["socket"])), "tests", "before")
    assert visitor.hello["protocol"] == PROTOCOL - 1
    yield visitor
    visitor.close()


async def test_kernels_of_an_older_agent_are_taken_over(earlier: Visitor, settings: Distributed) -> None:
    """After an upgrade of its gateway a kernel runs on, under an agent of the new release that knows it."""
    described = await earlier.ready("k1", standin())
    agent = (await earlier.request("ping"))["pid"]
    earlier.close()
    await earlier.ended()
    now = await Visitor.at(await connect("localhost", settings), "tests", "now")
    assert now.hello["protocol"] == PROTOCOL
    found = (await now.request("adopt", kernels=["k1"]))["k1"]
    assert (found["state"], found["pid"], found["attempt"]) == ("running", described["pid"], "a1")
    assert (alive(described["pid"]), alive(agent)) == (True, False)
    _, reader, writer = await now.stream("k1")
    assert await echoed(reader, writer, b"ping") == b"ping"
    now.close()


async def test_an_older_agent_that_serves_a_gateway_is_used(earlier: Visitor, settings: Distributed) -> None:
    """While another gateway of the older release has kernels there, its agent serves both, and starts kernels for both."""
    theirs = await earlier.ready("k1", standin())
    ours = await Visitor.at(await connect("localhost", settings), "ours", "1")
    assert ours.hello["protocol"] == PROTOCOL - 1
    await ours.ready("k2", standin())
    assert {kernel["kernel"]: kernel["claimed"] for kernel in await ours.request("list")} == {"k1": True, "k2": True}
    assert alive(theirs["pid"])
    ours.close()


async def test_an_idle_older_agent_leaves(earlier: Visitor, settings: Distributed) -> None:
    """An agent of the older release without kernels makes room, as one of our own protocol does."""
    agent = (await earlier.request("ping"))["pid"]
    earlier.close()
    await earlier.ended()
    now = await Visitor.at(await connect("localhost", settings))
    assert now.hello["protocol"] == PROTOCOL
    await until("the older agent has left", lambda: not alive(agent))
    now.close()


async def test_an_older_agent_that_stands_still_is_ended(earlier: Visitor) -> None:
    """One that does not end when it is told to is killed: its kernels outlive it, and only its successor can find them."""
    described = await earlier.ready("k1", standin())
    agent = (await earlier.request("ping"))["pid"]
    earlier.close()
    await earlier.ended()
    before = "space['END_DEADLINE'] = 0.2; space['end'] = lambda pid, signum: signum == 9 and space['os'].kill(pid, 9)"
    digest, archive = agent_archive()
    ours = {"digest": digest, "archive": packed(archive), "older": str(PROTOCOL - 1)}
    _, answer = await asyncio.to_thread(booted, before, **ours)
    assert answer["ok"], answer
    now = await Visitor.at(LocalLink(str(answer["socket"])), "tests", "now")
    assert (await now.request("adopt", kernels=["k1"]))["k1"]["state"] == "running"
    assert (alive(described["pid"]), alive(agent)) == (True, False)
    now.close()


async def test_a_gateway_keeps_to_the_older_agent_that_it_has_used(earlier: Visitor) -> None:
    """A gateway that comes back after a cut finds the agent that keeps its output, though it answers for no kernel just now."""
    await earlier.ready("k1", standin())
    earlier.close()
    await earlier.ended()
    digest, archive = agent_archive()
    ours = {"digest": digest, "archive": packed(archive), "older": str(PROTOCOL - 1), "keep": "yes"}
    _, answer = await asyncio.to_thread(booted, **ours)
    assert Path(str(answer["socket"])).name == f"agent-{PROTOCOL - 1}.sock"
    back = await Visitor.at(LocalLink(str(answer["socket"])), "tests", "before")
    assert (await back.request("adopt", kernels=["k1"]))["k1"]["state"] == "running"
    back.close()


LOWER_LIMITS = "import resource; resource.setrlimit(resource.RLIMIT_CORE, (4096, 8192))"
"""What a login runs first that has lower limits than this process."""


def logged_in(before: str = "") -> dict[str, object]:
    """Boot as another login of this release does, which runs *before*; return the answer."""
    digest, archive = agent_archive()
    release: dict[str, Any] = {"digest": digest, "archive": packed(archive)}
    return booted(before, **release)[1]


async def test_kernels_have_what_the_newest_login_has(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Variables and umask of a login that is newer than the agent reach what starts from then on, nothing of the older."""
    monkeypatch.setenv("SITE_MODE", "old")
    monkeypatch.setenv("GONE", "yes")
    first = await asyncio.to_thread(logged_in, "space['os'].umask(0o022)")
    visitor = await Visitor.at(LocalLink(str(first["socket"])))
    found = tmp_path / "found"

    async def starts(kernel: str) -> list[str]:
        script = (
            'printf "%s,%s,%s" "$SITE_MODE" "$GONE" "$(umask)" > "$0.new"; mv "$0.new" "$0"; printenv -0 ODD >> "$0"'
        )
        await visitor.start(kernel, ["sh", "-c", script, str(found)])
        await visitor.event("exited", kernel)
        return found.read_bytes().decode("latin-1").split(",")

    assert await starts("k1") == ["old", "yes", "0022"]
    monkeypatch.setenv("SITE_MODE", "new")
    monkeypatch.delenv("GONE")
    monkeypatch.setitem(os.environb, b"ODD", b"\xff")
    second = await asyncio.to_thread(logged_in, "space['os'].umask(0o007)")
    assert second["socket"] == first["socket"]
    assert await starts("k2") == ["new", "", "0007\xff\0"]
    visitor.close()


async def test_kernels_have_the_newest_login_s_limits(home: Path, tmp_path: Path) -> None:
    """Another login's limits come by a process of that login; what it starts is ended, heard and reaped as any kernel."""
    answer = await asyncio.to_thread(logged_in)
    visitor = await Visitor.at(LocalLink(str(answer["socket"])))
    agent = (await visitor.request("ping"))["pid"]
    first = (await visitor.ready("k1", standin()))["pid"]
    await asyncio.to_thread(logged_in, LOWER_LIMITS)
    second = (await visitor.ready("k2", standin()))["pid"]
    third = (await visitor.ready("k3", standin()))["pid"]
    nursery = parent_of(second)
    assert (parent_of(first), parent_of(third), nursery == agent) == (agent, nursery, False)
    limits = [line.split()[4:6] for line in Path(f"/proc/{second}/limits").read_text().splitlines() if "core" in line]
    assert limits == [["4096", "8192"]]
    with pytest.raises(Refusal, match="nowhere/python"):
        await visitor.start("k4", ["/nowhere/python"])
    os.kill(second, signal.SIGKILL)
    assert (await visitor.event("exited", "k2"))["exit_code"] == -signal.SIGKILL
    await until("it is reaped", lambda: not Path(f"/proc/{second}").exists())
    await visitor.start("k5", ["sh", "-c", "exit 3"])
    assert (await visitor.event("exited", "k5"))["exit_code"] == 3
    await asyncio.to_thread(logged_in)
    assert parent_of((await visitor.ready("k6", standin()))["pid"]) == agent
    assert alive(nursery)  # it has a kernel
    assert (await visitor.request("stop", kernel="k3", grace=5, forget=True))["stopped"]
    await until("what no kernel needs has left", lambda: not alive(nursery))
    visitor.close()


async def test_a_nursery_that_stands_still_is_given_up(home: Path) -> None:
    """It costs one start, with the reason; the next one is the agent's own, or another login's nursery's."""
    answer = await asyncio.to_thread(logged_in)
    await asyncio.to_thread(logged_in, LOWER_LIMITS)
    visitor = await Visitor.at(LocalLink(str(answer["socket"])))
    agent = (await visitor.request("ping"))["pid"]
    nursery = parent_of((await visitor.ready("k1", standin()))["pid"])
    os.kill(nursery, signal.SIGSTOP)
    with pytest.raises(Refusal, match="what starts kernels for the newest login does not answer"):
        await visitor.start("k2", standin())
    assert parent_of((await visitor.ready("k3", standin()))["pid"]) == agent
    await asyncio.to_thread(logged_in, LOWER_LIMITS)
    assert parent_of((await visitor.ready("k4", standin()))["pid"]) not in {agent, nursery}
    os.kill(nursery, signal.SIGCONT)
    await until("it has ended, with what it began", lambda: not alive(nursery))
    assert [kernel["kernel"] for kernel in await visitor.request("list")] == ["k1", "k3", "k4"]
    visitor.close()


async def test_a_nursery_keeps_no_agent(short: Path) -> None:
    """It is no visitor, for whom an idle agent would stay."""
    async with own_agent(short) as (agent, _):
        _, writer = await LocalLink(str(socket_path(short))).open()
        writer.write(encode({"type": "nursery", "standing": "other"}))
        await until("it is known", lambda: agent._nurseries._known)
        assert agent._visitors == 1  # this test
        writer.close()
        await until("it has gone", lambda: not agent._nurseries._known)
        assert agent._visitors == 1


async def test_kernels_outlive_the_login_that_started_them(home: Path, settings: Distributed) -> None:
    """One whose nursery is killed runs on, and its end is heard; later starts are the agent's own again."""
    answer = await asyncio.to_thread(logged_in)
    await asyncio.to_thread(logged_in, LOWER_LIMITS)
    visitor = await Visitor.at(LocalLink(str(answer["socket"])))
    agent = (await visitor.request("ping"))["pid"]
    pid = (await visitor.ready("k1", standin()))["pid"]
    nursery = parent_of(pid)
    assert nursery != agent
    os.kill(nursery, signal.SIGKILL)
    await until("it has gone", lambda: not alive(nursery))
    _, reader, writer = await visitor.stream("k1")
    assert await echoed(reader, writer, b"hello") == b"hello"
    writer.close()
    await visitor.request("signal", kernel="k1", signum=int(signal.SIGKILL))
    await visitor.event("exited", "k1")
    assert not alive(pid)
    await until("the agent knows", lambda: not alive(nursery))
    assert parent_of((await visitor.ready("k2", standin()))["pid"]) == agent
    visitor.close()


def parent_of(pid: int) -> int:
    """Return the parent of the process *pid*."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def test_a_login_that_is_none_changes_nothing(visitor: Visitor) -> None:
    """What no environment can have is refused, and kernels start as before."""
    with pytest.raises(Refusal, match="what no environment can have"):
        await visitor.request("login", env={"A=B": "c"}, umask=0)
    with pytest.raises(Refusal, match="umask"):
        await visitor.request("login", env={}, umask=0o1000)
    await visitor.ready("k1", standin())


def framed(body: bytes) -> bytes:
    """Return *body* as a message, whatever it is."""
    return len(body).to_bytes(4, "big") + body


HELLO = framed(json.dumps({"ok": True, "digest": "before", "kernels": [{"kernel": "k1"}]}).encode())
EVENT = framed(json.dumps({"event": "load"}).encode())


@pytest.fixture
def liar(short: Path) -> Iterator[tuple[Path, list[bytes]]]:
    """A folder with the socket of something that is taken for an agent, and the pieces that it says, twenty a second."""
    said: list[bytes] = []
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(short / "agent-1.sock"))
    listening.listen()
    over = threading.Event()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while not over.is_set():
                connection, _ = listening.accept()
                with connection, contextlib.suppress(OSError):
                    for piece in said:
                        connection.sendall(piece)
                        over.wait(0.05)

    serving = threading.Thread(target=serve)
    serving.start()
    yield short, said
    over.set()
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    serving.join(DEADLINE)


@pytest.mark.parametrize(
    "pieces",
    [
        [framed(b"[]")],
        [framed(b"{")],
        [framed(b"\xff")],
        [framed(b"[" * 5000 + b"]" * 5000)],
        [b"\xff\xff\xff\xff"],
        [HELLO, framed(b"[1]")],
        [HELLO, framed(json.dumps({"id": 1, "result": [1]}).encode())],
        [HELLO, *[EVENT] * 1000],
        [HELLO[:5], *[b" "] * 1000],
    ],
    ids=lambda pieces: f"{pieces[-1][:20]!r}-{len(pieces)}",
)
def test_what_is_no_agent_ends_no_boot(
    liar: tuple[Path, list[bytes]], pieces: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something that listens in an agent's place and talks nonsense, or never stops, counts as an agent that is in use."""
    folder, said = liar
    said += pieces
    monkeypatch.setattr(boot_module, "VISIT_DEADLINE", 0.5)
    monkeypatch.setattr(boot_module, "end", lambda *_: pytest.fail("what listens is this very process"))
    assert boot_module.is_wanted(str(folder / "agent-1.sock"), "ours", 0o022, "", keep=False)
    assert boot_module.older_agent(str(folder), ["1"], keep=False) == str(folder / "agent-1.sock")


LOCKS = """
import errno, time
real = space['fcntl'].flock
def flock(file, operation):
    if {where!r} in file.name:
        {what}
    return real(file, operation)
space['fcntl'].flock = flock
space['PLACE_DEADLINE'] = 1.0
"""


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("raise OSError(errno.ENOLCK, 'No locks available')", "locks fail there (No locks available)"),
        ("raise OSError(errno.EIO, 'Input/output error')", "locks fail there (Input/output error)"),
        ("time.sleep(600)", "nothing there answers within 1 s"),
    ],
)
def test_locks_that_fail_or_hang_cost_their_folder_alone(home: Path, what: str, said: str) -> None:
    """A home without working locks is passed over for /tmp, and the answer says which folder and why."""
    before = f"exec({LOCKS.format(where='/eg-distributed/', what=what)!r})"
    _, answer = booted(before, digest=agent_archive()[0], archive=packed(agent_archive()[1]))
    assert answer["ok"] is True, answer
    assert str(answer["socket"]).startswith("/tmp/eg-distributed-")
    elsewhere = Path(str(answer["socket"])).parent
    end_agents(elsewhere)
    shutil.rmtree(elsewhere)
    passed_over = str(answer["passed_over"])
    assert said in passed_over
    assert passed_over.startswith(f"['{home}/")


def test_where_no_folder_will_do_each_is_named(home: Path) -> None:
    """The error has every folder that was tried, with what was wrong with it."""
    before = f"exec({LOCKS.format(where='/', what='raise OSError(errno.ENOLCK, str())')!r})"
    _, answer = booted(before)
    assert answer["ok"] is False
    assert "no folder will do for the agent" in str(answer["error"])
    assert f"{home}/eg-distributed/" in str(answer["error"])
    assert "; /tmp/eg-distributed-" in str(answer["error"])


async def test_an_agent_is_found_where_it_is(visitor: Visitor, home: Path, settings: Distributed) -> None:
    """A home that would not do for a new agent is no reason to start one elsewhere while one lives there: it has the kernels."""
    before = f"exec({LOCKS.format(where='/eg-distributed/', what='raise OSError(errno.ENOLCK, str())')!r})"
    digest, archive = agent_archive()
    _, answer = await asyncio.to_thread(booted, before, digest=digest, archive=packed(archive))
    assert answer["ok"] is True
    assert str(answer["socket"]).startswith(f"{home}/")
    other = await Visitor.at(LocalLink(str(answer["socket"])), "gateway", "2")
    assert (await other.request("ping"))["pid"] == (await visitor.request("ping"))["pid"]
    other.close()


async def test_an_agent_whose_folder_was_removed_is_waited_for(
    visitor: Visitor, home: Path, settings: Distributed
) -> None:
    """A login in the second before it has made its folder again finds it there, and starts no other beside it."""
    (folder,) = home.glob("eg-distributed/*")
    for number in range(3):
        shutil.rmtree(folder, ignore_errors=True)  # the agent may be making it again
        other = await Visitor.at(await connect("localhost", settings), "other", f"{number}")
        assert (await other.request("ping"))["pid"] == (await visitor.request("ping"))["pid"]
        other.close()


def test_a_lock_that_is_never_given_is_named(home: Path) -> None:
    """Another login that holds the lock for ever costs a deadline, and the error has its path."""
    before = (
        "exec('''import fcntl, socket, os\n"
        "path = space['places']()[0]\n"
        "os.makedirs(path, exist_ok=True)\n"
        "held = open(path + '/lock', 'w')\n"
        "fcntl.flock(held, fcntl.LOCK_EX)\n"
        "space['START_DEADLINE'] = 0.5''')"
    )
    _, answer = booted(before, digest=agent_archive()[0], archive=packed(agent_archive()[1]))
    assert answer["ok"] is False
    assert "another login has held the lock" in str(answer["error"])
    assert f"{home}/" in str(answer["error"])


# -- places ------------------------------------------------------------------------------------------------------


def test_machines_of_one_name_have_places_of_their_own(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two machines with one host name and a shared home do not share an agent's folder; one without an id has the name alone."""
    found = []
    for number in (1, 2):
        monkeypatch.setattr(boot_module, "machine", lambda number=number: f"{number:06}")
        found.append(boot_module.places())
    (first, former, temporary), (second, *others) = found
    assert first != second
    assert [former, temporary] == others
    assert (first, second) == (f"{former}-000001", f"{former}-000002")
    monkeypatch.setattr(boot_module, "machine", str)
    assert boot_module.places() == [former, temporary]


def test_the_longest_place_has_room_for_sockets(short: Path) -> None:
    """Behind the longest path that a place may have, the longest name of a kernel's socket can be bound, and no longer one."""
    place = short / ("x" * (MAX_PATH - len(str(short)) - 1))
    folder = place / "k" / "123456789012-abcd"
    folder.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(folder / "s-5"))
    with socket.socket(socket.AF_UNIX) as sock, pytest.raises(OSError, match="too long"):
        sock.bind(str(folder / "s-50"))


async def test_kernels_are_found_in_the_place_of_an_older_release(home: Path) -> None:
    """Agent and kernels are used where they are, also once that agent has ended; without either the place is a new one."""
    digest, archive = agent_archive()
    release: dict[str, Any] = {"digest": digest, "archive": packed(archive)}
    _, answer = await asyncio.to_thread(booted, "space['machine'] = str", **release)
    before = str(answer["socket"])
    own = before.replace("/agent-", f"-{boot_module.machine()}/agent-")
    assert Path(before).parent.name == Path(boot_module.places()[-2]).name
    visitor = await Visitor.at(LocalLink(before))
    pid, agent = (await visitor.ready("k1", standin()))["pid"], (await visitor.request("ping"))["pid"]
    _, answer = await asyncio.to_thread(booted, **release)
    assert (answer["socket"], answer["passed_over"]) == (before, [])
    os.kill(agent, 9)
    await until("the agent has ended", lambda: not alive(agent))
    _, answer = await asyncio.to_thread(booted, **release)
    assert (answer["socket"], answer["passed_over"]) == (before, [])
    later = await Visitor.at(LocalLink(before))
    assert later.hello["kernels"] == [{"kernel": "k1", "state": "running"}]
    assert (await later.request("stop", kernel="k1", grace=0, forget=True))["stopped"]
    assert not alive(pid)
    agent = (await later.request("ping"))["pid"]
    assert await later.request("leave") is True
    await until("the agent has ended", lambda: not alive(agent))
    _, answer = await asyncio.to_thread(booted, **release)
    assert (answer["socket"], answer["passed_over"]) == (own, [])

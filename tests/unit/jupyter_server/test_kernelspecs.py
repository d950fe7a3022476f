"""Asking hosts for their kernelspecs in the background, and the folder in which a server keeps them."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh
import pytest
import pytest_asyncio

from eg_distributed.cluster import Cluster
from eg_distributed.jupyter_server import extension, kernelspecs
from eg_distributed.jupyter_server.kernelspec_folder import CURRENT, KernelspecFolder
from eg_distributed.jupyter_server.kernelspecs import HostsKernelspecs, with_earlier
from eg_distributed.kernelspecs.host_kernelspecs import Offered
from eg_distributed.protocol import HostKernelspecs
from eg_distributed.settings import Distributed
from eg_distributed.wire import Message, encode
from tests.unit.conftest import Hosts
from tests.unit.malformed_agent import MalformedAgent, honest, lead_to, reply
from tests.unit.test_host_kernelspecs import PNG, said
from tests.until import until

ANSWER: Message = {"kernelspecs": [said(logos={"logo-64x64.png": "p"})], "logos": {"p": PNG}}


# -- the folder ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> KernelspecFolder:
    """A server's folder, which is made."""
    made = KernelspecFolder(str(tmp_path / "data"), ["node1"], Distributed(), "server")
    made.open()
    return made


def names(folder: KernelspecFolder) -> list[str]:
    """Return the kernelspecs that Jupyter finds in the folder."""
    return sorted(path.parent.name for path in folder.kernels.glob("*/kernel.json"))


def test_the_folder_holds_just_what_is_offered(folder: KernelspecFolder) -> None:
    """What is not any more goes, with its pictures; what is the same is not written again. Files are the user's alone."""
    a, b = Offered("a", "{}", (("logo-1.png", b"1"), ("logo-2.png", b"2"))), Offered("b", "{}")
    assert folder.write([a, b]) is True
    assert names(folder) == ["a", "b"]
    before = (folder.kernels / "a" / "kernel.json").stat().st_mtime_ns
    assert folder.write([a, b]) is False
    assert folder.write([Offered("a", "{}", (("logo-1.png", b"3"),))]) is True
    assert names(folder) == ["a"]
    assert sorted(path.name for path in (folder.kernels / "a").iterdir()) == ["kernel.json", "logo-1.png"]
    assert (folder.kernels / "a" / "logo-1.png").read_bytes() == b"3"
    assert (folder.kernels / "a" / "kernel.json").stat().st_mtime_ns == before
    assert not (folder.kernels / "b").exists()
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in folder.path.parent.rglob("*")}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}


def test_a_folder_that_somebody_has_removed_is_made_again(folder: KernelspecFolder) -> None:
    """With the next news."""
    shutil.rmtree(folder.path)
    folder.keep("node1", HostKernelspecs.read(ANSWER))
    assert folder.write([Offered("a", "{}")]) is True
    assert names(folder) == ["a"]
    assert folder.answer("node1") == HostKernelspecs.read(ANSWER)


def test_an_answer_is_kept_for_the_next_server(folder: KernelspecFolder, tmp_path: Path) -> None:
    """One that cannot be read any more is none."""
    folder.keep("node1", HostKernelspecs.read(ANSWER))
    later = KernelspecFolder(str(tmp_path / "data"), ["node1"], Distributed(), "another server")
    assert later.answer("node1") == HostKernelspecs.read(ANSWER)
    assert later.answer("node2") is None
    (file,) = later.path.parent.glob("answers/*")
    for content in (b"", b"{", b"[]", b"\xff", b"[" * 5000, json.dumps({"kernelspecs": 3}).encode()):
        file.write_bytes(content)
        assert later.answer("node1") is None


def test_each_server_has_a_folder_of_its_own(tmp_path: Path) -> None:
    """And has it again. The link leads to that of the server that was started last; one that none has used for a month goes."""
    made = [
        KernelspecFolder(str(tmp_path), hosts, Distributed(**settings), server)
        for hosts, settings, server in [
            (["a"], {}, "one"),
            (["b"], {}, "one"),
            (["a"], {"user": "u"}, "one"),
            (["a"], {}, "two"),
            (["a"], {}, "one"),
        ]
    ]
    assert len({each.path for each in made}) == 4
    for each in made:
        each.open()
    current = tmp_path / "eg-distributed" / CURRENT
    assert current.resolve() == made[0].path.resolve()
    long_ago = time.time() - 31 * 86400
    for folder in (made[1].path.parent, made[3].path):
        os.utime(folder, (long_ago, long_ago))
    made[0].open()
    assert [each.path.exists() for each in made] == [True, False, True, False, True]
    current.unlink()
    current.mkdir()
    made[2].open()  # for other programs alone
    assert made[2].write([Offered("a", "{}")]) is True


def test_what_somebody_else_has_put_there_stops_nothing(folder: KernelspecFolder) -> None:
    """A file among the kernelspecs, a folder in one, a file that is called like one; hidden files are left alone."""
    folder.write([Offered("a", "{}")])
    (folder.kernels / ".DS_Store").touch()
    (folder.kernels / "file").touch()
    (folder.kernels / "b").touch()
    (folder.kernels / "c").mkdir()
    (folder.kernels / "c" / "kernel.json").mkdir()
    (folder.kernels / "a" / "folder").mkdir()
    left = folder.kernels / "a" / ".1234.new"
    left.touch()
    os.utime(left, (0, 0))
    assert folder.write([Offered("a", "{}"), Offered("b", "{}"), Offered("c", "{}")]) is True
    assert names(folder) == ["a", "b", "c"]
    assert sorted(path.name for path in folder.kernels.iterdir()) == [".DS_Store", "a", "b", "c"]
    assert [path.name for path in (folder.kernels / "a").iterdir()] == ["kernel.json"]


def test_one_that_cannot_be_written_keeps_nothing_from_the_others(
    folder: KernelspecFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said all the same."""
    write_one = folder._write_one

    def fail(path: Path, each: Offered) -> bool:
        if each.name == "a":
            raise OSError(28, "No space left on device")
        return write_one(path, each)

    folder.write([Offered("old", "{}")])
    monkeypatch.setattr(folder, "_write_one", fail)
    with pytest.raises(OSError, match="No space left"):
        folder.write([Offered("a", "{}"), Offered("b", "{}")])
    assert names(folder) == ["b"]


def test_names_are_remembered(folder: KernelspecFolder) -> None:
    """By what they mean; a file that is none of ours is no memory."""
    folder.write([Offered("a", "{}", key="1"), Offered("b", "{}", key="2")])
    assert folder.names() == {"1": "a", "2": "b"}
    for content in (b"", b"[]", b"\xff", b'{"1": 3, "2": "b"}'):
        (folder.path / "names.json").write_bytes(content)
        assert folder.names() in ({}, {"2": "b"})


# -- asking --------------------------------------------------------------------------------------------------------


@dataclass
class Asked:
    """A host whose agent answers as told, and what comes of it."""

    agent: MalformedAgent
    folder: KernelspecFolder
    kernelspecs: HostsKernelspecs
    told: list[int] = field(default_factory=list)
    questions: int = 0
    answer: Callable[[Message], bytes] = lambda request: reply(request, ANSWER)

    def answers(self, request: Message) -> list[bytes]:
        """Answer for the agent."""
        if request["method"] != "kernelspecs":
            return honest(request)
        self.questions += 1
        return [self.answer(request)]


@pytest_asyncio.fixture
async def asked(
    hosts: Hosts, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Asked]:
    """A server that has begun to ask node1, over and over."""
    (sshd,) = await hosts("node1")
    cluster.settings.kernelspec_refresh = 1.0
    monkeypatch.setattr(kernelspecs, "_DISK", 1.0)
    monkeypatch.setattr(kernelspecs, "_SELDOM", 2.0)
    agent, folder = MalformedAgent(), KernelspecFolder(str(tmp_path / "data"), ["node1"], cluster.settings, "server")
    made = Asked(agent, folder, HostsKernelspecs(cluster, ("node1",), folder, lambda count: made.told.append(count)))
    agent.answers = made.answers
    lead_to(sshd, sshd.folder / "sock")
    async with agent.listening(sshd.folder / "sock"):
        running = cluster.submit(made.kernelspecs.run())
        yield made
        running.cancel()


async def questions(asked: Asked, more: int) -> None:
    """Have the host asked that many times more, by clients that look at the launcher."""
    wanted = asked.questions + more

    def is_asked() -> bool:
        asked.kernelspecs.need()
        return asked.questions >= wanted

    await until("the host is asked", is_asked)


async def test_a_host_is_asked_at_the_start_and_when_clients_look(asked: Asked) -> None:
    """Not oftener than the setting says, and never while nobody looks; who wants to know is told once of a change."""
    await until("it is offered", lambda: names(asked.folder) == ["python3.node1"])
    await until("that is told", lambda: asked.told == [1])
    for _ in range(10):
        asked.kernelspecs.need()
    await asyncio.to_thread(asked.kernelspecs._cluster.submit(asyncio.sleep(0)).result)
    assert asked.questions == 1
    asked.answer = lambda request: reply(request, {"kernelspecs": [said(), said("ir")]})
    await questions(asked, 1)
    await until("the other is offered", lambda: names(asked.folder) == ["ir.node1", "python3.node1"])
    await until("that is told", lambda: asked.told == [1, 2])
    assert not list((asked.folder.kernels / "python3.node1").glob("logo*"))


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (
            lambda request: encode({"id": request["id"], "error": "no method 'kernelspecs'", "kind": "malformed"}),
            "Its agent is of an older release",
        ),
        (lambda request: reply(request, 7), "answer to 'kernelspecs' is malformed"),
        (lambda request: reply(request, {"kernelspecs": [{}] * 201}), "answer to 'kernelspecs' is malformed"),
        (lambda request: encode({"id": request["id"], "error": "x", "kind": "internal"}), "Its agent failed: x"),
    ],
    ids=["older", "no object", "too many", "failure"],
)
async def test_a_host_that_cannot_say_keeps_what_it_had(
    asked: Asked, caplog: pytest.LogCaptureFixture, answer: Callable[[Message], bytes], why: str
) -> None:
    """The log says once why; it is asked again, and when it can say, that counts."""
    await until("it is offered", lambda: names(asked.folder) == ["python3.node1"])
    asked.answer = answer
    with caplog.at_level(logging.WARNING):
        await questions(asked, 3)
    lines = [record.getMessage() for record in caplog.records if "kernelspecs of node1" in record.getMessage()]
    assert len(lines) == 1
    assert why in lines[0]
    assert "those of before stay" in lines[0]
    assert names(asked.folder) == ["python3.node1"]
    asked.answer = lambda request: reply(request, {"kernelspecs": []})
    await questions(asked, 1)
    await until("there is none any more", lambda: names(asked.folder) == [])


def test_what_was_found_before_stays_where_it_was() -> None:
    """What the agent finds because it cannot see what comes before has not its name; what is new is behind what it follows."""
    login, system = said(root="/home/k", folder="/home/k/python3"), said(folder="/usr/k/python3")
    ir, new = said("ir", root="/opt", folder="/opt/ir"), said("new", root="/opt", folder="/opt/new")
    before = HostKernelspecs([login, ir])
    now = with_earlier(HostKernelspecs([system, ir, new], unread=["/home/k"]), before)
    assert [each.folder for each in now.each()] == ["/home/k/python3", "/opt/ir", "/opt/new"]
    assert with_earlier(HostKernelspecs([system], unread=["/x"]), None).kernelspecs == [system]


async def test_what_could_not_be_looked_through_stays(asked: Asked) -> None:
    """Of a mount that hangs its kernelspecs are still offered, with their pictures; the others are as they are now."""
    mounted = said("mounted", root="/mnt/*", logos={"logo-64x64.png": "p"})
    system = said("system", root="/usr/share")
    asked.answer = lambda request: reply(request, {"kernelspecs": [mounted, system], "logos": {"p": PNG}})
    await questions(asked, 1)
    await until("both are there", lambda: names(asked.folder) == ["mounted.node1", "system.node1"])
    also = said("system", root="/usr/other")  # by another way to its folder
    asked.answer = lambda request: reply(
        request, {"kernelspecs": [said("new"), also], "unread": ["/mnt/*", "/usr/share"]}
    )
    await questions(asked, 2)
    await until("one stays", lambda: names(asked.folder) == ["mounted.node1", "new.node1", "system.node1"])
    assert (asked.folder.kernels / "mounted.node1" / "logo-64x64.png").exists()


async def test_a_server_has_at_once_what_the_last_one_knew(cluster: Cluster, tmp_path: Path) -> None:
    """Though its hosts do not answer, and though the last one was another server."""
    hosts = ("nowhere.invalid",)
    last = KernelspecFolder(str(tmp_path / "data"), hosts, cluster.settings, "last")
    last.keep("nowhere.invalid", HostKernelspecs([said("ir")]))
    folder = KernelspecFolder(str(tmp_path / "data"), hosts, cluster.settings, "server")
    running = cluster.submit(HostsKernelspecs(cluster, hosts, folder, lambda count: None).run())
    await until("that of the silent host is offered", lambda: names(folder) == ["ir.nowhere.invalid"])
    running.cancel()


async def test_two_servers_take_nothing_from_each_other(asked: Asked, cluster: Cluster, tmp_path: Path) -> None:
    """Each has what it has heard; the newest answer is what the next one begins with."""
    await until("it is offered", lambda: names(asked.folder) == ["python3.node1"])
    other = KernelspecFolder(str(tmp_path / "data"), ["node1"], cluster.settings, "other")
    second = HostsKernelspecs(cluster, ("node1",), other, lambda count: None)
    running = cluster.submit(second.run())
    await until("the other has it as well", lambda: names(other) == ["python3.node1"])
    asked.answer = lambda request: reply(request, {"kernelspecs": [said("ir")]})
    await questions(asked, 1)
    await until("the first one has the news", lambda: names(asked.folder) == ["ir.node1"])
    assert names(other) == ["python3.node1"]
    kept = other.answer("node1")
    assert kept is not None
    assert [each.name for each in kept.each()] == ["ir"]
    cluster.call_soon(second._news.set)
    await asyncio.to_thread(cluster.submit(asyncio.sleep(0.5)).result)
    assert names(asked.folder) == ["ir.node1"]
    running.cancel()


async def test_a_refused_login_is_not_tried_again_for_long(
    hosts: Hosts, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often clients look: refusals are counted, and end in a ban for all. Other failures wait ever longer."""
    (sshd,) = await hosts("node1")
    (sshd.folder / "authorized").write_bytes(asyncssh.generate_private_key("ssh-ed25519").export_public_key())
    cluster.settings.kernelspec_refresh = 1.0
    folder = KernelspecFolder(str(tmp_path / "data"), ["node1"], cluster.settings, "server")
    looking = HostsKernelspecs(cluster, ("node1", "nowhere.invalid"), folder, lambda count: None)
    running = cluster.submit(looking.run())
    await until("both have failed", lambda: len(looking._failures) == 2)
    assert looking._waits == {"node1": kernelspecs._SELDOM, "nowhere.invalid": 2.0}
    asked = dict(looking._asked)

    def again() -> bool:
        looking.need()
        return looking._waits["nowhere.invalid"] == 4.0

    await until("the other one is asked again", again)
    assert looking._asked["node1"] == asked["node1"]
    assert looking._asked["nowhere.invalid"] > asked["nowhere.invalid"] + 2.0
    running.cancel()


async def test_a_host_that_is_back_is_asked_again(
    hosts: Hosts, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though no client looks: by whatever it was connected, a start, for one."""
    monkeypatch.setattr(kernelspecs, "_AGAIN", 0.5)
    (sshd,) = await hosts("node1")
    sshd.command = "exit 1"
    folder = KernelspecFolder(str(tmp_path / "data"), ["node1"], cluster.settings, "server")
    looking = HostsKernelspecs(cluster, ("node1",), folder, lambda count: None)
    running = cluster.submit(looking.run())
    await until("it has failed", lambda: looking._failures)
    agent = MalformedAgent()
    agent.answers = lambda request: [reply(request, ANSWER)] if request["method"] == "kernelspecs" else honest(request)
    lead_to(sshd, sshd.folder / "sock")
    async with agent.listening(sshd.folder / "sock"):
        await cluster.run(cluster.list_kernels("node1"))
        await until("it is offered", lambda: names(folder) == ["python3.node1"])
    running.cancel()


@pytest.mark.parametrize("what", ["write", "keep", "open"])
async def test_a_folder_that_cannot_be_used_is_tried_again(
    hosts: Hosts,
    cluster: Cluster,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    """Without any news: when a full disk has room again, all is written that is known. It is said once."""
    (sshd,) = await hosts("node1")
    monkeypatch.setattr(kernelspecs, "_DISK", 0.5)
    folder = KernelspecFolder(str(tmp_path / "data"), ["node1"], cluster.settings, "server")
    tries = 0

    def full(*args: Any) -> None:
        nonlocal tries
        tries += 1
        raise OSError(28, "No space left on device")

    whole = getattr(folder, what)
    monkeypatch.setattr(folder, what, full)
    agent = MalformedAgent()
    agent.answers = lambda request: [reply(request, ANSWER)] if request["method"] == "kernelspecs" else honest(request)
    lead_to(sshd, sshd.folder / "sock")
    async with agent.listening(sshd.folder / "sock"):
        looking = HostsKernelspecs(cluster, ("node1",), folder, lambda count: None)
        running = cluster.submit(looking.run())
        looking.need()
        await until("it is tried more than once", lambda: tries > 2)
        monkeypatch.setattr(folder, what, whole)
        await until("it is offered", lambda: names(folder) == ["python3.node1"])
        await until("it is kept", lambda: folder.answer("node1") is not None)
        assert caplog.text.count("No space left on device") == 1
        running.cancel()


async def test_a_home_that_hangs_costs_nobody_what_was_known(
    hosts: Hosts, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While it hangs nothing is written; when it is back, all is, and of a silent host what the last server knew."""
    monkeypatch.setattr(kernelspecs, "_DISK", 0.2)
    folder = KernelspecFolder(str(tmp_path / "data"), ["nowhere.invalid"], cluster.settings, "server")
    folder.open()
    folder.keep("nowhere.invalid", HostKernelspecs([said("ir")]))
    folder.write([Offered("ir.nowhere.invalid", "{}")])
    back, opening = threading.Event(), folder.open

    def hang() -> None:
        assert back.wait(30)
        opening()

    monkeypatch.setattr(folder, "open", hang)
    running = cluster.submit(HostsKernelspecs(cluster, ("nowhere.invalid",), folder, lambda count: None).run())
    await until("it is said", lambda: "cannot be used: it hangs" in caplog.text)
    assert (folder.kernels / "ir.nowhere.invalid" / "kernel.json").read_text() == "{}"
    back.set()
    await until("it is written", lambda: (folder.kernels / "ir.nowhere.invalid" / "kernel.json").read_text() != "{}")
    assert caplog.text.count("cannot be used") == 1
    running.cancel()


# -- the extension's part ------------------------------------------------------------------------------------------


class Manager:
    """A kernelspec manager of whatever class."""

    def __init__(self) -> None:
        self.kernel_dirs = ["/own"]

    def get_all_specs(self) -> dict[str, Any]:
        """Return what a server shows."""
        return {"own": {}}


class App:
    """As much of a ServerApp as the part may touch where it has nothing to do."""

    def __init__(self, config: Any = None) -> None:
        self.config = config
        self.kernel_spec_manager = Manager()


@pytest.mark.parametrize(
    "env",
    [{}, {"EG_REMOTE_HOSTS": "node1", "EG_DISTRIBUTED_HOST_KERNELSPECS": "off"}],
    ids=["no hosts", "off"],
)
def test_without_hosts_a_server_is_left_alone(home: Path, monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> None:
    """Nothing is asked, and its manager stays as it is; so it does where the setting is off."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    app = App()
    kernelspecs.begin(app)
    assert app.kernel_spec_manager.kernel_dirs == ["/own"]
    assert "get_all_specs" not in vars(app.kernel_spec_manager)


def test_a_server_of_a_gateway_is_left_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernels, and its kernelspecs, are the gateway's."""
    monkeypatch.setenv("EG_REMOTE_HOSTS", "node1")
    app: Any = App()
    app.gateway_config = type("GatewayClient", (), {"gateway_enabled": True})
    kernelspecs.begin(app)
    assert app.kernel_spec_manager.kernel_dirs == ["/own"]


def test_it_is_a_part_of_the_extension() -> None:
    """So that installing is all that it takes."""
    assert "kernelspecs" in [part.room for part in extension.PARTS]

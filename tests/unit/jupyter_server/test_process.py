"""What nodes know a process by, and what is left of one that was killed."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from traitlets.config import Config

from eg_distributed.aside import aside
from eg_distributed.errors import RequestInvalid
from eg_distributed.jupyter_server import process
from eg_distributed.jupyter_server.process import Name, own_name, server_name
from eg_distributed.jupyter_server.store import Store
from tests.until import PROCESS_SECONDS


@dataclass
class Folders:
    """A server's folders."""

    root_dir: str
    runtime_dir: str


@dataclass
class Keeping:
    """What has kernels found again."""

    store: Store | None

    async def prepare(self) -> None:
        """It has its store already."""

    def taken(self, manager: Any, owner: str) -> None:
        """Nothing takes kernels here."""


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """Those of one server."""
    (tmp_path / "root").mkdir()
    return Folders(str(tmp_path / "root"), str(tmp_path / "runtime"))


def gone(name: Name) -> str:
    """Do what the end of a process does with its locks; return the name's text."""
    os.close(name.lock)
    return name.text


def test_a_server_that_is_started_again_has_its_name(folders: Folders) -> None:
    """However it ended, and whatever its port is."""
    first = gone(server_name(folders))
    assert gone(server_name(folders)) == first


def test_servers_at_once_have_names_of_their_own(folders: Folders) -> None:
    """Of one user and one folder. Each has the first name that no living one has."""
    first, second = server_name(folders), server_name(folders)
    assert first.text != second.text
    gone(first)
    third = server_name(folders)
    assert third.text == first.text
    gone(second)
    gone(third)


def test_a_server_that_was_killed_is_the_one_that_is_started_again(folders: Folders) -> None:
    """Of two servers the first one was stopped, the second was killed: the next one has the kernels of the second."""
    first, second = server_name(folders), server_name(folders)
    assert second.kept is not None
    second.kept.mkdir()
    (second.kept / "4e11087c-adaa.json").touch()
    gone(first)
    text = gone(second)
    assert gone(server_name(folders)) == text


def test_a_name_that_is_only_looked_at(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who lists what other servers keep holds their locks for a moment: that keeps no server from its name."""
    first = gone(server_name(folders))
    (lock,) = (Path(folders.runtime_dir) / "eg-distributed").iterdir()
    looking = process.while_locked(lock)
    assert looking.__enter__()
    monkeypatch.setattr(time, "sleep", lambda seconds: looking.__exit__(None, None, None))
    assert gone(server_name(folders)) == first


def test_servers_of_other_folders_have_other_names(folders: Folders, tmp_path: Path) -> None:
    """Another root folder, or another runtime folder, is another server."""
    names = {
        gone(server_name(Folders(str(tmp_path / root), str(tmp_path / runtime)))) for root in "ab" for runtime in "cd"
    }
    assert len(names) == 4


def test_a_file_that_says_nothing_is_written_anew(folders: Folders) -> None:
    """A disk that was full left it empty, or somebody has edited it."""
    first = gone(server_name(folders))
    (file,) = (Path(folders.runtime_dir) / "eg-distributed").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text("../../etc/passwd, and much more than a name has")
    second = gone(server_name(folders))
    assert second != first
    assert gone(server_name(folders)) == second


def test_a_disk_without_locks(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The server works, under a name that only its process has, and the log says why."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert server_name(folders).text != server_name(folders).text
    assert "servers cannot be told apart there" in caplog.text


def test_any_other_process_has_a_name_that_is_never_another_ones() -> None:
    """Not even its own of before."""
    assert len({own_name().text for _ in range(10)}) == 10
    assert own_name("west").text.startswith("west:")


def test_what_a_killed_process_has_left_is_removed(short: Path) -> None:
    """The next one removes the sockets of those that are gone, and of no other; gateways' folders have no lock."""
    code = (
        "import sys; from pathlib import Path; from eg_distributed.jupyter_server import process\n"
        "folder = Path(sys.argv[1]); folder.mkdir(); process._locked(folder / 'owner.lock'); print('made', flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(short / "x-1")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"made\n"
        (short / "x-2").mkdir()
        (short / "x-1" / "c-1").write_text("")
        process._remove_left(short, "x-")
        assert sorted(path.name for path in short.iterdir()) == ["x-1", "x-2"]
        other.kill()
        other.wait()
    process._remove_left(short, "x-")
    assert [path.name for path in short.iterdir()] == ["x-2"]


def test_a_folder_that_is_removed_as_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who removes what is left may take a folder without a lock yet for that: the process makes another one."""
    locked = process._locked
    gone: list[Path] = []

    def too_late(path: Path) -> int | None:
        lock = locked(path)
        if path.name == "owner.lock" and not gone:
            gone.append(path.parent)
            shutil.rmtree(path.parent)
        return lock

    monkeypatch.setattr(process, "_locked", too_late)
    monkeypatch.setattr(process, "_remove_left", lambda parent, stem: None)
    folder, lock = process._own_folder(own_name().text)
    try:
        assert Path(folder) not in [Path(), *gone]
        assert process._is_there(Path(folder, "owner.lock"), lock)
    finally:
        os.close(lock)
        shutil.rmtree(folder)


@pytest.fixture
def _none_made() -> Iterator[None]:
    """This process has no cluster before, and ends those that the test makes."""
    yield
    for cluster in process._clusters.made.values():
        cluster.close()
    process._clusters = process._Clusters()


@pytest.mark.usefixtures("_none_made", "home")
def test_one_cluster_for_all_kernels_of_a_process() -> None:
    """It is nobody's who comes back: nodes end its kernels within a minute, and its sockets are in a folder of its own."""
    cluster = process.cluster_for(object(), Config({"Distributed": {"remote_hosts": ["a"]}}))
    assert process.cluster_for(object(), Config()) is cluster
    assert (cluster.settings.orphan_timeout, cluster.settings.gone_timeout) == (900.0, 60.0)
    folder = Path(cluster.settings.runtime_dir)
    assert (folder.stat().st_mode & 0o777, [path.name for path in folder.iterdir()]) == (0o700, ["owner.lock"])
    process._close(cluster, str(folder), os.getpid())
    assert not folder.exists()


@pytest.mark.usefixtures("_none_made", "home")
@pytest.mark.parametrize("by", ["configuration", "environment"])
def test_an_orphan_timeout_that_somebody_has_set(monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    """It counts as it is, however long."""
    if by == "environment":
        monkeypatch.setenv("EG_DISTRIBUTED_ORPHAN_TIMEOUT", "7200")
    said = Config({"Distributed": {"orphan_timeout": 7200}} if by == "configuration" else {})
    cluster = process.cluster_for(object(), said)
    assert (cluster.settings.orphan_timeout, cluster.settings.gone_timeout) == (7200.0, 0.0)


@pytest.mark.usefixtures("_none_made", "home")
@pytest.mark.parametrize("given", [{}, {"gateway_id": "west"}])
def test_a_server_whose_kernels_nothing_finds_again(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    """Nodes end its kernels soon after its end, and it takes no lasting name; one with a keeper has that, and a day."""
    monkeypatch.setattr(process, "server_of", lambda manager: folders)
    config = Config({"Distributed": given})
    passing = process.cluster_for(object(), config)
    limits = passing.settings
    assert (limits.orphan_timeout, limits.gone_timeout, limits.kept_output_limit) == (900.0, 60.0, 0)
    assert not process.names_of(folders).exists()
    passing.close()
    process._clusters = process._Clusters()
    folder = process.folder_for(folders, process.settings_for(config))
    assert folder is not None
    process.keep_by(Keeping(Store(folder)))
    lasting = process.cluster_for(object(), config)
    assert (lasting.settings.orphan_timeout, lasting.settings.gone_timeout) == (86400.0, 0.0)
    assert lasting.settings.kept_output_limit
    assert lasting.identity[0] != passing.identity[0]


@pytest.mark.usefixtures("_none_made", "home")
def test_a_setting_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who starts a kernel is told, and the next one may find it corrected."""
    monkeypatch.setenv("EG_PORT_RANGE", "any")
    monkeypatch.setenv("EG_IMPERSONATION_ENABLED", "maybe")
    with pytest.raises(RequestInvalid, match="EG_IMPERSONATION_ENABLED='maybe' is no bool"):
        process.cluster_for(object(), Config())
    monkeypatch.delenv("EG_IMPERSONATION_ENABLED")
    assert process.cluster_for(object(), Config()).settings.port_range == "any"


@pytest.mark.usefixtures("_none_made", "home")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12 and later, and right
def test_a_forked_process_has_a_cluster_of_its_own() -> None:
    """And nothing of its parent's: not its lock, and nothing waits there for a thread that is not there."""
    first = process.cluster_for(object(), Config())
    with process._lock:  # as by a kernel's start in another thread
        child = os.fork()
    if not child:  # pragma: no cover - in a process that is not measured
        try:
            assert first.is_closed
            with pytest.raises(RuntimeError):
                first.submit(asyncio.sleep(0))
            second = process.cluster_for(object(), Config())
            assert second.submit(aside("x", lambda: 6 * 7)).result(PROCESS_SECONDS) == 42
            process._close(second, second.settings.runtime_dir, os.getpid())
            os._exit(0)
        except BaseException:  # noqa: BLE001 - whatever it is, the child is to end here
            traceback.print_exc()
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert not first.is_closed


@pytest.mark.usefixtures("_none_made", "home")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12 and later, and right
def test_a_forked_process_holds_no_lock(tmp_path: Path) -> None:
    """The next server of its parent's name has that, though a child of the one before lives."""
    lock = process._locked(tmp_path / "lock")
    assert lock is not None
    process._clusters.locks.append(lock)
    ours, theirs = socket.socketpair()
    child = os.fork()
    if not child:  # pragma: no cover - as above
        ours.close()
        theirs.sendall(b"!")
        theirs.recv(1)
        os._exit(0)
    theirs.close()
    assert ours.recv(1)
    os.close(lock)
    again = process._locked(tmp_path / "lock")
    ours.close()
    os.waitpid(child, 0)
    assert again is not None
    os.close(again)

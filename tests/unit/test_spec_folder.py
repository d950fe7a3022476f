"""A kernelspec's folder on its way to the nodes."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest

from eg_distributed import spec_folder
from eg_distributed.cluster import Cluster
from eg_distributed.errors import KernelStartFailed
from eg_distributed.kernel import RemoteKernel
from eg_distributed.launcher_files import shipping_of
from eg_distributed.settings import Distributed
from eg_distributed.spec_folder import SpecFolder, SpecFolders

from .agents import STANDIN
from .clusters import answers, start, where
from .conftest import Hosts

HELPER = '#!/bin/sh\nexec "$@"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A kernelspec's folder with a helper that runs what it is given, and a module."""
    made = tmp_path / "kernels" / "mine"
    (made / "lib").mkdir(parents=True)
    (made / "kernel.json").write_text("{}")
    (made / "run.sh").write_text(HELPER)
    (made / "run.sh").chmod(0o755)
    (made / "lib" / "mine.py").write_text("VALUE = 1\n")
    return made


async def look(folder: Path, limit: int = 1 << 20, folders: SpecFolders | None = None) -> SpecFolder:
    """Look at *folder*, as a start does."""
    return await (folders or SpecFolders(limit)).look(str(folder), asyncio.get_running_loop().time() + 20)


def names(folder: Path, limit: int = 1 << 20) -> list[str]:
    """Return the names in the archive of *folder*."""
    folders = SpecFolders(limit)
    archive = folders._archive(folders._look(str(folder)))
    file = folder.parent / "archive.zip"
    file.write_bytes(archive.content)
    return zipfile.ZipFile(file).namelist()


async def start_from(
    cluster: Cluster, folder: Path, *words: str, hosts: str = "node1", kernel: str = "k1", **config: Any
) -> RemoteKernel:
    """Start a stand-in kernel whose argv has the kernelspec's *folder* in it."""
    argv = ["{resource_dir}/run.sh", *STANDIN, "{connection_file}", *words]
    brings = config.get("bring_folder", True)
    if not brings:
        argv = [word.replace("{resource_dir}", str(folder)) for word in argv]
    shipping = shipping_of(config, argv, "mine", resource_dir=str(folder), brings_folder=brings)
    return await start(cluster, kernel, hosts, argv=argv, shipping=shipping)


async def copy_of(cluster: Cluster, kernel: RemoteKernel) -> Path:
    """Return the node's folder, which *kernel* has said."""
    printed = await cluster.run(cluster.read_log_part(where(kernel), kernel.id, kernel.attempt, 0))
    return Path(printed.text.strip())


async def test_a_helper_beside_kernel_json_runs_on_the_node(cluster: Cluster, hosts: Hosts, folder: Path) -> None:
    """argv that names `{resource_dir}` works although the folder is on the gateway alone: executable bits and all."""
    await hosts("node1")
    kernel = await start_from(cluster, folder, "say:{resource_dir}")
    assert await answers(kernel)
    copy = await copy_of(cluster, kernel)
    assert copy != folder
    assert (copy / "lib" / "mine.py").read_text() == "VALUE = 1\n"
    assert stat.S_IMODE((copy / "run.sh").stat().st_mode) == 0o500
    assert stat.S_IMODE((copy / "lib" / "mine.py").stat().st_mode) == 0o400


async def test_the_gateways_folder_wins_over_a_nodes(cluster: Cluster, hosts: Hosts, folder: Path, short: Path) -> None:
    """That a node has something at the same path makes no difference; here the "node" has the very folder."""
    await hosts("node1")
    kernel = await start_from(cluster, folder, "say:{resource_dir}")
    assert await copy_of(cluster, kernel) != folder


async def test_a_folder_travels_once_until_it_changes(
    cluster: Cluster, hosts: Hosts, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two starts and a restart send it once; a change sends it once more, and the next start has the new content."""
    sent: list[str] = []
    send = spec_folder._send

    async def count(digest: str, *arguments: Any) -> Any:
        sent.append(digest)
        return await send(digest, *arguments)

    monkeypatch.setattr(spec_folder, "_send", count)
    await hosts("node1")
    for kernel_id in ("k1", "k2", "k1"):
        await start_from(cluster, folder, kernel=kernel_id)
    assert len(sent) == 1
    (folder / "lib" / "mine.py").write_text("VALUE = 22\n")
    kernel = await start_from(cluster, folder, "say:{resource_dir}", kernel="k3")
    assert len(sent) == 2
    copy = await copy_of(cluster, kernel)
    assert (copy / "lib" / "mine.py").read_text() == "VALUE = 22\n"


async def test_a_folder_that_the_node_lost_is_brought_again(
    cluster: Cluster, hosts: Hosts, folder: Path, short: Path
) -> None:
    """What somebody cleared from ~/.cache comes back with the next start."""
    await hosts("node1")
    await start_from(cluster, folder)
    (copy,) = short.glob("node1/eg-distributed/*/f/*")
    copy.rename(copy.with_name("away"))
    assert await answers(await start_from(cluster, folder, kernel="k2"))
    assert copy.is_dir()


async def test_a_folder_over_the_limit_is_an_error_that_names_it(
    cluster: Cluster, hosts: Hosts, folder: Path, settings: Distributed
) -> None:
    """Which folder, how large, what is allowed, and what to do; the restart of a kernel that runs does not end it."""
    await hosts("node1")
    kernel = await start_from(cluster, folder)
    (folder / "big.jar").write_bytes(b"x" * (settings.folder_limit + 1))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    with pytest.raises(KernelStartFailed) as caught:
        await start_from(cluster, folder, kernel="k2")
    said = str(caught.value)
    assert f"folder {folder} on the gateway is too large to be brought to a node: {size} bytes in 5 files" in said
    assert f"at most {settings.folder_limit} bytes" in said
    assert "Distributed.folder_limit" in said
    assert '"bring_folder": false' in said
    with pytest.raises(KernelStartFailed):
        await start_from(cluster, folder)
    assert await answers(kernel)


async def test_a_folder_with_too_many_files_is_refused_without_reading_them_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody's home as a kernelspec's folder costs a bounded look."""
    monkeypatch.setattr(spec_folder, "MOST_FILES", 4)
    for number in range(5):
        (folder / f"f{number}").touch()
    with pytest.raises(KernelStartFailed, match="more than 4 files"):
        await look(folder)


async def test_what_leads_out_of_the_folder_is_left_out_and_named(folder: Path, tmp_path: Path) -> None:
    """Links to elsewhere and to folders, FIFOs and sockets do not travel; links to files of the folder do."""
    (tmp_path / "secret").write_text("s")
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "up").symlink_to("..")
    (folder / "loop").symlink_to("loop")
    (folder / "gone").symlink_to("nothing")
    (folder / "lib" / "again").symlink_to("mine.py")
    (folder / "libs").symlink_to("lib")
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "s"))
    (folder / "__pycache__").mkdir()
    found = await look(folder)
    left_out = dict(text.rstrip(")").split(" (", 1) for text in found.left_out)
    assert left_out.keys() == {"out", "up", "loop", "gone", "libs", "fifo", "s"}
    assert left_out["out"] == left_out["up"] == "a link that leads out of the folder"
    assert names(folder) == ["kernel.json", "lib/", "lib/again", "lib/mine.py", "run.sh"]


async def test_a_file_that_cannot_be_read_is_named_where_it_is_missed(
    cluster: Cluster, hosts: Hosts, folder: Path, tmp_path: Path
) -> None:
    """A start that fails for want of it says whose copy it looked into, and what that is without."""
    (tmp_path / "elsewhere.sh").write_text(HELPER)
    (folder / "run.sh").unlink()
    (folder / "run.sh").symlink_to(tmp_path / "elsewhere.sh")
    await hosts("node1")
    with pytest.raises(KernelStartFailed) as caught:
        await start_from(cluster, folder)
    said = str(caught.value)
    assert f"a copy of the kernelspec's folder {folder} on the gateway, without run.sh (a link that leads out" in said


async def test_a_folder_that_is_not_brought_is_said_to_be_the_gateways(
    cluster: Cluster, hosts: Hosts, folder: Path
) -> None:
    """With `"bring_folder": false` the path is the gateway's, and the error of a host that lacks it says what to do."""
    await hosts("node1")
    assert await answers(await start_from(cluster, folder, bring_folder=False))
    (folder / "run.sh").unlink()
    with pytest.raises(KernelStartFailed) as caught:
        await start_from(cluster, folder, bring_folder=False, kernel="k2")
    assert f"{folder} is the kernelspec's folder on the gateway, and is not brought to hosts" in str(caught.value)


async def test_a_folder_that_is_gone_is_an_error_of_the_gateway(folder: Path) -> None:
    """The message names the folder and says that it is the gateway's."""
    with pytest.raises(KernelStartFailed, match=r"folder /nowhere/mine on the gateway cannot be read \(No such file"):
        await look(Path("/nowhere/mine"))


async def test_folders_that_hang_hold_up_no_other_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is read in a thread of its own, for as long as its start may; other folders, and the process's end, don't wait."""
    listdir = os.listdir
    reading, writing = os.pipe()

    def hang(path: str) -> list[str]:
        if "hangs" in path:
            os.read(reading, 1)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", hang)
    folders = SpecFolders(1 << 20)
    for number in range(8):
        hanging = folder.parent / f"hangs{number}"
        hanging.mkdir()
        with pytest.raises(KernelStartFailed, match="could not be read before the launch timeout ended"):
            await folders.look(str(hanging), asyncio.get_running_loop().time() + 0.05)
    assert (await folders.look(str(folder), asyncio.get_running_loop().time() + 20)).digest
    reads = [thread for thread in threading.enumerate() if "hangs" in thread.name]
    assert [thread.daemon for thread in reads] == [True] * 8
    os.close(writing)
    for thread in reads:
        thread.join(20)


async def test_an_unchanged_folder_is_packed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at what has not changed costs the names and times; a change of a mode counts as one."""
    packed: list[str] = []
    pack = spec_folder._pack

    def count(*arguments: Any) -> Any:
        packed.append("once more")
        return pack(*arguments)

    monkeypatch.setattr(spec_folder, "_pack", count)
    folders = SpecFolders(1 << 20)
    first = await look(folder, folders=folders)
    assert await look(folder, folders=folders) is first
    assert len(packed) == 1
    (folder / "lib" / "mine.py").chmod(0o755)
    assert (await look(folder, folders=folders)).digest != first.digest


def test_the_archive_depends_on_nothing_but_the_content(folder: Path, tmp_path: Path) -> None:
    """Two gateways with the same kernelspec bring the same digest, so that a node keeps one copy."""
    other = tmp_path / "other"
    (other / "lib").mkdir(parents=True)
    for name in ("run.sh", "lib/mine.py", "kernel.json"):
        (other / name).write_bytes((folder / name).read_bytes())
        (other / name).chmod(stat.S_IMODE((folder / name).stat().st_mode))
        os.utime(other / name, (1, 1))
    assert SpecFolders(1 << 20)._look(str(folder)).digest == SpecFolders(1 << 20)._look(str(other)).digest


def test_only_argv_that_names_the_folder_brings_it() -> None:
    """A plain kernelspec's start is what it was; `on_exit` counts as well as argv."""
    named = ["{resource_dir}/run.sh"]
    assert shipping_of({}, [sys.executable], "s", resource_dir="/k", brings_folder=True).brings_folder is False
    assert shipping_of({}, named, "s", resource_dir="/k", brings_folder=True).brings_folder is True
    after = shipping_of({"on_exit": named}, ["x"], "s", resource_dir="/k", brings_folder=True)
    assert (after.brings_folder, after.on_exit) == (True, tuple(named))
    local = shipping_of({"on_exit": named}, ["/k/run.sh"], "s", resource_dir="/k")
    assert (local.brings_folder, local.resource_dir, local.on_exit) == (False, "/k", ("/k/run.sh",))

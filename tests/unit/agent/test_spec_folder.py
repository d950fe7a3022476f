"""Kernelspecs' folders on a node: taken whole or not at all, kept while they are used, and bounded."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import time
import zipfile
from pathlib import Path

import pytest

from eg_distributed.agent import spec_folder
from eg_distributed.agent.spawning import StartError
from eg_distributed.agent.spec_folder import LINK, FolderMissing, SpecFolders
from eg_distributed.wire import Message, encode, read_message
from tests.unit.agents import DEADLINE, Refusal, Visitor, standin


def archive(**files: str) -> tuple[str, bytes]:
    """Return the digest and the bytes of an archive of *files*."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name, text in files.items():
            packed.writestr(zipfile.ZipInfo(name), text)
    content = buffer.getvalue()
    return hashlib.sha256(content).hexdigest(), content


async def bring(visitor: Visitor, digest: str, content: bytes, size: int | None = None) -> Message:
    """Bring *content* as the folder *digest*, and return the agent's last answer."""
    reader, writer = await visitor.link.open()
    hello = {"type": "folder", "digest": digest, "size": len(content) if size is None else size}
    writer.write(encode(hello))
    answer = await asyncio.wait_for(read_message(reader), DEADLINE)
    if answer and answer["ok"] and answer["wanted"]:
        writer.write(content)
        answer = await asyncio.wait_for(read_message(reader), DEADLINE)
    assert answer is not None
    writer.close()
    return answer


async def test_a_start_names_a_folder_that_has_been_brought(visitor: Visitor) -> None:
    """Before that it is refused by a kind of its own, and nothing is started; afterwards `{resource_dir}` is the copy."""
    digest, content = archive(**{"a.txt": "ä"})
    with pytest.raises(Refusal) as caught:
        await visitor.start("k1", standin(), spec_folder=digest)
    assert caught.value.kind == "folder"
    assert (await bring(visitor, digest, content))["ok"] is True
    assert (await bring(visitor, digest, content)) == {"ok": True, "wanted": False}
    await visitor.ready("k1", standin("say:{resource_dir}/a.txt"), spec_folder=digest)
    shown = Path((await visitor.request("log", kernel="k1")).strip())
    assert shown.read_text("utf-8") == "ä"


async def test_without_a_folder_the_placeholder_is_left_alone(visitor: Visitor) -> None:
    """An older gateway has filled it in; what it has not is nobody's."""
    await visitor.ready("k1", standin("say:{resource_dir}"))
    assert (await visitor.request("log", kernel="k1")).strip() == "{resource_dir}"


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "a//b", "./x"])
async def test_an_archive_that_leads_elsewhere_is_refused(visitor: Visitor, home: Path, name: str) -> None:
    """Nothing is written outside, and nothing stays inside."""
    digest, content = archive(**{"fine": "x", name: "x"})
    answer = await bring(visitor, digest, content)
    assert not answer["ok"]
    assert "is no name for a file" in answer["error"]
    assert list(home.glob("eg-distributed/*/f/*")) == []


async def test_what_differs_from_its_digest_is_refused(visitor: Visitor, home: Path) -> None:
    """So is what is no archive, and what is named by no digest."""
    digest, content = archive(a="x")
    assert "not what was announced" in (await bring(visitor, digest, content[:-1] + b"?"))["error"]
    junk = b"no archive"
    assert not (await bring(visitor, hashlib.sha256(junk).hexdigest(), junk))["ok"]
    assert not (await bring(visitor, "../x", b""))["ok"]
    with pytest.raises(Refusal, match="is no digest"):
        await visitor.start("k1", standin(), spec_folder="../x")
    assert list(home.glob("eg-distributed/*/f/*")) == []


async def test_a_delivery_that_is_cut_off_leaves_nothing(visitor: Visitor, home: Path) -> None:
    """The next one begins from the start."""
    digest, content = archive(a="x" * 1000)
    reader, writer = await visitor.link.open()
    writer.write(encode({"type": "folder", "digest": digest, "size": len(content)}))
    await asyncio.wait_for(read_message(reader), DEADLINE)
    writer.write(content[:100])
    writer.close()
    assert await asyncio.wait_for(reader.read(), DEADLINE) is not None
    assert (await bring(visitor, digest, content))["ok"] is True
    assert [path.name for path in home.glob("eg-distributed/*/f/*")] == [digest[:16]]


def kept(home: Path, name: str, age: float, size: int = 1) -> Path:
    """Make a folder that was used *age* seconds ago."""
    folder = home / "f" / (name * 16)
    folder.mkdir(parents=True)
    (folder / "a").write_bytes(b"x" * size)
    (folder / "a").chmod(0o400)
    then = time.time() - age
    os.utime(folder, (then, then))
    return folder


def test_unused_folders_go_by_age_and_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel uses stays, and what was just used; of the rest the longest unused go first."""
    monkeypatch.setattr(spec_folder, "BUDGET", 100)
    ancient = kept(tmp_path, "a", 40 * 86400)
    used = kept(tmp_path, "b", 40 * 86400, 1000)
    fresh = kept(tmp_path, "c", 60, 1000)
    newer, older = kept(tmp_path, "d", 2 * 86400, 60), kept(tmp_path, "e", 3 * 86400, 60)
    half = tmp_path / "f" / "0123.new"
    half.mkdir()
    os.utime(half, (1, 1))
    (tmp_path / "k" / "k1").mkdir(parents=True)
    (tmp_path / "k" / "k1" / LINK).symlink_to(used)
    SpecFolders(tmp_path).prune()
    assert {path for path in (ancient, used, fresh, newer, older, half) if path.exists()} == {used, fresh, newer}


def test_finding_a_folder_counts_as_use(tmp_path: Path) -> None:
    """A folder that starts still name does not grow old."""
    folder = tmp_path / "f" / ("a" * 16)
    folder.mkdir(parents=True)
    os.utime(folder, (1, 1))
    assert SpecFolders(tmp_path).find("a" * 64) == folder
    assert time.time() - folder.stat().st_mtime < 60
    with pytest.raises(FolderMissing):
        SpecFolders(tmp_path).find("b" * 64)
    with pytest.raises(StartError, match="is no digest"):
        SpecFolders(tmp_path).find("a/b")
    assert SpecFolders(tmp_path).find("") is None

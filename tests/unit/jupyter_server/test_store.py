"""Records of kernels on disk: written whole and private, read with suspicion."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from eg_distributed.jupyter_server.store import FORMAT, Newer, Record, Store


def record(kernel: str = "k-1", **more: object) -> Record:
    """A record of a kernel."""
    connection = {"transport": "ipc", "ip": "/tmp/x/c", "shell_port": 1, "key": "secret"}
    about = {"name": "remote", "spec": {"argv": ["python"]}, "host": "node1", "attempt": "a", "connection": connection}
    return Record.read({"kernel": kernel, **about, **more})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store in use."""
    made = Store(tmp_path / "one.d")
    made.open()
    made.describe({"root": "/home/me"})
    return made


def test_what_is_written_is_read_again(store: Store) -> None:
    """All of it, by this user alone, and the earliest first."""
    first, second = (
        record("z", env={"A": "ü\udcff"}, launch={"cwd": "/x"}),
        record("a", agent={"id": "i"}, launched=True),
    )
    store.write(first)
    store.write(second)
    assert store.read() == ([first, second], {})
    assert store.about() == {"root": "/home/me"}
    assert {path.stat().st_mode & 0o777 for path in store.folder.iterdir()} == {0o600}
    assert store.folder.stat().st_mode & 0o777 == 0o700
    store.drop("z")
    store.drop("z")
    assert store.read() == ([second], {})


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b"[" * 100_000, b"\xff" * 10, json.dumps({"kernel": "k-1"}).encode(),
        json.dumps({**record().write(), "kernel": "../x"}).encode(),
        json.dumps({**record().write(), "kernel": "other"}).encode(),
        json.dumps({**record().write(), "env": {"A": 1}}).encode(),
        json.dumps({**record().write(), "written": -1}).encode(),
        json.dumps({**record().write(), "format": "x"}).encode(),
        b" " * (2 << 20),
    ],
)  # fmt: skip
def test_a_broken_record(store: Store, content: bytes) -> None:
    """It is told of once, and put aside; the others are read."""
    store.write(record("fine"))
    (store.folder / "k-1.json").write_bytes(content)
    records, errors = store.read()
    assert [each.kernel for each in records] == ["fine"]
    assert list(errors) == ["k-1.json"]
    assert (store.folder / "k-1.broken").exists()
    assert store.read()[1] == {}


def test_a_record_of_a_later_release(store: Store) -> None:
    """It is left as it is for that release; so is what only somebody else may change."""
    path = store.folder / "k-1.json"
    path.write_text(json.dumps({"format": FORMAT + 1, "anything": True}))
    (store.folder / "link.json").symlink_to(path)
    records, errors = store.read()
    assert records == []
    assert isinstance(errors["k-1.json"], Newer)
    assert isinstance(errors["link.json"], OSError)
    assert path.exists()


def test_a_field_that_this_release_does_not_know(store: Store) -> None:
    """It is passed over: a later release with the same format may have written it."""
    (store.folder / "k-1.json").write_text(json.dumps({**record().write(), "new": 1}))
    assert store.read() == ([record()], {})


@pytest.mark.parametrize("kernel", ["", "../x", "a/b", ".hidden", "x" * 200, "server", "a\nb"])
def test_a_kernel_whose_id_is_no_file_name(store: Store, kernel: str) -> None:
    """It has no record: the id may be a client's."""
    with pytest.raises((OSError, ValueError)):
        store.write(record(kernel))
    assert sorted(path.name for path in store.folder.iterdir()) == ["server.json"]


def test_a_record_that_could_not_be_read_again(store: Store) -> None:
    """It is refused when it is written, too: else the kernel would be believed to be found again."""
    with pytest.raises(ValueError, match=r"Record.env"):
        store.write(record(env={}, launch={}).__class__(**{**vars(record()), "env": {"A": "x" * (1 << 18)}}))
    assert store.read() == ([], {})


def test_a_record_that_is_too_large(store: Store) -> None:
    """It is refused when it is written, and not when it is needed."""
    with pytest.raises(ValueError, match="at most"):
        store.write(record(env={str(number): "x" * 100_000 for number in range(20)}))


def test_a_kernel_that_another_server_has(tmp_path: Path, store: Store) -> None:
    """Its record is removed if it is ours, and left if the other server has written it since, or moved it."""
    store.write(record())
    store.drop_taken("k-1")
    assert store.read() == ([], {})
    store.write(record())
    twin = Store(store.folder)  # of a server of the same name on another machine, where locks do not reach
    twin.read()
    twin.write(record())
    store.drop_taken("k-1")
    assert len(store.read()[0]) == 1
    other = Store(tmp_path / "two.d")
    other.open()
    other.take(store, record())
    store.drop_taken("k-1")
    with pytest.raises(FileNotFoundError):
        Store(store.folder).take(store, record())
    assert [each.kernel for each in other.read()[0]] == ["k-1"]


def test_a_record_of_an_earlier_process_is_ours(store: Store) -> None:
    """Once it was read: that process has ended."""
    store.write(record())
    later = Store(store.folder)
    later.read()
    later.drop_taken("k-1")
    assert store.read() == ([], {})


def test_a_folder_that_others_may_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is made private, as records have keys of kernels in them, and keeps what it has: Kubernetes opens volumes to a group."""
    folder = tmp_path / "open.d"
    store = Store(folder)
    store.open()
    store.write(record())
    folder.chmod(0o2770)
    caplog.clear()
    Store(folder).open()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [each.kernel for each in Store(folder).read()[0]] == ["k-1"]
    assert "could be entered by others" in caplog.text
    caplog.clear()
    Store(folder).open()
    assert not caplog.text


def test_a_folder_that_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link and another user's folder are refused, and stay as they are."""
    (tmp_path / "private").mkdir(mode=0o755)
    (tmp_path / "link.d").symlink_to(tmp_path / "private")
    with pytest.raises(PermissionError, match="is a link"):
        Store(tmp_path / "link.d").open()
    user = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    with pytest.raises(PermissionError, match="not a folder of this user"):
        Store(tmp_path / "private").open()
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o755

import tarfile
from datetime import datetime, timezone
from io import BytesIO
from pathlib import Path

import pytest

from lab.drivers import checkout
from lab.drivers.docker import images
from lab.drivers.docker.engine import archive
from lab.drivers.docker.images import is_fresh
from lab.drivers.docker.recipe import Recipe, _index
from lab.progress import Silent


def recipe(**changes: object) -> Recipe:
    values: dict[str, object] = {"role": "node", "build_args": {"BASE": "b"}, "inputs": {"r.txt": b"1"}}
    return Recipe(**{**values, **changes})  # type: ignore[arg-type]


def test_a_tag_is_the_hash_of_what_goes_in() -> None:
    """The same inputs are the same tag; a change of any of them is another."""
    tag = recipe().tag
    assert recipe().tag == tag
    assert recipe(inputs={"r.txt": b"2"}).tag != tag
    assert recipe(inputs={"s.txt": b"1"}).tag != tag
    assert recipe(build_args={"BASE": "c"}).tag != tag
    assert recipe(late_inputs=(("wheel", b"x"),)).tag != tag
    assert recipe(role="gateway").tag.startswith("eglab/gateway:")


def test_content_never_moves_between_names() -> None:
    """Two files that swap bytes across their border are another digest."""
    assert checkout.digest([("a", b"bc")]) != checkout.digest([("ab", b"c")])
    assert checkout.digest([("a", b"1"), ("b", b"2")]) == checkout.digest([("b", b"2"), ("a", b"1")])


def test_what_running_python_leaves_behind_is_no_input(tmp_path: Path) -> None:
    """Byte code and hidden files change no tag."""
    (tmp_path / "module.py").write_text("x = 1")
    before = checkout.tree(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "module.pyc").write_bytes(b"\0")
    (tmp_path / ".swp").write_text("")
    assert checkout.tree(tmp_path) == before == [("module.py", b"x = 1")]


def test_equal_files_are_equal_archives() -> None:
    """Archives carry no times, so the engine's build cache sees the same context as yesterday."""
    files = {"a/b.txt": b"1", "a/c.txt": b"2"}
    assert archive(files) == archive(files)
    with tarfile.open(fileobj=BytesIO(archive(files, mode=0o600, uid=7))) as tar:
        assert tar.getnames() == ["a", "a/b.txt", "a/c.txt"]
        assert (tar.getmember("a/b.txt").mode, tar.getmember("a").uid) == (0o600, 7)


def test_only_older_images_are_removed() -> None:
    """An image of a minute ago may be what another `up` is about to use."""
    now = datetime(2026, 5, 1, 12, 0, tzinfo=timezone.utc)
    assert is_fresh("2026-05-01T11:59:01.123456789Z", now)
    assert not is_fresh("2026-05-01T11:30:00Z", now)
    assert not is_fresh("", now)


def test_images_of_another_checkout_are_kept_for_a_day() -> None:
    """`up` removes what is older; two checkouts on one machine don't make each other build."""
    now = datetime(2026, 5, 1, 12, 0, tzinfo=timezone.utc)
    assert is_fresh("2026-05-01T01:00:00Z", now, images.KEPT)
    assert not is_fresh("2026-04-30T11:00:00Z", now, images.KEPT)


@pytest.mark.parametrize(
    ("environment", "argument"),
    [
        ({}, ""),
        ({"UV_DEFAULT_INDEX": "https://a.test/simple", "PIP_INDEX_URL": "https://b.test"}, "https://a.test/simple"),
        ({"PIP_INDEX_URL": "https://b.test/simple"}, "https://b.test/simple"),
        ({"PIP_INDEX_URL": "https://me:secret@b.test/simple"}, ""),
    ],
)
def test_the_hosts_package_index_reaches_the_builds(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], argument: str
) -> None:
    """As a build argument, by the name that uv reads; an address with a password in it is left out, and said to be."""
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert _index(Silent()) == ({"UV_DEFAULT_INDEX": argument} if argument else {})


def test_packages_are_an_image_of_their_own_whatever_their_order() -> None:
    """The layer's tag is the hash of the node's image and the set of packages."""
    first, second = images.with_packages("eglab/node:1", ["b", "a"]), images.with_packages("eglab/node:1", ["a", "b"])
    assert first.tag == second.tag
    assert first.tag.startswith("eglab/node-packages:")
    assert images.with_packages("eglab/node:2", ["a", "b"]).tag != first.tag
    assert images.key(["b", "a"]) == "node a b"
    assert images.key([]) == "node"

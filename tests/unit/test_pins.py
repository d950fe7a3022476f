from pathlib import Path

import pytest

from scripts import pins

ONE, TWO, THREE = ("1" * 64, "2" * 64, "3" * 64)
LOCK = f"""\
version = 1

[[package]]
name = "one"
version = "1.0"
source = {{ registry = "x://index/simple" }}
sdist = {{ url = "x://index/one-1.0.tar.gz", hash = "sha256:{ONE}", size = 1 }}
wheels = [
    {{ url = "x://index/one-1.0-cp310-none-any.whl", hash = "sha256:{TWO}", size = 1 }},
    {{ url = "x://index/one-1.0-cp315-none-any.whl", hash = "sha256:{THREE}", size = 1 }},
]

[[package]]
name = "ours"
version = "0.1.0"
source = {{ editable = "." }}
"""
HASHES = {"one-1.0.tar.gz": ONE, "one-1.0-cp310-none-any.whl": TWO, "one-1.0-cp315-none-any.whl": THREE}
PYPROJECT = """\
[dependency-groups]
gateway = [
  "asked-for>=1",
  # pinned here by `nox -s lock`:
  "old==1",
]
node = [
  "other",
]

[tool.uv]
constraint-dependencies = [
  "old==1",
]
"""


def test_the_file_of_hashes_is_sha256sums_own(tmp_path: Path) -> None:
    """Hashes are written as sha256sum writes and checks them, and read back as they were."""
    assert pins.write({"b.whl": TWO, "a.whl": ONE}) == f"{ONE}  a.whl\n{TWO}  b.whl\n"
    assert pins.read(pins.write(HASHES)) == HASHES


def test_a_lock_of_pinned_files_stays_as_it_is() -> None:
    """Nothing is left out of a lock whose files are all pinned."""
    assert pins.pinned(LOCK, HASHES) == (LOCK, [])


def test_a_file_published_later_is_left_out() -> None:
    """A file that the index has got since is left out of the lock, and named; the rest stays letter by letter."""
    later = "one-1.0-cp315-none-any.whl"
    line = next(line for line in LOCK.splitlines(keepends=True) if later in line)
    earlier = {name: value for name, value in HASHES.items() if name != later}

    assert pins.pinned(LOCK, earlier) == (LOCK.replace(line, ""), [later])


def test_a_file_with_another_hash_is_refused() -> None:
    """A file that has the name of a pinned one and another content is an error that names it."""
    with pytest.raises(pins.Refused, match=r"other files than those pinned.*one-1\.0\.tar\.gz"):
        pins.pinned(LOCK, {**HASHES, "one-1.0.tar.gz": THREE})


def test_a_version_that_is_not_pinned_is_refused() -> None:
    """A package's version without a pinned file is an error that names it and the remedy."""
    with pytest.raises(pins.Refused, match=r"one 1\.0 is not pinned: run `nox -s lock`"):
        pins.pinned(LOCK, {"two-1.0.tar.gz": ONE})


def test_a_lock_without_hashes_is_refused() -> None:
    """An index that publishes no hashes cannot be held against the pinned ones, which is an error."""
    with pytest.raises(pins.Refused, match=r"no sha256 of one-1\.0\.tar\.gz"):
        pins.pinned(LOCK.replace(f', hash = "sha256:{ONE}"', ""), HASHES)


def test_check_rewrites_the_lock_only_for_files_published_later(tmp_path: Path) -> None:
    """`check` takes files that are not pinned out of uv.lock, and leaves a lock without such files alone."""
    lock = tmp_path / "uv.lock"
    lock.write_text(LOCK)
    (tmp_path / "pins.sha256").write_text(pins.write({name: HASHES[name] for name in list(HASHES)[:2]}))

    pins.check(tmp_path)
    shorter = lock.stat()
    pins.check(tmp_path)

    assert pins.files(lock.read_text()) == {name: HASHES[name] for name in list(HASHES)[:2]}
    assert lock.stat() == shorter


def test_one_version_everywhere_is_a_constraint() -> None:
    """A package that has one version in all groups is pinned by a constraint, without extras and markers."""
    exports = {"dev": "a[extra]==1\nb==2 ; sys_platform == 'win32'\n", "node": "a==1 ; python_full_version < '3.12'\n"}

    assert pins.versions(exports) == (["a==1", "b==2"], {"dev": [], "node": []})


def test_versions_for_pythons_are_constraints_that_leave_no_python_out() -> None:
    """Where Python's version decides, each version is pinned from the first Python that it is for up to the next version's."""
    dev = "a==1 ; python_full_version < '3.11'\na==2 ; python_full_version == '3.11.*'\na==3 ; python_full_version >= '3.12'\n"
    node = dev.replace("a==3 ; python_full_version >= '3.12'", "a==3 ; python_full_version == '3.12.*'")

    assert pins.versions({"dev": dev, "node": node})[0] == [
        "a==1; python_full_version < '3.11'",
        "a==2; python_full_version >= '3.11' and python_full_version < '3.12'",
        "a==3; python_full_version >= '3.12'",
    ]


def test_versions_that_differ_between_groups_are_pinned_in_the_groups() -> None:
    """A package of which groups have different versions is pinned in each, but for a group that includes another's pin."""
    exports = {"gateway": "a==1 ; python_full_version < '3.12'\n", "node": "a==2\n", "spark": "a==2\n"}

    assert pins.versions(exports) == (
        [],
        {"gateway": ["a==1; python_full_version < '3.12'"], "node": ["a==2"], "spark": []},
    )


def test_pins_take_the_place_of_the_pins_before() -> None:
    """Writing pins changes the list of constraints and the end of a group, and nothing else of pyproject.toml."""
    changed = pins.with_pins(PYPROJECT, ["new==2", "more==3"], {"gateway": ["new==3"], "node": []})

    group, constraints = PYPROJECT.replace('"old==1",', '"new==3",').split("\n[tool.uv]")
    assert changed == group + "\n[tool.uv]" + constraints.replace('"new==3",', '"new==2",\n  "more==3",')
    assert pins.with_pins(changed, ["old==1"], {"gateway": ["old==1"]}) == PYPROJECT


def test_a_group_without_a_place_for_pins_is_refused() -> None:
    """Pins for a group that has no comment to stand behind are an error that says what to write."""
    with pytest.raises(pins.Refused, match=r"group node .* no comment `# pinned here`.*new==3"):
        pins.with_pins(PYPROJECT, [], {"node": ["new==3"]})

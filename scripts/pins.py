"""Keep what uv.lock pins in files that name no package index, and hold uv.lock against them.

Each line of a uv.lock names the package index that its maker's uv reached, which a tracked file must not, and uv rewrites a
lock that names another index or none. So uv.lock is not tracked: uv makes it when it first needs it, and arrives at the pinned
versions because these files leave it no choice:

- `constraint-dependencies` in pyproject.toml has the version of each package, or those for each range of Pythons;
- a dependency group there has, behind a comment, the versions of those packages of which another group has others, because a
  constraint cannot say for which group it is;
- pins.sha256 has the hash of each file of these versions, in the format of sha256sum.

`check` compares uv.lock with pins.sha256 and fails if a file is not the one that was pinned. A file that was published later
(a wheel for a new Python) is taken out of uv.lock, so that only pinned files can be installed.

`renew` resolves again, without the pins but from uv.lock's versions, and writes the pins; what follows it goes to `uv lock`
(`--upgrade`, `--upgrade-package NAME`).

nox calls both; only the standard library, because `check` runs before anything is installed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORLDS: Mapping[str, Sequence[str]] = {
    "dev": ("--group", "dev"),
    "gateway": ("--group", "gateway", "--no-default-groups"),
    "node": ("--only-group", "node"),
    "plots": ("--only-group", "plots"),
    "spark": ("--only-group", "spark"),
    "lab-jupyterlab": ("--group", "lab-jupyterlab", "--no-default-groups"),
    "jupyterlab": ("--group", "jupyterlab", "--no-default-groups"),
    "server": ("--group", "server", "--no-default-groups"),
    "fuzz": ("--only-group", "fuzz"),
    "site": ("--group", "site", "--no-default-groups"),
    "release": ("--group", "release", "--no-default-groups"),
    "mutants": ("--group", "mutants", "--no-default-groups"),
}
"""How uv is asked for each group; one that includes another comes after it."""
INCLUDED = {"plots": "node", "spark": "node", "jupyterlab": "lab-jupyterlab"}
"""Which group's pins come along with a group."""

_FILE = re.compile(
    r'(?:url|path|filename) = "(?:[^"]*/)?(?P<name>[^"/]+)"(?:, hash = "sha256:(?P<hash>[0-9a-f]{64})")?'
)
_CONSTRAINTS = re.compile(r"(?<=^constraint-dependencies = \[\n).*?(?=^\]$)", re.MULTILINE | re.DOTALL)
_GROUP = r"^{name} = \[\n(?:  .*\n)*?  # pinned here .*\n(?P<pins>(?:  .*\n)*)(?=\]$)"


class Refused(Exception):
    """The lock is not what was pinned, or cannot be pinned."""


def files(lock: str) -> dict[str, str]:
    """Return the sha256 of each file that *lock*, the text of a uv.lock, names; raise Refused for a file without one."""
    found = {}
    for match in _FILE.finditer(lock):
        if match["hash"] is None:
            raise Refused(f"uv.lock has no sha256 of {match['name']}: the index that uv uses here publishes none")
        found[match["name"]] = match["hash"]
    return found


def read(text: str) -> dict[str, str]:
    """Return the sha256 of each file in the *text* of pins.sha256."""
    return {name: value for value, _, name in (line.partition("  ") for line in text.splitlines())}


def write(hashes: Mapping[str, str]) -> str:
    """Return the text of pins.sha256."""
    return "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))


def pinned(lock: str, hashes: Mapping[str, str]) -> tuple[str, list[str]]:
    """Return *lock* with pinned files only, and the names of the files that are left out.

    Raise Refused if a pinned file has another hash now, or if nothing is pinned of a package's version.
    """
    found = files(lock)
    changed = sorted(name for name, value in found.items() if hashes.get(name, value) != value)
    if changed:
        raise Refused(f"the index has other files than those pinned in pins.sha256: {', '.join(changed)}")
    later = sorted(found.keys() - hashes.keys())
    if later:
        blocks = re.split(r"(?=^\[\[package\]\]$)", lock, flags=re.MULTILINE)
        lock = "".join(_without(block, set(later)) for block in blocks)
    return lock, later


def _without(block: str, later: set[str]) -> str:
    """Return a package's *block* of the lock without the lines of the files *later*."""
    lines = block.splitlines(keepends=True)
    kept = [line for line in lines if not ((match := _FILE.search(line)) and match["name"] in later)]
    if len(kept) < len(lines) and not _FILE.search("".join(kept)):
        name, version = re.findall(r'^(?:name|version) = "(.*)"$', block, re.MULTILINE)[:2]
        raise Refused(f"{name} {version} is not pinned: run `nox -s lock` and commit the result")
    return "".join(kept)


def versions(exports: Mapping[str, str]) -> tuple[list[str], dict[str, list[str]]]:
    """Return the constraints, and the pins of each group, for what `uv export` printed for each group.

    A package that has the same versions in each group that it is in is a constraint: if there are several, Python's version
    decides. The others are pins of their groups.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for group, text in exports.items():
        for line in text.splitlines():
            requirement = re.sub(r"\[.*?\]", "", line.replace(" ;", ";"))
            found.setdefault(requirement.partition("==")[0], {}).setdefault(group, []).append(requirement)
    constraints: list[str] = []
    groups: dict[str, list[str]] = {group: [] for group in exports}
    for _, by_group in sorted(found.items()):
        if len({frozenset(_starts(pins)) for pins in by_group.values()}) == 1:
            constraints += _ranges(_starts(pin for pins in by_group.values() for pin in pins))
        else:
            for group, pins in by_group.items():
                groups[group] += [each for each in pins if each not in by_group.get(INCLUDED.get(group, ""), ())]
    return constraints, groups


def _starts(requirements: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Return the first Python that each pin (`NAME==VERSION`) of *requirements* is for; () if there is no first one."""
    found: dict[str, list[tuple[int, ...]]] = {}
    for requirement in requirements:
        pin, _, marker = requirement.partition(";")
        firsts = re.findall(r"python_full_version (?:>=|==) '([0-9.]+?)(?:\.\*)?'", marker)
        found.setdefault(pin, []).append(min((tuple(map(int, first.split("."))) for first in firsts), default=()))
    return {pin: min(firsts) for pin, firsts in found.items()}


def _ranges(starts: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return pins with markers, so that each Python has one: also those Pythons that have no use for the package today.

    uv resolves for ranges of Pythons that it chooses itself, and a constraint counts where it is for all of a range.
    """
    ordered = sorted(starts, key=starts.__getitem__)
    ends = [*(starts[pin] for pin in ordered[1:]), ()]
    result = []
    for place, (pin, end) in enumerate(zip(ordered, ends, strict=True)):
        bounds = [(">=", starts[pin])] * (place > 0) + [("<", end)] * bool(end)
        marker = " and ".join(f"python_full_version {sign} '{'.'.join(map(str, bound))}'" for sign, bound in bounds)
        result.append(f"{pin}; {marker}" if marker else pin)
    return result


def with_pins(pyproject: str, constraints: Sequence[str], groups: Mapping[str, Sequence[str]]) -> str:
    """Return *pyproject* with these pins instead of those that it has."""
    place = _CONSTRAINTS.search(pyproject)
    if place is None:
        raise Refused("pyproject.toml has no list `constraint-dependencies` of one line an item")
    pyproject = pyproject[: place.start()] + _lines(constraints) + pyproject[place.end() :]
    for group, pins in groups.items():
        place = re.search(_GROUP.format(name=group), pyproject, re.MULTILINE)
        if place is not None:
            pyproject = pyproject[: place.start("pins")] + _lines(pins) + pyproject[place.end("pins") :]
        elif pins:
            raise Refused(
                f"the group {group} of pyproject.toml has no comment `# pinned here`, to put below: {', '.join(pins)}"
            )
    return pyproject


def _lines(items: Iterable[str]) -> str:
    return "".join(f'  "{item}",\n' for item in items)


def check(root: Path = ROOT) -> None:
    """Hold uv.lock against pins.sha256; take files that are not pinned out of it."""
    path = root / "uv.lock"
    lock, later = pinned(path.read_text("utf-8"), read((root / "pins.sha256").read_text("utf-8")))
    if later:
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(lock, "utf-8")
        partial.replace(path)
        print(f"uv.lock: left out {len(later)} files that were published later: {', '.join(later[:5])}")


def renew(arguments: Sequence[str], root: Path = ROOT) -> None:
    """Resolve again, from uv.lock's versions, and write the pins into pyproject.toml and pins.sha256.

    In copies: uv has no other way to leave the pins out for once, and nothing is written until a resolution from the new
    pins alone, as everybody's first one is, has arrived at the same files.
    """
    path = root / "pyproject.toml"
    pyproject = path.read_text("utf-8")
    if not (root / "uv.lock").exists():
        _uv("lock", project=root)
    before = (root / "uv.lock").read_text("utf-8")
    with tempfile.TemporaryDirectory() as folder:
        copy = _copy(root, Path(folder), with_pins(pyproject, (), dict.fromkeys(WORLDS, ())))
        (copy / "uv.lock").write_text(before, "utf-8")
        _uv("lock", *arguments, project=copy)
        options = ("--quiet", "--frozen", "--no-header", "--no-annotate", "--no-hashes", "--no-emit-workspace")
        exports = {group: _uv("export", *options, *selection, project=copy) for group, selection in WORLDS.items()}
        wanted = files((copy / "uv.lock").read_text("utf-8"))
    pyproject = with_pins(pyproject, *versions(exports))
    with tempfile.TemporaryDirectory() as folder:
        copy = _copy(root, Path(folder), pyproject)
        _uv("lock", project=copy)
        lock = (copy / "uv.lock").read_text("utf-8")
    if differing := dict(files(lock).items() ^ wanted.items()):
        raise Refused(f"uv does not arrive at the versions that it is given: {', '.join(sorted(differing))}")
    path.write_text(pyproject, "utf-8")
    (root / "pins.sha256").write_text(write(wanted), "utf-8")
    (root / "uv.lock").write_text(lock, "utf-8")


def _copy(root: Path, folder: Path, pyproject: str) -> Path:
    """Put into *folder* what uv resolves from: *pyproject* and the other members of the workspace."""
    (folder / "pyproject.toml").write_text(pyproject, "utf-8")
    for member in root.glob("*/pyproject.toml"):
        (folder / member.parent.name).mkdir()
        (folder / member.parent.name / member.name).write_bytes(member.read_bytes())
    return folder


def _uv(*arguments: str, project: Path) -> str:
    command = ["uv", *arguments, "--project", str(project)]
    done = subprocess.run(command, cwd=project, env=_environment(), stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise Refused(f"uv {arguments[0]} failed (above)")
    return done.stdout


def _environment() -> dict[str, str]:
    """Return the environment without what makes uv use another project's environment or leave the lock alone."""
    return {name: value for name, value in os.environ.items() if name not in {"VIRTUAL_ENV", "UV_FROZEN", "UV_LOCKED"}}


def main(arguments: Sequence[str]) -> int:
    """Run `check` or `renew [options of uv lock]`; called by nox."""
    try:
        if arguments[:1] == ["renew"]:
            renew(arguments[1:])
        elif arguments == ["check"]:
            check()
        else:
            print("usage: python scripts/pins.py check | renew [options of uv lock]", file=sys.stderr)
            return 2
    except Refused as refused:
        print(refused, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

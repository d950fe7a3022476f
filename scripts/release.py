"""Build what is published, twice, and say what changed: `python scripts/release.py FOLDER [--without-frontend]`.

Wheels and sdists of the product and of the lab are built of what is committed, in two places and under two environments. If any
file differs, it depends on who builds it, and nothing is written. Beside them go a bill of materials (CycloneDX) and the
changelog's section. `nox -s release` calls this, and checks what it has built.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import uuid
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FRONT_END = Path("frontend", "labextension")
MEMBERS = ("pyproject.toml", "lab/pyproject.toml")
PUBLIC = "https://files.pythonhosted.org/"
_VERSION = re.compile(r'^version = "(.+)"$', re.MULTILINE)
_SEMVER = re.compile(r"\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)?")
SOURCES = ("package.json", "package-lock.json", "tsconfig.json", "schema", "src", "style")
"""What the front-end extension is built from, below `frontend`."""
SECONDS = 600


class Refused(Exception):
    """This cannot be released, for the reason that it names."""


def version(root: Path = ROOT) -> str:
    """Return the one version of product and lab; raise Refused if they differ, or if it is not MAJOR.MINOR.PATCH."""
    found = {member: _VERSION.findall((root / member).read_text("utf-8"))[0] for member in MEMBERS}
    if len(set(found.values())) > 1:
        raise Refused(f"the versions differ: {', '.join(f'{each} in {member}' for member, each in found.items())}")
    (only,) = set(found.values())
    if not _SEMVER.fullmatch(only):
        raise Refused(f"{only} is not a version like 1.2.3, or 1.2.3rc1 before a release")
    return str(only)


def notes(changelog: str, released: str) -> str:
    """Return the changelog's section of the version *released*, with its heading; raise Refused if there is none."""
    for section in re.split(r"(?=^## )", changelog, flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        if heading.split()[1] == released:
            if not body.strip():
                raise Refused(f"CHANGELOG.md says nothing under {heading!r}")
            return section.rstrip() + "\n"
    raise Refused(f"CHANGELOG.md has no section {released!r}")


def is_dated(section: str) -> bool:
    """Return True if the section's heading has the day of its release, `## 1.2.3 (2026-12-01)`."""
    return re.match(r"## \S+ \(\d{4}-\d\d-\d\d\)\n", section) is not None


def is_current(frontend: Path) -> bool:
    """Return True if the extension in the folder *frontend* has been built since its last source was written."""
    built = frontend / FRONT_END.name / "package.json"
    paths = [file for name in SOURCES for file in ((frontend / name), *(frontend / name).rglob("*")) if file.is_file()]
    return built.is_file() and built.stat().st_mtime >= max(file.stat().st_mtime for file in paths)


def run(*command: str, root: Path = ROOT, **environment: str) -> bytes:
    """Return what *command* prints; raise Refused if it fails."""
    env = {**os.environ, **environment}
    done = subprocess.run(command, cwd=root, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=SECONDS)
    if done.returncode:
        raise Refused(f"{' '.join(command[:2])} failed (above)")
    return done.stdout


def build(folder: Path, epoch: str, front_end: Path | None) -> None:
    """Build all wheels and sdists of what is committed into *folder*; raise Refused if two builds differ.

    The second one is made in a folder with another name and other permissions, in another time zone, with other hashes.
    """
    committed = run("git", "archive", "--format=tar", "HEAD")
    with tempfile.TemporaryDirectory() as place:
        outcomes = []
        for name, more in (("a", {}), ("another-name", {"TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7", "LC_ALL": "C"})):
            source, out = Path(place, name), Path(place, f"dist-{name}")
            with tarfile.open(fileobj=io.BytesIO(committed)) as archive:
                archive.extractall(source, filter="data")
            if front_end is not None:
                shutil.copytree(front_end, source / FRONT_END)
            if more:
                for path in source.rglob("*"):
                    path.chmod(path.stat().st_mode & 0o700)
            built = ("uv", "build", "--quiet", "--all-packages", f"--out-dir={out}")
            run(*built, root=source, SOURCE_DATE_EPOCH=epoch, **more)
            outcomes.append({each.name: hashes(each) for each in out.iterdir() if each.suffix in {".whl", ".gz"}})
        compare(*outcomes)
        for name in outcomes[0]:
            shutil.copy(Path(place, "dist-a", name), folder / name)


def hashes(file: Path) -> str:
    """Return the sha256 of *file*."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def compare(first: dict[str, str], second: dict[str, str]) -> None:
    """Raise Refused if two builds (names of files, and their hashes) differ, or have no wheel and sdist for each member."""
    if differing := sorted({name for name, _ in first.items() ^ second.items()}):
        raise Refused(f"two builds of the same commit differ in {', '.join(differing)}")
    if len(first) != 2 * len(MEMBERS):
        raise Refused(f"a wheel and an sdist of each of {', '.join(MEMBERS)} were to be built, not {sorted(first)}")


def bill(exported: dict[str, Any], epoch: str) -> dict[str, Any]:
    """Return uv's bill of materials without what depends on who made it: time, serial number, addresses of an own index."""
    made = datetime.fromtimestamp(int(epoch), timezone.utc).isoformat().replace("+00:00", "Z")
    exported = {**exported, "metadata": {**exported["metadata"], "timestamp": made}}
    for component in exported["components"]:
        references = [each for each in component.pop("externalReferences", ()) if each["url"].startswith(PUBLIC)]
        if references:
            component["externalReferences"] = references
    exported.pop("serialNumber", None)
    return {**exported, "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(exported, sort_keys=True)).urn}


def main(arguments: Sequence[str]) -> int:
    """Build a release into the folder that *arguments* name; called by nox."""
    without = "--without-frontend" in arguments
    folders = [each for each in arguments if not each.startswith("--")]
    if len(folders) != 1 or len(arguments) != 1 + without:
        print("usage: python scripts/release.py FOLDER [--without-frontend]", file=sys.stderr)
        return 2
    folder = Path(folders[0])
    front_end = None if without else ROOT / FRONT_END
    try:
        if front_end is not None and not (front_end / "package.json").is_file():
            raise Refused(
                "the front-end extension has not been built. Remedy: `uvx nox -s frontend`, or --without-frontend"
            )
        released = version()
        section = notes((ROOT / "CHANGELOG.md").read_text("utf-8"), released)
        epoch = run("git", "log", "-1", "--format=%ct").decode().strip()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        build(folder, epoch, front_end)
        (folder / f"changes-{released}.md").write_text(section, "utf-8")
        what = ("--package=eg_distributed", "--extra=server", "--no-default-groups", "--format=cyclonedx1.5")
        exported = json.loads(run("uv", "export", "--quiet", "--locked", *what))
        text = json.dumps(bill(exported, epoch), indent=2) + "\n"
        (folder / f"eg_distributed-{released}.cdx.json").write_text(text, "utf-8")
    except Refused as refused:
        print(f"not released: {refused}", file=sys.stderr)
        return 1
    for path in sorted(folder.iterdir()):
        print(f"{hashes(path)}  {path.name}")
    if run("git", "status", "--porcelain", "--untracked-files=no"):
        print("warning: what is not committed is not in it", file=sys.stderr)
    if not is_dated(section):
        print(f"warning: the changelog's {section.splitlines()[0]!r} has no date yet", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

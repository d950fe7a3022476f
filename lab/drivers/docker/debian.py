"""The Debian that the lab's images stand on: pulled where a registry answers, bootstrapped from packages elsewhere."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import docker
import docker.errors
import requests.exceptions

from lab.drivers.docker.engine import connect
from lab.errors import EnvironmentUnfit
from lab.names import LABEL
from lab.progress import Progress
from lab.state import cache_root

SUITE = "bookworm"
IMAGE = f"debian:{SUITE}-slim"
REPOSITORY = "eglab/debian"
RECIPE = f"1 {SUITE} minbase"
"""Changes when what we make of Debian changes; the tag is its hash."""

PULL_SECONDS = 15
"""Without a byte from the registry in this time we bootstrap. One that answers is given all the time it needs."""
BOOTSTRAP_SECONDS = 900.0
PACK_SECONDS = 300.0


def tag() -> str:
    """Return the full name of the Debian image."""
    return f"{REPOSITORY}:{hashlib.sha256(RECIPE.encode()).hexdigest()[:12]}"


def ensure(client: Any, progress: Progress) -> str:
    """Return the name of the Debian image, got now if it isn't there."""
    name = tag()
    try:
        client.images.get(name)
    except docker.errors.ImageNotFound:
        reason = _pull(name, progress)
        if reason:
            progress.note(f"no image registry ({reason}): Debian comes from its packages")
            _bootstrap(client, name, progress)
    return name


def _pull(name: str, progress: Progress) -> str:
    """Pull Debian and tag it *name*; return why not, or nothing."""
    progress.step(f"pulling {IMAGE}")
    repository, _, version = name.partition(":")
    try:
        client = connect(PULL_SECONDS)
        repository_pulled, _, suite = IMAGE.partition(":")
        for event in client.api.pull(repository_pulled, suite, stream=True, decode=True):
            if "error" in event:
                return str(event["error"]).rsplit(": ", 1)[-1]
            progress.detail(str(event.get("status", "")))
        client.images.get(IMAGE).tag(repository, version)
    except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
        return str(getattr(error, "explanation", None) or error).rsplit(": ", 1)[-1]
    return ""


def _bootstrap(client: Any, name: str, progress: Progress) -> None:
    progress.step(f"bootstrapping Debian {SUITE}")
    tool = shutil.which("debootstrap", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if tool is None or os.geteuid() != 0:
        raise EnvironmentUnfit(
            f"there is no {IMAGE} and no way to make one",
            cause="no image registry answers, and "
            + ("debootstrap is not installed" if tool is None else "debootstrap needs root"),
            remedy="`apt-get install debootstrap` and run `lab up` as root once, or `docker load` an image of "
            f"{IMAGE} and tag it {name}, or use `lab up --driver local`",
        )
    # A folder of our own instead of /tmp: debootstrap refuses file systems that are mounted nodev or noexec.
    cache = cache_root()
    cache.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=cache, prefix="debian-"))
    try:
        root, tarball = folder / "root", folder / "root.tar"
        _run([tool, "--variant=minbase", SUITE, str(root)], folder, BOOTSTRAP_SECONDS)
        pack = [
            "tar",
            "-C",
            str(root),
            "--numeric-owner",
            "--exclude=./var/cache/apt/archives/*.deb",
            "-cf",
            str(tarball),
            ".",
        ]
        _run(pack, folder, PACK_SECONDS)
        repository, _, version = name.partition(":")
        changes = [f"LABEL {LABEL}.image=debian", 'CMD ["/bin/bash"]']
        answer = client.api.import_image_from_file(str(tarball), repository=repository, tag=version, changes=changes)
        if "error" in answer:
            raise EnvironmentUnfit("the engine did not take the bootstrapped Debian", cause=answer.strip()[-300:])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(argv: list[str], folder: Path, seconds: float) -> None:
    """Run one step of the bootstrap, with its output in *folder*; raise EnvironmentUnfit with its last lines."""
    path = folder / "log"
    try:
        with path.open("w") as log:
            subprocess.run(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, timeout=seconds, check=True
            )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired, OSError) as error:
        last = "\n".join(path.read_text(errors="replace").splitlines()[-5:]) if path.exists() else ""
        ended = (
            f"it ended with exit code {error.returncode}"
            if isinstance(error, subprocess.CalledProcessError)
            else str(error)
        )
        raise EnvironmentUnfit(
            f"Debian {SUITE} could not be bootstrapped: {Path(argv[0]).name} failed",
            cause=f"{ended}\n{last}".strip(),
            remedy="see that Debian's package mirror can be reached from here, and that the disk has room (`lab doctor`)",
        ) from error

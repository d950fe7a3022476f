"""What images and environments are made from: the checkout, its lock, our wheel, and Enterprise Gateway's launcher."""

from __future__ import annotations

import hashlib
import os
import re
import ssl
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from uv import find_uv_bin

from lab import files
from lab.errors import EnvironmentUnfit, LabError
from lab.state import cache_root

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
"""The checkout. The lab is a tool of this repository and not published, so it always stands in one."""

UV_SECONDS = 600.0
_LAUNCHER = "etc/kernel-launchers/python/scripts/launch_ipykernel.py"


def uv_binary() -> Path:
    """Return the uv that the lab depends on; the same one goes into the images."""
    return Path(find_uv_bin())


def run_uv(*arguments: str, env: dict[str, str] | None = None) -> str:
    """Run uv and return its stdout; raise LabError with its last words.

    In the checkout, but for `uv pip`: its environments are not the checkout's, whose pins would count for them.
    """
    try:
        done = subprocess.run(
            [str(uv_binary()), *arguments],
            cwd="/" if arguments[0] == "pip" else ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=UV_SECONDS,
            check=False,
            # Where a proxy re-signs TLS only this machine's own bundle knows it, and uv brings another.
            env={"UV_SYSTEM_CERTS": "true", **os.environ, **(env or {})},
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"uv {arguments[0]} took longer than {UV_SECONDS:.0f} s") from error
    if done.returncode:
        full = "No space left" in done.stderr
        remedy = "make room, or set XDG_CACHE_HOME to a folder with room; `lab doctor` looks at it" if full else ""
        raise LabError(f"uv {' '.join(arguments[:2])} failed", cause=done.stderr.strip()[-800:], remedy=remedy)
    return done.stdout


@cache
def requirements(role: str) -> bytes:
    """Return the locked, hashed requirements of an image: `gateway` or `jupyterlab` with our own dependencies, `node` or `spark`.

    `kernel` is as much of the node's as kernels need.

    Exported from the lock instead of copying it: the environment's layer is built again only when its content changes.
    """
    _lock()
    selection = {
        "gateway": ("--group", "gateway", "--no-default-groups"),
        "jupyterlab": ("--group", "lab-jupyterlab", "--no-default-groups"),
        "kernel": ("--only-group", "node"),
        "node": ("--only-group", "plots"),
        "spark": ("--only-group", "spark"),
    }[role]
    text = run_uv("export", "--quiet", "--frozen", "--no-header", "--no-annotate", "--no-emit-workspace", *selection)
    return only_pinned(text, _pinned_hashes()).encode()


def only_pinned(requirements: str, hashes: frozenset[str]) -> str:
    """Return exported *requirements* with those of their files whose sha256 is one of *hashes*.

    An index may have more files of a version than when it was pinned; with them, the same versions would make another image.
    Raise LabError for a requirement of which no file is left: the index has something else than what was pinned.
    """
    kept = []
    for block in re.split(r"\n(?=\S)", requirements.strip()):
        requirement, *options = [line.strip() for line in block.split("\\\n")]
        pinned = [option for option in options if option.removeprefix("--hash=sha256:") in hashes]
        if not pinned:
            raise _not_pinned(requirement.partition(" ;")[0])
        kept.append(" \\\n    ".join((requirement, *pinned)) + "\n")
    return "".join(kept)


@cache
def _pinned_hashes() -> frozenset[str]:
    """Return the sha256 of each file that the checkout's pins.sha256 names."""
    _check()
    return frozenset(line.partition(" ")[0] for line in (ROOT / "pins.sha256").read_text("utf-8").splitlines())


def _not_pinned(what: str) -> LabError:
    return LabError(
        f"uv.lock has files of {what} that are not pinned",
        cause="either pyproject.toml has another version than pins.sha256, or the package index has other files",
        remedy="after a change of dependencies `uvx nox -s lock`; otherwise find out what the index has changed",
    )


@cache
def _lock() -> dict[str, Any]:
    """Return the content of uv.lock, which uv makes from the checkout's pins when it first needs it."""
    _check()
    path = ROOT / "uv.lock"
    if not path.exists():
        run_uv("lock", "--quiet")
    return tomllib.loads(path.read_text("utf-8"))


def _check() -> None:
    for name in ("pins.sha256", "images", "eg_distributed"):
        if not (ROOT / name).exists():
            raise EnvironmentUnfit(
                f"{ROOT} holds no {name}", cause="the lab runs from a checkout only", remedy="clone the repository"
            )


def digest(parts: Iterable[tuple[str, bytes]]) -> str:
    """Return 12 hex digits over named *parts*, whatever their order."""
    total = hashlib.sha256()
    for name, content in sorted(parts):
        total.update(f"{name}\0{len(content)}\0".encode())
        total.update(content)
    return total.hexdigest()[:12]


def tree(folder: Path) -> list[tuple[str, bytes]]:
    """Return the files below *folder* as (relative path, content), without what running Python leaves behind."""
    return [
        (path.relative_to(folder).as_posix(), path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    ]


def wheel_sources() -> list[tuple[str, bytes]]:
    """Return what our wheel is made of; its hash stands for the wheel without building it."""
    _check()
    alone = [(name, (ROOT / name).read_bytes()) for name in ("pyproject.toml", "hatch_build.py")]
    # Empty unless `nox -s frontend` has built it.
    front_end = [(f"labextension/{name}", content) for name, content in tree(ROOT / "frontend" / "labextension")]
    return [*alone, *tree(ROOT / "eg_distributed"), *front_end]


def build_wheel() -> tuple[str, bytes]:
    """Build the wheel from the checkout; return its file name and content."""
    with tempfile.TemporaryDirectory() as folder:
        run_uv("build", "--quiet", "--wheel", "--out-dir", folder, "--package", "eg_distributed")
        wheel = next(Path(folder).glob("eg_distributed-*.whl"))
        return wheel.name, wheel.read_bytes()


@cache
def ca_bundle() -> bytes:
    """Return the certificate authorities that this machine trusts, a corporate proxy's among them."""
    paths = ssl.get_default_verify_paths()
    named = [os.environ.get("SSL_CERT_FILE"), "/etc/ssl/certs/ca-certificates.crt", paths.cafile]
    for name in named:
        if name and Path(name).is_file():
            return Path(name).read_bytes()
    import certifi

    return Path(certifi.where()).read_bytes()


@cache
def launcher() -> bytes:
    """Return Enterprise Gateway's own Python launcher, out of the sdist that the lock names."""
    sha256, url = sdist(_lock())
    if sha256 not in _pinned_hashes():
        raise _not_pinned("jupyter_enterprise_gateway")
    kept = cache_root() / "downloads" / f"{sha256}.tar.gz"
    content = kept.read_bytes() if kept.exists() else b""
    if hashlib.sha256(content).hexdigest() != sha256:
        content = _download(url)
        if hashlib.sha256(content).hexdigest() != sha256:
            raise LabError(f"{url} is not what the lock says", cause="its sha256 differs")
        kept.parent.mkdir(parents=True, exist_ok=True)
        files.write(kept, content, files.SHARED)
    with tarfile.open(fileobj=BytesIO(content)) as tar:
        member = next(name for name in tar.getnames() if name.endswith(_LAUNCHER))
        file = tar.extractfile(member)
        assert file is not None
        return file.read()


def sdist(lock: dict[str, Any]) -> tuple[str, str]:
    """Return sha256 and address of Enterprise Gateway's sdist in the content of a uv.lock; raise LabError without one."""
    for package in lock.get("package", ()):
        if package["name"] == "jupyter-enterprise-gateway" and {"hash", "url"} <= package.get("sdist", {}).keys():
            return package["sdist"]["hash"].removeprefix("sha256:"), package["sdist"]["url"]
    raise LabError("uv.lock names no sdist of jupyter_enterprise_gateway", remedy="`uv lock`")


def _download(url: str) -> bytes:
    import httpx

    context = ssl.create_default_context(cadata=ca_bundle().decode("utf-8", "ignore"))
    try:
        answer = httpx.get(url, follow_redirects=True, timeout=60, verify=context)
        answer.raise_for_status()
    except httpx.HTTPError as error:
        raise EnvironmentUnfit(
            f"{url} can't be had", cause=str(error), remedy="see that this machine reaches its package index"
        ) from error
    return answer.content

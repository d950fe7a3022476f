"""The connection to the container engine, and the few calls that docker-py makes clumsy."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

import docker
import docker.errors
import docker.tls
import requests.exceptions

from lab.errors import EnvironmentUnfit

TIMEOUT = 120
"""Seconds for one call to the engine; creating a container on a busy disk takes seconds, never minutes."""

DEFAULT = "unix:///var/run/docker.sock"
"""Where an engine is if nothing else is said."""

PING_SECONDS = 10
"""How long an engine may take for its first answer: one that hangs is as good as none, and every verb would wait for it."""


@dataclass(frozen=True)
class Address:
    """Where an engine is asked for, and who says so."""

    url: str
    source: str
    """In words, for people who wonder why this one."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """More for docker-py; empty: it finds the engine by itself."""

    def __str__(self) -> str:
        return f"{self.url} ({self.source})"

    @property
    def socket(self) -> Path | None:
        """The path of a UNIX socket; None for an engine that is reached otherwise."""
        return Path(self.url.removeprefix("unix://")) if self.url.startswith("unix://") else None


def address() -> Address:
    """Return where the engine is, as the docker CLI has it: DOCKER_HOST, then DOCKER_CONTEXT, then the current context.

    Raises EnvironmentUnfit for a context that there is not: another engine than the one that was meant would be used. docker-py
    knows neither DOCKER_CONTEXT nor contexts of a folder without a config.json, so the few files are read here.
    """
    if host := os.environ.get("DOCKER_HOST"):
        return Address(host if "://" in host else f"tcp://{host}", "DOCKER_HOST")
    folder = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    name, source = os.environ.get("DOCKER_CONTEXT", ""), "DOCKER_CONTEXT"
    if not name:
        name, source = _current_context(folder / "config.json"), f"the current context in {folder / 'config.json'}"
    if name in {"", "default"}:
        return Address(DEFAULT, "the default" if not name else f"the context default, by {source}")
    identity = hashlib.sha256(name.encode()).hexdigest()
    meta = folder / "contexts" / "meta" / identity / "meta.json"
    try:
        endpoint = json.loads(meta.read_bytes())["Endpoints"]["docker"]
        url = str(endpoint.get("Host") or DEFAULT)
        skips_verification = bool(endpoint.get("SkipTLSVerify"))
    except FileNotFoundError:
        raise _no_context(name, source, f"there is no {meta}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _no_context(name, source, f"{meta} is not readable: {error!r}") from error
    settings: dict[str, Any] = {"base_url": url}
    certificates = folder / "contexts" / "tls" / identity / "docker"
    if certificates.is_dir():
        settings["tls"] = _tls(certificates, verify=not skips_verification)
    if url.startswith("ssh://"):
        settings["use_ssh_client"] = True
    return Address(url, f"the context {name}, by {source}", settings)


def _current_context(config: Path) -> str:
    """Return the name in docker's *config*; "" where it names none or cannot be read, which the CLI takes for none as well."""
    try:
        found = json.loads(config.read_bytes())
        return str(found.get("currentContext") or "")
    except (OSError, ValueError, AttributeError):
        return ""


def _no_context(name: str, source: str, cause: str) -> EnvironmentUnfit:
    return EnvironmentUnfit(
        f"docker's context {name!r} cannot be used",
        cause=f"{source} names it, and {cause}",
        remedy="`docker context ls` shows those that there are; correct DOCKER_CONTEXT, or `docker context use NAME`",
    )


def _tls(folder: Path, *, verify: bool) -> Any:
    """Return what docker-py wants to know of a context's certificates in *folder*."""
    certificate, key, authority = (folder / name for name in ("cert.pem", "key.pem", "ca.pem"))
    return docker.tls.TLSConfig(
        client_cert=(str(certificate), str(key)) if certificate.exists() and key.exists() else None,
        ca_cert=str(authority) if authority.exists() else None,
        verify=verify,
    )


def connect(timeout: int = TIMEOUT) -> Any:
    """Return a client of the engine at `address`; raise EnvironmentUnfit.

    *timeout* is for each call, in seconds; for a stream it is the time without a byte.
    """
    found = address()
    try:
        first = min(timeout, PING_SECONDS)
        if found.settings:
            client = docker.DockerClient(timeout=first, version="auto", **found.settings)
        else:
            client = docker.from_env(timeout=first, version="auto")
        client.ping()
        client.api.timeout = timeout
    except (docker.errors.DockerException, requests.exceptions.RequestException, OSError) as error:
        raise EnvironmentUnfit(
            "no container engine answers",
            cause=f"{found}: {error}",
            remedy="start one (dockerd, Docker Desktop, podman's docker socket) and see that `docker version` works "
            "for this user, or use the driver that needs none: `lab up --driver local`",
        ) from error
    return client


def security(client: Any) -> set[str]:
    """Return what the engine protects its machine by (`rootless`, `userns`, `selinux`, `seccomp` …), as it says itself."""
    options = client.info().get("SecurityOptions") or []
    return {str(option).partition(",")[0].removeprefix("name=") for option in options}


def engine_id(client: Any) -> str:
    """Return what tells this engine from others (it keeps it over restarts); empty where it has nothing of that kind."""
    return str(client.info().get("ID") or "")


def archive(files: Mapping[str, bytes], *, mode: int = 0o644, uid: int = 0, gid: int = 0) -> bytes:
    """Return a tar of *files* (path: content) and their folders; times are fixed, so equal content is equal bytes."""
    buffer = io.BytesIO()
    write_archive(buffer, files, mode=mode, uid=uid, gid=gid)
    return buffer.getvalue()


def write_archive(
    target: BinaryIO, files: Mapping[str, bytes | Path], *, mode: int = 0o644, uid: int = 0, gid: int = 0
) -> None:
    """Write the tar of `archive` to *target*; a content may be a file of this machine, which is never in memory as a whole."""
    folders: set[str] = set()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for path, content in files.items():
            parts = path.split("/")[:-1]
            for depth in range(1, len(parts) + 1):
                folder = "/".join(parts[:depth])
                if folder not in folders:
                    folders.add(folder)
                    info = tarfile.TarInfo(folder)
                    info.type, info.mode, info.uid, info.gid = tarfile.DIRTYPE, 0o755, uid, gid
                    tar.addfile(info)
            info = tarfile.TarInfo(path)
            info.mode, info.uid, info.gid = mode, uid, gid
            if isinstance(content, Path):
                info.size = content.stat().st_size
                with content.open("rb") as file:
                    tar.addfile(info, file)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def post(api: Any, path: str, data: Mapping[str, Any], *, stream: bool = False) -> Any:
    """Ask the engine for what the low-level client *api* has no method for; return requests' answer, whatever its status.

    The only place that uses docker-py's private calls. Its public `post` is plain requests': it would lack the headers that a
    user's docker configuration (HttpHeaders) gives to every call.
    """
    return api._post_json(api._url(path), data=dict(data), stream=stream)


def put_files(
    container: Any, folder: str, files: Mapping[str, bytes], *, mode: int = 0o644, uid: int = 0, gid: int = 0
) -> None:
    """Write *files* below *folder* of *container*, which may be running or not. The folder has to exist."""
    container.put_archive(folder, archive(files, mode=mode, uid=uid, gid=gid))


def remove_container(container: Any) -> None:
    """Remove *container* with its anonymous volumes; fine if it is gone, and patient if the engine is removing it."""
    deadline = time.monotonic() + 30
    while True:
        try:
            container.remove(force=True, v=True)
        except docker.errors.NotFound:
            return
        except docker.errors.APIError as error:
            # 409: a removal is in progress, begun by somebody else.
            if error.status_code != requests.codes.conflict or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def unix_time(created: Any) -> float:
    """Return the engine's time stamp (UTC, nanoseconds; or a number) as UNIX seconds, 0 if it is none."""
    if isinstance(created, int | float):
        return float(created)
    try:
        return datetime.strptime(str(created)[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc).timestamp()
    except ValueError:
        return 0.0

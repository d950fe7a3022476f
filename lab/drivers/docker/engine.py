"""The connection to the container engine, and the few calls that docker-py makes clumsy."""

from __future__ import annotations

import io
import os
import tarfile
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

import docker
import docker.errors
import requests.exceptions
from docker.context import ContextAPI

from lab.errors import EnvironmentUnfit

TIMEOUT = 120
"""Seconds for one call to the engine; creating a container on a busy disk takes seconds, never minutes."""

PING_SECONDS = 10
"""How long an engine may take for its first answer: one that hangs is as good as none, and every verb would wait for it."""


def connect(timeout: int = TIMEOUT) -> Any:
    """Return a client of the engine that DOCKER_HOST or the docker CLI's context names; raise EnvironmentUnfit.

    *timeout* is for each call, in seconds; for a stream it is the time without a byte.
    """
    arguments: dict[str, Any] = {}
    if not os.environ.get("DOCKER_HOST"):
        try:
            context = ContextAPI.get_current_context()
        except (docker.errors.DockerException, OSError, ValueError):
            context = None
        # Engines in a virtual machine (on a Mac, say) are known by their context only.
        if context is not None and context.name != "default" and context.Host:
            arguments["base_url"] = context.Host
    try:
        first = min(timeout, PING_SECONDS)
        client = docker.DockerClient(timeout=first, version="auto", **arguments) if arguments else None
        client = client or docker.from_env(timeout=first, version="auto")
        client.ping()
        client.api.timeout = timeout
    except (docker.errors.DockerException, requests.exceptions.RequestException, OSError) as error:
        raise EnvironmentUnfit(
            "no container engine answers",
            cause=str(error),
            remedy="start one (dockerd, Docker Desktop, podman's docker socket) and see that `docker version` works "
            "for this user, or use the driver that needs none: `lab up --driver local`",
        ) from error
    return client


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

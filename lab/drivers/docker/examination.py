"""What `lab doctor` asks of the engine: does it answer, may we ask it, is there room, is there a subnet, are the images there."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import docker.errors
import requests.exceptions

from lab.drivers import artefacts
from lab.drivers.docker import debian, engine, images, network
from lab.drivers.docker.engine import DEFAULT, Address
from lab.drivers.findings import Finding
from lab.drivers.probing import megabytes_free, tool
from lab.errors import EnvironmentUnfit, LabError

TESTED_API: Final = (1, 41)
"""What the lab is tested with (Docker Engine 20.10); older engines may do."""
IMAGES_MEGABYTES: Final = 4000
"""What the images need while they are built, beside what they are."""


def connect() -> tuple[Any | None, Finding]:
    """Return a client, or None, and what was found; never raises."""
    try:
        where = engine.address()
    except EnvironmentUnfit as error:
        return None, Finding("engine", "missing", f"{error.what}: {error.cause}", error.remedy)
    try:
        client = engine.connect(10)
        told, info = client.version(), client.info()
    except EnvironmentUnfit as error:
        return None, _unreachable(error.cause, where)
    except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
        return None, _unreachable(str(error), where)
    found = (
        f"{_product(told)} {told.get('Version')} (API {told.get('ApiVersion')}), "
        f"{info.get('Driver')}, cgroup v{info.get('CgroupVersion', '1')}, {info.get('NCPU')} CPUs, at {where}"
    )
    return client, Finding("engine", "ok", found)


def _product(told: dict[str, Any]) -> str:
    components = told.get("Components") or [{}]
    return str(components[0].get("Name") or "engine")


def _unreachable(cause: str, where: Address) -> Finding:
    """Say why no engine answers at *where*: there is none, it is down, or this user may not ask it."""
    path = where.socket
    elsewhere = "" if where.url == DEFAULT else f", or see that {where.source} names the right engine"
    if path is None:
        found = f"{where} does not answer: {cause[-160:]}"
        remedy = f"see that {where.source} names the right engine, and that it runs"
    elif not path.exists():
        installed = tool("dockerd") or tool("podman")
        found = f"there is no {path} ({where.source})" + (f", though {installed} is installed" if installed else "")
        remedy = (
            "start the engine (`systemctl start docker`, Docker Desktop)" if installed else "install Docker or podman"
        )
        remedy += f"{elsewhere}; or use the driver that needs none: `lab up --driver local`"
    elif not stat.S_ISSOCK(path.stat().st_mode):
        found, remedy = f"{path} is no socket ({where.source})", f"see that {where.source} names the right engine"
    elif not os.access(path, os.R_OK | os.W_OK):
        found = f"this user may not use {path} ({where.source})"
        remedy = "`sudo usermod -aG docker $USER` and log in anew, or rootless docker; or `lab up --driver local`"
    else:
        found = f"{path} ({where.source}) is there, but nothing answers: {cause[-160:]}"
        remedy = f"start the engine (`systemctl start docker`){elsewhere}; or `lab up --driver local`"
    return Finding("engine", "missing", found, remedy)


def checks() -> Iterator[Finding]:
    """Yield what is found of the engine, and of what can be asked of one that answers."""
    client, found = connect()
    yield found
    if client is None:
        return
    yield _api(client)
    yield _security(client)
    yield _disk(client)
    yield _subnet(client)
    yield _images(client)


def _api(client: Any) -> Finding:
    version = str(client.version().get("ApiVersion", "0.0"))
    if tuple(int(part) for part in version.split(".") if part.isdigit()) < TESTED_API:
        tested = ".".join(map(str, TESTED_API))
        return Finding(
            "engine API",
            "warning",
            f"{version}; the lab is tested with {tested}",
            "update the engine",
        )
    return Finding("engine API", "ok", version)


def _security(client: Any) -> Finding:
    """Say what of the engine's protection machines may notice."""
    there = engine.security(client)
    words = {"rootless": "rootless", "userns": "userns-remap", "selinux": "SELinux"}
    found = ", ".join(f"{word}: {'yes' if name in there else 'no'}" for name, word in words.items())
    if "rootless" in there:
        remedy = (
            "limits need cgroup v2, its controllers delegated to this user (`systemctl --user show -p "
            "DelegateControllers`); machines have this user's limit of open files"
        )
        return Finding("engine security", "warning", found, remedy)
    return Finding("engine security", "ok", found)


def _disk(client: Any) -> Finding:
    root = Path(str(client.info().get("DockerRootDir", "")))
    if not root.is_dir():
        return Finding("engine disk", "unknown", f"{root} is not on this machine", "`docker system df`")
    free = megabytes_free(root)
    remedy = "`lab images prune`, `lab gc`, `docker system prune`"
    if free < IMAGES_MEGABYTES // 8:
        return Finding("engine disk", "missing", f"{free} MB free in {root}", remedy)
    if free < IMAGES_MEGABYTES:
        found = f"{free} MB free in {root}; building images takes {IMAGES_MEGABYTES} MB"
        return Finding("engine disk", "warning", found, remedy)
    return Finding("engine disk", "ok", f"{free} MB free in {root}")


def _subnet(client: Any) -> Finding:
    taken, routed = network.taken_by_engine(client.networks.list()), network.own_routes()
    try:
        subnet = network.choose("lab", taken, routed, network.pools())
    except LabError as error:
        return Finding("subnet", "missing", error.cause or error.what, error.remedy)
    covering = sorted(owner for owner, net in routed.items() if subnet.overlaps(net))
    if covering:
        found = f"{subnet} would be taken from {', '.join(covering)}: what is there is out of reach while a lab is"
        remedy = f"name a pool that nothing leads to, by {network.POOL_VARIABLE} or `pool` in lab.toml"
        return Finding("subnet", "warning", found, remedy)
    return Finding("subnet", "ok", f"{subnet} is free")


def _images(client: Any) -> Finding:
    def there(tag: str) -> bool:
        try:
            client.images.get(tag)
        except docker.errors.ImageNotFound:
            return False
        return True

    try:
        root = images.base(debian.tag())
        missing = [each.role for each in (root, images.node(root.tag), images.gateway(root.tag)) if not there(each.tag)]
    except (LabError, OSError) as error:
        return Finding("images", "warning", f"can't tell: {str(error)[:200]}", "see `checkout` and `uv`")
    if not missing:
        return Finding("images", "ok", "built")
    found = f"to be built: {', '.join(missing)} (minutes the first time, then seconds)"
    if there(debian.tag()):
        return Finding("images", "ok", found)
    if os.geteuid() == 0 and tool("debootstrap"):
        return Finding("images", "ok", f"{found}; Debian is pulled, or bootstrapped if no registry answers")
    remedy = (
        "nothing if the engine reaches an image registry; else `lab images load FILE`, or debootstrap as root, once"
    )
    return Finding("images", "unknown", f"{found}; {debian.IMAGE} has to be pulled", remedy)


def clusters() -> Iterator[Finding]:
    """Say what `--with` would have to fetch; never a warning, since plain labs need none of it."""
    name = "Spark and YARN"
    try:
        kept = {"Spark": artefacts.python_archive(), "Hadoop's jars": artefacts.hadoop_archive()}
    except LabError as error:
        yield Finding(name, "unknown", str(error), "mend the checkout")
        return
    lacking = [what for what, path in kept.items() if not path.exists()]
    if lacking:
        yield Finding(name, "ok", f"the first `--with` fetches {' and '.join(lacking)}, 400 MB")
    else:
        yield Finding(name, "ok", f"what they need is in {artefacts.folder()}")

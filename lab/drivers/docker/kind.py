"""The docker driver as the choice among drivers knows it. Loads nothing of docker-py before it is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from lab.drivers.contract import Driver, DriverKind
from lab.drivers.docker.capabilities import CAPABILITIES
from lab.drivers.findings import Finding
from lab.drivers.found import FoundLab
from lab.errors import EnvironmentUnfit
from lab.state import StateFolder


def _make(name: str, folder: StateFolder, _: str) -> Driver:
    from lab.drivers.docker.driver import DockerDriver

    return DockerDriver(name, folder)


def _find() -> Iterable[FoundLab]:
    from lab.drivers.docker.finding import find_labs

    return find_labs()


def _unseen() -> str:
    from lab.drivers.docker.finding import unseen

    return unseen()


def _sees(folder: StateFolder) -> bool:
    from lab.drivers.docker.engine import connect
    from lab.drivers.docker.finding import is_here

    return is_here(folder, connect())


def _engine() -> Iterable[Finding]:
    from lab.drivers.docker.examination import checks

    return checks()


def _kernel() -> Iterable[Finding]:
    from lab.drivers.docker.kernel import checks

    return checks()


def _clusters() -> Iterable[Finding]:
    from lab.drivers.docker.examination import clusters

    return clusters()


def _errors() -> tuple[type[Exception], ...]:
    import docker.errors
    import requests.exceptions

    return docker.errors.DockerException, requests.exceptions.RequestException


def _versions() -> Mapping[str, str | None]:
    from lab.drivers.docker.engine import connect

    try:
        told = connect(10).version()
    except EnvironmentUnfit:
        told = {}
    return {"engine": told.get("Version"), "engine_api": told.get("ApiVersion")}


KIND: Final = DriverKind(
    name="docker",
    capabilities=CAPABILITIES,
    make=_make,
    find=_find,
    unseen=_unseen,
    sees=_sees,
    absence="no container engine answers",
    checks={"engine": _engine, "kernel": _kernel, "Spark and YARN": _clusters},
    errors=_errors,
    versions=_versions,
)

"""The docker driver as the choice among drivers knows it. Loads nothing of docker-py before it is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from lab.drivers.contract import Driver, DriverKind
from lab.drivers.docker.capabilities import CAPABILITIES
from lab.drivers.found import FoundLab
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


KIND: Final = DriverKind(
    name="docker",
    capabilities=CAPABILITIES,
    make=_make,
    find=_find,
    unseen=_unseen,
    sees=_sees,
    absence="no container engine answers",
)

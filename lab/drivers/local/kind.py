"""The local driver as the choice among drivers knows it. Loads nothing of the driver before it is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from lab.drivers.contract import Driver, DriverKind
from lab.drivers.findings import Finding
from lab.drivers.found import FoundLab, Stray
from lab.drivers.local.capabilities import CAPABILITIES
from lab.state import StateFolder


def _make(name: str, folder: StateFolder, sshd: str) -> Driver:
    from lab.drivers.local.driver import LocalDriver

    return LocalDriver(name, folder, sshd)


def _find() -> Iterable[FoundLab]:
    from lab.drivers.local.finding import find_labs

    return find_labs()


def _strays() -> Iterable[Stray]:
    from lab.drivers.local.finding import strays

    return strays()


def _checks() -> Iterable[Finding]:
    from lab.drivers.local.examination import checks

    return checks()


KIND: Final = DriverKind(
    name="local",
    capabilities=CAPABILITIES,
    make=_make,
    find=_find,
    strays=_strays,
    is_private=True,
    checks={"local nodes": _checks},
    fallback="this lab is local, its nodes are processes on loopback ports",
)

"""Kernel.json contents that tests add to a gateway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from eg_distributed.kernelspecs import for_every_client
from lab import Gateway
from lab.kernelspecs import OURS
from lab.testing.session import kernelspecs_of

SPECS = pytest.mark.parametrize("spec", ["python_distributed", "python_distributed_eg"])
"""A plain kernelspec, and Enterprise Gateway's own launcher, unchanged."""


def kernelspec(
    *,
    argv: Sequence[str],
    env: Mapping[str, str] | None = None,
    language: str = "python",
    **config: Any,
) -> dict[str, Any]:
    """Return a kernelspec of ours; *config* is the process proxy's (`remote_hosts`, `authorized_users`…)."""
    return {
        "display_name": "a test's",
        "language": language,
        "metadata": {"process_proxy": {"class_name": OURS, "config": config}},
        "argv": list(argv),
        "env": dict(env or {}),
    }


def plain(gateway: Gateway, *, env: Mapping[str, str] | None = None, **config: Any) -> dict[str, Any]:
    """Return a kernelspec of a Python kernel as *gateway*'s nodes have it, and as `kernelspecs install` would leave it."""
    return for_every_client(kernelspec(argv=argv_of(gateway, "python_distributed"), env=env, **config))


def argv_of(gateway: Gateway, name: str) -> list[str]:
    """Return the argv of a kernelspec that *gateway* offers."""
    return list(kernelspecs_of(gateway)[name]["argv"])


def script(text: str) -> tuple[str, ...]:
    """Return the argv of a kernel that is a shell script: for those that never become one."""
    return ("/bin/sh", "-c", text, "{connection_file}")

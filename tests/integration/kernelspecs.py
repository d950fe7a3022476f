"""Kernel.json contents that tests add to a gateway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lab.kernelspecs import KERNEL_PYTHON, OURS

PLAIN = (KERNEL_PYTHON, "-m", "ipykernel_launcher", "-f", "{connection_file}")


def kernelspec(
    *,
    argv: Sequence[str] = PLAIN,
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


def script(text: str) -> tuple[str, ...]:
    """Return the argv of a kernel that is a shell script: for those that never become one."""
    return ("/bin/sh", "-c", text, "{connection_file}")

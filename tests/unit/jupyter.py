"""Kernelspecs and sessions as Jupyter's kernel managers have them; here without Jupyter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

ARGV = ["python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"]


@dataclass
class Spec:
    """A kernelspec, as Jupyter reads it."""

    argv: list[str] = field(default_factory=lambda: list(ARGV))
    env: dict[str, Any] | None = field(default_factory=dict)
    language: str | None = "python"
    resource_dir: str = "/kernels/mine"


@dataclass
class Signing:
    """What signs messages."""

    key: bytes = b"secret"
    signature_scheme: str = "hmac-sha256"

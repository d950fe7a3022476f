"""Kernelspecs of Enterprise Gateway's that start Spark by its own `run.sh`: recognised, and started by our launcher instead.

Theirs fail on what is current: the Python one on PySpark 3.3 and later, the R one on Python 3.12 and later. They also need the
kernelspec's folder on every node, and their `run.sh` evaluates a client's text in a shell. What somebody has changed is
started as it is.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from . import kernelspecs

log = logging.getLogger(__name__)

_OWN: Final = {
    "bin/run.sh": (
        "9401c08caf3add5a d3dade8295a1a82a 1b5896431cd61a46 c23d99f8ac36d653 fb0dce43bc114d21 2f4c4794b93fbc22 417a053a0676323d"
    ),
    "scripts/launch_ipykernel.py": (
        "0ca158d4325a74a0 3cf11988c8b8f924 5699ba8937ea6ee8 829385c53b6aaff3 8618e7e2b366c310 8aa68abdf11888e5 "
        "904d0c4b5cc594c2 92f3702a4f4da2b9 9821cd43d7a621f1 a96d392b077a2ce1 aa4d28191d0a6b89 bb32a8fbf12561a1 "
        "c1b0b0518ff48b8c d4d8df3f6a6fb803 e3f08343ff406756 ea6de3d22c1ca95c"
    ),
    "scripts/launch_IRkernel.R": (
        "5b9fc5eebb11d200 793e4190b18d0ba9 b9805aac7923512b bbefa6ee5bae49d9 bf3d148be12614f9 cdae73e07ba7157e "
        "cf24821b9f663ed2 e1cc871998a84069 f30bbee1b8ef2d34"
    ),
    "scripts/server_listener.py": (
        "0fc435794ac58024 2eb335f28cf955a3 2fcb6596841c9252 3b5b36c69b1c0e93 3f948df88cff21dd d11edbf4c4e56cef"
    ),
}
"""Beginnings of the SHA-256 of Enterprise Gateway's own files, as in all its releases up to 3.3.0."""
_THEIRS: Final = ("kernel-id", "response-address", "public-key", "port-range")
_MODE: Final = "RemoteProcessProxy.spark-context-initialization-mode"
_LANGUAGES: Final = {"python": "python", "scala": "scala", "r": "R"}


@dataclass(frozen=True)
class Replacement:
    """What takes the place of a kernelspec's argv and of its process proxy's config."""

    argv: list[str]
    config: dict[str, Any]
    env: dict[str, str]
    """More for the kernelspec's env."""


def replacement(
    argv: Sequence[str], language: str, config: Mapping[str, Any], resource_dir: str, kernel_name: str
) -> Replacement | None:
    """Return what to start in place of *argv*, or None if it is to be started as it is; called by an adapter.

    It is theirs if it runs `bin/run.sh` with `{response_address}`, and none of its files that this machine has differs from
    a release's own. The kernelspec's config may say `"launcher": ""` to be left alone.
    """
    ours = _LANGUAGES.get(language.lower())
    if not argv or not argv[0].endswith("/bin/run.sh") or ours is None or "launcher" in config:
        return None
    if not any("{response_address}" in word for word in argv):
        return None
    folder = PurePosixPath(argv[0]).parent.parent
    for place in (Path(folder), Path(resource_dir)):
        if changed := _changed(place):
            log.info("kernelspec %s: %s is not Enterprise Gateway's own, and is run as it is", kernel_name, changed)
            return None
    log.info(
        "kernelspec %s: started by our launcher in place of %s (Distributed.replace_launchers)", kernel_name, argv[0]
    )
    rest = _rest(argv[1:])
    if not any(_MODE.partition(".")[2] in word for word in rest):
        rest += [f"--{_MODE}", "none"]  # as their launchers have it
    sample = kernelspecs.sample(f"spark_{ours}_standalone")
    return Replacement(
        argv=["{python}", "{launcher}/spark.py", ours, "-f", "{connection_file}", *rest],
        config={**sample["metadata"]["process_proxy"].get("config", {}), **config},
        env={"EG_KERNELSPEC_FOLDER": str(folder)},
    )


def _changed(folder: Path) -> Path | None:
    """Return the first file in *folder* that is of the launcher's and differs from all releases; what is not there is fine."""
    for name, known in _OWN.items():
        path = folder / name
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        except OSError:
            continue
        if digest not in known.split():
            return path
    return None


def _rest(words: Sequence[str]) -> list[str]:
    """Return *words* without what is only for the way in which Enterprise Gateway's launchers answer."""
    kept: list[str] = []
    pending = iter(words)
    for word in pending:
        name = word.removeprefix("--").removeprefix("RemoteProcessProxy.")
        if word.startswith("--") and name.partition("=")[0] in _THEIRS:
            if "=" not in name:
                next(pending, None)
            continue
        kept.append(word)
    return kept

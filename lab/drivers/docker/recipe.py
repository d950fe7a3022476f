"""One image: what goes into it, the tag that is the hash of all that, and its build."""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from lab.drivers import checkout
from lab.drivers.docker.engine import write_archive
from lab.errors import LabError
from lab.names import LABEL
from lab.progress import Progress

LABEL_IMAGE = f"{LABEL}.image"
_FULL = "No space left on device"
"""Another network is no help against it."""
_INDEXES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


@dataclass(frozen=True)
class Recipe:
    """How one image is made: its folder under images/, what it stands on, and what else goes into the context."""

    role: str
    build_args: Mapping[str, str]
    inputs: Mapping[str, bytes]
    late: Callable[[], Mapping[str, bytes]] = field(default=dict)
    """Context files that are costly to make; *inputs* must hold something that changes whenever they do."""
    late_inputs: tuple[tuple[str, bytes], ...] = ()
    fetch: Callable[[Any, Progress], Mapping[str, Path]] | None = None
    """Called with the engine's client before a build: context files that are too big for memory."""

    @property
    def tag(self) -> str:
        """The image's full name, e.g. `eglab/node:0123456789ab`."""
        parts = [(f"folder/{name}", content) for name, content in self.folder().items()]
        parts += [(f"input/{name}", content) for name, content in self.inputs.items()]
        parts += [(f"late/{name}", content) for name, content in self.late_inputs]
        parts += [(f"arg/{name}", value.encode()) for name, value in self.build_args.items()]
        return f"eglab/{self.role}:{checkout.digest(parts)}"

    def folder(self) -> dict[str, bytes]:
        """Return the files of images/ROLE."""
        return dict(checkout.tree(checkout.ROOT / "images" / self.role))


def build(client: Any, recipe: Recipe, progress: Progress) -> None:
    """Build *recipe*'s image, whether it is there or not; raise LabError with the last lines of the build."""
    big = recipe.fetch(client, progress) if recipe.fetch is not None else {}
    what = f" with {recipe.build_args['PACKAGES']}" if recipe.role == "node-packages" else ""
    role = {"node-packages": "the node", "jupyterlab": "JupyterLab"}.get(recipe.role, f"the {recipe.role}")
    progress.step(f"building the image of {role}{what}")
    with tempfile.TemporaryFile() as context:
        write_archive(context, {**recipe.folder(), **recipe.inputs, **recipe.late(), **big}, mode=0o755)
        _build(client, recipe, context, progress)


def _build(client: Any, recipe: Recipe, context: BinaryIO, progress: Progress) -> None:
    settings = {name: os.environ[name] for name in _PROXIES if os.environ.get(name)} | _index(progress)
    # The host's network is the second try only: a bridge without a way out (a VPN, a firewall) is the exception.
    for network in (None, "host"):
        log: deque[str] = deque(maxlen=25)
        error = ""
        context.seek(0)
        events = client.api.build(
            fileobj=context,
            custom_context=True,
            tag=recipe.tag,
            buildargs={**recipe.build_args, **settings},
            labels={LABEL_IMAGE: recipe.role},
            network_mode=network,
            rm=True,
            forcerm=True,
            decode=True,
            timeout=1800,
        )
        for event in events:
            text = str(event.get("stream", "")).strip()
            if text:
                log.append(text)
                progress.detail(text)
            error = str(event.get("error", "")) or error
        if not error:
            return
        if _FULL in error or _FULL in "\n".join(log):
            break
        if network is None:
            progress.note(f"the image of the {recipe.role} did not build ({error}); once more on the host's network")
    raise LabError(
        f"the image of the {recipe.role} could not be built",
        cause=f"{error}\n" + "\n".join(log),
        remedy="`lab doctor` looks at mirrors and disk; then `lab images build` tries again, `lab up --driver local` needs none",
    )


def _index(progress: Progress) -> dict[str, str]:
    """Return the build argument that names this machine's package index, if its environment names one; uv reads it.

    An argument, and no layer and no environment: the image knows nothing of it but the history of that one step. Which is
    why an address with a password in it is left out.
    """
    name = next((name for name in _INDEXES if os.environ.get(name)), None)
    if name is None:
        return {}
    if urlsplit(os.environ[name]).password:
        progress.note(f"{name} has a password in it, so the images are built without it")
        return {}
    return {_INDEXES[0]: os.environ[name]}

"""The images: a tag is the hash of all that goes in, so `up` builds exactly when something changed."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import urlsplit

import docker
import docker.errors

from lab import checkout
from lab.containers import debian
from lab.containers.engine import archive
from lab.errors import LabError
from lab.names import LABEL
from lab.progress import Progress
from lab.state import locked

LABEL_IMAGE = f"{LABEL}.image"
FRESH = timedelta(minutes=10)
KEPT = timedelta(days=1)
"""How long `up` leaves images of other sources alone: the next `up` from another checkout would have to build them again."""
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


def base(debian_tag: str) -> Recipe:
    """Debian with the host's certificates and uv."""
    uv = checkout.uv_binary()
    return Recipe(
        "base",
        {"DEBIAN": debian_tag},
        {"ca-bundle.crt": checkout.ca_bundle()},
        late=lambda: {"uv": uv.read_bytes()},
        late_inputs=(("uv", checkout.run_uv("--version").encode()),),
    )


def node(base_tag: str) -> Recipe:
    """The SSH node."""
    inputs = {"requirements.txt": checkout.requirements("node"), "launch_ipykernel.py": checkout.launcher()}
    return Recipe("node", {"BASE": base_tag}, inputs)


def gateway(base_tag: str) -> Recipe:
    """Enterprise Gateway with our wheel."""
    return Recipe(
        "gateway",
        {"BASE": base_tag},
        {
            "requirements.txt": checkout.requirements("gateway"),
            "kernel-requirements.txt": checkout.requirements("node"),
        },
        late=lambda: dict([checkout.build_wheel()]),
        late_inputs=tuple(checkout.wheel_sources()),
    )


def with_packages(node_tag: str, packages: Sequence[str]) -> Recipe:
    """The SSH node with more of Debian's *packages*; sorted, so that their order makes no other image."""
    return Recipe("node-packages", {"NODE": node_tag, "PACKAGES": " ".join(sorted(packages))}, {})


def tags(package_sets: Iterable[Sequence[str]] = ()) -> dict[str, str]:
    """Return the images' names by role, and by `node PACKAGE…`, without looking whether they are there."""
    return {_key(recipe): recipe.tag for recipe in _recipes(debian.tag(), package_sets)}


def key(packages: Sequence[str]) -> str:
    """Return what `tags` and `ensure` list the node's image with *packages* under."""
    return " ".join(("node", *sorted(packages)))


def _key(recipe: Recipe) -> str:
    return key(recipe.build_args["PACKAGES"].split()) if recipe.role == "node-packages" else recipe.role


def _recipes(debian_tag: str, package_sets: Iterable[Sequence[str]]) -> list[Recipe]:
    base_recipe = base(debian_tag)
    node_recipe = node(base_recipe.tag)
    more = {key(packages): with_packages(node_recipe.tag, packages) for packages in package_sets if packages}
    return [base_recipe, node_recipe, gateway(base_recipe.tag), *more.values()]


def ensure(client: Any, progress: Progress, package_sets: Iterable[Sequence[str]] = ()) -> dict[str, str]:
    """Build what has changed; return the images' names as `tags` does."""
    with locked("images", what="building the lab's images"):
        recipes = _recipes(debian.ensure(client, progress), package_sets)
        wanted = {recipe.tag for recipe in recipes}
        for recipe in recipes:
            if _missing(client, recipe.tag):
                what = f" with {recipe.build_args['PACKAGES']}" if recipe.role == "node-packages" else ""
                progress.step(f"building the image of the {recipe.role.partition('-')[0]}{what}")
                _build(client, recipe, progress)
        for role in {recipe.role for recipe in recipes}:
            _remove_older(client, role, wanted)
    return {_key(recipe): recipe.tag for recipe in recipes}


def _missing(client: Any, tag: str) -> bool:
    try:
        client.images.get(tag)
    except docker.errors.ImageNotFound:
        return True
    return False


def _build(client: Any, recipe: Recipe, progress: Progress) -> None:
    files = {**recipe.folder(), **recipe.inputs, **recipe.late()}
    context = archive(files, mode=0o755)
    settings = {name: os.environ[name] for name in _PROXIES if os.environ.get(name)} | _index(progress)
    # The host's network is the second try only: a bridge without a way out (a VPN, a firewall) is the exception.
    for network in (None, "host"):
        log: deque[str] = deque(maxlen=25)
        error = ""
        events = client.api.build(
            fileobj=io.BytesIO(context),
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
        if network is None:
            progress.note(f"the image of the {recipe.role} did not build ({error}); once more on the host's network")
    raise LabError(f"the image of the {recipe.role} could not be built", cause=f"{error}\n" + "\n".join(log))


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


def is_fresh(created: str, now: datetime, within: timedelta = FRESH) -> bool:
    """Say whether the engine's time stamp *created* (nanoseconds, UTC) is less than *within* before *now*."""
    try:
        made = datetime.strptime(created[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc)
    except ValueError:
        return False
    return now - made < within


def _remove_older(client: Any, role: str, wanted: Collection[str]) -> None:
    """Remove earlier images of the same role that no container uses (any more: the last `up` may have kept one).

    Those of the last day stay: another checkout's `up` uses them.
    """
    for image in client.images.list(filters={"label": f"{LABEL_IMAGE}={role}"}):
        if is_fresh(str(image.attrs.get("Created", "")), datetime.now(timezone.utc), KEPT):
            continue
        for tag in image.tags:
            if tag.startswith(f"eglab/{role}:") and tag not in wanted:
                try:
                    client.images.remove(tag, noprune=False)
                except docker.errors.APIError:
                    # In use by another lab, or the parent of another image; the next build finds it again.
                    continue

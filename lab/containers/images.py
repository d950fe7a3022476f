"""The images: a tag is the hash of all that goes in, so `up` builds exactly when something changed."""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import docker
import docker.errors

from lab import checkout
from lab.containers import debian
from lab.containers.engine import write_archive
from lab.errors import LabError
from lab.names import LABEL
from lab.progress import Progress
from lab.spark import artefacts
from lab.state import locked

LABEL_IMAGE = f"{LABEL}.image"
FRESH = timedelta(minutes=10)
KEPT = timedelta(days=1)
"""How long `up` leaves images of other sources alone: the next `up` from another checkout would have to build them again."""
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


def spark(node_tag: str) -> Recipe:
    """The SSH node with a JRE, Spark, Toree and R."""
    made_from = (("python.tar", artefacts.python_archive().name.encode()),)
    return Recipe("spark", {"NODE": node_tag}, {}, late_inputs=made_from, fetch=artefacts.python)


def yarn(spark_tag: str, base_tag: str) -> Recipe:
    """The Spark node with YARN's daemons."""
    made_from = (("hadoop.tar", artefacts.hadoop_archive().name.encode()),)
    return Recipe("yarn", {"NODE": spark_tag}, {}, late_inputs=made_from, fetch=artefacts.hadoop(base_tag))


def with_packages(node_tag: str, packages: Sequence[str]) -> Recipe:
    """The SSH node with more of Debian's *packages*; sorted, so that their order makes no other image."""
    return Recipe("node-packages", {"NODE": node_tag, "PACKAGES": " ".join(sorted(packages))}, {})


Variant = tuple[str, tuple[str, ...]]
"""Which image a node has: `node`, `spark` or `yarn`, and Debian's packages on top."""


def tags(variants: Iterable[Variant] = ()) -> dict[str, str]:
    """Return the images' names by role, and by `ROLE PACKAGE…`, without looking whether they are there."""
    return {name: recipe.tag for name, recipe in _recipes(debian.tag(), variants).items()}


def key(packages: Sequence[str], role: str = "node") -> str:
    """Return what `tags` and `ensure` list the image of *role* with *packages* under."""
    return " ".join((role, *sorted(packages)))


def _recipes(debian_tag: str, variants: Iterable[Variant]) -> dict[str, Recipe]:
    """Return how the images of *variants*, and those that every lab has, are made; each behind what it stands on."""
    wanted = list(variants)
    base_recipe = base(debian_tag)
    found = {"base": base_recipe, "node": node(base_recipe.tag), "gateway": gateway(base_recipe.tag)}
    roles = {role for role, _ in wanted}
    if roles & {"spark", "yarn"}:
        found["spark"] = spark(found["node"].tag)
    if "yarn" in roles:
        found["yarn"] = yarn(found["spark"].tag, base_recipe.tag)
    for role, packages in wanted:
        if packages:
            found[key(packages, role)] = with_packages(found[role].tag, packages)
    return found


def ensure(client: Any, progress: Progress, variants: Iterable[Variant] = ()) -> dict[str, str]:
    """Build what has changed; return the images' names as `tags` does."""
    with locked("images", what="building the lab's images"):
        recipes = _recipes(debian.ensure(client, progress), variants)
        wanted = {recipe.tag for recipe in recipes.values()}
        for recipe in recipes.values():
            if _missing(client, recipe.tag):
                build(client, recipe, progress)
        for role in {recipe.role for recipe in recipes.values()}:
            _remove_older(client, role, wanted)
    return {name: recipe.tag for name, recipe in recipes.items()}


def _missing(client: Any, tag: str) -> bool:
    try:
        client.images.get(tag)
    except docker.errors.ImageNotFound:
        return True
    return False


def build(client: Any, recipe: Recipe, progress: Progress) -> None:
    """Build *recipe*'s image, whether it is there or not; raise LabError with the last lines of the build."""
    big = recipe.fetch(client, progress) if recipe.fetch is not None else {}
    what = f" with {recipe.build_args['PACKAGES']}" if recipe.role == "node-packages" else ""
    role = "node" if recipe.role == "node-packages" else recipe.role
    progress.step(f"building the image of the {role}{what}")
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

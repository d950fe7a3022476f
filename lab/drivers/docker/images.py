"""The images: a tag is the hash of all that goes in, so `up` builds exactly when something changed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import docker
import docker.errors

from lab.drivers import artefacts, checkout
from lab.drivers.docker import debian
from lab.drivers.docker.hadoop import hadoop
from lab.drivers.docker.recipe import LABEL_IMAGE, Recipe, build
from lab.progress import Progress
from lab.state import locked

FRESH = timedelta(minutes=10)
KEPT = timedelta(days=1)
"""How long `up` leaves images of other sources alone: the next `up` from another checkout would have to build them again."""


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
            "kernel-requirements.txt": checkout.requirements("kernel"),
        },
        late=lambda: dict([checkout.build_wheel()]),
        late_inputs=tuple(checkout.wheel_sources()),
    )


def jupyterlab(base_tag: str) -> Recipe:
    """JupyterLab with our wheel."""
    of_gateway = checkout.ROOT / "images" / "gateway"
    shared = {name: (of_gateway / name).read_bytes() for name in ("entrypoint.sh", "watch-lease.sh")}
    return Recipe(
        "jupyterlab",
        {"BASE": base_tag},
        {"requirements.txt": checkout.requirements("jupyterlab"), **shared},
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
    return Recipe("yarn", {"NODE": spark_tag}, {}, late_inputs=made_from, fetch=hadoop(base_tag))


def with_packages(node_tag: str, packages: Sequence[str]) -> Recipe:
    """The SSH node with more of Debian's *packages*; sorted, so that their order makes no other image."""
    return Recipe("node-packages", {"NODE": node_tag, "PACKAGES": " ".join(sorted(packages))}, {})


Variant = tuple[str, tuple[str, ...]]
"""Which image a machine has: `node`, `spark`, `yarn`, `gateway` or `jupyterlab`, and Debian's packages on top."""


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
    if "jupyterlab" in roles:
        found["jupyterlab"] = jupyterlab(base_recipe.tag)
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
                untag(client, tag)  # if it stays, the next build finds it again


def untag(client: Any, tag: str) -> bool:
    """Remove the image *tag*; return False if it stays, in use by a lab that came a moment ago, or another image's parent."""
    try:
        client.images.remove(tag, noprune=False)
    except docker.errors.APIError:
        return False
    return True

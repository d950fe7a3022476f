"""The group `images`: what docker labs are made from. Local labs have environments instead, which `up` makes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from lab import files
from lab.cli.options import Verb, Verbs, json_option
from lab.cli.output import age, note, print_table, progress, show
from lab.errors import EngineFailed, LabUsageError
from lab.topology import daemons as kinds

_CHUNK = 1 << 20


@click.group(cls=Verbs)
def images() -> None:
    """List, build, save, load and prune the images of docker labs.

    Example: lab images build && lab images save /tmp/lab-images.tar
    """


def _client(timeout: int = 120) -> Any:
    from lab.drivers.docker.engine import connect

    return connect(timeout)


def _rows(client: Any) -> list[dict[str, Any]]:
    """Return every image that a lab made, newest first: tag, role, size, and the containers that use it."""
    from lab.drivers.docker.engine import unix_time
    from lab.drivers.docker.recipe import LABEL_IMAGE

    users: dict[str, list[str]] = {}
    for container in client.containers.list(all=True, ignore_removed=True):
        users.setdefault(container.attrs["Image"], []).append(container.name)
    rows = [
        {
            "tag": tag,
            "id": image.id,
            "role": (image.labels or {}).get(LABEL_IMAGE, ""),
            "bytes": image.attrs.get("Size", 0),
            "made": unix_time(image.attrs.get("Created")),
            "used_by": sorted(users.get(image.id, [])),
        }
        for image in client.images.list(filters={"label": LABEL_IMAGE})
        for tag in image.tags
        if tag.startswith("eglab/")
    ]
    return sorted(rows, key=lambda row: -row["made"])


@images.command("ls", cls=Verb)
@json_option
def list_(as_json: bool) -> None:
    """List the images that labs made, and the containers that use them.

    Example: lab images ls
    """
    rows = _rows(_client())
    if as_json:
        show(rows)
        return
    if not rows:
        note("there are no images; `lab images build` makes them")
        return
    table = [
        (row["tag"], row["role"], f"{row['bytes'] / 1e6:.0f} MB", age(row["made"]), len(row["used_by"])) for row in rows
    ]
    print_table(("TAG", "ROLE", "SIZE", "AGE", "CONTAINERS"), table)


@images.command(cls=Verb)
@click.option(
    "--with",
    "clusters",
    multiple=True,
    type=click.Choice(kinds.WITH),
    help="The image of nodes with this cluster as well, or of JupyterLab; may repeat.",
)
@json_option
def build(clusters: Sequence[str], as_json: bool) -> None:
    """Build the images that this checkout needs and that are not there; what `up` does first.

    Example: lab images build --with spark
    """
    from lab.drivers.docker.images import ensure

    wanted = set(clusters)
    also = [(each, ()) for each in wanted & {kinds.JUPYTERLAB}]
    with progress() as shown:
        tags = ensure(_client(), shown, [(kinds.image(kinds.on_nodes(wanted - {kinds.JUPYTERLAB})), ()), *also])
    if as_json:
        show(tags)
    else:
        for role, tag in tags.items():
            click.echo(f"{role}: {tag}")


@images.command(cls=Verb)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("tags", nargs=-1)
def save(file: Path, tags: tuple[str, ...]) -> None:
    """Write images (TAGS, or all that labs made) to FILE, a tar for `lab images load` on a machine without a network.

    Example: lab images save /tmp/lab-images.tar
    """
    client = _client(600)
    there = [row["tag"] for row in _rows(client)]
    if missing := set(tags) - set(there):
        raise LabUsageError(f"there is no image {', '.join(sorted(missing))}", remedy="`lab images ls`")
    wanted = list(tags) or there
    if not wanted:
        raise LabUsageError("there are no images to save", remedy="`lab images build`")
    api = client.api
    # docker-py saves one image a call, and layers that several share would be written once for each.
    url = f"{api.base_url}/v{api.api_version}/images/get"
    written = 0
    with progress() as shown:
        shown.step(f"saving {len(wanted)} images to {file}")
        with (
            api.get(url, params={"names": wanted}, stream=True, timeout=600) as answer,
            files.replacing(file, files.SHARED) as out,
        ):
            if not answer.ok:
                said = answer.text[:300]
                raise EngineFailed("the engine did not save the images", cause=said, remedy="`lab doctor`")
            for chunk in answer.iter_content(_CHUNK):
                written += out.write(chunk)
                shown.detail(f"{written / 1e6:.0f} MB")
    click.echo(f"{file}: {len(wanted)} images, {written / 1e6:.0f} MB")


@images.command(cls=Verb)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
def load(file: Path, as_json: bool) -> None:
    """Load images from FILE, which `lab images save` wrote.

    Example: lab images load /tmp/lab-images.tar
    """
    with progress() as shown, file.open("rb") as source:
        shown.step(f"loading {file}")
        loaded = _client(600).images.load(source)
    tags = [tag for image in loaded for tag in image.tags]
    if as_json:
        show(tags)
    else:
        for tag in tags:
            click.echo(tag)


@images.command(cls=Verb)
@click.option("--all", "everything", is_flag=True, help="Those that this checkout's next `up` needs as well.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
@json_option
def prune(everything: bool, dry_run: bool, as_json: bool) -> None:
    """Remove images that labs made, no container uses, and this checkout does not need.

    Those of the last ten minutes stay: another `lab up` may be about to use them.

    Example: lab images prune --dry-run
    """
    from lab.drivers.docker.images import FRESH, untag

    client = _client()
    keep = set() if everything else _current()
    before = time.time() - FRESH.total_seconds()
    rows = [r for r in _rows(client) if not r["used_by"] and r["tag"] not in keep and r["made"] < before]
    removed = [row["tag"] for row in rows if dry_run or untag(client, row["tag"])]
    if as_json:
        show({"removed": removed, "dry_run": dry_run})
        return
    for tag in removed:
        click.echo(f"{'would remove' if dry_run else 'removed'} {tag}")
    if not removed:
        note("there is nothing to prune")


def _current() -> set[str]:
    """Return the tags that `up` would use from this checkout, without building any."""
    from lab.drivers.docker import debian
    from lab.drivers.docker.images import base, gateway, node

    root = base(debian.tag())
    return {debian.tag(), *(recipe.tag for recipe in (root, node(root.tag), gateway(root.tag)))}


VERBS = (images,)

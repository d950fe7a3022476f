"""Hadoop's jars for the images that have YARN, by Maven in a container; lab/drivers/artefacts.py keeps them."""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from lab.drivers import artefacts, checkout
from lab.drivers.docker.engine import remove_container
from lab.drivers.docker.recipe import Recipe, build
from lab.errors import LabError
from lab.progress import Progress


def hadoop(base_tag: str) -> Callable[[Any, Progress], Mapping[str, Path]]:
    """Return what gives `hadoop.tar`, made now by Maven in an image on *base_tag* unless the cache has it.

    What the cache has is held against the list again: a broken file there is made anew. Raises LabError.
    """

    def fetch(client: Any, progress: Progress) -> Mapping[str, Path]:
        kept = artefacts.hadoop_archive()
        if not kept.exists() or artefacts.wrong_jars(kept):
            progress.step("Hadoop's jars by Maven (90 MB, once)")
            artefacts.keep(kept, lambda file: _make_jars(client, base_tag, file, progress))
            if wrong := artefacts.wrong_jars(kept):
                kept.unlink()
                raise LabError("Hadoop's jars are not what the list says", cause=", ".join(wrong[:5]))
        return {"hadoop.tar": kept}

    return fetch


def _make_jars(client: Any, base_tag: str, file: BinaryIO, progress: Progress) -> None:
    recipe = Recipe("hadoop-jars", {"BASE": base_tag}, {"cacerts.p12": artefacts.trust_store(checkout.ca_bundle())})
    build(client, recipe, progress)
    container = client.containers.create(recipe.tag, command=["true"])
    try:
        stream, _ = container.get_archive("/jars.tar")
        with tempfile.TemporaryFile(dir=artefacts.folder()) as outer:
            for part in stream:
                outer.write(part)
            outer.seek(0)
            with tarfile.open(fileobj=outer) as archive:
                inner = archive.extractfile("jars.tar")
                assert inner is not None
                while chunk := inner.read(1 << 20):
                    file.write(chunk)
    finally:
        remove_container(container)
        client.images.remove(recipe.tag, force=True)

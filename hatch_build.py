"""What hatchling does beside its own: the front-end extension goes into the wheel if it has been built.

It is not built here: that takes npm, its registry and a minute, and who builds a wheel (`lab up` does so) may have none of them.
`nox -s frontend` builds it. A wheel without it lacks nothing but toasts and the host's name beside a kernel's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = "frontend"
BUILT = f"{FOLDER}/labextension"
SOURCES = ("package.json", "package-lock.json", "tsconfig.json", "schema", "src", "style")
INSTALLED = "share/jupyter/labextensions/eg-distributed"


class FrontEnd(BuildHookInterface):  # type: ignore[misc, type-arg, unused-ignore] # hatchling is in no environment of ours
    """Named in pyproject.toml."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the extension to *build_data* of a wheel; say plainly that it is not there, or is older than its sources."""
        if version == "editable":
            return
        built = Path(self.root, BUILT)
        if not (built / "package.json").is_file():
            self.app.display_warning(
                "the wheel is without the extension of JupyterLab's front end, which has not been built. Everything else works "
                "without it. Remedy: `uvx nox -s frontend`, which needs npm; then build the wheel again"
            )
        else:
            build_data["shared_data"][str(built)] = INSTALLED
            # What is unpacked of an sdist has the times of its archive.
            made = float("inf") if Path(self.root, "PKG-INFO").exists() else (built / "package.json").stat().st_mtime
            if newest(Path(self.root, FOLDER)) > made:
                self.app.display_warning(
                    "the extension of JupyterLab's front end is older than its sources. Remedy: `uvx nox -s frontend`"
                )


def newest(folder: Path) -> float:
    """Return when the last of the sources was written."""
    paths = [folder / name for name in SOURCES]
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else (path,)) if file.is_file()]
    return max((file.stat().st_mtime for file in files), default=0.0)

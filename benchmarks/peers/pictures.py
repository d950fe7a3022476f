"""The pictures of docs/figures.md, of its JSON: `python pictures.py FIGURES.JSON FOLDER`. In an environment with matplotlib."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter

Found = dict[str, Any]
COLOURS = {
    "ours_warm": "#7b3294",
    "ours": "#1b7837",
    "ours_eg": "#7fbf7b",
    "stock": "#d6604d",
    "gateway_provisioners": "#f4a582",
    "sshpyk": "#4393c3",
    "local": "#555555",
}
COUNTS = (1, 8, 32)


def medians(found: Found, key: str) -> list[float]:
    """Return the median of each repeat; empty where nothing was measured."""
    return [statistics.median(each) for each in found["samples"].get(key, []) if each]


def middle(found: Found, key: str) -> float | None:
    """Return the median of the repeats' medians."""
    each = medians(found, key)
    return statistics.median(each) if each else None


def plain_ticks(axis: Any) -> None:
    """Give a logarithmic axis 1, 2, 5, 10 and so on, as people write them."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def start(all_found: dict[str, Found], axes: Any) -> None:
    """Bars of a start and a restart, with the repeats as dots."""
    names = list(all_found)
    for place, (key, title, shade) in enumerate((("start", "start", 1.0), ("restart", "restart", 0.5))):
        for row, name in enumerate(names):
            each = medians(all_found[name], key)
            if each:
                height = row + 0.4 * place
                label = title if row == 0 else None
                axes.barh(height, statistics.median(each), 0.36, color=COLOURS[name], alpha=shade, label=label)
                axes.plot(each, [height] * len(each), "k.", markersize=3)
    axes.set_yticks([row + 0.2 for row in range(len(names))], [all_found[name]["label"] for name in names])
    axes.invert_yaxis()
    axes.set_xlabel("ms until kernel_info is answered; a start dark, a restart light; a dot for each repeat")


def storm(all_found: dict[str, Found], axes: Any) -> None:
    """Seconds over the number of starts at once."""
    for name, found in all_found.items():
        keys = {
            count: ("start", "start") if count == 1 else (f"storm_{count}_wall", f"storm_{count}_start")
            for count in COUNTS
        }
        for which, style in ((0, "o-"), (1, "o:")):
            points = [(count, middle(found, keys[count][which])) for count in COUNTS]
            seen = [(count, value / 1e3) for count, value in points if value is not None]
            if seen:
                label = found["label"] if which == 0 else None
                axes.plot(*zip(*seen, strict=True), style, color=COLOURS[name], label=label, markersize=4)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(COUNTS, list(map(str, COUNTS)))
    plain_ticks(axes.yaxis)
    axes.set_xlabel("starts at once")
    axes.set_ylabel("s until all are ready; dotted: half of them")
    axes.legend(fontsize="small")


def cells(all_found: dict[str, Found], axes: Any) -> None:
    """The distribution of a cell's round trip."""
    for name, found in all_found.items():
        seen = sorted(value for repeat in found["samples"].get("cell", []) for value in repeat)
        if seen:
            parts = [(place + 1) / len(seen) for place in range(len(seen))]
            axes.step(seen, parts, where="post", color=COLOURS[name], label=found["label"])
    axes.set_xscale("log")
    plain_ticks(axes.xaxis)
    axes.set_xlabel("ms of the cell `1`, until its reply and its idle status")
    axes.set_ylabel("part of the cells")
    axes.legend(fontsize="small")


def memory(all_found: dict[str, Found], axes: Any) -> None:
    """Memory over the number of kernels: that of the server, and that of the hosts."""
    counts = (0, *COUNTS[1:])
    for name, found in all_found.items():
        for which, style in (("hosts", "o-"), ("server", "o:")):
            points = [(count, middle(found, f"{which}_{count}")) for count in counts]
            seen = [(count, value) for count, value in points if value is not None]
            if seen:
                label = found["label"] if which == "hosts" else None
                axes.plot(*zip(*seen, strict=True), style, color=COLOURS[name], label=label, markersize=4)
    axes.set_xlabel("kernels")
    axes.set_ylabel("MiB (PSS) on the hosts; dotted: at the server")
    axes.legend(fontsize="small")


def main(figures: Path, folder: Path) -> None:
    """Draw all of them."""
    content = json.loads(figures.read_text("utf-8"))
    found = {key: each for key, each in content["found"].items() if not each["left_out"]}
    # The same pictures of the same figures: no date, no random ids, text that a browser sets in its own font.
    plt.rcParams.update({"svg.hashsalt": "eg_distributed", "svg.fonttype": "none", "axes.spines.top": False})
    plt.rcParams.update({"axes.spines.right": False, "figure.constrained_layout.use": True})
    for draw in (start, storm, cells, memory):
        figure, axes = plt.subplots(figsize=(8, 3.6))
        draw(found, axes)
        figure.savefig(folder / f"figures-{draw.__name__}.svg", metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

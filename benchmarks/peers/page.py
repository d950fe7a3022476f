"""The page of figures: tables of one run, made of nothing but its JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.peers.figures import LOCAL, Complaint, Cut, Found, Summary, percentile, ratios, round_trips, summary

DIGITS = 3
_MOST_FAILURES = 6
NOTHING = "-"
"""What stands where nothing was measured; a row that is all of it is left out."""


@dataclass
class Run:
    """One run: when, on what, how many repeats, how long it took, what was found of whom, and why no distance was measured."""

    date: str
    machine: str
    repeats: int
    seconds: float
    found: dict[str, Found] = field(default_factory=dict)
    no_distance: str = ""

    def to_json(self) -> str:
        """Return it as JSON: a line for each list of samples, so that a run's changes can be read."""
        found = {key: each.to_json() for key, each in self.found.items()}
        for each in found.values():
            each["samples"] = {
                name: [[round(value, DIGITS) for value in one] for one in repeats]
                for name, repeats in each["samples"].items()
            }
        content = {**vars(self), "seconds": round(self.seconds), "found": found}
        return _lines(content) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Run:
        """Return what `to_json` has written."""
        content: dict[str, Any] = json.loads(text)
        found = {key: Found.from_json(each) for key, each in content.pop("found").items()}
        return cls(**content, found=found)

    @property
    def measured(self) -> dict[str, Found]:
        """Those that were not left out."""
        return {key: each for key, each in self.found.items() if not each.left_out}


def _lines(content: Any, indent: int = 0) -> str:
    """Return JSON with each object's keys on lines of their own, and lists that hold no object on one line."""
    inner, outer = " " * (indent + 1), " " * indent
    if isinstance(content, dict) and content:
        rows = (f"{inner}{json.dumps(key)}: {_lines(value, indent + 1)}" for key, value in content.items())
        return "{\n" + ",\n".join(rows) + f"\n{outer}}}"
    if isinstance(content, list) and any(isinstance(each, dict) for each in content):
        return "[\n" + ",\n".join(f"{inner}{_lines(each, indent + 1)}" for each in content) + f"\n{outer}]"
    return json.dumps(content, ensure_ascii=False)


NEAR = (
    ("start", "start → kernel_info_reply (ms)"),
    ("first", "the server's first start on a host (ms)"),
    ("cell", "cell `1`, round trip (ms)"),
    ("cell_beside", "the same of a local kernel of that server (ms)"),
    ("interrupt", "interrupt → the cell's reply (ms)"),
    ("restart", "restart → kernel_info_reply (ms)"),
    ("shutdown", "shutdown (ms)"),
    ("storm_8_start", "8 starts at once: a start (ms)"),
    ("storm_8_wall", "8 starts at once: all (ms)"),
    ("storm_32_start", "32 starts at once: a start (ms)"),
    ("storm_32_wall", "32 starts at once: all (ms)"),
    ("storm_32_failed", "32 starts at once: failed"),
    ("storm_32_shutdown", "32 shutdowns at once: all (ms)"),
    ("forked", "its starts that were forked from a template (%)"),
    ("left", "processes of kernels and launchers, 5 s after all were shut down"),
    ("server_0", "memory of the server without kernels (MiB)"),
    ("server_per_kernel", "memory at the server, for each of 32 kernels (MiB)"),
    ("hosts_per_kernel", "memory on the hosts, for each of 32 kernels (MiB)"),
)
DISTANCES = (20, 100)


def page(run: Run) -> str:
    """Return the page."""
    left_out = [f"- {each.label} is left out: {each.left_out}" for each in run.found.values() if each.left_out]
    parts = [
        _HEAD.format(date=run.date, machine=run.machine, minutes=run.seconds / 60, repeats=run.repeats),
        "\n".join(left_out) + "\n" if left_out else "",
        "## On one network\n\n" + _near(run),
        _PICTURES,
        "## Held against a local kernel\n\n" + _ratios(run) + "\n" + _GUARD,
        "## Over a distance\n\n" + (_far(run) if not run.no_distance else f"Not measured: {run.no_distance}.\n"),
        "" if run.no_distance else "## Ten seconds without the network\n\n" + _cuts(run),
        _failures(run),
        _NOTES,
    ]
    return "\n".join(part for part in parts if part)


def number(value: float) -> str:
    """Return a figure with as many digits as it is good for."""
    return f"{value:.2f}" if abs(value) < 1 else f"{value:.1f}" if abs(value) < 100 else f"{value:,.0f}"


def spread(found: Summary | None) -> str:
    """Return a median with the lowest and the highest of the repeats, where there are several that differ."""
    if found is None:
        return NOTHING
    low, median, high = map(number, (found.low, found.median, found.high))
    return median if low == high else f"{median} ({low}-{high})"


def _table(heads: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    heads = list(heads)
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def _of_each(run: Run, rows: Iterable[tuple[str, Callable[[Found], str]]], *, local: bool = True) -> str:
    shown = [each for key, each in run.measured.items() if local or key != LOCAL]
    told = [[title, *map(of, shown)] for title, of in rows]
    return _table(["", *(each.label for each in shown)], [row for row in told if set(row[1:]) != {NOTHING}])


def _near(run: Run) -> str:
    def of(key: str) -> Callable[[Found], str]:
        return lambda found: spread(summary(found.samples.get(key)))

    rows = [(title, of(key)) for key, title in NEAR]
    rows.insert(3, ("cell `1`, 99th percentile (ms)", _late_cell))
    return _of_each(run, rows)


def _late_cell(found: Found) -> str:
    cells = [value for repeat in found.samples.get("cell", []) for value in repeat]
    return number(percentile(cells, 0.99)) if cells else NOTHING


def _ratios(run: Run) -> str:
    titles = dict(NEAR)
    found = ratios(run.found)
    names = [name for name in titles if any(name in each for each in found.values())]
    rows = [[titles[name], *(spread(each.get(name)) for each in found.values())] for name in names]
    return _table(["times a local kernel's", *(run.found[key].label for key in found)], rows)


def _far(run: Run) -> str:
    def at(key: str, there: int) -> Callable[[Found], str]:
        return lambda found: spread(summary(found.samples.get(f"{key}_rtt_{there}")))

    def trips(key: str) -> Callable[[Found], str]:
        def of(found: Found) -> str:
            near, far = (summary(found.samples.get(f"{key}_rtt_{there}")) for there in DISTANCES)
            count = round_trips(near, far, (DISTANCES[1] - DISTANCES[0]) / 1e3)
            return NOTHING if count is None else f"{count:.1f}"

        return of

    rows = []
    for key, title in (("start", "start → kernel_info_reply"), ("cell", "cell `1`")):
        rows += [(f"{title}, round trip of {there} ms (ms)", at(key, there)) for there in DISTANCES]
        rows.append((f"{title}: round trips", trips(key)))
    rows.insert(3, ("the server's first start, round trip of 100 ms (ms)", at("first", 100)))
    return _of_each(run, rows, local=False) + "\n" + _DISTANCE


def _cuts(run: Run) -> str:
    rows = []
    for key, found in run.measured.items():
        if key != LOCAL:
            rows.append([found.label, *(_cut(found.cuts.get(name)) for name in ("silent", "ended"))])
    heads = ("", "packets lost without a word", "connections ended as well")
    return _table(heads, rows) + "\n" + _CUT


def _cut(cuts: Sequence[Cut] | None) -> str:
    if not cuts:
        return NOTHING
    last = cuts[-1]
    lost = "the cell could not be followed" if last.lost is None else f"{last.lost} of {last.lines} lines lost"
    parts = [lost, "its end was told" if last.reply else "**its end was never told**"]
    if last.resumed is not None:
        parts.append(f"the next line came {last.resumed:.1f} s after the network")
    if last.answered is None:
        parts.append("**no new cell ran within a minute**")
    else:
        state = "with its variables" if last.kept_state else "**its variables gone**"
        parts.append(f"a new cell had run after {last.answered:.1f} s, {state}")
    if last.said:
        parts.append(f"(the client was told: {_quoted(last.said)})")
    return "; ".join(parts)


def _failures(run: Run) -> str:
    lines = []
    for found in run.measured.values():
        said = list(dict.fromkeys(found.failures))[:_MOST_FAILURES]
        lines += [f"- {found.label}: {_quoted(each)}" for each in said]
    return "## What failed\n\nIn the words that the client was given.\n\n" + "\n".join(lines) + "\n" if lines else ""


def _quoted(said: str) -> str:
    """Return what somebody's program said, so that Markdown shows it as it is."""
    return "`" + " ".join(said.replace("`", "'").replace("|", "¦").split())[:300] + "`"


def verdict(complaints: Sequence[Complaint]) -> str:
    """Return what the guard has to say."""
    if not complaints:
        return "the guard: no ratio is worse than the kept one by more than the spread"
    return "the guard: worse than the kept ratio by more than the spread:\n" + "\n".join(map(str, complaints))


_HEAD = """# Figures

Us beside others that run Jupyter kernels on other machines by SSH, and beside a local kernel. Measured by `nox -s
"bench(peers)" -- --docs docs` on {date} ({machine}) in one run of {minutes:.0f} minutes: three nodes in containers and all
servers on one machine, each with a server and a home of its own, all up at once. What is measured goes from one to the next,
{repeats} times, in another order each time. The client is the same for all, and sees what a notebook sees: REST and a
websocket. A figure is the median of the repeats' medians, with the lowest and the highest of these behind it. [All
samples](figures.json).
"""
_PICTURES = """![Milliseconds of a start, one at a time](figures-start.svg)

![Seconds until all of several starts at once are ready, and until half of them are](figures-storm.svg)

![Which part of the cells had come back after how many milliseconds](figures-cells.svg)

![Memory at the server and on the hosts over the number of kernels](figures-memory.svg)
"""
_GUARD = """Repeat by repeat, since what else the machine did fell on both. `nox -s "bench(peers)" -- --guard` measures
ours and a local kernel again, and fails where one of our ratios is worse than here by more than the spread of
either run.
"""
_DISTANCE = """One node behind a way on which every packet takes half of the round trip, whatever it belongs to: SSH, or
plain TCP to the kernel's ports. Round trips are the difference of the two distances. The first start of a
server has to log in, unless the server has done that by itself since it came up, as ours does for
JupyterLab's launcher. gateway_provisioners has `GP_SOCKET_TIMEOUT=0.024` and `0.12` here: with its default of
10 ms, no kernel behind 20 ms came up when we tried it, since each was taken for dead and started again. It
waits so long in the server's loop, which the cells show.
"""
_CUT = """A cell prints 240 lines, one in 50 ms, and the network is away for ten seconds from the fortieth on, for all
of them at once, once for each column. In the second one both sides' systems end all TCP
connections at that moment as well, as a firewall, a VPN or a laptop that sleeps does. Seconds are counted from
the network's return.
"""
_NOTES = """## How to read them

- Everything shares the cores of one machine: many starts at once are bound by the interpreters that start, whoever starts
  them. Ratios in one run say more than milliseconds.
- The kernel is ipykernel of one version everywhere, on one Python, the local one too. The servers are jupyter_server 2.21
  with jupyter_client 8.10 for all but Enterprise Gateway 3.3, which has its jupyter_server 1.24; the two of its columns have
  a gateway each. All are configured as their documentation says, else with their defaults.
- A start ends when kernel_info has been answered on the shell channel and told on iopub, over a websocket that is opened
  after the server's answer. A cell ends with its reply and its `idle`.
- A cell is held against that of a local kernel of the same server, since jupyter_server sends its messages under Nagle's
  algorithm, which waits for the client's word of those before: some 40 ms on Linux, whatever the kernel. Installing ours
  turns that off for all kernels of a server. All else is held against the local kernel of a server without us.
- Memory counts a page that several processes share once (PSS). At the server that is the server with its helpers (sshpyk's
  ssh processes); on the hosts everything, sshd and our agents too.
- Enterprise Gateway's own proxy and gateway_provisioners reach a kernel's ports by plain TCP, not by SSH, and their
  launchers connect back to the server: both need a network that lets them.
- [More beside Enterprise Gateway's own proxy](figures-gateway.md): CPU, hung hosts, wrong interpreters. [Under
  faults](figures-reliability.md), [Spark](figures-spark.md).
"""

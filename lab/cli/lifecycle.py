"""The verbs that make labs and take them away: up, down, scale, reset, gc."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from lab.cli.options import DRIVER, DURATION, Verb, complete_machines, find_nodes, json_option, name_option, pairs
from lab.cli.output import note, progress, show
from lab.converge.plan import Plan
from lab.drivers import choice
from lab.errors import LabUsageError
from lab.lab import MAX_NODES, Lab
from lab.lifetime.removal import remove
from lab.names import check_name
from lab.progress import Progress
from lab.topology import daemons as kinds


@click.command(cls=Verb)
@name_option
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--nodes",
    envvar=["LAB_NODES", "LAB_UP_NODES"],
    type=click.IntRange(1, MAX_NODES),
    help="How many [as many as it has, else 3]; with FILE, FILE says.",
)
@click.option(
    "--driver",
    envvar=["LAB_DRIVER", "LAB_UP_DRIVER"],
    type=DRIVER,
    help="[docker if an engine answers, else local]",
)
@click.option(
    "--sshd",
    type=click.Choice(["auto", "openssh", "asyncssh"]),
    help="The SSH server of a local lab's nodes [OpenSSH's where it can run]",
)
@click.option(
    "--with",
    "clusters",
    multiple=True,
    type=click.Choice([*kinds.WITH, "none"]),
    help="A cluster on the nodes, or JupyterLab beside the gateway; may repeat. In place of those that the lab has [as it has, "
    "else none]",
)
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    metavar="FAULT",
    help="A fault of logins on every node, like `hostile` (see `lab fault catalogue`); may repeat.",
)
@click.option("--lease", type=DURATION, help="Let the lab end by itself this long from now, like 2h [never]")
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@json_option
@click.pass_context
def up(
    context: click.Context,
    name: str,
    file: Path | None,
    nodes: int | None,
    driver: str | None,
    sshd: str | None,
    clusters: Sequence[str],
    profiles: Sequence[str],
    lease: float | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make the lab whole, whatever its state; end when a kernel has run on every node.

    With FILE (a lab.toml, see `lab schema`) the lab becomes what FILE says: what is right stays, the rest is changed.
    After ^C or a kill the same again goes on from there. What is not ready in time is named, with that machine's last
    lines and exit code 5.

    Example: lab up --nodes 2 --dry-run
    """
    settings: dict[str, Any] = {key: value for key, value in {"sshd": sshd, "lease": lease}.items() if value}
    if clusters:
        settings["clusters"] = [each for each in clusters if each != "none"]
    if file is not None:
        from lab.topology import load

        if nodes is not None and context.get_parameter_source("nodes") is ParameterSource.COMMANDLINE:
            raise LabUsageError(
                f"{file} says how many nodes there are, and so does --nodes", remedy="change FILE, or `lab scale` later"
            )
        nodes = None  # LAB_NODES is for labs without a file
        settings["topology"] = topology = load(file, drivers=choice.names())
        if clusters:
            raise LabUsageError(
                f"{file} says what runs on the nodes, and so does --with", remedy="write `with` into FILE"
            )
        if topology.name and context.get_parameter_source("name") is ParameterSource.DEFAULT:
            name = check_name(topology.name)
    _check_profiles(profiles)
    if dry_run:
        settings.pop("lease", None)
        _show_plan(Lab.plan(name, nodes, driver, **settings), as_json=as_json)
        return
    began = time.monotonic()
    _say_if_busy(name)
    with _interruptible(name), progress() as shown:
        lab = Lab.up(name, nodes, shown, driver, **settings)
        if profiles:
            _make_hostile(lab, profiles, shown)
    _show_lab(lab, time.monotonic() - began, as_json=as_json)


def _say_if_busy(name: str) -> None:
    """Say why nothing happens for a while: whoever has the lab's lock is waited for (lab/state.py)."""
    from lab.lifetime.finding import is_busy

    if is_busy(name):
        note(f"another process works on the lab {name}: waiting for it")


@contextlib.contextmanager
def _interruptible(name: str) -> Iterator[None]:
    """Say after ^C what is left, and what to type."""
    try:
        yield
    except KeyboardInterrupt:
        note(f"what is there stays: the same again goes on from it, `lab down --name {name}` removes it")
        raise


def _check_profiles(profiles: Sequence[str]) -> None:
    """Raise LabUsageError for what is no fault of logins, before minutes are spent on the lab."""
    from lab.faults import catalogue, kind

    for profile in profiles:
        if kind(profile).group != "login":
            logins = ", ".join(each.name for each in catalogue() if each.group == "login")
            raise LabUsageError(f"{profile} is no fault of logins", remedy=f"choose of {logins}")


def _make_hostile(lab: Lab, profiles: Sequence[str], shown: Progress) -> None:
    """Add each of *profiles* to every node that doesn't have it: after the probes, which want plain logins."""
    from lab.faults import NOBODY, active, add

    there = {(fault.name, node) for fault in active(lab) for node in fault.nodes}
    for profile in profiles:
        nodes = [node for node in lab.nodes if (profile, node.name) not in there]
        if nodes:
            shown.step(f"{profile} on every node")
            add(lab, profile, nodes, owner=NOBODY)


def _show_plan(plan: Plan, *, as_json: bool) -> None:
    if as_json:
        show(plan.as_dict())
        return
    lines = plan.lines()
    for line in lines:
        click.echo(line)
    if not lines:
        note("nothing would change")


def _show_lab(lab: Lab, seconds: float, *, as_json: bool) -> None:
    gateways = {gateway.name: gateway.page for gateway in lab.gateways}
    if as_json:
        landings = [dataclasses.asdict(landing) for landing in lab.landings]
        show({"name": lab.name, "driver": lab.driver, "seconds": seconds, "gateways": gateways, "kernels": landings})
        return
    for landing in lab.landings:
        click.echo(
            f"{landing.node}: a kernel ({lab.probed_kernelspec}) answered on {landing.hostname} "
            f"after {landing.seconds:.2f} s"
        )
    for gateway, url in gateways.items():
        click.echo(f"{gateway}: {url}")
    note(f"the lab {lab.name} ({lab.driver}) is up after {seconds:.1f} s")
    if lab.name != "lab":
        click.echo(f"to use it: export LAB_NAME={lab.name}")


@click.command(cls=Verb)
@name_option
@click.option("--all", "everything", is_flag=True, help="Every lab of this machine that `lab ls` shows.")
def down(name: str, everything: bool) -> None:
    """Remove everything of this lab and nothing else; fine if nothing is there.

    Needs no file: labels say what is the lab's. Half-made labs go like whole ones.

    Example: lab down --name mine
    """
    names = [name]
    if everything:
        from lab.lifetime.finding import find_labs

        names = [found.name for found in find_labs()]
    for each in names:
        _say_if_busy(each)
        removed = remove(each)
        for what in removed:
            note(f"removed {what}")
        note(f"the lab {each} is gone" if removed else f"there was no lab {each}")


@click.command(cls=Verb)
@name_option
@click.argument("groups", nargs=-1, required=True, metavar="GROUP=N...")
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@json_option
def scale(name: str, groups: Sequence[str], dry_run: bool, as_json: bool) -> None:
    """Give node groups another number of nodes; what was there and may stay is untouched.

    A lab that was made without a file has one group, `node`.

    Example: lab scale node=5
    """
    wanted: dict[str, int] = {}
    for group, count in pairs(groups, "count").items():
        if not count.isdecimal() or int(count) > MAX_NODES:
            raise LabUsageError(
                f"{group} can't have {count!r} nodes", remedy=f"`lab scale {group}=N`, N from 0 to {MAX_NODES}"
            )
        wanted[group] = int(count)
    lab = Lab.attach(name)
    if dry_run:
        _show_plan(lab.plan_scale(wanted), as_json=as_json)
        return
    began = time.monotonic()
    _say_if_busy(name)
    with _interruptible(name), progress() as shown:
        lab.scale(wanted, shown)
    _show_lab(lab, time.monotonic() - began, as_json=as_json)


@click.command(cls=Verb)
@name_option
@click.argument("nodes", nargs=-1, required=True, shell_complete=complete_machines)
@json_option
def reset(name: str, nodes: Sequence[str], as_json: bool) -> None:
    """Bring NODES (or `all`) back to golden: files, processes, accounts and rules are as `up` made them.

    Name, address and host keys stay. Ends when each answers to SSH again.

    Example: lab reset node1
    """
    lab = Lab.attach(name)
    found = find_nodes(lab, nodes)
    began = time.monotonic()
    with progress() as shown:
        shown.step(f"resetting {', '.join(node.short_name for node in found)}")
        lab.reset(*(node.name for node in found))
    seconds = round(time.monotonic() - began, 3)
    if as_json:
        show({"nodes": [node.name for node in found], "seconds": seconds})
    else:
        click.echo(f"golden: {', '.join(node.name for node in found)} after {seconds:.2f} s")


@click.command(cls=Verb)
@click.option(
    "--older-than", type=DURATION, default=0.0, help="Only what is older than this, like 1h.", show_default="any age"
)
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
@json_option
def gc(older_than: float, dry_run: bool, as_json: bool) -> None:
    """Remove what labs left behind: labs whose lease is over or whose owner is dead, and what is left of labs without a machine.

    Looks at labels, leases and the lab's own folders alone; what no lab made is never touched, nor a lab that is in use.

    Example: lab gc --dry-run
    """
    from lab.lifetime.garbage import find_garbage

    found = find_garbage(older_than=older_than)
    rows: list[dict[str, Any]] = []
    for garbage in found:
        removed = [] if dry_run else garbage.remove()
        rows.append({**garbage.as_dict(), "removed": removed})
    if as_json:
        show(rows)
        return
    for garbage, row in zip(found, rows, strict=True):
        click.echo(f"{'would remove' if dry_run else 'removed'} {garbage.what}: {garbage.why}")
        for what in row["removed"]:
            note(f"removed {what}")
    if not found:
        note("nothing is left over")


VERBS = (up, down, scale, reset, gc)

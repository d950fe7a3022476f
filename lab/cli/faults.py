"""The group `fault` and the verb `partition`: break hosts, see what is broken, heal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from lab.cli.options import DURATION, Verb, Verbs, complete_machines, find_machine, json_option, name_option, pairs
from lab.cli.output import left, note, print_table, show
from lab.drivers import choice
from lab.drivers.machines import Machine
from lab.errors import LabUsageError
from lab.lab import Lab
from lab.names import short_name

LAB_OWNED = "lab"
"""The owner of what is added here, lab.faults.NOBODY: the command is over at once, and its fault shall not heal with it."""


@click.group(cls=Verbs)
def fault() -> None:
    """Break hosts in named ways that heal by themselves: add, ls, heal, run, catalogue.

    Example: lab fault add loss node1 --for 30s --option percent=20
    """


def _complete_kinds(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from lab.faults import catalogue

    return [CompletionItem(kind.name, help=kind.summary) for kind in catalogue() if kind.name.startswith(incomplete)]


def _targets(lab: Lab, names: Sequence[str]) -> list[Machine]:
    """Return the machines that a fault hits: `all` means every node, and not the gateways."""
    if "all" in names:
        return [*lab.nodes]
    return list({machine.name: machine for machine in (find_machine(lab, name) for name in names)}.values())


@fault.command(cls=Verb)
@name_option
@click.argument("kind", metavar="FAULT", shell_complete=_complete_kinds)
@click.argument("nodes", nargs=-1, shell_complete=complete_machines)
@click.option("--for", "duration", type=DURATION, help="Heal it after this time, like 15s [never].")
@click.option(
    "--option", "--set", "-o", "options", multiple=True, metavar="K=V", help="An option of the fault; may repeat."
)
@click.option("--owner", default=LAB_OWNED, help="Heal it when this process (a pid) ends, like $$ [no process's].")
@click.option("--seed", type=int, help="Of its chances, so that they come again.")
@json_option
def add(
    name: str,
    kind: str,
    nodes: Sequence[str],
    duration: float | None,
    options: Sequence[str],
    owner: str,
    seed: int | None,
    as_json: bool,
) -> None:
    """Add FAULT to NODES (or `all`; a master's fault needs none). It heals after --for, by `lab fault heal`, or with the lab.

    What can't be done on these nodes fails with the reason and exit code 6, and changes nothing.

    Example: lab fault add delay node1 node2 --for 15s --option milliseconds=200
    """
    from lab.faults import add as add_fault

    lab = Lab.attach(name)
    chosen: dict[str, Any] = dict(pairs(options))
    for word, flag in {"duration": "--for", "owner": "--owner", "seed": "--seed"}.items():
        if word in chosen:
            raise LabUsageError(f"{word} is no option of a fault's own", remedy=f"`{flag} {chosen[word]}`")
    found = add_fault(lab, kind, _targets(lab, nodes), duration=duration, owner=owner, seed=seed, **chosen)
    _added(found, as_json)


def _added(found: Any, as_json: bool) -> None:
    document = found.as_dict()
    if as_json:
        show(document)
        return
    click.echo(document["id"])
    names = ", ".join(short_name(node) for node in document["nodes"])
    ends = f", heals {left(document['expires'])}" if document["expires"] else ", until `lab fault heal`"
    note(f"{document['name']} on {names} by {document['mechanism']}{ends}")


@fault.command("ls", cls=Verb)
@name_option
@json_option
def list_(name: str, as_json: bool) -> None:
    """List the faults that are there now: id, what, where, by which mechanism, and when each heals.

    Example: lab fault ls --json
    """
    from lab.faults import active

    rows = [found.as_dict() for found in active(Lab.attach(name))]
    if as_json:
        show(rows)
        return
    if not rows:
        note("no fault is there")
        return
    table = [
        (
            row["id"],
            row["name"],
            ",".join(short_name(node) for node in row["nodes"]),
            " ".join(f"{key}={value}" for key, value in row["options"].items()),
            row["mechanism"],
            row["owner"],
            left(row["expires"]),
        )
        for row in rows
    ]
    print_table(("ID", "FAULT", "NODES", "OPTIONS", "MECHANISM", "OWNER", "HEALS"), table)


@fault.command(cls=Verb)
@name_option
@click.argument("ids", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every fault of the lab.")
@json_option
def heal(name: str, ids: Sequence[str], everything: bool, as_json: bool) -> None:
    """Heal the faults IDS, or --all. Healing what is healed already is fine with --all.

    Example: lab fault heal --all
    """
    if bool(ids) == everything:
        raise LabUsageError("say which faults to heal", remedy="`lab fault heal ID…` (see `lab fault ls`), or `--all`")
    from lab.faults import heal as heal_faults

    lab = Lab.attach(name)
    healed = [each for wanted in (ids or (None,)) for each in heal_faults(lab, wanted)]
    if as_json:
        show(healed)
        return
    for each in healed:
        click.echo(each)
    note(f"healed {len(healed)}" if healed else "there was nothing to heal")


@fault.command(cls=Verb)
@click.argument("kind", metavar="[FAULT]", required=False, shell_complete=_complete_kinds)
@json_option
def catalogue(kind: str | None, as_json: bool) -> None:
    """List the faults that can be added, or all about one: options, defaults, mechanisms.

    Example: lab fault catalogue partition
    """
    from lab.faults import catalogue as kinds
    from lab.faults import kind as find_kind

    documents = [each.as_dict() for each in (kinds() if kind is None else [find_kind(kind)])]
    if as_json:
        show(documents if kind is None else documents[0])
        return
    if kind is not None:
        _explain(documents[0])
        return
    print_table(("GROUP", "FAULT", "WHAT"), [(each["group"], each["name"], each["summary"]) for each in documents])


def _explain(document: dict[str, Any]) -> None:
    click.echo(f"{document['name']} ({document['group']}): {document['summary']}")
    click.echo(f"  seen from outside: {document['shows']}")
    for option in document["options"]:
        default = "" if option["default"] in (None, "", []) else f" [{option['default']}]"
        click.echo(f"  --option {option['name']}={option['type'].upper()}{default}: {option['help']}")
    click.echo(f"  by {', else '.join(document['mechanisms'])}; in {', '.join(document['drivers'])} labs")


@fault.command(cls=Verb)
@name_option
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--seed", type=int, help="Another one than FILE's.")
@click.option("--dry-run", is_flag=True, help="Print the timeline with all its chances decided, and do nothing.")
@json_option
def run(name: str, file: Path, seed: int | None, dry_run: bool, as_json: bool) -> None:
    """Run the fault plan of FILE, a lab.toml, on the lab; ends with the last fault healed.

    The same seed gives the same timeline.

    Example: lab up docs/lab.example.toml && lab fault run docs/lab.example.toml --name example --dry-run
    """
    from lab.faults import resolve, run_plan
    from lab.topology import load

    topology = load(file, drivers=choice.names())
    lab = Lab.attach(name)
    plan, roles = topology.fault_plan(), {node.name: node.roles for node in lab.nodes}
    chosen = seed if seed is not None else topology.seed or 0
    services = [service.name for service in lab.services]
    resolved = resolve(plan, list(roles), chosen, roles=roles, others=services)
    steps = [dict(step.as_dict()) for step in resolved]
    if not dry_run:
        began = time.monotonic()
        run_plan(lab, plan, chosen)
        note(f"{len(steps)} faults in {time.monotonic() - began:.1f} s")
    if as_json:
        show(steps)
        return
    rows = [
        (
            step["at"],
            step["fault"],
            ",".join(map(short_name, step["nodes"])),
            step["for"],
            step["options"] or "",
        )
        for step in steps
    ]
    print_table(("AT", "FAULT", "NODES", "FOR", "OPTIONS"), rows)


@click.command(cls=Verb)
@name_option
@click.argument("groups", metavar="A,B|C")
@click.option("--for", "duration", type=DURATION, help="Heal it after this time, like 15s [never].")
@json_option
def partition(name: str, groups: str, duration: float | None, as_json: bool) -> None:
    """Cut the network between groups of machines, both ways: names by commas, groups by `|` (quote it).

    Machines that are in no group are in one more group together. The gateway may be named like a node.

    Example: lab partition 'node1,gateway|node2' --for 15s
    """
    parts = [[word.strip() for word in part.split(",") if word.strip()] for part in groups.split("|")]
    if len(parts) < 2 or not all(parts):
        raise LabUsageError(f"{groups!r} are no groups", remedy="`lab partition 'node1|node2,node3'`")
    from lab.faults import add as add_fault

    lab = Lab.attach(name)
    found = [find_machine(lab, word) for part in parts for word in part]
    if len({machine.name for machine in found}) < len(found):
        raise LabUsageError(f"{groups!r} has a machine twice", remedy="name each once")
    _added(
        add_fault(
            lab, "partition", found, duration=duration, owner=LAB_OWNED, groups="|".join(",".join(p) for p in parts)
        ),
        as_json,
    )


VERBS = (fault, partition)

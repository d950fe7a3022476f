"""The verbs for machines that are there: stop, start, restart, pause, unpause."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import click

from lab import events
from lab.cli.options import Verb, complete_machines, find_machines, json_option, name_option, role_of
from lab.cli.output import progress, show
from lab.drivers.machines import Machine
from lab.lab import Lab

_AT_ONCE = 8
"""Machines that are worked on together; more would only queue at the engine."""


def _machines_argument(command: click.decorators.FC) -> click.decorators.FC:
    return click.argument("machines", nargs=-1, required=True, shell_complete=complete_machines)(command)


def _each(
    name: str, wanted: Sequence[str], doing: str, kind: str, work: Callable[[Machine], None], as_json: bool
) -> None:
    """Do *work* to the *wanted* machines of a lab together, record it as the event *kind*, and say how they are then."""
    lab = Lab.attach(name)
    found = find_machines(lab, wanted)
    with progress() as shown:
        shown.step(f"{doing} {', '.join(machine.name for machine in found)}")
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for machine, _ in zip(found, pool.map(work, found), strict=True):
                events.record(name, f"{role_of(machine)}.{kind}", machine=machine.name)
    # Addresses are pinned, ports are not: others read them from the ssh_config.
    lab.refresh()
    rows = [{"machine": machine.name, "role": role_of(machine), "state": machine.state} for machine in found]
    if as_json:
        show(rows)
    else:
        for row in rows:
            click.echo(f"{row['machine']}: {row['state']}")


@click.command(cls=Verb)
@name_option
@_machines_argument
@click.option("--kill", is_flag=True, help="At once, by SIGKILL, as a crash would.")
@json_option
def stop(name: str, machines: Sequence[str], kill: bool, as_json: bool) -> None:
    """Stop MACHINES (nodes, gateways, or `all`); their disks stay. SIGTERM first, SIGKILL after 10 s.

    Example: lab stop node2 --kill
    """
    done = "killed" if kill else "stopped"
    _each(name, machines, "stopping", done, lambda machine: machine.kill() if kill else machine.stop(), as_json)


@click.command(cls=Verb)
@name_option
@_machines_argument
@json_option
def start(name: str, machines: Sequence[str], as_json: bool) -> None:
    """Start MACHINES that are stopped, killed or paused; end when each answers by its protocol.

    Example: lab start node2
    """
    _each(name, machines, "starting", "started", lambda machine: machine.start(), as_json)


@click.command(cls=Verb)
@name_option
@_machines_argument
@click.option("--kill", is_flag=True, help="End it by SIGKILL, as a crash would.")
@json_option
def restart(name: str, machines: Sequence[str], kill: bool, as_json: bool) -> None:
    """Stop MACHINES and start them again: a reboot, with the same address and disk. Ends when each answers.

    Example: lab restart node1 gateway
    """

    def work(machine: Machine) -> None:
        if kill:
            machine.kill()
            machine.start()
        else:
            machine.restart()

    _each(name, machines, "restarting", "restarted", work, as_json)


@click.command(cls=Verb)
@name_option
@_machines_argument
@json_option
def pause(name: str, machines: Sequence[str], as_json: bool) -> None:
    """Freeze every process of MACHINES: hosts that hang, while their connections stay open.

    Example: lab pause node1
    """
    _each(name, machines, "pausing", "paused", lambda machine: machine.pause(), as_json)


@click.command(cls=Verb)
@name_option
@_machines_argument
@json_option
def unpause(name: str, machines: Sequence[str], as_json: bool) -> None:
    """Let paused MACHINES go on.

    Example: lab unpause node1
    """
    _each(name, machines, "unpausing", "unpaused", lambda machine: machine.unpause(), as_json)


VERBS = (stop, start, restart, pause, unpause)

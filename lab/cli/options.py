"""What all verbs share: the lab's name, `--json`, machines as arguments, durations, and examples in the help."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import click
from click.shell_completion import CompletionItem

from lab import units
from lab.drivers import choice
from lab.drivers.machines import Machine, Node
from lab.errors import LabError, LabNotFound, LabUsageError
from lab.lab import Lab
from lab.names import check_name, short_name

F = TypeVar("F", bound=Callable[..., Any])

AS_JSON: Final = "as_json"
"""The parameter behind `--json`; the outermost handler of errors looks for it too."""


class Verb(click.Command):
    """A command whose help ends with its example, and whose options all say their environment variable.

    Click's own `auto_envvar_prefix` gives each option `LAB_VERB_OPTION`; those that mean the same everywhere (`--name`)
    carry a short one as well.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        for parameter in self.params:
            if isinstance(parameter, click.Option):
                parameter.show_envvar = True


class Verbs(click.Group):
    """A group of verbs."""

    command_class = Verb


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2 only
    """A duration as `lab.units.seconds` reads it; the value is seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds; click calls it with what was typed."""
        try:
            return units.seconds(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


DURATION: Final = Duration()


class Driver(click.ParamType):  # type: ignore[type-arg]
    """One of the drivers that are registered when it is asked for: click's own Choice keeps those of when it was made."""

    name = "driver"

    @property
    def choices(self) -> tuple[str, ...]:
        """The drivers' names, as click's Choice has them."""
        return choice.names()

    def _choice(self) -> click.Choice[str]:
        return click.Choice(self.choices)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the driver's name; click calls it with what was typed."""
        return self._choice().convert(value, param, ctx)

    def get_metavar(self, *arguments: Any, **named: Any) -> str | None:
        """Return how the help shows it; click 8.2 gives the context as well."""
        return self._choice().get_metavar(*arguments, **named)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the names that begin so."""
        return self._choice().shell_complete(ctx, param, incomplete)


DRIVER: Final = Driver()


def pairs(values: Sequence[str], what: str = "option") -> dict[str, str]:
    """Return `k=v` words as a dictionary; raise LabUsageError for what is none."""
    found: dict[str, str] = {}
    for value in values:
        key, separator, text = value.partition("=")
        if not separator or not key:
            raise LabUsageError(f"{value!r} is no {what}", remedy=f"write it as {what.upper()}=VALUE")
        found[key] = text
    return found


def _complete_labs(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from lab.lifetime.finding import find_labs

    with contextlib.suppress(LabError):
        return [CompletionItem(found.name) for found in find_labs() if found.name.startswith(incomplete)]
    return []


def complete_machines(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the names of the lab's machines for a shell; click calls it while somebody types."""
    with contextlib.suppress(LabError):
        lab = Lab.attach(ctx.params.get("name") or "lab")
        names = [short_name(machine.name) for machine in machines_of(lab)]
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return []


def name_option(command: F) -> F:
    """Add `--name`, as `name`."""
    return click.option(
        "--name",
        "-n",
        envvar="LAB_NAME",
        default="lab",
        show_default=True,
        help="The lab's name.",
        shell_complete=_complete_labs,
        callback=lambda _ctx, _param, value: check_name(value),
        is_eager=True,
    )(command)


def json_option(command: F) -> F:
    """Add `--json`, as `as_json`."""
    return click.option("--json", AS_JSON, envvar="LAB_JSON", is_flag=True, help="Print one JSON document.")(command)


def machines_of(lab: Lab) -> list[Machine]:
    """Return the gateways, then the nodes, then the services."""
    return lab.machines


def find_machine(lab: Lab, name: str) -> Machine:
    """Return a node (short or full name) or a gateway; raise LabNotFound with what there is."""
    machines = machines_of(lab)
    for machine in machines:
        if name in {machine.name, short_name(machine.name)}:
            return machine
    there = ", ".join(short_name(machine.name) for machine in machines) or "none"
    raise LabNotFound(
        f"the lab {lab.name} has no machine {name}", cause=f"it has: {there}", remedy=f"`lab status --name {lab.name}`"
    )


def find_machines(lab: Lab, names: Sequence[str]) -> list[Machine]:
    """Return the machines of *names*, in their order, each once; `all` means every node and gateway."""
    if "all" in names:
        return machines_of(lab)
    return list({machine.name: machine for machine in (find_machine(lab, name) for name in names)}.values())


def find_node(lab: Lab, name: str) -> Node:
    """Return a node; a gateway is a usage error, since it has no sshd and no faults of hosts."""
    machine = find_machine(lab, name)
    if not isinstance(machine, Node):
        raise LabUsageError(f"{name} is a gateway, no node", remedy=f"choose one of {_names(lab)}")
    return machine


def find_nodes(lab: Lab, names: Sequence[str]) -> list[Node]:
    """Return the nodes of *names*, each once; `all` means every node."""
    if "all" in names:
        return lab.nodes
    return list({node.name: node for node in (find_node(lab, name) for name in names)}.values())


def _names(lab: Lab) -> str:
    return ", ".join(node.short_name for node in lab.nodes)


def role_of(machine: Machine) -> str:
    """Return `gateway`, `node` or `service`."""
    if isinstance(machine, Node):
        return "service" if machine.spec.is_service else "node"
    return "gateway"

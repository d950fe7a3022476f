"""The command `lab`. Data goes to stdout, progress and errors to stderr; exit codes are those of lab/errors.py."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import click

from lab.drivers import KINDS, make, usable
from lab.errors import EnvironmentUnfit, LabError, LabNotFound
from lab.lab import Lab, destroy
from lab.names import check_name
from lab.progress import StderrProgress
from lab.state import StateFolder

F = TypeVar("F", bound=Callable[..., Any])

EPILOG = "Exit codes: 0 ok, 1 failure, 2 usage, 3 not found, 5 not ready in time, 6 machine unfit, 130 interrupted."


def _name_option(command: F) -> F:
    return click.option(
        "--name", "-n", envvar="LAB_NAME", default="lab", show_default=True, help="The lab's name (env LAB_NAME)."
    )(command)


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Provision SSH nodes and an Enterprise Gateway on this machine, and take them away again.

    Example: lab up && lab ssh node1 -- hostname && lab down
    """


@cli.command()
@_name_option
@click.option(
    "--nodes",
    envvar="LAB_NODES",
    type=click.IntRange(1, 100),
    help="How many [as many as it has, else 3] (env LAB_NODES).",
)
@click.option(
    "--driver", envvar="LAB_DRIVER", type=click.Choice(KINDS), help="[docker if an engine answers, else local]."
)
def up(name: str, nodes: int | None, driver: str | None) -> None:
    """Make the lab whole, whatever its state; end when a kernel has run on every node.

    Example: lab up --nodes 5 --name mine
    """
    progress = StderrProgress()
    done = False
    try:
        lab = Lab.up(name, nodes, progress, driver)
        done = True
    finally:
        progress.close(ok=done)
    for landing in lab.landings:
        click.echo(
            f"{landing.node}: a kernel ({lab.probed_kernelspec}) answered on {landing.hostname} "
            f"after {landing.seconds:.2f} s"
        )
    click.echo(f"gateway: {lab.gateway.url}")
    if name != "lab":
        click.echo(f"to use it: export LAB_NAME={name}")


@cli.command()
@_name_option
def down(name: str) -> None:
    """Remove everything of this lab and nothing else; fine if nothing is there.

    Example: lab down --name mine
    """
    folder = StateFolder(check_name(name))
    drivers = usable(name, folder)
    # Without its engine a docker lab can't be seen; deleting its folder and calling it gone would be a lie.
    if folder.path.exists() and not any(driver.kind == "docker" or driver.exists() for driver in drivers):
        make("docker", name, folder)
    removed = destroy(drivers, folder)
    for what in removed:
        click.echo(f"removed {what}", err=True)
    click.echo(f"the lab {name} is gone" if removed else f"there was no lab {name}", err=True)


@cli.command()
@_name_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def status(name: str, as_json: bool) -> None:
    """Say what there is: machines, states, addresses, ports. Exit code 1 when something doesn't run.

    Example: lab status --json
    """
    lab = Lab.attach(name)
    rows: list[dict[str, Any]] = []
    for gateway in lab.gateways:
        state = gateway.state
        where = gateway.url if state == "running" else "-"
        rows.append(
            {"machine": gateway.name, "role": "gateway", "state": state, "address": gateway.address, "at": where}
        )
    for node in lab.nodes:
        state = node.state
        where = f"127.0.0.1:{node.port}" if state != "stopped" else "-"
        rows.append({"machine": node.name, "role": "node", "state": state, "address": node.address, "at": where})
    if as_json:
        click.echo(json.dumps({"name": lab.name, "driver": lab.driver, "machines": rows}, indent=2))
    else:
        click.echo(f"lab {lab.name} ({lab.driver})")
        widths = [max((len(str(row[column])) for row in rows), default=0) for column in ("machine", "state", "address")]
        for row in rows:
            columns = zip((row["machine"], row["state"], row["address"]), widths, strict=True)
            click.echo("  " + "  ".join(str(text).ljust(width) for text, width in columns) + f"  {row['at']}")
    whole = bool(rows) and any(row["role"] == "gateway" for row in rows)
    if not whole or any(row["state"] != "running" for row in rows):
        click.echo(f"not whole: `lab up --name {name}` makes it so", err=True)
        sys.exit(1)


@cli.command()
@_name_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of shell exports.")
def env(name: str, as_json: bool) -> None:
    """Print what other programs need to use this lab.

    Example: eval "$(lab env)"; ssh -F "$LAB_SSH_CONFIG" node1
    """
    found = Lab.attach(name).environment()
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    values = {
        "LAB_NAME": found["name"],
        "LAB_GATEWAY_URL": found["gateway_url"],
        "LAB_SSH_CONFIG": found["ssh_config"],
        "EG_REMOTE_HOSTS": ",".join(node["name"] for node in found["nodes"]),
    }
    for variable, value in values.items():
        click.echo(f"export {variable}={shlex.quote(value)}")


@cli.command(context_settings={"ignore_unknown_options": True})
@_name_option
@click.argument("node")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def ssh(name: str, node: str, command: Sequence[str]) -> None:
    """Log in to NODE, or run COMMAND there, with strict host keys. The exit code is ssh's.

    Example: lab ssh node1 -- hostname
    """
    lab = Lab.attach(name)
    target = lab.node(node)
    if target.state != "running":
        raise LabError(f"{target.name} is {target.state}", remedy=f"`lab up --name {name}`")
    client = shutil.which("ssh")
    if client is None:
        raise EnvironmentUnfit("there is no ssh client here", remedy="install openssh-client")
    sys.stdout.flush()
    argv = [client, "-F", str(lab.ssh_config), target.name, *(["--", *command] if command else [])]
    os.execv(client, argv)  # noqa: S606 -- ssh takes this process over: terminal, signals and exit code are its own


@cli.command()
@_name_option
@click.argument("machine", required=False)
@click.option("--tail", type=click.IntRange(1), help="Only the last lines of each.")
def logs(name: str, machine: str | None, tail: int | None) -> None:
    """Print the log of MACHINE (a node or a gateway), or of all.

    Example: lab logs gateway --tail 50
    """
    lab = Lab.attach(name)
    machines = [*lab.gateways, *lab.nodes]
    if machine is not None:
        machines = [each for each in machines if machine in {each.name, each.name.partition(".")[0]}]
        if not machines:
            raise LabNotFound(f"the lab {name} has no machine {machine}", remedy=f"`lab status --name {name}`")
    for each in machines:
        if len(machines) > 1:
            click.echo(f"==> {each.name} <==")
        click.echo(each.read_logs(tail), nl=False)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; called by the script `lab`. Errors become one message and their exit code."""
    try:
        cli.main(args=arguments, prog_name="lab", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except LabError as error:
        click.echo(f"lab: {error}", err=True)
        sys.exit(error.exit_code)
    sys.exit(0)

"""The verbs that need no lab: doctor, validate, schema, completion, version."""

from __future__ import annotations

import dataclasses
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import click
from click.shell_completion import get_completion_class

from lab.cli.options import DRIVER, Verb, json_option
from lab.cli.output import note, show
from lab.drivers import choice
from lab.errors import EnvironmentUnfit, LabUsageError

_MARKS = {"ok": "ok  ", "warning": "warn", "missing": "MISS", "unknown": "?   "}


@click.command(cls=Verb)
@click.option(
    "--driver",
    envvar=["LAB_DRIVER", "LAB_DOCTOR_DRIVER"],
    type=DRIVER,
    help="[docker if an engine answers, else local]",
)
@json_option
def doctor(driver: str | None, as_json: bool) -> int:
    """Check all that a first `lab up` can stumble on, with the remedy for each; exit code 6 if something essential is missing.

    Changes nothing.

    Example: lab doctor --driver local
    """
    from lab.doctor import examine

    report = examine(driver)
    if as_json:
        show(report.as_dict())
    else:
        for finding in report.findings:
            click.echo(f"{_MARKS[finding.state]} {finding.name}: {finding.found}")
            if finding.remedy and finding.state != "ok":
                click.echo(f"     -> {finding.remedy}")
        missing = len(report.missing)
        note(
            f"a {report.driver} lab can be made here"
            if report.fit
            else f"a {report.driver} lab can't be made here: {missing} essential thing{'s are' if missing > 1 else ' is'} missing"
        )
    return 0 if report.fit else EnvironmentUnfit.exit_code


@click.command(cls=Verb)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
def validate(file: Path, as_json: bool) -> None:
    """Check FILE, a lab.toml, without making anything; what is wrong is named with the nearest right word, exit code 2.

    Example: lab validate docs/lab.example.toml
    """
    from lab.topology import load

    topology = load(file, drivers=choice.names())
    if as_json:
        show(dataclasses.asdict(topology))
        return
    nodes = sum(group.count for group in topology.nodes.values())
    gateways = sum(group.count for group in topology.gateways.values())
    click.echo(f"{file}: {nodes} nodes, {gateways} gateways, {len(topology.faults)} planned faults")


@click.command("schema", cls=Verb)
@json_option
def schema(as_json: bool) -> None:
    """Print the JSON schema of lab.toml, which is what docs/lab.schema.json holds. It is JSON with and without --json.

    Example: lab schema > /tmp/lab.schema.json
    """
    from lab.topology.schema import text

    del as_json
    click.echo(text(), nl=False)


@click.command(cls=Verb)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that makes SHELL complete verbs, options, labs, machines and faults.

    Example: eval "$(lab completion bash)"
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise LabUsageError(f"there is no completion for {shell}")
    # Not kind.source() alone: for bash click would look for one and complain about its age on stderr.
    maker = kind(click.get_current_context().find_root().command, {}, "lab", "_LAB_COMPLETE")
    click.echo(maker.source_template % maker.source_vars())


@click.command(cls=Verb)
@json_option
def version(as_json: bool) -> None:
    """Print the versions of the lab, of what it tests, and of what it runs on.

    Example: lab version --json
    """
    document = _versions()
    if as_json:
        show(document)
    else:
        for key, value in document.items():
            click.echo(f"{key}: {value if value is not None else '-'}")


def _versions() -> dict[str, Any]:
    from lab.drivers.checkout import ROOT

    found: dict[str, Any] = {
        "lab": _version("eg_distributed_lab"),
        "eg_distributed": _version("eg_distributed"),
        "python": platform.python_version(),
        "asyncssh": _version("asyncssh"),
        "checkout": str(ROOT),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
    for kind in choice.kinds():
        found |= kind.versions()
    return found


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


VERBS = (doctor, validate, schema, completion, version)

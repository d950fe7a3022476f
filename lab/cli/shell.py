"""The verbs that reach into machines: ssh, exec, cp."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click

from lab.cli.options import (
    DURATION,
    Verb,
    complete_machines,
    find_machine,
    find_machines,
    find_node,
    find_nodes,
    json_option,
    name_option,
)
from lab.cli.output import note, show
from lab.drivers.machines import Machine, Node
from lab.errors import EnvironmentUnfit, LabError, LabUsageError
from lab.lab import Lab

_PASS_ON = {"ignore_unknown_options": True, "allow_interspersed_args": False}
"""What follows the machine's name is the command's, dashes and all, with or without `--`."""

_AT_ONCE = 8


def _words(ctx: click.Context, param: click.Parameter, value: Sequence[str]) -> Sequence[str]:
    """Drop the `--` before a command: click leaves it where options end at the first word."""
    if tuple(value[:1]) == ("--",):
        value = value[1:]
    if param.required and not value:
        raise click.MissingParameter(ctx=ctx, param=param)
    return value


Result = dict[str, Any]
"""`machine`, `exit_code`, `stdout`, `stderr`."""


@click.command(cls=Verb, context_settings=_PASS_ON)
@name_option
@click.option("--user", "-u", help="Log in as this user [the lab's].")
@click.option("--timeout", type=DURATION, default="10m", show_default=True, help="With `all`: how long each may take.")
@click.argument("node", shell_complete=complete_machines)
@click.argument("command", nargs=-1, type=click.UNPROCESSED, callback=_words)
def ssh(name: str, user: str | None, timeout: float, node: str, command: Sequence[str]) -> int:
    """Log in to NODE, or run COMMAND there (or on `all`) by SSH, with strict host keys. The exit code is ssh's.

    Options of `lab ssh` stand before NODE. As with ssh itself, the node's login shell reads COMMAND.

    Example: lab ssh node1 -- hostname
    """
    lab = Lab.attach(name)
    client = shutil.which("ssh")
    if client is None:
        raise EnvironmentUnfit("there is no ssh client here", remedy="install openssh-client, or use `lab exec`")
    argv = [client, "-F", str(lab.ssh_config), *(["-l", user] if user else [])]
    if node == "all":
        if not command:
            raise LabUsageError("there is no command to run", remedy=f"`lab ssh {node} -- COMMAND`")
        nodes = [_running(each, name) for each in find_nodes(lab, [node])]
        return _on_all(nodes, lambda each: _ssh([*argv, "-n", "-o", "BatchMode=yes"], each, command, timeout), False)
    target = _running(find_node(lab, node), name)
    sys.stdout.flush()
    # ssh takes this process over: terminal, signals and exit code are its own.
    words = ["--", *command] if command else []
    return os.execv(client, [*argv, target.name, *words])  # noqa: S606


def _running(node: Node, name: str) -> Node:
    state = node.state
    if state != "running":
        raise LabError(f"{node.name} is {state}", remedy=f"`lab start --name {name} {node.short_name}`")
    return node


def _ssh(argv: Sequence[str], node: Machine, command: Sequence[str], timeout: float) -> Result:
    try:
        done = subprocess.run(
            [*argv, node.name, "--", *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"exit_code": 124, "stdout": "", "stderr": f"no end within {timeout:g} s\n"}
    return {"exit_code": done.returncode, "stdout": done.stdout, "stderr": done.stderr}


@click.command("exec", cls=Verb, context_settings=_PASS_ON)
@name_option
@click.option("--user", "-u", help="Run it as this user [a node's `lab`, a gateway's `gateway`].")
@click.option("--timeout", type=DURATION, default="10m", show_default=True, help="End it after this time.")
@json_option
@click.argument("machine", shell_complete=complete_machines)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, callback=_words)
def exec_(name: str, user: str | None, timeout: float, machine: str, command: Sequence[str], as_json: bool) -> int:
    """Run COMMAND on MACHINE (a node, a gateway, or `all`) past its SSH, so that it works when SSH does not.

    No shell reads COMMAND. Options of `lab exec` stand before MACHINE. The exit code is the command's.

    Example: lab exec --user root node1 -- iptables -S
    """
    machines = find_machines(Lab.attach(name), [machine])

    def work(each: Machine) -> Result:
        done = each.exec(list(command), user=user, timeout=timeout)
        return {"exit_code": done.exit_code, "stdout": done.stdout, "stderr": done.stderr}

    return _on_all(machines, work, as_json)


def _on_all(machines: Sequence[Machine], work: Callable[[Machine], Result], as_json: bool) -> int:
    """Do *work* on *machines* together, print what came, in their order; return the highest exit code."""

    def attempt(machine: Machine) -> Result:
        try:
            return {"machine": machine.name, **work(machine)}
        except LabError as error:
            if len(machines) == 1:
                raise
            return {"machine": machine.name, "exit_code": error.exit_code, "stdout": "", "stderr": f"lab: {error}\n"}

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        results = list(pool.map(attempt, machines))
    if as_json:
        show(results)
    else:
        for result in results:
            prefix = f"{result['machine']}: " if len(results) > 1 else ""
            _print(result["stdout"], prefix, err=False)
            _print(result["stderr"], prefix, err=True)
    return max((int(result["exit_code"]) for result in results), default=0)


def _print(text: str, prefix: str, *, err: bool) -> None:
    if not prefix:
        click.echo(text, nl=False, err=err)
        return
    for line in text.splitlines():
        click.echo(f"{prefix}{line}", err=err)


@click.command(cls=Verb)
@name_option
@click.argument("source", metavar="SOURCE")
@click.argument("target", metavar="TARGET")
def cp(name: str, source: str, target: str) -> None:
    """Copy a file or a folder from or to a machine; one of SOURCE and TARGET is MACHINE:PATH, PATH absolute.

    It goes past SSH, so it works when SSH does not. What it writes on a machine is its login user's.

    Example: lab cp /etc/hostname node1:/tmp/from-here && lab cp node1:/tmp/from-here /tmp/back
    """
    there, here = _place(source), _place(target)
    if (there is None) == (here is None):
        raise LabUsageError(
            "one of the two has to be on a machine, the other here", remedy="`lab cp node1:/etc/hostname .`"
        )
    lab = Lab.attach(name)
    if there is not None:
        note(f"{source} is in {_copy_out(find_machine(lab, there[0]), there[1], Path(target))}")
    elif here is not None:
        if not Path(source).exists():
            raise LabUsageError(f"{source} is not there", remedy="name a file or a folder of this machine")
        note(f"{source} is in {here[0]}:{_copy_in(find_machine(lab, here[0]), Path(source), here[1])}")


def _copy_out(machine: Machine, path: str, target: Path) -> Path:
    """Copy as `cp -r` would: into a folder that is there, else under the target's own name. Return where it is."""
    if target.is_dir():
        machine.copy_out(path, target)
        return target / Path(path).name
    if not target.parent.is_dir():
        raise LabUsageError(f"{target.parent} is not there", remedy=f"`mkdir -p {target.parent}`")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".lab-cp-") as folder:
        machine.copy_out(path, Path(folder))
        Path(folder, Path(path).name).replace(target)
    return target


def _copy_in(machine: Machine, source: Path, path: str) -> str:
    """The other way round; only the machine can say whether *path* is a folder there."""
    if path.endswith("/") or machine.exec(["test", "-d", path]).exit_code == 0:
        machine.copy_in(source, path)
        return f"{path.rstrip('/')}/{source.resolve().name}"
    folder, _, name = path.rpartition("/")
    with tempfile.TemporaryDirectory(prefix="lab-cp-") as staging:
        renamed = Path(staging, name)
        if source.is_dir():
            shutil.copytree(source, renamed, symlinks=True)
        else:
            shutil.copy2(source, renamed)
        machine.copy_in(renamed, folder or "/")
    return path


def _place(text: str) -> tuple[str, str] | None:
    """Return machine and path of `MACHINE:PATH`; None for a path of this machine, `./a:b` among them."""
    machine, separator, path = text.partition(":")
    if not separator or "/" in machine:
        return None
    if not path.startswith("/"):
        raise LabUsageError(f"{path!r} is no absolute path of {machine}", remedy=f"`{machine}:/tmp/…`")
    return machine, path


VERBS = (ssh, exec_, cp)

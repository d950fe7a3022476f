"""The verbs that read: status, ls, inspect, env, ssh-config, stats."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import click

from lab.cli.options import (
    Verb,
    complete_machines,
    find_machines,
    json_option,
    machines_of,
    name_option,
    role_of,
)
from lab.cli.output import age, left, note, print_table, show
from lab.drivers.machines import Gateway, Machine, Node
from lab.errors import LabError
from lab.lab import Lab
from lab.names import short_name


def _row(machine: Machine) -> dict[str, Any]:
    """Return what is seen of a machine now; one that vanishes while we look is `gone`."""
    try:
        state: str = machine.state
        at = ""
        if isinstance(machine, Gateway) and state == "running":
            at = machine.url
        elif isinstance(machine, Node) and state != "stopped":
            at = f"127.0.0.1:{machine.port}"
    except LabError:
        state, at = "gone", ""
    return {
        "machine": machine.name,
        "role": role_of(machine),
        "state": state,
        "address": machine.address,
        "at": at or "-",
    }


@click.command(cls=Verb)
@name_option
@json_option
def status(name: str, as_json: bool) -> int:
    """Say what there is: machines, states, addresses, ports, faults. Exit code 1 when something does not run.

    Example: lab status --json
    """
    lab = Lab.attach(name)
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(_row, machines_of(lab)))
    faults = _faults(lab)
    clusters = _clusters(lab, rows)
    whole = any(row["role"] == "node" for row in rows) and all(row["state"] == "running" for row in rows)
    whole = whole and not any(cluster["missing"] for cluster in clusters)
    if as_json:
        found = {"name": lab.name, "driver": lab.driver, "whole": whole, "machines": rows, "clusters": clusters}
        show({**found, "faults": faults})
    else:
        click.echo(f"lab {lab.name} ({lab.driver})")
        columns = ("machine", "role", "state", "address", "at")
        print_table([column.upper() for column in columns], [[row[c] for c in columns] for row in rows], indent="  ")
        for line in (line for cluster in clusters for line in _cluster_lines(cluster)):
            click.echo(f"  {line}")
        for fault in faults:
            click.echo(f"  fault {fault['id']}: {fault['name']} on {', '.join(fault['nodes'])}")
    if not whole:
        note(f"not whole: `lab up --name {name}` makes it so")
    return 0 if whole else 1


def _clusters(lab: Lab, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    if not any(row["role"] == "service" for row in rows):
        return []
    from lab.spark.clusters import report

    return report(lab)


def _cluster_lines(cluster: dict[str, Any]) -> list[str]:
    """Return what people read of a cluster: who is in and who is not, then its applications that run or wait."""
    if "error" in cluster:
        return [f"{cluster['kind']}: does not answer: {cluster['error']}"]
    members = ", ".join(f"{short_name(member['node'])} {member['state']}" for member in cluster["members"])
    lost = [short_name(name) for name in cluster["missing"]]
    told = f"{cluster['kind']}: {members or 'nobody is in'}" + (f"; missing: {', '.join(lost)}" if lost else "")
    lines = [f"{told}; {cluster['url']}"]
    for app in cluster["applications"]:
        if app["state"] in {"RUNNING", "WAITING", "ACCEPTED", "SUBMITTED"}:
            where = f" on {', '.join(map(short_name, app['nodes']))}" if app["nodes"] else ""
            lines.append(f"  {app['id']} {app['state']} {app['name']}{where}")
    return lines


def _faults(lab: Lab) -> list[dict[str, Any]]:
    from lab.faults import active

    return [fault.as_dict() for fault in active(lab)]


@click.command(cls=Verb)
@json_option
def ls(as_json: bool) -> None:
    """List the labs of this machine: how many machines each has, whose it is, and when it ends.

    Example: lab ls
    """
    from lab.lifetime.finding import find_labs, unseen

    found = find_labs()
    if why := unseen():
        note(f"{why}: labs on one can't be seen")
    if as_json:
        show([lab.as_dict() for lab in found])
        return
    rows = [
        (
            lab.name,
            lab.driver,
            lab.nodes,
            lab.gateways,
            f"{lab.running}/{lab.machines}",
            age(lab.made),
            lab.owner,
            left(lab.lease.expires) if lab.lease else "never",
            "+".join(lab.clusters),
        )
        for lab in found
    ]
    if rows:
        print_table(("NAME", "DRIVER", "NODES", "GATEWAYS", "RUNNING", "AGE", "OWNER", "ENDS", "WITH"), rows)
    else:
        note("there is no lab; `lab up` makes one")


@click.command(cls=Verb)
@name_option
@click.argument("machines", nargs=-1, shell_complete=complete_machines)
@json_option
def inspect(name: str, machines: Sequence[str], as_json: bool) -> None:
    """Say everything that is known of MACHINES, or of all.

    Example: lab inspect node1 --json
    """
    lab = Lab.attach(name)
    with ThreadPoolExecutor(8) as pool:
        documents = list(pool.map(_document, find_machines(lab, machines or ("all",))))
    if as_json:
        show(documents)
        return
    for document in documents:
        click.echo(document.pop("machine"))
        for key, value in _flat(document):
            click.echo(f"  {key}: {value}")


def _document(machine: Machine) -> dict[str, Any]:
    found: dict[str, Any] = _row(machine)
    if isinstance(machine, Node):
        found |= {
            "host_key": machine.host_key,
            "trusted": machine.trusted,
            "group": machine.group,
            "roles": list(machine.roles),
            "daemons": list(machine.spec.daemons),
        }
    elif isinstance(machine, Gateway):
        found |= {"hosts": list(machine.hosts), "group": machine.group}
    return {**found, "driver": machine.inspect()}


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Return nested dictionaries as dotted keys with text."""
    if isinstance(value, dict):
        return [
            line for key, inner in value.items() for line in _flat(inner, f"{prefix}.{key}" if prefix else str(key))
        ]
    return [(prefix, ", ".join(map(str, value)) if isinstance(value, list) else str(value))]


@click.command(cls=Verb)
@name_option
@json_option
def env(name: str, as_json: bool) -> None:
    """Print what other programs need to use this lab, as shell exports.

    Example: eval "$(lab env)"; ssh -F "$LAB_SSH_CONFIG" node1 hostname
    """
    found = Lab.attach(name).environment()
    if as_json:
        show(found)
        return
    masters = {f"LAB_{key.upper()}": found.get(key, "") for key in ("spark_master", "spark_ui", "yarn_rm", "yarn_ui")}
    values = {
        "LAB_NAME": found["name"],
        "LAB_GATEWAY_URL": found["gateway_url"],
        "LAB_SSH_CONFIG": found["ssh_config"],
        "EG_REMOTE_HOSTS": ",".join(node["name"] for node in found["nodes"]),
        **{
            variable: value
            for variable, value in {"LAB_JUPYTERLAB_URL": found["jupyterlab_url"], **masters}.items()
            if value
        },
    }
    for variable, value in values.items():
        click.echo(f"export {variable}={shlex.quote(value or '')}")


@click.command(cls=Verb)
@name_option
@click.option("--path", is_flag=True, help="Print where the file is, instead of what it says.")
@json_option
def ssh_config(name: str, path: bool, as_json: bool) -> None:
    """Print the ssh_config of this lab: strict host keys, the lab's own key, no `Host *`.

    The file stays right when ports change, so include it rather than copying it.

    Example: ssh -F "$(lab ssh-config --path)" node1 hostname
    """
    lab = Lab.attach(name)
    file = lab.ssh_config
    if as_json:
        hosts = [
            {"name": n.name, "address": n.address, "port": n.port, "user": n.entry().user, "host_key": n.host_key}
            for n in lab.nodes
        ]
        identity, known_hosts = str(lab.folder.identity), str(lab.folder.known_hosts)
        show({"path": str(file), "identity": identity, "known_hosts": known_hosts, "hosts": hosts})
    elif path:
        click.echo(str(file))
    else:
        click.echo(file.read_text(), nl=False)


@click.command(cls=Verb)
@name_option
@json_option
def stats(name: str, as_json: bool) -> None:
    """Say which node got how many kernels, and how even that is.

    Example: lab stats --json
    """
    from lab.observe.stats import measure

    found = measure(Lab.attach(name))
    if as_json:
        show(found.as_dict())
    else:
        for line in found.lines():
            click.echo(line)


VERBS = (status, ls, inspect, env, ssh_config, stats)

"""The operator's commands: what runs on the hosts, whichever gateway started it, its log, the end of it, and kernelspecs.

    jupyter distributed hosts                        list hosts: whether they answer, and how many kernels run there
    jupyter distributed kernels [--orphans]          list kernels; --orphans: those that no gateway answers for, or could end
    jupyter distributed end HOST KERNEL              end one
    jupyter distributed logs KERNEL [--follow]       print what one printed, also for a day after its end
    jupyter distributed adopt [KERNEL …]             have a running Jupyter server take over kernels of another one
    jupyter distributed templates                    list what warm kernels are forked from, and why starts were cold
    jupyter distributed doctor [HOST …]              say what stands between the gateway and a kernel on each host
    jupyter distributed kernelspecs install …        install our sample kernelspecs
    jupyter distributed kernelspecs convert DIR …    have a kernelspec run by our proxy, or on a standalone master
    jupyter distributed kernelspecs list             say which kernelspecs of their own the hosts have, and why not others

`python -m eg_distributed …` is the same, where `jupyter` is not on the path.

Run it where the gateway runs, as the gateway's user: hosts, login and settings are then the gateway's own.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from traitlets import TraitError
from traitlets.config import Config
from traitlets.config.loader import ConfigFileNotFound, PyFileConfigLoader

from eg_distributed.cluster import Cluster
from eg_distributed.errors import DistributedError, HostError, KernelGone, RequestInvalid, RequestRefused
from eg_distributed.hosts import HostSet, parse_hosts
from eg_distributed.kernelspecs import commands
from eg_distributed.overview import Unread, hosts_seen, kernels_seen, kernels_written, unended_on
from eg_distributed.settings import Distributed
from eg_distributed.unended import Unended
from eg_distributed.wire import one_line

from . import adopt, doctor, kernelspecs, logs, templates
from .tables import age, table

__all__ = ["main", "make_parser"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the process's exit code.

    0, 1 if a host or a kernel failed, 2 for a wrong command line, 130 for Ctrl-C.
    """
    called = "jupyter distributed" if Path(sys.argv[0]).name == "jupyter-distributed" else "python -m eg_distributed"
    options = make_parser(called).parse_args(argv)
    lists_kernelspecs = options.command == "kernelspecs" and options.verb == "list"
    if options.command == "kernelspecs" and not lists_kernelspecs:
        return commands.run(options)
    if options.command == "adopt":
        return _adopt(options)
    try:
        config = _config(options.config) if options.config is not None else kernelspecs.jupyters_config()
        settings = Distributed(config=config, for_provisioner=lists_kernelspecs)
        hosts = parse_hosts(options.hosts or _remote_hosts(config))
    except (DistributedError, TraitError, ValueError, ConfigFileNotFound) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # An owner of its own: an agent that hears the gateway's name from another process gives up that gateway's streams.
    cluster = Cluster(settings, f"operator-{secrets.token_hex(4)}")
    try:
        if options.command == "kernels":
            unended = unended_on(settings, hosts if options.hosts else None) if options.orphans else None
            return _list(cluster, hosts, unended, as_json=options.json)
        if options.command == "hosts":
            return _list_hosts(cluster, hosts, as_json=options.json)
        if options.command == "templates":
            return templates.show(cluster, hosts, as_json=options.json)
        if lists_kernelspecs:
            return kernelspecs.show(cluster, hosts, as_json=options.json)
        if options.command == "doctor":
            named = parse_hosts([name for word in options.host for name in word.split(",")])
            return doctor.run(cluster, named or hosts, as_json=options.json)
        if options.command == "logs":
            how = {"follow": options.follow, "previous": options.previous, "as_json": options.json}
            return logs.show(cluster, hosts, options.kernel, **how)
        return _end(cluster, options.host, options.kernel, force=options.force, as_json=options.json)
    except DistributedError as error:
        if options.json:
            print(json.dumps({"error": str(error), "host": error.host}))
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130  # as a shell has it
    except BrokenPipeError:  # `logs … | head`: Python's own flush at the end must not complain of it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        cluster.close()


def _adopt(options: argparse.Namespace) -> int:
    how = {"server": options.server, "running": options.running, "into": options.into, "as_json": options.json}
    try:
        return adopt.run(options.kernel, **how)
    except DistributedError as error:
        if options.json:
            print(json.dumps({"error": str(error)}))
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, RequestInvalid) else 1


def make_parser(called: str) -> argparse.ArgumentParser:
    """Return the parser of a command that is *called* so; the reference in the docs is made from it, too."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--hosts",
        help="hosts to ask, separated by commas; kernelspecs may name others than the gateway (default: its remote_hosts, "
        "else EG_REMOTE_HOSTS)",
    )
    common.add_argument(
        "--config",
        help="the gateway's configuration file, for what it sets of c.Distributed and c.EnterpriseGatewayApp.remote_hosts "
        "(default: jupyter_config.py and jupyter_server_config.py, where Jupyter looks for them)",
    )
    common.add_argument("--json", action="store_true", help="answer for programs: one JSON object on stdout")
    parser = argparse.ArgumentParser(prog=called, description="Kernels on the hosts of a gateway.")
    verbs = parser.add_subparsers(dest="command", required=True)
    verbs.add_parser(
        "hosts", parents=[common], help="list the hosts: whether they answer, and how many kernels run there"
    )
    kernels = verbs.add_parser("kernels", parents=[common], help="list the kernels on the hosts, of all gateways")
    kernels.add_argument(
        "--orphans",
        action="store_true",
        help="only those that no gateway answers for now, and those that this user's gateways here could not end yet",
    )
    end = verbs.add_parser(
        "end", parents=[common], help="end one kernel: no process of it stays, and no file but its log"
    )
    end.add_argument("--force", action="store_true", help="even if a gateway answers for it")
    end.add_argument("host", metavar="HOST")
    end.add_argument("kernel", metavar="KERNEL", help="its id, as `kernels` shows it")
    log = verbs.add_parser(
        "logs",
        parents=[common],
        help="print a kernel's log: while it runs and for a day after its end",
    )
    log.add_argument("kernel", metavar="KERNEL", help="its id, or how it begins")
    how = log.add_mutually_exclusive_group()
    how.add_argument("-f", "--follow", action="store_true", help="go on until the kernel ends")
    how.add_argument("--previous", action="store_true", help="of the start before the last one, as after a restart")
    verbs.add_parser(
        "templates",
        parents=[common],
        help="list what warm kernels are forked from, what that costs, and why starts were cold",
    )
    examined = verbs.add_parser(
        "doctor", parents=[common], help="say what stands between the gateway and a kernel on each host"
    )
    examined.add_argument("host", metavar="HOST", nargs="*", help="default: all of the gateway's hosts")
    taking = verbs.add_parser(
        "adopt", help="have a running Jupyter server take over kernels of this user's other servers"
    )
    taking.add_argument("kernel", metavar="KERNEL", nargs="*", help="its id, or how it begins; default: list them all")
    taking.add_argument("--server", default="", metavar="ID", help="all kernels of that server")
    taking.add_argument("--running", action="store_true", help="also from a server that runs, which lets go of them")
    taking.add_argument("--into", default="", metavar="PORT", help="the server that takes them, where several run")
    taking.add_argument("--json", action="store_true", help="answer for programs: one JSON object on stdout")
    commands.add_parsers(verbs, common)
    return parser


def _config(path: str) -> Config:
    """Return what the configuration file at *path* says; raises ConfigFileNotFound."""
    file = Path(path).expanduser().absolute()
    loaded: Config = PyFileConfigLoader(file.name, path=str(file.parent)).load_config()
    return loaded


def _remote_hosts(config: Config) -> str | list[str]:
    """Return the gateway's hosts: of its configuration (Enterprise Gateway's, or a provisioner's), else the environment's.

    Without any it is this machine, as with Enterprise Gateway.
    """
    sections = (config.get(name, {}) for name in ("EnterpriseGatewayApp", "Distributed"))
    given: str | list[str] | None = next((hosts for each in sections if (hosts := each.get("remote_hosts"))), None)
    return given or os.environ.get("EG_REMOTE_HOSTS") or "localhost"


# -- commands ----------------------------------------------------------------------------------------------------


def _list_hosts(cluster: Cluster, hosts: HostSet, *, as_json: bool) -> int:
    """List *hosts*; one that does not answer is named with why, on stderr, as by `kernels`."""
    found = cluster.submit(hosts_seen(cluster, hosts)).result()
    if as_json:
        print(json.dumps({"hosts": found}, indent=2))
    else:
        print(table(_HOST_COLUMNS, [_host_row(host) for host in found]))
    errors = [host["error"] for host in found if host["error"]]
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return 1 if errors else 0


_HOST_COLUMNS = ("HOST", "STATE", "KERNELS", "ORPHANS", "NOTE")


def _host_row(host: dict[str, Any]) -> tuple[str, ...]:
    if host["same_as"]:
        return host["host"], host["state"], "", "", f"the same machine and login as {host['same_as']}"
    counts = ("", "") if host["kernels"] is None else (str(host["kernels"]), str(host["orphans"]))
    return host["host"], host["state"], *counts, ""


def _list(cluster: Cluster, hosts: HostSet, unended: tuple[list[Unended], Unread] | None, *, as_json: bool) -> int:
    """List the kernels on *hosts*; with *unended* only orphans, and these."""
    seen = cluster.submit(kernels_seen(cluster, hosts, orphans=unended is not None)).result()
    still, unread = unended or ([], {})
    written = kernels_written(seen, unended)
    kernels, errors = written["kernels"], written["errors"]
    if as_json:
        print(json.dumps(written, indent=2))
        still = []
    elif kernels:
        print(table(_COLUMNS, [_row(kernel) for kernel in kernels]))
    elif not still:
        print("no kernels" if unended is None else "no orphans")
    if still:
        print(f"{chr(10) if kernels else ''}still to be ended:")
        print(table(_UNENDED_COLUMNS, [_unended_row(each) for each in still]))
    for where, error in errors.items():
        print(f"error: {where}: {error}" if where in unread else f"error: {error}", file=sys.stderr)
    return 1 if errors else 0


_COLUMNS = ("HOST", "KERNEL", "STATE", "PID", "AGE", "OWNER", "ANSWERED FOR")


def _row(kernel: dict[str, Any]) -> tuple[str, ...]:
    started = age(time.time() - kernel["start_time"])
    claimed = "yes" if kernel["claimed"] else "no"
    before = kernel["before"]
    state = kernel["state"] if before < 0 else f"{kernel['state']}, {before} before it"
    return (kernel["host"], kernel["kernel"], state, str(kernel["pid"] or ""), started, kernel["owner"], claimed)


_UNENDED_COLUMNS = ("HOST", "KERNEL", "SINCE", "NEXT TRY", "CAUSE")


def _unended_row(each: Unended) -> tuple[str, ...]:
    now = time.time()
    if not each.next_try:
        again = "when its host is back"
    elif each.next_try > now:
        again = f"in {age(each.next_try - now)}"
    else:  # under way, or left by a gateway that does not run
        again = "now, or with the gateway's next start"
    return each.host, each.kernel, f"{age(now - each.since)} ago", again, one_line(each.cause) or "unknown"


def _end(cluster: Cluster, host: str, kernel_id: str, *, force: bool, as_json: bool) -> int:
    names = parse_hosts([host])
    if not names:
        raise RequestInvalid("no host is named", remedy="name it as remote_hosts does")
    host = names[0]
    answer = cluster.submit(cluster.list_kernels(names)).result()[host]
    if isinstance(answer, HostError):
        raise answer
    kernel = next((kernel for kernel in answer if kernel.kernel == kernel_id), None)
    if kernel is None:
        raise KernelGone(f"no kernel {kernel_id} is there", host=host, remedy="see `kernels` for what runs where")
    if kernel.claimed and not force:
        raise RequestRefused(
            f"the gateway {kernel.owner} answers for the kernel {kernel_id}",
            host=host,
            remedy="delete it there, or say --force",
        )
    cluster.submit(cluster.end(host, kernel_id)).result()
    print(json.dumps({"host": host, "kernel": kernel_id, "ended": True}) if as_json else f"ended {kernel_id} on {host}")
    return 0

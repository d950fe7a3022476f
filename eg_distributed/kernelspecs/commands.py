"""`kernelspecs install` and `kernelspecs convert`: the part of the operator's commands that touches no host."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from . import LANGUAGES, MASTER_URL, Site, for_every_client, names, needs_master, sample
from .conversion import ConversionError, convert

SYSTEM = Path("/usr/local/share/jupyter")
"""Where Jupyter, and Enterprise Gateway's own instructions, keep kernelspecs for everybody."""


def add_parsers(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], asks_hosts: argparse.ArgumentParser
) -> None:
    """Add the command `kernelspecs` to *commands*; *asks_hosts* has the options of commands that ask hosts, as `list` does."""
    parser = commands.add_parser(
        "kernelspecs", help="install our sample kernelspecs, convert those that you have, or list those of the hosts"
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    install = verbs.add_parser("install", help="install the samples, filled in for this site")
    install.add_argument("names", nargs="*", metavar="NAME", help=f"which ones (default: all): {', '.join(names())}")
    install.add_argument(
        "--language", action="append", choices=LANGUAGES, help="only those of this language; repeatable"
    )
    install.add_argument("--spark-home", help="where Spark is on the nodes")
    install.add_argument(
        "--master", help="the standalone master, spark://HOST:7077; without it, none of those that need it"
    )
    install.add_argument("--hadoop-conf-dir", help="the folder with YARN's client configuration on the nodes")
    install.add_argument("--python", help="the interpreter with ipykernel on the nodes, for kernels and for executors")
    install.add_argument("--remote-hosts", help="hosts for these kernelspecs only, separated by commas")
    install.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="one more variable; repeatable"
    )
    install.add_argument("--replace", action="store_true", help="replace kernelspecs of the same names")
    where = install.add_mutually_exclusive_group()
    where.add_argument("--user", action="store_true", help="for the gateway's user alone")
    where.add_argument("--sys-prefix", action="store_true", help="into the environment that runs this command")
    where.add_argument("--prefix", type=Path, help="below PREFIX/share/jupyter")
    change = verbs.add_parser(
        "convert", help="show, or with --write make, a kernelspec that runs by our proxy and provisioner"
    )
    change.add_argument("folder", type=Path, metavar="DIR", help="the kernelspec's folder")
    change.add_argument("--master", help="make a copy that runs on this standalone master, spark://HOST:7077")
    change.add_argument("--name", help="the copy's name (default: the same, with standalone for yarn_client)")
    change.add_argument("--write", action="store_true", help="do it; without this only the difference is shown")
    verbs.add_parser(
        "list",
        parents=[asks_hosts],
        help="say which kernelspecs hosts have for a server's launcher, and why not others",
    )


def run(options: argparse.Namespace) -> int:
    """Run the verb that *options* name; return the process's exit code."""
    try:
        return _install(options) if options.verb == "install" else _convert(options)
    except (ConversionError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _install(options: argparse.Namespace) -> int:
    offered = names(options.language or LANGUAGES)
    if unknown := sorted(set(options.names) - set(offered)):
        print(f"error: there is no sample {unknown[0]!r} among {', '.join(offered)}", file=sys.stderr)
        return 2
    pairs = [entry.partition("=") for entry in options.env]
    if wrong := [name for name, equals, _ in pairs if not (name and equals)]:
        print(f"error: --env {wrong[0]} is no NAME=VALUE", file=sys.stderr)
        return 2
    if options.master is not None and not MASTER_URL.match(options.master):
        print(f"error: --master {options.master} is no standalone master's URL: spark://HOST:7077", file=sys.stderr)
        return 2
    site = Site(
        spark_home=options.spark_home,
        master=options.master,
        hadoop_conf_dir=options.hadoop_conf_dir,
        python=options.python,
        remote_hosts=options.remote_hosts,
        env={name: value for name, _, value in pairs},
    )
    folder = _data_folder(options) / "kernels"
    chosen: dict[Path, dict[str, Any]] = {}
    for name in options.names or offered:
        spec = sample(name, site)
        if needs_master(spec) and options.master is None:
            if name in options.names:
                print(f"error: {name} needs --master spark://HOST:7077", file=sys.stderr)
                return 2
            print(f"left out {name}: it needs --master spark://HOST:7077")
            continue
        chosen[folder / name] = for_every_client(spec)
    there = [str(target) for target in chosen if target.exists()]
    if there and not options.replace:
        raise ConversionError(
            f"{', '.join(there)}: there already, and nothing was installed; say --replace, or remove it"
        )
    for target, spec in chosen.items():
        target.mkdir(parents=True, exist_ok=True)
        (target / "kernel.json").write_text(json.dumps(spec, indent=2) + "\n", "utf-8")
        print(f"installed {target}")
    return 0


def _data_folder(options: argparse.Namespace) -> Path:
    if options.user:
        # The gateway's environment has it; only this option needs it.
        from jupyter_core.paths import jupyter_data_dir

        return Path(jupyter_data_dir())
    if options.sys_prefix:
        return Path(sys.prefix) / "share" / "jupyter"
    if options.prefix is not None:
        return Path(options.prefix).expanduser() / "share" / "jupyter"
    return SYSTEM


def _convert(options: argparse.Namespace) -> int:
    conversion = convert(options.folder, options.master, options.name)
    print(conversion.diff or f"{conversion.source} is as it should be", end="" if conversion.diff else "\n")
    for note in conversion.notes:
        print(note)
    if not conversion.diff and conversion.target == conversion.source:
        return 0
    if not options.write:
        print("nothing was written; say --write to do it")
        return 0
    conversion.write()
    print(f"wrote {conversion.target}")
    return 0

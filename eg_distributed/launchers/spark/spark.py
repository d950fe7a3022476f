"""The launcher of Spark kernels: `python3 spark.py LANGUAGE -f CONNECTION_FILE …`, run by the agent on the kernel's node.

It reads the options, says what is wrong with them, and becomes the kernel by `execve`, so that the process which the agent
started is the kernel: it keeps its pid, and signals reach it.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import types

LANGUAGES = ("python", "scala", "R")


def as_package(folder: str) -> str:
    """Make the files in *folder* importable as a package, whatever the folder's name, and return the package's name."""
    package = types.ModuleType("eg_distributed_launcher")
    package.__path__ = [folder]
    sys.modules[package.__name__] = package
    return package.__name__


def main(arguments: list[str]) -> int:
    """Become the kernel; return 1, with the reason on stderr, if that can't be."""
    from .errors import LaunchError

    try:
        command, env = prepare(arguments, os.environ, os.path.dirname(os.path.abspath(__file__)))
        program = shutil.which(command[0], path=env.get("PATH", os.defpath))
        if program is None:
            raise LaunchError(f"{command[0]} is not there", "install it on the node, or correct the kernelspec's env")
        os.execve(program, command, env)
    except LaunchError as error:
        print(error, file=sys.stderr, flush=True)
    except OSError as error:
        print(f"{error.filename or arguments}: {error.strerror}", file=sys.stderr, flush=True)
    return 1


def prepare(
    arguments: list[str], env: "os._Environ[str] | dict[str, str]", folder: str
) -> tuple[list[str], dict[str, str]]:
    """Return the argv of the kernel that *arguments* ask for, and its environment; raises LaunchError."""
    from .driver import settle
    from .errors import LaunchError
    from .options import parse

    language = arguments[0] if arguments else ""
    if language not in LANGUAGES:
        raise LaunchError(f"the launcher knows no language {language!r}", f"name one of {', '.join(LANGUAGES)} in argv")
    options = settle(parse(arguments[1:], env, folder))
    module = importlib.import_module(f".{language.lower()}.command", __package__)
    command: list[str] = module.command(options)
    return command, options.env


if __name__ == "__main__":
    __package__ = as_package(os.path.dirname(os.path.abspath(__file__)))
    sys.exit(main(sys.argv[1:]))

"""The group of all verbs, and `main`: the one place where errors become a message and an exit code (lab/errors.py)."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import click

from lab.cli import faults, history, images, lifecycle, machines, shell, standalone, status
from lab.cli.options import Verbs
from lab.drivers import choice
from lab.errors import BROKEN_PIPE, INTERRUPTED, EngineFailed, LabError, LabUsageError

EPILOG = """\b
Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 conflict, 5 not ready in time, 6 machine unfit, 130 interrupted,
141 who read our output is gone.
Every option can be an environment variable: LAB_VERB_OPTION; LAB_NAME and LAB_JSON mean the same for all verbs.
"""

ROOMS: tuple[tuple[str, Any], ...] = (
    ("Make labs and take them away", lifecycle),
    ("See what is there", status),
    ("Reach machines", shell),
    ("Handle machines", machines),
    ("Break and heal", faults),
    ("See what happened", history),
    ("Images", images),
    ("Without a lab", standalone),
)
"""Title and module of each section of the help; a room's VERBS are its commands."""


class _PipeClosed(Exception):
    """Who read our stdout is gone. Click would make an exit code of 1 of the OSError."""


class _Root(Verbs):
    """All verbs; the help lists them by what they are for."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; click calls it."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _PipeClosed from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section for each room; click calls it for `lab --help`."""
        for title, room in ROOMS:
            with formatter.section(title):
                formatter.write_dl([(str(verb.name), _first_sentence(verb)) for verb in room.VERBS])


def _first_sentence(verb: click.Command) -> str:
    return (verb.help or "").partition("\n\n")[0].replace("\n", " ").partition(". ")[0].rstrip(".")


@click.group(
    cls=_Root,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "LAB", "max_content_width": 120},
)
def cli() -> None:
    """Provision SSH nodes and an Enterprise Gateway on this machine, break them, and take them away again.

    Example: lab up && lab ssh node1 -- hostname && lab down
    """


for _title, _room in ROOMS:
    for _verb in _room.VERBS:
        cli.add_command(_verb)


def _wants_json(arguments: Sequence[str]) -> bool:
    """Say whether an error of this call has to be JSON; asked of the words themselves, since the call may not have parsed."""
    words = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in words or os.environ.get("LAB_JSON", "").lower() in {"1", "true", "yes", "on", "t", "y"}


@contextlib.contextmanager
def _foreign_errors() -> Iterator[None]:
    """Turn what drivers and the system raise into errors with an id: a refusal is no bug of the lab's."""
    try:
        yield
    except (BrokenPipeError, LabError):
        # An OSError too, some of them, but spoken for.
        raise
    except choice.errors() as error:
        cause = getattr(error, "explanation", None) or str(error)
        raise EngineFailed(
            "the container engine refused, or went away", cause=str(cause), remedy="`lab doctor`, then the same again"
        ) from error
    except OSError as error:
        # A full disk, a folder that is not ours: the system's own words, and what looks for more of that kind.
        raise LabError("this machine refused", cause=str(error), remedy="`lab doctor`, then the same again") from error


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; called by the script `lab`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    as_json = _wants_json(words)
    try:
        with _foreign_errors():
            code = cli.main(args=words, prog_name="lab", standalone_mode=False)
            sys.stdout.flush()
    except click.ClickException as error:
        if as_json:
            _fail(LabUsageError(error.format_message(), remedy=_help_of(error)), as_json=True)
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)
    except (_PipeClosed, BrokenPipeError):
        # Python would complain once more when it flushes stdout at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)
    except LabError as error:
        _fail(error, as_json=as_json)
    sys.exit(code if isinstance(code, int) else 0)


def _help_of(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"`{context.command_path} --help`" if context is not None else "`lab --help`"


def _fail(error: LabError, *, as_json: bool) -> NoReturn:
    click.echo(json.dumps(error.as_dict(), default=str) if as_json else f"lab: {error}", err=True)
    sys.exit(error.exit_code)

"""Options of spark-submit that a client sent, and the user it names: kept out of every text that a shell or Spark splits.

Any adapter needs this: our own sample kernelspecs for Spark refer to KERNEL_EXTRA_SPARK_OPTS.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

from .agent.expansion import OPTIONS
from .errors import RequestInvalid
from .launchers.spark.errors import LaunchError
from .launchers.spark.options import USER_NAME, clients_options, split_variable

_CLIENTS_OPTIONS = re.compile(r"\$(?:KERNEL_EXTRA_SPARK_OPTS\b|\{KERNEL_EXTRA_SPARK_OPTS(?::-[^}]*)?\})")
_OPTIONS = ("SPARK_OPTS", "__TOREE_SPARK_OPTS__")


def for_scripts(spec_env: Mapping[str, str], env: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return *spec_env* and the client's *env* for what is no launcher of ours: `run.sh` has a shell evaluate option texts.

    What a client sent is there as quoted words, held against the list of what clients may say. Raises RequestInvalid.
    """
    without = without_clients_options(spec_env)
    wanted = [name for name, value in without.items() if value != spec_env[name]]
    try:
        words = [word for option in clients_options(env) for word in option] if wanted else []
        clients = {name: shlex.join(split_variable(env, name)) for name in OPTIONS if name in env and name in spec_env}
    except LaunchError as error:
        raise RequestInvalid(error.cause, remedy=error.remedy) from error
    quoted = shlex.join(words).replace("$", "$$")
    return {**without, **{name: f"{without[name]} {quoted}".strip() for name in wanted}}, {**env, **clients}


def check_user(name: str) -> None:
    """Raise RequestInvalid unless a kernel may run as *name*, which reaches command lines on the node."""
    if not USER_NAME.match(name):
        raise RequestInvalid(
            f"KERNEL_USERNAME={name!r} is no user's name", remedy="send a name of letters, digits, _, - and ."
        )


def without_clients_options(spec_env: Mapping[str, str]) -> dict[str, str]:
    """Return *spec_env* without its references to KERNEL_EXTRA_SPARK_OPTS, which the launcher adds by itself.

    Pasted into the kernelspec's text, what a client sent would be split together with it, and its quotes would count there.
    """
    return {name: _CLIENTS_OPTIONS.sub("", value) if name in _OPTIONS else value for name, value in spec_env.items()}

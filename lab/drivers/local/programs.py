"""The programs that a local machine runs, by their names in an argv: today's, and those in labs that were made earlier.

The names stand on disk and in running processes: `machine.json` keeps the argv of a machine, and /proc shows it. A lab that was
made while the programs had other names must still be reset, compared and started.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

INIT: Final = str(Path(__file__).with_name("init.py"))
SUPERVISOR: Final = str(Path(__file__).with_name("supervisor.py"))
SERVER: Final = str(Path(__file__).with_name("asyncssh_server.py"))

_INITS: Final = ("/lab/drivers/local/init.py", "/lab/local/init.py")
_SUPERVISORS: Final = ("/lab/drivers/local/supervisor.py", "/lab/local/daemons.py")
_SERVERS: Final = ("/lab/drivers/local/asyncssh_server.py", "lab.local.server")


def is_init(argv: Sequence[str]) -> bool:
    """Return True if *argv* is that of a machine's init, or of what stands in it."""
    return any(word.endswith(_INITS) for word in argv)


def is_supervisor(argv: Sequence[str]) -> bool:
    """Return True if *argv* is that of a supervisor; a machine's init has the same words, but further behind."""
    return any(word.endswith(_SUPERVISORS) for word in argv[:5])


def is_server(command: str) -> bool:
    """Return True if *command*, a command line, is that of asyncssh's server."""
    return any(name in command for name in _SERVERS)


def with_former_names(facts: str) -> str:
    """Return *facts*, the text that a machine's fingerprint is made of, with the names that programs had at first.

    With today's names every machine of an older lab would look changed, and `up` would end what runs there.
    """
    for names in (_INITS, _SUPERVISORS):
        facts = facts.replace(*names)
    return facts.replace(json.dumps(SERVER), f'"-m", "{_SERVERS[1]}"')


def with_current_names(argv: Sequence[str]) -> list[str]:
    """Return *argv*, which a machine.json keeps, with today's programs for those that are no longer there.

    A path that exists stays: it belongs to another checkout.
    """
    found = list(argv)
    for place, word in enumerate(found):
        for name, names in ((INIT, _INITS), (SUPERVISOR, _SUPERVISORS), (SERVER, _SERVERS[:1])):
            if word.endswith(names) and not Path(word).exists():
                found[place] = name
    if _SERVERS[1] in found:
        place = found.index(_SERVERS[1])
        found[place - 1 : place + 1] = [SERVER]
    return found

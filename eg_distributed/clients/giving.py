"""What the agent kept while the server was away, given to a client of before before anything else."""

from __future__ import annotations

import asyncio
import functools
from typing import Final

from eg_distributed.errors import DistributedError

from . import channels, kept_output, service
from .connection import Connection
from .frames import Header

_GIVEN_SECONDS: Final = 30.0
"""How long a session's own channel may bring what it was given already."""


async def give_kept(connection: Connection, adopted: kept_output.Adopted) -> None:
    """Give a session of the server's earlier process what the agent kept, until its own channels bring what follows."""
    # The agent has heard that as well, and what comes first is to be given first.
    connection.unsent = connection.unsent.without(lambda message: message[0] == "iopub")

    async def give(channel: str, parts: list[bytes]) -> None:
        service.pass_on(connection, channel, parts)
        await connection.pace.catch_up()  # faster than it takes them, what it may need again would give way

    def tell(text: str, cell: Header) -> None:
        if cell:
            connection.say(text, cell)
        else:
            connection.miss(text)

    back = kept_output.Back(give, tell)
    nudge = functools.partial(channels.nudge, connection, patiently=True)
    is_given = True
    try:
        await adopted.give_output(connection.session, nudge, lambda: connection.first_heard, back)
    except DistributedError as error:
        if adopted.kernel.taken_by:
            connection.lost_kernel = True
            return
        connection.log.warning(
            "Kernel %s: what was kept of its output cannot be taken: %s", connection.kernel_id, error
        )
        tell(f"What the kernel printed while the {kept_output.calls_itself} was away cannot be shown: {error}", {})
        is_given = False
    if back.given:
        connection.log.info("Gave %s kept messages to %s", back.given, connection.session_key)
    if connection.closed or connection.replaced:
        return  # what it did not confirm, the next one is given again
    given = back.unneeded()
    connection.unsent = connection.unsent.without(lambda each: kept_output.id_of(each[1]) in given)
    connection.given = given
    asyncio.get_running_loop().call_later(_GIVEN_SECONDS, _forget_given, connection)
    if back.state == "busy":
        adopted.note_running()  # what said so came before this process
    if is_given:
        adopted.has_come_back(connection.session)


def _forget_given(connection: Connection) -> None:
    """Forget what a session was given, once its own channel has brought what was under way then."""
    if connection.pace.lags:
        asyncio.get_running_loop().call_later(_GIVEN_SECONDS, _forget_given, connection)
    else:
        connection.given.clear()

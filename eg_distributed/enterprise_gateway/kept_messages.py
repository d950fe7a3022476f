"""Messages that are kept for clients until they confirm them, or come back: up to a limit for each, and one for all."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from eg_distributed.streams import PACE, Budget

KEPT_BYTES: Final = 16 << 20
"""What is kept for one client, at most: messages that it has not confirmed, or that came while it was away."""
KEPT_BY_ALL: Final = 256 << 20
"""What is kept for all clients together, at most, but for CHUNK of each; see `Budget`."""

Message = tuple[str, list[bytes]]
"""The channel, and the parts as they came from the kernel."""

budget = Budget(KEPT_BY_ALL)
"""What the gateway's connections share; used on its loop alone."""


class Kept:
    """Messages for a client, oldest first, up to KEPT_BYTES, or what all others leave free of KEPT_BY_ALL.

    The oldest give way, and `lost` counts them. It takes the place of the list in jupyter_server's buffer for a kernel without
    clients, which has no bound.
    """

    def __init__(self, shared: Budget = budget) -> None:
        self.lost = 0
        """How many messages gave way."""
        self._messages: deque[tuple[int, str, list[bytes]]] = deque()
        self._bytes = 0
        self._confirmed = 0  # up to which number
        self._unanswered = 0  # bytes that were appended since the client last confirmed some
        self._number = 0
        self._budget = shared

    def __del__(self) -> None:
        # With the object, since connections end in many ways, and each leaves what it kept to the next or to nobody.
        self._budget.give_back(self._bytes)

    def __len__(self) -> int:
        return len(self._messages)

    def __iter__(self) -> Iterator[Message]:
        return iter([(channel, parts) for _, channel, parts in self._messages])

    @property
    def number(self) -> int:
        """The number of the newest message that was ever appended; the first is 1."""
        return self._number

    def append(self, message: Message) -> None:
        """Keep *message*, at the expense of the oldest."""
        channel, parts = message
        self._number += 1
        self._messages.append((self._number, channel, parts))
        size = _size(parts)
        self._bytes += size
        self._unanswered += size
        self._budget.take(size)
        while self._bytes > self._room():
            self._drop_oldest()
            self.lost += 1

    def drop_to(self, number: int) -> list[Message]:
        """Drop the messages up to that *number*, and return them: they came, and those of them that gave way are not lost."""
        came: list[Message] = []
        oldest = self._messages[0][0] if self._messages else self._number + 1
        self.lost = min(self.lost, max(0, oldest - 1 - number))
        while self._messages and self._messages[0][0] <= number:
            came.append(self._messages[0][1:])
            self._drop_oldest()
        if number > self._confirmed:
            self._confirmed, self._unanswered = number, 0
        return came

    @property
    def is_half_full(self) -> bool:
        """Whether half of the room is taken."""
        return self._bytes > self._room() // 2

    def _room(self) -> int:
        return min(KEPT_BYTES, self._budget.share(self._unanswered < PACE))

    def without(self, is_unwanted: Callable[[Message], bool]) -> Kept:
        """Return the messages but those that are not wanted."""
        kept = Kept()
        for message in self:
            if not is_unwanted(message):
                kept.append(message)
        return kept

    def extend(self, other: Kept) -> None:
        """Append what *other* keeps, and count what it lost."""
        self.lost += other.lost
        for message in other:
            self.append(message)

    def _drop_oldest(self) -> None:
        size = _size(self._messages.popleft()[2])
        self._bytes -= size
        self._budget.give_back(size)


def _size(parts: list[bytes]) -> int:
    """Return how many bytes a message holds, roughly."""
    return 200 + sum(len(part) for part in parts)

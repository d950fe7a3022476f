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
_UNBOUNDED: Final = 1 << 60
MISSED_MOST: Final = 4000
"""Characters of what is to be told of missing output, at most."""

Message = tuple[str, list[bytes]]
"""The channel, and the parts as they came from the kernel."""

budget = Budget(KEPT_BY_ALL)
"""What all connections share; used on the server's loop alone."""


class Kept:
    """Messages for a client, oldest first, up to KEPT_BYTES, or what all others leave free of KEPT_BY_ALL.

    The oldest give way, and `lost` counts them. It takes the place of the list in jupyter_server's buffer for a kernel without
    clients, which has no bound; nor has ours (`unbounded`) where the kernel has no agent, whose user would lose by us what was
    never lost before.
    """

    def __init__(self, shared: Budget = budget, most: int = KEPT_BYTES) -> None:
        self.lost = 0
        """How many messages gave way."""
        self.missed = ""
        """What is to be told of output that could not be kept, in the next cell that the client hears of."""
        self._messages: deque[tuple[int, str, list[bytes]]] = deque()
        self._bytes = 0
        self._confirmed = 0  # up to which number
        self._unanswered = 0  # bytes that were appended since the client last confirmed some
        self._number = 0
        self._budget = shared
        self._most = most

    @classmethod
    def unbounded(cls) -> Kept:
        """Return what keeps all messages, and takes nothing of what others may keep."""
        return cls(Budget(_UNBOUNDED), _UNBOUNDED)

    def __del__(self) -> None:
        # Connections clear what they kept when they end. This is for one that ends in a way we have not thought of.
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
        """Keep *message*. Without room for it the oldest give way, but of about its size alone where others have the room."""
        channel, parts = message
        size = size_of(parts)
        self._number += 1
        self._messages.append((self._number, channel, parts))
        self._bytes += size
        self._budget.take(size)
        room, dropped = self.room, 0
        self._unanswered += size
        while len(self) > 1 and (self._bytes > self._most or (self._bytes > room and dropped < size)):
            dropped += self._drop_oldest()
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

    def drop_newest(self, count: int) -> None:
        """Drop the last *count* messages, or all; they are not lost."""
        for _, _, parts in [self._messages.pop() for _ in range(min(count, len(self)))]:
            self._bytes -= size_of(parts)
            self._budget.give_back(size_of(parts))

    @property
    def room(self) -> int:
        """Bytes that may be kept now."""
        return min(self._most, self._budget.share(self._unanswered < PACE))

    def without(self, is_unwanted: Callable[[Message], bool]) -> Kept:
        """Return the messages but those that are not wanted, and keep none."""
        kept = Kept(self._budget, self._most)
        kept.lost, kept.missed = self.lost, self.missed
        for number, channel, parts in self._taken():
            if not is_unwanted((channel, parts)):
                kept._adopt(number, channel, parts)
            else:
                self._budget.give_back(size_of(parts))
        return kept

    def take(self, other: Kept) -> None:
        """Have all that *other* keeps, behind what is kept here, and count what it lost. Unbounded, if it is, from now on."""
        if other._most > self._most:
            self._most = other._most
            self._budget.give_back(self._bytes)
            self._budget = other._budget
            self._budget.take(self._bytes)
        elif other._budget is not self._budget:
            self._budget.take(other._bytes)
            other._budget.give_back(other._bytes)
        self.lost += other.lost
        other.lost = 0
        self.miss(other.missed)
        other.missed = ""
        for _, channel, parts in other._taken():
            self._number += 1
            self._adopt(self._number, channel, parts)
        while len(self) > 1 and self._bytes > self._most:
            self._drop_oldest()
            self.lost += 1

    def clear(self) -> None:
        """Forget all messages; those that come are numbered on."""
        while self._messages:
            self._drop_oldest()
        self.lost, self.missed = 0, ""

    def miss(self, text: str) -> None:
        """Have *text* told to the client."""
        self.missed = joined(self.missed, text)

    def _taken(self) -> Iterator[tuple[int, str, list[bytes]]]:
        """Yield the messages, which are somebody else's from then on, with their share of the budget."""
        while self._messages:
            message = self._messages.popleft()
            self._bytes -= size_of(message[2])
            yield message

    def _adopt(self, number: int, channel: str, parts: list[bytes]) -> None:
        self._messages.append((number, channel, parts))
        self._bytes += size_of(parts)
        self._number = max(self._number, number)

    def _drop_oldest(self) -> int:
        size = size_of(self._messages.popleft()[2])
        self._bytes -= size
        self._budget.give_back(size)
        return size


def joined(told: str, text: str) -> str:
    """Return what is to be told, with *text* behind it unless that is in it already; of too much, the end."""
    return told if text in told else f"{told}\n{text}".strip()[-MISSED_MOST:]


def size_of(parts: list[bytes]) -> int:
    """Return how many bytes a message holds, roughly."""
    return 200 + sum(len(part) for part in parts)

"""Running code by a kernel client, blocking or not."""

from __future__ import annotations

import inspect
from typing import Any

SECONDS = 30.0
"""How long a test waits for a kernel; only what is broken takes as long."""


class Said:
    """What a cell says, as one text."""

    def __init__(self) -> None:
        self._parts: list[str] = []

    def take(self, message: dict[str, Any]) -> None:
        """Take a message of the cell's output."""
        content = message["content"]
        if message["msg_type"] == "stream":
            self._parts.append(content["text"])
        elif message["msg_type"] == "error":
            self._parts.append(f"{content['ename']}: {content['evalue']}")

    @property
    def text(self) -> str:
        """All that was said so far."""
        return "".join(self._parts).strip()


def said(client: Any, code: str) -> str:
    """Run *code* by a blocking client and return what it prints, with an error's name and text."""
    output = Said()
    client.execute_interactive(code, output_hook=output.take, timeout=SECONDS)
    return output.text


async def said_async(client: Any, code: str, output: Said | None = None) -> str:
    """Do as `said`, by an async client; *output* has what was said so far."""
    output = output or Said()
    done = client.execute_interactive(code, output_hook=output.take, timeout=SECONDS)
    if inspect.isawaitable(done):
        await done
    return output.text

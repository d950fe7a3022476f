"""Our errors as jupyter_server's: with their status, and with their words wherever a handler shows an error's text."""

from __future__ import annotations

import textwrap
from typing import Any

from tornado.web import HTTPError

from eg_distributed.errors import DistributedError

__all__ = ["Refusal"]

_WIDE = 110  # characters of a line in JupyterLab's dialog
_WRAPPED: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False, "subsequent_indent": "  "}


class Refusal(HTTPError):  # type: ignore[misc, unused-ignore] # tornado is not in every environment
    """In lines: JupyterLab's dialog shows them as they are, and what has none on one line, which is wider than the dialog."""

    def __init__(self, error: DistributedError) -> None:
        self._words = "\n".join(textwrap.fill(line, _WIDE, **_WRAPPED) for line in error.lines())
        super().__init__(error.http_status, self._words)

    def __str__(self) -> str:
        return self._words

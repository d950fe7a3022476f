"""The reason in an HTTP status line, made of an error's text.

tornado replaces a whole reason by "Unknown" if it holds a `<`, as `<frozen runpy>` in a kernel's last words, a control character,
or a letter outside Latin-1. The body keeps the text as it is. The mixin is given by `proxy`, so this module needs no gateway.
"""

from __future__ import annotations

import re
from typing import Any

_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # IPython colours its tracebacks
_LONGEST = 2000
"""Characters of a reason: proxies give the headers of an answer, in all, 4 KiB. The middle of a longer one is left out."""
_LEFT_OUT = " ... (all of it is in the body) ... "
_SPACE = re.compile(r"\s+")
_REFUSED = re.compile(r"[^\x20-\x7e\xa0-\xff]")


def reason_phrase(text: str) -> str:
    """Return *text* as a status line can have it, as close to it as that allows."""
    plain = _SPACE.sub(" ", _COLOUR.sub("", text)).translate(str.maketrans("<>", "()"))
    plain = _REFUSED.sub("?", plain)
    if len(plain) > _LONGEST:
        half = (_LONGEST - len(_LEFT_OUT)) // 2
        plain = plain[:half] + _LEFT_OUT + plain[-half:]
    return plain


def keep_reasons(mixin: Any) -> None:
    """Have the handlers that *mixin* is mixed into answer with each reason as `reason_phrase` has it; called once, at import."""

    def set_status(self: Any, status_code: int, reason: str | None = None) -> None:
        """Set the status, and a reason that tornado does not refuse."""
        super(mixin, self).set_status(status_code, reason_phrase(reason) if reason else reason)

    mixin.set_status = set_status

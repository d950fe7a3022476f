"""Reasons in HTTP status lines."""

from __future__ import annotations

import re

import pytest

from eg_distributed.enterprise_gateway.status_line import keep_reasons, reason_phrase

TORNADO = re.compile(r"(?:[\t ]|[\x21-\x7e]|[\x80-\xff])+")
"""What tornado lets pass, besides that there is no `<`."""


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ('File "<frozen runpy>", line 88', 'File "(frozen runpy)", line 88'),
        ("\x1b[0;31mValueError\x1b[0m: x", "ValueError: x"),
        ("a\n\tb\r\nc", "a b c"),
        ("Größe … 日本", "Größe ? ??"),
        ("bell \x07 nul \0 del \x7f \x85", "bell ? nul ? del ? "),
    ],
)
def test_a_reason_becomes_one_that_is_not_refused(text: str, phrase: str) -> None:
    """As close to the error's text as a status line allows; the body has it as it is."""
    assert reason_phrase(text) == phrase
    assert TORNADO.fullmatch(phrase)
    assert "<" not in phrase


def test_a_reason_has_a_bound() -> None:
    """However many hosts have failed, what they said fits into a proxy's buffer: the beginning and the end of it."""
    phrase = reason_phrase("None of the 500 hosts took it. " + "Host n: connection refused. " * 2000 + "The end.")
    assert len(phrase) <= 2000
    assert phrase.startswith("None of the 500 hosts took it. ")
    assert " ... (all of it is in the body) ... " in phrase
    assert phrase.endswith(" The end.")


def test_a_mixins_handlers_answer_with_it() -> None:
    """What a handler is told of a reason reaches tornado's own method without what that refuses; no reason stays none."""
    told: list[object] = []

    class Mixin:
        """Enterprise Gateway's mixin."""

    class Tornado:
        """tornado's handler."""

        def set_status(self, status_code: int, reason: str | None = None) -> None:
            """Note what arrives."""
            told.append((status_code, reason))

    class Handler(Mixin, Tornado):
        """A handler of the gateway."""

    keep_reasons(Mixin)
    handler = Handler()
    handler.set_status(500, reason="<x>")
    handler.set_status(204)
    assert told == [(500, "(x)"), (204, None)]

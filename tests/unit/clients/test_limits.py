"""The limit of websockets' messages, as tornado asks for it and uses it."""

from __future__ import annotations

import logging
import operator
from typing import Any

import pytest

from eg_distributed.clients.limits import limit_messages


def opened(limit: int, **settings: int) -> Any:
    """Return what tornado is told for a websocket of kernel k1."""

    class Handler:
        """A websocket's handler."""

        kernel_id = "k1"

        def __init__(self) -> None:
            self.settings = settings

    limit_messages(Handler, limit)
    return Handler().max_message_size  # type: ignore[attr-defined]


def test_a_message_above_the_limit_is_logged_with_both_sizes(caplog: pytest.LogCaptureFixture) -> None:
    """tornado closes without a word; the log says whose websocket, how large, and what to raise."""
    with caplog.at_level(logging.WARNING):
        assert operator.gt(11_000_000, opened(10_000_000))  # as tornado has it: the size first
    assert "kernel k1: a client's message has 11000000 bytes, at most 10000000 are allowed" in caplog.text
    assert "Distributed.websocket_message_limit" in caplog.text


def test_a_message_within_the_limit_is_not(caplog: pytest.LogCaptureFixture) -> None:
    """Up to the limit itself; and the limit counts as the number that it is, as for zlib."""
    limit = opened(1000)
    with caplog.at_level(logging.WARNING):
        assert not operator.gt(1000, limit)
        assert limit > 999
        assert bytes(limit) == bytes(1000)
    assert caplog.text == ""


def test_an_operators_own_setting_of_tornado_wins() -> None:
    """Whoever has found tornado's setting is not overruled."""
    assert opened(1000, websocket_max_message_size=5) == 5

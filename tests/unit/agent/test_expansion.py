"""References in kernelspec values are expanded once; everything else stays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eg_distributed.agent.expansion import expand

ENVIRONMENT = {"HOME": "/home/me", "EMPTY": "", "A_1": "one", "TRAP": "${HOME} $HOME $$ $(id)"}


@pytest.mark.parametrize(
    ("value", "expanded"),
    [
        ("${HOME}/bin", "/home/me/bin"),
        ("$HOME/bin", "/home/me/bin"),
        ("$A_1$A_1", "oneone"),
        ("$A_1-x", "one-x"),
        ("${MISSING}", ""),
        ("$MISSING.", "."),
        ("${MISSING:-default}", "default"),
        ("${EMPTY:-default}", "default"),
        ("${HOME:-default}", "/home/me"),
        ("${MISSING:-}", ""),
        ("${MISSING:-a b:-c$x}", "a b:-c$x"),
        ("${EMPTY}", ""),
        ("$${HOME}", "${HOME}"),
        ("$$HOME", "$HOME"),
        ("$$", "$"),
        ("$$$HOME", "$/home/me"),
    ],
)
def test_each_form(value: str, expanded: str) -> None:
    """Names with and without braces, defaults as in a shell, and `$$` for one `$`."""
    assert expand(value, ENVIRONMENT) == expanded


def test_what_was_inserted_is_not_looked_at_again() -> None:
    """A value of the node's environment is data."""
    assert expand("<${TRAP}> <$TRAP>", ENVIRONMENT) == "<${HOME} $HOME $$ $(id)> <${HOME} $HOME $$ $(id)>"


@pytest.mark.parametrize(
    "value", ["$(id)", "`id`", "$1", "${", "${}", "${1}", "${A-b}", "${A:=b}", "a$", "$ HOME", "!x;&|"]
)
def test_what_is_no_reference_stays(value: str) -> None:
    """No shell runs here, so what only a shell would understand stays as it is."""
    assert expand(value, ENVIRONMENT) == value


@given(st.text(st.characters(exclude_characters="$")))
def test_without_a_dollar_nothing_changes(value: str) -> None:
    """Any text without `$` stays byte for byte."""
    assert expand(value, ENVIRONMENT) == value


@given(st.text())
def test_a_doubled_dollar_quotes_anything(value: str) -> None:
    """Any text survives if its `$` are doubled."""
    assert expand(value.replace("$", "$$"), ENVIRONMENT) == value

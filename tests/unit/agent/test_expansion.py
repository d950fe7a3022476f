"""References in kernelspec values are expanded once; everything else stays."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eg_distributed.agent.expansion import expand, expand_all

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


# -- a kernelspec's values together ------------------------------------------------------------------------------------------


def test_options_see_the_kernelspecs_other_values() -> None:
    """Whatever the order, as in the shell that exports them all; words of the operator's own stay words."""
    spec = {"SPARK_OPTS": "--conf x=${SPARK_HOME}/y ${SITE}", "SPARK_HOME": "/opt/$RELEASE", "SITE": "--conf a=b"}
    found = expand_all(spec, {"RELEASE": "spark3"}, {"KERNEL_ID": "k"})
    assert list(found) == list(spec)
    assert found["SPARK_OPTS"] == "--conf x=/opt/spark3/y --conf a=b"


@pytest.mark.parametrize("name", ["SPARK_OPTS", "__TOREE_SPARK_OPTS__", "LAUNCH_OPTS", "TOREE_OPTS", "__TOREE_OPTS__"])
def test_a_clients_value_is_part_of_one_word(name: str) -> None:
    """Blanks and quotes of a client's part nothing; what is plain is put in as it always was."""
    spec = {name: '--queue ${KERNEL_QUEUE:-default} --conf "x=$KERNEL_X" $(id)'}
    plain = expand_all(spec, {}, {"KERNEL_QUEUE": "q", "KERNEL_X": "1"})[name]
    assert plain == '--queue q --conf "x=1" $(id)'
    hostile = {"KERNEL_QUEUE": "q --master local[1] --proxy-user root", "KERNEL_X": "\" ' ; id"}
    words = shlex.split(expand_all(spec, {}, hostile)[name])
    assert words == ["--queue", hostile["KERNEL_QUEUE"], "--conf", f"x={hostile['KERNEL_X']}", "$(id)"]
    assert shlex.split(expand_all(spec, {}, {"KERNEL_QUEUE": ""})[name])[:2] == ["--queue", "default"]


def test_a_clients_value_stays_one_by_way_of_another_variable() -> None:
    """A kernelspec's variable that holds what a client sent is no more the operator's than that."""
    spec = {"QUEUE": "${KERNEL_QUEUE}", "SPARK_OPTS": "--queue ${QUEUE}"}
    assert shlex.split(expand_all(spec, {}, {"KERNEL_QUEUE": "a b"})["SPARK_OPTS"]) == ["--queue", "a b"]


@pytest.mark.parametrize(
    ("text", "said"),
    [("${KERNEL_X} --name k", "would be an option in SPARK_OPTS"), ("'${KERNEL_X}", "can't be split into words")],
)
def test_a_clients_value_is_no_option(text: str, said: str) -> None:
    """Where a kernelspec has an option's place for it, a value that begins as one is refused, and so is what has no words."""
    with pytest.raises(ValueError, match=said):
        expand_all({"SPARK_OPTS": text}, {}, {"KERNEL_X": "--proxy-user=root"})


@given(st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1))
def test_any_value_of_a_clients_comes_through_whole(value: str) -> None:
    """Whatever a client sends is there again, byte for byte, once a launcher or a shell has split the text."""
    text = expand_all({"SPARK_OPTS": "--conf x=${KERNEL_X} --name k"}, {}, {"KERNEL_X": value})["SPARK_OPTS"]
    assert shlex.split(text) == ["--conf", f"x={value}", "--name", "k"]

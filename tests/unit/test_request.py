"""What any adapter asks the cluster for: argv, environment, pins."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from eg_distributed.errors import RequestInvalid, RequestRefused
from eg_distributed.request import check_env, check_pin, data_env, fill_argv, pin_of, waits_for_answer

# -- argv ----------------------------------------------------------------------------------------------------------------------


def test_argv_is_filled_in_once() -> None:
    """A placeholder becomes its value, and what a value brings along is not looked at again."""
    words = ["{a}", "x{b}y", "{a}{b}"]
    assert fill_argv(words, {"a": "{b}", "b": "1"}) == ["{b}", "x1y", "{b}1"]


def test_what_the_node_knows_is_left_to_the_node() -> None:
    """Connection file, launcher, interpreter and answer address stay, whatever the values say of them."""
    words = ["{python}", "{launcher}/spark.py", "{connection_file}", "{response_address}"]
    given = dict.fromkeys(("python", "launcher", "connection_file", "response_address"), "from the gateway")
    assert fill_argv(words, given) == words


def test_placeholders_that_nobody_knows_stay() -> None:
    """Braces that are no placeholder of ours, as in JSON or R, reach the kernel as they are."""
    words = ["{unknown}", '{"a": 1}', "function() { x }", "{}"]
    assert fill_argv(words, {"a": "1", "x": "2"}) == words


def test_a_launcher_that_answers_is_told_from_a_kernel_that_reads_a_file() -> None:
    """`{response_address}` in argv means an answer, `{connection_file}` a file; an answer wins."""
    assert waits_for_answer(["run.sh", "--response-address={response_address}"], "s")
    assert waits_for_answer(["{connection_file}", "{response_address}"], "s")
    assert not waits_for_answer(["python3", "-f", "{connection_file}"], "s")


def test_argv_without_either_is_invalid() -> None:
    """A kernelspec whose kernel could never be reached is an error that names it and what to add."""
    with pytest.raises(RequestInvalid, match=r"(?i)kernelspec 'mine' has neither .*add '-f', '\{connection_file\}'"):
        waits_for_answer(["python3"], "mine")


# -- env -----------------------------------------------------------------------------------------------------------------------


def test_of_the_clients_values_only_the_allowed_reach_the_kernel() -> None:
    """KERNEL_* always, and the names that the configuration lets clients set or kernels inherit."""
    sent = {"KERNEL_USERNAME": "bob", "PATH": "/evil", "ALLOWED": "1", "HEIR": "2", "OTHER": "3"}
    found = data_env(sent, {}, inherited=["HEIR"], allowed=[" ALLOWED ", ""])
    assert found == {"KERNEL_USERNAME": "bob", "ALLOWED": "1", "HEIR": "2"}


def test_a_star_allows_every_name() -> None:
    """`*` among the allowed names lets clients set anything but a gateway's secrets."""
    sent = {"PATH": "/x", "EG_AUTH_TOKEN": "t"}
    assert data_env(sent, {}, inherited=[], allowed=["*"]) == {"PATH": "/x"}


def test_of_the_gateways_environment_only_the_inherited_reaches_the_kernel() -> None:
    """A client's value wins over the gateway's own, and what no configuration names stays at the gateway."""
    own = {"PATH": "/gateway", "HEIR": "gateway's", "HOME": "/root"}
    assert data_env({}, own, inherited=["HEIR", "PATH"], allowed=[]) == {"HEIR": "gateway's", "PATH": "/gateway"}
    assert data_env({"HEIR": "client's"}, own, inherited=["HEIR"], allowed=[]) == {"HEIR": "client's"}


@pytest.mark.parametrize("secret", ["EG_AUTH_TOKEN", "KG_AUTH_TOKEN", "EG_REMOTE_PWD"])
def test_secrets_of_a_gateway_are_never_inherited(secret: str) -> None:
    """A gateway's token and its login's password reach no kernel, even where the configuration names them."""
    assert data_env({secret: "x"}, {secret: "y"}, inherited=[secret], allowed=[secret]) == {}


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"A B": "x"}, "'A B' is no name for an environment variable"),
        ({"": "x"}, "'' is no name"),
        ({"1A": "x"}, "'1A' is no name"),
        ({"A=B": "x"}, "'A=B' is no name"),
        ({"A\n": "x"}, "is no name"),
        ({"A": 1}, "the value of A cannot be an environment variable's"),
        ({"A": None}, "the value of A cannot be"),
        ({"A": "x\0y"}, "send text without NUL"),
        ({"A": "x" * 1024 * 1024}, "the environment has 1048577 characters"),
    ],
)
def test_what_no_environment_can_hold_is_invalid(env: dict[str, Any], said: str) -> None:
    """Names, values and the size of a request's env are checked before a host is bothered."""
    with pytest.raises(RequestInvalid, match=f"(?i){said}"):
        check_env(env)


@pytest.mark.parametrize("given", ["x", "nan", "0", "-1", "inf", "86401", "1e9"])
def test_a_launch_timeout_is_a_bounded_number(given: str) -> None:
    """A KERNEL_LAUNCH_TIMEOUT that is not a number of seconds within a day is invalid."""
    with pytest.raises(RequestInvalid, match="is no launch timeout"):
        check_env({"KERNEL_LAUNCH_TIMEOUT": given})


def test_any_text_may_be_a_value() -> None:
    """Values are free, as no shell sees them; an empty launch timeout counts as none."""
    check_env({"_A1": "$(id) `id` ; \n ä", "KERNEL_LAUNCH_TIMEOUT": "60", "B": "x" * 1000})
    check_env({"KERNEL_LAUNCH_TIMEOUT": ""})


# -- pins ----------------------------------------------------------------------------------------------------------------------


def test_a_client_may_pin_one_host() -> None:
    """KERNEL_REMOTE_HOST names a host, no host, or is invalid."""
    assert pin_of({"KERNEL_REMOTE_HOST": " a "}) == "a"
    assert pin_of({"KERNEL_REMOTE_HOST": ""}) is None
    assert pin_of({}) is None
    with pytest.raises(RequestInvalid, match="names more than one host"):
        pin_of({"KERNEL_REMOTE_HOST": "a,b"})
    with pytest.raises(RequestInvalid, match="is no host name"):
        pin_of({"KERNEL_REMOTE_HOST": "-oProxyCommand=id"})


def test_a_pin_outside_the_host_set_is_refused() -> None:
    """A client may name a host of the kernelspec's set alone, unless the operator allows any."""
    check_pin("a", ("a", "b"), allow_any_host=False)
    check_pin(None, ("a", "b"), allow_any_host=False)
    check_pin("c", ("a", "b"), allow_any_host=True)
    with pytest.raises(RequestRefused, match=r"KERNEL_REMOTE_HOST=c is none of this kernel's hosts \(a, b\)"):
        check_pin("c", ("a", "b"), allow_any_host=False)


# -- who may use it ------------------------------------------------------------------------------------------------------------


def test_it_needs_no_gateway() -> None:
    """An adapter of any gateway can import it: it brings neither Enterprise Gateway nor Jupyter along."""
    code = (
        "import sys, eg_distributed.request as _\n"
        "strange = ('enterprise_gateway', 'jupyter', 'tornado', 'zmq')\n"
        "print([m for m in sys.modules if m.startswith(strange) or m.startswith('eg_distributed.enterprise_gateway')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

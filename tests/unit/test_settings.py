"""Where a setting's value comes from."""

from __future__ import annotations

import re

import pytest
from traitlets import TraitError
from traitlets.config import Config

from eg_distributed.settings import Distributed, options_table

NAMES = list(Distributed.class_traits(config=True))


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of this machine has a say."""
    for trait in Distributed.class_traits(config=True).values():
        monkeypatch.delenv(trait.metadata["env"], raising=False)


def test_the_environment_wins_over_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable is read when the settings are made, in the trait's own type."""
    monkeypatch.setenv("EG_REMOTE_USER", "alice")
    monkeypatch.setenv("EG_SSH_PORT", "2222")
    monkeypatch.setenv("EG_DISTRIBUTED_CONNECT_TIMEOUT", "1.5")
    monkeypatch.setenv("EG_DISTRIBUTED_TRANSPORT", "tcp")
    settings = Distributed()
    assert (settings.user, settings.port, settings.connect_timeout, settings.transport) == ("alice", 2222, 1.5, "tcp")


def test_the_configuration_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """`c.Distributed.…` is the operator's last word, and so is an argument."""
    monkeypatch.setenv("EG_REMOTE_USER", "alice")
    monkeypatch.setenv("EG_SSH_PORT", "2222")
    settings = Distributed(config=Config({"Distributed": {"user": "bob", "port": 0}}))
    assert (settings.user, settings.port) == ("bob", 0)
    assert Distributed(user="carol").user == "carol"


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Container environments set what is not given to nothing."""
    monkeypatch.setenv("EG_SSH_PORT", "")
    monkeypatch.setenv("EG_REMOTE_GSS_SSH", "")
    assert (Distributed().port, Distributed().gss) == (0, False)


@pytest.mark.parametrize(
    ("text", "gss"),
    [
        ("True", True),
        ("TRUE", True),
        ("true", True),
        ("yes", True),
        ("1", True),
        ("False", False),
        ("No", False),
        (" off ", False),
    ],
)
def test_a_switch_is_read_in_any_case(monkeypatch: pytest.MonkeyPatch, text: str, *, gss: bool) -> None:
    """EG_REMOTE_GSS_SSH is documented as True and written in all ways."""
    monkeypatch.setenv("EG_REMOTE_GSS_SSH", text)
    assert Distributed().gss is gss


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("EG_SSH_PORT", "70000"),
        ("EG_DISTRIBUTED_REQUEST_TIMEOUT", "0"),
        ("EG_DISTRIBUTED_KEEPALIVE_INTERVAL", "nan"),
        ("EG_DISTRIBUTED_ORPHAN_TIMEOUT", "-1"),
        ("EG_SSH_PORT", "ssh"),
        ("EG_SSH_PORT", "22.5"),
        ("EG_DISTRIBUTED_CONNECT_TIMEOUT", "5s"),
        ("EG_REMOTE_GSS_SSH", "maybe"),
        ("EG_DISTRIBUTED_TRANSPORT", "udp"),
    ],
)
def test_a_wrong_value_names_its_variable(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    """The error says which variable has which value, so that nobody has to search."""
    monkeypatch.setenv(name, text)
    with pytest.raises(ValueError, match=f"{name}='{text}'"):
        Distributed()


def test_a_wrong_value_in_the_configuration_names_the_setting() -> None:
    """traitlets' own error is good enough there."""
    with pytest.raises(TraitError, match="transport"):
        Distributed(config=Config({"Distributed": {"transport": "udp"}}))


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_is_explained_and_has_a_variable(name: str) -> None:
    """No knob without help and without a variable; ours begin with EG_."""
    trait = Distributed.class_traits(config=True)[name]
    assert str(trait.help).endswith(".")
    assert trait.metadata["env"].startswith("EG_")


def test_no_two_settings_share_a_variable() -> None:
    """Each variable means one thing."""
    variables = [trait.metadata["env"] for trait in Distributed.class_traits(config=True).values()]
    assert len(set(variables)) == len(variables)


def test_the_options_table_has_every_setting() -> None:
    """One row a setting, each of four cells."""
    header, rule, *rows = options_table().splitlines()
    assert header.count("|") == rule.count("|") == 5
    assert [re.findall(r"`Distributed\.(\w+)`", row)[0] for row in rows] == NAMES
    assert all(row.count("|") == 5 for row in rows)


def test_a_gateway_is_known_by_host_and_port_or_by_its_given_name() -> None:
    """Two gateways of one machine differ; a given id is taken as it is."""
    assert Distributed().identity(8888) != Distributed().identity(8889)
    assert Distributed(gateway_id="west").identity(8888) == "west"


def test_a_provisioners_settings_are_read_for_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their variables are Enterprise Gateway's as well, which has its own rules for what may be in them."""
    monkeypatch.setenv("EG_REMOTE_HOSTS", "a, b,")
    monkeypatch.setenv("EG_IMPERSONATION_ENABLED", "maybe")
    assert Distributed().remote_hosts == ()
    monkeypatch.setenv("EG_IMPERSONATION_ENABLED", "True")
    settings = Distributed(for_provisioner=True)
    assert (settings.remote_hosts, settings.impersonation_enabled) == (("a", "b"), True)


def test_names_and_folders_are_written_as_lists_or_as_text() -> None:
    """In a file as Python has them, in a variable as text; what is neither is refused."""
    assert Distributed(remote_hosts=["a", " b "]).remote_hosts == Distributed(remote_hosts="a,b").remote_hosts
    assert Distributed(folders="/a/=/b, /c=/d").folders == Distributed(folders={"/a": "/b", "/c": "/d"}).folders
    for name, value in (
        ("remote_hosts", 1),
        ("remote_hosts", [1]),
        ("folders", "/a"),
        ("folders", {"/a": 1}),
        ("folders", 1),
    ):
        with pytest.raises(TraitError, match=name):
            Distributed(**{name: value})

"""What a Spark kernel is started with: whose word counts, and that no text is ever more than words."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Any

import pytest

from eg_distributed.launchers.spark.errors import LaunchError
from eg_distributed.launchers.spark.options import SparkOptions, parse
from eg_distributed.launchers.spark.properties import read_properties

KERNEL = "5f5b2b1c-0000-4000-8000-000000000000"
OWN = pwd.getpwuid(os.getuid()).pw_name


def options(opts: str = "", *arguments: str, **env: Any) -> SparkOptions:
    """Return what the launcher makes of SPARK_OPTS and the rest."""
    return parse(arguments, {"SPARK_HOME": "/opt/spark", "KERNEL_ID": KERNEL, "SPARK_OPTS": opts, **env}, "/launcher")


def pairs(found: SparkOptions) -> list[tuple[str, str]]:
    """Return submit's options as (flag, value)."""
    return list(zip(found.submit[::2], found.submit[1::2], strict=True))


def test_the_kernel_names_its_application() -> None:
    """Without --name the kernel's id is the name; a kernelspec's own stays."""
    assert ("--name", KERNEL) in pairs(options("--master spark://m:7077"))
    found = options("--name other")
    assert [value for flag, value in pairs(found) if flag == "--name"] == ["other"]
    assert found.settings["spark.app.name"] == "other"


def test_yarn_finds_the_application_again_by_tags() -> None:
    """Tags of the user's own stay beside those of the kernel and of this one start, in one setting."""
    found = options("--master yarn --conf spark.yarn.tags=mine,other", EG_ATTEMPT="a1b2")
    tags = [value for flag, value in pairs(found) if value.startswith("spark.yarn.tags=")]
    assert tags == [f"spark.yarn.tags=mine,other,eg-distributed-{KERNEL},eg-distributed-attempt-a1b2"]
    assert not any("tags" in word for word in options("--master spark://m:7077").submit)
    again = options(" ".join(found.submit), EG_ATTEMPT="a1b2")  # as the kernel reads them again from its environment
    assert again.submit.count(tags[0]) == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("--conf 'spark.x=a b'", "a b"),
        ('--conf spark.x="a b"', "a b"),
        ("--conf spark.x=$(id)", "$(id)"),
        ("--conf spark.x=${HOME}`id`", "${HOME}`id`"),
        ("--conf spark.x=a;b|c&d>e", "a;b|c&d>e"),
        ("-c spark.x=1", "1"),
        ("--conf=spark.x=1", "1"),
        ("--conf spark.x=", ""),
        ("--conf spark.x=~", "~"),
        ("--conf spark.x=ä", "ä"),
    ],
)
def test_text_becomes_words_and_nothing_else(text: str, value: str) -> None:
    """Quotes are a shell's; everything that a shell would expand or run stays text."""
    assert options(text).settings["spark.x"] == value
    assert options("", KERNEL_EXTRA_SPARK_OPTS=text).settings["spark.x"] == value


@pytest.mark.parametrize(
    "text",
    [
        "--proxy-user root",
        "--principal x",
        "--keytab /k",
        "--master local",
        "--name x",
        "--deploy-mode cluster",
        "--properties-file /x",
        "--class X",
        "--kill x",
        "--status x",
        "--supervise",
        "--version",
        "--help",
        "--remote sc://x",
        "--conf spark.master=local",
        "--conf spark.app.name=x",
        "--conf spark.submit.deployMode=cluster",
        "--conf spark.kerberos.keytab=/k",
        "--conf spark.yarn.keytab=/k",
        "--conf spark.yarn.principal=x",
        "--conf spark.remote=sc://x",
        "--proxy-user=root",
        "app.jar",
        "--conf spark.x",
        "--conf",
        "--unknown x",
        "'",
    ],
)
def test_a_client_may_not_say_everything(text: str) -> None:
    """What decides whose application runs what, and where, is the kernelspec's; the error names the variable."""
    with pytest.raises(LaunchError, match="KERNEL_EXTRA_SPARK_OPTS"):
        options("--master yarn", KERNEL_EXTRA_SPARK_OPTS=text)


def test_an_empty_value_is_a_value() -> None:
    """An option keeps its own value, and takes no other option's."""
    assert options("--queue '' --name n").submit[:4] == ("--queue", "", "--name", "n")


def test_a_clients_settings_win() -> None:
    """What a client may set overrides the kernelspec's."""
    found = options(
        "--executor-memory 1g --conf spark.x=1", KERNEL_EXTRA_SPARK_OPTS="--executor-memory 2g --conf spark.x=2"
    )
    assert found.settings["spark.executor.memory"] == "2g"
    assert found.settings["spark.x"] == "2"


def test_a_drivers_place_is_the_node() -> None:
    """A kernelspec for cluster mode is refused with the reason."""
    with pytest.raises(LaunchError, match="a kernel's driver is the kernel itself; say --deploy-mode client"):
        options("--master yarn --deploy-mode cluster")


def test_both_spellings_of_enterprise_gateways_arguments() -> None:
    """Its deprecated names and its new ones; what is not ours to know is left out, and the rest goes to the kernel."""
    old = "--RemoteProcessProxy.spark-context-initialization-mode"
    given = [
        old,
        "eager",
        "--RemoteProcessProxy.kernel-id",
        "k",
        "--RemoteProcessProxy.public-key=x",
        "--HistoryManager.enabled=False",
    ]
    found = options("", "-f", "/c.json", *given, LAUNCH_OPTS="--debug 'a b'")
    assert (found.mode, found.connection_file) == ("eager", "/c.json")
    assert found.launch == ("--debug", "a b", "--HistoryManager.enabled=False")
    assert options("", "--spark-context-initialization-mode", "none").mode == "none"
    theirs = options("", "-f", "/c.json", LAUNCH_OPTS=f"{old} none --kernel-class-name a.B --profile p --debug")
    assert (theirs.mode, theirs.kernel_class, theirs.launch) == ("none", "a.B", ("--profile", "p", "--debug"))
    assert theirs.connection_file == "/c.json"
    with pytest.raises(LaunchError, match="use one of lazy, eager, none"):
        options("", old, "soon")


def test_sparks_defaults_are_below_all(tmp_path: Path) -> None:
    """spark-defaults.conf is read as Spark reads it, and whatever is said elsewhere wins."""
    (tmp_path / "spark-defaults.conf").write_text(
        "spark.a  1\nspark.b=2 # not a comment\n# spark.c 3\nspark.master yarn\n"
    )
    found = options("--conf spark.a=9", SPARK_CONF_DIR=str(tmp_path))
    assert (found.settings["spark.a"], found.settings["spark.b"]) == ("9", "2 # not a comment")
    assert found.on_yarn
    assert "spark.c" not in found.settings
    assert options().master == "local[*]"


def test_java_properties(tmp_path: Path) -> None:
    """Separators, continued lines and escapes as Java has them."""
    path = tmp_path / "p"
    path.write_text("a:1\nb = two words  \nc\\ d e\nf one,\\\n   two\n! comment\ng\n\n h\t3\n")
    assert read_properties(path) == {"a": "1", "b": "two words", "c d": "e", "f": "one,two", "g": "", "h": "3"}
    assert read_properties(tmp_path / "none") == {}


def test_no_spark_home() -> None:
    """What every Spark kernelspec has to say is asked for by its name."""
    with pytest.raises(LaunchError, match="SPARK_HOME is not set; set it in the kernelspec's env"):
        parse([], {}, "/launcher")


def test_settings_are_added_where_nobody_has_spoken() -> None:
    """What the launcher adds never overrides."""
    found = options("--conf spark.a=1").with_settings({"spark.a": "2", "spark.b": "3"})
    assert (found.settings["spark.a"], found.settings["spark.b"]) == ("1", "3")
    assert found.submit[:2] == ("--conf", "spark.b=3")
    assert "spark.a=2" not in found.submit


@pytest.mark.parametrize("name", ["", "-u", "a b", "bob&cmd", "$(id)", "../x", "a" * 40, "bob;id"])
def test_a_user_is_a_name(name: str) -> None:
    """Impersonation takes names that are no options, no paths and no commands."""
    with pytest.raises(LaunchError, match="is no user's name"):
        options("--master yarn", EG_IMPERSONATION_ENABLED="True", KERNEL_USERNAME=name)


def test_impersonation(monkeypatch: pytest.MonkeyPatch) -> None:
    """On YARN the application is the user's; elsewhere it can't be, and that is said; one's own name changes nothing."""
    monkeypatch.setenv("LOGNAME", "alice")
    found = options("--master yarn", EG_IMPERSONATION_ENABLED="True", KERNEL_USERNAME="alice")
    assert ("--proxy-user", "alice") in pairs(found)
    own = options("--master yarn", EG_IMPERSONATION_ENABLED="True", KERNEL_USERNAME=pwd.getpwuid(os.getuid()).pw_name)
    assert "--proxy-user" not in own.submit
    assert (
        "--proxy-user" not in options("--master yarn", EG_IMPERSONATION_ENABLED="False", KERNEL_USERNAME="alice").submit
    )
    with pytest.raises(LaunchError, match="only YARN runs applications for others"):
        options("--master spark://m:7077", EG_IMPERSONATION_ENABLED="True", KERNEL_USERNAME="alice")


@pytest.mark.parametrize("variable", ["LOGNAME", "USER", "LNAME", "USERNAME"])
def test_ones_own_name_is_the_processs(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """A variable that claims to be somebody does not make his the applications of the login user."""
    monkeypatch.setenv(variable, "alice")
    found = options("--master yarn", EG_IMPERSONATION_ENABLED="True", KERNEL_USERNAME="alice", **{variable: "alice"})
    assert ("--proxy-user", "alice") in pairs(found)
    assert "--proxy-user" not in options("--master yarn", EG_IMPERSONATION_ENABLED="True", KERNEL_USERNAME=OWN).submit


def test_settings_in_place_of_others() -> None:
    """What is said again replaces flags and settings of the same meaning, wherever they stand; the rest stays."""
    env = {
        "SPARK_HOME": "/s",
        "SPARK_OPTS": "--verbose --driver-memory 1g --conf spark.jars.packages=a:b:1 --jars x.jar",
    }
    found = parse(["-f", "/c"], env, "/l").overridden({"spark.driver.memory": "2g", "spark.jars.packages": "c:d:1"})
    assert found.settings["spark.driver.memory"] == "2g"
    assert found.submit[:3] == ("--verbose", "--jars", "x.jar")
    assert found.submit[-4:] == ("--conf", "spark.driver.memory=2g", "--conf", "spark.jars.packages=c:d:1")
    assert "1g" not in found.submit

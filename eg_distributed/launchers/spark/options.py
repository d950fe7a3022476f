"""What a Spark kernel is started with: the launcher's arguments, the kernelspec's options, the client's, Spark's defaults.

Nothing is expanded here: the agent did that once, in the kernelspec's part only. Text becomes argv by POSIX rules
(`shlex`), and argv stays argv until `execve`: no shell ever reads what a client sent.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Mapping, Sequence

from .env import own_user, site_environment
from .errors import LaunchError
from .properties import conf_dir, defaults_file, read_properties

MODES = ("lazy", "eager", "none")
TAG = "eg-distributed-"
"""What the YARN tag of an application begins with; the kernel's id follows."""

FLAGS = {
    "--archives": "spark.archives",
    "--class": "",
    "--conf": "",
    "--deploy-mode": "spark.submit.deployMode",
    "--driver-class-path": "spark.driver.extraClassPath",
    "--driver-cores": "spark.driver.cores",
    "--driver-java-options": "spark.driver.extraJavaOptions",
    "--driver-library-path": "spark.driver.extraLibraryPath",
    "--driver-memory": "spark.driver.memory",
    "--exclude-packages": "spark.jars.excludes",
    "--executor-cores": "spark.executor.cores",
    "--executor-memory": "spark.executor.memory",
    "--files": "spark.files",
    "--jars": "spark.jars",
    "--keytab": "spark.kerberos.keytab",
    "--kill": "",
    "--master": "spark.master",
    "--name": "spark.app.name",
    "--num-executors": "spark.executor.instances",
    "--packages": "spark.jars.packages",
    "--principal": "spark.kerberos.principal",
    "--properties-file": "",
    "--proxy-user": "",
    "--py-files": "spark.submit.pyFiles",
    "--queue": "spark.yarn.queue",
    "--remote": "spark.remote",
    "--repositories": "spark.jars.repositories",
    "--status": "",
    "--total-executor-cores": "spark.cores.max",
}
"""spark-submit's options that take a value, and the setting that each stands for, if one."""
SWITCHES = ("--verbose",)
_SHORT = {"-c": "--conf", "-v": "--verbose"}
_NEVER = {
    "--class": "the launcher chooses what Spark runs",
    "--kill": "it ends another driver",
    "--status": "it asks for another driver",
    "--remote": "Spark Connect has no driver on this node",
    "--supervise": "it is for drivers on the cluster",
    "--help": "nothing would be started",
    "--version": "nothing would be started",
}
_OPERATORS = ("--master", "--name", "--proxy-user", "--principal", "--keytab", "--properties-file", "--deploy-mode")
_OPERATORS_SETTINGS = (
    "spark.master",
    "spark.app.name",
    "spark.submit.deployMode",
    "spark.kerberos.",
    "spark.yarn.keytab",
    "spark.yarn.principal",
    "spark.remote",
)
_CLIENTS = "KERNEL_EXTRA_SPARK_OPTS"
USER_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}\$?\Z")
"""What may be the name of a user to run as: it reaches sudo and spark-submit as one argument, and begins with no dash."""


@dataclass(frozen=True)
class SparkOptions:
    """All that a language's module needs to build the command; made by `parse`, once a start.

    Only `env` may be changed: it becomes the kernel's environment.
    """

    spark_home: str
    submit: tuple[str, ...]
    """argv of spark-submit before the primary resource, without the program."""
    launch: tuple[str, ...]
    """LAUNCH_OPTS, and what the kernelspec's argv holds beyond the launcher's own arguments."""
    mode: str
    """`lazy` or `eager`: a session in the background; `none`: the user makes his own."""
    connection_file: str
    folder: str
    """Where the launcher's files are on this node."""
    kernel_id: str
    master: str
    kernel_class: str
    """The Python kernel's class, `module.Class`; empty: ipykernel's own."""
    env: dict[str, str]
    settings: Mapping[str, str] = field(default_factory=dict)
    """Spark's settings as they are in force: spark-defaults.conf under what `submit` says."""

    @property
    def on_yarn(self) -> bool:
        """Whether YARN runs the executors."""
        return self.master.startswith("yarn")

    @property
    def tag(self) -> str:
        """The YARN tag by which the application is found again."""
        return TAG + self.kernel_id

    @property
    def attempt_tag(self) -> str:
        """The tag of this one start: after a restart, the application before it carries another."""
        return f"{TAG}attempt-{self.env.get('EG_ATTEMPT') or self.kernel_id}"

    def with_settings(self, added: Mapping[str, str]) -> SparkOptions:
        """Return the same with these Spark settings as well, wherever nobody has set them yet."""
        new = {name: value for name, value in added.items() if name not in self.settings}
        submit = tuple(word for name, value in new.items() for word in ("--conf", f"{name}={value}"))
        changed = {**self.__dict__, "submit": submit + self.submit, "settings": {**new, **self.settings}}
        return SparkOptions(**changed)

    def overridden(self, given: Mapping[str, str]) -> SparkOptions:
        """Return the same with the settings *given* in place of what was said of them before."""
        kept: list[str] = []
        words = iter(self.submit)
        for flag in words:
            if flag in SWITCHES:
                kept.append(flag)
                continue
            value = next(words)
            name = value.partition("=")[0] if flag == "--conf" else FLAGS.get(flag, "")
            kept += [] if name in given else [flag, value]
        added = [word for name, value in given.items() for word in ("--conf", f"{name}={value}")]
        changed = {**self.__dict__, "submit": (*kept, *added), "settings": {**self.settings, **given}}
        return SparkOptions(**changed)


def parse(arguments: Sequence[str], env: Mapping[str, str], folder: str) -> SparkOptions:
    """Return what *arguments* (of the launcher, behind the language) and the kernel's *env* say; raises LaunchError."""
    own = dict(env)
    taken, launch = _launcher_arguments(split_variable(own, "LAUNCH_OPTS"), ())
    named, rest = _launcher_arguments(arguments, ("-f", "--profile"))
    taken.update(named)
    kernel_id = own.get("KERNEL_ID") or taken.get("kernel-id", "")
    spark_home = own.get("SPARK_HOME", "")
    if not spark_home:
        raise LaunchError("SPARK_HOME is not set", "set it in the kernelspec's env to where Spark is on the nodes")
    mode = (taken.get("spark-context-initialization-mode") or "lazy").lower()
    if mode not in MODES:
        raise LaunchError(f"spark-context-initialization-mode is {mode!r}", f"use one of {', '.join(MODES)}")
    specs = _submit_words(split_variable(own, "SPARK_OPTS" if own.get("SPARK_OPTS") else "__TOREE_SPARK_OPTS__"))
    given = _Given([*specs, *_submit_words(split_variable(own, _CLIENTS), client=True)], own)
    if given.settings.get("spark.submit.deployMode", "client") != "client":
        raise LaunchError(
            "--deploy-mode is not client, but a kernel's driver is the kernel itself", "say --deploy-mode client"
        )
    words = given.words
    master = given.settings.get("spark.master") or own.get("MASTER") or "local[*]"
    if master.startswith("yarn") and not (own.get("HADOOP_CONF_DIR") or own.get("YARN_CONF_DIR")):
        own.update(site_environment(spark_home, conf_dir(own), own))
    words += _impersonation(own, master)
    if not any(flag == "--name" for flag, _ in words):
        words.append(("--name", kernel_id))
    tags = [tag for tag in given.settings.get("spark.yarn.tags", "").split(",") if tag]
    tagged: dict[str, str] = {}
    if kernel_id and master.startswith("yarn"):
        words = [word for word in words if not word[1].startswith("spark.yarn.tags=")]
        tags += [TAG + kernel_id, f"{TAG}attempt-{own.get('EG_ATTEMPT') or kernel_id}"]
        tagged = {"spark.yarn.tags": ",".join(dict.fromkeys(tags))}
        words.append(("--conf", f"spark.yarn.tags={tagged['spark.yarn.tags']}"))
    return SparkOptions(
        spark_home=str(Path(spark_home).expanduser()),
        submit=tuple(word for option in words for word in _as_words(option)),
        launch=(*launch, *rest),
        mode=mode,
        connection_file=taken.get("connection-file", ""),
        folder=folder,
        kernel_id=kernel_id,
        master=master,
        kernel_class=taken.get("kernel-class-name", ""),
        env=own,
        settings={**given.defaults, **given.settings, **tagged, "spark.app.name": _last(words, "--name")},
    )


def _impersonation(env: Mapping[str, str], master: str) -> list[tuple[str, str]]:
    """Return what makes the application that of KERNEL_USERNAME, if the gateway impersonates; raises LaunchError.

    The kernel itself stays the login user's: to run it by sudo is for Enterprise Gateway's own `run.sh`.
    """
    if env.get("EG_IMPERSONATION_ENABLED", "").lower() != "true":
        return []
    user = env.get("KERNEL_USERNAME", "")
    if not USER_NAME.match(user):
        raise LaunchError(f"KERNEL_USERNAME={user!r} is no user's name", "send a name of letters, digits, _, - and .")
    if not master.startswith("yarn"):
        raise LaunchError(
            f"impersonation is enabled, but only YARN runs applications for others ({master} does not)",
            "use a YARN kernelspec, or disable impersonation at a gateway of its own for this one",
        )
    return [] if user == own_user() else [("--proxy-user", user)]


def _launcher_arguments(arguments: Sequence[str], files: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the launcher's own arguments by name, in the spellings that Enterprise Gateway's kernelspecs use, and the rest.

    *files* are the options that name the connection file: in LAUNCH_OPTS none does, and they are the kernel's.
    """
    taken: dict[str, str] = {}
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        bare = name[2:].replace("RemoteProcessProxy.", "", 1) if name.startswith("--") else ""
        if word in files:
            taken["connection-file"] = next(words, "")
        elif bare in ("kernel-id", "spark-context-initialization-mode", "cluster-type", "kernel-class-name"):
            taken[bare] = value if equals else next(words, "")
        elif bare in ("response-address", "public-key", "port-range"):
            _ = value if equals else next(words, "")  # of Enterprise Gateway's way to learn ports: not needed here
        else:
            rest.append(word)
    return taken, rest


def split_variable(env: Mapping[str, str], name: str) -> list[str]:
    """Return the words of the variable *name* as a shell's quotes would have them, nothing expanded; raises LaunchError."""
    try:
        return shlex.split(env.get(name, ""))
    except ValueError as error:
        raise LaunchError(f"{name} can't be split into words ({error})", "balance its quotes") from error


def clients_options(env: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Return the options of spark-submit that a client sent, as words each; raises LaunchError for what clients may not say."""
    return [_as_words(option) for option in _submit_words(split_variable(env, _CLIENTS), client=True)]


def _as_words(option: tuple[str, str]) -> tuple[str, ...]:
    return option[:1] if option[0] in SWITCHES else option


def _submit_words(words: Sequence[str], client: bool = False) -> list[tuple[str, str]]:
    """Return spark-submit's options as (flag, value), a switch with an empty value; raises LaunchError for what is none."""
    whose = _CLIENTS if client else "SPARK_OPTS"
    found: list[tuple[str, str]] = []
    pending = iter(words)
    for word in pending:
        flag, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        flag = _SHORT.get(flag, flag)
        if flag in _NEVER:
            raise LaunchError(f"{whose} holds {flag}: {_NEVER[flag]}", "leave it out")
        if flag in SWITCHES:
            found.append((flag, ""))
            continue
        if flag not in FLAGS:
            raise LaunchError(
                f"{whose} holds {word!r}, which is no option of spark-submit",
                "quote values that hold blanks, and name options as `spark-submit --help` does",
            )
        given = value if equals else next(pending, None)
        if given is None:
            raise LaunchError(f"{whose} ends with {flag}, which needs a value", "add the value")
        if flag == "--conf" and "=" not in given:
            raise LaunchError(f"{whose} holds --conf {given!r}", "write --conf NAME=VALUE")
        setting = given.partition("=")[0] if flag == "--conf" else ""
        if client and (flag in _OPERATORS or setting.startswith(_OPERATORS_SETTINGS)):
            raise LaunchError(
                f"{whose} holds {setting or flag}, which is the kernelspec's to say",
                "leave it out, or ask the operator",
            )
        found.append((flag, given))
    return found


class _Given:
    """Options in the order in which they were given, and the settings that they amount to."""

    def __init__(self, words: list[tuple[str, str]], env: Mapping[str, str]) -> None:
        self.words = words
        self.settings: dict[str, str] = {}
        tags: list[str] = []
        for flag, value in words:
            if flag == "--conf":
                name, _, text = value.partition("=")
                self.settings[name] = text
                tags += [text] if name == "spark.yarn.tags" else []
        self.settings.update({FLAGS[flag]: value for flag, value in words if FLAGS.get(flag)})  # these win over --conf
        self.defaults = read_properties(defaults_file(env, _last(words, "--properties-file")))
        for name, value in self.defaults.items():
            self.settings.setdefault(name, value)
        if tags:
            self.settings["spark.yarn.tags"] = ",".join(dict.fromkeys(tags))


def _last(words: Sequence[tuple[str, str]], flag: str) -> str:
    return next((value for name, value in reversed(words) if name == flag), "")

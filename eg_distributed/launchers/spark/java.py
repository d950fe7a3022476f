"""The command line of Spark's driver JVM, as `bin/spark-submit` would come to it.

`spark-submit` starts a first JVM only to print the second one's command line, which costs half a second of each start. Where
it is known what that first one would say (releases 3.3 to 3.5, no spark-env.sh that does anything), it is said here;
everywhere else the command is `bin/spark-submit` itself.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Mapping, Optional, Sequence

from .env import says_something
from .errors import LaunchError
from .options import SparkOptions
from .properties import conf_dir

_OPENED = (
    "java.base/java.lang",
    "java.base/java.lang.invoke",
    "java.base/java.lang.reflect",
    "java.base/java.io",
    "java.base/java.net",
    "java.base/java.nio",
    "java.base/java.util",
    "java.base/java.util.concurrent",
    "java.base/java.util.concurrent.atomic",
    "java.base/jdk.internal.ref",
    "java.base/sun.nio.ch",
    "java.base/sun.nio.cs",
    "java.base/sun.security.action",
    "java.base/sun.util.calendar",
    "java.security.jgss/sun.security.krb5",
)
MODULE_OPTIONS = (
    "-XX:+IgnoreUnrecognizedVMOptions",
    *(f"--add-opens={package}=ALL-UNNAMED" for package in _OPENED),
    "-Djdk.reflect.useDirectMethodHandle=false",
)
"""Spark's own list for Java 9 and later (`JavaModuleOptions` of 3.3 to 3.5)."""
_KNOWN = ((3, 3), (3, 4), (3, 5))
_CORE = re.compile(r"spark-core_(?P<scala>\d+\.\d+)-(?P<version>(?P<major>\d+)\.(?P<minor>\d+)[^/]*)\.jar\Z")


def core_version(spark_home: str) -> tuple[str, str]:
    """Return the versions of Spark and of its Scala ("3.5.9", "2.12") as its jars say them; raises LaunchError."""
    match = _core(spark_home)
    return match["version"], match["scala"]


def _core(spark_home: str) -> re.Match[str]:
    jars = Path(spark_home) / "jars"
    try:
        names = os.listdir(jars)
    except OSError as error:
        raise LaunchError(
            f"there is no Spark at SPARK_HOME={spark_home} ({error.strerror})",
            "install Spark there, or set SPARK_HOME in the kernelspec's env to where it is on the nodes",
        ) from error
    for name in names:
        match = _CORE.match(name)
        if match is not None:
            return match
    raise LaunchError(
        f"SPARK_HOME={spark_home} holds no Spark (no spark-core jar in its jars folder)",
        "set SPARK_HOME in the kernelspec's env to where Spark is on the nodes",
    )


def submit_command(
    options: SparkOptions,
    *,
    main_class: Optional[str],
    resource: str,
    args: Sequence[str] = (),
    extra: Optional[Mapping[str, str]] = None,
) -> list[str]:
    """Return the argv that runs *resource* (a jar, a script, or a name of Spark's own such as `pyspark-shell`) in a driver JVM.

    *args* follow the resource. *extra* are Spark settings for wherever nobody set them; those of Java options
    (`spark.driver.defaultJavaOptions`) come before the user's own, so that his win. Raises LaunchError.
    """
    options = options.with_settings(extra or {})
    submit = [*options.submit, *(("--class", main_class) if main_class else ()), resource, *args]
    if not is_plain(options):
        return [str(Path(options.spark_home) / "bin" / "spark-submit"), *submit]
    options.env.setdefault("SPARK_ENV_LOADED", "1")
    options.env.setdefault("SPARK_CONF_DIR", str(conf_dir(options.env)))
    options.env.setdefault("SPARK_SCALA_VERSION", core_version(options.spark_home)[1])
    _extend_library_path(options)
    return [*_java(options), "org.apache.spark.deploy.SparkSubmit", *submit]


def is_plain(options: SparkOptions) -> bool:
    """Whether the JVM's command line is known without asking `bin/spark-submit`."""
    match = _core(options.spark_home)
    if (int(match["major"]), int(match["minor"])) not in _KNOWN:
        return False
    if options.env.get("SPARK_PREPEND_CLASSES") or options.env.get("SPARK_TESTING"):
        return False
    conf = conf_dir(options.env)
    return not (says_something(conf / "spark-env.sh") or says_something(conf / "java-opts"))


def java(env: Mapping[str, str]) -> str:
    """Return the path of Java as Spark would choose it: JAVA_HOME's, else the one on PATH; raises LaunchError."""
    home = env.get("JAVA_HOME")
    found = str(Path(home) / "bin" / "java") if home else shutil.which("java", path=env.get("PATH", os.defpath)) or ""
    if not found or not os.access(found, os.X_OK):
        raise LaunchError(
            f"there is no Java ({found or 'java'} can't be run)",
            "install a JRE on the node, or set JAVA_HOME in the kernelspec's env to where it is there",
        )
    return found


def _java(options: SparkOptions) -> list[str]:
    """Return Java's own part of the command, in the order of Spark's launcher."""
    env, settings = options.env, options.settings
    memory = settings.get("spark.driver.memory") or env.get("SPARK_DRIVER_MEMORY") or env.get("SPARK_MEM") or "1g"
    java_options = [
        *_words("SPARK_SUBMIT_OPTS", env.get("SPARK_SUBMIT_OPTS", "")),
        f"-Xmx{memory}",
        *_words("spark.driver.defaultJavaOptions", settings.get("spark.driver.defaultJavaOptions", "")),
        *_words("spark.driver.extraJavaOptions", settings.get("spark.driver.extraJavaOptions", "")),
    ]
    if any(option.startswith("-Xmx") for option in java_options if option != f"-Xmx{memory}"):
        raise LaunchError("the driver's Java options hold -Xmx", "use --driver-memory, as Spark demands")
    return [java(env), "-cp", _class_path(options), *java_options, *MODULE_OPTIONS]


def _class_path(options: SparkOptions) -> str:
    env = options.env
    entries = [
        options.settings.get("spark.driver.extraClassPath", ""),
        f"{conf_dir(env)}/",
        f"{options.spark_home}/jars/*",
        *(f"{env[name].rstrip('/')}/" for name in ("HADOOP_CONF_DIR", "YARN_CONF_DIR") if env.get(name)),
        env.get("SPARK_DIST_CLASSPATH", ""),
    ]
    return ":".join(entry for entry in entries if entry)


def _extend_library_path(options: SparkOptions) -> None:
    added = options.settings.get("spark.driver.extraLibraryPath")
    if added:
        inherited = options.env.get("LD_LIBRARY_PATH")
        options.env["LD_LIBRARY_PATH"] = f"{inherited}:{added}" if inherited else added


def _words(name: str, text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise LaunchError(f"{name} can't be split into words ({error})", "balance its quotes") from error

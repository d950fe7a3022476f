"""A notebook without a cluster: the kernel's session in a process of its own, with a pyspark and a Java that are as good as real.

The package has pyspark's own circle of imports, its lock, its one context, its builder and its way to a JVM. How slow it is, and
whether a cluster has room, is said by the environment: SLOW are the seconds of its import, and while the file FULL exists,
no context is made.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import eg_distributed.launchers.spark as launcher

SECONDS = 60.0
JAVA = """#!/bin/sh
echo "$@" >> "$JVMS"
while [ -e "$SLEEPY" ]; do sleep 0.02; done
if [ -n "$DYING" ]; then cat "$DYING" >&2; exit 1; fi
printf '\\000\\000\\020\\000\\000\\000\\000\\003abc' > "$_PYSPARK_DRIVER_CONN_INFO_PATH.new"
mv "$_PYSPARK_DRIVER_CONN_INFO_PATH.new" "$_PYSPARK_DRIVER_CONN_INFO_PATH"
exec cat
"""
"""Stands in for Java: says where it listens, as Spark does, and lives as long as its input; or ends with the text of DYING.
Nothing comes while SLEEPY exists."""
PYSPARK = {
    "__init__.py": """
import os, time
__version__ = "3.5.9"
time.sleep(float(os.environ.get("SLOW", "0")))
from pyspark.conf import SparkConf
from pyspark.context import SparkContext
time.sleep(float(os.environ.get("SLOW", "0")))
from pyspark.sql import SQLContext
""",
    "conf.py": """
class SparkConf:
    def __init__(self, given=()):
        self._conf = dict(given)
    def set(self, name, value):
        self._conf[name] = value
    def get(self, name, default=None):
        return self._conf.get(name, default)
    def getAll(self):
        return list(self._conf.items())
""",
    "context.py": """
import itertools, os, shlex, threading, time
from types import SimpleNamespace
from pyspark.conf import SparkConf
numbers = itertools.count(1)

def launch_gateway(conf=None):
    return SimpleNamespace(port=os.environ["PYSPARK_GATEWAY_PORT"], proc=None, jvm=object())

def submitted():
    words = shlex.split(os.environ["PYSPARK_SUBMIT_ARGS"])[:-1]
    pairs = dict(zip(words[::2], words[1::2]))
    found = {"spark.app.name": pairs["--name"], "spark.master": pairs["--master"]}
    for flag, value in zip(words[::2], words[1::2]):
        if flag == "--conf":
            name, _, text = value.partition("=")
            found[name] = text
    return found

class SparkContext:
    _lock = threading.RLock()
    _gateway = _jvm = _active_spark_context = None
    _jsc = None
    version = "3.5.9"
    uiWebUrl = None

    def __init__(self, conf=None):
        SparkContext._ensure_initialized(self, gateway=None, conf=conf)
        while os.path.exists(os.environ.get("FULL", "/nowhere")):
            time.sleep(0.01)
        given = dict(conf.getAll()) if conf else {}
        if given.get("spark.executor.cores") == "many":
            SparkContext._active_spark_context = None
            raise ValueError("java.lang.NumberFormatException: many")
        self._conf = {**submitted(), **given}
        self._jsc = SimpleNamespace(sc=lambda: SimpleNamespace(isStopped=lambda: self._jsc is None))
        self.applicationId = f"app-{next(numbers)}"
        self.master, self.appName = self._conf["spark.master"], self._conf["spark.app.name"]
        self.properties = {}

    @classmethod
    def _ensure_initialized(cls, instance=None, gateway=None, conf=None):
        with SparkContext._lock:
            if not SparkContext._gateway:
                SparkContext._gateway = gateway or launch_gateway(conf)
                SparkContext._jvm = SparkContext._gateway.jvm
            if instance:
                if SparkContext._active_spark_context not in (None, instance):
                    raise ValueError("Cannot run multiple SparkContexts at once")
                SparkContext._active_spark_context = instance

    @classmethod
    def getOrCreate(cls, conf=None):
        with SparkContext._lock:
            if SparkContext._active_spark_context is None:
                SparkContext(conf)
            return SparkContext._active_spark_context

    def getConf(self):
        return SparkConf(self._conf)
    def getLocalProperty(self, name):
        return self.properties.get(name)
    def setLocalProperty(self, name, value):
        self.properties[name] = value
    def stop(self):
        self._jsc = None
        SparkContext._active_spark_context = None
""",
    "sql/__init__.py": """
import os, time
time.sleep(float(os.environ.get("SLOW", "0")) / 2)
from pyspark.sql.session import SparkSession
time.sleep(float(os.environ.get("SLOW", "0")) / 2)
from pyspark.sql.context import SQLContext
""",
    "sql/context.py": """
class SQLContext:
    def __init__(self, context, session):
        self.sparkSession = session
""",
    "sql/functions.py": """
import pyspark.sql.session
def col(name):
    return name
""",
    "sql/session.py": """
import threading
from pyspark.conf import SparkConf
from pyspark.context import SparkContext
STATIC = ("spark.sql.warehouse.dir", "spark.sql.catalogImplementation")

class RuntimeConf:
    def __init__(self):
        self.given = {}
    def isModifiable(self, name):
        return name.startswith("spark.sql.") and name not in STATIC
    def set(self, name, value):
        if name.startswith(("spark.executor.", "spark.cores.")):
            raise ValueError("CANNOT_MODIFY_CONFIG")
        self.given[name] = value

class SparkSession:
    _instantiatedSession = None
    def __init__(self, context):
        self.sparkContext, self.conf = context, RuntimeConf()
        SparkSession._instantiatedSession = self

    class Builder:
        _lock = threading.RLock()
        def __init__(self):
            self._options = {}
        def config(self, name, value):
            self._options[name] = value
            return self
        def appName(self, name):
            return self.config("spark.app.name", name)
        def getOrCreate(self):
            with self._lock:
                session = SparkSession._instantiatedSession
                if session is None or session.sparkContext._jsc is None:
                    return SparkSession(SparkContext.getOrCreate(SparkConf(self._options)))
                return session

    class _Property:
        def __get__(self, instance, owner):
            return owner.Builder()
    builder = _Property()

    def range(self, number):
        "Return a range."
        return list(range(number))
    def stop(self):
        self.sparkContext.stop()
        SparkSession._instantiatedSession = None
""",
}
_KERNEL = """
import contextlib, io, os, signal, sys, threading, time, types
package = types.ModuleType("eg_distributed_launcher")
package.__path__ = [os.environ["LAUNCHER"]]
sys.modules[package.__name__] = package
from eg_distributed_launcher.python.session import Session

class Shell:
    def __init__(self):
        self.user_ns, self.user_ns_hidden, self.hooks, self.events = {}, {}, {}, self
    def register(self, name, hook):
        self.hooks[name] = hook
    def _inspect(self, method, name):
        self.inspected = self.user_ns[name].stop.__name__

def cell(code):
    '''Run a cell as IPython does; return what it raised, and what it said on stderr.'''
    said, error = io.StringIO(), None
    with contextlib.redirect_stderr(said):
        shell.hooks["pre_run_cell"](types.SimpleNamespace(raw_cell=code))
        try:
            exec(code, shell.user_ns)
        except BaseException as raised:
            error = raised
        shell.hooks["post_run_cell"](types.SimpleNamespace(error_in_exec=error))
    return error, said.getvalue()

def ok(code):
    '''Run a cell that has to succeed; return what it said on stderr.'''
    error, said = cell(code)
    if error is not None:
        raise error
    return said

def interrupted(code):
    '''Run a cell, and interrupt it as soon as it waits for the session.'''
    def interrupt():
        while session._attempt is None or session._attempt.done:
            time.sleep(0.005)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=interrupt, daemon=True).start()
    error, _ = cell(code)
    assert isinstance(error, KeyboardInterrupt), error

def jvms():
    return open(os.environ["JVMS"]).read().splitlines()

mode = os.environ.get("MODE", "lazy")
log = os.open(os.environ["LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
session = Session(os.environ["LAUNCHER"], wanted=mode != "none", log=log, eager=mode == "eager")
session.attach()
if mode == "eager":
    session.start()
shell = Shell()
session.offer(shell)
session.start()  # as after the kernel's first answer
ns = shell.user_ns
ns["get_ipython"] = lambda: shell
"""


def make(folder: Path) -> dict[str, str]:
    """Write the package and the Java into *folder*; return the environment of a notebook with them."""
    for name, text in PYSPARK.items():
        path = folder / "site" / "pyspark" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name in ("spark/jars", "java/bin"):
        (folder / name).mkdir(parents=True)
    (folder / "spark/jars/spark-core_2.12-3.5.9.jar").touch()
    java = folder / "java/bin/java"
    java.write_text(JAVA)
    java.chmod(0o755)
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "PYTHONPATH": str(folder / "site"),
        "LAUNCHER": str(Path(launcher.__file__).parent),
        "SPARK_HOME": str(folder / "spark"),
        "JAVA_HOME": str(folder / "java"),
        "JVMS": str(folder / "jvms"),
        "LOG": str(folder / "kernel.log"),
        "TMPDIR": str(folder),
        "PYSPARK_SUBMIT_ARGS": "--master local[1] --name kernel-1 --conf spark.executor.memory=512m pyspark-shell",
    }


def run(folder: Path, cells: str, python: str = sys.executable, **env: str) -> str:
    """Run *cells* in a notebook below *folder*, by `cell`, `ok` and `interrupted` above; return what they print."""
    known = make(folder)
    done = subprocess.run(
        [python, "-c", _KERNEL + textwrap.dedent(cells) + "\nsession.end()\n"],
        env={**known, **env},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

"""The Spark session of a Python kernel: begun in the background, waited for by whoever uses it first."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
import threading
import traceback
import warnings
from typing import Any, Callable, Optional

from ..checks import check_cluster
from ..errors import LaunchError
from ..options import SparkOptions, parse
from ..reasons import advise, explain
from ..watch import Watch
from .cancel import Cancellation
from .jvm import Gateway
from .lazy import NAMES, Lazy
from .progress import Progress

_USES = re.compile(r"\b(?:%s)\b" % "|".join(NAMES))
_STEP = 0.1  # seconds between two looks while a cell waits: short, so that an interrupt is seen at once
_END_GRACE = 1.5  # seconds that the driver JVM has to end in order; what it then leaves is removed after the kernel


class Session:
    """One kernel's Spark session: made once by a thread of its own, and again by the next use if that failed.

    *wanted* is False in mode `none`: then nothing is made, but jobs of the user's own session are cancelled and shown all the
    same. *log* is a descriptor of the kernel's log. Owned by the kernel's process; `start`, `wait` and the hooks are called on
    its main thread.
    """

    def __init__(self, folder: str, wanted: bool, log: int) -> None:
        self.wanted = wanted
        self._log = log
        self.session: Any = None
        self.error: Optional[LaunchError] = None
        self._folder = folder
        self._options: Optional[SparkOptions] = None
        self._gateway: Optional[Gateway] = None
        self._thread: Optional[threading.Thread] = None
        self._starting = threading.Lock()
        self._cancellation = Cancellation(self.context)
        self._interrupted = False
        self._shell: Any = None
        self._to_say = ""
        self._progress = Progress(self.context)

    # -- making it -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to make the session, unless that was begun; returns at once."""
        with self._starting:
            if self.wanted and self._thread is None:
                self._thread = threading.Thread(target=self._make, name="spark-session", daemon=True)
                self._thread.start()

    def _make(self) -> None:
        try:
            self.error = None
            self._options = options = _options(self._folder)
            check_cluster(options)
            session = self._create(options)
        except LaunchError as error:
            self.error = error
        except Exception as error:  # noqa: BLE001 - whatever Spark raises is told to the cell that uses the session first
            os.write(self._log, traceback.format_exc().encode("utf-8", "replace"))
            self.error = explain(error, self._options)
        else:
            self._to_say = _announcement(session)
            self.session = session
            self._put_in_place()

    def _create(self, options: SparkOptions) -> Any:
        options = options.with_settings({"spark.ui.showConsoleProgress": "false"})  # it would draw bars into the log
        if self._gateway is None or not self._gateway.runs:
            self._gateway = Gateway(options, self._log)  # with what the options and the environment say by now
        gateway = self._gateway
        gateway.start()  # beside the import of pyspark, which takes as long as half of it
        import_pyspark(options)
        gateway.connect()
        from pyspark.sql import SparkSession

        session = SparkSession.builder.getOrCreate()
        if session.sparkContext._jsc is None or session.sparkContext._jsc.sc().isStopped():
            raise LaunchError(
                "Spark gave the session up as soon as it was made", "see the kernel's log for what the cluster said"
            )
        return session

    # -- using it ------------------------------------------------------------------------------------------------

    def offer(self, shell: Any) -> None:
        """Put `spark`, `sc` and `sqlContext` into the user's namespace, as names of what is still to come."""
        self._shell = shell
        if self.wanted:
            shell.user_ns.update({name: Lazy(self, name) for name in NAMES})
            shell.user_ns_hidden.update(dict.fromkeys(NAMES))
            self._put_in_place()
        self._cancellation.begin()
        shell.events.register("pre_run_cell", self._before_cell)
        shell.events.register("post_run_cell", self._after_cell)

    def _put_in_place(self) -> None:
        """Replace the placeholders by the real things, unless the user has put something else there."""
        if self._shell is not None and self.session is not None:
            for name in NAMES:
                if type(self._shell.user_ns.get(name)) is Lazy:
                    self._shell.user_ns[name] = self.part(name)

    def part(self, name: str) -> Any:
        """Return what the user knows by *name*; the session has been made."""
        if name == "spark":
            return self.session
        if name == "sc":
            return self.session.sparkContext
        from pyspark.sql import SQLContext

        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # that it is deprecated: it is here for those who still use it
            return SQLContext(self.session.sparkContext, self.session)

    def wait(self) -> None:
        """Return when the session is there; says what is being waited for. Raises LaunchError, KeyboardInterrupt.

        A session that could not be made is tried again: the master may be back.
        """
        if self.error is not None and self._thread is not None and not self._thread.is_alive():
            self._thread = None
        self.start()
        watch = Watch(lambda: self._options)
        thread = self._thread
        while thread is not None and thread.is_alive():
            thread.join(_STEP)
            watch.look()
        if self.session is None:
            raise self.error or LaunchError("there is no Spark session", "restart the kernel, and see its log")
        if threading.current_thread() is threading.main_thread():
            self._cancellation.cell_begins()
        self._say()

    def _say(self) -> None:
        said, self._to_say = self._to_say, ""
        if said:
            print(said, file=sys.stderr, flush=True)  # what a cell prints on stdout is its own

    def _before_cell(self, info: Any = None) -> None:
        if self._to_say and _USES.search(getattr(info, "raw_cell", "") or ""):
            self._say()
        self._cancellation.cell_begins()
        self._progress.cell_begins(getattr(self._shell, "kernel", None))

    def _after_cell(self, result: Any = None) -> None:
        self._progress.cell_ends()
        error = getattr(result, "error_in_exec", None)
        advice = advise(error) if error is not None else ""
        if advice:
            print(advice, file=sys.stderr, flush=True)

    # -- interrupts and the end ----------------------------------------------------------------------------------

    def context(self) -> Any:
        """Return the SparkContext of this process, whoever made it, or None; imports nothing."""
        module = sys.modules.get("pyspark.context") or sys.modules.get("pyspark.core.context")
        return getattr(getattr(module, "SparkContext", None), "_active_spark_context", None)

    def cancel_jobs_soon(self) -> None:
        """Cancel what runs on the cluster, from a thread: the caller is a signal handler amid a call to the JVM."""
        self._interrupted = True
        self._cancellation.soon()

    def renew_connection(self) -> None:
        """After an interrupt, wait for its effect, and have this thread's next call to the JVM use a new connection.

        Called on the main thread, before each message.

        py4j closes the one whose answer nobody read, unless a second interrupt comes amid just that: the next call would read
        the answer of the one before.
        """
        if not self._interrupted:
            return
        self._interrupted = False
        self._cancellation.wait()
        client: Any = getattr(getattr(self.context(), "_gateway", None), "_gateway_client", None)
        if hasattr(client, "get_thread_connection"):  # one of py4j's two clients keeps a connection for each thread
            connection = client.get_thread_connection()
            if connection is not None:
                connection.close()

    def end(self) -> None:
        """End the driver's JVM, whose own hooks end the application; called when the kernel is shut down."""
        if self._gateway is not None:
            self._gateway.end(_END_GRACE)


def _options(folder: str) -> SparkOptions:
    """Return the options again that the launcher settled: they are in PYSPARK_SUBMIT_ARGS, for pyspark to read.

    Whose application it is, is among them.
    """
    words = shlex.split(os.environ.get("PYSPARK_SUBMIT_ARGS", ""))[:-1]
    settled = {"SPARK_OPTS": shlex.join(words), "KERNEL_EXTRA_SPARK_OPTS": "", "LAUNCH_OPTS": ""}
    env = {**os.environ, **settled, "EG_IMPERSONATION_ENABLED": "False"}
    return parse([], env, folder)


def import_pyspark(options: SparkOptions) -> None:
    """Import pyspark, that of SPARK_HOME if the interpreter has none; raises LaunchError if it does not fit its JVM."""
    from ..java import core_version
    from .command import archives

    try:
        import pyspark
    except ImportError:
        sys.path += [*archives(options.spark_home, "pyspark.zip"), *archives(options.spark_home, "py4j-*.zip")]
        try:
            import pyspark
        except ImportError as error:
            raise LaunchError(
                f"{sys.executable} can't import pyspark ({error})",
                "install it there, or put SPARK_HOME's python folder and its py4j archive on PYTHONPATH in the kernelspec's env",
            ) from error
    version, _ = core_version(options.spark_home)
    ours = str(pyspark.__version__)
    if ours.split(".")[:2] != version.split(".")[:2]:
        raise LaunchError(
            f"pyspark {ours} ({os.path.dirname(pyspark.__file__)}) does not fit Spark {version} ({options.spark_home})",
            "install the same version, or set SPARK_HOME or PYTHONPATH in the kernelspec's env to what belongs together",
        )


def _announcement(session: Any) -> str:
    context = session.sparkContext
    said = f"Spark {context.version}: application {context.applicationId} on {context.master}"
    address: Callable[[], Optional[str]] = lambda: context.uiWebUrl  # noqa: E731
    with contextlib.suppress(Exception):  # the page is a convenience; a session without one is no error
        said += f", {address()}" if address() else ""
    return said

"""The Spark session of a Python kernel: its JVM is begun in the background, itself by the cell that uses it first."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import sys
import threading
import traceback
import warnings
from typing import Any, Callable, Iterator, Mapping, Optional

from ..checks import check_cluster
from ..errors import LaunchError
from ..options import SparkOptions, parse
from ..reasons import advise, explain
from ..watch import Watch
from .attempt import Attempt
from .builder import is_remote, not_in_force, of_conf
from .cancel import Cancellation
from .hooks import SESSION_MODULE, install
from .jvm import Gateway, hush
from .lazy import NAMES, Lazy
from .progress import Progress
from .py_files import make_importable

_USES = re.compile(r"\b(?:%s)\b" % "|".join(NAMES))
_STEP = 0.1  # seconds between two looks while a cell waits
_JVM_END = 1.0  # seconds for a JVM to end whose connection has closed
_END_GRACE = 1.5  # seconds that the driver JVM has to end in order; what it then leaves is removed after the kernel


class Session:
    """One kernel's Spark session: made once, by a thread of its own, and again by the next use if that failed or it was stopped.

    What makes it is what a cell uses first: `spark`, with the kernelspec's options, or the notebook's own builder, with its own
    settings. So these count by the order of cells, and not by how fast a cluster was. An *eager* session is made before any cell,
    with the kernelspec's options.

    *wanted* is False in mode `none`: then nothing is made, but jobs of the user's own session are cancelled and shown all the
    same, and its JVM is started as ours is. *log* is a descriptor of the kernel's log. Owned by the kernel's process; `start`,
    `wait` and the hooks are called on its main thread.
    """

    def __init__(self, folder: str, wanted: bool, log: int, eager: bool = False) -> None:
        self.wanted = wanted
        self.session: Any = None
        self.inspecting = self.cell_runs = False
        self._eager = eager
        self._log = log
        self._folder = folder
        self._options: Optional[SparkOptions] = None
        self._gateway: Optional[Gateway] = None
        self._starting = threading.Lock()  # of what is begun only once
        self._warmed = False
        self._jvm = threading.RLock()  # of `_gateway`
        self._attempt: Optional[Attempt] = None
        self._cancellation = Cancellation(self.context)
        self._interrupted = False
        self._shell: Any = None
        self._ours: dict[str, Any] = {}  # what we have put into the user's namespace
        self._announced: Any = None  # the SparkContext that cells have been told of
        self._activated: Any = None
        self._to_say = ""
        self._progress = Progress(self.context)

    def attach(self) -> None:
        """Have pyspark ask this session for its JVM, and keep py4j's noise out of cells; called once, before anything else."""
        hush()
        install(self)

    # -- making it -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin what needs no cell: an eager session, or the JVM of a lazy one; returns at once. Later calls do nothing."""
        with self._starting:
            if not self.wanted or self._warmed:
                return
            self._warmed = True
        if self._eager:
            self._begin()  # before the kernel: no cell can be importing pyspark
        else:
            threading.Thread(target=self._warm, name="spark-warm", daemon=True).start()

    def _warm(self) -> None:
        """Start the JVM, which takes the longest; what is wrong with it is told to the cell that uses it."""
        with contextlib.suppress(LaunchError), self._jvm:
            if self._gateway is None:  # else a cell was faster, with options of its own
                self._gateway_for(self._settled({}))

    def _begin(self) -> Attempt:
        """Return the attempt that is under way, or a new one; imports pyspark on the caller's thread."""
        attempt = self._attempt
        if attempt is not None and not attempt.done:
            return attempt
        missing = self._import()

        def make() -> Any:
            self._options = options = _options(self._folder)
            check_cluster(options)
            if missing is not None:
                raise missing
            from pyspark.sql import SparkSession

            return SparkSession.builder.getOrCreate()

        return self._attempted(make)

    def _attempted(self, make: Callable[[], Any]) -> Attempt:
        """Begin an attempt to *make* a session, unless one is under way; returns it."""
        with self._starting:
            if self._attempt is None or self._attempt.done:
                self._attempt = Attempt(lambda: self._make(make))
                self._attempt.begin()
            return self._attempt

    def _make(self, make: Callable[[], Any]) -> Any:
        try:
            session = make()
            if session.sparkContext._jsc is None or session.sparkContext._jsc.sc().isStopped():
                raise LaunchError(
                    "Spark gave the session up as soon as it was made", "see the kernel's log for what the cluster said"
                )
        except LaunchError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever Spark raises is told to the cell that waits
            os.write(self._log, traceback.format_exc().encode("utf-8", "replace"))
            if self._gateway is not None and self._gateway.ended(_JVM_END):
                raise self._gateway.obituary("while it made the session") from None
            raise explain(error, self._options) from None
        self.session = session
        self._follow(session.sparkContext)
        return session

    def _import(self) -> Optional[LaunchError]:
        """Import pyspark on this thread, whole, and return why that can't be; an interrupt counts when it has been done."""
        with _interrupts_later():
            try:
                self._options = options = _options(self._folder)
                import_pyspark(options)
            except LaunchError as error:
                return error
        return None

    def _settled(self, given: Mapping[str, str]) -> SparkOptions:
        """Return the options of this moment, with the settings *given* in place of theirs. Raises LaunchError."""
        options = _options(self._folder)
        options = options.with_settings({"spark.ui.showConsoleProgress": "false"})  # it would draw bars into the log
        return options.overridden(given)

    def _gateway_for(self, options: SparkOptions) -> Gateway:
        """Return a JVM that was started with these *options*; one that pyspark doesn't use yet gives way. Raises LaunchError."""
        with self._jvm:
            gateway = self._gateway
            if gateway is not None and gateway.runs and not _same_start(gateway.options, options):
                gateway.end(0)
                gateway = None
            if gateway is None or not gateway.runs:
                gateway = Gateway(options, self._log)
                gateway.start()
                self._gateway = gateway
            return gateway

    # -- what pyspark asks (`hooks.py`) --------------------------------------------------------------------------

    def before_context(self, context_class: Any, instance: Any, gateway: Any, conf: Any) -> None:
        """Have pyspark use our JVM, started with what *conf* says of that, unless it has one or is given one."""
        attempt = self._attempt
        busy = attempt if attempt is not None and not attempt.done and not attempt.is_mine else None
        if instance is not None and busy is not None and not context_class._lock._is_owned():
            # Two contexts at a time would be a muddle: afterwards pyspark refuses this one by its own words. The lock is
            # held by `SparkContext.getOrCreate`, for which the attempt waits, and whose context it takes for its own.
            with contextlib.suppress(LaunchError):
                self._await(busy)
        with context_class._lock:
            theirs = getattr(context_class._gateway, "proc", None)
            if gateway is not None or "PYSPARK_GATEWAY_PORT" in os.environ:
                return
            if context_class._gateway is not None and (theirs is None or theirs.poll() is None):
                return
            context_class._gateway = context_class._jvm = None  # of a JVM that has ended
            ours = self._gateway_for(self._settled(of_conf(conf)))
            ours.connect(context_class, lambda: context_class._ensure_initialized.__wrapped__(context_class))

    def build(self, original: Callable[[], Any], options: dict[str, str]) -> Any:
        """Answer a builder: by its own session if there is none, waited for as ours is, else by the one there is, and say what of
        its *options* is not in force."""
        attempt = self._attempt
        if is_remote(options) or (attempt is not None and attempt.is_mine):
            return original()
        if attempt is not None and not attempt.done:
            with contextlib.suppress(LaunchError):  # then this builder has its own try
                self._await(attempt)
        self._follow(self.context())
        there = getattr(self.context(), "_jsc", None) is not None
        if there or not self.wanted:
            session = original()
        else:
            session = self._await(self._attempted(lambda: self._checked(original, options)))
        self._tell(session, options, fresh=not there)
        self._follow(session.sparkContext)
        self._activate()
        self._say()
        return session

    def _checked(self, original: Callable[[], Any], options: Mapping[str, str]) -> Any:
        if "spark.master" not in options:
            self._options = settled = _options(self._folder)
            check_cluster(settled)
        return original()

    def _tell(self, session: Any, given: Mapping[str, str], fresh: bool) -> None:
        remedy = "restart the kernel, and run this builder before anything else uses Spark"
        if self._eager:
            remedy = (
                "say them in SPARK_OPTS or KERNEL_EXTRA_SPARK_OPTS: this kernel's session is made before its first cell"
            )
        ours = self._gateway is not None and self._gateway.is_of(type(session.sparkContext))
        started_with = self._gateway.options.settings if ours and self._gateway is not None else None
        with contextlib.suppress(Exception):  # advice: a session that ends meanwhile has no settings to compare
            said = not_in_force(session, given, fresh, started_with, remedy)
            if said:
                print(said, file=sys.stderr, flush=True)

    # -- using it ------------------------------------------------------------------------------------------------

    def offer(self, shell: Any) -> None:
        """Put `spark`, `sc` and `sqlContext` into the user's namespace, as names of what is still to come."""
        self._shell = shell
        with contextlib.suppress(LaunchError):  # of the options: told by the cell that uses Spark
            make_importable(_options(self._folder).settings, os.environ)
        if self.wanted:
            self._ours = {name: Lazy(self, name) for name in NAMES}
            shell.user_ns.update(self._ours)
            shell.user_ns_hidden.update(dict.fromkeys(NAMES))
            self._put_in_place()
        self._cancellation.begin()
        inspect = getattr(shell, "_inspect", None)
        if inspect is not None:  # `spark?` in a cell

            def inspected(*arguments: Any, **named: Any) -> Any:
                with self.inspected():
                    return inspect(*arguments, **named)

            shell._inspect = inspected
        shell.events.register("pre_run_cell", self._before_cell)
        shell.events.register("post_run_cell", self._after_cell)

    def _follow(self, context: Any) -> None:
        """Have our names stand for the session of *context*, the one that lives; for one to come if there is none."""
        if not self.wanted:
            return
        context = context if getattr(context, "_jsc", None) is not None else None
        attempt = self._attempt
        if self.session is not None and self.session.sparkContext is not context:
            self.session = None
            if attempt is not None and attempt.done:
                self._attempt = attempt = None
        if self.session is None and context is not None and (attempt is None or attempt.done or attempt.is_mine):
            module = sys.modules.get(SESSION_MODULE)
            made = getattr(getattr(module, "SparkSession", None), "_instantiatedSession", None)
            if made is not None and made.sparkContext is context:
                self.session = made
        if self.session is not None and self._announced is not context:
            self._announced = context
            errors = self._gateway.errors() if self._gateway is not None and attempt is not None else []
            self._to_say = "\n".join([_announcement(self.session), *(f"Spark said: {error}" for error in errors)])
        self._put_in_place()

    def _put_in_place(self) -> None:
        """Have the names in the user's namespace stand for what there is now, unless the user has put something else there."""
        if self._shell is None:
            return
        for name in NAMES:
            ours = self._ours.get(name)
            if self._shell.user_ns.get(name, self) is not ours:
                continue
            pending = ours if type(ours) is Lazy else Lazy(self, name)
            self._ours[name] = self._shell.user_ns[name] = pending if self.session is None else self.part(name)

    def part(self, name: str) -> Any:
        """Return what the user knows by *name*; the session has been made."""
        if name == "spark":
            return self.session
        if name == "sc":
            return self.session.sparkContext
        held = self._ours.get(name)
        if type(held) is not Lazy and getattr(held, "sparkSession", None) is self.session:
            return held
        from pyspark.sql import SQLContext

        with warnings.catch_warnings():
            # That it is deprecated: it is here for those who still use it.
            warnings.simplefilter("ignore", FutureWarning)
            return SQLContext(self.session.sparkContext, self.session)

    def wait(self) -> None:
        """Return when the session is there; says what is being waited for. Raises LaunchError, KeyboardInterrupt.

        A session that could not be made is tried again: the master may be back. A wait that was interrupted is gone on with by
        the next use.
        """
        self._follow(self.context())
        if self.session is None:
            self._await(self._begin())
        if self.session is None:  # it was stopped as soon as it was there
            raise LaunchError("the session was stopped meanwhile", "run the cell again")
        self._activate()
        self._say()

    def _await(self, attempt: Attempt) -> Any:
        """Return the session of *attempt*, and say meanwhile what it waits for. Raises LaunchError, KeyboardInterrupt."""
        watch = Watch(lambda: self._options)
        session = attempt.wait(_STEP, watch.look)
        if threading.current_thread() is threading.main_thread():
            self._cancellation.cell_begins()
        return session

    def _activate(self) -> None:
        """Have the session be Spark's active one on the main thread, too, as if it had been made there."""
        session = self.session
        if session is None or session is self._activated or threading.current_thread() is not threading.main_thread():
            return
        self._activated = session
        with contextlib.suppress(Exception):  # a session that is ending; Spark then falls back to the default one
            session._jvm.SparkSession.setActiveSession(session._jsparkSession)

    def _say(self) -> None:
        said, self._to_say = self._to_say, ""
        if said:
            print(said, file=sys.stderr, flush=True)  # what a cell prints on stdout is its own

    def _before_cell(self, info: Any = None) -> None:
        self.cell_runs = True
        self._follow(self.context())
        self._activate()
        if self._to_say and _USES.search(getattr(info, "raw_cell", "") or ""):
            self._say()
        self._cancellation.cell_begins()
        self._progress.cell_begins(getattr(self._shell, "kernel", None))

    def _after_cell(self, result: Any = None) -> None:
        self.cell_runs = False
        self._progress.cell_ends()
        error = getattr(result, "error_in_exec", None)
        advice = advise(error) if error is not None else ""
        if advice:
            print(advice, file=sys.stderr, flush=True)
        self._follow(self.context())

    @contextlib.contextmanager
    def inspected(self) -> Iterator[None]:
        """Answer a completion or an inspection within it, on the main thread: nothing waits for a session."""
        before, self.inspecting = self.inspecting, True
        try:
            yield
        finally:
            self.inspecting = before

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


def _same_start(one: SparkOptions, other: SparkOptions) -> bool:
    """Return True if a JVM that was started with *one* is what *other* asks for."""
    return (one.spark_home, one.submit) == (other.spark_home, other.submit)


@contextlib.contextmanager
def _interrupts_later() -> Iterator[None]:
    """Hold an interrupt of the main thread back until the end: one that comes amid an import leaves half a package behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda signum, frame: came.append(signum))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler if before is None else before)
        if came:
            signal.raise_signal(signal.SIGINT)


def import_pyspark(options: SparkOptions) -> None:
    """Import pyspark, that of SPARK_HOME if the interpreter has none; raises LaunchError if it does not fit its JVM."""
    from ..java import core_version
    from .command import archives

    try:
        import pyspark
        import pyspark.sql  # all that a session is made of: its thread is to import nothing of the user's
    except ImportError:
        sys.path += [*archives(options.spark_home, "pyspark.zip"), *archives(options.spark_home, "py4j-*.zip")]
        try:
            import pyspark
            import pyspark.sql
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

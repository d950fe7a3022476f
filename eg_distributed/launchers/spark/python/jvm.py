"""The driver's JVM behind a Python kernel: started without the JVM that only prints its command, and ended in time."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import struct
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Callable, Optional

from ..driver import scratch_folder
from ..errors import LaunchError
from ..java import submit_command
from ..last_words import Log
from ..options import SparkOptions
from ..reasons import explain_end

_NOISE = {
    "": "KeyboardInterrupt while sending command.",
    "py4j.clientserver": "Exception occurred while shutting down connection",
}
"""What py4j logs, by logger, with tracebacks, whenever a call is interrupted: in the user's cell."""
_START_DEADLINE = 60.0  # seconds for a JVM to say where it listens, on a node under load


class Gateway:
    """One JVM of Spark's and the way to it; owned by the kernel's Session, started once."""

    def __init__(self, options: SparkOptions, log: int) -> None:
        self.options = options
        """What the JVM is started with."""
        self._log = log
        self._said = self._unsaid = Log(log)
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._folder = ""
        self._address: Optional[tuple[int, str]] = None

    @property
    def runs(self) -> bool:
        """Whether there is a JVM now."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the JVM, unless it runs; raises LaunchError."""
        if self.runs:
            return
        env = dict(os.environ)
        command = submit_command(self.options, main_class=None, resource="pyspark-shell")
        env.update({name: value for name, value in self.options.env.items() if name.startswith(("SPARK_", "LD_"))})
        env.pop("SPARK_OPTS", None)
        # The folder is removed after the kernel, even if it is killed before the JVM has answered.
        scratch = scratch_folder(os.environ)
        inside = str(scratch) if scratch is not None and scratch.is_dir() else None
        self._address = None
        self._folder = tempfile.mkdtemp(prefix="eg-spark-", dir=inside)
        env["_PYSPARK_DRIVER_CONN_INFO_PATH"] = str(Path(self._folder) / "gateway")
        self._said = self._unsaid = Log(self._log)
        try:
            self._process = subprocess.Popen(
                command,
                env=env,
                stdout=self._log,
                stderr=self._log,
                stdin=subprocess.PIPE,  # it ends when this pipe does: with us, whatever way we go
                preexec_fn=_ignore_interrupts,
            )
        except OSError as error:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise LaunchError(
                f"{command[0]} can't be run ({error.strerror})", "check JAVA_HOME and SPARK_HOME"
            ) from error
        # Reaped when it ends, whenever that is: ipykernel waits for zombies when it shuts down.
        threading.Thread(target=self._process.wait, name="spark-jvm", daemon=True).start()

    def connect(self, context_class: Any, initialize: Callable[[], None]) -> None:
        """Have pyspark use this JVM; returns when it is connected. Raises LaunchError if the JVM ended, or says nothing.

        *context_class* is pyspark's SparkContext, whose lock the caller holds; *initialize* is its own way to a JVM. An interrupt
        leaves the JVM to the next call.
        """
        port, secret = self._read_address()
        given = {"PYSPARK_GATEWAY_PORT": str(port), "PYSPARK_GATEWAY_SECRET": secret}
        os.environ.update(given)
        try:
            initialize()
        finally:
            for name in given:  # for this one call: a process of the user's own has a JVM of its own
                os.environ.pop(name, None)
        context_class._gateway.proc = self._process

    def is_of(self, context_class: Any) -> bool:
        """Return True if it is this JVM that pyspark uses."""
        gateway = context_class._gateway
        return gateway is not None and self._process is not None and getattr(gateway, "proc", None) is self._process

    def _read_address(self) -> tuple[int, str]:
        if self._address is not None:
            return self._address
        assert self._process is not None
        path = Path(self._folder) / "gateway"
        deadline = time.monotonic() + _START_DEADLINE
        while not path.exists():
            if self._process.poll() is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                raise self.obituary("at its start")
            if time.monotonic() > deadline:
                self.end(0)
                raise LaunchError(
                    f"Spark's JVM did not listen within {_START_DEADLINE:g} s", "check the node's load and memory"
                )
            time.sleep(0.02)
        said = path.read_bytes()  # it appears whole: Spark renames it into place
        (port, length) = struct.unpack_from("!ii", said)
        self._address = port, said[8 : 8 + length].decode()
        shutil.rmtree(self._folder, ignore_errors=True)
        return self._address

    def ended(self, seconds: float) -> bool:
        """Return True if the JVM has ended, or does within *seconds*: its connections close before it has gone."""
        deadline = time.monotonic() + seconds
        while self.runs and time.monotonic() < deadline:
            time.sleep(0.02)
        return not self.runs

    def obituary(self, when: str) -> LaunchError:
        """Return what to say of the JVM's end: its exit code, what it said last, and the remedy."""
        assert self._process is not None
        return explain_end(when, self._process.returncode, self._said.words().told())

    def errors(self) -> list[str]:
        """Return what Spark has logged as errors since the JVM's start, or since the last call."""
        said, self._unsaid = self._unsaid.words().errors(), Log(self._log)
        return said

    def end(self, grace: float) -> None:
        """Have the JVM end, and kill it after *grace* seconds; its hooks end the application meanwhile."""
        process = self._process
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()


def hush() -> None:
    """Keep what py4j logs of interrupted calls out of cells; called once, when the kernel starts."""
    for name, said in _NOISE.items():
        logging.getLogger(name).addFilter(lambda record, said=said: record.msg != said)  # type: ignore[misc]


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)

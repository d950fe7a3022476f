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
from typing import Any, Optional

from ..driver import scratch_folder
from ..errors import LaunchError
from ..java import submit_command
from ..options import SparkOptions

_NOISE = {
    "": "KeyboardInterrupt while sending command.",
    "py4j.clientserver": "Exception occurred while shutting down connection",
}
"""What py4j logs, by logger, with tracebacks, whenever a call is interrupted: in the user's cell."""
_START_DEADLINE = 60.0  # seconds for a JVM to say where it listens, on a node under load


class Gateway:
    """Spark's JVM and the way to it; owned by the kernel's Session, started once."""

    def __init__(self, options: SparkOptions, log: int) -> None:
        self._options = options
        self._log = log
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._folder = ""

    @property
    def runs(self) -> bool:
        """Whether there is a JVM now."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the JVM, unless it runs; raises LaunchError."""
        if self.runs:
            return
        env = dict(os.environ)
        command = submit_command(self._options, main_class=None, resource="pyspark-shell")
        env.update({name: value for name, value in self._options.env.items() if name.startswith(("SPARK_", "LD_"))})
        env.pop("SPARK_OPTS", None)
        scratch = scratch_folder(
            os.environ
        )  # removed after the kernel, even if it is killed before the JVM has answered
        inside = str(scratch) if scratch is not None and scratch.is_dir() else None
        self._folder = tempfile.mkdtemp(prefix="eg-spark-", dir=inside)
        env["_PYSPARK_DRIVER_CONN_INFO_PATH"] = str(Path(self._folder) / "gateway")
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

    def connect(self) -> None:
        """Have pyspark use this JVM; returns when it is connected. Raises LaunchError if the JVM ended, or says nothing."""
        from pyspark import SparkContext

        with SparkContext._lock:  # a cell that makes a session itself would start a second JVM meanwhile
            theirs = getattr(SparkContext._gateway, "proc", None)
            if SparkContext._gateway is not None and theirs is self._process:
                return
            if SparkContext._gateway is not None and (theirs is None or theirs.poll() is None):
                self.end(0)  # the user's own came first, and is what pyspark uses
                return
            SparkContext._gateway = SparkContext._jvm = None  # of a JVM that has ended
            self._connect(SparkContext)

    def _connect(self, context_class: Any) -> None:
        port, secret = self._read_address()
        given = {"PYSPARK_GATEWAY_PORT": str(port), "PYSPARK_GATEWAY_SECRET": secret}
        os.environ.update(given)
        try:
            context_class._ensure_initialized()
        finally:
            for name in given:  # for this one call: a process of the user's own has a JVM of its own
                os.environ.pop(name, None)
        for name, said in _NOISE.items():
            logging.getLogger(name).addFilter(lambda record, said=said: record.msg != said)  # type: ignore[misc]
        context_class._gateway.proc = self._process

    def _read_address(self) -> tuple[int, str]:
        assert self._process is not None
        path = Path(self._folder) / "gateway"
        deadline = time.monotonic() + _START_DEADLINE
        try:
            while not path.exists():
                if self._process.poll() is not None:
                    raise LaunchError(
                        f"Spark's JVM ended at its start (exit code {self._process.returncode})",
                        "see the kernel's log for what it said",
                    )
                if time.monotonic() > deadline:
                    self._process.kill()
                    raise LaunchError(
                        f"Spark's JVM did not listen within {_START_DEADLINE:g} s", "check the node's load and memory"
                    )
                time.sleep(0.02)
            said = path.read_bytes()  # it appears whole: Spark renames it into place
            (port, length) = struct.unpack_from("!ii", said)
            return port, said[8 : 8 + length].decode()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def end(self, grace: float) -> None:
        """Have the JVM end, and kill it after *grace* seconds; its hooks end the application meanwhile."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)

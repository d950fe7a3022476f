"""The Python kernel of a Spark driver: ipykernel, with Spark's JVM in the background and interrupts that reach Spark's jobs.

Run by the driver's interpreter in place of `ipykernel_launcher`. The kernel answers before Spark is even imported, which
cells do.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading
import types
from typing import TYPE_CHECKING, Any, Iterator

if TYPE_CHECKING:
    from .session import Session

_LATEST_START = 2.0  # seconds after which a lazy session's JVM is started, even if nobody has said a word to the kernel


_IPYKERNEL = "ipykernel.ipkernel.IPythonKernel"


def kernel_class(session: Session, name: str) -> Any:
    """Return the kernel's class *name*, ipykernel's or one made of it, with *session*'s jobs cancelled by interrupts.

    Made here, where ipykernel is imported. Raises ImportError, AttributeError.
    """
    import psutil

    module, _, attribute = (name or _IPYKERNEL).rpartition(".")
    base: Any = getattr(importlib.import_module(module), attribute)

    class SparkKernel(base):  # type: ignore[misc]
        def pre_handler_hook(self) -> None:
            """Before each message: an interrupt cancels Spark's jobs, and then is what it always was.

            By the signal's own handler, since cells may catch KeyboardInterrupt, and IPython drops a handler for it that
            fails once. ipykernel puts its own in place here, and the one before back afterwards.
            """
            session.renew_connection()
            self.saved_sigint_handler = signal.signal(signal.SIGINT, self._interrupted)

        def post_handler_hook(self) -> None:
            super().post_handler_hook()
            session.start()  # the kernel has answered something: now Spark's JVM may have the processor

        def do_complete(self, *arguments: Any, **named: Any) -> Any:
            return inspect(super().do_complete, *arguments, **named)

        def do_inspect(self, *arguments: Any, **named: Any) -> Any:
            return inspect(super().do_inspect, *arguments, **named)

        def _interrupted(self, signum: int, frame: Any) -> None:
            session.cancel_jobs_soon()
            signal.default_int_handler(signum, frame)

        @contextlib.contextmanager
        def _cancel_on_sigint(self, future: Any) -> Iterator[None]:
            """Cells with a top-level await have a handler of ipykernel's: it is kept, behind ours."""
            with super()._cancel_on_sigint(future):
                theirs = signal.getsignal(signal.SIGINT)

                def both(signum: int, frame: Any) -> None:
                    session.cancel_jobs_soon()
                    if callable(theirs):
                        theirs(signum, frame)

                signal.signal(signal.SIGINT, both)
                yield

        def _process_children(self) -> list[Any]:
            """Return the children that shutdown waits for: a JVM that has ended is none, though nobody has reaped it.

            ipykernel would wait 29 s for it.
            """
            return [child for child in super()._process_children() if child_runs(child)]

        async def do_shutdown(self, restart: bool) -> Any:
            session.end()
            answer = super().do_shutdown(restart)
            return await answer if hasattr(answer, "__await__") else answer

    def inspect(answer: Any, *arguments: Any, **named: Any) -> Any:
        """Return what *answer* does, with a session that nobody waits for; it may be a coroutine, of a class of the user's."""
        with session.inspected():
            found = answer(*arguments, **named)
        return found if not hasattr(found, "__await__") else awaited(found)

    async def awaited(found: Any) -> Any:
        with session.inspected():
            return await found

    def child_runs(child: Any) -> bool:
        try:
            return bool(child.status() != psutil.STATUS_ZOMBIE)
        except psutil.Error:
            return False

    return SparkKernel


def main(arguments: list[str], folder: str) -> None:
    """Run the kernel until it is shut down."""
    from .session import Session

    mode = os.environ.pop("EG_SPARK_MODE", "lazy")
    named = os.environ.pop("EG_SPARK_KERNEL_CLASS", "")
    # ipykernel will lead everything that is written to 1 and 2 into cells; what Spark's JVM logs belongs into the kernel's log.
    session = Session(folder, wanted=mode != "none", log=os.dup(2), eager=mode == "eager")
    session.attach()
    if mode == "eager":
        session.start()
    from ipykernel.kernelapp import IPKernelApp

    app = IPKernelApp.instance(kernel_class=kernel_class(session, named))
    app.initialize(arguments)
    session.offer(app.shell)
    latest = threading.Timer(_LATEST_START, session.start)
    latest.daemon = True
    latest.start()
    app.start()


if __name__ == "__main__":
    _here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != _here]  # it is no place to import from
    _folder = os.path.dirname(_here)
    _package = types.ModuleType("eg_distributed_launcher")
    _package.__path__ = [_folder]
    sys.modules[_package.__name__] = _package
    __package__ = f"{_package.__name__}.python"
    main(sys.argv[1:], _folder)

"""One attempt to make a session, on a thread of its own, that any number of cells may wait for."""

from __future__ import annotations

import threading
from typing import Any, Callable, Optional

from ..errors import LaunchError


class Attempt:
    """Runs *make* once. Waited for by its event: a cell's wait may be interrupted, and the attempt goes on.

    Not by `join` and `is_alive`: before Python 3.13 a thread counts as ended once a signal has interrupted its `join`.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spark-session", daemon=True)
        self.session: Any = None
        self.error: Optional[BaseException] = None

    def begin(self) -> None:
        """Start the thread; called once."""
        self._thread.start()

    @property
    def done(self) -> bool:
        """Return True if it has come to its end, whichever."""
        return self._done.is_set()

    @property
    def is_mine(self) -> bool:
        """Return True if the caller is the attempt's own thread."""
        return threading.current_thread() is self._thread

    def wait(self, step: float, look: Callable[[], None]) -> Any:
        """Return the session once it is made, and call *look* every *step* seconds until then.

        Raises what the attempt has raised, and KeyboardInterrupt.
        """
        while not self._done.wait(step):
            look()
        if self.error is not None:
            raise self.error.with_traceback(None)
        return self.session

    def _run(self) -> None:
        try:
            self.session = self._make()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is raised to those who wait
            self.error = error
        except BaseException:  # an exit: those who wait are told, and the thread ends as it wants to
            self.error = LaunchError("the session's making was ended", "use it again, or restart the kernel")
            raise
        finally:
            self._done.set()

"""Names of what is still to come: `spark`, `sc` and `sqlContext` before their session is there."""

from __future__ import annotations

import importlib
import sys
import threading
from typing import Any, Optional, Protocol

NAMES = ("spark", "sc", "sqlContext")
_CLASSES = {
    "spark": ("SparkSession", ("pyspark.sql.session",)),
    "sc": ("SparkContext", ("pyspark.context", "pyspark.core.context")),
    "sqlContext": ("SQLContext", ("pyspark.sql.context",)),
}
"""pyspark's own classes by our names, and the modules that have them."""


class Awaited(Protocol):
    """What is needed of a session: `session.Session` has it."""

    session: Any
    """Spark's session; None while there is none."""
    inspecting: bool
    """Whether the kernel's main thread answers a completion or an inspection."""
    cell_runs: bool
    """Whether a cell runs, whose display of a name waits for it."""

    def wait(self) -> None:
        """Return when the session is there; raises LaunchError, KeyboardInterrupt."""
        ...

    def part(self, name: str) -> Any:
        """Return what the user knows by *name*, one of NAMES."""
        ...


class Lazy:
    """Stands for one of NAMES: whatever is asked of it is asked of the real thing, once that is there.

    What only looks never waits for a cluster: completions, inspections, debuggers, `isinstance`, `%whos`. It is told what
    pyspark's own class has. The placeholder is replaced in the user's namespace when the session is there; one that was passed on
    meanwhile goes on working.
    """

    __slots__ = ("_lazy_name", "_lazy_session")

    def __init__(self, session: Awaited, name: str) -> None:
        object.__setattr__(self, "_lazy_session", session)
        object.__setattr__(self, "_lazy_name", name)

    def _lazy_there(self) -> bool:
        """Return True if the real thing is there."""
        session: Awaited = object.__getattribute__(self, "_lazy_session")
        return session.session is not None

    def _lazy_inspected(self) -> bool:
        """Return True if the caller answers a completion or an inspection."""
        session: Awaited = object.__getattribute__(self, "_lazy_session")
        return session.inspecting and threading.current_thread() is threading.main_thread()

    def _lazy_class(self) -> Optional[type]:
        """Return pyspark's own class; None where nobody has imported that, and the caller is no completion, which may."""
        name, modules = _CLASSES[object.__getattribute__(self, "_lazy_name")]
        if object.__getattribute__(self, "_lazy_inspected")() and not any(module in sys.modules for module in modules):
            try:
                importlib.import_module(
                    "pyspark.sql"
                )  # on the main thread, between cells: in the way of no other import
            except Exception:  # noqa: BLE001 - there is none, or it is broken: the cell that uses it is told
                return None
        found = (getattr(sys.modules.get(module), name, None) for module in modules)
        return next((each for each in found if isinstance(each, type)), None)

    def _lazy_real(self) -> Any:
        session: Awaited = object.__getattribute__(self, "_lazy_session")
        session.wait()
        return session.part(object.__getattribute__(self, "_lazy_name"))

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("_ipython_", "_repr_mimebundle_")):  # displays ask for these of anything
            raise AttributeError(name)
        if not self._lazy_there():
            if self._lazy_inspected():
                return getattr(self._lazy_class(), name)
            if name.startswith("__") and not hasattr(self._lazy_class(), name):  # as inspectors ask of anything
                raise AttributeError(name)
        return getattr(self._lazy_real(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._lazy_real(), name, value)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """What `isinstance` asks: the real thing's class, which needs no session; without pyspark nothing is of its classes."""
        return type(self._lazy_real()) if self._lazy_there() else self._lazy_class() or Lazy

    def __repr__(self) -> str:
        session: Awaited = object.__getattribute__(self, "_lazy_session")
        main = threading.current_thread() is threading.main_thread()
        waits = main and session.cell_runs and not session.inspecting
        return repr(self._lazy_real()) if waits or self._lazy_there() else self._lazy_pending()

    def __str__(self) -> str:
        return str(self._lazy_real()) if self._lazy_there() else self._lazy_pending()

    def _lazy_pending(self) -> str:
        return f"<{object.__getattribute__(self, '_lazy_name')}: its Spark session is still to come>"

    def __dir__(self) -> list[str]:
        if self._lazy_there():
            return dir(self._lazy_real())
        found = self._lazy_class()
        return dir(found) if found is not None else []

    def __eq__(self, other: object) -> bool:
        return bool(self._lazy_real() == other)

    def __hash__(self) -> int:
        return hash(self._lazy_real())

    def __enter__(self) -> Any:
        return self._lazy_real().__enter__()

    def __exit__(self, *exception: object) -> Any:
        return self._lazy_real().__exit__(*exception)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._lazy_real().__reduce_ex__(protocol)

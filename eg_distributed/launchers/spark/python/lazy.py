"""Names of what is still to come: `spark`, `sc` and `sqlContext` before their session is there."""

from __future__ import annotations

import threading
from typing import Any, Protocol

NAMES = ("spark", "sc", "sqlContext")


class Awaited(Protocol):
    """What is needed of a session: `session.Session` has it."""

    session: Any
    """Spark's session; None while there is none."""

    def wait(self) -> None:
        """Return when the session is there; raises LaunchError, KeyboardInterrupt."""
        ...

    def part(self, name: str) -> Any:
        """Return what the user knows by *name*, one of NAMES."""
        ...


class Lazy:
    """Stands for one of NAMES: whatever is asked of it is asked of the real thing, once that is there.

    It is replaced in the user's namespace then; one that was passed on meanwhile goes on working.
    """

    __slots__ = ("_lazy_name", "_lazy_session")

    def __init__(self, session: Awaited, name: str) -> None:
        object.__setattr__(self, "_lazy_session", session)
        object.__setattr__(self, "_lazy_name", name)

    def _lazy_pending(self) -> bool:
        """Whether to answer without the real thing: a debugger, which asks from its own thread, is not to wait for a cluster."""
        session: Awaited = object.__getattribute__(self, "_lazy_session")
        return session.session is None and threading.current_thread() is not threading.main_thread()

    def _lazy_real(self) -> Any:
        session: Awaited = object.__getattribute__(self, "_lazy_session")
        session.wait()
        return session.part(object.__getattribute__(self, "_lazy_name"))

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("_ipython_", "_repr_mimebundle_")):  # displays ask for these of anything
            raise AttributeError(name)
        return getattr(self._lazy_real(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._lazy_real(), name, value)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """What `isinstance` asks: the real thing's class."""
        return Lazy if self._lazy_pending() else type(self._lazy_real())

    def __repr__(self) -> str:
        if self._lazy_pending():
            return f"<{object.__getattribute__(self, '_lazy_name')}: its Spark session is still to come>"
        return repr(self._lazy_real())

    def __dir__(self) -> list[str]:
        return [] if self._lazy_pending() else dir(self._lazy_real())

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

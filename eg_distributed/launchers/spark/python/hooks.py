"""What is done to pyspark once somebody has imported it: the launcher itself never imports it beside a cell.

Python's import system resolves a deadlock of two threads that import modules of one package by handing out a half-made module.
A thread of ours that imports pyspark while a cell does the same would therefore fail the cell, in whatever order it imported. So
cells import pyspark, or wait for it on their own thread, and what we need of it is put into it as it arrives.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import Any, Callable, Optional, Protocol, Sequence

CONTEXT_MODULES = ("pyspark.context", "pyspark.core.context")
"""Where `SparkContext` is, in Spark 3 and in Spark 4."""
SESSION_MODULE = "pyspark.sql.session"


class Hooked(Protocol):
    """What is told of pyspark's own ways to a JVM and to a session: `session.Session` has it."""

    def before_context(self, context_class: Any, instance: Any, gateway: Any, conf: Any) -> None:
        """Called before pyspark looks for its JVM, for the context *instance* if there is one, with the user's *conf*."""
        ...

    def build(self, original: Callable[[], Any], options: dict[str, str]) -> Any:
        """Called in place of a builder's `getOrCreate`, which is *original*; returns the session."""
        ...


def install(hooked: Hooked) -> None:
    """Have *hooked* asked by pyspark, now or when it is imported."""
    for name in CONTEXT_MODULES:
        after_import(name, functools.partial(_hook_context, hooked))
    after_import(SESSION_MODULE, functools.partial(_hook_builder, hooked))


def _hook_context(hooked: Hooked, module: Any) -> None:
    context_class = getattr(module, "SparkContext", None)
    if context_class is None or hasattr(context_class._ensure_initialized, "__wrapped__"):
        return
    original = context_class._ensure_initialized.__func__

    @functools.wraps(original)
    def ensure(cls: Any, instance: Any = None, gateway: Any = None, conf: Any = None) -> Any:
        hooked.before_context(cls, instance, gateway, conf)
        return original(cls, instance, gateway, conf)

    context_class._ensure_initialized = classmethod(ensure)


def _hook_builder(hooked: Hooked, module: Any) -> None:
    builder_class = module.SparkSession.Builder
    original = builder_class.getOrCreate

    @functools.wraps(original)
    def get_or_create(builder: Any) -> Any:
        options = {str(name): str(value) for name, value in dict(getattr(builder, "_options", {})).items()}
        return hooked.build(functools.partial(original, builder), options)

    builder_class.getOrCreate = get_or_create


# -- an import's end ---------------------------------------------------------------------------------------------------


def after_import(name: str, then: Callable[[Any], None]) -> None:
    """Call *then* with the module *name*: now if it is there, else after its code has run, on the thread that imports it."""
    module = sys.modules.get(name)
    if module is not None:
        then(module)
    else:
        sys.meta_path.insert(0, _Finder(name, then))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module as those behind it do, once."""

    def __init__(self, name: str, then: Callable[[Any], None]) -> None:
        self._name, self._then = name, then

    def find_spec(
        self, fullname: str, path: Optional[Sequence[str]], target: Optional[ModuleType] = None
    ) -> Optional[importlib.machinery.ModuleSpec]:
        if fullname != self._name:
            return None
        for finder in [found for found in sys.meta_path if found is not self]:
            spec = finder.find_spec(fullname, path, target) if hasattr(finder, "find_spec") else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, self._then)
                return spec
        return None


class _Loader(importlib.abc.Loader):
    """Runs the module by its own loader, which it then has again: tracebacks and `inspect` read the source by that."""

    def __init__(self, loader: Any, then: Callable[[Any], None]) -> None:
        self._loader, self._then = loader, then

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Optional[ModuleType]:
        found: Optional[ModuleType] = self._loader.create_module(spec)
        return found

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._then(module)

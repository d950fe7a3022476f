"""Our numbers for Prometheus, where Enterprise Gateway has no `/metrics`: by a port of their own, or a file for node_exporter.

Neither keeps the gateway from starting, or a kernel: what is wrong with them is in the gateway's log. The port shows all that the
process counts (its memory, and jupyter_server's requests, too); the file has ours alone, since node_exporter shows its own.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tornado.httpserver import HTTPServer
from tornado.ioloop import PeriodicCallback
from tornado.web import Application, RequestHandler

from eg_distributed.aside import aside
from eg_distributed.cluster import Cluster
from eg_distributed.link.deadlines import within
from eg_distributed.settings import Distributed

if TYPE_CHECKING:
    from eg_distributed.metrics import Collector

__all__ = ["TextFile", "begin", "listen"]

log = logging.getLogger(__name__)

_SCRAPE = 10.0
"""Seconds for the text to be made, which Prometheus waits for as long by default."""
_IDLE = 65.0  # seconds for which a connection may be silent; Prometheus asks again within a minute as a rule
_LAST = 1.0  # seconds, at the gateway's end, for the file to be removed
_BODY = 1024  # bytes, at most, of a request that has no use for any
_MISSING = "prometheus_client is not installed here: `pip install prometheus_client`, and restart the gateway"


def begin(cluster: Cluster, soon: Callable[[Callable[[], Any]], Any]) -> Collector | None:
    """Show the numbers of *cluster* as its settings say; called with the gateway's cluster.

    *soon* has a function called on the gateway's loop, which may not run yet. Returns what is registered for them.
    """
    try:
        return _begin(cluster, soon)
    except Exception:
        # This is on the way of the gateway's first kernel, which needs no metrics.
        log.exception(
            "no metrics: they could not be begun with Distributed.metrics_port and metrics_textfile as they are"
        )
        return None


def _begin(cluster: Cluster, soon: Callable[[Callable[[], Any]], Any]) -> Collector | None:
    settings = cluster.settings
    if not settings.metrics_port and not settings.metrics_textfile:
        return None
    try:
        from prometheus_client import REGISTRY, CollectorRegistry

        from eg_distributed.metrics import Collector
    except ImportError as error:
        log.error("no metrics: %s (%s)", _MISSING, error)
        return None
    collector = Collector(lambda: cluster)
    own = CollectorRegistry()
    own.register(collector)
    file = TextFile(settings, own) if settings.metrics_textfile else None
    REGISTRY.register(collector)
    if settings.metrics_port:
        soon(functools.partial(listen, settings, REGISTRY))
    if file is not None:
        soon(file.begin)
    return collector


# -- the port ------------------------------------------------------------------------------------------------------


class _Metrics(RequestHandler):
    """`GET /metrics`, made in a thread aside: the gateway's loop does not wait for a text of thousands of lines."""

    def initialize(self, registry: Any) -> None:
        self._registry = registry

    async def get(self) -> None:
        """Answer with the text format, or 503 where it takes too long to be made."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        try:  # those that ask at once get one answer
            text = await within(aside("metrics", functools.partial(generate_latest, self._registry)), _SCRAPE)
        except asyncio.TimeoutError:
            self.set_status(503)
            return
        self.set_header("Content-Type", CONTENT_TYPE_LATEST)
        self.write(text)


def listen(settings: Distributed, registry: Any) -> HTTPServer | None:
    """Serve `/metrics` on the loop that runs; None, and an error in the log, where the port cannot be had."""
    application = Application([("/metrics", _Metrics, {"registry": registry})], log_function=lambda handler: None)
    server = HTTPServer(application, idle_connection_timeout=_IDLE, max_body_size=_BODY)
    address, port = settings.metrics_address, settings.metrics_port
    try:
        server.listen(port, address)
    except (OSError, UnicodeError) as error:  # the latter for what is no host name at all
        log.error(
            "no metrics on %s:%d: %s. Choose another port (Distributed.metrics_port, EG_DISTRIBUTED_METRICS_PORT) or address "
            "(metrics_address), and restart the gateway; it works without",
            address, port, getattr(error, "strerror", None) or error,
        )  # fmt: skip
        return None
    log.info("metrics for Prometheus: http://%s:%d/metrics", address, port)
    return server


# -- the file ------------------------------------------------------------------------------------------------------


class TextFile:
    """The file of `metrics_textfile`, written anew every few seconds, in one piece: by another name, which is then changed."""

    def __init__(self, settings: Distributed, registry: Any) -> None:
        self._path = Path(settings.metrics_textfile).expanduser()
        self._interval = settings.metrics_interval
        self._registry = registry
        self._said = ""
        """The error that was last told: once is enough."""
        self._has_ended = False
        self._timer = PeriodicCallback(self.write, self._interval * 1000)

    def begin(self) -> None:
        """Write it now, and from now on; on the gateway's loop."""
        if self._path.suffix != ".prom":
            log.error(
                "no metrics in %s: node_exporter reads no file but *.prom. Rename Distributed.metrics_textfile",
                self._path,
            )
            return
        atexit.register(self.end)
        self._timer.start()
        self._first = asyncio.ensure_future(self.write())

    async def write(self) -> None:
        """Write it; what goes wrong is told once, and tried again the next time."""
        try:
            await within(aside(("metrics", self._path), self._write), self._interval)
        except asyncio.TimeoutError:
            self._say(f"its disk has not answered for {self._interval:g} s")
        except OSError as error:
            self._say(error.strerror or str(error))
        else:
            self._said = ""

    def _write(self) -> None:
        from prometheus_client import write_to_textfile

        if not self._has_ended:
            write_to_textfile(str(self._path), self._registry)
        if self._has_ended:  # meanwhile
            self._remove()

    def _say(self, why: str) -> None:
        if why != self._said:
            self._said = why
            log.error(
                "metrics cannot be written to %s: %s. See that its folder is there, and that the gateway's user may write to it "
                "(Distributed.metrics_textfile); it is tried again",
                self._path, why,
            )  # fmt: skip

    def end(self) -> None:
        """Leave no numbers of a gateway that has ended: node_exporter would show them as today's."""
        self._has_ended = True
        self._timer.stop()
        removing = threading.Thread(target=self._remove, daemon=True)
        removing.start()
        removing.join(_LAST)  # its disk may hang, and the gateway has to end

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink()

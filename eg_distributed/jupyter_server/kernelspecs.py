"""The hosts' kernelspecs in a Jupyter server's launcher: each host of `remote_hosts` is asked for its own.

Hosts are asked in the background, by the server's cluster: when the server starts, when a host is back that did not answer, and
when a client asks the server for kernelspecs and what is known is a minute old, so that a server that no page is open to asks
nothing. No client waits for that, and a host that is silent keeps what it had.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from eg_distributed.aside import aside
from eg_distributed.cluster import Cluster
from eg_distributed.errors import DistributedError
from eg_distributed.hosts import HostSet, canonical_name, parse_hosts
from eg_distributed.protocol import HostKernelspecs
from eg_distributed.settings import Distributed
from eg_distributed.wire import one_line

from .host_kernelspecs import offered
from .kernelspec_folder import KernelspecFolder
from .process import cluster_for

__all__ = ["HostsKernelspecs", "begin"]

log = logging.getLogger(__name__)
T = TypeVar("T")

EVENT = "https://events.jupyter.org/eg_distributed/kernelspecs/v1"
"""The Jupyter event that says that the hosts' kernelspecs have changed: JupyterLab's own look for them comes once a minute."""
_SCHEMA = {
    "$id": EVENT,
    "version": "1",
    "title": "Kernelspecs of hosts",
    "description": "The kernelspecs that the server has of its hosts have changed.",
    "type": "object",
    "properties": {"count": {"type": "integer", "description": "How many there are."}},
    "required": ["count"],
}
_ASK = 120.0  # seconds that a host may take, its login included
_DISK = 30.0  # seconds for the folder, which is in somebody's home, and until it is tried again
_LOOK = 86400.0  # seconds, at most, between two looks at whether the folder is as it should be, by which it also stays in use
_TOGETHER = 0.2  # seconds for which answers are gathered that come one after the other


class HostsKernelspecs:
    """Asks *hosts* for their kernelspecs and keeps *folder* up to date; runs on the loop of *cluster*, but for `need`.

    *tell* is called on that loop with how many there are, when the folder has changed.
    """

    def __init__(self, cluster: Cluster, hosts: HostSet, folder: KernelspecFolder, tell: Callable[[int], None]) -> None:
        self._cluster = cluster
        self._hosts = hosts
        self._folder = folder
        self._tell = tell
        self._answers: dict[str, HostKernelspecs] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._asked: dict[str, float] = {}  # when, in the loop's time
        self._failures: dict[str, str] = {}  # of hosts that did not answer when they were asked last: why
        self._is_loaded = False
        self._complained = ""
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Write what is known, ask all hosts, and write what they answer; cancelled with the cluster, at the server's end."""
        self._cluster.on_reached.append(self._back)
        try:
            self._news.set()
            self._ask_due()
            while True:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._news.wait(), _LOOK)
                self._news.clear()
                try:
                    await self._renew()
                except (OSError, asyncio.TimeoutError) as error:
                    self._complain(error)
                    asyncio.get_running_loop().call_later(_DISK, self._news.set)
                except Exception:
                    # A defect with what one host has said: what the hosts say next may be fine.
                    log.exception("the hosts' kernelspecs could not be renewed")
                await asyncio.sleep(_TOGETHER)
        finally:
            self._cluster.on_reached.remove(self._back)
            for task in self._asking.values():
                task.cancel()

    def need(self) -> None:
        """Have the hosts asked that have not been for a while; from any thread, waits for nothing."""
        if not self._cluster.is_closed:
            with contextlib.suppress(RuntimeError):  # it closes just now
                self._cluster.call_soon(self._ask_due)

    def _ask_due(self) -> None:
        now = asyncio.get_running_loop().time()
        refresh = self._cluster.settings.kernelspec_refresh
        for host in self._hosts:
            if now - self._asked.get(host, -refresh) >= refresh:
                self._ask_soon(host)

    def _back(self, name: str) -> None:
        """Ask a host that has just connected, if it did not answer before."""
        for host in self._hosts:
            if canonical_name(host) == canonical_name(name) and host in self._failures:
                self._ask_soon(host)

    def _ask_soon(self, host: str) -> None:
        if host not in self._asking:
            self._asked[host] = asyncio.get_running_loop().time()
            task = self._asking[host] = asyncio.ensure_future(self._ask(host))
            task.add_done_callback(lambda _: self._asking.pop(host, None))

    async def _ask(self, host: str) -> None:
        environments = self._cluster.settings.kernelspec_environments
        try:
            answer = await asyncio.wait_for(self._cluster.find_kernelspecs(host, environments), _ASK)
        except (DistributedError, asyncio.TimeoutError) as error:
            self._note_failure(host, str(error) or f"no answer within {_ASK:g} s")
            return
        self._failures.pop(host, None)
        for reason in answer.left_out:
            log.debug("%s: left out of its kernelspecs: %s", host, one_line(reason))
        if answer.unread:
            log.info(
                "%s: not looked through for kernelspecs in time: %s; what was there before stays",
                host, one_line(", ".join(answer.unread)),
            )  # fmt: skip
            answer = _with_earlier(answer, self._answers.get(host))
        if self._answers.get(host) == answer:
            return
        self._answers[host] = answer
        try:
            await self._in_thread(f"keep {host}", functools.partial(self._folder.keep, host, answer))
        except (OSError, asyncio.TimeoutError) as error:
            self._complain(error)
        self._news.set()

    def _note_failure(self, host: str, why: str) -> None:
        """Say once that a host does not tell its kernelspecs."""
        if self._failures.get(host) != why:
            self._failures[host] = why
            kept = "those of before stay" if host in self._answers else "none are known"
            log.warning("the kernelspecs of %s cannot be asked for, %s: %s", host, kept, why)

    # -- the folder ------------------------------------------------------------------------------------------------

    async def _renew(self) -> None:
        """Have the folder hold what is known; raises OSError, or asyncio.TimeoutError if it hangs.

        What hosts have answered to the last server is read first: without it those that are silent would lose what they had.
        """
        if not self._is_loaded:
            loaded = await self._in_thread("load", self._load)
            self._answers = {**loaded, **self._answers}
            self._is_loaded = True
        answers = {host: self._answers[host] for host in self._hosts if host in self._answers}

        def write() -> tuple[dict[str, HostKernelspecs], bool, int]:
            found = offered(answers, self._cluster.settings)
            return answers, self._folder.write(found), len(found)

        written, is_changed, count = await self._in_thread("write", write)
        if written != answers:  # by a thread that was given up for hanging, with what was known then
            self._news.set()
        self._complained = ""
        if is_changed:
            log.info("%d kernelspecs of hosts are offered", count)
            self._tell(count)

    def _load(self) -> dict[str, HostKernelspecs]:
        self._folder.open()
        found = {host: self._folder.answer(host) for host in self._hosts}
        return {host: answer for host, answer in found.items() if answer is not None}

    async def _in_thread(self, what: str, function: Callable[[], T]) -> T:
        """Return what *function* returns; one that hangs is waited for the next time, and not called once more beside itself."""
        return await asyncio.wait_for(aside(("kernelspecs", self._folder.path, what), function), _DISK)

    def _complain(self, error: Exception) -> None:
        """Say once what is wrong with the folder; it is tried again."""
        why = str(error) or "it hangs"
        if why != self._complained:
            self._complained = why
            log.warning("%s, with the hosts' kernelspecs, cannot be used: %s", self._folder.path, why)


def _with_earlier(answer: HostKernelspecs, earlier: HostKernelspecs | None) -> HostKernelspecs:
    """Return *answer* with what was found before below the roots that could not be looked through now."""
    if earlier is None:
        return answer
    folders = {each.folder for each in answer.each()}
    kept = [each for each in earlier.each() if each.root in answer.unread and each.folder not in folders]
    pictures = {digest for each in kept for digest in each.logos.values()}
    logos = {digest: content for digest, content in earlier.logos.items() if digest in pictures}
    specs = [*answer.kernelspecs, *(each.write() for each in kept)][: HostKernelspecs.MOST]
    return HostKernelspecs(specs, {**logos, **answer.logos})


def begin(app: Any) -> None:
    """Have the server *app* offer its hosts' kernelspecs beside its own, whatever class finds those."""
    settings = Distributed(config=app.config, for_provisioner=True)
    hosts = parse_hosts(settings.remote_hosts)
    manager = app.kernel_spec_manager
    if not hosts or settings.host_kernelspecs == "off" or _is_gateways(app):
        return
    cluster = cluster_for(app.kernel_manager, app.config)
    folder = KernelspecFolder(app.data_dir, hosts, settings)
    manager.kernel_dirs = [*manager.kernel_dirs, str(folder.kernels)]
    kernelspecs = HostsKernelspecs(cluster, hosts, folder, _teller(app))
    _note_need(manager, kernelspecs.need)
    from .logos import serve_confined

    serve_confined(app.web_app)
    cluster.submit(kernelspecs.run())


def _is_gateways(app: Any) -> bool:
    """Return True if the server has no kernels of its own: an Enterprise Gateway has them, and the kernelspecs."""
    return bool(getattr(getattr(app, "gateway_config", None), "gateway_enabled", False))


def _note_need(manager: Any, need: Callable[[], None]) -> None:
    """Have *need* called when a client asks for all kernelspecs: on the instance, whose class may be anybody's."""
    original = manager.get_all_specs

    @functools.wraps(original)
    def get_all_specs(*args: Any, **kwargs: Any) -> Any:
        need()
        return original(*args, **kwargs)

    manager.get_all_specs = get_all_specs


def _teller(app: Any) -> Callable[[int], None]:
    """Return what tells the server's clients of a change, from any thread."""
    logger = app.event_logger
    logger.register_event_schema(_SCHEMA)

    def tell(count: int) -> None:
        app.io_loop.add_callback(logger.emit, schema_id=EVENT, data={"count": count})

    return tell

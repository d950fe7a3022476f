"""The hosts' kernelspecs in a Jupyter server's launcher: each host of `remote_hosts` is asked for its own.

Hosts are asked in the background, by the server's cluster: when a client asks the server for kernelspecs and what is known is a
minute old, so that a server that no page is open to asks nothing; and at its start those of which nothing is known. One that did
not answer is asked ever more seldom, and as soon as a start has connected to it. No client waits for that, and a host that is
silent keeps what it had.
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
from eg_distributed.errors import DistributedError, HostKeyRejected, LoginRefused
from eg_distributed.hosts import HostSet, canonical_name, parse_hosts
from eg_distributed.kernelspecs.host_kernelspecs import Offered, offered
from eg_distributed.protocol import HostKernelspecs
from eg_distributed.settings import Distributed
from eg_distributed.wire import one_line

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
_AGAIN = 10.0  # seconds, at least, between two questions to a host that is back
_SELDOM = 1800.0  # seconds, at most, for which a host that has failed is not asked
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
        self._waits: dict[str, float] = {}  # seconds that such a host is not asked again
        self._timers: dict[str, asyncio.TimerHandle] = {}  # of hosts that are back
        self._unread: dict[str, list[str]] = {}  # of each host, what could not be looked through
        self._unkept: set[str] = set()  # hosts whose answers are not on disk yet
        self._names: dict[str, str] = {}  # of what is offered, by its key
        self._is_loaded = False
        self._is_settled = False  # whether each host has answered, now or to an earlier server, or has failed to
        self._complained = ""
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Write what is known, ask all hosts, and write what they answer; cancelled with the cluster, at the server's end."""
        self._cluster.on_reached.append(self._back)
        try:
            self._news.set()
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
            for timer in self._timers.values():
                timer.cancel()

    def need(self) -> None:
        """Have the hosts asked that have not been for a while; from any thread, waits for nothing."""
        if not self._cluster.is_closed:
            with contextlib.suppress(RuntimeError):  # it closes just now
                self._cluster.call_soon(self._ask_due)

    def _ask_due(self, *, but_known: bool = False) -> None:
        """Ask hosts whose time has come: those that failed the last time wait longer, each time twice as long."""
        now = asyncio.get_running_loop().time()
        refresh = self._cluster.settings.kernelspec_refresh
        for host in self._hosts:
            wait = max(self._waits.get(host, 0.0), refresh)
            if now - self._asked.get(host, -wait) >= wait and not (but_known and host in self._answers):
                self._ask_soon(host)

    def _back(self, name: str) -> None:
        """Have a host asked that has just connected, if it did not answer before; not at once where that is what cut it off."""
        loop = asyncio.get_running_loop()
        for host in self._hosts:
            if canonical_name(host) == canonical_name(name) and host in self._failures and host not in self._timers:
                at = max(self._asked.get(host, 0.0) + _AGAIN, loop.time())
                self._timers[host] = loop.call_at(at, self._ask_again, host)

    def _ask_again(self, host: str) -> None:
        del self._timers[host]
        if host in self._failures:
            self._ask_soon(host)

    def _ask_soon(self, host: str) -> None:
        if host not in self._asking:
            self._asked[host] = asyncio.get_running_loop().time()
            task = self._asking[host] = asyncio.ensure_future(self._ask(host))
            task.add_done_callback(lambda _: self._asked_one(host))

    def _asked_one(self, host: str) -> None:
        self._asking.pop(host, None)
        if not self._is_settled and self._has_heard_of_all():
            self._is_settled = True
            self._news.set()

    def _has_heard_of_all(self) -> bool:
        return all(host in self._answers or host in self._failures for host in self._hosts)

    async def _ask(self, host: str) -> None:
        environments = self._cluster.settings.kernelspec_environments
        try:
            answer = await asyncio.wait_for(self._cluster.find_kernelspecs(host, environments), _ASK)
        except (DistributedError, asyncio.TimeoutError) as error:
            why = str(error) or f"no answer within {_ASK:g} s"
            self._note_failure(host, why, is_refused=isinstance(error, (LoginRefused, HostKeyRejected)))
            return
        self._failures.pop(host, None)
        self._waits.pop(host, None)
        for reason in answer.left_out:
            log.debug("%s: left out of its kernelspecs: %s", host, one_line(reason))
        if answer.unread != self._unread.get(host, []):
            self._unread[host] = answer.unread
            if answer.unread:
                log.info(
                    "%s: not looked through for kernelspecs in time: %s; what was there before stays",
                    host, one_line(", ".join(answer.unread)),
                )  # fmt: skip
        if answer.unread:
            answer = with_earlier(answer, self._answers.get(host))
        if self._answers.get(host) != answer:
            self._answers[host] = answer
            self._unkept.add(host)
            self._news.set()

    def _note_failure(self, host: str, why: str, *, is_refused: bool) -> None:
        """Say once that a host does not tell its kernelspecs, and have it asked ever more seldom.

        Where it refuses the login at once: each try counts against us there, and a ban would hit everybody's kernels.
        """
        wait = max(self._waits.get(host, 0.0), self._cluster.settings.kernelspec_refresh)
        self._waits[host] = _SELDOM if is_refused else min(2 * wait, _SELDOM)
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
            loaded, self._names = await self._in_thread("load", self._load)
            self._answers = {**loaded, **self._answers}
            self._is_loaded, self._is_settled = True, self._has_heard_of_all()
            self._ask_due(but_known=True)
        answers = {host: self._answers[host] for host in self._hosts if host in self._answers}
        names, is_settled, unkept = self._names, self._is_settled, {host: answers[host] for host in self._unkept}

        def write() -> tuple[dict[str, HostKernelspecs], list[Offered], bool]:
            for host, answer in unkept.items():
                self._folder.keep(host, answer)
            found = offered(answers, self._cluster.settings, names, is_settled=is_settled)
            return unkept, found, self._folder.write(found)

        kept, found, is_changed = await self._in_thread("write", write)
        self._names = {each.key: each.name for each in found}
        self._unkept = {host for host in self._unkept if self._answers[host] is not kept.get(host)}
        if kept is not unkept:  # by a thread that was given up for hanging, with what was known then
            self._news.set()
        self._complained = ""
        if is_changed:
            log.info("%d kernelspecs of hosts are offered", len(found))
            self._tell(len(found))

    def _load(self) -> tuple[dict[str, HostKernelspecs], dict[str, str]]:
        self._folder.open()
        found = {host: self._folder.answer(host) for host in self._hosts}
        return {host: answer for host, answer in found.items() if answer is not None}, self._folder.names()

    async def _in_thread(self, what: str, function: Callable[[], T]) -> T:
        """Return what *function* returns; one that hangs is waited for the next time, and not called once more beside itself."""
        return await asyncio.wait_for(aside(("kernelspecs", self._folder.path, what), function), _DISK)

    def _complain(self, error: Exception) -> None:
        """Say once what is wrong with the folder; it is tried again."""
        why = str(error) or "it hangs"
        if why != self._complained:
            self._complained = why
            log.warning("%s, with the hosts' kernelspecs, cannot be used: %s", self._folder.path, why)


def with_earlier(answer: HostKernelspecs, earlier: HostKernelspecs | None) -> HostKernelspecs:
    """Return *answer* with what was found before below the roots that could not be looked through now, at its old place.

    What the agent offers now because it could not see what comes before it is still behind that: of one name it is left out.
    """
    if earlier is None:
        return answer
    before = [*earlier.each()]
    places = {each.folder: place for place, each in enumerate(before)}
    now = [*answer.each()]
    folders = {each.folder for each in now}
    kept = [each for each in before if each.root in answer.unread and each.folder not in folders]
    names = {(each.name, each.prefix if each.is_environment else "") for each in kept}
    placed, place = [(places[each.folder], each) for each in kept], -1
    for each in now:
        place = places.get(each.folder, place)  # one that is new stays behind the one that it follows
        if (each.name, each.prefix if each.is_environment else "") not in names:
            placed.append((place, each))
    pictures = {digest for each in kept for digest in each.logos.values()}
    logos = {digest: content for digest, content in earlier.logos.items() if digest in pictures}
    specs = [each.write() for _, each in sorted(placed, key=lambda pair: pair[0])][: HostKernelspecs.MOST]
    return HostKernelspecs(specs, {**logos, **answer.logos})


def begin(app: Any) -> None:
    """Have the server *app* offer its hosts' kernelspecs beside its own, whatever class finds those."""
    settings = Distributed(config=app.config, for_provisioner=True)
    hosts = parse_hosts(settings.remote_hosts)
    manager = app.kernel_spec_manager
    if not hosts or settings.host_kernelspecs == "off" or _is_gateways(app):
        return
    cluster = cluster_for(app.kernel_manager, app.config)
    folder = KernelspecFolder(app.data_dir, hosts, settings, cluster.identity[0])
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

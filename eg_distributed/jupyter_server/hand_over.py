"""`/api/distributed/adopt`: kernels of this user's other servers, and taking them over; `jupyter distributed adopt` asks for it.

    GET                                   who has which kernels
    POST {"kernels": […], "server": …}    take these, or all of that server; "running": true where that server runs

The server that is to have a kernel does all of it: it alone can list the kernel, and has to own it from then on. A kernel goes
over with its record, which is moved from the other store to ours, and of two servers that want it only one can move it. Then its
host is told, as of any kernel that is found again: the server that had it, if it runs, hears who has it now, and lets go of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import os
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from jupyter_server.utils import url_path_join
from tornado.web import authenticated

from eg_distributed.aside import aside
from eg_distributed.clock import monotonic
from eg_distributed.errors import DistributedError, RequestInvalid
from eg_distributed.link.deadlines import within
from eg_distributed.wire import Malformed, flag, optional, shown, text, texts

from .adoption import SESSIONS, Adoption
from .process import keeper_of, names_of, while_locked
from .store import Record, Store

__all__ = ["begin"]

log = logging.getLogger(__name__)

_FILES = 5.0  # seconds for what is on this machine's disks
_ALL = 15.0  # seconds after which a request takes no further kernel
_DATABASE = 1.0  # seconds that another server's database is waited for
_MOST = 1000  # kernels of one request
_Session = tuple[str, str, str, str]
"""Its id, path, name and type."""


def begin(app: Any) -> None:
    """Add the address to the server *app*, if it keeps records of its kernels; see `extension`."""
    adoption = keeper_of(app.kernel_manager)
    if isinstance(adoption, Adoption):
        path = url_path_join(app.web_app.settings["base_url"], "api", "distributed", "adopt")
        app.web_app.add_handlers(".*$", [(path, _Handler, {"adoption": adoption})])


@dataclass
class _Other:
    """Another server of this user, by what it keeps."""

    id: str
    store: Store
    records: list[Record] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    is_running: bool = False
    about: dict[str, Any] = field(default_factory=dict)
    sessions: dict[str, list[_Session]] = field(default_factory=dict)
    """By kernel."""

    def written(self) -> dict[str, Any]:
        """Return this for JSON."""
        about = {name: self.about.get(name) for name in ("root", "machine", "pid", "since")}
        kernels = [
            {
                "kernel": record.kernel,
                "name": record.name,
                "host": record.host,
                "since": record.written,
                "paths": [session[1] for session in self.sessions.get(record.kernel, [])],
            }
            for record in self.records
        ]
        return {"server": self.id, "running": self.is_running, **about, "kernels": kernels, "errors": self.errors}


class _Handler(APIHandler):
    """Answers both; who may write to kernels may take them."""

    auth_resource = "kernels"

    def initialize(self, adoption: Adoption) -> None:
        """Take what the address was added with; called by tornado."""
        self._adoption = adoption

    @authenticated
    @authorized
    async def get(self) -> None:
        """Answer with all other servers that have kernels."""
        await self._answer(self._list())

    @authenticated
    @authorized
    async def post(self) -> None:
        """Take kernels, and answer with those that were taken, and why others were not."""
        await self._answer(self._take())

    async def _answer(self, work: Any) -> None:
        try:
            answer = await work
        except DistributedError as error:
            self.set_status(error.http_status)
            answer = {"message": str(error), "reason": None}
        self.finish(json.dumps(answer))

    async def _list(self) -> dict[str, Any]:
        return {"servers": [other.written() for other in await _others(self._adoption)]}

    async def _take(self) -> dict[str, Any]:
        body = self.get_json_body()
        if not isinstance(body, dict):
            raise RequestInvalid("the request is no JSON object", remedy='send {"kernels": ["ID"]} or {"server": "ID"}')
        try:
            wanted = texts(128, _MOST)(body.get("kernels", []))
            server = optional(text(128))(body.get("server"))
            running = flag(body.get("running", False))
        except Malformed as error:
            raise RequestInvalid(str(error), remedy="see docs/jupyterlab.md") from None
        if bool(wanted) == bool(server):
            raise RequestInvalid(
                "neither kernels nor a server are named, or both", remedy='name "kernels" or a "server"'
            )
        return await _take(self._adoption, wanted, server, running=running)


async def _others(adoption: Adoption) -> list[_Other]:
    """Return the other servers with kernels; raises DistributedError where the disk does not answer."""
    ours = adoption.store.folder if adoption.store is not None else None
    read = functools.partial(_read_others, names_of(adoption.app), ours)
    try:
        return await within(aside(("stores", names_of(adoption.app), ours), read), _FILES)
    except (OSError, asyncio.TimeoutError) as error:
        raise DistributedError(
            f"what other servers keep cannot be read ({error!r})",
            remedy=f"see that {names_of(adoption.app)} can be read",
        ) from error


def _read_others(folder: Path, ours: Path | None) -> list[_Other]:
    found = []
    for kept in sorted(folder.glob("*.d")):
        if kept == ours or kept.is_symlink() or kept.lstat().st_uid != os.getuid():
            continue
        other = _Other(kept.name.removesuffix(".d"), Store(kept))
        records, errors = other.store.read(put_aside=False)
        if records or errors:
            other.records, other.errors = records, {name: str(error) for name, error in errors.items()}
            other.about = other.store.about()
            with while_locked(_lock_of(other)) as is_ours:
                other.is_running = not is_ours
            other.sessions = _sessions(kept)
            found.append(other)
    return found


def _lock_of(other: _Other) -> Path:
    return other.store.folder.with_name(other.id)


def _sessions(kept: Path) -> dict[str, list[_Session]]:
    """Return another server's sessions by kernel; none where it keeps them elsewhere, or they cannot be read."""
    found: dict[str, list[_Session]] = {}
    path = kept / SESSIONS
    with contextlib.suppress(sqlite3.Error):  # kernels without their sessions are better than none
        if path.is_file():
            connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", timeout=_DATABASE, uri=True)
            try:
                for row in connection.execute("SELECT kernel_id, session_id, path, name, type FROM session"):
                    kernel, *session = (str(part) if part is not None else "" for part in row)
                    found.setdefault(kernel, []).append((session[0], session[1], session[2], session[3]))
            finally:
                connection.close()
    return found


# -- taking ------------------------------------------------------------------------------------------------------


async def _take(adoption: Adoption, wanted: list[str], server: str | None, *, running: bool) -> dict[str, Any]:
    """Take the kernels *wanted*, by their ids or how those begin, or all of *server*; raises DistributedError."""
    await adoption.prepare()
    if adoption.store is None:
        raise DistributedError("this server keeps no kernels", remedy="see its log, which says why")
    others = await _others(adoption)
    if server is not None and server not in {other.id for other in others}:
        raise RequestInvalid(f"no other server {shown(server)} has kernels here", remedy="list them again")
    adopted, refused = [], {}
    until = monotonic() + _ALL
    for name, chosen in _chosen(others, wanted, server):
        try:
            if monotonic() > until:  # who has asked waits no longer, and would not hear of what is taken later
                raise DistributedError("the request has taken too long before it came to this", remedy="ask again")
            if chosen is None:
                raise RequestInvalid(f"no other server has a kernel {shown(name)}, or several have one that begins so")
            other, record = chosen
            await _take_one(adoption, adoption.store, other, record, running=running)
            adopted.append(record.kernel)
        except DistributedError as error:
            refused[name] = str(error)
    return {"adopted": adopted, "refused": refused}


def _chosen(
    others: list[_Other], wanted: list[str], server: str | None
) -> Iterator[tuple[str, tuple[_Other, Record] | None]]:
    kernels = [(other, record) for other in others for record in other.records]
    if server is not None:
        yield from ((record.kernel, (other, record)) for other, record in kernels if other.id == server)
        return
    for name in wanted:
        found = [each for each in kernels if name and each[1].kernel.startswith(name)]
        yield name, found[0] if len(found) == 1 else None


async def _take_one(adoption: Adoption, ours: Store, other: _Other, record: Record, *, running: bool) -> None:
    """Take the kernel of *record* from *other*; raises DistributedError."""
    if record.kernel in adoption.kernels:
        raise RequestInvalid(f"a kernel {record.kernel} is here already")
    move = _Move(other, record, ours, running=running)
    try:
        await within(aside(("take", record.kernel), move.do), _FILES)
    except (OSError, ValueError, asyncio.TimeoutError) as error:
        if not isinstance(error, asyncio.TimeoutError) or move.give_up():
            raise DistributedError(
                f"its record cannot be moved ({error!r}), and stays where it was", remedy="list kernels again"
            ) from error
    if record.kernel in adoption.kernels:  # another request has waited for the same move
        raise RequestInvalid(f"a kernel {record.kernel} is here already")
    log.warning("kernel %s on %s is taken over from the server %s", record.kernel, record.host, other.id)
    if not adoption.find(record):
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            await within(aside(("give back", record.kernel), functools.partial(other.store.take, ours, record)), _FILES)
        raise DistributedError("it cannot be found again", remedy="see this server's log; it stays where it was")
    adoption.serve()
    await _open_sessions(adoption, other, record.kernel)


class _Move:
    """Moves a record to our store, in a thread that may hang for as long as it likes: whoever was told that it failed is right.

    Otherwise the kernel of a server that runs would be taken later, by our next start, without anybody's having asked again.
    """

    def __init__(self, other: _Other, record: Record, ours: Store, *, running: bool) -> None:
        self._other = other
        self._record = record
        self._ours = ours
        self._running = running
        self._lock = threading.Lock()  # held for moments
        self._is_over = self._is_given_up = False

    def do(self) -> None:
        """Move it. Raises RequestInvalid where its server runs and that is not said, and OSError. Undone if it was given up."""
        other = self._other
        with while_locked(_lock_of(other)) as is_ours:  # so that it does not start meanwhile
            if not is_ours and not self._running:
                raise RequestInvalid(
                    f"the server {other.id} ({other.about.get('root', 'unknown folder')}) runs, and has the kernel "
                    f"{self._record.kernel}",
                    remedy="say --running to take it from there all the same",
                )
            if self._is_given_up:
                raise TimeoutError("it was given up")
            self._ours.take(other.store, self._record)
            with self._lock:
                self._is_over = not self._is_given_up
            if self._is_given_up:
                other.store.take(self._ours, self._record)
                raise TimeoutError("it was given up")

    def give_up(self) -> bool:
        """Have the record stay where it is, or go back there; False: it is moved by now."""
        with self._lock:
            self._is_given_up = not self._is_over
        return self._is_given_up


async def _open_sessions(adoption: Adoption, other: _Other, kernel: str) -> None:
    """Have the notebooks of *kernel* be here, where they are below this server's folder, too, and have no kernel here."""
    sessions = adoption.app.session_manager
    here, there = Path(adoption.app.root_dir), Path(str(other.about.get("root") or adoption.app.root_dir))
    for number, path, name, kind in other.sessions.get(kernel, []):
        try:
            ours = (there / path).relative_to(here).as_posix()
        except ValueError:
            log.info("kernel %s: its notebook %s is not below %s", kernel, there / path, here)
            continue
        try:
            if not await sessions.session_exists(path=ours):
                await sessions.save_session(session_id=number, path=ours, name=name, type=kind, kernel_id=kernel)
        except sqlite3.Error as error:
            log.warning("kernel %s: the session of %s cannot be written: %s", kernel, ours, error)

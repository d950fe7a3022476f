"""Readiness by protocol: an SSH login with a command, an HTTP answer, a deadline on everything.

Probes of several machines run side by side (`side_by_side`) and end together: after ^C, and after the first that fails, nobody
waits for the deadlines of the others.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextvars import ContextVar, copy_context
from pathlib import Path
from typing import Any, TypeVar

import asyncssh

from lab.errors import LabNotReady
from lab.keys import HostEntry, known_hosts

S = TypeVar("S")
T = TypeVar("T")

PROBE_SECONDS = 5.0
"""One attempt. Longer than a loaded machine's login, much shorter than any deadline."""


_given_up: ContextVar[threading.Event | None] = ContextVar("_given_up", default=None)
"""Set in the threads of `side_by_side`."""


class ProbeFailed(Exception):
    """One attempt failed; `wait_until` tries again until its deadline and then reports the last one."""


def remedy_for(machine: str) -> str:
    """Return what to type when the machine of that short name doesn't get ready."""
    return f"`lab logs {machine}` has all that it said; `lab up` again goes on from here, `lab inspect {machine}` knows more"


def wait_until(
    what: str, probe: Callable[[], T], *, seconds: float, logs: Callable[[], str] = str, remedy: str = ""
) -> T:
    """Call *probe* until it returns, with growing pauses; raise LabNotReady with *logs* when *seconds* have passed."""
    deadline = time.monotonic() + seconds
    pause = 0.05
    while True:
        try:
            return probe()
        except ProbeFailed as error:
            if time.monotonic() + pause >= deadline:
                raise LabNotReady(
                    f"{what} did not succeed within {seconds:.0f} s", cause=str(error), remedy=remedy, logs=logs()
                ) from error
        rest(pause, what)
        pause = min(pause * 1.5, 0.5)


def rest(seconds: float, what: str) -> None:
    """Sleep, for a probe between two looks; raise LabNotReady at once when those beside it were given up."""
    event = _given_up.get()
    if event is None:
        time.sleep(seconds)
    elif event.wait(seconds):
        raise LabNotReady(f"{what} was given up", cause="the wait was interrupted, or another machine's failed")


def side_by_side(probe: Callable[[S], T], machines: Iterable[S], *, at_once: int = 8) -> list[T]:
    """Return what *probe* says of each of *machines*; raise what the first that failed raises, with the others given up."""
    event = threading.Event()

    def begin(machine: S) -> T:
        _given_up.set(event)
        rest(0, "a probe")
        return probe(machine)

    with ThreadPoolExecutor(at_once, thread_name_prefix="lab-probes") as pool:
        # Each in a context of its own: a worker's own would keep the event for whoever comes next.
        futures = [pool.submit(copy_context().run, begin, machine) for machine in machines]
        try:
            for done in as_completed(futures):
                done.result()
        except BaseException:  # ^C as well: leaving the pool waits for all that it runs
            event.set()
            raise
    return [future.result() for future in futures]


def run_in_thread(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end from code that may itself be called inside a running event loop (pytest-asyncio)."""
    with ThreadPoolExecutor(1, thread_name_prefix="lab-probe") as pool:
        return pool.submit(lambda: asyncio.run(work())).result()


def probe_ssh(entry: HostEntry, identity: Path) -> None:
    """Log in from this machine with strict host keys and run a command; raise ProbeFailed."""

    async def attempt() -> None:
        async with asyncssh.connect(
            "127.0.0.1",
            entry.port,
            username=entry.user,
            client_keys=[str(identity)],
            known_hosts=asyncssh.import_known_hosts(known_hosts([entry])),
            host_key_alias=entry.name,
            config=None,
            agent_path=None,
            connect_timeout=PROBE_SECONDS,
            login_timeout=PROBE_SECONDS,
        ) as connection:
            await connection.run("true", check=True, timeout=PROBE_SECONDS)

    try:
        run_in_thread(lambda: asyncio.wait_for(attempt(), 2 * PROBE_SECONDS))
    except (OSError, asyncssh.Error, TimeoutError, asyncio.TimeoutError) as error:
        raise ProbeFailed(
            f"SSH to {entry.name} (127.0.0.1:{entry.port}): {str(error) or type(error).__name__}"
        ) from error


def probe_http(url: str) -> None:
    """GET *url*/api and expect Jupyter's answer; raise ProbeFailed. Proxies of the environment are for the internet."""
    import httpx  # slow to import, and no reading verb needs it

    try:
        answer = httpx.get(f"{url}/api", timeout=PROBE_SECONDS, trust_env=False)
        answer.raise_for_status()
        if "version" not in answer.json():
            raise ProbeFailed(f"GET {url}/api answered something that is no Jupyter server")
    except (httpx.HTTPError, ValueError) as error:
        raise ProbeFailed(f"GET {url}/api: {str(error) or type(error).__name__}") from error

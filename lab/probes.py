"""Readiness by protocol: an SSH login with a command, an HTTP answer, a deadline on everything."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import asyncssh

from lab.errors import LabNotReady
from lab.keys import HostEntry, known_hosts

T = TypeVar("T")

PROBE_SECONDS = 5.0
"""One attempt. Longer than a loaded machine's login, much shorter than any deadline."""


class ProbeFailed(Exception):
    """One attempt failed; `wait_until` tries again until its deadline and then reports the last one."""


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
        time.sleep(pause)
        pause = min(pause * 1.5, 0.5)


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

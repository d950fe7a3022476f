"""Watches the gateway from outside, all the while: which kernels it lists, as what, on which hosts, and whether it answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx

from tests.chaos.history import History
from tests.chaos.site import Site

PAUSE = 0.3
"""Seconds between two looks."""
ANSWER_SECONDS = 20.0


class Observer:
    """Asks `/api/kernels` again and again, and writes down what is another answer than before."""

    def __init__(self, site: Site, history: History) -> None:
        self._site = site
        self._history = history
        self._before: dict[str, Any] | None = None

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Watch meanwhile."""
        task = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})
        if not task.cancelled():
            task.result()

    async def _watch(self) -> None:
        async with httpx.AsyncClient(trust_env=False, timeout=ANSWER_SECONDS) as http:
            while True:
                await self._site.up.wait()
                await self._look(http)
                await asyncio.sleep(PAUSE)

    async def _look(self, http: httpx.AsyncClient) -> None:
        asked = self._history.now()
        try:
            answer = await http.get(f"{self._site.url}/api/kernels")
            models = answer.raise_for_status().json()
        except (httpx.HTTPError, ValueError) as error:
            if self._site.up.is_set():  # else it is being ended, which is no news
                self._history.add("seen", "no-answer", asked=asked, reason=f"{type(error).__name__} {error}")
            return
        seconds = self._history.now() - asked
        if seconds > 1:
            self._history.add("seen", "slow", asked=asked, seconds=round(seconds, 3))
        listed = {
            model["id"]: [
                model["execution_state"],
                model.get("distributed", {}).get("state", ""),
                model.get("distributed", {}).get("host", ""),
            ]
            for model in models
        }
        if listed != self._before:
            self._before = listed
            self._history.add("seen", "listed", asked=asked, kernels=listed)

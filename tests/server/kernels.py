"""Kernels of a jupyter_server, by its REST API."""

from __future__ import annotations

import copy
from typing import Any

import httpx

from .served import Served


class Kernel:
    """A kernel that the server has started, without a session."""

    def __init__(self, served: Served, name: str) -> None:
        answer = served.rest.post("/api/kernels", json={"name": name})
        assert answer.status_code == 201, answer.text
        self.id: str = answer.json()["id"]
        self._served = served

    @property
    def is_listed(self) -> bool:
        """Whether the server still has it."""
        return any(each["id"] == self.id for each in self._served.rest.get("/api/kernels").json())

    def of(self, served: Served) -> Kernel:
        """Return it as another server has it."""
        found = copy.copy(self)
        found._served = served
        return found

    def model(self) -> dict[str, Any]:
        """Return what the server says of it."""
        model: dict[str, Any] = self._served.rest.get(f"/api/kernels/{self.id}").json()
        return model

    def act(self, action: str) -> httpx.Response:
        """Interrupt or restart it."""
        return self._served.rest.post(f"/api/kernels/{self.id}/{action}")

    def end(self) -> None:
        """Delete it."""
        assert self._served.rest.delete(f"/api/kernels/{self.id}").status_code == 204

"""What holds a node in tests, in the place of a cluster."""

from __future__ import annotations

from eg_distributed.abandoned import Abandoned
from eg_distributed.node import News, Node
from eg_distributed.settings import Distributed


class NodeOwner:
    """Keeps a node's *news*, and wants *kernels* whatever the host."""

    def __init__(self, settings: Distributed) -> None:
        self.news: list[News] = []
        self.kernels: list[str] = []
        self.leases: dict[str, int] = {}
        self.handles: dict[str, object] = {}
        self.abandoned = Abandoned(settings.orphan_timeout)

    def hear(self, news: News) -> None:
        """Keep it."""
        self.news.append(news)

    def wanted(self, host: str) -> list[str]:
        """Return all of *kernels*."""
        return list(self.kernels)

    def handle(self, kernel: str) -> object:
        """Return what *handles* says."""
        return self.handles.get(kernel)

    def lease(self, kernel: str) -> int:
        """Return what *leases* says."""
        return self.leases.get(kernel, 0)

    def is_late(self, kernel: str) -> bool:
        """Return False: all are asked for just now."""
        return False

    def has_errands(self, host: str) -> bool:
        """Return True if an attempt is to be ended there."""
        return self.abandoned.has_any_on(host)

    def run_errands(self, node: Node) -> None:
        """End what was abandoned there."""
        self.abandoned.end_all_on(node)

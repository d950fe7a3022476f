"""A cluster's numbers as Prometheus has them; adapters register the collector, and say where it is scraped.

The only module that knows prometheus_client. Labels are hosts, states and outcomes: never kernels or users, of which there is no
end. Reads what is known, on whichever thread asks, and waits for nothing.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from .cluster import Cluster
from .counters import Durations, HostCounters

__all__ = ["PREFIX", "Collector"]

log = logging.getLogger(__name__)

PREFIX = "jupyter_distributed_"

_COUNTERS: tuple[tuple[str, str, Callable[[HostCounters], float]], ...] = (
    ("reconnects", "Connections to the host that were made again after one was lost.", lambda host: host.reconnects),
    (
        "connect_failures",
        "Attempts to connect to the host, and to have an agent there, that failed.",
        lambda host: host.connect_failures,
    ),
    ("kernel_deaths", "Kernels on the host that ended unasked.", lambda host: host.deaths),
    (
        "output_losses",
        "Times that a kernel's streams could not go on after a cut, so that output may be missing.",
        lambda host: host.losses,
    ),
    (
        "kept_output_bytes",
        "Bytes of kernels' output that the host's agent had kept while no gateway was there, and has handed over.",
        lambda host: host.kept_output_bytes,
    ),
)
"""Counters with the host for their label: name, help, value."""


class Collector:
    """What prometheus_client asks for each scrape; *find* returns the cluster, None while there is none."""

    def __init__(self, find: Callable[[], Cluster | None]) -> None:
        self._find = find
        self._has_failed = False

    def describe(self) -> Iterable[Metric]:
        """Name the metrics, so that they are not collected for being registered; called by prometheus_client."""
        return _Families().all()

    def collect(self) -> Iterable[Metric]:
        """Return the metrics as they are now; called by prometheus_client."""
        families = _Families()
        cluster = self._find()
        if cluster is not None:
            try:
                families.fill(cluster)
            except Exception:
                # Whatever is wrong with ours, the scrape has other metrics, which must not be missing for it. Told once, since
                # there is a scrape every few seconds.
                log.log(
                    logging.DEBUG if self._has_failed else logging.ERROR,
                    "the metrics of kernels on hosts could not be read",
                    exc_info=True,
                )
                self._has_failed = True
                return []
        return families.all()


class _Families:
    """The metrics of one scrape."""

    def __init__(self) -> None:
        self.kernels = GaugeMetricFamily(
            f"{PREFIX}kernels",
            "Kernels of this gateway, by host and state: queued, starting, alive, unknown (its host is out of reach), dead.",
            labels=("host", "state"),
        )
        self.host_kernels = GaugeMetricFamily(
            f"{PREFIX}host_kernels",
            "Kernels of all gateways that run on a connected host by this gateway's login, as its agent says.",
            labels=("host",),
        )
        self.unreachable = GaugeMetricFamily(
            f"{PREFIX}host_unreachable",
            "1 if the host does not answer, 0 if it does; no sample for hosts that nothing needs or has tried lately.",
            labels=("host",),
        )
        self.starts = CounterMetricFamily(
            f"{PREFIX}starts",
            "Starts of kernels that were tried on the host, by what came of them; a start moves on when a host fails.",
            labels=("host", "outcome"),
        )
        self.start_seconds = HistogramMetricFamily(
            f"{PREFIX}start_seconds",
            "Seconds from the request to a kernel that is ready, by the host on which it runs.",
            labels=("host",),
        )
        self.warm = CounterMetricFamily(
            f"{PREFIX}warm_starts",
            "Starts that may be warm, by how they were done: forked from a template, or cold.",
            labels=("host", "how"),
        )
        self.relayed = CounterMetricFamily(
            f"{PREFIX}relayed_bytes",
            "Bytes of kernels' channels: to_kernel as clients sent them, from_kernel as clients were given them.",
            labels=("host", "direction"),
        )
        self.counters = [CounterMetricFamily(PREFIX + name, text, labels=("host",)) for name, text, _ in _COUNTERS]

    def all(self) -> list[Metric]:
        """Return all of them."""
        gauges = [self.kernels, self.host_kernels, self.unreachable]
        return [*gauges, self.starts, self.start_seconds, self.warm, self.relayed, *self.counters]

    def fill(self, cluster: Cluster) -> None:
        """Take the numbers of *cluster* as they are now."""
        for labels, count in _kernels(cluster).items():
            self.kernels.add_metric(labels, count)
        running: Counter[str] = Counter()
        unreachable: dict[str, bool] = {}
        for host in cluster.hosts.copy().values():
            node, label = host.node, host.node.counters.label
            if node.connected.is_set():
                running[label] += len(node.running)
            if (is_unreachable := node.is_unreachable) is not None:
                unreachable[label] = is_unreachable or unreachable.get(label, False)
        for label, count in running.items():
            self.host_kernels.add_metric((label,), count)
        for label, is_unreachable in unreachable.items():
            self.unreachable.add_metric((label,), int(is_unreachable))
        for counted in cluster.counters.hosts():
            self._count(counted)

    def _count(self, host: HostCounters) -> None:
        label = host.label
        for outcome, count in host.starts.items():
            self.starts.add_metric((label, outcome), count)
        if host.starts["ready"]:  # half of all lines, and jupyter_server makes them on its loop
            self.start_seconds.add_metric((label,), list(_buckets(host.start_seconds)), host.start_seconds.seconds)
        if any(host.warm_starts.values()):  # most sites have none
            for how, count in host.warm_starts.items():
                self.warm.add_metric((label, how), count)
        self.relayed.add_metric((label, "to_kernel"), host.bytes_to_kernels)
        self.relayed.add_metric((label, "from_kernel"), host.bytes_from_kernels)
        for family, (_, _, value) in zip(self.counters, _COUNTERS, strict=True):
            family.add_metric((label,), value(host))


def _kernels(cluster: Cluster) -> Counter[tuple[str, str]]:
    """Return how many kernels there are by host and state; a start that has no host yet has an empty one."""
    found: Counter[tuple[str, str]] = Counter()
    for kernel in cluster.kernels.copy().values():
        node = kernel.node  # once: the cluster's thread may change it
        state = "starting" if cluster.is_starting(kernel.id) else kernel.state.value
        if kernel.place.before >= 0:
            state = "queued"
        found[node.counters.label if node is not None else "", state] += 1
    return found


def _buckets(durations: Durations) -> Iterator[tuple[str, float]]:
    return zip((*map(str, durations.bounds), "+Inf"), durations.cumulative(), strict=True)

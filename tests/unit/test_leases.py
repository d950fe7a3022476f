"""Several gateways on the same hosts: who has a kernel, how the others learn it, and where kernels start."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from eg_distributed import cluster as cluster_module
from eg_distributed.balancing import HostView, LeastConnection
from eg_distributed.cluster import Cluster
from eg_distributed.errors import KernelTaken
from eg_distributed.kernel import RemoteKernel, State
from eg_distributed.link.links import Link
from eg_distributed.protocol import Start
from tests.until import until

from .agents import alive
from .clusters import answers, gone, request, start
from .conftest import Hosts

Clusters = Callable[..., Cluster]


def adopt(cluster: Cluster, kernel: RemoteKernel) -> RemoteKernel:
    """Have *cluster* adopt *kernel*, as by its persisted session."""
    found = cluster.adopt(kernel.id, "node1", kernel.attempt, kernel.connection_info, kernel.agent_kept)
    cluster.serve_adopted()
    return found


async def taken(cluster: Cluster, kernel: RemoteKernel) -> None:
    """Wait until *cluster* has let go of *kernel*."""
    await until("it is let go of", lambda: kernel.taken_by and kernel.id not in cluster.kernels)


async def test_a_gateway_that_adopts_a_kernel_has_it_alone(
    clusters: Clusters, hosts: Hosts, caplog: pytest.LogCaptureFixture
) -> None:
    """The one before is told by whom, and leaves nothing of it here; the kernel goes on, and answers through the new one."""
    await hosts("node1")
    one, two = clusters("one"), clusters("two")
    kernel = await start(one, "k1", "node1")
    told: list[RemoteKernel] = []
    kernel.on_taken = told.append
    sure: list[bool] = []
    found = two.adopt(kernel.id, "node1", kernel.attempt, kernel.connection_info, kernel.agent_kept)
    assert not found.is_sure
    found.on_verified = lambda: sure.append(found.is_sure)
    two.serve_adopted()
    await taken(one, kernel)
    await until("its adapter is told", lambda: told == [kernel])
    assert kernel.taken_by == "two"
    assert kernel.state is State.UNKNOWN
    assert "kernel k1 on node1: taken over by gateway two" in caplog.text
    assert await answers(found)
    await until("its number is known", lambda: found.lease == 2)
    assert sure == [True]
    assert [one.count("node1"), two.count("node1")] == [1, 1]
    assert not one.host("node1").node.users
    await one.run(one.release("k1"))
    assert alive(kernel.pid)
    assert await found_signal(two, found)
    await two.run(two.release("k1"))
    await gone(kernel.pid)


async def found_signal(cluster: Cluster, kernel: RemoteKernel) -> bool:
    """Signal a kernel with nothing that it would notice."""
    return await cluster.run(kernel.signal(signal.SIGCONT))


async def test_a_gateway_that_was_cut_off_is_told_as_it_comes_back(clusters: Clusters, hosts: Hosts) -> None:
    """What it was asked to do to the kernel meanwhile is not done; of a kernel that nobody has taken it still is the owner."""
    await hosts("node1")
    one, two = clusters("one"), clusters("two")
    kernel, other = await start(one, "k1", "node1"), await start(one, "k2", "node1")
    node = one.host("node1").node
    connector, is_over = node._connector, asyncio.Event()

    async def connect_later(*args: Any, **options: Any) -> Link:
        await is_over.wait()
        return await connector(*args, **options)

    def cut_off() -> None:
        assert node._link is not None
        node._connector = connect_later
        node._link.close()
        one._abandoned.mark(node, "k1", kernel.attempt, kernel.lease)  # as of one that is deleted

    one.call_soon(cut_off)
    await until("it is cut off", lambda: not node.connected.is_set())
    found = adopt(two, kernel)
    await until("the other one has it", lambda: bool(found.lease))
    assert not kernel.taken_by
    one.call_soon(is_over.set)
    await taken(one, kernel)
    await until("what was to be ended is forgotten", lambda: ("node1", "k1", kernel.attempt) not in one._abandoned)
    assert alive(kernel.pid)
    assert await answers(found)
    assert await found_signal(one, other)


async def test_a_kernel_is_handed_to_and_fro(clusters: Clusters, hosts: Hosts) -> None:
    """However often two gateways take it from each other: it runs, answers through the last one, and each has let go."""
    await hosts("node1")
    both = clusters("one"), clusters("two")
    kernel = first = await start(both[0], "k1", "node1")
    for turn in range(1, 7):
        before, kernel = kernel, adopt(both[turn % 2], kernel)
        await taken(both[1 - turn % 2], before)
        assert await answers(kernel)
    await until("its number is known", lambda: kernel.lease == 7)
    assert alive(first.pid)
    assert await found_signal(both[0], kernel)


async def test_a_restart_of_what_another_gateway_has_is_refused(clusters: Clusters, hosts: Hosts) -> None:
    """Who restarts a kernel before it has heard that it has lost it is told so; nothing is ended, nor started elsewhere."""
    await hosts("node1", "node2")
    one, two = clusters("one"), clusters("two")
    kernel = await start(one, "k1", "node1 node2", pin="node1")
    # Not heard: the event comes a moment later than the request.
    one.hear = lambda news: None  # type: ignore[method-assign]
    found = adopt(two, kernel)
    await until("the other one has it", lambda: bool(found.lease))
    with pytest.raises(KernelTaken, match="taken over by gateway two") as refused:
        await start(one, "k1", "node1 node2")
    assert refused.value.owner == "two"
    assert "k1" not in one.kernels
    assert alive(kernel.pid)
    assert await answers(found)


async def test_a_start_that_is_refused_for_another_gateway_leaves_the_kernel_to_it(
    clusters: Clusters, hosts: Hosts
) -> None:
    """One that was given up with its host, and was taken over there, is not here any more once its restart has heard so."""
    await hosts("node1")
    one, two = clusters("one"), clusters("two")
    kernel = await start(one, "k1", "node1")
    one.hear = lambda news: None  # type: ignore[method-assign]
    found = adopt(two, kernel)
    await until("the other one has it", lambda: bool(found.lease))
    await one.run(lost(kernel))
    with pytest.raises(KernelTaken, match="taken over by gateway two"):
        await start(one, "k1", "node1")
    assert kernel.taken_by == "two"
    assert "k1" not in one.kernels
    assert alive(kernel.pid)


async def lost(kernel: RemoteKernel) -> None:
    """Give *kernel* up with its host, which comes back before it is replaced."""
    kernel._abandoned.end_all_on = lambda node: None  # type: ignore[method-assign]
    kernel.give_up(returnable=True)


async def test_a_kernel_that_is_adopted_while_it_starts_lives_on(clusters: Clusters, hosts: Hosts) -> None:
    """Who started it lets go, whether the event or the answer is the first to say so, and ends nothing."""
    await hosts("node1")
    one, two = clusters("one"), clusters("two")
    await one.run(one.list_kernels("node1"))
    node = one.host("node1").node
    request = node.request
    started: list[int] = []

    async def answer_late(asked: Any, *how: Any, **named: Any) -> Any:
        answer = await request(asked, *how, **named)
        if isinstance(asked, Start):
            started.append(answer.pid)
            two.adopt("k1", "node1", asked.attempt, {**info, "key": "k"})
            two.serve_adopted()
            await asyncio.wait_for(until("it is taken", lambda: bool(one.kernels["k1"].taken_by)), 10)
        return answer

    info = (await start(two, "other", "node1")).connection_info
    info["ip"] = info["ip"].replace("other", "k1")
    node.request = answer_late  # type: ignore[method-assign, assignment]
    with pytest.raises(KernelTaken, match="taken over by gateway two"):
        await start(one, "k1", "node1")
    assert "k1" not in one.kernels
    await until("two has it", lambda: two.kernels["k1"].lease == 2)
    assert alive(started[0])


async def test_a_restart_that_was_under_way_is_no_second_kernel(clusters: Clusters, hosts: Hosts) -> None:
    """A start of what was taken over just now is refused, until it is adopted again here."""
    await hosts("node1")
    one, two = clusters("one"), clusters("two")
    kernel = await start(one, "k1", "node1")
    found = adopt(two, kernel)
    await taken(one, kernel)
    with pytest.raises(KernelTaken, match="taken over by gateway two"):
        await start(one, "k1", "node1")
    assert await answers(found)
    again = adopt(one, kernel)
    await until("it is back", lambda: again.lease == 3)
    assert await answers(await start(one, "k1", "node1"))


async def test_a_kernel_that_was_asked_for_long_ago_is_not_taken(
    clusters: Clusters, hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adopted one whose host could not be told until its owner, by now, is another gateway is let go of."""
    await hosts("node1")
    one, two = clusters("one"), clusters("two")
    kernel = await start(one, "k1", "node1")
    monkeypatch.setattr(RemoteKernel, "is_late", True)
    late = adopt(two, kernel)
    await taken(two, late)
    assert late.taken_by == "one"
    assert await found_signal(one, kernel)
    await two.run(two.release("k1"))
    assert alive(kernel.pid)


# -- exact balancing ---------------------------------------------------------------------------------------------


async def test_three_gateways_at_once_leave_hosts_even(clusters: Clusters, hosts: Hosts) -> None:
    """Starts in the same moment, by gateways that know nothing of each other, end up within one kernel on each host."""
    names = ("node1", "node2", "node3")
    await hosts(*names)
    each = [clusters(f"gateway{number}") for number in range(3)]
    for cluster in each:
        await cluster.run(cluster.list_kernels(",".join(names)))
    kernels = await asyncio.gather(
        *(
            start(cluster, f"k{number}-{turn}", names, balancer="least-connection")
            for number, cluster in enumerate(each)
            for turn in range(5)
        )
    )
    counts = Counter(kernel.node.name for kernel in kernels if kernel.node)
    assert counts == dict.fromkeys(names, 5)


async def test_a_host_is_picked_by_what_it_has_once_it_is_connected(cluster: Cluster, hosts: Hosts) -> None:
    """What was known of it before a cut is not what a start is picked by."""
    await hosts("node1")
    node = cluster.host("node1").node
    request, believed = node.request, []

    async def note(asked: Any, *how: Any, **named: Any) -> Any:
        if isinstance(asked, Start):
            believed.append(asked.believed)
        return await request(asked, *how, **named)

    async def not_looked_at(*_: object) -> None:
        if not node.connected.is_set():
            node.running.update(("gone1", "gone2"))

    node.request = note  # type: ignore[method-assign, assignment]
    cluster._learn_counts = not_looked_at  # type: ignore[method-assign, assignment]
    kernel = await start(cluster, "k1", "node1", balancer="least-connection")
    assert await answers(kernel)
    assert believed == [cluster.count("node1") - 1]


async def test_a_start_that_is_always_too_late_goes_where_it_can(
    clusters: Clusters, hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so many refusals a start is let in: evenness is not worth an error."""
    monkeypatch.setattr(cluster_module, "_PICKS_AGAIN", 3)
    await hosts("node1")
    one, two = clusters("one"), clusters("two")
    await start(two, "k0", "node1")
    picks = []

    class Ignorant(LeastConnection):
        def pick(self, candidates: Sequence[HostView]) -> HostView:
            picks.append(candidates[0].kernels)
            one.host("node1").node.running.clear()
            return candidates[0]

    monkeypatch.setattr(cluster_module, "load_balancer", lambda _: Ignorant)
    kernel = await start(one, "k1", "node1", balancer="least-connection")
    assert await answers(kernel)
    assert len(picks) == 4


async def test_a_balancer_of_the_sites_own_decides_whether_it_is_exact(
    cluster: Cluster, hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that says nothing of it, and need not be ours at all, has its picks taken as they are."""
    await hosts("node1")

    class Own:
        def __init__(self, hosts: Sequence[str]) -> None:
            pass

        def pick(self, candidates: Sequence[HostView]) -> HostView:
            return candidates[0]

    monkeypatch.setattr(cluster_module, "load_balancer", lambda _: Own)
    picked, believed = await cluster.run(
        cluster._pick(request("k1", "node1", balancer="own"), set(), [], asyncio.get_running_loop().time() + 10)
    )
    assert (picked.name, believed) == ("node1", -1)

"""Where kernels start, what happens when a host fails, and what is left afterwards."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import socket
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eg_distributed import cluster as cluster_module
from eg_distributed import node as node_module
from eg_distributed.cluster import Cluster
from eg_distributed.errors import (
    DistributedError,
    HostUnreachable,
    KernelGone,
    KernelStartFailed,
    KernelStartTimeout,
    NoHostAvailable,
    RequestInvalid,
    RequestRefused,
)
from eg_distributed.kernel import RemoteKernel, State
from eg_distributed.link import connect
from eg_distributed.link.links import LocalLink
from eg_distributed.protocol import CHANNELS
from eg_distributed.settings import Distributed
from tests.until import until

from .agents import DEADLINE, Visitor, alive, written
from .clusters import answers, client, gone, kernel_folders, request, start, where
from .conftest import Hosts

THREE = "node1 node2 node3"


# -- where kernels land ------------------------------------------------------------------------------------------


async def test_kernels_are_spread_evenly_over_one_connection_per_host(cluster: Cluster, hosts: Hosts) -> None:
    """Nine kernels on three hosts are three each, and all talk."""
    sshds = await hosts("node1", "node2", "node3")
    kernels = [await start(cluster, f"k{number}", THREE) for number in range(9)]
    assert [where(kernel) for kernel in kernels] == ["node1", "node2", "node3"] * 3
    assert all([await answers(kernel) for kernel in kernels])
    assert [cluster.count(f"node{n}") for n in (1, 2, 3)] == [3, 3, 3]
    assert [sshd.wire.connections for sshd in sshds] == [1, 1, 1]


async def test_starts_at_once_are_fair(cluster: Cluster, hosts: Hosts) -> None:
    """Twelve starts at the same moment are four for each of three hosts, over one connection each."""
    sshds = await hosts("node1", "node2", "node3")
    kernels = await asyncio.gather(*(start(cluster, f"k{number}", THREE) for number in range(12)))
    assert Counter(where(kernel) for kernel in kernels) == {"node1": 4, "node2": 4, "node3": 4}
    assert [sshd.wire.connections for sshd in sshds] == [1, 1, 1]


async def test_least_connection_counts_other_gateways_kernels(clusters: Callable[..., Cluster], hosts: Hosts) -> None:
    """A kernel of another gateway weighs as much as one's own."""
    await hosts("node1", "node2")
    other, ours = clusters("other"), clusters()
    await ours.run(ours.list_kernels("node1,node2"))  # a first count is waited for a second, and no longer
    for number in range(2):
        await start(other, f"o{number}", "node1 node2", pin="node1")
    kernels = [await start(ours, f"k{n}", "node1 node2", balancer="least-connection") for n in range(4)]
    assert Counter(where(kernel) for kernel in kernels) == {"node2": 3, "node1": 1}


async def test_least_connection_counts_starts_in_flight(cluster: Cluster, hosts: Hosts) -> None:
    """Starts at the same moment see each other."""
    await hosts("node1", "node2")
    await cluster.run(cluster.list_kernels("node1,node2"))  # a first count is waited for a second, and no longer
    kernels = await asyncio.gather(
        *(start(cluster, f"k{number}", "node1 node2", balancer="least-connection") for number in range(8))
    )
    assert Counter(where(kernel) for kernel in kernels) == {"node1": 4, "node2": 4}


async def test_least_connection_leaves_out_what_does_not_answer(
    cluster: Cluster, hosts: Hosts, settings: Distributed, caplog: pytest.LogCaptureFixture
) -> None:
    """A host that hangs has the fewest kernels and costs no start anything; when it answers it takes its share."""
    settings.connect_timeout, settings.retry_after = 1.5, 0.0
    hung, _ = await hosts("node1", "node2")
    await cluster.run(cluster.list_kernels("node2"))
    hung.wire.freeze()
    for number in range(3):
        assert where(await start(cluster, f"k{number}", "node1 node2", balancer="least-connection")) == "node2"
        await until("its look at node1 is over", lambda: not cluster._probes)
    assert isinstance(cluster.host("node1").node.last_error, HostUnreachable)
    assert "could not take it" not in caplog.text
    hung.wire.thaw()
    await until("it may be tried", lambda: cluster.host("node1").is_healthy(0))
    await start(cluster, "k3", "node1 node2", balancer="least-connection")
    await asyncio.wait_for(cluster.host("node1").node.connected.wait(), DEADLINE)
    assert where(await start(cluster, "k4", "node1 node2", balancer="least-connection")) == "node1"


async def test_a_pin_lands_where_it_says_and_moves_nothing(cluster: Cluster, hosts: Hosts) -> None:
    """A pinned start takes no turn."""
    await hosts("node1", "node2")
    names = [
        where(await start(cluster, f"k{number}", "node1 node2", pin=pin))
        for number, pin in enumerate([None, "node1", "node1", None, "node2", None])
    ]
    assert names == ["node1", "node1", "node1", "node2", "node2", "node1"]


async def test_a_pin_outside_the_host_set_is_refused(
    cluster: Cluster, hosts: Hosts, settings: Distributed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the operator allows any host, a client cannot leave the kernel's hosts."""
    monkeypatch.setattr(cluster_module, "is_here", lambda agent: False)
    await hosts("node1", "node2")
    with pytest.raises(RequestRefused, match=r"KERNEL_REMOTE_HOST=node2 is none of this kernel's hosts \(node1\)"):
        await start(cluster, "k1", "node1", pin="node2")
    assert not cluster.kernels
    settings.allow_any_host = True
    assert where(await start(cluster, "k1", "node1", pin="node2")) == "node2"


async def test_an_env_that_no_kernel_can_have_is_refused(cluster: Cluster, hosts: Hosts) -> None:
    """The cluster checks the client's values itself, so an adapter that forgets to do so starts nothing with them."""
    (sshd,) = await hosts("node1")
    with pytest.raises(RequestInvalid, match="cannot be an environment variable's"):
        await start(cluster, "k1", "node1", env={"A": "x\0y"})
    with pytest.raises(RequestInvalid, match="is no launch timeout"):
        await start(cluster, "k1", "node1", env={"KERNEL_LAUNCH_TIMEOUT": "soon"})
    assert not cluster.kernels
    assert sshd.wire.connections == 0


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST.", "127.0.0.1", "127.1", "0.0.0.0", "::1", "alias", "cname"])
async def test_any_host_is_never_the_gateways_own(
    cluster: Cluster, settings: Distributed, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whatever a client calls the gateway's machine, no kernel starts there with the gateway's keys, unless it is a host."""

    async def look_up(hostname: str, port: int, *_: object) -> list[tuple[object, ...]]:
        known = {"cname": "127.0.0.1", "127.1": "127.0.0.1", "elsewhere": "192.0.2.1"}
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (known.get(hostname, hostname), port))]

    monkeypatch.setattr(connect, "look_up", look_up)
    Path(settings.ssh_config).write_text(
        "Host alias\n  HostName 127.0.0.1\nHost tunnel\n  HostName 127.0.0.1\n  Port 2222\n"
    )
    settings.allow_any_host = True
    with pytest.raises(
        RequestRefused, match="is the gateway's own machine, which is none of this kernel's hosts"
    ) as refused:
        await start(cluster, "k1", "node1", pin=name)
    assert refused.value.http_status == 403
    assert not cluster.kernels
    assert not cluster.hosts
    for other in ("tunnel", "elsewhere"):
        assert not await cluster.run(connect.leads_here(other, settings))


async def test_any_host_is_not_the_gateways_own_by_a_roundabout_way(
    cluster: Cluster, hosts: Hosts, settings: Distributed
) -> None:
    """A name that hides where it leads, such as a tunnel's, is found out by the agent at its end; no kernel starts there."""
    await hosts("node1", "tunnel")
    settings.allow_any_host = True
    assert not await cluster.run(connect.leads_here("tunnel", settings))
    with pytest.raises(RequestRefused, match="KERNEL_REMOTE_HOST=tunnel is the gateway's own machine") as refused:
        await start(cluster, "k1", "node1", pin="tunnel")
    assert refused.value.http_status == 403
    assert not cluster.kernels
    found = (await cluster.run(cluster.list_kernels("tunnel")))["tunnel"]
    assert found == []
    assert where(await start(cluster, "k2", "tunnel", pin="tunnel")) == "tunnel"


async def test_host_sets_do_not_disturb_each_other(cluster: Cluster, hosts: Hosts) -> None:
    """Two kernelspecs with different hosts take turns each on their own."""
    await hosts("node1", "node2", "node3")
    first = [where(await start(cluster, f"a{n}", "node1 node2")) for n in range(2)]
    other = [where(await start(cluster, f"b{n}", "node2 node3")) for n in range(2)]
    assert [*first, *other] == ["node1", "node2", "node2", "node3"]


@pytest.mark.parametrize("balancer", ["round-robin", "least-connection"])
async def test_a_machine_that_is_listed_by_two_names_has_one_share(
    cluster: Cluster, hosts: Hosts, settings: Distributed, caplog: pytest.LogCaptureFixture, balancer: str
) -> None:
    """Kernels start by its first name, as the log says once, or by the other while that leads nowhere; pins go by either."""
    caplog.set_level(logging.INFO)
    first, _ = await hosts("node1", "node2")
    await first.be_called("alias", settings)
    await cluster.run(cluster.list_kernels("node1,alias,node2"))
    names = "node1 alias node2"
    kernels = [await start(cluster, f"k{number}", names, balancer=balancer) for number in range(6)]
    assert Counter(where(kernel) for kernel in kernels) == {"node1": 3, "node2": 3}
    assert caplog.text.count("node1 and alias are one machine") == 1
    pinned = await start(cluster, "pinned", names, pin="alias", balancer=balancer)
    assert where(pinned) == "alias"
    assert await answers(pinned)
    first.wire.refuse()
    first.wire.cut()
    await until("node1 is lost", lambda: cluster.host("node1").node.last_error)
    moved = {where(await start(cluster, f"m{number}", names, balancer=balancer)) for number in range(3)}
    assert moved == {"alias", "node2"}


async def test_starts_by_all_names_of_a_machine_count_for_it(
    cluster: Cluster, hosts: Hosts, settings: Distributed
) -> None:
    """Where two kernelspecs name one machine differently, least-connection sees what either is starting there."""
    first, _ = await hosts("node1", "node2")
    await first.be_called("alias", settings)
    await cluster.run(cluster.list_kernels("node1,alias,node2"))
    names = ["node1 node2", "alias node2"]
    kernels = await asyncio.gather(
        *(start(cluster, f"k{n}", names[n // 4], balancer="least-connection") for n in range(8))
    )
    assert sum(where(kernel) == "node2" for kernel in kernels) == 4
    assert [cluster.count(name) for name in ("node1", "alias", "node2")] == [4, 4, 4]


async def test_an_unknown_balancer_leaves_nothing(cluster: Cluster, hosts: Hosts, home: Path) -> None:
    """A mistake in a setting is an error of the request, without a trace."""
    await hosts("node1")
    with pytest.raises(RequestInvalid, match="No load balancer"):
        await start(cluster, "k1", "node1", balancer="best")
    assert not cluster.kernels
    assert list((home / "r").iterdir()) == []


# -- hosts that fail ---------------------------------------------------------------------------------------------


async def test_a_bad_host_is_passed_over_and_avoided_for_a_while(cluster: Cluster, hosts: Hosts) -> None:
    """A refused connection moves the start on; further starts don't try that host while others are left."""
    bad, _ = await hosts("node1", "node2")
    bad.wire.refuse()
    assert where(await start(cluster, "k1", "node1 node2")) == "node2"
    await bad.wire.open()
    assert [where(await start(cluster, f"k{n}", "node1 node2")) for n in (2, 3)] == ["node2", "node2"]
    assert bad.wire.connections == 0
    cluster.settings.retry_after = 0
    names = {where(await start(cluster, f"k{n}", "node1 node2")) for n in (4, 5)}
    assert names == {"node1", "node2"}


async def test_a_host_without_python_is_passed_over(cluster: Cluster, hosts: Hosts) -> None:
    """No agent is the host's fault as well."""
    bad, _ = await hosts("node1", "node2")
    bad.command = "exit 127"
    assert where(await start(cluster, "k1", "node1 node2")) == "node2"


async def test_a_login_that_gets_nowhere_is_said_when_the_launch_timeout_ends(cluster: Cluster, hosts: Hosts) -> None:
    """A start-up file that waits takes the launch's time, and the error says how far the login had come."""
    (sshd,) = await hosts("node1")
    sshd.command = "exec sleep 60"
    with pytest.raises(NoHostAvailable, match="it is waiting for python3, which runs after the login's start-up files"):
        await start(cluster, "k1", "node1", launch_timeout=1.0)


async def test_when_all_fail_each_is_named(cluster: Cluster, hosts: Hosts, home: Path) -> None:
    """The error has every host with its own cause, and nothing is left."""
    first, second = await hosts("node1", "node2")
    first.wire.refuse()
    (second.folder / "known_hosts").write_text("")
    with pytest.raises(NoHostAvailable) as failed:
        await start(cluster, "k1", "node1 node2")
    assert [error.host for error in failed.value.errors] == ["node1", "node2"]
    assert "Connection refused" in str(failed.value)
    assert "host key is not trusted" in str(failed.value)
    assert not cluster.kernels
    assert list((home / "r").iterdir()) == []
    assert [cluster.count(name) for name in cluster.hosts] == [0, 0]


async def test_a_hung_host_costs_its_deadline_and_no_bystander(
    cluster: Cluster, hosts: Hosts, settings: Distributed
) -> None:
    """While one start waits for a host that hangs, another host's kernel starts and answers as ever."""
    settings.connect_timeout = 3.0
    hung, _ = await hosts("node1", "node2")
    await start(cluster, "k0", "node2")
    hung.wire.freeze()
    waiting = asyncio.ensure_future(start(cluster, "k1", "node1 node2"))
    bystander = await start(cluster, "k2", "node2")
    assert await answers(bystander)
    assert not waiting.done()
    assert where(await waiting) == "node2"
    error = cluster.host("node1").node.last_error
    assert isinstance(error, HostUnreachable)
    hung.wire.thaw()


async def test_a_slow_login_is_left_to_itself_and_is_no_fault(
    cluster: Cluster, hosts: Hosts, settings: Distributed
) -> None:
    """A start that may go elsewhere does so, while the login of a slow host goes on; the host is not marked as failed."""
    settings.connect_timeout = 1.0
    slow, _ = await hosts("node1", "node2")
    slow.patience.clear()
    assert where(await start(cluster, "k1", "node1 node2")) == "node2"
    assert cluster.host("node1").node.last_error is None
    assert where(await start(cluster, "k2", "node1 node2")) == "node2"
    slow.patience.set()
    await asyncio.wait_for(cluster.host("node1").node.connected.wait(), DEADLINE)
    assert len(slow.users) == 1
    assert where(await start(cluster, "k3", "node1", pin="node1")) == "node1"


async def test_a_pinned_start_waits_for_a_slow_login(cluster: Cluster, hosts: Hosts, settings: Distributed) -> None:
    """Where a start has no other host, a login that makes progress may take longer than the connect timeout."""
    settings.connect_timeout = 0.5
    (slow,) = await hosts("node1")
    slow.patience.clear()
    starting = asyncio.ensure_future(start(cluster, "k1", "node1"))
    await until("the login is slow", cluster.host("node1").node.is_slow)
    slow.patience.set()
    assert where(await starting) == "node1"


async def test_where_all_others_fail_a_slow_login_is_waited_for(
    cluster: Cluster, hosts: Hosts, settings: Distributed
) -> None:
    """A host that was left for its slow login takes the kernel after all, if no other can."""
    settings.connect_timeout = 0.5
    slow, broken = await hosts("node1", "node2")
    slow.patience.clear()
    broken.wire.refuse()
    starting = asyncio.ensure_future(start(cluster, "k1", "node1 node2"))
    await until("the other has failed", lambda: cluster.host("node2").node.last_error)
    slow.patience.set()
    assert where(await starting) == "node1"


async def test_a_host_is_one_by_all_its_spellings(cluster: Cluster, hosts: Hosts) -> None:
    """Capitals and a dot at the end make no second connection and no second count; pins may use them as well."""
    (sshd,) = await hosts("node1")
    for number, name in enumerate(("node1", "NODE1.", "Node1")):
        assert where(await start(cluster, f"k{number}", "node1", pin=name)) == "node1"
    assert where(await start(cluster, "k4", "NODE1")) == "node1"
    assert sshd.wire.connections == 1
    assert cluster.count("NODE1") == 4


async def test_a_host_that_hangs_during_a_start_is_left_and_cleaned_later(
    cluster: Cluster, hosts: Hosts, settings: Distributed, short: Path
) -> None:
    """A connected host that stops answering is passed over; what it had started ends when it is back."""
    settings.request_timeout, settings.keepalive_interval, settings.keepalive_count = 2.0, 1.0, 2
    hung, _ = await hosts("node1", "node2")
    starting = asyncio.ensure_future(start(cluster, "k1", "node1 node2", "deaf"))
    (folder,) = await until("it starts on node1", lambda: kernel_folders(short / "node1"))
    await until("its record is written", lambda: (folder / "record.json").exists())
    hung.wire.freeze()
    await until("it starts on node2", lambda: kernel_folders(short / "node2"))
    hung.wire.thaw()
    await until("node1 is clean", lambda: not kernel_folders(short / "node1"))
    starting.cancel()
    await asyncio.wait({starting})
    await until("node2 is clean", lambda: not kernel_folders(short / "node2"))


# -- kernels that fail -------------------------------------------------------------------------------------------


async def test_a_kernel_that_fails_is_not_tried_elsewhere(cluster: Cluster, hosts: Hosts, short: Path) -> None:
    """A wrong interpreter fails at once with the kernel's own words, and leaves no count, no file, no process."""
    _, second = await hosts("node1", "node2")
    await start(cluster, "k0", "node1", pin="node1")
    began = time.monotonic()
    with pytest.raises(
        KernelStartFailed, match=r"^Host node1: The kernel exited with code 3.*output: no ipykernel"
    ) as failed:
        await start(cluster, "k1", "node1 node2", "say:no ipykernel", "leave:3")
    assert time.monotonic() - began < 5
    assert failed.value.exit_code == 3
    with pytest.raises(KernelStartFailed, match="Cannot execute '/no/python'"):
        await start(cluster, "k2", "node1", argv=["/no/python", "{connection_file}"])
    assert second.wire.connections == 0
    assert set(cluster.kernels) == {"k0"}
    assert cluster.count("node1") == 1
    assert cluster.host("node1").is_healthy(60)
    assert len(kernel_folders(short)) == 1


async def test_a_kernel_that_is_never_ready_is_ended(cluster: Cluster, hosts: Hosts, short: Path) -> None:
    """After the launch timeout the error has the kernel's output, and its process is gone."""
    await hosts("node1")
    path = short / "facts"
    await cluster.run(cluster.list_kernels("node1"))
    with pytest.raises(KernelStartTimeout, match=r"not ready within 4 s.*output: still loading"):
        await start(cluster, "k1", "node1", "say:still loading", f"facts:{path}", "deaf", launch_timeout=4.0)
    await gone(json.loads(path.read_text())["pid"])
    assert kernel_folders(short) == []
    assert not cluster.kernels


async def test_a_cancelled_start_leaves_nothing(cluster: Cluster, hosts: Hosts, short: Path, home: Path) -> None:
    """A client that gives up while its kernel starts leaves no process, file or count."""
    await hosts("node1")
    starting = asyncio.ensure_future(start(cluster, "k1", "node1", "deaf"))
    await until("it starts", lambda: kernel_folders(short))
    starting.cancel()
    await asyncio.wait({starting})
    await until("its files are gone", lambda: not kernel_folders(short))
    await until("its count is gone", lambda: not cluster.kernels and cluster.count("node1") == 0)
    assert list((home / "r").iterdir()) == []


async def test_a_kernel_is_started_once_at_a_time(cluster: Cluster, hosts: Hosts, short: Path) -> None:
    """A request that is sent again while its kernel starts is refused, and the start goes on undisturbed."""
    await hosts("node1", "node2")
    starting = asyncio.ensure_future(start(cluster, "k1", "node1 node2", "deaf"))
    await until("it starts", lambda: kernel_folders(short))
    with pytest.raises(RequestInvalid, match="being started already"):
        await start(cluster, "k1", "node1 node2")
    assert len(kernel_folders(short)) == 1
    assert not starting.done()
    starting.cancel()
    await asyncio.wait({starting})
    await until("it is gone", lambda: not kernel_folders(short))


async def test_time_that_other_hosts_took_is_told(cluster: Cluster, hosts: Hosts) -> None:
    """A kernel that had less than its launch timeout, since a host before it took its share, is not blamed alone."""
    first, _ = await hosts("node1", "node2")
    await start(cluster, "k0", "node2")
    first.wire.refuse()
    with pytest.raises(KernelStartTimeout, match=r"^Host node2.*Before that: Host node1: Cannot connect"):
        await start(cluster, "k1", "node1 node2", "deaf", launch_timeout=2.0)


# -- restart, release, adoption ----------------------------------------------------------------------------------


async def test_a_restart_keeps_host_and_endpoints(cluster: Cluster, hosts: Hosts) -> None:
    """A kernel that ended starts again where it was, at the same sockets, without taking a turn."""
    await hosts("node1", "node2")
    kernel = await start(cluster, "k1", "node1 node2")
    before, pid = kernel.connection_info, kernel.pid
    await cluster.run(kernel.stop())
    assert kernel.state is State.DEAD
    again = await start(cluster, "k1", "node1 node2")
    assert again is kernel
    assert (where(again), again.connection_info) == ("node1", before)
    assert again.pid != pid
    assert await answers(again)
    assert where(await start(cluster, "k2", "node1 node2")) == "node2"


async def test_a_restart_ends_what_still_runs(cluster: Cluster, hosts: Hosts) -> None:
    """A kernel that did not end when it was asked to is replaced all the same."""
    await hosts("node1")
    kernel = await start(cluster, "k1", "node1", "ignore:SIGTERM")
    pid = kernel.pid
    again = await start(cluster, "k1", "node1")
    await gone(pid)
    assert await answers(again)
    assert cluster.count("node1") == 1


async def test_a_restart_moves_on_if_its_host_is_gone(cluster: Cluster, hosts: Hosts) -> None:
    """In place as long as there is a place."""
    first, _ = await hosts("node1", "node2")
    kernel = await start(cluster, "k1", "node1 node2")
    first.wire.refuse()
    first.wire.cut()
    await until("the cut is seen", lambda: kernel.state is State.UNKNOWN)
    again = await start(cluster, "k1", "node1 node2")
    assert where(again) == "node2"
    assert await answers(again)


async def test_release_leaves_nothing(cluster: Cluster, hosts: Hosts, short: Path, home: Path) -> None:
    """No process, no file on the node or here, no count."""
    await hosts("node1")
    kernel = await start(cluster, "k1", "node1")
    pid = kernel.pid
    await cluster.run(cluster.release("k1"))
    assert not alive(pid)
    assert kernel_folders(short) == []
    assert list((home / "r").iterdir()) == []
    assert not cluster.kernels
    assert cluster.count("node1") == 0
    await cluster.run(cluster.release("k1"))


async def test_the_end_of_a_kernel_takes_nothing_from_the_next_one_of_its_id(cluster: Cluster, hosts: Hosts) -> None:
    """A kernel that is started while the last one of the same id is still being released has its endpoints and its count."""
    await hosts("node1")
    before = await start(cluster, "k1", "node1")
    for channel in CHANNELS:
        await client(before, channel)

    async def replace() -> RemoteKernel:
        cluster.release_soon("k1")
        await asyncio.sleep(0)  # the release is under way, and waits for the streams' ends
        return await cluster.start(request("k1", "node1"))

    after = await cluster.run(replace())
    await until("the first one is released", lambda: not cluster._releasing)
    assert after is not before
    assert await answers(after)
    assert (cluster.kernels, cluster.count("node1")) == ({"k1": after}, 1)


async def test_release_of_an_unreachable_kernel_ends_it_when_the_host_is_back(
    cluster: Cluster, hosts: Hosts, short: Path
) -> None:
    """A kernel that is deleted while its host is away does not live on there."""
    (sshd,) = await hosts("node1")
    kernel = await start(cluster, "k1", "node1")
    pid = kernel.pid
    sshd.wire.refuse()
    sshd.wire.cut()
    await until("the cut is seen", lambda: kernel.state is State.UNKNOWN)
    await cluster.run(cluster.release("k1"))
    assert alive(pid)
    await sshd.wire.open()
    await gone(pid)
    await until("its files are gone", lambda: not kernel_folders(short))


async def test_what_could_not_be_ended_is_ended_by_the_gateways_next_process(
    clusters: Callable[..., Cluster], hosts: Hosts, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that was deleted while its host was away ends although the gateway has been restarted; what is adopted lives."""
    (sshd,) = await hosts("node1")
    first = clusters()
    kernel, kept = await start(first, "k1", "node1"), await start(first, "k2", "node1")
    pid, attempt, info = kernel.pid, kept.attempt, kept.connection_info
    sshd.wire.refuse()
    sshd.wire.cut()
    await until("the cut is seen", lambda: kernel.state is State.UNKNOWN)
    await first.run(first.release("k1"))
    await until("it is written down", lambda: list((home / "r").glob("unended-*.json")))
    (path,) = (home / "r").glob("unended-*.json")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [row[:2] for row in json.loads(path.read_text())] == [["node1", "k1"]]
    await asyncio.to_thread(first.close)
    assert alive(pid)
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([*rows, ["node1", "k2", attempt, time.time()]]))
    await sshd.wire.open()
    monkeypatch.setattr(cluster_module, "TAKEN_UP_AFTER", 0.0)
    second = clusters()
    found = second.adopt("k2", "node1", attempt, info)
    second.serve_adopted()
    await gone(pid)
    await until("nothing is left to do", lambda: not path.exists())
    assert await answers(found)


async def test_another_process_of_the_gateway_adopts(clusters: Callable[..., Cluster], hosts: Hosts) -> None:
    """After a restart of the gateway the kernel is found at the same sockets, and answers."""
    await hosts("node1")
    first = clusters()
    kernel = await start(first, "k1", "node1")
    info, attempt, pid = kernel.connection_info, kernel.attempt, kernel.pid
    await asyncio.to_thread(first.close)
    second = clusters()
    found = second.adopt("k1", "node1", attempt, info)
    second.serve_adopted()
    assert found.connection_info == info
    await until("it is back", lambda: found.state is State.ALIVE)
    assert await answers(found)
    assert (found.state, found.pid) == (State.ALIVE, pid)
    assert second.count("node1") == 1
    await second.run(second.release("k1"))
    await gone(pid)


@pytest.mark.parametrize("endpoints", ["ipc", "tcp"])
async def test_adoption_does_not_wait_for_the_clusters_thread(
    clusters: Callable[..., Cluster], hosts: Hosts, settings: Distributed, endpoints: str
) -> None:
    """A kernel is taken over while that thread does something else, and answers at its earlier endpoints when there is time."""
    settings.endpoints = endpoints
    await hosts("node1")
    first = clusters()
    kernel = await start(first, "k1", "node1")
    info, attempt, pid = kernel.connection_info, kernel.attempt, kernel.pid
    await asyncio.to_thread(first.close)
    second = clusters()
    has_time = threading.Event()
    second.call_soon(has_time.wait, DEADLINE)
    try:
        found = second.adopt("k1", "node1", attempt, info)
        assert (found.state, found.connection_info) == (State.UNKNOWN, info)
        second.serve_adopted()
    finally:
        has_time.set()
    await until("it is back", lambda: found.state is State.ALIVE)
    assert await answers(found)
    assert found.pid == pid


async def test_hosts_are_connected_to_together_when_all_kernels_are_adopted(
    clusters: Callable[..., Cluster], hosts: Hosts
) -> None:
    """No host is logged in to while kernels are still being adopted, and none of them waits for another host's login."""
    slow, quick = await hosts("node1", "node2")
    first = clusters()
    kernels = [await start(first, f"k{number}", host) for number, host in enumerate(["node1", "node2", "node2"])]
    kept = [(kernel.id, where(kernel), kernel.attempt, kernel.connection_info) for kernel in kernels]
    await asyncio.to_thread(first.close)
    slow.patience.clear()
    before = slow.wire.connections, quick.wire.connections
    second = clusters()
    found = [second.adopt(*each) for each in kept]
    await second.run(asyncio.sleep(0))
    assert (slow.wire.connections, quick.wire.connections) == before
    assert list(second.kernels.values()) == found
    second.serve_adopted()
    await until("those of the other host are back", lambda: all(k.state is State.ALIVE for k in found[1:]))
    assert found[0].state is State.UNKNOWN
    slow.patience.set()
    await until("all are back", lambda: all(k.state is State.ALIVE for k in found))


async def test_an_adoption_that_takes_long_is_no_outage(
    clusters: Callable[..., Cluster], hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host is silent, and away, from when it was first to answer, and not while other kernels are still being adopted."""
    monkeypatch.setattr(node_module, "_QUIET", 0.05)
    (sshd,) = await hosts("node1")
    first = clusters()
    kernel = await start(first, "k1", "node1")
    attempt, info = kernel.attempt, kernel.connection_info
    await asyncio.to_thread(first.close)
    sshd.patience.clear()
    second = clusters()
    found = second.adopt("k1", "node1", attempt, info)
    node = await until("it is taken in", lambda: found.node)
    late = time.monotonic() + 0.1
    await until("more time is over than people are told of", lambda: time.monotonic() > late)
    assert found.out_of_reach_since is None
    adopted_at, asked_at = node.disconnected_at, time.time()
    second.serve_adopted()
    since = await until("its silence is told", lambda: found.out_of_reach_since)
    assert since >= asked_at - 0.02
    assert node.disconnected_at > adopted_at + 0.05
    sshd.patience.set()
    await until("it is back", lambda: found.state is State.ALIVE)


async def test_a_restart_waits_for_the_first_login_to_the_kernels_host(
    clusters: Callable[..., Cluster], hosts: Hosts
) -> None:
    """A kernel that is restarted as soon as its gateway is up again stays on its host, although that has not answered yet."""
    sshd, _ = await hosts("node1", "node2")
    first = clusters()
    kernel = await start(first, "k1", "node1 node2")
    attempt, info, pid = kernel.attempt, kernel.connection_info, kernel.pid
    await asyncio.to_thread(first.close)
    sshd.patience.clear()
    asked = len(sshd.users)
    second = clusters()
    found = second.adopt("k1", "node1", attempt, info)
    second.serve_adopted()
    restarting = asyncio.ensure_future(start(second, "k1", "node1 node2"))
    await until("it is logged in to", lambda: len(sshd.users) > asked)
    assert not found.lost
    sshd.patience.set()
    assert await restarting is found
    assert where(found) == "node1"
    assert not found.lost
    await gone(pid)
    assert await answers(found)


async def test_an_adapter_that_says_nothing_more_leaves_no_adopted_kernel_waiting(
    clusters: Callable[..., Cluster], hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adopted kernels are connected to after a while in any case."""
    monkeypatch.setattr(cluster_module, "_ADOPTED_LONG", 0.1)
    await hosts("node1")
    first = clusters()
    kernel = await start(first, "k1", "node1")
    attempt, info = kernel.attempt, kernel.connection_info
    await asyncio.to_thread(first.close)
    second = clusters()
    found = second.adopt("k1", "node1", attempt, info)
    await until("it is back", lambda: found.state is State.ALIVE)
    assert await answers(found)


async def test_sockets_that_cannot_be_made_after_an_adoption_are_made_later(
    clusters: Callable[..., Cluster], hosts: Hosts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A kernel whose sockets fail at first, for a full disk say, is not forgotten, and answers as soon as they can be had."""
    monkeypatch.setattr(cluster_module, "_SOCKETS_RETRY", 0.1)
    await hosts("node1")
    first = clusters()
    kernel = await start(first, "k1", "node1")
    attempt, info = kernel.attempt, kernel.connection_info
    await asyncio.to_thread(first.close)
    folder = Path(info["ip"]).parent
    folder.write_text("in the way")
    second = clusters()
    found = second.adopt("k1", "node1", attempt, info)
    second.serve_adopted()
    await until("it is told", lambda: "cannot make its sockets, and tries again" in caplog.text)
    assert found.connection_info == info
    folder.unlink()
    await until("they are there", lambda: Path(f"{info['ip']}-5").exists())
    assert await answers(found)


def adopt_unseen(cluster: Cluster, kernel_id: str) -> RemoteKernel:
    """Have *cluster* adopt a kernel on node1 that has never been started."""
    info: dict[str, Any] = {"transport": "ipc", "ip": str(cluster.prefix(kernel_id)), "key": "k"}
    info |= {f"{channel}_port": port for port, channel in enumerate(CHANNELS, 1)}
    return cluster.adopt(kernel_id, "node1", "a1", info)


async def test_the_folder_of_adopted_kernels_sockets_is_made_again(
    clusters: Callable[..., Cluster], hosts: Hosts, settings: Distributed
) -> None:
    """Where it was removed between the adoption and the making of the sockets they are made all the same."""
    (sshd,) = await hosts("node1")
    sshd.patience.clear()
    cluster = clusters()
    adopted = adopt_unseen(cluster, "k1")
    shutil.rmtree(settings.runtime_dir)
    cluster.serve_adopted()
    await until("they are there", lambda: Path(f"{adopted.connection_info['ip']}-5").exists())
    assert stat.S_IMODE(Path(settings.runtime_dir).stat().st_mode) == 0o700
    sshd.patience.set()


async def test_no_adopted_kernels_sockets_are_made_in_anothers_folder(
    clusters: Callable[..., Cluster],
    hosts: Hosts,
    settings: Distributed,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A folder that is not private any more gets no sockets; they are made when it is mended."""
    monkeypatch.setattr(cluster_module, "_SOCKETS_RETRY", 0.05)
    (sshd,) = await hosts("node1")
    sshd.patience.clear()
    cluster = clusters()
    adopted = adopt_unseen(cluster, "k1")
    folder = Path(settings.runtime_dir)
    folder.chmod(0o777)
    cluster.serve_adopted()
    await until("it is told", lambda: "is not a private folder of ours" in caplog.text)
    assert not list(folder.rglob("c-*"))
    folder.chmod(0o700)
    await until("they are there", lambda: Path(f"{adopted.connection_info['ip']}-5").exists())
    sshd.patience.set()


async def test_what_one_kernels_sockets_raise_is_no_other_kernels(
    clusters: Callable[..., Cluster], hosts: Hosts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault of ours in the making of one adopted kernel's sockets is told, and the next kernel's are made."""
    (sshd,) = await hosts("node1")
    sshd.patience.clear()
    cluster = clusters()
    faulty, sound = adopt_unseen(cluster, "k1"), adopt_unseen(cluster, "k2")

    async def fail() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(faulty.endpoints, "serve", fail)
    cluster.serve_adopted()
    await until("the other's are there", lambda: Path(f"{sound.connection_info['ip']}-5").exists())
    assert "RuntimeError: a bug" in caplog.text
    sshd.patience.set()


async def test_a_gateway_that_ends_right_after_its_start_ends_no_adopted_kernel(
    clusters: Callable[..., Cluster], hosts: Hosts
) -> None:
    """What was adopted is its adapter's at once, and is not taken for a start that nobody has heard of."""
    await hosts("node1")
    first = clusters()
    kernel = await start(first, "k1", "node1")
    attempt, info, pid = kernel.attempt, kernel.connection_info, kernel.pid
    await asyncio.to_thread(first.close)
    second = clusters()
    second.adopt("k1", "node1", attempt, info, on_exit=lambda _: None)
    await asyncio.to_thread(second.close, end_untaken=True)
    third = clusters()
    found = third.adopt("k1", "node1", attempt, info)
    third.serve_adopted()
    await until("it is back", lambda: found.state is State.ALIVE)
    assert await answers(found)
    assert found.pid == pid


async def test_a_gateway_that_ends_while_it_serves_what_it_adopted_leaves_no_socket(
    clusters: Callable[..., Cluster], hosts: Hosts, settings: Distributed
) -> None:
    """However many adopted kernels' sockets are still to be made, none is made, or left, once the gateway ends."""
    (sshd,) = await hosts("node1")
    sshd.patience.clear()
    cluster = clusters()
    for number in range(50):
        adopt_unseen(cluster, f"k{number}")
    cluster.serve_adopted()
    await asyncio.to_thread(cluster.close)
    assert list(Path(settings.runtime_dir).rglob("c-*")) == []
    sshd.patience.set()


async def test_a_kernel_without_sockets_is_not_adopted(
    clusters: Callable[..., Cluster], settings: Distributed, home: Path
) -> None:
    """Where a kernel's sockets can't be made the adapter hears it at once, and nothing of the kernel stays."""
    settings.endpoints = "ipc"
    settings.runtime_dir = str(home / ("long" * 30))
    cluster = clusters()
    with pytest.raises(OSError, match="too long"):
        cluster.adopt("k1", "node1", "a1", {"key": "k"})
    await cluster.run(asyncio.sleep(0))
    assert not cluster.kernels
    assert list(Path(settings.runtime_dir).iterdir()) == []


async def test_loopback_ports_stand_over_restarts(
    clusters: Callable[..., Cluster], hosts: Hosts, settings: Distributed
) -> None:
    """A kernel keeps its ports over its own restart and the gateway's, but for one that somebody else has by then."""
    settings.endpoints = "tcp"
    await hosts("node1")
    first = clusters()
    kernel = await start(first, "k1", "node1")
    info = kernel.connection_info
    await first.run(kernel.stop())
    assert (await start(first, "k1", "node1")).connection_info == info
    attempt = kernel.attempt
    await asyncio.to_thread(first.close)
    taken = await asyncio.start_server(lambda *_: None, info["ip"], info["hb_port"])
    second = clusters()
    found = second.adopt("k1", "node1", attempt, info)
    second.serve_adopted()
    assert {name for name, value in found.connection_info.items() if info[name] != value} == {"hb_port"}
    assert await answers(found)
    taken.close()
    await second.run(second.release("k1"))


async def test_adopting_what_has_ended_is_told(clusters: Callable[..., Cluster], hosts: Hosts) -> None:
    """A kernel that died while no gateway was there is dead, not unknown, as soon as its host answers."""
    await hosts("node1")
    first = clusters()
    kernel = await start(first, "k1", "node1")
    attempt, info = kernel.attempt, kernel.connection_info
    await asyncio.to_thread(first.close)
    os.kill(kernel.pid, 9)
    second = clusters()
    told: list[str] = []
    for kernel_id in ("k1", "k2"):
        second.adopt(kernel_id, "node1", attempt, info, on_exit=lambda kernel: told.append(kernel.id))
    second.serve_adopted()
    await until("both are known to be dead", lambda: sorted(told) == ["k1", "k2"])
    assert {kernel.state for kernel in second.kernels.values()} == {State.DEAD}


async def test_orphans_are_listed_and_ended(clusters: Callable[..., Cluster], hosts: Hosts, short: Path) -> None:
    """What a gateway left behind is seen by the next one, which may end it; a host that is away is an error in the list."""
    _, away = await hosts("node1", "node2")
    away.wire.refuse()
    first = clusters()
    pid = (await start(first, "k1", "node1")).pid
    await asyncio.to_thread(first.close)
    second = clusters("second")

    async def listed() -> bool:
        found = await second.run(second.list_kernels("node1,node2"))
        assert isinstance(found["node2"], HostUnreachable)
        assert isinstance(found["node1"], list)
        (kernel,) = found["node1"]
        assert (kernel.kernel, kernel.pid, kernel.owner) == ("k1", pid, "tests")
        return kernel.claimed is False

    async def seen() -> None:
        while not await listed():
            pass

    await asyncio.wait_for(seen(), DEADLINE)
    await second.run(second.end("node1", "k1"))
    assert not alive(pid)
    assert kernel_folders(short) == []
    with pytest.raises(KernelGone):
        await second.run(second.end("node1", "k1"))


async def test_localhost_is_a_host_like_any_other(cluster: Cluster, settings: Distributed, home: Path) -> None:
    """The default of remote_hosts works without SSH, and its agent coming back after a crash loses no kernel."""
    kernel = await start(cluster, "k1", "localhost")
    assert await answers(kernel)
    found = await cluster.run(cluster.list_kernels("localhost"))
    assert isinstance(found["localhost"], list)
    (path,) = home.glob("eg-distributed/*/*.sock")
    visitor = await Visitor.at(LocalLink(str(path)), "operator", "o")
    os.kill((await visitor.request("ping"))["pid"], 9)
    visitor.close()
    await until("it is connected again", lambda: kernel.node is not None and kernel.node.connections == 2)
    await until("the kernel is known again", lambda: kernel.state is State.ALIVE)
    assert await answers(kernel)


# -- the rest ----------------------------------------------------------------------------------------------------


async def test_the_runtime_folder_is_private(cluster: Cluster, settings: Distributed, home: Path) -> None:
    """Sockets of kernels are in a folder of ours alone; one that others may enter is refused."""
    kernel = await start(cluster, "k1", "localhost")
    folder = Path(kernel.connection_info["ip"]).parent
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE((home / "r").stat().st_mode) == 0o700
    (home / "open").mkdir()
    (home / "open").chmod(0o755)
    settings.runtime_dir = str(home / "open")
    other = Cluster(settings, "other")
    with pytest.raises(DistributedError, match="runtime_dir"):
        other.prefix("k1")
    await asyncio.to_thread(other.close)


async def test_a_runtime_folder_that_is_anothers_meanwhile_is_refused(
    clusters: Callable[..., Cluster], settings: Distributed, home: Path
) -> None:
    """Owner and mode count at each start: a folder that was removed is made again, and one that others may enter is refused."""
    cluster = clusters()
    folder = home / "r"
    await start(cluster, "k1", "localhost")
    shutil.rmtree(folder)
    kernel = await start(cluster, "k2", "localhost")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o755)
    with pytest.raises(
        DistributedError, match=r"is not a private folder of ours\. Remove it, or set Distributed\.runtime_dir"
    ):
        await start(cluster, "k3", "localhost")
    await cluster.run(kernel.stop())
    with pytest.raises(DistributedError, match="is not a private folder of ours"):
        await start(cluster, "k2", "localhost")
    folder.chmod(0o700)
    assert await answers(await start(cluster, "k2", "localhost"))


async def test_closing_ends_starts_that_are_under_way(
    clusters: Callable[..., Cluster], hosts: Hosts, short: Path
) -> None:
    """A gateway that stops while a kernel starts leaves nothing of it: nobody would know of the kernel."""
    await hosts("node1")
    cluster = clusters()
    starting = asyncio.ensure_future(start(cluster, "k1", "node1", f"facts:{short / 'facts'}", "deaf"))
    pid = (await written(short / "facts"))["pid"]
    await asyncio.to_thread(cluster.close)
    assert kernel_folders(short) == []
    assert not alive(pid)
    await asyncio.wait({starting}, timeout=DEADLINE)
    assert starting.cancelled()


async def test_closing_ends_what_no_adapter_has_heard_of(clusters: Callable[..., Cluster], hosts: Hosts) -> None:
    """A start that succeeded when its gateway had stopped listening is undone; kernels that were taken over live on."""
    await hosts("node1")
    cluster = clusters()
    taken, untaken = await start(cluster, "k1", "node1"), await start(cluster, "k2", "node1")
    taken.on_exit = lambda kernel: None
    pids = taken.pid, untaken.pid
    await asyncio.to_thread(lambda: cluster.close(end_untaken=True))
    assert [alive(pid) for pid in pids] == [True, False]


async def test_closing_twice_is_closing(clusters: Callable[..., Cluster]) -> None:
    """The second close does nothing, and kernels live on after the first."""
    cluster = clusters()
    pid = (await start(cluster, "k1", "localhost")).pid
    await asyncio.to_thread(cluster.close)
    await asyncio.to_thread(cluster.close)
    assert alive(pid)
    assert not cluster._thread.is_alive()

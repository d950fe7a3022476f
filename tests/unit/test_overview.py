"""What operators see of hosts and kernels."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from eg_distributed.cluster import Cluster
from eg_distributed.overview import hosts_seen, kernels_seen, kernels_written, unended_on
from eg_distributed.protocol import ListKernels
from eg_distributed.settings import Distributed
from eg_distributed.turns import Turns
from eg_distributed.wire import Message, encode
from tests.until import until

from .clusters import start
from .conftest import Hosts
from .malformed_agent import MalformedAgent, honest, lead_to

SCHEMA = json.loads((Path(__file__).resolve().parents[2] / "docs" / "rest.schema.json").read_text("utf-8"))


def described(what: str, answer: dict[str, Any]) -> dict[str, Any]:
    """Return *answer*, which is as docs/rest.schema.json describes it."""
    jsonschema.validate(answer, {**SCHEMA, "oneOf": [{"$ref": f"#/$defs/{what}"}]})
    return answer


async def hosts_of(cluster: Cluster, *names: str, seconds: float | None = None) -> dict[str, dict[str, Any]]:
    found = described("hosts", {"hosts": await cluster.run(hosts_seen(cluster, names, seconds))})["hosts"]
    return {host["host"]: host for host in found}


async def kernels_of(
    cluster: Cluster, *names: str, seconds: float | None = None, orphans: bool = False
) -> dict[str, Any]:
    return described("kernels", await cluster.run(kernels_seen(cluster, names, seconds, orphans=orphans)))


async def test_hosts_and_kernels(cluster: Cluster, clusters: Callable[..., Cluster], hosts: Hosts) -> None:
    """Kernels of all gateways are listed and counted, ours besides."""
    await hosts("node1", "node2")
    await start(cluster, "k1", "node1")
    await start(clusters("other"), "k2", "node1")
    found = (await kernels_of(cluster, "node1", "node2"))["kernels"]
    assert {(kernel["host"], kernel["kernel"], kernel["owner"]) for kernel in found} == {
        ("node1", "k1", "tests"),
        ("node1", "k2", "other"),
    }
    seen = await hosts_of(cluster, "node1", "node2")
    assert [(host["state"], host["kernels"], host["own_kernels"]) for host in seen.values()] == [
        ("reachable", 2, 1),
        ("reachable", 0, 0),
    ]


async def test_a_machine_with_two_names_is_listed_once(cluster: Cluster, hosts: Hosts, settings: Distributed) -> None:
    """Its kernels are listed by the first name that answers; the other one says whose it is, and has no kernels of its own."""
    first, _ = await hosts("node1", "node2")
    await first.be_called("alias", settings)
    await start(cluster, "k1", "alias")
    names = ("node1", "alias", "node2")
    found = await kernels_of(cluster, *names)
    assert [(kernel["host"], kernel["kernel"]) for kernel in found["kernels"]] == [("node1", "k1")]
    seen = await hosts_of(cluster, *names)
    assert {name: host["same_as"] for name, host in seen.items()} == {"node1": None, "alias": "node1", "node2": None}
    first.wire.refuse()
    first.wire.cut()
    await until("node1 is lost", lambda: not cluster.host("node1").node.connected.is_set())
    found = await kernels_of(cluster, *names)
    assert [(kernel["host"], kernel["kernel"]) for kernel in found["kernels"]] == [("alias", "k1")]
    assert list(found["errors"]) == ["node1"]


async def test_a_silent_host_holds_up_no_other(cluster: Cluster, hosts: Hosts) -> None:
    """It has as many seconds as are given, and is told of with cause and remedy; the others are listed."""
    silent, _ = await hosts("node1", "node2")
    await start(cluster, "k1", "node1")
    await start(cluster, "k2", "node2")
    silent.wire.freeze()
    asked = asyncio.ensure_future(kernels_of(cluster, "node1", "node2", seconds=0.3))
    found = await asyncio.wait_for(asked, 3)
    assert [kernel["kernel"] for kernel in found["kernels"]] == ["k2"]
    assert "node1" in found["errors"]["node1"]
    assert "no answer within 0.3 s" in found["errors"]["node1"].lower()
    seen = await hosts_of(cluster, "node1", "node2", seconds=0.3)
    assert [(host["state"], host["kernels"]) for host in seen.values()] == [("unreachable", None), ("reachable", 1)]


async def test_a_host_that_failed_just_now_is_not_tried_again(cluster: Cluster, hosts: Hosts) -> None:
    """A page that asks every second is no login every second: its error is the answer for `retry_after`."""
    (bad,) = await hosts("node1")
    bad.command = "exit 127"
    first = (await hosts_of(cluster, "node1"))["node1"]["error"]
    connections = bad.wire.connections
    assert (await hosts_of(cluster, "node1"))["node1"]["error"] == first
    assert bad.wire.connections == connections
    cluster.settings.retry_after = 0
    bad.command = "exec {command}"
    assert (await hosts_of(cluster, "node1"))["node1"]["state"] == "reachable"


@pytest.mark.parametrize("kind", ["gone", "taken", "start"])
async def test_a_node_that_answers_nonsense_costs_its_own_answer(cluster: Cluster, hosts: Hosts, kind: str) -> None:
    """What is an error of a kernel elsewhere is that host's here, and the others are listed."""
    bad, _ = await hosts("node1", "node2")
    await start(cluster, "k1", "node2")
    agent = MalformedAgent()
    path = bad.folder / "sock"
    lead_to(bad, path)

    def answers(request: Message) -> list[bytes]:
        if request["method"] == ListKernels.METHOD:
            return [encode({"id": request["id"], "error": "no luck", "kind": kind})]
        return honest(request)

    agent.answers = answers
    async with agent.listening(path):
        found = await kernels_of(cluster, "node1", "node2")
        assert [kernel["kernel"] for kernel in found["kernels"]] == ["k1"]
        assert "no luck" in found["errors"]["node1"]
        seen = await hosts_of(cluster, "node1", "node2")
        assert [host["state"] for host in seen.values()] == ["unreachable", "reachable"]


async def test_a_programs_look_stands_behind_starts(cluster: Cluster, hosts: Hosts) -> None:
    """Where logins take turns, a user's start goes first, also while a page asks a host that hangs."""
    silent, _ = await hosts("node1", "node2")
    cluster._turns = Turns(most=1, seconds=60)
    silent.wire.freeze()
    asked = asyncio.ensure_future(kernels_of(cluster, "node1", seconds=30))
    await until("it is asked", lambda: cluster.host("node1").node._connecting is not None)
    await start(cluster, "k1", "node2")
    assert not asked.done()
    silent.wire.thaw()
    assert (await asked)["errors"] == {}


async def test_orphans(cluster: Cluster, clusters: Callable[..., Cluster], hosts: Hosts, settings: Distributed) -> None:
    """Those of a gateway that is gone, and with them what could not be ended yet."""
    await hosts("node1")
    gone = clusters("gone")
    await start(cluster, "k1", "node1")
    await start(gone, "k2", "node1")
    await asyncio.to_thread(gone.close)

    async def orphans() -> list[str]:
        return [kernel["kernel"] for kernel in (await kernels_of(cluster, "node1", orphans=True))["kernels"]]

    await until("k2 is an orphan", lambda: _is(orphans, ["k2"]), pause=0.05)
    assert (await hosts_of(cluster, "node1"))["node1"]["orphans"] == 1
    seen = await kernels_of(cluster, "node1", orphans=True)
    assert described("kernels", kernels_written(seen, unended_on(settings, None)))["unended"] == []


async def _is(ask: Callable[[], Any], wanted: object) -> bool:
    return bool(await ask() == wanted)

"""What a server tells programs of its hosts: REST, and its `/metrics`."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.until import block_until

from .served import Served
from .site import NAMES, Site

SCHEMA = json.loads((Path(__file__).resolve().parents[2] / "docs" / "rest.schema.json").read_text("utf-8"))
API = "/api/distributed"
DENYING = """
from jupyter_server.auth import Authorizer

class Denying(Authorizer):
    def is_authorized(self, handler, user, action, resource):
        return resource != "distributed"
"""
QUICK = {"EG_DISTRIBUTED_REQUEST_TIMEOUT": "1", "EG_DISTRIBUTED_KEEPALIVE_INTERVAL": "1"}


@pytest.fixture(scope="module")
def served(site: Site) -> Iterator[Served]:
    """A server with a token; a kernelspec of its names a fourth host, which there is not, and spells one of the others anew."""
    site.kernelspec("elsewhere", config={"remote_hosts": "no-such-host.invalid,NODE1."})
    root = site.work / "told"
    root.mkdir()
    # Sockets in a folder of its own: what could not be ended is looked for in those of all gateways of this user.
    more = {**QUICK, "EG_DISTRIBUTED_ORPHAN_TIMEOUT": "1", "EG_DISTRIBUTED_RUNTIME_DIR": str(site.folder / "r")}
    made = Served(site, root, {"IdentityProvider.token": "s3cr3t"}, **more)
    yield made
    made.end()
    shutil.rmtree(site.home / "data" / "kernels" / "elsewhere")  # other servers of this user would offer its hosts


def answer(served: Served, what: str, **asked: str | float) -> dict[str, Any]:
    """Return what is answered, which is as docs/rest.schema.json describes it."""
    response = served.rest.get(f"{API}/{what}", params=asked)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    told: dict[str, Any] = response.json()
    jsonschema.validate(told, {**SCHEMA, "oneOf": [{"$ref": f"#/$defs/{what}"}]})
    return told


def test_hosts_are_those_of_settings_and_kernelspecs(served: Served) -> None:
    """Each is told of, with what stands between it and a kernel, also before the first kernel."""
    hosts = {host["host"]: host for host in answer(served, "hosts")["hosts"]}
    assert hosts.keys() == {*NAMES, "no-such-host.invalid"}
    assert all(hosts[name]["state"] == "reachable" for name in NAMES)
    assert "no-such-host.invalid" in hosts["no-such-host.invalid"]["error"]


def test_what_is_the_servers_own_may_be_said(served: Served) -> None:
    """A monitor that is not to count as activity says so, as to the server's own handlers; a name may be given repeatedly."""
    assert len(answer(served, "hosts", no_track_activity=1, hosts="node1")["hosts"]) == 1
    response = served.rest.get(f"{API}/hosts", params=[("hosts", "node1"), ("hosts", "node2")])
    assert [host["host"] for host in response.json()["hosts"]] == ["node1", "node2"]


@pytest.mark.long
def test_a_setting_that_is_wrong(site: Site) -> None:
    """It is the server's fault and not the request's, and is named."""
    root = site.work / "wrong"
    root.mkdir()
    made = Served(site, root, EG_REMOTE_HOSTS="node1:22")
    try:
        response = made.rest.get(f"{API}/hosts")
        assert response.status_code == 500
        assert "remote_hosts is wrong" in response.json()["message"]
        assert "has a port" in response.json()["message"]
    finally:
        made.end()


def test_kernels(served: Served) -> None:
    """A kernel of the server's is listed with its host; orphans are none of it."""
    with served.notebook() as notebook:
        node = notebook.run("import os; print(os.environ['NODE'])")
        told = answer(served, "kernels")
        (kernel,) = told["kernels"]
        assert (kernel["kernel"], kernel["host"], kernel["state"]) == (notebook.kernel, node, "running")
        assert list(told["errors"]) == ["no-such-host.invalid"]
        assert answer(served, "kernels", hosts=node)["kernels"] == [kernel]
        orphans = answer(served, "kernels", orphans=1, hosts=node)
        assert (orphans["kernels"], orphans["unended"], orphans["errors"]) == ([], [], {})
        (host,) = answer(served, "hosts", hosts=node.upper())["hosts"]
        assert (host["kernels"], host["own_kernels"], host["orphans"]) == (1, 1, 0)


def test_a_silent_host_holds_up_nobody(site: Site, served: Served) -> None:
    """The answer is there in the time that was given, with the other hosts in it, and other requests are answered meanwhile."""
    answer(served, "hosts")
    site.freeze("node2")
    try:
        began = time.monotonic()
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(answer, served, "kernels", seconds=2, hosts=",".join(NAMES))
            with httpx.Client(base_url=served.url, headers=served.headers) as other:
                assert other.get("/api/status").status_code == 200
                assert not asked.done()
        told = asked.result()
        assert time.monotonic() - began < 4
        assert "node2" in told["errors"]["node2"]
        assert list(told["errors"]) == ["node2"]
    finally:
        site.thaw("node2")
    block_until("node2 is back", lambda: not answer(served, "kernels", hosts="node2")["errors"])


@pytest.mark.parametrize(
    ("what", "asked", "words"),
    [
        ("hosts", {"hosts": "intranet.example.org"}, "'intranet.example.org' is none of this server's hosts"),
        ("hosts", {"hosts": "-oProxyCommand=touch"}, "is no host name"),
        ("hosts", {"hosts": "50%d"}, "'50%d' is none of this server's hosts"),
        ("hosts", {"hosts": ","}, "No host is named"),
        ("kernels", {"hosts": "node1:22"}, "has a port"),
        ("kernels", {"seconds": "soon"}, "Seconds='soon' cannot be waited for"),
        ("kernels", {"seconds": "nan"}, "Seconds='nan' cannot be waited for"),
        ("kernels", {"seconds": "1e9"}, "Say 0.1 to 60"),
        ("kernels", {"orphans": "perhaps"}, "Orphans='perhaps' is neither yes nor no"),
        ("hosts", {"orphans": "1"}, "'orphans' is unknown here"),
    ],
)
def test_what_is_asked_wrongly(served: Served, what: str, asked: dict[str, str], words: str) -> None:
    """It is 400, with what is wrong and what would be right."""
    response = served.rest.get(f"{API}/{what}", params=asked)
    assert response.status_code == 400
    assert words in response.json()["message"]


def test_who_has_no_token_learns_nothing(served: Served) -> None:
    """The server's own authentication stands before both, and before /metrics where the server has it so."""
    for path in (f"{API}/hosts", f"{API}/kernels", "/metrics"):
        assert httpx.get(served.url + path).status_code == 403


@pytest.mark.long
def test_an_authorizer_may_refuse(site: Site) -> None:
    """It is asked for the resource `distributed`, and what it refuses is 403."""
    (site.folder / "denying.py").write_text(DENYING)
    root = site.work / "denied"
    root.mkdir()
    made = Served(site, root, {"ServerApp.authorizer_class": "denying.Denying"}, PYTHONPATH=str(site.folder))
    try:
        for what in ("hosts", "kernels"):
            assert made.rest.get(f"{API}/{what}").status_code == 403
        assert made.rest.get("/api/kernels").status_code == 200
    finally:
        made.end()


def sampled(served: Served) -> dict[tuple[str, str], float]:
    """Return our samples by name and host, those of one name and host together."""
    found: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(served.rest.get("/metrics").text):
        for sample in family.samples:
            key = sample.name.removeprefix("jupyter_distributed_"), sample.labels.get("host", "")
            if key[0] != sample.name:
                found[key] = found.get(key, 0) + sample.value
    return found


def test_the_servers_metrics_have_ours(served: Served) -> None:
    """They are beside its own, and follow what happens."""
    before = sampled(served)
    with served.notebook() as notebook:
        node = notebook.run("import os; print(os.environ['NODE'])")
        now = sampled(served)
        assert now["kernels", node] == 1
        assert now["host_unreachable", node] == 0
        assert now["start_seconds_count", node] == before.get(("start_seconds_count", node), 0) + 1
        relayed = now["relayed_bytes_total", node]
        notebook.run("print('x' * 50_000)")
        block_until("it is counted", lambda: sampled(served)["relayed_bytes_total", node] > relayed + 50_000)
    assert "http_request_duration_seconds" in served.rest.get("/metrics").text

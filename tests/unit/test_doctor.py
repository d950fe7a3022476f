"""`jupyter distributed doctor` on hosts that are well, and on hosts with one fault each."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncssh
import pytest

from eg_distributed.app import doctor, main
from eg_distributed.app.doctor import Examined, Step, examine
from eg_distributed.cluster import Cluster
from eg_distributed.link import agent_archive
from eg_distributed.settings import Distributed
from tests.unit.clusters import kernel_folders, request
from tests.unit.conftest import Hosts
from tests.unit.ssh_server import USER
from tests.until import until


async def examined(cluster: Cluster, host: str = "node1") -> Examined:
    return await asyncio.wait_for(cluster.run(examine(host, cluster)), 60)


def last(found: Examined) -> Step:
    """Return the step that failed, which is the last one."""
    assert not found.usable
    assert [step.status for step in found.steps[:-1] if step.status == "failed"] == []
    return found.steps[-1]


@pytest.fixture
def quiet() -> Iterator[int]:
    """The port of a host that accepts and says nothing."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        yield server.getsockname()[1]


async def test_a_host_that_is_well_passes_every_step(cluster: Cluster, hosts: Hosts, short: Path, home: Path) -> None:
    """Each step says what it found, a kernel was started and ended, and nothing of it stays."""
    (sshd,) = await hosts("node1")
    found = await examined(cluster)
    said = {step.name: step.said for step in found.steps}
    assert (found.usable, found.mend) == (True, "")
    assert {step.status for step in found.steps} == {"ok"}
    assert said["config"].startswith(f"{USER}@127.0.0.1:{sshd.wire.port}, as read by ")
    assert said["name"] == "127.0.0.1"
    assert said["banner"].startswith("SSH-2.0-")
    assert said["key"] == f"trusted: ssh-ed25519 {sshd.key.convert_to_public().get_fingerprint()}"
    assert said["login"] == f"as {USER}"
    assert said["shell"] == "quiet"
    assert str(sshd.folder) in said["place"]
    assert said["locks"] == "work"
    assert said["clock"] == "differs by less than 5 s"
    assert all(step.seconds is not None for step in found.steps)
    assert kernel_folders(short) == []
    assert cluster.kernels == {}


async def test_ten_lines_are_enough_for_people(cluster: Cluster, hosts: Hosts) -> None:
    """A host that is well takes ten lines, with its name in the first."""
    await hosts("node1")
    lines = doctor._text(await examined(cluster)).splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("node1: usable (")
    assert all(line.startswith("  ok ") for line in lines[1:])


async def test_what_a_login_shell_prints_is_told(cluster: Cluster, hosts: Hosts) -> None:
    """Noise is no fault, and said with its size and its end."""
    (sshd,) = await hosts("node1")
    sshd.command = "printf 'Welcome to node1\\nMaintenance on Sunday\\n'; exec {command}"
    found = await examined(cluster)
    shell = next(step for step in found.steps if step.name == "shell")
    assert (shell.status, shell.said) == (
        "ok",
        "prints 39 bytes first, at last 'Welcome to node1\\nMaintenance on Sunday'",
    )
    assert found.usable


async def test_a_port_that_refuses_is_the_first_thing_to_mend(cluster: Cluster, hosts: Hosts) -> None:
    """Nothing behind the TCP connection is tried where there is none."""
    (sshd,) = await hosts("node1")
    sshd.wire.refuse()
    found = await examined(cluster)
    assert [step.name for step in found.steps] == ["config", "name", "tcp"]
    assert last(found).said == f"cannot connect to port {sshd.wire.port} (Connection refused)"
    assert found.mend == "tcp: check that sshd runs there and its port is open"


async def test_a_port_that_says_nothing_is_told_from_one_that_refuses(
    cluster: Cluster, settings: Distributed, quiet: int
) -> None:
    """A port that accepts without a banner costs its deadline, and the step's name says what was waited for."""
    Path(settings.ssh_config).write_text(f"Host node1\n  HostName 127.0.0.1\n  Port {quiet}\n")
    settings.connect_timeout = 0.3
    found = await examined(cluster)
    assert (last(found).name, last(found).said) == ("banner", "no answer within 0.3 s")
    assert "sshd says nothing" in found.mend


async def test_a_name_that_does_not_resolve_is_told(cluster: Cluster, settings: Distributed) -> None:
    """The name that was looked up is the one that ssh_config made of it."""
    Path(settings.ssh_config).write_text("Host node1\n  HostName nowhere.invalid\n")
    found = await examined(cluster)
    assert last(found).name == "name"
    assert "its name nowhere.invalid does not resolve" in last(found).said


async def test_an_ssh_config_that_cannot_be_read_is_told(cluster: Cluster, settings: Distributed) -> None:
    """Before anything else, and with the file to correct."""
    Path(settings.ssh_config).write_text("Host node1\n  Port many\n")
    found = await examined(cluster)
    assert last(found).name == "config"
    assert settings.ssh_config in last(found).said


async def test_a_key_that_is_not_trusted_is_told_from_a_login_that_is_refused(cluster: Cluster, hosts: Hosts) -> None:
    """The host's key comes before our own: each failure is the step's that it belongs to."""
    (sshd,) = await hosts("node1")
    known = (sshd.folder / "known_hosts").read_text()
    (sshd.folder / "known_hosts").write_text("")
    found = await examined(cluster)
    assert last(found).name == "key"
    assert "compare the host's fingerprint" in found.mend
    (sshd.folder / "known_hosts").write_text(known)
    (sshd.folder / "authorized").write_bytes(asyncssh.generate_private_key("ssh-ed25519").export_public_key())
    found = await examined(cluster)
    assert [(step.name, step.status) for step in found.steps[-2:]] == [("key", "ok"), ("login", "failed")]
    assert "authorized_keys" in found.mend


async def test_a_login_without_python_is_told(cluster: Cluster, hosts: Hosts) -> None:
    """What the login shell said in python3's place is the failure of its step; the connection is closed."""
    (sshd,) = await hosts("node1")
    sshd.command = "echo 'sh: python3: command not found' >&2; exit 127"
    found = await examined(cluster)
    assert (last(found).name, found.mend[:23]) == ("shell", "shell: install python3 ")
    assert "python3: command not found" in last(found).said
    await until("the connection is closed", lambda: not sshd.open_connections)


async def test_a_home_without_a_place_is_told(cluster: Cluster, hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no folder will do for the agent, the places that were tried are named."""
    (sshd,) = await hosts("node1")
    sshd.env = {"XDG_CACHE_HOME": "/proc/nowhere"}
    found = await examined(cluster)
    place = next(step for step in found.steps if step.name == "place")
    assert place.said.startswith("/tmp/eg-distributed-")  # the fallback
    assert "passed over: /proc/nowhere" in place.said
    assert found.mend.startswith("place: ")
    assert found.usable


async def test_limits_that_are_low_are_a_warning(cluster: Cluster, hosts: Hosts) -> None:
    """A host with a warning is usable, and the warning is what to mend first."""
    (sshd,) = await hosts("node1")
    sshd.command = "ulimit -n 400; exec {command}"
    found = await examined(cluster)
    assert found.usable
    assert found.mend.startswith("limits: raise nofile")
    assert "nofile 400/400" in next(step.said for step in found.steps if step.name == "limits")


@pytest.fixture
def otherwise(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes nodes look around with a change to what the doctor sends them: their clocks and disks are this machine's."""
    source = agent_archive._source

    def change(text: str) -> None:
        def changed(name: str) -> str:
            return source(name) + (f"\n{text}\n" if name == "checkup.py" else "")

        monkeypatch.setattr(agent_archive, "_source", changed)

    return change


@pytest.mark.parametrize(("seconds", "said"), [(3600, "3600 s ahead"), (-60, "60 s behind"), (3, "")])
async def test_a_clock_that_differs_is_a_warning(
    cluster: Cluster, hosts: Hosts, otherwise: Callable[[str], None], seconds: int, said: str
) -> None:
    """More than some seconds, in either direction, are told with the remedy; the host is usable, and its kernel starts."""
    await hosts("node1")
    otherwise(f"right = time.time\ntime.time = lambda: right() + {seconds}")
    found = await examined(cluster)
    clock = next(step for step in found.steps if step.name == "clock")
    assert found.usable
    assert found.steps[-1].name == "kernel"
    assert (clock.status, clock.said) == (("warning", said) if said else ("ok", "differs by less than 5 s"))
    assert found.mend == ("clock: have NTP set it: tickets and logs need it" if said else "")
    assert (said in doctor._text(found)) or not said


async def test_locks_that_fail_are_what_to_mend(
    cluster: Cluster, hosts: Hosts, otherwise: Callable[[str], None]
) -> None:
    """A folder in which no file can be locked is named with the system's word, and no kernel is tried there."""
    (sshd,) = await hosts("node1")
    otherwise("def lock(path): raise OSError(37, 'No locks available')")
    found = await examined(cluster)
    assert last(found).name == "locks"
    assert last(found).said.startswith(f"locks fail in {sshd.folder}/")
    assert last(found).said.endswith("No locks available")
    assert found.mend == "locks: have locks work on that file system (NFS: its lock service)"
    assert [step.name for step in found.steps if step.name == "kernel"] == []


async def test_an_sshd_that_may_have_few_files_is_a_warning(cluster: Cluster, hosts: Hosts) -> None:
    """What the channels of a kernel's clients take is sshd's own, and may be less than the login's."""
    (sshd,) = await hosts("node1")
    sshd.command = "echo sshd-session > /proc/$$/comm; ulimit -S -n 300; {command}; exit $?"
    found = await examined(cluster)
    assert found.usable
    assert found.mend.startswith("limits: raise LimitNOFILE of sshd's unit")
    assert "sshd's nofile 300" in next(step.said for step in found.steps if step.name == "limits")


async def test_a_host_whose_starts_wait_is_well(cluster: Cluster, hosts: Hosts) -> None:
    """The dry run's kernel stands behind no others, and how many wait is said."""
    await hosts("node1")
    busy = [sys.executable, "-c", "while True: pass", "{connection_file}"]
    names = [f"k{number}" for number in range(2 * (os.cpu_count() or 1) + 3)]
    starts = [cluster.submit(cluster.start(request(name, "node1", argv=busy))) for name in names]

    async def wait() -> bool:
        listed = (await cluster.run(cluster.list_kernels("node1")))["node1"]
        return isinstance(listed, list) and len(listed) == len(names) and any(each.before >= 0 for each in listed)

    await until("some wait", wait)
    found = await examined(cluster)
    assert found.usable
    assert re.fullmatch(r"one was started and ended; \d+ starts wait for their turn there", found.steps[-1].said)
    for starting in starts:
        starting.cancel()


async def test_a_kernel_that_cannot_start_is_told(cluster: Cluster, hosts: Hosts) -> None:
    """The dry run fails by the error that a user would get, after all the steps before it."""
    await hosts("node1")
    cluster.settings.runtime_dir = "/proc/nowhere"
    found = await examined(cluster)
    assert (last(found).name, last(found).said[:31]) == ("kernel", "/proc/nowhere cannot be made fo")
    assert found.mend.startswith("kernel: set Distributed.runtime_dir")
    assert [step.status for step in found.steps[:-1]] == ["ok"] * (len(found.steps) - 1)


async def test_what_a_proxy_hides_is_left_to_it(cluster: Cluster, hosts: Hosts, settings: Distributed) -> None:
    """Behind a jump host the name, the port and the banner are the jump host's to see; the login is tried as it is."""
    await hosts("node1", "gate")
    config = Path(settings.ssh_config)
    config.write_text(f"Host node1\n  ProxyJump gate\n{config.read_text()}")
    found = await examined(cluster)
    assert [(step.name, step.said) for step in found.steps if step.status == "skipped"] == [
        (name, "left to the jump host gate") for name in ("name", "tcp", "banner")
    ]
    assert found.usable


async def test_this_machine_needs_no_ssh(cluster: Cluster) -> None:
    """The gateway's own machine is examined without a login."""
    found = await examined(cluster, "localhost")
    assert found.usable
    assert [step.name for step in found.steps if step.status == "skipped"] == ["name", "tcp", "banner", "key", "login"]


async def test_the_command_tells_programs_and_fails_where_a_host_is_not_usable(
    hosts: Hosts, settings: Distributed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--json` is one object with all steps of all hosts; exit code 1 if one is not usable. The log is as it was afterwards."""
    before = logging.getLogger("eg_distributed").level
    good, bad = await hosts("node1", "node2")
    bad.wire.refuse()
    monkeypatch.setenv("EG_DISTRIBUTED_SSH_CONFIG", settings.ssh_config)
    monkeypatch.setenv("EG_DISTRIBUTED_RUNTIME_DIR", settings.runtime_dir)
    assert await asyncio.to_thread(main, ["doctor", "--json", "node1", "node2"]) == 1
    told = json.loads(capsys.readouterr().out)["hosts"]
    assert [(host["host"], host["usable"]) for host in told] == [("node1", True), ("node2", False)]
    assert told[1]["steps"][-1]["status"] == "failed"
    assert good.users
    assert await asyncio.to_thread(main, ["doctor", "--hosts", "node1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("node1: usable")
    assert logging.getLogger("eg_distributed").level == before

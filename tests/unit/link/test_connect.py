"""Logging in, bringing the agent up, and what is said when that fails; the host is a real SSH server in this process."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest

from eg_distributed.errors import AgentUnavailable, HostKeyRejected, HostUnreachable, LoginRefused
from eg_distributed.link.agent_archive import agent_archive
from eg_distributed.link.connect import connect, is_gateway
from eg_distributed.link.links import BridgedLink, Link, SSHLink
from eg_distributed.settings import Distributed
from tests.unit.agents import DEADLINE, Visitor, echoed, standin
from tests.unit.conftest import Hosts
from tests.unit.ssh_server import USER
from tests.until import until


async def drive(link: Link) -> None:
    """Start a kernel through *link*, talk to it and end it."""
    visitor = await Visitor.at(link)
    await visitor.ready("k1", standin())
    _, reader, writer = await visitor.stream("k1")
    data = os.urandom(1 << 20)
    assert await echoed(reader, writer, data) == data
    writer.close()
    await visitor.request("stop", kernel="k1", grace=5, forget=True)
    visitor.close()
    link.close()
    await asyncio.wait_for(link.wait_closed(), DEADLINE)


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a host that accepts and says nothing."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        yield server.getsockname()[1]


# -- what works --------------------------------------------------------------------------------------------------


async def test_an_ssh_config_is_honoured(hosts: Hosts, settings: Distributed) -> None:
    """HostName, Port, User, IdentityFile and UserKnownHostsFile of an alias are used; the kernel talks over SSH."""
    (sshd,) = await hosts("node1")
    link = await connect("node1", settings)
    assert isinstance(link, SSHLink)
    assert not isinstance(link, BridgedLink)
    await drive(link)
    assert sshd.users == [USER]
    assert sshd.wire.connections == 1


async def test_user_and_port_of_the_settings_win(hosts: Hosts, settings: Distributed) -> None:
    """EG_REMOTE_USER and EG_SSH_PORT count more than the ssh_config."""
    (sshd,) = await hosts("node1")
    settings.user, settings.port = "somebody", sshd.wire.port
    config = Path(settings.ssh_config)
    config.write_text(config.read_text().replace(f"Port {sshd.wire.port}", "Port 1"))
    (await connect("node1", settings)).close()
    assert sshd.users == ["somebody"]


async def test_without_forwarding_all_goes_through_one_channel(hosts: Hosts, settings: Distributed) -> None:
    """An sshd that forbids forwarding costs a slower way, not the kernel."""
    (sshd,) = await hosts("node1")
    sshd.forwarding = False
    link = await connect("node1", settings)
    assert isinstance(link, BridgedLink)
    await drive(link)
    assert sshd.wire.connections == 1


@pytest.mark.parametrize(
    "command",
    [
        "printf 'Welcome!\\n\\033[1mMaintenance on Sunday\\n'; printf '\\377\\376\\n'; exec {command}",
        "printf 'no newline at the end'; exec {command}",
        "head -c 100000 /dev/zero; exec {command}",
        "head -c 1000000 /dev/urandom; exec {command}",
        "head -c 2000000 /dev/zero; printf '\\036 eg-distributed'; exec {command}",
        "read answer; exec {command}",
        "read name; read password; exec {command}",
        "echo noise >&2; exec {command}",
        "cd /; umask 000; exec {command}",
        "unset HOME; exec {command}",
    ],
)
@pytest.mark.parametrize("forwarding", [True, False])
async def test_a_noisy_login_does_not_matter(
    hosts: Hosts, settings: Distributed, command: str, *, forwarding: bool
) -> None:
    """Whatever a login prints before the answer is skipped, be it no text at all."""
    (sshd,) = await hosts("node1")
    sshd.command, sshd.forwarding = command, forwarding
    (await connect("node1", settings)).close()


async def test_the_login_shell_may_be_another_one(hosts: Hosts, settings: Distributed, short: Path) -> None:
    """The command line means the same to every shell, a blank in the interpreter's path included."""
    (sshd,) = await hosts("node1")
    python = short / "my python"
    python.symlink_to("/usr/bin/python3" if Path("/usr/bin/python3").exists() else standin()[0])
    settings.python = str(python)
    (await connect("node1", settings)).close()
    assert sshd.wire.connections == 1


async def test_localhost_needs_no_ssh(settings: Distributed) -> None:
    """The gateway's own machine is served by the same agent, started locally."""
    await drive(await connect("localhost", settings))


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST.", "127.0.0.1", "127.8.8.8", "::1", socket.gethostname()])
def test_the_gateways_own_names_are_known(name: str) -> None:
    """Loopback addresses and this machine's own name mean this machine."""
    assert is_gateway(name)


def test_the_gateways_own_addresses_are_known() -> None:
    """An address of one of this machine's networks means this machine as well."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nobody's address; nothing is sent
        except OSError:
            pytest.skip("this machine has no network but loopback")
        own = probe.getsockname()[0]
    assert is_gateway(own)


@pytest.mark.parametrize("name", ["node1", "10.0.0.1", "localhost.example.com", "::2", "xlocalhost"])
def test_other_names_are_not_the_gateways(name: str) -> None:
    """Anything else is reached over SSH."""
    assert not is_gateway(name)


def test_the_agents_version_is_its_source() -> None:
    """The archive is the same at each call, so that gateways of one version share agents."""
    digest, content = agent_archive()
    agent_archive.cache_clear()
    assert agent_archive() == (digest, content)


# -- jump hosts --------------------------------------------------------------------------------------------------


def jump(settings: Distributed, host: str, hops: str) -> None:
    """Put ProxyJump for *host* before all that the ssh_config says."""
    config = Path(settings.ssh_config)
    config.write_text(f"Host {host}\n  ProxyJump {hops}\n{config.read_text()}")


@pytest.mark.parametrize(
    ("host", "hops", "jumps"),
    [
        ("node1", "gate", {"gate": 1}),
        ("node1", "outer,gate", {"gate": 1, "outer": 1}),
        ("node1", "none", {}),
    ],
)
async def test_jump_hosts_are_gone_through(
    hosts: Hosts, settings: Distributed, host: str, hops: str, jumps: dict[str, int]
) -> None:
    """ssh_config's ProxyJump leads to a host that is reached through others, each by its own part of the ssh_config."""
    node, *between = await hosts("node1", "gate", "outer")
    jump(settings, host, hops)
    link = await connect("node1", settings)
    await drive(link)
    assert {sshd.name: sshd.jumped for sshd in between if sshd.jumped} == jumps
    link.close()
    await until("all connections are closed", lambda: not any(sshd.open_connections for sshd in (node, *between)))


async def test_a_host_behind_a_jump_host_that_hangs_leaves_no_connection(hosts: Hosts, settings: Distributed) -> None:
    """Attempts that are given up in time leave nothing at the jump host either."""
    node, gate = await hosts("node1", "gate")
    jump(settings, "node1", "gate")
    settings.connect_timeout = 1.0
    node.wire.freeze()
    for _ in range(2):
        with pytest.raises(HostUnreachable, match=r"^Host node1"):
            await connect("node1", settings)
    assert gate.jumped
    await until("the jump host's connections are closed", lambda: not gate.open_connections)
    node.wire.thaw()


async def test_a_jump_host_at_fault_is_named(hosts: Hosts, settings: Distributed) -> None:
    """The error is the host's own, and says that its jump host is the trouble."""
    _, gate = await hosts("node1", "gate")
    jump(settings, "node1", "gate")
    gate.wire.refuse()
    with pytest.raises(HostUnreachable, match=r"^Host node1: Its jump host gate cannot be used: cannot connect"):
        await connect("node1", settings)
    await gate.wire.open()
    (gate.folder / "known_hosts").write_text("")
    with pytest.raises(HostUnreachable, match=r"jump host gate cannot be used: its SSH host key is not trusted"):
        await connect("node1", settings)


# -- what fails, and what is said --------------------------------------------------------------------------------


async def test_an_unknown_host_key_is_refused(hosts: Hosts, settings: Distributed) -> None:
    """Nothing is sent to a host whose key is not on file; the error says which file to fix."""
    (sshd,) = await hosts("node1")
    (sshd.folder / "known_hosts").write_text("")
    with pytest.raises(HostKeyRejected, match=r"^Host node1: Its SSH host key is not trusted") as refused:
        await connect("node1", settings)
    assert f"put its key into {sshd.folder}/known_hosts" in str(refused.value)
    assert sshd.users == []


async def test_no_ssh_config_turns_the_check_of_host_keys_off(hosts: Hosts, settings: Distributed) -> None:
    """A file for host keys of `none`, like StrictHostKeyChecking, trusts nobody."""
    (sshd,) = await hosts("node1")
    config = Path(settings.ssh_config)
    config.write_text(f"Host *\n  UserKnownHostsFile none\n  StrictHostKeyChecking no\n{config.read_text()}")
    with pytest.raises(HostKeyRejected):
        await connect("node1", settings)
    assert sshd.users == []


async def test_a_changed_host_key_is_refused(hosts: Hosts, settings: Distributed) -> None:
    """A host that shows another key than the one on file is not talked to."""
    (sshd,) = await hosts("node1")
    sshd.trust(asyncssh.generate_private_key("ssh-ed25519"))
    with pytest.raises(HostKeyRejected, match="remove the old key"):
        await connect("node1", settings)
    assert sshd.users == []


async def test_a_refused_login_names_user_and_methods(hosts: Hosts, settings: Distributed) -> None:
    """The error says who could not log in and what was offered."""
    (sshd,) = await hosts("node1")
    (sshd.folder / "authorized").write_bytes(asyncssh.generate_private_key("ssh-ed25519").export_public_key())
    settings.user, settings.password = "alice", "wrong"
    with pytest.raises(
        LoginRefused, match=r"refused to log in alice; offered: \S+/id \(SHA256:.*password.*authorized_keys"
    ) as refused:
        await connect("node1", settings)
    assert refused.value.user == "alice"
    assert "wrong" not in str(refused.value)


async def test_a_refused_port_is_said_at_once(hosts: Hosts, settings: Distributed) -> None:
    """Nobody listens: the error comes within no time."""
    (sshd,) = await hosts("node1")
    sshd.wire.refuse()
    began = time.monotonic()
    with pytest.raises(HostUnreachable, match="Connection refused"):
        await connect("node1", settings)
    assert time.monotonic() - began < settings.connect_seconds() - 1


async def test_a_name_that_does_not_resolve_is_said(settings: Distributed) -> None:
    """A typing error in remote_hosts is told from a host that is down."""
    with pytest.raises(HostUnreachable, match=r"^Host nowhere\.invalid: Its name does not resolve"):
        await connect("nowhere.invalid", settings)


async def test_a_host_that_says_nothing_costs_the_deadline_and_no_more(settings: Distributed, silent: int) -> None:
    """A host that hangs accepts connections; the connect timeout ends the waiting."""
    Path(settings.ssh_config).write_text(f"Host node1\n  HostName 127.0.0.1\n  Port {silent}\n")
    settings.connect_timeout = 0.5
    began = time.monotonic()
    with pytest.raises(HostUnreachable, match=r"node1: "):
        await connect("node1", settings)
    assert 0.4 < time.monotonic() - began < Distributed().connect_seconds()


async def test_a_host_that_hangs_behind_the_login_costs_the_bootstrap_deadline(
    hosts: Hosts, settings: Distributed
) -> None:
    """A login shell that never gets anywhere ends with the bootstrap timeout."""
    (sshd,) = await hosts("node1")
    sshd.command = "exec sleep 60"
    settings.bootstrap_timeout = 0.5
    with pytest.raises(AgentUnavailable, match=r"no agent answered in time \(0\.5 s for its start\)"):
        await connect("node1", settings)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("echo 'sh: python3: command not found' >&2; exit 127", "python3: command not found"),
        ("echo 'This account is currently not available.'; exit 1", "currently not available"),
        ("yes", "y"),
    ],
)
async def test_what_the_login_said_is_passed_on(hosts: Hosts, settings: Distributed, command: str, said: str) -> None:
    """No python3, a forced command, a shell that talks for ever: the error has the login's own words."""
    (sshd,) = await hosts("node1")
    sshd.command = command
    with pytest.raises(AgentUnavailable, match="No agent could be started") as failed:
        await connect("node1", settings)
    assert said in str(failed.value)
    assert "install python3" in str(failed.value).lower()


@pytest.mark.parametrize("code", [0, 1])
async def test_a_login_that_ends_without_a_word_is_told_by_its_code(
    hosts: Hosts, settings: Distributed, code: int
) -> None:
    """`[ -z "$PS1" ] && exit 1` prints nothing: how the login ended is all there is to say, with what is usual there."""
    (sshd,) = await hosts("node1")
    sshd.command = f"exit {code}"
    with pytest.raises(AgentUnavailable, match=f"started: the login ended with code {code} without a word") as failed:
        await connect("node1", settings)
    assert '[ -z "$PS1" ] && exit' in str(failed.value)


@pytest.mark.parametrize(
    "command", ["exec cat", "echo Welcome; exec cat >&2 & sleep 0.2; exec cat", "read a b; cat; exit 2"]
)
async def test_a_login_that_replaces_the_command_is_said(hosts: Hosts, settings: Distributed, command: str) -> None:
    """What was sent for python3 comes back, in full or in an error: start-up files run another program in its place."""
    (sshd,) = await hosts("node1")
    sshd.command = command
    with pytest.raises(AgentUnavailable, match="start-up files replace the command by another program") as failed:
        await connect("node1", settings)
    assert "`ssh node1 echo hello`" in str(failed.value)
    assert len(str(failed.value)) < 500


async def test_a_shell_that_complains_of_what_it_was_sent_is_said(hosts: Hosts, settings: Distributed) -> None:
    """A shell that takes the agent for a command of its own prints it on stderr, and ends."""
    (sshd,) = await hosts("node1")
    sshd.command = 'read a; read b; read c; read d; echo "zsh: parse error near $d" >&2; exit 1'
    with pytest.raises(AgentUnavailable, match="start-up files replace the command by another program"):
        await connect("node1", settings)


@pytest.mark.parametrize("answer", ["nonsense", "[]", "{{}}", '{{"ok": true}}', "[" * 20000])
async def test_an_answer_that_is_none_is_a_host_error(hosts: Hosts, settings: Distributed, answer: str) -> None:
    """Whatever stands behind the sentinel, the error is one that lets the next host be tried."""
    (sshd,) = await hosts("node1")
    sshd.command = f"printf '\\036 eg-distributed agent \\036%s\\n' '{answer}'"
    with pytest.raises(AgentUnavailable, match=r"^Host node1: (The agent's answer is malformed|The agent cannot run)"):
        await connect("node1", settings)


async def test_a_login_that_goes_on_printing_costs_the_bootstrap_deadline(hosts: Hosts, settings: Distributed) -> None:
    """What it printed last is told with it; the rest is not kept."""
    (sshd,) = await hosts("node1")
    sshd.command = "while :; do echo waiting for the licence server; sleep 0.1; done"
    settings.bootstrap_timeout = 0.5
    with pytest.raises(
        AgentUnavailable, match=r"no agent answered in time .* at last '.*waiting for the licence server'"
    ):
        await connect("node1", settings)


async def test_a_missing_interpreter_is_said(hosts: Hosts, settings: Distributed) -> None:
    """The shell's own complaint about the interpreter reaches the user."""
    await hosts("node1")
    settings.python = "/opt/no/python3"
    with pytest.raises(AgentUnavailable, match=r"/opt/no/python3: not found"):
        await connect("node1", settings)


async def test_a_connection_that_is_dropped_unheard_is_tried_again(hosts: Hosts, settings: Distributed) -> None:
    """sshd's MaxStartups drops connections at random; within the deadline that is nobody's failure."""
    (sshd,) = await hosts("node1")
    sshd.wire.cut_after(1)
    (await connect("node1", settings)).close()
    assert sshd.wire.connections == 2


@pytest.mark.parametrize("count", [500, 2000, 3000, 4500, 6000, 9000, 14_000, 20_000, 40_000, 80_000])
async def test_a_cut_while_connecting_is_a_host_error(hosts: Hosts, settings: Distributed, count: int) -> None:
    """Wherever a connection breaks, the attempt succeeds or fails with an error that lets the next host be tried."""
    (sshd,) = await hosts("node1")
    sshd.wire.cut_after(count)
    done = await asyncio.gather(connect("node1", settings), return_exceptions=True)
    if isinstance(done[0], Link):
        done[0].close()
    else:
        assert isinstance(done[0], HostUnreachable | AgentUnavailable)
        assert done[0].host == "node1"


async def test_a_cancelled_attempt_leaves_no_connection(hosts: Hosts, settings: Distributed) -> None:
    """Who gives up while the agent comes up leaves nothing behind at the host."""
    (sshd,) = await hosts("node1")
    sshd.command = "exec sleep 60"
    settings.bootstrap_timeout = 2
    attempt = asyncio.ensure_future(connect("node1", settings))
    await until("a user has logged in", lambda: sshd.users)
    attempt.cancel()
    await asyncio.wait({attempt})
    await until("all connections are closed", lambda: not sshd.open_connections)


async def test_cancellation_at_any_moment_of_a_login_leaves_no_connection(hosts: Hosts, settings: Distributed) -> None:
    """Also where it comes in the very moment in which the login succeeds."""
    (sshd,) = await hosts("node1")
    sshd.command = "exec sleep 60"
    for turns in range(60):
        sshd.users.clear()
        attempt = asyncio.ensure_future(connect("node1", settings))
        await until("a user logs in", lambda: sshd.users, pause=0)
        for _ in range(turns):
            await asyncio.sleep(0)
        attempt.cancel()
        await asyncio.wait({attempt})
        await until(
            f"all connections are closed, {turns} turns after the login began", lambda: not sshd.open_connections
        )


async def test_a_cut_is_noticed(hosts: Hosts, settings: Distributed) -> None:
    """A link whose connection is gone says so, and opens nothing any more."""
    (sshd,) = await hosts("node1")
    link = await connect("node1", settings)
    sshd.wire.cut()
    await asyncio.wait_for(link.wait_closed(), DEADLINE)
    with pytest.raises(OSError, match=r".*"):
        await link.open()


async def test_silence_is_noticed_by_keepalives(hosts: Hosts, settings: Distributed) -> None:
    """A network that drops everything ends the link after the unanswered probes."""
    settings.keepalive_interval, settings.keepalive_count = 0.1, 2
    (sshd,) = await hosts("node1")
    link = await connect("node1", settings)
    sshd.wire.freeze()
    await asyncio.wait_for(link.wait_closed(), 5)
    sshd.wire.thaw()

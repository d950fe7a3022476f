"""The ways to a host, the keys that are offered, and what a login that goes wrong says; the host is a real SSH server."""

from __future__ import annotations

import asyncio
import os
import pwd
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest
from asyncssh.constants import MSG_IGNORE

from eg_distributed.aside import aside
from eg_distributed.errors import HostKeyRejected, HostUnreachable, LoginRefused, SSHConfigInvalid
from eg_distributed.link import login
from eg_distributed.link.configuration import Configuration, Hop, configuration_of, own_user, readings
from eg_distributed.link.connect import is_here
from eg_distributed.link.dial import dial, look_up
from eg_distributed.link.identities import identities_of
from eg_distributed.link.known_hosts import host_keys_of
from eg_distributed.link.login import Progress, log_in
from eg_distributed.link.revoked import RevokedKeys
from eg_distributed.settings import Distributed
from tests.unit.conftest import Hosts
from tests.unit.ssh_server import USER, Sshd
from tests.until import until, until_in_thread


def of_home(sshd: Sshd, home: Path, more: str = "") -> Distributed:
    """Put the host's part into ~/.ssh/config, behind *more*, and return settings that name no file."""
    (home / ".ssh/config").write_text(more + sshd.config())
    return Distributed()


# -- what was checked is what is used ----------------------------------------------------------------------------------


async def test_the_homes_ssh_config_leads_the_login(hosts: Hosts, home: Path) -> None:
    """Without Distributed.ssh_config, user, port, key and jump host come from ~/.ssh/config."""
    node, gate = await hosts("node1", "gate")
    (home / ".ssh/config").write_text(f"Host node1\n  ProxyJump gate\n{node.config()}{gate.config()}")
    connection = await log_in("node1", Distributed())
    assert (node.users, gate.jumped) == ([USER], 1)
    connection.close()


async def test_no_file_of_known_hosts_trusts_nobody(hosts: Hosts, home: Path) -> None:
    """`UserKnownHostsFile none` in ~/.ssh/config turns no check off, as it does not for ssh."""
    (sshd,) = await hosts("node1")
    settings = of_home(sshd, home, "Host *\n  UserKnownHostsFile none\n  GlobalKnownHostsFile none\n")
    with pytest.raises(HostKeyRejected, match="ssh_config names no file of known hosts"):
        await log_in("node1", settings)
    assert sshd.users == []


async def test_a_host_key_that_is_not_looked_at_is_refused(
    hosts: Hosts, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An asyncssh whose key exchanges ask another method than ours is noticed, and leaves no connection."""
    (sshd,) = await hosts("node1")
    own = asyncssh.SSHClientConnection.validate_server_host_key
    # Ours can't take its place.
    mine = property(lambda connection: own.__get__(connection), lambda connection, value: None)
    monkeypatch.setattr(asyncssh.SSHClientConnection, "validate_server_host_key", mine)
    with pytest.raises(HostKeyRejected, match="did not let the host's key be looked at"):
        await log_in("node1", of_home(sshd, home))
    await until("the connection is closed", lambda: not sshd.open_connections)


async def test_every_file_of_known_hosts_is_named(hosts: Hosts, home: Path) -> None:
    """The error lists all files that were looked into, with what was wrong with each, and bad lines by number."""
    (sshd,) = await hosts("node1")
    (home / "first").write_text("node9.lab.te\n")
    settings = of_home(
        sshd, home, f"Host *\n  UserKnownHostsFile {home}/first {home}/second\n  GlobalKnownHostsFile {home}\n"
    )
    with pytest.raises(HostKeyRejected) as refused:
        await log_in("node1", settings)
    said = str(refused.value)
    assert f"{home}/first, {home}/second (missing), {home} (Is a directory)" in said
    assert f"{home}/first line 1 is passed over: the line is cut off" in said
    assert f"put its key into {home}/first" in said


async def test_a_refused_login_lists_what_was_offered_and_what_was_not(hosts: Hosts, home: Path) -> None:
    """Keys that were tried are named with their fingerprints, those that can't be used with the reason."""
    (sshd,) = await hosts("node1")
    (sshd.folder / "authorized").write_bytes(asyncssh.generate_private_key("ssh-ed25519").export_public_key())
    (home / "broken").write_text("garbage")
    locked = asyncssh.generate_private_key("ssh-ed25519").export_private_key("pkcs8-pem", "secret")
    (home / "locked").write_bytes(locked)
    for name in ("broken", "locked"):
        (home / name).chmod(0o600)
    more = f"Host *\n  IdentityFile {home}/missing\n  IdentityFile {home}/broken\n  IdentityFile {home}/locked\n"
    with pytest.raises(LoginRefused) as refused:
        await log_in("node1", of_home(sshd, home, more))
    said = str(refused.value)
    assert f"offered: {sshd.folder}/id ({sshd.user_key.get_fingerprint()})" in said
    assert f"{home}/missing (missing)" in said
    assert f"{home}/locked (encrypted: give it to ssh-agent)" in said


# -- proxies -----------------------------------------------------------------------------------------------------------


def proxied(sshd: Sshd, home: Path, command: str) -> Distributed:
    """Return settings by which the host is reached through *command*."""
    return of_home(sshd, home, f"Host node1\n  ProxyCommand {command}\n")


PIPE = """
import os, socket, sys, threading
host = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
def back():
    while data := host.recv(65536):
        os.write(1, data)
threading.Thread(target=back, daemon=True).start()
while data := os.read(0, 65536):
    host.sendall(data)
"""
"""A proxy without other programs: both directions between its ends and the host."""


def proxy(home: Path, before: str = "") -> str:
    """Return a ProxyCommand that runs *before* in its shell, and then leads to the host."""
    (home / "pipe.py").write_text(PIPE)
    (home / "proxy.sh").write_text(f"{before}\nexec {sys.executable} {home}/pipe.py $1\n")
    return f"sh {home}/proxy.sh %p"


@pytest.mark.parametrize(
    "before", ["", "exec 2>/dev/null", "echo noise >&2", "(sleep 0.05; echo noise >&2) &", "yes >&2 &"]
)
async def test_a_proxys_noise_does_not_matter(hosts: Hosts, home: Path, before: str) -> None:
    """What a ProxyCommand says on stderr, or that it closes it, does not disturb the login."""
    (sshd,) = await hosts("node1")
    connection = await log_in("node1", proxied(sshd, home, proxy(home, before)))
    assert (await connection.run("echo hi")).stdout == "hi\n"
    connection.close()
    await connection.wait_closed()


async def test_a_proxy_is_a_line_for_the_shell(hosts: Hosts, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables, substitutions, redirections and comments mean what they mean to the user's shell."""
    (sshd,) = await hosts("node1")
    monkeypatch.setenv("SCRIPT", "proxy.sh")
    line = proxy(home).replace("proxy.sh", "$SCRIPT").replace("%p", "$(printf %%s %p) ${NOPE:-x} 2>/dev/null # Ann's")
    (await log_in("node1", proxied(sshd, home, line))).close()
    assert sshd.users == [USER]


async def test_what_a_proxy_says_is_in_the_error(hosts: Hosts, home: Path) -> None:
    """A proxy that fails is quoted, with its exit code and the command line, and at once."""
    (sshd,) = await hosts("node1")
    with pytest.raises(HostUnreachable) as failed:
        await log_in("node1", proxied(sshd, home, "sh -c 'echo bastion says no >&2; exit 3'"))
    said = str(failed.value)
    assert "ProxyCommand said 'bastion says no' and ended with code 3" in said
    assert "exit 3" in said


async def test_a_proxy_ends_with_its_connection(hosts: Hosts, home: Path) -> None:
    """Closing the connection, and giving the attempt up, ends the proxy and what it started."""
    (sshd,) = await hosts("node1")
    pid_file = home / "pid"
    connection = await log_in("node1", proxied(sshd, home, proxy(home, f"echo $$ >{pid_file}")))
    pid = int(pid_file.read_text())
    connection.close()
    await until_in_thread("the proxy is gone", lambda: not Path(f"/proc/{pid}").exists())
    pid_file.unlink()
    line = proxy(home, f"echo $$ >{pid_file}; exec sleep 600")
    attempt = asyncio.ensure_future(log_in("node1", proxied(sshd, home, line)))
    await until("the proxy runs", lambda: pid_file.exists() and pid_file.read_text().strip())
    attempt.cancel()
    await asyncio.wait({attempt})
    pid = int(pid_file.read_text())
    await until_in_thread("the proxy is gone", lambda: not Path(f"/proc/{pid}").exists())


@pytest.mark.parametrize(
    ("jumps", "way"),
    [
        ({"node1": "one", "one": "two", "two": "one"}, "node1, one, two, one"),
        ({"node1": "one", "one": "node1"}, "node1, one, node1"),
        ({"node1": "node1"}, "node1, node1"),
        ({"*": "one"}, "node1, one, one"),
        ({"*": "one,two"}, "node1, one, one"),
        ({"node1": "one,two", "one": "node1,two"}, "node1, one, node1"),
    ],
)
async def test_jump_hosts_that_name_each_other_are_refused(
    hosts: Hosts, home: Path, jumps: dict[str, str], way: str
) -> None:
    """A circle of jump hosts is an error with all of it, as to ssh; nobody is logged in, and none is left out in silence."""
    found = await hosts("node1", "one", "two")
    circle = "".join(f"Host {host}\n  ProxyJump {hops}\n" for host, hops in jumps.items())
    (home / ".ssh/config").write_text(circle + "".join(sshd.config() for sshd in found))
    with pytest.raises(SSHConfigInvalid, match=rf"^Host node1: Its jump hosts lead back to each other: {way}\. "):
        await log_in("node1", Distributed())
    assert [sshd.users for sshd in found] == [[], [], []]
    await until("all connections are closed", lambda: not any(each.open_connections for each in found))


async def test_a_host_may_be_its_own_jump_host_as_another_user(hosts: Hosts, home: Path) -> None:
    """A name that comes again is no circle where ssh_config knows another way to it, by its user."""
    node, one = await hosts("node1", "one")
    text = f"Match originalhost one user {USER}\n  ProxyJump none\nHost one\n  ProxyJump {USER}@one\n"
    (home / ".ssh/config").write_text(text + node.config() + one.config())
    (await log_in("one", Distributed(user="other"))).close()
    assert (one.users, one.jumped) == ([USER, "other"], 1)
    assert node.users == []


# -- time --------------------------------------------------------------------------------------------------------------


async def test_a_login_may_take_its_time(hosts: Hosts, home: Path) -> None:
    """Once sshd has answered, the connect timeout no longer counts."""
    (sshd,) = await hosts("node1")
    settings = of_home(sshd, home)
    settings.connect_timeout = 0.5
    sshd.patience.clear()
    progress = Progress()
    attempt = asyncio.ensure_future(log_in("node1", settings, progress))
    await asyncio.wait({attempt}, timeout=1.0)
    assert not attempt.done()
    assert progress.answered
    sshd.patience.set()
    (await attempt).close()


async def test_a_login_that_never_ends_says_how_far_it_came(hosts: Hosts, home: Path) -> None:
    """The error has what was done, in which time, and what it was doing."""
    (sshd,) = await hosts("node1")
    settings = of_home(sshd, home)
    settings.login_timeout = 0.5
    sshd.patience.clear()
    with pytest.raises(
        HostUnreachable,
        match=r"login was not over after 0\.5 s: connected in \d.* s, sshd answered in .*it was logging in",
    ):
        await log_in("node1", settings)
    await until("the connection is closed", lambda: not sshd.open_connections)


async def test_ssh_configs_timeout_counts(home: Path) -> None:
    """ConnectTimeout is honoured where the setting says nothing, and the error tells a silent host from a dead one."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        (home / ".ssh/config").write_text(f"Host node1\n  HostName 127.0.0.1\n  Port {port}\n  ConnectTimeout 1\n")
        with pytest.raises(
            HostUnreachable, match=r"connected in .*; no answer within 1 s while waiting for sshd's first words"
        ):
            await log_in("node1", Distributed())


@pytest.fixture
def deaf() -> Iterator[tuple[str, int]]:
    """An address that lets nobody in: its queue is full, so that the system answers no more attempts."""
    with socket.socket() as server:
        server.bind(("127.0.0.2", 0))
        server.listen(0)
        address = server.getsockname()
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(address)
            fillers.append(filler)
        yield address
        for filler in fillers:
            filler.close()


async def test_all_addresses_of_a_name_are_tried(deaf: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that drops packets costs a quarter of a second, not the host."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", deaf[1]))
        server.listen()
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", deaf),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", server.getsockname()),
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_: found)
        way = await dial(await look_up("anything", deaf[1], socket.AF_UNSPEC, 1), 30)
        assert way.getpeername() == server.getsockname()
        way.close()


async def test_the_first_address_that_takes_a_connection_counts(
    hosts: Hosts, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where sshd is silent behind a TCP connection, no other address of the name is tried, as with ssh."""
    (sshd,) = await hosts("node1")
    settings = of_home(sshd, home)
    settings.connect_timeout = 0.5
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", address)
            for address in (silent.getsockname(), ("127.0.0.1", sshd.wire.port))
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_: found)
        with pytest.raises(
            HostUnreachable, match=r"connected in .*; no answer within 0\.5 s while waiting for sshd's first"
        ):
            await log_in("node1", settings)
    assert sshd.users == []


async def test_addresses_that_refuse_are_said_before_those_that_are_silent(deaf: tuple[str, int]) -> None:
    """Of several failures the one that says most is told."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        target = closed.getsockname()
    kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
    with pytest.raises(ConnectionRefusedError):
        await dial([(*kind, deaf), (*kind, target)], 0.5)
    with pytest.raises(asyncio.TimeoutError):
        await dial([(*kind, deaf)], 0.2)


async def test_what_hangs_hangs_once() -> None:
    """A look-up that never comes back takes one thread, however often it is asked for, and nobody else's."""
    release, calls = threading.Event(), []

    def hang() -> str:
        calls.append(1)
        release.wait()
        return "late"

    waiting = [asyncio.ensure_future(aside("hangs", hang)) for _ in range(50)]
    assert await asyncio.wait_for(aside("other", lambda: "quick"), 5) == "quick"
    waiting[0].cancel()
    release.set()
    assert await asyncio.gather(*waiting[1:]) == ["late"] * 49
    assert len(calls) == 1


# -- algorithms --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("server", "remedy"),
    [
        (
            {"kex_algs": ["diffie-hellman-group15-sha512", "diffie-hellman-group14-sha1"]},
            "write `KexAlgorithms +diffie-hellman-group14-sha1` below `Host node1`",
        ),
        ({"kex_algs": ["diffie-hellman-group15-sha512"]}, "has none of the host's algorithms for key exchange: allow"),
        ({"encryption_algs": ["aes256-cbc"]}, "write `Ciphers +aes256-cbc` below `Host node1`"),
        ({"encryption_algs": ["blowfish-cbc"]}, "has none of the host's algorithms for encryption: allow"),
        ({"mac_algs": ["hmac-md5"], "encryption_algs": ["aes256-ctr"]}, "write `MACs +hmac-md5` below `Host node1`"),
        ({"compression_algs": ["zlib@openssh.com"]}, "write `Compression yes` below `Host node1` in ssh_config"),
        ({"compression_algs": ["zlib"]}, "has none of the host's algorithms for compression: allow"),
    ],
)
async def test_algorithms_that_do_not_agree_are_said_with_a_line_that_helps(
    hosts: Hosts, home: Path, monkeypatch: pytest.MonkeyPatch, server: dict[str, list[str]], remedy: str
) -> None:
    """The line that the error gives is one of ssh_config's, and with it the login works; where there is none, that is said."""
    monkeypatch.setattr(readings, "_KEPT_SECONDS", 0.0)
    (sshd,) = await hosts("node1")
    settings = of_home(sshd, home)
    other = await asyncssh.create_server(
        asyncssh.SSHServer,
        "127.0.0.1",
        0,
        server_host_keys=[sshd.key],
        authorized_client_keys=str(sshd.folder / "authorized"),
        **server,
    )
    sshd.wire.target = other.get_port()
    try:
        with pytest.raises(HostUnreachable) as refused:
            await log_in("node1", settings)
        said = str(refused.value)
        assert remedy in said.replace("The gateway's", "the gateway's").replace("Write", "write")
        if line := re.search(r"rite `([^`]+)` below", said):
            (await log_in("node1", of_home(sshd, home, f"Host node1\n  {line[1]}\n"))).close()
    finally:
        other.close()


def test_no_algorithm_is_advised_that_ours_does_not_have() -> None:
    """Of the host's algorithms the first that asyncssh has is named: `known` would drop any other from the line again."""
    said = "No matching key exchange algorithm found, sent a,b and received none-of-ours,sntrup4591761x25519-sha512@tinyssh.org"
    node = Configuration("node1", "node1", 22, "u")
    assert "has none of the host's algorithms for key exchange" in login._algorithm_remedy(said, node)
    assert "`KexAlgorithms +ecdh-sha2-nistp256`" in login._algorithm_remedy(f"{said},ecdh-sha2-nistp256,x", node)


# -- this machine ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "changes", "here"),
    [
        ("localhost", {}, True),
        ("LOCALHOST.", {}, True),
        ("127.0.0.1", {}, True),
        (socket.gethostname(), {}, True),
        ("node1", {}, False),
        ("127.0.0.1", {"port": 2222}, False),
        ("localhost", {"hostname": "node1.lab.test"}, False),
        ("localhost", {"user": "svc"}, False),
        ("localhost", {"jumps": (Hop("gate"),)}, False),
        ("localhost", {"proxy_command": "nc gate 22"}, False),
        ("tunnel", {"hostname": "127.0.0.1", "port": 2222}, False),
    ],
)
async def test_this_machine_is_a_shortcut_only_for_its_own_user(
    host: str, changes: dict[str, object], *, here: bool
) -> None:
    """Another user, port, proxy or name in ssh_config means SSH: kernels never silently get the gateway's own account."""
    values = {"hostname": host.lower(), "port": 22, "user": own_user(), **changes}
    assert await is_here(host, Configuration(host=host, **values)) is here  # type: ignore[arg-type]


@pytest.fixture
def borrowed(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of another account, which all variables say is the gateway's."""
    other = next(each.pw_name for each in pwd.getpwall() if each.pw_uid != os.getuid())
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, other)
    return other


async def test_the_environment_makes_no_other_user_of_the_gateway(home: Path, borrowed: str) -> None:
    """USER and LOGNAME of another account lead to no kernels of that name under the gateway's own, and mean nothing to `%u`."""
    own = pwd.getpwuid(os.getuid()).pw_name
    (home / ".ssh/config").write_text("Host localhost\n  IdentityFile /%u/%r\n")
    theirs = await configuration_of("localhost", Distributed(user=borrowed))
    assert not await is_here("localhost", theirs)
    assert theirs.identities == (Path(f"/{own}/{borrowed}"),)
    ours = await configuration_of("localhost", Distributed())
    assert await is_here("localhost", ours)
    assert (ours.user, ours.tokens["u"]) == (own, own)


async def test_a_user_without_a_name_is_nobody_elses(monkeypatch: pytest.MonkeyPatch, borrowed: str) -> None:
    """A number that the system does not list goes by LOGNAME for other hosts, and by no other account's name on this machine."""
    monkeypatch.setattr(os, "getuid", lambda: 123456)
    assert own_user() == borrowed
    assert not await is_here("localhost", Configuration("localhost", "localhost", 22, borrowed))
    monkeypatch.setenv("LOGNAME", "surely-not-there")
    assert await is_here("localhost", Configuration("localhost", "localhost", 22, "surely-not-there"))


# -- keys --------------------------------------------------------------------------------------------------------------


async def test_an_agent_that_hangs_costs_itself(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped ssh-agent is passed over and named; files are offered all the same."""
    monkeypatch.setattr("eg_distributed.link.identities._SECONDS", 0.3)
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(home / "agent"))
        agent.listen()
        key = asyncssh.generate_private_key("ssh-ed25519")
        key.write_private_key(str(home / "id"))
        (home / "id").chmod(0o600)
        found = await identities_of(
            Configuration("a", "a", 22, "u", identities=(home / "id",), identity_agent=str(home / "agent"))
        )
    assert len(found.pairs) == 1
    assert found.passed_over == [f"ssh-agent at {home}/agent (it does not answer)"]
    found.close()


async def test_known_types_are_offered_first(home: Path) -> None:
    """The algorithms of keys on file come first, then the others, so that a changed type is told as a changed key."""
    key = asyncssh.generate_private_key("ssh-rsa", key_size=2048)
    (home / "kh").write_text(f"a {key.export_public_key().decode()}")
    names = ("ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512", "rsa-sha2-256")
    configuration = Configuration("a", "a", 22, "u", known_hosts=(home / "kh",), host_key_algorithms=names)
    keys = await host_keys_of(configuration)
    assert keys.algorithms(configuration) == ["rsa-sha2-512", "rsa-sha2-256", "ssh-ed25519", "ecdsa-sha2-nistp256"]


@pytest.mark.parametrize(
    "data", [b"SSHKRL\n\0", b"SSHKRL\n\0\0\0\0\1", b"SSHKRL\n\0\0\0\0\2" + b"\0" * 60, b"nonsense\n"]
)
def test_a_broken_list_of_revoked_keys_is_refused(home: Path, data: bytes) -> None:
    """What can't be read revokes everything, as with ssh: the reader says so instead of passing it over."""
    (home / "krl").write_bytes(data)
    with pytest.raises(ValueError, match=r".*"):
        RevokedKeys.read(home / "krl")


# -- what is sent beside what was asked for --------------------------------------------------------------------------


async def test_no_empty_packets_are_sent(hosts: Hosts, home: Path) -> None:
    """asyncssh's packets that say nothing are sent with a cipher in CBC mode alone, which needs them."""
    (sshd,) = await hosts("node1")
    connection = await log_in("node1", of_home(sshd, home))
    sent: list[int] = []
    connection.log_sent_packet = lambda kind, *_: sent.append(kind)  # type: ignore[method-assign]
    await connection.run("true")
    assert connection.get_extra_info("send_cipher") == "aes256-gcm@openssh.com"
    assert MSG_IGNORE not in sent
    for cipher in ("aes256-cbc", "seed-cbc@ssh.com"):
        sent.clear()
        connection.set_extra_info(send_cipher=cipher)
        await connection.run("true")
        assert MSG_IGNORE in sent
    connection.close()


async def test_a_busy_connection_puts_its_probe_off_seldom(hosts: Hosts, home: Path) -> None:
    """All that comes within a tenth of the time between two probes sets one timer; one that falls silent is given up in time."""
    (sshd,) = await hosts("node1")
    settings = of_home(sshd, home)
    settings.keepalive_interval, settings.keepalive_count = 3.0, 1
    connection = await log_in("node1", settings)
    timers = set()
    began = time.monotonic()
    for _ in range(20):
        await connection.run("true")
        timers.add(connection._keepalive_timer)
    assert len(timers) <= 2 + (time.monotonic() - began) / 0.3
    connection.set_keepalive(0.1)
    sshd.wire.freeze()
    await asyncio.wait_for(connection.wait_closed(), 5.0)
    sshd.wire.thaw()

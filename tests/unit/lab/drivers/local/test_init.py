import json
import os
import pwd
import shutil
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest

from lab.drivers.local import namespaces, ssh_servers
from lab.drivers.local.files import accounts, write_server_files
from lab.drivers.local.init import is_over
from lab.drivers.local.logs import told
from lab.drivers.local.programs import INIT
from lab.errors import EnvironmentUnfit, LabUsageError
from tests.until import block_until

pytestmark = pytest.mark.skipif(not Path("/proc/self/ns").exists(), reason="needs Linux")

BASE = [sys.executable, "-I", "-S", INIT]


def run(
    lease: Path, *argv: str, isolation: str | None = None, places: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    kind, name = isolation or namespaces.isolation()[0], "n1.lab.test"
    words = [*BASE, "run", kind, name, str(lease), json.dumps(places or {}), "--", *argv]
    return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def printed(log: str) -> list[str]:
    """Return the lines of a machine's log; each stands behind the time at which it came."""
    for line in log.splitlines():
        assert abs(datetime.fromisoformat(line.partition("Z ")[0] + "+00:00").timestamp() - time.time()) < 60
    return list(told(log.splitlines()))


def isolated() -> None:
    kind, reason = namespaces.isolation()
    if kind == "none":
        pytest.skip(f"this kernel gives no namespaces: {reason}")


def test_a_machine_has_its_own_name_and_processes(tmp_path: Path) -> None:
    """Inside, the host name is the node's and only the node's processes are seen; the user stays who it is."""
    isolated()
    machine = run(tmp_path / "lease", "sh", "-c", "hostname; ls /proc | grep -c '^[0-9]'; id -u")
    out, _ = machine.communicate(timeout=20)
    name, count, uid = printed(out)
    assert name == "n1.lab.test"
    assert int(count) < 8
    assert uid == subprocess.run(["id", "-u"], capture_output=True, text=True, check=True).stdout.strip()


def test_a_machine_may_have_hosts_of_its_own(tmp_path: Path) -> None:
    """Its /etc/hosts is the file that it was given, and nobody else's."""
    isolated()
    facts = {"hosts_file": str(tmp_path / "hosts"), "host": "127.1.2.1", "name": "n1.lab.test"}
    write_server_files(facts)
    machine = run(tmp_path / "lease", "cat", "/etc/hosts", places={"hosts_file": facts["hosts_file"]})
    out, _ = machine.communicate(timeout=20)
    lines = [line.partition(" ")[2] for line in out.splitlines()[:2]]  # each stands behind its time
    assert lines == ["127.1.2.1 127.1.2.1", "127.0.1.1 n1.lab.test n1"]
    assert "n1.lab.test" not in Path("/etc/hosts").read_text()


def test_a_killed_machine_is_gone_whole(tmp_path: Path) -> None:
    """SIGKILL to the main process ends what left its session, too."""
    isolated()
    machine = run(tmp_path / "lease", "sh", "-c", "setsid sleep 61.7 & echo up; wait")
    assert machine.stdout is not None
    machine.stdout.readline()
    machine.kill()
    machine.wait(timeout=10)
    pgrep = ["pgrep", "-f", "^sleep 61.7$"]
    block_until(
        "no process outlives its machine",
        lambda: subprocess.run(pgrep, capture_output=True, check=False).returncode,
        10,
    )


def test_commands_run_inside(tmp_path: Path) -> None:
    """`enter` runs a command among the machine's processes and under its name, and passes its exit code on."""
    isolated()
    machine = run(tmp_path / "lease", "sh", "-c", "echo up; read x < /dev/null; sleep 30")
    try:
        assert machine.stdout is not None
        machine.stdout.readline()
        argv = [*BASE, "enter", str(machine.pid), str(tmp_path), "--", "sh", "-c", "hostname; pwd; exit 7"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
        assert (done.returncode, done.stdout.split()) == (7, ["n1.lab.test", str(tmp_path)]), done.stderr
    finally:
        machine.kill()
        machine.wait(timeout=10)


@pytest.mark.parametrize("isolation", ["none", None])
def test_a_machine_ends_when_its_lease_is_over(tmp_path: Path, isolation: str | None) -> None:
    """A lease that lies ahead keeps it; one that has passed ends it, with a word in its log."""
    lease = tmp_path / "lease"
    lease.write_text(f"{time.time() + 3600}")
    machine = run(lease, "sleep", "60", isolation=isolation)
    with pytest.raises(subprocess.TimeoutExpired):
        machine.wait(timeout=1.5)
    lease.write_text(f"{time.time() - 1:.0f}\n")
    out, _ = machine.communicate(timeout=10)
    assert machine.returncode == 0
    assert "the lease is over" in printed(out)[-1]


@pytest.mark.parametrize(("text", "over"), [("1", True), ("0", False), ("", False), ("soon", False), ("1e12", False)])
def test_what_a_lease_means(tmp_path: Path, text: str, *, over: bool) -> None:
    """Only a time that has passed ends a machine."""
    (tmp_path / "lease").write_text(text)
    assert is_over(str(tmp_path / "lease")) is over
    assert not is_over(str(tmp_path / "none"))


def test_the_exit_code_is_the_main_processes_own(tmp_path: Path) -> None:
    """A machine that can't start ends as its main process did."""
    assert run(tmp_path / "lease", "sh", "-c", "exit 9").wait(timeout=20) == 9
    assert run(tmp_path / "lease", "/nowhere/sshd").wait(timeout=20) == 127


@pytest.mark.parametrize("isolation", ["none", None])
def test_what_a_machine_prints_is_dated(tmp_path: Path, isolation: str | None) -> None:
    """Both outputs are one log in their order; the last line needs no end, a long one is cut, and nothing is lost at the end."""
    script = "echo one; echo two >&2; head -c 200000 /dev/zero | tr '\\0' x; echo; seq 20000; printf last"
    out, _ = run(tmp_path / "lease", "sh", "-c", script, isolation=isolation).communicate(timeout=20)
    lines = printed(out)
    assert lines[:2] == ["one", "two"]
    assert len("".join(line for line in lines if line.startswith("x"))) == 200000
    assert lines[-20001:] == [*map(str, range(1, 20001)), "last"]


def test_a_log_is_read_from_a_time_on() -> None:
    """Lines come without their times unless they are asked for; one without a time goes with the line before it."""
    log = ["odd", "1970-01-01T00:00:10.500Z a", "1970-01-01T00:00:11.000Z b", "  more", "1970-01-01T00:00:12.000Z "]
    assert list(told(log)) == ["odd", "a", "b", "  more", ""]
    assert list(told(log, since=11, timestamps=True)) == log[2:]


def test_a_machine_sees_what_is_put_in_place_of_this_ones(tmp_path: Path) -> None:
    """A folder that is missing here is there inside, beside what is there already; the user's home is the node's."""
    isolated()
    around = tmp_path / "around"
    (around / "there").mkdir(parents=True)
    (around / "there" / "deep").write_text("deep")
    (around / "file").write_text("file")
    (around / "link").symlink_to("file")
    home = str(tmp_path / "home")
    write_server_files({"passwd": str(tmp_path / "passwd"), "home": home})
    places = {"needs": f"{around}/lacking", "passwd": str(tmp_path / "passwd")}
    script = (
        f"cd {around}; ls; cat there/deep file link; echo; ls -A lacking | wc -l; getent passwd $(id -u) | cut -d: -f6"
    )
    out, said = run(tmp_path / "lease", "sh", "-c", script, places=places).communicate(timeout=20)
    assert printed(out) == ["file", "lacking", "link", "there", "deepfilefile", "0", home], said
    assert not (around / "lacking").exists()


def test_a_home_in_the_accounts_is_this_users_alone() -> None:
    """Other accounts stay as they are; a user whom only a directory knows is put first."""
    me = pwd.getpwuid(os.getuid())
    known = accounts(f"daemon:x:1:1::/:/bin/false\n{me.pw_name}:x:{me.pw_uid}:7::/home/me:/bin/sh\n", "/lab/home")
    unknown = accounts("daemon:x:1:1::/:/bin/false\n", "/lab/home")
    assert known == unknown
    assert [line.split(":")[5] for line in known.splitlines()] == ["/lab/home", "/"]
    assert known.startswith(f"{me.pw_name}:x:{me.pw_uid}:{me.pw_gid}:")


def test_the_ssh_server_is_chosen_by_name() -> None:
    """asyncssh's is always to be had; an unknown one is refused."""
    assert ssh_servers.choose("asyncssh") == "asyncssh"
    assert ssh_servers.choose("auto") in {"asyncssh", "openssh"}
    with pytest.raises(LabUsageError):
        ssh_servers.choose("dropbear")


def test_openssh_that_can_not_run_is_an_unfit_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking for OpenSSH's by name where there is none says why and what to do; `auto` takes the other."""
    monkeypatch.setattr(ssh_servers, "openssh", lambda: ("", "it is not installed"))
    assert ssh_servers.choose("auto") == "asyncssh"
    with pytest.raises(EnvironmentUnfit, match="not installed"):
        ssh_servers.choose("openssh")


@pytest.mark.parametrize(
    ("shadow", "shell", "why"),
    [
        ("other:!:1\nsam:!$6$x:1\n", "/bin/sh", "locked"),
        ("other:!:1\nsam:*:1\n", "/bin/sh", ""),
        ("", "/bin/sh", ""),
        ("", "/nowhere/sh", "shell"),
    ],
)
def test_an_account_that_sshd_refuses_takes_the_other_server(
    monkeypatch: pytest.MonkeyPatch, shadow: str, shell: str, why: str
) -> None:
    """A locked account or a shell that isn't there would make every login fail: `auto` takes asyncssh's server."""
    sam = pwd.struct_passwd(("sam", "x", 0, 0, "", "/home/sam", shell))
    assert why in ssh_servers.closed(sam, shadow)
    assert bool(ssh_servers.closed(sam, shadow)) is bool(why)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: sam)
    monkeypatch.setattr(ssh_servers, "_shadow", lambda: shadow)
    monkeypatch.setattr(shutil, "which", lambda *words, **more: "/usr/sbin/sshd")
    monkeypatch.setattr(ssh_servers, "_tried", lambda sshd: ("", ""))
    assert ssh_servers.choose("auto") == ("asyncssh" if why else "openssh")


def test_a_server_that_refuses_to_start_is_not_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What `sshd -t` says is the reason; a folder below /run that it lacks is none where root's nodes see their own."""
    sshd = tmp_path / "sshd"
    sshd.write_text('#!/bin/sh\necho "$SAID" >&2; exit 255\n')
    sshd.chmod(0o755)
    monkeypatch.setenv("SAID", "Privilege separation user sshd does not exist")
    assert ssh_servers._tried(str(sshd)) == ("Privilege separation user sshd does not exist", "")
    for kind, lacking in (("root", "/run/sshd-of-a-test"), ("none", "")):
        ssh_servers._tried.cache_clear()
        monkeypatch.setenv("SAID", "Missing privilege separation directory: /run/sshd-of-a-test")
        monkeypatch.setattr(namespaces, "isolation", lambda kind=kind: (kind, "no"))
        assert ssh_servers._tried(str(sshd))[1] == lacking
    ssh_servers._tried.cache_clear()

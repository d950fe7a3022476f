"""The lab without an engine: nodes and gateway as this user's processes."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab import EnvironmentUnfit, Lab, LabConflict
from lab.drivers.local import environments, namespaces, processes, ssh_servers
from lab.probes import probe_ssh
from lab.processes import identify
from lab.progress import Silent
from lab.state import cache_root
from lab.topology import loads
from tests.until import block_until

UID = 54321
"""Nobody's on this machine."""
NAME = f"it-local-{os.getpid() % 10000}"

pytestmark = [pytest.mark.timeout(600), pytest.mark.own_lab(NAME, nodes=2)]


def test_kernels_run_without_an_engine(local: Lab) -> None:
    """`up` ends with a kernel on each of the nodes that are processes."""
    assert local.driver == "local"
    assert [landing.hostname for landing in local.landings] == ["node1.lab.test", "node2.lab.test"]


def test_a_local_lab_stays_local(local: Lab) -> None:
    """`up` again keeps the processes, even where an engine answers; asking for docker by name is refused."""
    before = processes.main_process(local.folder.path / "machines" / "gateway")
    assert Lab.up(NAME).driver == "local"
    assert processes.main_process(local.folder.path / "machines" / "gateway") == before
    with pytest.raises(LabConflict):
        Lab.up(NAME, driver="docker")


def test_nodes_are_told_apart_by_name_and_key(local: Lab) -> None:
    """The ssh_config leads each name to its own server and home, with strict host keys."""
    if shutil.which("ssh") is None:
        pytest.skip("no ssh client on this machine")
    homes = set()
    for node in ("node1", "node2.lab.test"):
        argv = ["ssh", "-F", str(local.folder.ssh_config), "-o", "BatchMode=yes", node, 'echo "$LAB_NODE $HOME"']
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=True)
        name, home = done.stdout.split()
        assert name.partition(".")[0] == node.partition(".")[0]
        homes.add(home)
    assert len(homes) == 2


def test_machines_pause_crash_and_come_back(local: Lab) -> None:
    """A node can hang and go on, a gateway can crash and start again on the same port."""
    node, gateway = local.node("node1"), local.gateway
    node.pause()
    assert node.state == "paused"
    node.unpause()
    node.wait_ready()
    url = gateway.url
    gateway.kill()
    assert gateway.state == "stopped"
    gateway.start()
    assert (gateway.state, gateway.url) == ("running", url)


def test_what_needs_a_machine_of_its_own_is_refused(local: Lab) -> None:
    """Variants that a process can't have are an error with a remedy, not a silent difference."""
    with pytest.raises(EnvironmentUnfit, match="container engine"):
        local.add_node("odd", noisy=True)


def isolated() -> None:
    kind, reason = namespaces.isolation()
    if kind == "none":
        pytest.skip(f"this kernel gives no namespaces: {reason}")


def test_nodes_have_host_names_and_processes_of_their_own(local: Lab) -> None:
    """Where namespaces are allowed, a node's host name is its own, and it doesn't see its neighbour's processes."""
    isolated()
    first, second = local.node("node1"), local.node("node2")
    assert first.exec(["hostname"]).stdout == "node1.lab.test\n"
    assert second.exec(["hostname"]).stdout == "node2.lab.test\n"
    seen = first.exec(["ps", "-e", "-o", "args="]).stdout
    assert "node2" not in seen
    mine = Path(f"/tmp/{NAME}-own")
    try:
        first.exec(["touch", str(mine)]).check()
        # A lab whose own files are below /tmp can't hide that folder, and says so in what it shows of a node.
        own = bool(first.inspect()["tmp"])
        assert mine.exists() is not own
        assert (second.exec(["test", "-e", str(mine)]).exit_code != 0) is own
    finally:
        mine.unlink(missing_ok=True)


def test_a_killed_node_is_gone_whole(local: Lab) -> None:
    """What left its session dies with the node, and the node comes back on its port."""
    node = local.node("node2")
    port = node.port
    node.exec(["sh", "-c", "setsid sleep 1234.5 > /dev/null 2>&1 &"]).check()
    node.kill()
    assert node.state == "stopped"
    assert subprocess.run(["pgrep", "-f", "^sleep 1234.5"], capture_output=True, check=False).returncode == 1
    node.start()
    assert node.port == port


def test_reset_empties_a_node_in_under_a_second(local: Lab) -> None:
    """Home and processes are as new, on the same port and with the same key; the best of three takes less than a second."""
    node = local.node("node1")
    port, times, logins = node.port, [], []
    for _ in range(3):
        began = time.monotonic()
        probe_ssh(node.entry(), local.folder.identity)
        logins.append(time.monotonic() - began)
        node.exec(["sh", "-c", "touch ~/x; setsid sleep 1234.6 > /dev/null 2>&1 &"]).check()
        began = time.monotonic()
        node.reset()
        times.append(time.monotonic() - began)
    print("resets took", [f"{each:.2f}" for each in times], "logins", [f"{each:.2f}" for each in logins])
    assert node.exec(["sh", "-c", "ls -A ~"]).stdout == ""
    assert subprocess.run(["pgrep", "-f", "^sleep 1234.6"], capture_output=True, check=False).returncode == 1
    assert node.port == port
    # On a machine that others keep busy, a login alone takes its time, and a reset ends with one.
    assert min(times) < max(1, 5 * min(logins))


def test_files_go_in_and_out(local: Lab, tmp_path: Path) -> None:
    """Copies reach the node's home, and come back."""
    (tmp_path / "a.txt").write_text("hello")
    node = local.node("node1")
    node.copy_in(tmp_path / "a.txt", "~/")
    (tmp_path / "out").mkdir()
    node.copy_out("a.txt", tmp_path / "out")
    assert (tmp_path / "out" / "a.txt").read_text() == "hello"


def test_a_local_plan_says_what_would_change(local: Lab) -> None:
    """A plan touches nothing: the same lab has an empty one, another number of nodes names the machines."""
    assert Lab.plan(NAME).lines() == []
    lines = Lab.plan(NAME, 3).lines()
    assert lines[0].split()[1:] == ["create", "node", "node3"]
    assert "hosts" in lines[1]


@pytest.mark.parametrize("kind", ["asyncssh", "openssh"])
def test_either_ssh_server_serves_certificates(kind: str) -> None:
    """`sshd` chooses the server by name; the lab's authority opens the door of both; logins and sftp begin at the node's home."""
    if shutil.which("ssh") is None:
        pytest.skip("no ssh client on this machine")
    if kind == "openssh" and not ssh_servers.openssh()[0]:
        pytest.skip(f"OpenSSH's sshd can't run here: {ssh_servers.openssh()[1]}")
    name = f"{NAME}-{kind[0]}"
    file = 'version = 1\ndriver = "local"\n[auth]\nkind = "certificates"\n[nodes.node]\ncount = 1\n[gateways]\n'
    lab = Lab.up(name, topology=loads(file), sshd=kind)
    try:
        assert lab.node("node1").inspect()["sshd"] == kind
        argv = ["ssh", "-F", str(lab.ssh_config), "-o", "BatchMode=yes", "node1", "hostname"]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
        assert lab.folder.known_hosts.read_text().startswith("@cert-authority ")
        if kind == "asyncssh" or namespaces.isolation()[0] != "none":
            home = lab.node("node1").inspect()["home"]
            assert (
                subprocess.run([*argv[:-1], "pwd"], capture_output=True, text=True, timeout=30).stdout.strip() == home
            )
            sftp = ["sftp", "-F", str(lab.ssh_config), "-b", "-", "node1"]
            done = subprocess.run(sftp, input="pwd\n", capture_output=True, text=True, timeout=30, check=False)
            assert done.stdout.strip().endswith(home), done.stderr
    finally:
        lab.down()


def test_a_leased_local_lab_is_over_by_itself() -> None:
    """A local machine ends when its lease is over, and all that ran on it."""
    isolated()
    name = f"{NAME}-l"
    file = 'version = 1\ndriver = "local"\n[nodes.node]\ncount = 1\n[gateways]\n'
    lab = Lab.up(name, topology=loads(file), lease=3600)
    try:
        node = lab.node("node1")
        node.extend_lease(time.time() - 1)
        block_until(
            "all of its processes have ended", lambda: not processes.belonging(lab.folder.path / "machines"), 15
        )
        assert "the lease is over" in node.read_logs()
    finally:
        lab.down()


def me(place: Path) -> list[str]:
    """Return nothing to put before a command."""
    del place
    return []


BECOME = """
mount --bind "$1/passwd" /etc/passwd
for needed in $3; do mkdir -p "$1/kept/$needed" && mount --bind "$2/$needed" "$1/kept/$needed"; done
mount -t tmpfs -o mode=755 tmpfs "$2"
for needed in $3; do mkdir -p "$2/$needed" && mount --bind "$1/kept/$needed" "$2/$needed"; done
shift 3
exec "$@"
"""
"""In mounts of its own: accounts with one more user, and of root's home what everybody may read."""


def another(place: Path) -> list[str]:
    """Return what runs a command as a user without privileges, of whom only that command's own /etc/passwd knows.

    That user sees what our Python and the lab's environments need of this one's home, which nobody else may enter.
    """
    if os.geteuid() != 0:
        pytest.skip("only root can become another user; this run is one already")
    for folder in (place, place / "home"):
        folder.mkdir(exist_ok=True)
        os.chown(folder, UID, UID)
    (place / "passwd").write_text(f"{Path('/etc/passwd').read_text()}tester:x:{UID}:{UID}::{place / 'home'}:/bin/sh\n")
    (place / "passwd").chmod(0o644)
    home, needed = Path.home(), (Path(sys.base_prefix), cache_root() / "environments", cache_root() / "wheels")
    below = " ".join(str(each.relative_to(home)) for each in needed if each.is_relative_to(home))
    mounts = ["unshare", "--mount", "sh", "-ec", BECOME, "sh", str(place), str(home), below]
    prefix = [*mounts, "setpriv", "--reuid", str(UID), "--regid", str(UID), "--clear-groups"]
    done = subprocess.run(
        [*prefix, sys.executable, "-c", "import getpass; print(getpass.getuser())"],
        env={},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    if done.stdout != "tester\n":
        pytest.skip(f"root can't become another user here: {done.stderr}")
    return prefix


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that other users can reach, as pytest's own can't be."""
    with tempfile.TemporaryDirectory(prefix=f"{NAME}-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.parametrize("user", [me, another])
def test_up_without_an_engine_needs_no_option_and_no_root(user: Callable[[Path], list[str]], place: Path) -> None:
    """`lab up` where no engine answers says so in one line, ends with a kernel of every node and 0; `down` leaves nothing."""
    # Made by whoever runs the tests: without uv's cache it would take minutes.
    for role in ("gateway", "node"):
        environments.ensure(role, Silent())
    environments._wheel()
    prefix = user(place)
    environment = {**os.environ, "DOCKER_HOST": "unix:///nowhere/docker.sock"}
    if prefix:
        cache = place / "home" / "cache" / "eg_distributed_lab"
        cache.mkdir(parents=True)
        for shared in ("environments", "wheels"):
            (cache / shared).symlink_to(cache_root() / shared)
        for folder in (cache, cache.parent):
            os.chown(folder, UID, UID)
        environment |= {
            "HOME": str(place / "home"),
            "XDG_CACHE_HOME": str(cache.parent),
            "XDG_STATE_HOME": str(place / "home" / "state"),
            "UV_CACHE_DIR": str(place / "home" / "uv"),
        }
    name = f"{NAME}-u"

    def lab(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [*prefix, sys.executable, "-c", "from lab.cli import main; main()", *words, "--name", name]
        return subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=180, env=environment, check=False
        )

    try:
        made = lab("up", "--nodes", "2", "--json")
        assert made.returncode == 0, made.stderr
        assert [line for line in made.stderr.splitlines() if line.startswith("no container engine answers: ")]
        told = json.loads(made.stdout)
        assert told["driver"] == "local"
        assert [kernel["hostname"] for kernel in told["kernels"]] == ["node1.lab.test", "node2.lab.test"]
        assert told["seconds"] > 0
        main = identify(json.loads(lab("inspect", "node1", "--json").stdout)[0]["driver"]["pid"])
        assert main is not None
        assert Path(f"/proc/{main.pid}").stat().st_uid == (UID if prefix else os.getuid())
    finally:
        down = lab("down")
    assert down.returncode == 0, down.stderr
    assert main.status == ""


def test_down_leaves_no_process_and_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """After `down`, also from another TMPDIR, no process has the lab's mark and its folders are gone."""
    try:
        lab = Lab.up(f"{NAME}-x", nodes=1, driver="local")
    except EnvironmentUnfit as error:
        pytest.skip(str(error))
    machines = lab.folder.path / "machines"
    run = Path(lab.gateway.facts["run"])  # type: ignore[attr-defined]
    seen = processes.belonging(machines) | {processes.main_process(folder) for folder in machines.iterdir()}
    assert len(seen) >= 2
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    lab.down()
    assert [process for process in seen if process.status] == []
    assert processes.belonging(machines) == set()
    assert not lab.folder.path.exists()
    assert not run.parent.exists()

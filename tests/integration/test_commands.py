"""The command `lab`, verb by verb, on one small lab of its own: what it prints, what it changes, how it ends."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from lab import Lab, cli
from lab.drivers.docker.engine import archive, connect
from lab.drivers.docker.recipe import LABEL_IMAGE
from lab.drivers.local import ssh_servers
from lab.errors import EnvironmentUnfit
from lab.probes import probe_ssh
from tests.until import block_until

NAME = os.environ.get("LAB_COMMANDS_NAME", f"it-cmd-{os.getpid() % 10000}")
NODES = ["node1.lab.test", "node2.lab.test"]

pytestmark = pytest.mark.timeout(300)


@dataclass
class Said:
    """How a call ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on stdout."""
        return json.loads(self.out)


def lab(*arguments: str, expect: int | None = 0) -> Said:
    """Call `lab ARGUMENTS` in this process; without *expect* None it has to end with that code."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    said = Said(int(ended.value.code or 0), out.getvalue(), err.getvalue())
    assert expect is None or said.code == expect, said
    return said


def spawn(*arguments: str) -> subprocess.Popen[str]:
    """Start `lab ARGUMENTS` as a user does."""
    argv = [sys.executable, "-u", "-c", "from lab.cli import main; main()", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)


def outcome(*arguments: str) -> Said:
    """Run `lab ARGUMENTS` in a process of its own to its end: for verbs that hand over to ssh."""
    child = spawn(*arguments)
    out, err = child.communicate(timeout=60)
    return Said(child.returncode, out, err)


@pytest.fixture(scope="module")
def driver() -> str:
    """Docker where an engine answers (CI requires one), else local; LAB_DRIVER chooses."""
    if chosen := os.environ.get("LAB_DRIVER"):
        return chosen
    try:
        connect()
    except EnvironmentUnfit:
        if os.environ.get("LAB_REQUIRE_DOCKER"):
            raise
        return "local"
    return "docker"


@pytest.fixture(scope="module", autouse=True)
def made(driver: str) -> Iterator[dict[str, Any]]:
    """What `lab up --json` said of a lab of two nodes; every call here means it by LAB_NAME."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB_NAME", NAME)
        try:
            yield lab("up", "--nodes", "2", "--driver", driver, "--json").json
        finally:
            lab("down")


@pytest.fixture
def own() -> Lab:
    """The lab from Python, to look at what a verb did."""
    return Lab.attach(NAME)


def test_up_says_how_long_it_took(made: dict[str, Any]) -> None:
    """Seconds from the call to the last kernel's answer; each kernel's own are a part of them."""
    assert all(0 < kernel["seconds"] < made["seconds"] for kernel in made["kernels"])


@pytest.mark.parametrize("as_json", [False, True])
def test_what_is_not_ready_in_time_is_named(
    driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, as_json: bool
) -> None:
    """A node whose sshd lets nobody in: the probe, the node's last lines and what to type next, with exit code 5."""
    needs_openssh(driver)
    monkeypatch.setattr("lab.drivers.machines.READY_SECONDS", 3)
    file = tmp_path / "lab.toml"
    file.write_text(
        'version = 1\n[nodes.shut]\ncount = 1\n[nodes.shut.sshd]\nAllowUsers = "nobody-at-all"\n[gateways]\n'
    )
    name = f"{NAME}-shut"
    try:
        said = lab("up", str(file), "--name", name, "--driver", driver, *(["--json"] if as_json else []), expect=5)
        assert said.out == ""
        if as_json:
            told = json.loads(said.err.splitlines()[-1])
            assert (told["id"], told["exit_code"]) == ("not-ready", 5)
            what, remedy, lines = told["message"], told["remedy"], "\n".join(told["evidence"]["logs"])
        else:
            what, remedy, lines = said.err, said.err, said.err.partition("Last lines of its log:")[2]
        assert "an SSH login on shut1.lab.test did not succeed within 3 s" in what
        assert "`lab logs shut1`" in remedy
        assert "not allowed because not listed in AllowUsers" in lines
    finally:
        lab("down", "--name", name)


def needs_openssh(driver: str) -> None:
    if driver == "local" and not ssh_servers.openssh()[0]:
        pytest.skip(f"only OpenSSH's sshd can do that: {ssh_servers.openssh()[1]}")


def needs_docker(driver: str, why: str) -> None:
    if driver != "docker":
        pytest.skip(f"the {driver} driver {why}")


def test_up_says_where_kernels_answered(made: dict[str, Any], driver: str) -> None:
    """One document with driver, time, gateways and a kernel for every node."""
    assert (made["name"], made["driver"]) == (NAME, driver)
    assert [kernel["hostname"] for kernel in made["kernels"]] == NODES
    assert made["gateways"]["gateway"].startswith("http://127.0.0.1:")


def test_a_second_up_would_change_nothing() -> None:
    """The plan of a whole lab is empty, one for more nodes names them."""
    said = lab("up", "--dry-run")
    assert (said.out, "nothing would change" in said.err) == ("", True)
    assert "create   node node3" in lab("up", "--dry-run", "--nodes", "3").out
    assert lab("up", "--dry-run", "--nodes", "3", "--json").json["changes"] >= 1
    assert [row["machine"] for row in lab("status", "--json").json["machines"]] == ["gateway", *NODES]


def test_a_file_is_planned_before_it_is_made(tmp_path: Path) -> None:
    """`up FILE --dry-run` says what the file would change, and a wrong key is refused with the nearest right one."""
    file = tmp_path / "lab.toml"
    file.write_text('version = 1\n[nodes.node]\ncount = 1\nname = "node{n}"\n')
    assert "remove   node node2" in lab("up", str(file), "--dry-run").out
    assert "1 nodes" in lab("validate", str(file)).out
    file.write_text("version = 1\n[nodes.node]\ncuont = 1\n")
    error = lab("validate", str(file), expect=2).err
    assert "cuont" in error
    assert "count" in error


def test_status_tells_what_does_not_run(own: Lab) -> None:
    """A stopped node makes exit code 1 and a remedy; started again the lab is whole."""
    assert lab("stop", "node2").out == "node2.lab.test: stopped\n"
    said = lab("status", "--json", expect=1)
    assert {row["machine"]: row["state"] for row in said.json["machines"]}["node2.lab.test"] == "stopped"
    assert f"lab up --name {NAME}" in said.err
    assert lab("start", "node2").out == "node2.lab.test: running\n"
    assert lab("status", "--json").json["whole"] is True


def test_machines_are_paused_and_restarted_by_name(own: Lab) -> None:
    """pause freezes, unpause thaws, restart reboots: the address stays, and the node answers when the verb returns."""
    address = own.node("node1").address
    assert lab("pause", "node1").out == "node1.lab.test: paused\n"
    assert lab("unpause", "node1").out == "node1.lab.test: running\n"
    assert lab("restart", "node1", "--kill", "--json").json[0]["state"] == "running"
    assert own.node("node1").address == address
    assert lab("exec", "node1", "true").code == 0


def test_ls_lists_the_lab(driver: str) -> None:
    """Name, driver and how many machines run."""
    (row,) = [row for row in lab("ls", "--json").json if row["name"] == NAME]
    assert (row["driver"], row["nodes"], row["gateways"], row["running"]) == (driver, 2, 1, 3)
    assert NAME in lab("ls").out


def test_inspect_knows_a_machine(own: Lab) -> None:
    """Host key, place and the driver's own facts, as JSON and as lines."""
    (found,) = lab("inspect", "node1", "--json").json
    assert found["host_key"] == own.node("node1").host_key
    assert found["driver"]
    assert "address: " in lab("inspect", "node1").out
    assert "node1" in lab("inspect", "node9", expect=3).err


def test_env_and_ssh_config_serve_other_programs(own: Lab) -> None:
    """The file that both name is the one that ssh takes."""
    path = lab("ssh-config", "--path").out.strip()
    assert lab("env", "--json").json["ssh_config"] == path
    assert f"LAB_SSH_CONFIG={path}" in lab("env").out
    assert "StrictHostKeyChecking yes" in lab("ssh-config").out
    assert [host["name"] for host in lab("ssh-config", "--json").json["hosts"]] == NODES


def test_ssh_ends_as_the_command_did() -> None:
    """The exit code is the command's, on one node and on all."""
    if shutil.which("ssh") is None:
        pytest.skip("no ssh client on this machine")
    said = outcome("ssh", "node1", "--", "echo here; exit 7")
    assert (said.code, said.out) == (7, "here\n")
    said = lab("ssh", "all", "--", "echo", "$((40 + 2))")
    assert sorted(said.out.splitlines()) == [f"{node}: 42" for node in NODES]
    assert lab("ssh", "gateway", "--", "true", expect=2).err


def test_exec_needs_neither_ssh_nor_a_shell() -> None:
    """Arguments arrive as they are, exit codes come back, all machines can be asked at once."""
    assert lab("exec", "node1", "--", "printf", "%s", "a  $HOME").out == "a  $HOME"
    assert lab("exec", "gateway", "--", "sh", "-c", "exit 9", expect=9).out == ""
    rows = lab("exec", "--json", "all", "--", "echo", "hi").json
    assert {row["machine"]: row["stdout"] for row in rows} == dict.fromkeys(["gateway", *NODES], "hi\n")
    assert lab("exec", "--timeout", "1s", "node1", "--", "sleep", "30", expect=5).err


def test_cp_copies_both_ways(tmp_path: Path, own: Lab) -> None:
    """Files with another name, and folders into folders, belonging to who logs in."""
    home = own.node("node1").exec(["sh", "-c", "echo $HOME"]).stdout.strip()
    (tmp_path / "data").write_bytes(bytes(range(256)))
    lab("cp", str(tmp_path / "data"), f"node1:{home}/renamed")
    lab("cp", f"node1:{home}/renamed", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == bytes(range(256))
    own.node("node1").exec(["sh", "-c", 'echo more >> "$1"', "sh", f"{home}/renamed"]).check()
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "inside").write_text("text")
    lab("cp", str(folder), f"node1:{home}")
    (tmp_path / "into").mkdir()
    lab("cp", f"node1:{home}/folder", str(tmp_path / "into"))
    assert (tmp_path / "into" / "folder" / "inside").read_text() == "text"
    assert lab("cp", f"node1:{home}/absent", str(tmp_path), expect=3).err


def test_logs_are_read_by_machine_and_time() -> None:
    """--tail limits, --since forgets, --json keeps lines by machine."""
    assert lab("logs", "gateway", "--tail", "2").out.count("\n") == 2
    assert "==> node2.lab.test <==" in lab("logs").out
    assert list(lab("logs", "--json").json) == ["gateway", *NODES]
    assert lab("logs", "--since", "1ms", "gateway").out.count("\n") < lab("logs", "gateway").out.count("\n")


def test_logs_follow() -> None:
    """`logs -f` prints what comes while it runs."""
    marker = "followed-by-the-test"
    child = spawn("logs", "-f", "--tail", "0", "gateway")
    seen = threading.Event()

    def read() -> None:
        assert child.stdout is not None
        for line in child.stdout:
            if marker in line:
                seen.set()

    def ask() -> bool:
        url = lab("env", "--json").json["gateway_url"]
        with contextlib.suppress(httpx.HTTPError):
            # What it answers is of no interest: it logs the request.
            httpx.get(f"{url}/api/kernels/{marker}", timeout=5, trust_env=False)
        return seen.wait(0.5)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        block_until("the request is in the log that is followed", ask, 30)
    finally:
        child.terminate()
        child.communicate(timeout=10)


def test_events_tell_what_happened() -> None:
    """A pause is an event with its machine; --since forgets."""
    lab("pause", "node2")
    lab("unpause", "node2")
    found = lab("events", "--json").json
    assert [event["machine"] for event in found if event["kind"] == "node.unpaused"][-1:] == ["node2.lab.test"]
    assert "node.paused" in lab("events", "--since", "1m").out
    assert lab("events", "--since", "1ms", "--json").json == []


def test_reset_is_golden_and_quick(own: Lab) -> None:
    """A file and a process of the user are gone, name and host key are not; the best of three takes less than a second."""
    node = own.node("node1")
    key, times, logins = node.host_key, [], []
    for _ in range(3):
        began = time.monotonic()
        probe_ssh(node.entry(), own.folder.identity)
        logins.append(time.monotonic() - began)
        node.exec(["sh", "-c", "echo dirt > $HOME/dirt; sleep 987 >/dev/null 2>&1 &"]).check()
        times.append(lab("reset", "node1", "--json").json["seconds"])
        again = own.node("node1")
        assert again.exec(["sh", "-c", "test ! -e $HOME/dirt"]).exit_code == 0
        assert again.exec(["pgrep", "-f", "^sleep 987"]).exit_code != 0
        assert again.host_key == key
    # On a machine that others keep busy, a login alone takes its time, and a reset ends with one.
    assert min(times) < max(1, 5 * min(logins))


def test_a_fault_is_added_listed_and_healed(own: Lab, driver: str) -> None:
    """What `add` prints is the id that `ls` shows and `heal` takes."""
    identity = lab("fault", "add", "pause", "node2").out.strip()
    (row,) = lab("fault", "ls", "--json").json
    assert (row["id"], row["name"]) == (identity, "pause")
    assert own.node("node2").state == "paused"
    assert "pause" in lab("fault", "ls").out
    assert lab("fault", "heal", identity).out == f"{identity}\n"
    assert own.node("node2").state == "running"
    assert lab("fault", "ls", "--json").json == []
    assert lab("fault", "add", "puase", "node2", expect=2).err
    assert lab("fault", "heal", "nope", expect=3).err


def test_a_reset_heals_what_is_broken(own: Lab, driver: str) -> None:
    """The faults of a node go before it is brought back: none is listed, and it takes a login."""
    needs_openssh(driver)
    lab("fault", "add", "noisy-rc", "node1")
    lab("fault", "add", "pause", "node1")
    lab("fault", "add", "pause", "node2")
    lab("reset", "node1")
    assert [row["nodes"] for row in lab("fault", "ls", "--json").json] == [["node2.lab.test"]]
    assert own.node("node1").state == "running"
    assert "noisy" not in outcome("ssh", "node1", "--", "true").out
    lab("fault", "heal", "--all")


def test_a_fault_plan_runs_from_its_file(driver: str, tmp_path: Path) -> None:
    """Roles and patterns mean this lab's nodes, a fault without an end lasts as long as the plan; afterwards all is whole."""
    needs_openssh(driver)
    file = tmp_path / "lab.toml"
    file.write_text(
        """version = 1
seed = 7
[nodes.node]
count = 2
roles = ["kernel"]
[[faults]]
fault = "pause"
at = "200ms"
nodes = ["node*"]
for = "1s"
[[faults]]
fault = "umask"
nodes = ["@kernel"]
"""
    )
    assert "@kernel" in lab("fault", "run", str(file), expect=2).err, "no node has that role yet"
    lab("up", str(file))
    planned = lab("fault", "run", str(file), "--dry-run", "--json").json
    assert [(step["fault"], step["nodes"], step["for"]) for step in planned] == [
        ("umask", ["node1", "node2"], 1.2),
        ("pause", ["node1", "node2"], 1.0),
    ]
    before = time.time()
    said = lab("fault", "run", str(file))
    assert "2 faults" in said.err
    assert lab("fault", "ls", "--json").json == []
    events = [row for row in lab("events", "--json").json if row["time"] >= before]
    assert [row["kind"] for row in events].count("fault.healed") == 2


def test_a_partition_cuts_both_ways_and_heals_by_itself(own: Lab, driver: str) -> None:
    """Between the groups nothing passes until --for is over."""
    needs_docker(driver, "has no network of its own to cut")
    there = own.node("node2").address
    probe = ["sh", "-c", 'timeout 2 bash -c "exec 3<>/dev/tcp/$1/22" || exit 9', "sh", there]
    own.node("node1").exec(probe).check()
    lab("partition", "node1|node2", "--for", "15s")
    assert own.node("node1").exec(probe).exit_code == 9
    block_until("the partition has healed", lambda: own.node("node1").exec(probe).exit_code == 0, 40, pause=0.2)
    own.node("node1").exec(probe).check()


def test_the_catalogue_explains_itself() -> None:
    """All faults by group, and one with its options."""
    names = {row["name"] for row in lab("fault", "catalogue", "--json").json}
    assert {"partition", "pause", "loss", "delay"} <= names
    assert "seen from outside" in lab("fault", "catalogue", "partition").out


def test_stats_count_kernels() -> None:
    """Every node is in it, and as JSON."""
    said = lab("stats", "--json").json
    assert said
    assert "node1" in lab("stats").out


def test_images_are_built_saved_and_loaded(driver: str, tmp_path: Path) -> None:
    """`build` has nothing to do for a lab that runs; what `save` wrote, `load` brings back on an engine that lacks it."""
    needs_docker(driver, "has no images")
    client = connect()
    tag = f"eglab/test:{NAME}"
    built = lab("images", "build", "--json").json
    assert set(built) == {"base", "node", "gateway"}
    assert set(built.values()) <= {row["tag"] for row in lab("images", "ls", "--json").json}
    dockerfile = f"FROM scratch\nLABEL {LABEL_IMAGE}=test\nCOPY file /\n".encode()
    context = io.BytesIO(archive({"Dockerfile": dockerfile, "file": b"content"}))
    client.images.build(fileobj=context, custom_context=True, tag=tag, rm=True)
    try:
        identity = client.images.get(tag).id
        file = tmp_path / "images.tar"
        assert "1 images" in lab("images", "save", str(file), tag).out
        client.images.remove(tag)
        assert tag not in {row["tag"] for row in lab("images", "ls", "--json").json}
        assert lab("images", "load", str(file), "--json").json == [tag]
        assert client.images.get(tag).id == identity
        assert lab("images", "save", str(tmp_path / "x.tar"), "eglab/nope:1", expect=2).err
        lab("images", "save", str(tmp_path / "nowhere" / "x.tar"), tag, expect=1)
        assert [path.name for path in tmp_path.iterdir()] == ["images.tar"]
    finally:
        client.images.remove(tag)


def test_export_is_one_archive(tmp_path: Path) -> None:
    """Logs and events of all machines are in it, for the owner's eyes."""
    file = tmp_path / "lab.tar.gz"
    said = lab("export", str(file), "--json").json
    assert said["bytes"] == file.stat().st_size
    assert file.stat().st_mode & 0o077 == 0
    with tarfile.open(file) as archive:
        names = "\n".join(archive.getnames())
    for part in ("node1", "gateway", "events", "timeline"):
        assert part in names


def test_scale_adds_and_removes_nodes() -> None:
    """The row gets longer or shorter, the rest stays."""
    assert "remove   node node2" in lab("scale", "node=1", "--dry-run").out
    assert [kernel["node"] for kernel in lab("scale", "node=1", "--json").json["kernels"]] == NODES[:1]
    assert [row["machine"] for row in lab("status", "--json").json["machines"]] == ["gateway", NODES[0]]
    assert [line.split(":")[0] for line in lab("scale", "node=2").out.splitlines()[:2]] == NODES
    assert [row["machine"] for row in lab("status", "--json").json["machines"]] == ["gateway", *NODES]
    assert lab("scale", "nodes=2", expect=2).err


def test_doctor_finds_this_machine_fit(driver: str) -> None:
    """Where this file runs a lab can be made, and each finding has a state."""
    report = lab("doctor", "--json", "--driver", driver).json
    assert report["fit"] is True
    assert {row["state"] for row in report["findings"]} <= {"ok", "warning", "unknown", "missing"}


def test_gc_and_prune_spare_what_is_in_use(driver: str) -> None:
    """Neither this lab nor its images are garbage."""
    assert NAME not in [row["lab"] for row in lab("gc", "--dry-run", "--json").json]
    needs_docker(driver, "has no images")
    used = [row["tag"] for row in lab("images", "ls", "--json").json if any(NAME in c for c in row["used_by"])]
    assert len(used) >= 2
    removable = lab("images", "prune", "--dry-run", "--json").json["removed"]
    assert not set(used) & set(removable)


def test_machines_are_completed_by_name() -> None:
    """A shell that asks gets the lab's machines."""
    words = {"_LAB_COMPLETE": "bash_complete", "COMP_WORDS": "lab pause no", "COMP_CWORD": "2"}
    argv = [sys.executable, "-c", "from lab.cli import main; main([])"]
    done = subprocess.run(argv, env={**os.environ, **words}, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["plain,node1", "plain,node2"]


def test_down_leaves_nothing_and_may_come_twice() -> None:
    """After `down` the lab is not found; `up` of the fixture's own making is the last word."""
    lab("down")
    assert lab("status", expect=3).out == ""
    assert "there was no lab" in lab("down").err

"""The operator's commands, against an agent on this machine."""

import json
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from eg_distributed.app import main
from eg_distributed.cluster import Cluster
from eg_distributed.errors import KernelStartFailed
from eg_distributed.kernel import RemoteKernel
from eg_distributed.protocol import Leave
from eg_distributed.request import StartRequest
from eg_distributed.settings import Distributed
from eg_distributed.unended import Unended, write_unended
from tests.until import block_until

KERNEL = """
import json, socket, sys, time
info = json.load(open(sys.argv[1]))
held = []
for channel in ("shell", "iopub", "stdin", "hb", "control"):
    listening = socket.socket(socket.AF_UNIX)
    listening.bind("%s-%d" % (info["ip"], info[channel + "_port"]))
    listening.listen()
    held.append(listening)
print("hello", flush=True)
time.sleep(300)
"""
"""A kernel as far as the agent can tell: it listens on its five channels."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of its own for the agent, short enough for UNIX sockets; the agent is told to leave at the end."""
    folder = Path("/tmp") / f"app-{secrets.token_hex(4)}"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("EG_REMOTE_HOSTS", "localhost")
    monkeypatch.setenv("EG_DISTRIBUTED_RUNTIME_DIR", str(folder / "run"))
    yield folder
    cluster = Cluster(Distributed(), "clean-up")
    try:
        for kernel in cluster.submit(cluster.list_kernels("localhost")).result()["localhost"]:  # type: ignore[union-attr]
            cluster.submit(cluster.end("localhost", kernel.kernel, grace=0)).result()
        cluster.submit(cluster.host("localhost").node.request(Leave())).result()
    finally:
        cluster.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def gateway(home: Path) -> Iterator[Cluster]:
    cluster = Cluster(Distributed(), "the-gateway")
    yield cluster
    cluster.close()


def start(cluster: Cluster) -> RemoteKernel:
    argv = [sys.executable, "-c", KERNEL, "{connection_file}"]
    request = StartRequest(f"k-{secrets.token_hex(4)}", argv, ("localhost",), language="python", key="abc")
    return cluster.submit(cluster.start(request)).result()


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(argv)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def listed(capsys: pytest.CaptureFixture[str], *argv: str) -> list[dict[str, Any]]:
    code, out, _ = run(capsys, "kernels", "--json", *argv)
    assert code == 0
    kernels: list[dict[str, Any]] = json.loads(out)["kernels"]
    return kernels


def wait_for_orphan(capsys: pytest.CaptureFixture[str], kernel: str) -> dict[str, Any]:
    """The agent learns of its gateway's end by the closed connection, a moment later."""
    return block_until(
        f"{kernel} is listed as an orphan",
        lambda: next((found for found in listed(capsys, "--orphans") if found["kernel"] == kernel), None),
        10,
    )


def test_kernels_lists_what_runs_with_its_owner(gateway: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    """`kernels --json` names host, kernel, owner and pid, and a kernel with a gateway is no orphan."""
    kernel = start(gateway)
    (found,) = listed(capsys)
    assert found["host"] == "localhost"
    assert found["kernel"] == kernel.id
    assert found["owner"] == "the-gateway"
    assert found["pid"] == kernel.pid
    assert found["claimed"]
    assert listed(capsys, "--orphans") == []


def test_kernels_for_people_is_a_table_or_says_that_there_is_nothing(
    gateway: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --json there is a table with a heading, or one line that says that nothing runs."""
    assert run(capsys, "kernels") == (0, "no kernels\n", "")
    assert run(capsys, "kernels", "--orphans") == (0, "no orphans\n", "")
    kernel = start(gateway)
    _, out, _ = run(capsys, "kernels")
    head, row = out.splitlines()
    assert head.split()[:3] == ["HOST", "KERNEL", "STATE"]
    assert row.split()[:3] == ["localhost", kernel.id, "running"]


def test_a_machine_with_two_names_is_one(gateway: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    """Its kernels are listed once, and `hosts` says which name is whose."""
    kernel = start(gateway)
    two = ("--hosts", "localhost,127.0.0.1")
    assert [(found["host"], found["kernel"]) for found in listed(capsys, *two)] == [("localhost", kernel.id)]
    code, out, _ = run(capsys, "hosts", *two)
    head, *rows = out.splitlines()
    assert (code, head.split()) == (0, ["HOST", "STATE", "KERNELS", "ORPHANS", "NOTE"])
    assert [re.split("  +", row) for row in rows] == [
        ["localhost", "reachable", "1", "0"],
        ["127.0.0.1", "reachable", "the same machine and login as localhost"],
    ]


def test_hosts_that_fail_are_listed_with_why(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The others are, too, and the exit code is 1."""
    code, out, err = run(capsys, "hosts", "--json", "--hosts", "localhost,no-such-host.invalid")
    found = {host["host"]: host for host in json.loads(out)["hosts"]}
    assert (code, found["localhost"]["kernels"]) == (1, 0)
    assert found["no-such-host.invalid"]["state"] == "unreachable"
    assert err == f"error: {found['no-such-host.invalid']['error']}\n"
    _, out, _ = run(capsys, "hosts", "--hosts", "localhost,no-such-host.invalid")
    assert out.splitlines()[2].split() == ["no-such-host.invalid", "unreachable"]


def test_orphans_are_also_what_could_not_be_ended(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With host, cause, since and next try, of hosts that are asked for; a file that cannot be read is an error by its path."""
    (home / "run").mkdir(mode=0o700)
    now = time.time()
    hung = Unended("localhost", "k-hung", "a1", now - 7200, "Process 7 hangs on a disk.", now + 100)
    away = Unended("node7", "k-away", "a2", now - 150, "The connection\x1b was lost.")
    write_unended(home / "run" / "unended-1.json", [hung, away])
    code, out, err = run(capsys, "kernels", "--orphans")
    assert (code, err) == (0, "")
    title, head, *rows = out.splitlines()
    assert (title, head.split()) == ("still to be ended:", ["HOST", "KERNEL", "SINCE", "NEXT", "TRY", "CAUSE"])
    assert [re.split("  +", row) for row in rows] == [
        ["localhost", "k-hung", "2 h ago", "in 1 min", "Process 7 hangs on a disk."],
        ["node7", "k-away", "2 min ago", "when its host is back", "The connection? was lost."],
    ]
    (home / "run" / "unended-2.json").write_text("{")
    code, out, err = run(capsys, "kernels", "--orphans", "--json", "--hosts", "LOCALHOST")
    assert (code, json.loads(out)["kernels"], json.loads(out)["unended"]) == (1, [], [asdict(hung)])
    assert err.startswith(f"error: {home}/run/unended-2.json: ")
    assert "unended" not in json.loads(run(capsys, "kernels", "--json")[1])


def test_end_ends_an_orphan_and_leaves_nothing(
    gateway: Cluster, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`end` ends a kernel that nobody answers for, and leaves neither its process nor its files."""
    kernel = start(gateway)
    gateway.close()
    wait_for_orphan(capsys, kernel.id)
    code, out, _ = run(capsys, "end", "--json", "localhost", kernel.id)
    assert code == 0
    assert json.loads(out) == {"host": "localhost", "kernel": kernel.id, "ended": True}
    assert listed(capsys) == []
    assert not Path(f"/proc/{kernel.pid}").exists()
    assert list(home.glob(".cache/eg-distributed/*/k/*")) == []


def test_end_refuses_a_kernel_that_a_gateway_answers_for_unless_forced(
    gateway: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """A kernel that is somebody's is ended with --force only, and the refusal names the gateway."""
    kernel = start(gateway)
    code, _, err = run(capsys, "end", "localhost", kernel.id)
    assert code == 1
    assert "the-gateway" in err.lower()
    assert "--force" in err
    assert [k["kernel"] for k in listed(capsys)] == [kernel.id]
    assert run(capsys, "end", "--force", "localhost", kernel.id)[0] == 0
    assert listed(capsys) == []


def test_end_of_an_unknown_kernel_names_host_and_kernel(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ending what is not there fails, and says what was looked for and where."""
    code, out, err = run(capsys, "end", "--json", "localhost", "nobody")
    assert code == 1
    assert "nobody" in json.loads(out)["error"]
    assert "localhost" in err


def test_a_host_that_fails_hides_no_other(gateway: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    """Kernels of hosts that answer are listed beside the error of one that does not."""
    kernel = start(gateway)
    code, out, err = run(capsys, "kernels", "--json", "--hosts", "localhost,no-such-host.invalid")
    answer = json.loads(out)
    assert code == 1
    assert [k["kernel"] for k in answer["kernels"]] == [kernel.id]
    assert list(answer["errors"]) == ["no-such-host.invalid"]
    assert "no-such-host.invalid" in err


def test_the_configuration_file_is_honoured(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Settings come from the file that --config names, and a wrong one is refused by name."""
    config = home / "config.py"
    config.write_text("c.Distributed.bootstrap_timeout = 'soon'\n")
    code, _, err = run(capsys, "kernels", "--config", str(config))
    assert code == 2
    assert "bootstrap_timeout" in err
    config.write_text("c.Distributed.bootstrap_timeout = 15.0\n")
    assert run(capsys, "kernels", "--config", str(config))[0] == 0
    for section in ("EnterpriseGatewayApp", "Distributed"):
        config.write_text(f"c.{section}.remote_hosts = ['-oops']\n")
        assert "'-oops' is no host name" in run(capsys, "kernels", "--config", str(config))[2]


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (["kernels", "--hosts", "-oProxyCommand=x"], "-oProxyCommand=x"),
        (["kernels", "--config", "/nowhere/config.py"], "config.py"),
    ],
)
def test_a_wrong_command_line_says_what_is_wrong(
    home: Path, capsys: pytest.CaptureFixture[str], argv: list[str], names: str
) -> None:
    """What the command line may not say exits with 2 and names it."""
    options = [argv[0], f"{argv[1]}={argv[2]}"]
    code, _, err = run(capsys, *options)
    assert code == 2
    assert names in err


# -- templates ---------------------------------------------------------------------------------------------------


def test_templates_lists_what_kernels_are_forked_from(gateway: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    """`templates` names each host's templates, and says how often and why starts that may be warm were cold."""
    assert run(capsys, "templates") == (0, "no templates\n", "")
    argv = [sys.executable, "-c", KERNEL, "{connection_file}"]
    request = StartRequest("k-warm", argv, ("localhost",), language="python", key="abc", warm=True)
    gateway.submit(gateway.start(request)).result()
    why = "its command is not `python -m ipykernel_launcher`"
    code, out, err = run(capsys, "templates")
    assert (code, err) == (0, "")
    assert out == f"no templates\nlocalhost: 0 starts were forked, 1 were cold\n  1 cold: {why}\n"
    told = json.loads(run(capsys, "templates", "--json")[1])
    assert told == {"hosts": {"localhost": {"templates": [], "forked": 0, "cold": {why: 1}}}, "errors": {}}
    assert "no-such-host" in run(capsys, "templates", "--hosts", "no-such-host.invalid")[2]


# -- logs --------------------------------------------------------------------------------------------------------


def fail(cluster: Cluster) -> KernelStartFailed:
    """Start a kernel that ends before it is ready, and return the error."""
    argv = [sys.executable, "-c", "print('no licence'); raise SystemExit(3)", "{connection_file}"]
    request = StartRequest(f"k-{secrets.token_hex(4)}", argv, ("localhost",), language="python", key="abc")
    with pytest.raises(KernelStartFailed) as failed:
        cluster.submit(cluster.start(request)).result()
    return failed.value


def test_logs_prints_what_a_running_kernel_printed(gateway: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    """`logs` takes an id, or how it begins, and prints the kernel's output to stdout alone."""
    kernel = start(gateway)
    block_until("the kernel has printed", lambda: run(capsys, "logs", kernel.id)[1], 10)
    assert run(capsys, "logs", kernel.id) == (0, "hello\n", "")
    assert run(capsys, "logs", kernel.id[:-2]) == (0, "hello\n", "")
    code, out, _ = run(capsys, "logs", "--json", kernel.id)
    answer = json.loads(out)
    assert (code, answer["host"], answer["kernel"], answer["state"]) == (0, "localhost", kernel.id, "running")
    assert answer["log"] == "hello\n"


def test_logs_has_those_of_kernels_that_are_gone(gateway: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    """After a kernel's end its log is still printed, and how it ended is said beside it."""
    kernel = start(gateway)
    block_until("the kernel has printed", lambda: run(capsys, "logs", kernel.id)[1], 10)
    gateway.submit(gateway.release(kernel.id)).result()
    assert listed(capsys) == []
    code, out, err = run(capsys, "logs", kernel.id)
    assert (code, out) == (0, "hello\n")
    assert err.startswith(f"kernel {kernel.id} on localhost was killed by signal ")


def test_a_start_that_failed_names_the_command_that_shows_its_log(
    gateway: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error of a kernel that ended before it was ready has the very command, which prints all of its output."""
    command = str(fail(gateway)).split("`")[1]
    assert command.startswith("jupyter distributed logs k-")
    code, out, err = run(capsys, *command.split()[2:])
    assert (code, out) == (0, "no licence\n")
    assert "exited with code 3" in err


def test_following_a_log_ends_with_the_kernel(gateway: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    """`--follow` prints what comes, and ends by itself when the kernel does."""
    kernel = start(gateway)
    ending = threading.Timer(1.0, lambda: gateway.submit(kernel.stop()).result())
    ending.start()
    code, out, err = run(capsys, "logs", "--follow", kernel.id)
    ending.join()
    assert (code, out) == (0, "hello\n")
    assert err == f"kernel {kernel.id} on localhost was killed by signal 15\n"


def test_an_interrupt_of_following_is_no_failure_of_ours(gateway: Cluster, home: Path) -> None:
    """Ctrl-C ends `logs --follow` with the shell's own code for it, without a traceback."""
    kernel = start(gateway)
    argv = [sys.executable, "-m", "eg_distributed", "logs", "--follow", kernel.id]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        assert following.stdout.readline() == "hello\n"
        following.send_signal(signal.SIGINT)
        _, err = following.communicate(timeout=30)
    assert (following.returncode, err) == (130, "")


def test_the_log_of_the_start_before_is_there_after_a_restart(
    gateway: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--previous` prints the log of the start before the last one, and says so where there is none."""
    kernel = start(gateway)
    code, _, err = run(capsys, "logs", "--previous", kernel.id)
    assert code == 1
    assert f"no log of an earlier start of kernel {kernel.id} is kept" in err.lower()
    block_until("the kernel has printed", lambda: run(capsys, "logs", kernel.id)[1], 10)
    gateway.submit(kernel.stop()).result()
    argv = [sys.executable, "-c", KERNEL.replace("hello", "hello again"), "{connection_file}"]
    request = StartRequest(kernel.id, argv, ("localhost",), language="python", key="abc")
    gateway.submit(gateway.start(request)).result()
    block_until("it has printed again", lambda: run(capsys, "logs", kernel.id)[1] == "hello again\n", 10)
    assert run(capsys, "logs", "--previous", kernel.id)[:2] == (0, "hello\n")


def test_an_id_that_means_several_kernels_is_refused_by_naming_them(
    gateway: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """How several ids begin is none of them."""
    kernels = sorted(start(gateway).id for _ in range(2))
    code, out, err = run(capsys, "logs", "k-")
    assert (code, out) == (1, "")
    assert f"2 kernels have ids that begin with k-: {', '.join(kernels)}" in err


def test_a_log_that_is_nowhere_is_said_with_the_hosts_that_were_asked(
    gateway: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown id, and a host that could not be asked, are told apart."""
    code, _, err = run(capsys, "logs", "nobody")
    assert code == 1
    assert "no kernel's id is nobody, or begins so, on localhost." in err.lower()
    code, _, err = run(capsys, "logs", "--hosts", "localhost,no-such-host.invalid", "nobody")
    assert code == 1
    assert "on localhost. these could not be asked: host no-such-host.invalid: its name does not resolve" in err.lower()
    code, _, err = run(capsys, "logs", "--hosts", "no-such-host.invalid", "nobody")
    assert code == 1
    assert err.lower().startswith("error: host no-such-host.invalid: its name does not resolve")
    kernel = start(gateway)
    block_until("the kernel has printed", lambda: run(capsys, "logs", kernel.id)[1], 10)
    code, out, _ = run(capsys, "logs", "--hosts", "localhost,no-such-host.invalid", kernel.id)
    assert (code, out) == (0, "hello\n")


def test_which_kernelspecs_a_host_has(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of environments that the setting names included; and what is left out, with its reason."""
    monkeypatch.setenv("EG_DISTRIBUTED_KERNELSPEC_ENVIRONMENTS", "~/envs/*")
    argv = {"good": [sys.executable, "{connection_file}"], "gone": ["/no/such/python", "{connection_file}"]}
    for name, words in argv.items():
        folder = home / "envs" / "one" / "share" / "jupyter" / "kernels" / name
        folder.mkdir(parents=True)
        (folder / "kernel.json").write_text(json.dumps({"argv": words, "display_name": name.title(), "language": "x"}))
    assert main(["kernelspecs", "list"]) == 0
    said = capsys.readouterr().out
    where = home / "envs" / "one"
    assert f"good-one.localhost: Good [one] · localhost, runs {sys.executable} on localhost\n" in said
    assert f"left out, localhost: {where}/share/jupyter/kernels/gone: /no/such/python cannot be executed\n" in said
    assert main(["kernelspecs", "list", "--json", "--hosts", "localhost,nowhere.invalid"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert "good-one.localhost" in [each["name"] for each in told["kernelspecs"]]
    assert told["errors"].keys() == {"nowhere.invalid"}

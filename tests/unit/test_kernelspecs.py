"""Sample kernelspecs, their installation, the conversion of others, and what is started in place of launchers of EG's."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from eg_distributed import kernelspecs, run_sh
from eg_distributed.agent.expansion import expand_all
from eg_distributed.app import main
from eg_distributed.client_options import check_user, for_scripts, without_clients_options
from eg_distributed.errors import RequestInvalid
from eg_distributed.kernelspecs import Site
from eg_distributed.kernelspecs.conversion import OURS, THEIRS
from eg_distributed.kernelspecs.guard import guarded, without_guard
from eg_distributed.launcher_files import shipping_of

OPTS = "--master yarn --deploy-mode client --name ${KERNEL_ID:-ERROR__NO__KERNEL_ID}"
RUN_SH = "/usr/local/share/jupyter/kernels/spark_python_yarn_client/bin/run.sh"
THEIR_ARGV = [
    RUN_SH,
    "--RemoteProcessProxy.kernel-id",
    "{kernel_id}",
    "--RemoteProcessProxy.response-address",
    "{response_address}",
    "--RemoteProcessProxy.public-key",
    "{public_key}",
    "--RemoteProcessProxy.port-range",
    "{port_range}",
    "--RemoteProcessProxy.spark-context-initialization-mode",
    "lazy",
]


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A kernelspec as Enterprise Gateway's page "Distributed deployments" has it."""
    folder = tmp_path / "spark_python_yarn_client"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "run.sh").write_text("#!/bin/sh\n")
    spec = {
        "language": "python",
        "display_name": "Spark - Python (YARN Client Mode)",
        "metadata": {"process_proxy": {"class_name": THEIRS}},
        "env": {
            "SPARK_HOME": "/usr/hdp/current/spark2-client",
            "SPARK_OPTS": f"{OPTS} --conf spark.yarn.submit.waitAppCompletion=false",
        },
        "argv": THEIR_ARGV,
    }
    (folder / "kernel.json").write_text(json.dumps(spec, indent=2))
    return folder


@pytest.mark.parametrize("name", kernelspecs.names())
def test_samples_are_kernelspecs_of_our_proxy(name: str) -> None:
    """Each sample runs by our proxy, names its application by the kernel's id, and brings what it needs along."""
    spec = kernelspecs.sample(name)
    proxy = spec["metadata"]["process_proxy"]
    assert proxy["class_name"] == OURS
    assert any("{connection_file}" in word for word in spec["argv"])
    if name.startswith("spark_"):
        assert "launcher" in proxy["config"]
        assert "--name ${KERNEL_ID:-ERROR__NO__KERNEL_ID}" in json.dumps(spec["env"])
        assert shipping_of(proxy["config"], spec["argv"], name).files
        assert kernelspecs.needs_master(spec) is name.endswith("_standalone")


def test_a_site_fills_a_sample_in() -> None:
    """What differs from site to site lands where it belongs; YARN's samples keep their master."""
    site = Site(
        spark_home="/s", master="spark://m:7077", python="/p", hadoop_conf_dir="/h", remote_hosts="a,b", env={"X": "1"}
    )
    spec = kernelspecs.sample("spark_python_standalone", site)
    assert spec["env"]["SPARK_HOME"] == "/s"
    assert spec["env"]["PYSPARK_PYTHON"] == "/p"
    assert spec["env"]["X"] == "1"
    assert spec["env"]["SPARK_OPTS"].startswith("--master spark://m:7077 --deploy-mode client --name ${KERNEL_ID")
    assert spec["metadata"]["process_proxy"]["config"]["remote_hosts"] == "a,b"
    yarn = kernelspecs.sample("spark_python_yarn_client", site)
    assert "--master yarn " in yarn["env"]["SPARK_OPTS"]
    assert yarn["env"]["HADOOP_CONF_DIR"] == "/h"
    assert kernelspecs.sample("python_distributed", site)["argv"][0] == "/p"


@pytest.mark.parametrize("name", kernelspecs.names())
def test_an_installed_kernelspec_runs_with_and_without_enterprise_gateway(tmp_path: Path, name: str) -> None:
    """Both stanzas are there, with one config, and argv starts nothing where neither is known."""
    where = ["--prefix", str(tmp_path), "--master", "spark://m:7077", "--remote-hosts", "a,b"]
    assert main(["kernelspecs", "install", name, *where]) == 0
    spec = json.loads((tmp_path / "share" / "jupyter" / "kernels" / name / "kernel.json").read_text())
    proxy, provisioner = spec["metadata"]["process_proxy"], spec["metadata"]["kernel_provisioner"]
    assert (proxy["class_name"], provisioner["provisioner_name"]) == (OURS, "eg-distributed")
    assert provisioner["config"] == proxy["config"]
    assert provisioner["config"]["remote_hosts"] == "a,b"
    assert without_guard(spec["argv"]) == kernelspecs.sample(name)["argv"]
    assert guarded(spec["argv"]) == spec["argv"]
    done = subprocess.run(spec["argv"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (78, "")
    assert 'pip install "eg_distributed[server]"' in done.stderr


def test_a_guard_that_was_edited_is_said() -> None:
    """A wrapper before it stays in force; where the guard's own words were changed nothing runs, and the error says why."""
    plain = ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    assert without_guard(["bash", "-lc", "setup", *guarded(plain)]) == ["bash", "-lc", "setup", *plain]
    edited = guarded(plain)
    edited[0] = "/opt/conda/bin/python"
    with pytest.raises(RequestInvalid, match=r"neither what was installed nor a kernel's.*Take out what stands before"):
        without_guard(edited)


def test_install(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Samples are installed below a prefix; those without a master to run on are left out; nothing is replaced unasked."""
    argv = ["kernelspecs", "install", "--prefix", str(tmp_path), "--language", "python", "--spark-home", "/s"]
    assert main(argv) == 0
    kernels = tmp_path / "share" / "jupyter" / "kernels"
    assert sorted(path.name for path in kernels.iterdir()) == ["python_distributed", "spark_python_yarn_client"]
    assert "left out spark_python_standalone: it needs --master" in capsys.readouterr().out
    assert json.loads((kernels / "spark_python_yarn_client" / "kernel.json").read_text())["env"]["SPARK_HOME"] == "/s"
    assert main([*argv, "--master", "spark://m:7077"]) == 1
    said = capsys.readouterr().err
    assert "spark_python_yarn_client: there already, and nothing was installed; say --replace" in said
    assert not (kernels / "spark_python_standalone").exists()
    assert main([*argv, "--master", "spark://m:7077", "--replace"]) == 0
    assert (kernels / "spark_python_standalone" / "kernel.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["install", "nothing"], "there is no sample 'nothing'"),
        (["install", "spark_python_standalone"], "spark_python_standalone needs --master"),
        (["install", "--env", "X"], "--env X is no NAME=VALUE"),
        (["install", "--master", "yarn"], "--master yarn is no standalone master's URL: spark://HOST:7077"),
    ],
)
def test_a_wrong_installation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    """A slip is an error of the command line, and nothing is installed."""
    assert main(["kernelspecs", *arguments, "--prefix", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_conversion_shows_before_it_does(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --write there is a diff, and nothing on disk has changed."""
    before = (theirs / "kernel.json").read_text()
    assert main(["kernelspecs", "convert", str(theirs), "--master", "spark://m:7077"]) == 0
    said = capsys.readouterr().out
    assert '-  "display_name": "Spark - Python (YARN Client Mode)"' in said
    assert '+  "display_name": "Spark - Python (Spark Standalone)"' in said
    assert "say --write" in said
    assert (theirs / "kernel.json").read_text() == before
    assert [path.name for path in theirs.parent.iterdir()] == [theirs.name]


def test_conversion_to_a_standalone_master(theirs: Path) -> None:
    """A copy with another display name, master and run.sh, without waitAppCompletion, as the page describes; ours runs it."""
    assert main(["kernelspecs", "convert", str(theirs), "--master", "spark://m:7077", "--write"]) == 0
    copy = theirs.with_name("spark_python_standalone")
    spec = json.loads((copy / "kernel.json").read_text())
    assert spec["display_name"] == "Spark - Python (Spark Standalone)"
    assert spec["env"]["SPARK_OPTS"] == "--master spark://m:7077 --name ${KERNEL_ID:-ERROR__NO__KERNEL_ID}"
    assert spec["argv"] == [RUN_SH.replace("yarn_client", "standalone"), *THEIR_ARGV[1:]]
    assert spec["metadata"]["process_proxy"]["class_name"] == OURS
    assert (copy / "bin" / "run.sh").exists()
    assert main(["kernelspecs", "convert", str(theirs), "--master", "spark://m:7077", "--write"]) == 1


def test_conversion_to_our_proxy(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a master the proxy's class changes, in place, and our provisioner's stanza is added; a second time nothing does."""
    before = json.loads((theirs / "kernel.json").read_text())
    before["metadata"]["process_proxy"]["config"] = {"remote_hosts": "gpu1,gpu2"}
    (theirs / "kernel.json").write_text(json.dumps(before))
    assert main(["kernelspecs", "convert", str(theirs), "--write"]) == 0
    after = json.loads((theirs / "kernel.json").read_text())
    assert after["metadata"]["process_proxy"].pop("class_name") == OURS
    assert before["metadata"]["process_proxy"].pop("class_name") == THEIRS
    assert after["metadata"].pop("kernel_provisioner") == {
        "provisioner_name": "eg-distributed",
        "config": {"remote_hosts": "gpu1,gpu2"},
    }
    assert after == before
    capsys.readouterr()
    assert main(["kernelspecs", "convert", str(theirs)]) == 0
    assert "is as it should be" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("stanza", "noted"),
    [
        ({"provisioner_name": "local-provisioner"}, "local-provisioner"),
        ({"provisioner_name": "eg-distributed", "config": {"remote_hosts": "gpu3"}}, ""),
    ],
)
def test_a_stanza_that_is_there_stays(
    theirs: Path, capsys: pytest.CaptureFixture[str], stanza: dict[str, Any], noted: str
) -> None:
    """Another provisioner's, which a line says, or ours with a config of its own."""
    spec = json.loads((theirs / "kernel.json").read_text())
    spec["metadata"]["kernel_provisioner"] = stanza
    (theirs / "kernel.json").write_text(json.dumps(spec))
    assert main(["kernelspecs", "convert", str(theirs), "--write"]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert [noted in line for line in notes] == ([True] if noted else [])
    assert json.loads((theirs / "kernel.json").read_text())["metadata"]["kernel_provisioner"] == stanza


@pytest.mark.parametrize(
    ("folder", "script", "options", "noted"),
    [
        ("myspec", RUN_SH, [], "myspec"),
        ("myspec", RUN_SH, ["--master", "spark://m:7077"], "myspec_standalone"),
        ("myspec", RUN_SH, ["--name", "other"], "other"),
        ("myspec", "/opt/kernels/python_distributed/scripts/launch_ipykernel.py", [], "myspec"),
        ("spark_python_yarn_client", RUN_SH, [], ""),
        ("spark_python_yarn_client", RUN_SH, ["--name", "other"], ""),
        ("myspec", "{resource_dir}/bin/run.sh", [], ""),
        ("myspec", "/opt/conda/bin/python", [], ""),
    ],
)
def test_another_kernelspecs_run_sh_is_noted(
    theirs: Path, capsys: pytest.CaptureFixture[str], folder: str, script: str, options: list[str], noted: str
) -> None:
    """A script in argv that is in another kernelspec's folder stays, and a line says so, also where nothing else changes."""
    spec = {**json.loads((theirs / "kernel.json").read_text()), "argv": [script, *THEIR_ARGV[1:]]}
    (theirs / "kernel.json").write_text(json.dumps(spec))
    theirs = theirs.rename(theirs.with_name(folder))
    target = theirs.with_name(noted or folder)
    for _ in range(2):  # the second time, all is as it should be
        assert main(["kernelspecs", "convert", str(theirs), *options, "--write"]) == 0
        said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
        owner = "python_distributed" if "python_distributed" in script else "spark_python_yarn_client"
        about = (
            f"note: argv's {script} is of another kernelspec's folder, {owner}, and stays as it is; write {noted} there"
        )
        assert [line[: len(about)] for line in said] == ([about] if noted else [])
        if options:
            break
    assert not noted or json.loads((target / "kernel.json").read_text())["argv"][0] == script


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"metadata": {"process_proxy": {"class_name": "x.KubernetesProcessProxy"}}},
            "is run by x.KubernetesProcessProxy",
        ),
        ({"env": {}}, "has no --master in SPARK_OPTS"),
    ],
)
def test_what_cannot_be_converted(
    theirs: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], said: str
) -> None:
    """Kernelspecs of other proxies, and those without Spark, are refused with the reason."""
    spec = {**json.loads((theirs / "kernel.json").read_text()), **change}
    (theirs / "kernel.json").write_text(json.dumps(spec))
    assert main(["kernelspecs", "convert", str(theirs), "--master", "spark://m:7077", "--write"]) == 1
    assert said in capsys.readouterr().err


# -- what a launcher brings, and in whose place --------------------------------------------------------------------------


def test_launchers_of_theirs_are_replaced(tmp_path: Path) -> None:
    """An EG kernelspec whose scripts are a release's own, or only on the nodes, is started by our launcher."""
    found = run_sh.replacement(THEIR_ARGV, "python", {"remote_hosts": "a"}, str(tmp_path), "s")
    assert found is not None
    mode = ["--RemoteProcessProxy.spark-context-initialization-mode", "lazy"]
    assert found.argv == ["{python}", "{launcher}/spark.py", "python", "-f", "{connection_file}", *mode]
    assert found.config["launcher"] == "spark"
    assert found.config["remote_hosts"] == "a"
    assert found.env == {"EG_KERNELSPEC_FOLDER": RUN_SH[: -len("/bin/run.sh")]}


def test_their_default_mode_stays(tmp_path: Path) -> None:
    """A kernelspec that says nothing of a session gets none, as from their launchers."""
    found = run_sh.replacement(THEIR_ARGV[:-2], "python", {}, str(tmp_path), "s")
    assert found is not None
    assert found.argv[-2:] == ["--RemoteProcessProxy.spark-context-initialization-mode", "none"]


def test_a_master_may_be_quoted() -> None:
    """What names the master is replaced whole, whatever its quotes and its spelling."""
    for given in ("--master yarn", "--master=yarn", "--master 'spark://a:1,b:2'", '--master "local[2, 3]"'):
        assert (
            kernelspecs.with_master(f"--name x {given} -v", "spark://m:7077") == "--name x --master spark://m:7077 -v"
        )


def test_launchers_that_somebody_changed_are_not(tmp_path: Path) -> None:
    """What was changed, what is no run.sh, and what asks to be left alone is run as it is."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "run.sh").write_text("#!/bin/sh\necho mine\n")
    assert run_sh.replacement(THEIR_ARGV, "python", {}, str(tmp_path), "s") is None
    other = str(tmp_path / "other")
    assert run_sh.replacement(THEIR_ARGV, "python", {"launcher": ""}, other, "s") is None
    assert run_sh.replacement(["python", *THEIR_ARGV[1:]], "python", {}, other, "s") is None
    assert run_sh.replacement([RUN_SH, "-f", "{connection_file}"], "python", {}, other, "s") is None
    assert run_sh.replacement(THEIR_ARGV, "julia", {}, other, "s") is None


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"launcher": "dask"}, "names the launcher 'dask'"),
        ({"interrupt_signal": "SIGNONE"}, "has the interrupt_signal 'SIGNONE'"),
        ({"on_exit": "rm -rf"}, "has an on_exit that is no list"),
    ],
)
def test_a_kernelspecs_slips(config: dict[str, Any], said: str) -> None:
    """What a kernelspec says of its launcher is checked before a host is bothered."""
    with pytest.raises(RequestInvalid, match=said):
        shipping_of(config, ["x"], "s")


def test_a_clients_options_are_never_pasted() -> None:
    """References to KERNEL_EXTRA_SPARK_OPTS leave the kernelspec's options, and those alone: the launcher adds the words."""
    env = {
        "SPARK_OPTS": "--a ${KERNEL_EXTRA_SPARK_OPTS} $KERNEL_EXTRA_SPARK_OPTS ${KERNEL_EXTRA_SPARK_OPTS:-x} $KERNEL_ID",
        "OTHER": "$KERNEL_EXTRA_SPARK_OPTS",
    }
    assert without_clients_options(env) == {"SPARK_OPTS": "--a    $KERNEL_ID", "OTHER": "$KERNEL_EXTRA_SPARK_OPTS"}


def test_a_run_sh_evaluates_nothing_of_a_clients(tmp_path: Path) -> None:
    """For a script that has a shell evaluate them, a client's options are words in quotes, and only options at that."""
    spec = {"SPARK_OPTS": "--master yarn ${KERNEL_EXTRA_SPARK_OPTS}", "LAUNCH_OPTS": "", "OTHER": "$HOME"}
    marker = tmp_path / "marker"
    client = {
        "KERNEL_EXTRA_SPARK_OPTS": f"--conf 'spark.x=$(touch {marker}) `touch {marker}` ; touch {marker} $HOME'",
        "LAUNCH_OPTS": f"--debug '& touch {marker} &'",
    }
    spec_env, env = for_scripts(spec, client)
    given = {**expand_all(spec_env, {}, env), **env}
    shown = 'eval printf \'%s\\\\n\' "${SPARK_OPTS}" "${LAUNCH_OPTS}"'  # as run.sh does with spark-submit
    done = subprocess.run(["bash", "-c", shown], env=given, capture_output=True, text=True, check=True)
    said = shlex.split(client["KERNEL_EXTRA_SPARK_OPTS"])
    assert done.stdout.splitlines() == ["--master", "yarn", *said, "--debug", f"& touch {marker} &"]
    assert not marker.exists()
    assert for_scripts({"SPARK_OPTS": "--master yarn"}, client) == ({"SPARK_OPTS": "--master yarn"}, client)
    assert for_scripts({}, {"KERNEL_EXTRA_SPARK_OPTS": "'"})  # nobody's business where no option refers to it
    for wrong in ("& id ;", "--proxy-user root", "'"):
        with pytest.raises(RequestInvalid, match="KERNEL_EXTRA_SPARK_OPTS"):
            for_scripts(spec, {"KERNEL_EXTRA_SPARK_OPTS": wrong})


@pytest.mark.parametrize("name", ["bob & id", "", "-u", "$(id)", "a b"])
def test_a_user_to_run_as_is_a_name(name: str) -> None:
    """What reaches a command line on the node as a user is one."""
    check_user("bob.of-the_site")
    with pytest.raises(RequestInvalid, match="is no user's name"):
        check_user(name)

"""Kernelspecs on Spark that sites have: Enterprise Gateway's own, converted ones, and its own tests against ours."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eg_distributed.kernelspecs import names
from eg_distributed.kernelspecs.conversion import OURS, THEIRS, convert
from eg_distributed.launchers.spark.java import MODULE_OPTIONS
from lab import Gateway, Lab
from lab.drivers.spark_kernelspecs import ENV, SITE
from lab.spark.clusters import cluster
from tests.integration.client import GatewayClient, GatewayError
from tests.integration.conftest import end_gateway
from tests.integration.spark_lab import (
    SESSION_SECONDS,
    nothing_left,
    on_executors,
    running,
    specs,
)

pytestmark = pytest.mark.timeout(400)
RUN_SH = "/usr/local/share/jupyter/kernels/spark_python_yarn_client/bin/run.sh"


def theirs(class_name: str = OURS) -> dict[str, Any]:
    """Return Enterprise Gateway's own kernel.json of spark_python_yarn_client, with the paths of the lab's nodes."""
    argv = [RUN_SH]
    for option in ("kernel-id", "response-address", "public-key", "port-range"):
        argv += [f"--RemoteProcessProxy.{option}", "{" + option.replace("-", "_") + "}"]
    argv += ["--RemoteProcessProxy.spark-context-initialization-mode", "lazy"]
    env = {
        "SPARK_HOME": "/opt/spark",
        "PYSPARK_PYTHON": SITE.python,
        "PYTHONPATH": "${HOME}/.local/lib/python3.8/site-packages:/opt/spark/python/lib/py4j-0.10.9.7-src.zip",
        "SPARK_YARN_USER_ENV": "PYTHONUSERBASE=/home/yarn/.local,SEEN_BY=${USER:-nobody}",
        "SPARK_OPTS": "--master yarn --deploy-mode client --name ${KERNEL_ID:-ERROR__NO__KERNEL_ID} ${KERNEL_EXTRA_SPARK_OPTS}",
        "LAUNCH_OPTS": "",
        "HADOOP_CONF_DIR": "/etc/hadoop",
        **ENV,
    }
    return {
        "language": "python",
        "display_name": "Spark - Python (YARN Client Mode)",
        "metadata": {"process_proxy": {"class_name": class_name}, "debugger": True},
        "env": env,
        "argv": argv,
    }


@pytest.fixture(scope="module")
def sites(spark_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with Enterprise Gateway's own kernelspec by our proxy, and with what `kernelspecs convert` makes of it."""
    folder = tmp_path_factory.mktemp("kernels") / "spark_python_yarn_client"
    folder.mkdir()
    (folder / "kernel.json").write_text(json.dumps(theirs(THEIRS)))
    converted = convert(folder, cluster(spark_lab, "spark").address)
    converted.write()
    standalone = json.loads((converted.target / "kernel.json").read_text())
    gateway = spark_lab.add_gateway(
        "sites",
        kernelspecs={"theirs_yarn_client": theirs(), "theirs_standalone": standalone},
        env={"EG_KERNEL_LAUNCH_TIMEOUT": "60"},
    )
    yield gateway
    end_gateway(gateway)


@pytest.mark.parametrize("spec", ["theirs_yarn_client", "theirs_standalone"])
async def test_kernelspecs_of_enterprise_gateway_run(spark_lab: Lab, sites: Gateway, spec: str) -> None:
    """Its kernelspec, by our proxy, on a current Spark, with nothing of it on the nodes; converted, on the standalone master."""
    node = spark_lab.nodes[0]
    assert node.exec(["ls", RUN_SH]).exit_code != 0
    async with GatewayClient(sites.url) as client:
        kernel = await client.start_kernel(spec, env={"KERNEL_EXTRA_SPARK_OPTS": "--conf 'spark.eg.words=a b;c'"})
        assert await kernel.evaluate("spark.range(100).count()", SESSION_SECONDS) == 100
        assert await kernel.evaluate("sc.getConf().get('spark.eg.words')") == "a b;c"
        on = cluster(spark_lab, "yarn" if spec.endswith("yarn_client") else "spark")
        assert len(running(on, kernel.id)) == 1
        assert "/.local/lib/python3.8/site-packages" in await kernel.evaluate("__import__('os').environ['PYTHONPATH']")
        if spec.endswith("yarn_client"):
            seen = "sc.parallelize([0]).map(lambda _: __import__('os').environ.get('SEEN_BY')).first()"
            assert await kernel.evaluate(seen, SESSION_SECONDS) == "lab"  # expanded once, on the driver's node
        await client.close_kernels()
    await nothing_left(spark_lab)


TESTS = {"python": 10, "scala": 8, "R": 8}
FAILING = {"R": ["test_get_application_id"]}
"""Its test calls SparkR itself, which no node has."""
SKIPPED = {"python": ["test_run_pi_example"]}
"""What is disabled in the suite itself."""


@pytest.mark.parametrize(
    "language", ["python", *(pytest.param(other, marks=pytest.mark.long) for other in ("scala", "R"))]
)
async def test_its_own_client_tests_pass(spark_lab: Lab, spark_gateway: Gateway, language: str) -> None:
    """Enterprise Gateway's integration tests of the client kernelspecs, as it ships them, pass on YARN, but for one of R's."""
    settings = {
        "GATEWAY_HOST": "127.0.0.1:8888",
        "ITEST_HOSTNAME_PREFIX": "node",
        "KERNEL_USERNAME": "lab",
        "KERNEL_LAUNCH_TIMEOUT": "60",
        f"{language.upper()}_KERNEL_CLIENT_NAME": f"spark_{language}_yarn_client",
        "EXPECTED_APPLICATION_ID": "application_*",
        "EXPECTED_SPARK_VERSION": "3.5.*",
        "EXPECTED_SPARK_MASTER": "yarn",
        "EXPECTED_DEPLOY_MODE": "client",
    }
    environment = [f"{name}={value}" for name, value in settings.items()]
    suite = f"enterprise_gateway.itests.test_{language.lower()}_kernel"
    argv = ["env", *environment, spark_gateway.python, "-m", "unittest", "-v", "-k", "Client", suite]
    done = await asyncio.to_thread(spark_gateway.exec, argv, timeout=300)
    said = done.stderr + done.stdout
    ran = re.search(r"^Ran (\d+) tests", said, re.MULTILINE)
    assert ran is not None, said
    assert int(ran[1]) == TESTS[language], said
    assert re.findall(r"^(?:FAIL|ERROR): (\w+)", said, re.MULTILINE) == FAILING.get(language, []), said
    assert re.findall(r"^(test_\w+) .*skipped", said, re.MULTILINE) == SKIPPED.get(language, []), said
    await nothing_left(spark_lab)


def test_the_jvm_is_started_as_spark_would(spark_lab: Lab) -> None:
    """Spark's own launcher, asked on a node, comes to the same Java options as ours do without it."""
    argv = ["--master", "yarn", "--driver-memory", "300m", "pyspark-shell"]
    java = ENV["JAVA_HOME"]
    environment = ["env", "SPARK_HOME=/opt/spark", "SPARK_SCALA_VERSION=2.12", f"JAVA_HOME={java}"]
    main = ["org.apache.spark.launcher.Main", "org.apache.spark.deploy.SparkSubmit"]
    done = spark_lab.nodes[0].exec([*environment, f"{java}/bin/java", "-cp", "/opt/spark/jars/*", *main, *argv]).check()
    words = [word for word in re.split(r"[\0\n]+", done.stdout) if word]
    begin = words.index(MODULE_OPTIONS[0])
    assert tuple(words[begin : begin + len(MODULE_OPTIONS)]) == MODULE_OPTIONS
    assert words[begin + len(MODULE_OPTIONS)] == "org.apache.spark.deploy.SparkSubmit"
    assert "-Xmx300m" in words[:begin]


DOCS = Path(__file__).parents[2] / "docs" / "spark.md"
EXAMPLES = {
    "/opt/conda/bin/python": str(SITE.python),
    "/etc/hadoop/conf": str(SITE.hadoop_conf_dir),
    "spark://master.example.com:7077": str(SITE.master),
}
"""What docs/spark.md has in place of a site's own, and what that is here."""


def documented() -> list[list[str]]:
    """Return the commands of docs/spark.md as they stand there, in order, with this lab's paths and master."""
    blocks = re.findall(r"^```\n(.*?)^```$", DOCS.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    text = "".join(blocks).replace("\\\n", " ")
    for example, here in EXAMPLES.items():
        assert example in text
        text = text.replace(example, here)
    return [shlex.split(line) for line in text.splitlines()]


@pytest.mark.long
async def test_the_documented_commands_make_kernels(spark_lab: Lab) -> None:
    """The commands of docs/spark.md, in their order, at a gateway: what they install and convert makes kernels on executors."""
    gateway = spark_lab.add_gateway("documented", env={"EG_KERNEL_LAUNCH_TIMEOUT": "60"})
    try:
        folder, copy = "/usr/local/share/jupyter/kernels", "spark_python_converted_standalone"
        environment = ["env", f"PATH={Path(gateway.python).parent}:/usr/bin:/bin"]
        # The lab's gateways offer the samples already: the user of the docs has none.
        gateway.exec(["rm", "-rf", *(f"{folder}/{name}" for name in names())], user="root").check()
        commands = documented()
        assert [command[:4] for command in commands] == [
            ["jupyter", "distributed", "kernelspecs", verb] for verb in ("install", "convert", "convert")
        ]
        # The last as the page goes on to say: written, and by a name of its own, since the samples have the usual one.
        for command in (*commands, [*commands[-1], "--name", copy, "--write"]):
            done = gateway.exec([*environment, *command], user="root", timeout=60)
            assert done.exit_code == 0, done.stderr
        listed = gateway.exec([*environment, "jupyter", "kernelspec", "list"]).check().stdout
        for name in (*names(), copy):
            assert f"{folder}/{name.lower()}\n" in f"{listed.lower()}\n"
        async with GatewayClient(gateway.url) as client:
            for spec in ("spark_python_yarn_client", copy):
                kernel = await client.start_kernel(spec)
                await on_executors(spark_lab, kernel)
                await kernel.delete()
        await nothing_left(spark_lab)
    finally:
        end_gateway(gateway)


async def test_impersonation_on_yarn(spark_lab: Lab) -> None:
    """With impersonation the application is the user's; what is no name, and a master that knows no users, are refused."""
    gateway = spark_lab.add_gateway(
        "impersonating",
        kernelspecs=specs(),
        env={"EG_IMPERSONATION_ENABLED": "True", "EG_KERNEL_LAUNCH_TIMEOUT": "60"},
    )
    try:
        async with GatewayClient(gateway.url) as client:
            kernel = await client.start_kernel("spark_python_yarn_client", env={"KERNEL_USERNAME": "alice"})
            result = await kernel.execute("print(sc.sparkUser())", SESSION_SECONDS)
            assert result.status == "ok", result.errors
            assert result.stdout == "alice\n"
            (application,) = running(cluster(spark_lab, "yarn"), kernel.id)
            assert application.user == "alice"
            for spec, name, cause in (
                ("spark_python_yarn_client", "alice & id", "is no user's name"),
                ("spark_python_standalone", "alice", "only YARN runs applications for others"),
            ):
                with pytest.raises(GatewayError) as refused:
                    await client.start_kernel(spec, env={"KERNEL_USERNAME": name})
                assert cause in str(refused.value)
            await client.close_kernels()
        await nothing_left(spark_lab)
    finally:
        end_gateway(gateway)

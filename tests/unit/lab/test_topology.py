import json
import sys
from pathlib import Path

import jsonschema
import pytest

from lab.errors import LabNotFound, LabUsageError
from lab.topology import NodeGroup, Topology, load, loads, schema
from lab.topology.naming import gateway_names, matches, node_names
from lab.topology.reading import line_of
from lab.topology.schema import FILE, text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXAMPLE = FILE.parent / "lab.example.toml"


def test_the_least_file_is_the_lab_that_up_makes() -> None:
    """A version alone means three nodes and a gateway, as `lab up` without a file does."""
    found = loads("version = 1\n")
    assert found == Topology()
    assert node_names("node", found.nodes["node"]) == ["node1", "node2", "node3"]
    assert gateway_names("gateway", found.gateways["gateway"]) == ["gateway"]


def test_the_example_is_read_whole() -> None:
    """Units, templates, nested tables and the key that Python has a word for arrive as what they mean."""
    found = load(EXAMPLE)
    big = found.nodes["big"]
    assert (found.name, found.lease, found.auth.kind, found.auth.validity) == (
        "example",
        28800.0,
        "certificates",
        86400,
    )
    assert (big.limits.memory, big.limits.cpus, big.limits.disk) == (512 << 20, 0.5, None)
    assert big.sshd == {"MaxSessions": 4, "AllowTcpForwarding": False, "AcceptEnv": ("LANG", "LC_*")}
    assert [step["for"] for step in found.fault_plan()] == [10.0, 15.0]
    assert found.kernelspecs["python_quiet"].argv[0] == "/opt/kernel/bin/python"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("version = 1\n[nodes.a]\nshel = 'bash'\n", 3, ["nodes.a.shel", "did you mean 'shell'?"]),
        ("version = 1\n[nodes.a]\nshell = 'bsh'\n", 3, ["'bsh' is none of bash, csh, fish", "'bash'"]),
        ("version = 1\n\n[node.a]\n", 3, ["unknown key 'node'", "did you mean 'nodes'?"]),
        ("version = 1\n[nodes.a]\ncount = '3'\n", 3, ["must be a whole number"]),
        ("version = 1\n[nodes.a]\ncount = true\n", 3, ["must be a whole number"]),
        ("version = 1\n[nodes.a.limits]\nmemory = '5x'\n", 3, ["no size", "512m"]),
        ("version = 1\n[nodes.a.limits]\nmemory = '1k'\n", 3, ["too little"]),
        ("version = 1\n[[faults]]\nfault = 'a'\n[[faults]]\nfault = 'b'\nnode = ['a']\n", 6, ["faults[2].node"]),
        ("version = 1\n[[faults]]\nat = 3\n", 2, ["'fault' is missing"]),
        ("version = 1\n[[faults]]\nfault = 'a'\nnodes = ['nod9']\n", 4, ["'nod9' is no node", "node1"]),
        ("version = 2\n", 1, ["reads version 1"]),
        ("nodes = 1\n", 1, ["version is missing"]),
        ("version = 1\n[nodes.a]\nname = 'one'\n", 3, ["can't name 3 nodes", "{n}"]),
        ("version = 1\n[nodes.a]\nname = 'x{n}'\n[nodes.b]\nname = 'x{n}'\n", 5, ["is a name of [nodes.a] too"]),
        ("version = 1\n[nodes.a]\ncount = 0\n", 2, ["can't have 0 nodes"]),
        ("version = 1\n[nodes.a]\ncount = 161\n", 2, ["can't have 161 nodes"]),
        ("version = 1\n[nodes.a]\nusers = ['bob']\n", 3, ["no [users.bob]"]),
        ("version = 1\n[users.root]\n", 2, ["'root' already"]),
        ("version = 1\n[nodes.a]\npackages = ['a b; rm']\n", 3, ["must match"]),
        ("version = 1\n[nodes.a]\npackages = ['ab/../x']\n", 3, ["must match"]),
        ("version = 1\n[nodes.a.sshd]\nMatch = 'all'\n", 3, ["can't be here"]),
        ('version = 1\n[nodes.a.sshd]\nBanner = "a\\nPermitRootLogin yes"\n', 3, ["no line break"]),
        ("version = 1\n[nodes.a.login_env]\n'A B' = ''\n", 3, ["no name of a variable"]),
        ("version = 1\n[gateways.g]\nhosts = ['@gpu']\n", 3, ["'@gpu' is no node"]),
        ("version = 1\n[nodes.gateway]\ncount = 1\nname = 'gateway'\n", 1, ["[nodes.gateway] too"]),
        ("version = 1\nname = 'A B'\n", 2, ["can't be"]),
        ("version = 1\n[nodes.'A B']\n", 2, ["'A B' can't be: it must match [a-z0-9]"]),
        ("version = 1\n[nodes]\na = 3\n", 3, ["nodes.a", "must be a table"]),
        (
            "version = 1\n[nodes.a]\n[nodes.b]\nname = 'b{n}'\nroles = ['x', 'Y']\n",
            5,
            ["nodes.b.roles[2]", "'Y' can't be"],
        ),
        ("version = 1\n[nodes.a]\nroles = 'x'\n", 3, ["must be a list", "['x']"]),
        ("version = 1\n[nodes.a]\ncount = -1\n", 3, ["-1 is too little: 0 is the least"]),
        ("version = 1\n[nodes.a]\ncount = 3.0\n", 3, ["must be a whole number, not 3.0"]),
        ("version = 1\n[nodes.a.limits]\ncpus = true\n", 3, ["must be a number, not True"]),
        (
            "version = 1\n[nodes.a.sshd]\nBanner = 1.5\n",
            3,
            ["must be a string or a whole number or true or false or a list"],
        ),
        ("version = 1\n[nodes.a.sshd]\nAcceptEnv = ['A', 3]\n", 3, ["nodes.a.sshd.AcceptEnv", "a list"]),
        ('version = 1\n[nodes.a.sshd]\nAcceptEnv = ["A", "B\\n"]\n', 3, ["no line break"]),
        ('version = 1\n[nodes."a\\n"]\n', 1, ["no line break"]),
        ("version = 1\n[nodes.a.login_env]\nA = 3\n", 3, ["nodes.a.login_env.A", "must be a string, not 3"]),
        ("version = 1\nlease = '3 weeks'\n", 2, ["'3 weeks' is not a duration", "7d"]),
        ("version = 1\nlease = '9s'\n", 2, ["'9s' is too little: 10 is the least"]),
        ("version = 1\nlease = nan\n", 2, ["nan is not a duration"]),
        ("version = 1\nlease = inf\n", 2, ["inf is not a duration"]),
        ("version = 1\nlease = '3651d'\n", 2, ["'3651d' is too much: 315360000 is the most"]),
        ("version = 1\n[nodes.a]\ncount = 1001\n", 3, ["1001 is too much: 1000 is the most"]),
        ("version = 1\n[nodes.a]\ncount = 9223372036854775808\n", 3, ["is too much: 1000 is the most"]),
        ("version = 1\n[gateways.a]\ncount = 1001\n", 3, ["1001 is too much: 1000 is the most"]),
        ("version = 1\n[nodes.a.limits]\nmemory = inf\n", 3, ["inf is no size"]),
        ("version = 1\n[nodes.a.limits]\nmemory = nan\n", 3, ["nan is no size"]),
        ("version = 1\n[nodes.a.limits]\nmemory = '9999999g'\n", 3, ["is too much"]),
        ("version = 1\n[nodes.a.limits]\ncpus = nan\n", 3, ["must be a number, not nan"]),
        ("version = 1\n[nodes.a.limits]\ncpus = inf\n", 3, ["inf is too much: 4096 is the most"]),
        ("version = 1\n[nodes.a.limits]\npids = 4194305\n", 3, ["is too much: 4194304 is the most"]),
        ("version = 1\n[[faults]]\nfault = 'pause'\nfor = inf\n", 4, ["inf is not a duration"]),
        ("version = 1\nlease = true\n", 2, ["must be a duration, as '2h'"]),
        ("version = 1\nwith = ['sparc']\n", 2, ["with[1]", "'sparc' is none of spark, yarn", "did you mean 'spark'?"]),
        ("version = 1\n[kernelspecs.k]\nenv = {}\n", 2, ["'argv' is missing", "command line on the node"]),
        ("version = true\n", 1, ["reads version 1"]),
    ],
)
def test_what_can_not_be_is_refused_with_its_line(text: str, line: int, words: list[str]) -> None:
    """Every refusal names file and line, what is wrong, and the nearest right word."""
    with pytest.raises(LabUsageError) as caught:
        loads(text, "my.toml")
    said = str(caught.value)
    assert said.startswith(f"my.toml:{line}"), said
    for word in words:
        assert word in said


def test_a_file_that_is_no_toml_says_where() -> None:
    """The standard library's own words carry the line."""
    with pytest.raises(LabUsageError, match="line 2"):
        loads("version = 1\n[nodes\n")


@pytest.mark.parametrize(
    "text", ["seed = " + "9" * 5000, "faults = " + "[" * 100_000], ids=["a number of 5000 digits", "a list too deep"]
)
def test_what_pythons_reader_does_not_take_is_refused_in_words(text: str) -> None:
    """Not every error of it is one that it calls its own; the refusal stays short."""
    with pytest.raises(LabUsageError, match=r"my\.toml is no TOML") as caught:
        loads(f"version = 1\n{text}\n", "my.toml")
    assert len(str(caught.value)) < 300


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    """A name that leads nowhere ends with the exit code for it."""
    with pytest.raises(LabNotFound):
        load(tmp_path / "none.toml")


def test_lines_are_found_inside_tables_of_tables() -> None:
    """A table below the second entry of a list is told from the one below the first."""
    text = "[[faults]]\n[faults.options]\np = 1\n[[faults]]\n[faults.options]\np = 2\n"
    assert line_of(text, ("faults", 0, "options", "p")) == 3
    assert line_of(text, ("faults", 1, "options", "p")) == 6


def test_the_published_schema_is_current() -> None:
    """docs/lab.schema.json is what the classes of model.py say; `python -m lab.topology` writes it anew."""
    assert FILE.read_text() == text()


def test_the_example_fits_the_schema() -> None:
    """What the reader takes, an editor with the schema takes; what it refuses, that refuses too."""
    checker = jsonschema.Draft202012Validator(schema())
    checker.check_schema(schema())
    data = tomllib.loads(EXAMPLE.read_text())
    assert [error.message for error in checker.iter_errors(data)] == []
    data["nodes"]["big"]["shel"] = "bash"
    assert ["shel" in error.message for error in checker.iter_errors(data)] == [True]


def test_every_key_is_explained() -> None:
    """No key of the file is without a sentence."""
    document = json.loads(text())
    for table in (document, *document["$defs"].values()):
        for name, key in table["properties"].items():
            assert key.get("description"), name


def test_patterns_choose_nodes() -> None:
    """A node is meant by its short name, its full name, a pattern or a role."""
    gpu = NodeGroup(domain="x.test", roles=("spark",))
    assert matches("gpu1", "gpu1", gpu)
    assert matches("gpu1.x.test", "gpu1", gpu)
    assert matches("gpu*", "gpu12", gpu)
    assert matches("@spark", "gpu1", gpu)
    assert not matches("gpu1", "gpu12", gpu)
    assert not matches("@yarn", "gpu1", gpu)

"""Kernelspecs made of what hosts say: named and grouped, and nothing that a host says does more than start a kernel there."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from typing import Any

import pytest

from eg_distributed.kernelspecs import host_kernelspecs
from eg_distributed.kernelspecs.guard import guarded, without_guard
from eg_distributed.kernelspecs.host_kernelspecs import LOGO_SIZE, Offered, environment_label, offered
from eg_distributed.protocol import HostKernelspecs
from eg_distributed.settings import Distributed

ARGV = ["/usr/bin/python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
SVG = base64.b64encode(b"<svg/>").decode()


def said(name: str = "python3", **more: Any) -> dict[str, Any]:
    """Return what an honest host says of a kernelspec of its system, but for *more*."""
    system = {"root": "/usr/share/jupyter/kernels", "folder": f"/usr/share/jupyter/kernels/{name}", "prefix": "/usr"}
    known = {"name": name, "is_environment": False, "argv": ARGV, "display_name": "Python 3", "language": "python"}
    return {**system, **known, **more}


def in_environment(prefix: str, **more: Any) -> dict[str, Any]:
    """Return the same of one in an environment."""
    return said(prefix=prefix, is_environment=True, argv=[f"{prefix}/bin/python", *ARGV[1:]], **more)


def made(
    answers: dict[str, list[Any]],
    logos: dict[str, str] | None = None,
    names: dict[str, str] | None = None,
    *,
    is_settled: bool = True,
    **settings: Any,
) -> dict[str, Offered]:
    """Return what is offered of *answers*, by name."""
    found = {host: HostKernelspecs(entries, dict(logos or {})) for host, entries in answers.items()}
    made = offered(found, Distributed(remote_hosts=[*answers], **settings), names, is_settled=is_settled)
    return {each.name: each for each in made}


def plain(names: Iterable[str]) -> list[str]:
    """Return *names* with N in the place of what tells those of one name apart."""
    return [re.sub(r"-[0-9a-f]{6}\Z", "-N", name) for name in names]


def names_of(specs: dict[str, Offered]) -> dict[str, str]:
    """Return what a server remembers of what it offers."""
    return {each.key: each.name for each in specs.values()}


def spec_of(each: Offered) -> Any:
    return json.loads(each.kernel_json)


def hosts_of(specs: dict[str, Offered]) -> dict[str, list[str]]:
    """Return for which hosts each kernelspec is."""
    return {
        name: spec_of(each)["metadata"]["kernel_provisioner"]["config"]["remote_hosts"] for name, each in specs.items()
    }


# -- names and groups ----------------------------------------------------------------------------------------------


def test_a_kernelspec_is_one_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its argv is guarded from clients that know no provisioners; it says for people and programs where it runs."""
    (each,) = made(
        {"node1": [said(env={"A": "$B"}, interrupt_mode="message", debugger=True, features=["debugger"])]}
    ).values()
    assert each.name == "python3.node1"
    assert spec_of(each) == {
        "argv": guarded(ARGV),
        "display_name": "Python 3 · node1",
        "language": "python",
        "env": {"A": "$B"},
        "interrupt_mode": "message",
        "metadata": {
            "debugger": True,
            "supported_features": ["debugger"],
            "kernel_provisioner": {
                "provisioner_name": "eg-distributed",
                "config": {"remote_hosts": ["node1"], "bring_folder": False},
            },
            "eg_distributed": {"hosts": ["node1"]},
        },
    }


@pytest.mark.parametrize(
    ("mode", "names"),
    [
        ("auto", ["python3.any", "python3.node1", "python3.node2", "ir.node2"]),
        ("both", ["python3.any", "python3.node1", "python3.node2", "ir.node2"]),
        ("any", ["python3.any", "ir.node2"]),
        ("each", ["python3.node1", "python3.node2", "ir.node2"]),
    ],
)
def test_which_kernelspecs_there_are(mode: str, names: list[str]) -> None:
    """One for any host is for those that have the same; what one host alone has is that host's."""
    specs = made({"node1": [said()], "node2": [said(), said("ir")]}, host_kernelspecs=mode)
    assert [*specs] == names
    assert hosts_of(specs).get("python3.any", ["node1", "node2"]) == ["node1", "node2"]
    if "python3.any" in specs:
        assert spec_of(specs["python3.any"])["display_name"] == "Python 3 · any host"


def test_many_hosts_have_one_kernelspec_for_all() -> None:
    """Unless each is asked for."""
    answers: dict[str, list[Any]] = {f"node{number}": [said()] for number in range(host_kernelspecs.FEW_HOSTS + 1)}
    assert [*made(answers)] == ["python3.any"]
    assert len(made(answers, host_kernelspecs="both")) == len(answers) + 1


@pytest.mark.parametrize(
    "other",
    [
        {"argv": ["/opt/bin/python3", *ARGV[1:]]},
        {"env": {"A": "1"}},
        {"display_name": "Another"},
        {"language": "other"},
        {"interrupt_mode": "message"},
        {"debugger": True},
    ],
)
def test_what_differs_is_not_for_any_host(other: dict[str, Any]) -> None:
    """Each host has its own then: no host has what another one says executed."""
    assert [*made({"node1": [said()], "node2": [said(**other)]})] == ["python3.node1", "python3.node2"]


def test_of_two_kinds_the_one_of_more_hosts_is_for_any() -> None:
    """The other has something behind its name."""
    other = said(argv=["/opt/python", *ARGV[1:]])
    answers = {"a": [other], "b": [said()], "c": [said()], "d": [other], "e": [said()]}
    specs = made(answers, host_kernelspecs="any")
    assert plain(specs) == ["python3.any", "python3.any-N"]
    assert [*hosts_of(specs).values()] == [["b", "c", "e"], ["a", "d"]]


def test_a_name_keeps_its_meaning() -> None:
    """Whichever kernelspec comes or goes, and whatever else changes of it: a notebook that was saved runs in the same program."""
    other = said(argv=["/opt/python", *ARGV[1:]])
    first = made({"a": [other], "b": [said()], "c": [said()], "d": [other], "e": [said()]}, host_kernelspecs="any")
    answers = {"a": [other], "b": [said()], "c": [said()], "d": [other], "e": [other], "f": [other]}
    second = made(answers, None, names_of(first), host_kernelspecs="any")
    assert hosts_of(second)["python3.any"] == ["b", "c"]
    assert second.keys() == first.keys()
    one, two = in_environment("/a/stats"), in_environment("/b/stats")
    first = made({"node1": [one, two]})
    assert plain(first) == ["python3-stats.node1", "python3-stats.node1-N"]
    for later in ([two, one], [two], [in_environment("/b/stats", display_name="New", env={"A": "1"})]):
        second = made({"node1": later}, None, names_of(first))
        of_two = [name for name, each in second.items() if "/b/stats/bin/python" in each.kernel_json]
        assert of_two == [[*first][1]]
    assert [*made({"node1": [two]})] == ["python3-stats.node1"]
    assert [*made({"node1": [two]}, None, dict.fromkeys(names_of(first), "../x"))] == ["python3-stats.node1"]


def test_what_may_be_for_any_host_in_a_moment_is_not_offered_for_one() -> None:
    """As long as others have not said what they have; one that was offered before stays."""
    answers = {"node1": [said()], "node2": [said("ir"), said("julia")]}
    assert [*made(answers, host_kernelspecs="any", is_settled=False)] == []
    settled = made(answers, host_kernelspecs="any")
    assert [*settled] == ["python3.node1", "ir.node2", "julia.node2"]
    assert [*made(answers, None, names_of(settled), host_kernelspecs="any", is_settled=False)] == [*settled]
    assert [*made(answers, host_kernelspecs="both", is_settled=False)] == [*settled]


def test_environments_are_told_apart_by_their_names() -> None:
    """A folder that is only called venv has the name of the one that it is in; of two of one name the second is marked."""
    prefixes = ["/opt/conda", "/home/u/envs/New One", "/home/u/p/.venv", "/home/u/q/p"]
    specs = made({"node1": [said(), *map(in_environment, prefixes)]})
    assert plain(specs) == [
        "python3.node1", "python3-conda.node1", "python3-new-one.node1", "python3-p.node1", "python3-p.node1-N",
    ]  # fmt: skip
    assert spec_of(specs["python3-new-one.node1"])["display_name"] == "Python 3 [New One] · node1"
    assert [environment_label(prefix) for prefix in ("", "/", "/venv", "/a/venv/.venv")] == [
        "environment", "environment", "venv", "a",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"kernelspecs_shown": "py*"}, ["python3.any", "python3.node1", "python3.node2"]),
        ({"kernelspecs_shown": "*.node1,ir"}, ["python3.node1", "ir.node2"]),
        ({"kernelspecs_hidden": "ir"}, ["python3.any", "python3.node1", "python3.node2"]),
        ({"kernelspecs_hidden": "*.node?"}, ["python3.any"]),
        ({"kernelspec_name": "{host}-{kernelspec}"}, ["any-python3", "node1-python3", "node2-python3", "node2-ir"]),
        ({"kernelspec_name": "{kernelspec}"}, ["python3", "python3-N", "python3-N", "ir"]),
        ({"kernelspec_name": "{host.a} {x}"}, ["host.a-x", "host.a-x-N", "host.a-x-N", "host.a-x-N"]),
    ],
)  # fmt: skip
def test_filters_and_names_by_setting(settings: dict[str, Any], names: list[str]) -> None:
    """Patterns go by the name that notebooks have, or the host's own; a format is filled in, and never evaluated."""
    assert plain(made({"node1": [said()], "node2": [said(), said("ir")]}, **settings)) == names


def test_a_host_of_any_spelling_has_a_name_that_jupyter_takes() -> None:
    """An address as well."""
    assert [*made({"Node1.Example.ORG": [said()]})] == ["python3.node1.example.org"]
    assert [*made({"2001:db8::1": [said("ir")]})] == ["ir.2001-db8-1"]


def test_a_bound_on_how_many_are_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those for any host come first."""
    monkeypatch.setattr(host_kernelspecs, "MOST", 2)
    assert [*made({"node1": [said()], "node2": [said()]})] == ["python3.any", "python3.node1"]


# -- hosts that lie ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lie",
    [
        {"name": "../../etc"},
        {"name": "a/b"},
        {"name": "a b"},
        {"name": ""},
        {"name": "Python"},
        {"name": "x" * 101},
        {"argv": ["python", "{connection_file}"]},
        {"argv": ["/bin/sh"]},
        {"argv": []},
        {"argv": "/bin/sh {connection_file}"},
        {"argv": ["/a", "{connection_file}", "\0"]},
        {"argv": ["/a", "{connection_file}", "\ud800"]},
        {"argv": ["/a", "{connection_file}", *["x" * 4000] * 20]},
        {"argv": ["/bin/run.sh", "{connection_file}", "{response_address}"]},
        {"argv": ["/a", "{connection_file}", "{public_key}"]},
        {"argv": ["/a", "{connection_file}", "{resource_dir}"]},
        {"argv": ["/a", "{connection_file}", "{launcher}"]},
        {"argv": ["/bin/x", *guarded(ARGV)]},
        {"argv": ["/bin/x", "eg_distributed-kernel:", "{connection_file}"]},
        {"env": {"A": 3}},
        {"env": {"A": "\0"}},
        {"env": ["A"]},
        {"language": 3},
        {"display_name": ["x"]},
        {"interrupt_mode": "x"},
        {"debugger": "yes"},
        {"features": "x"},
        {"logos": {"logo-a.png": 3}},
    ],
)
def test_what_no_honest_agent_says_is_left_out(lie: dict[str, Any]) -> None:
    """And nothing else of the host is."""
    assert [*made({"node1": [said(**lie), 3, None, [], said("good")]})] == ["good.node1"]


def test_a_host_cannot_choose_how_or_where_a_kernel_starts() -> None:
    """Whatever else it says: the stanza and its hosts are ours; variables that an adapter reads, it cannot set."""
    evil = {"kernel_provisioner": {"provisioner_name": "local-provisioner"}, "process_proxy": {"class_name": "x"}}
    env = {"KERNEL_REMOTE_HOST": "node2", "EG_X": "1", "PATH": "/x", "BASH_FUNC_x%%": "() {", "": "x"}
    (each,) = made({"node1": [said(env=env, metadata=evil, kernel_provisioner=evil, remote_hosts="node2")]}).values()
    spec = spec_of(each)
    assert spec["env"] == {"PATH": "/x"}
    assert spec["metadata"].keys() == {"debugger", "kernel_provisioner", "eg_distributed"}
    assert spec["metadata"]["kernel_provisioner"]["provisioner_name"] == "eg-distributed"
    assert hosts_of({"k": each}) == {"k": ["node1"]}
    assert without_guard(spec["argv"]) == ARGV


def test_texts_of_a_host_are_one_line() -> None:
    """No control character, no writing in the other direction; what is no language is none."""
    (each,) = made({"node1": [said(display_name="a\x1b[1m\n\u202eb" + "x" * 200, language="py\n")]}).values()
    spec = spec_of(each)
    assert spec["display_name"].startswith("a?[1m ?bxxx")
    assert len(spec["display_name"]) == 100 + len(" · node1")
    assert spec["language"] == ""


def test_pictures_are_pictures() -> None:
    """By name, content and size; a kernelspec has no other files."""
    large = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"x" * LOGO_SIZE).decode()
    pictures = {"p": PNG, "s": SVG, "large": large, "junk": "?", "html": base64.b64encode(b"<html>").decode()}
    names = {
        "logo-64x64.png": "p", "logo-svg.svg": "s", "logo-large.png": "large", "logo-junk.png": "junk", "logo-h.svg": "html",
        "logo-none.png": "none",
    }  # fmt: skip
    (each,) = made({"node1": [said(logos=names)]}, pictures).values()
    assert [name for name, _ in each.logos] == ["logo-64x64.png", "logo-svg.svg"]
    bad = {"kernel.json": "p", "kernel.js": "p", "logo-../x.png": "p", "logo-x.html": "s"}
    (each,) = made({"node1": [said(logos=bad)]}, pictures).values()
    assert each.logos == ()


def test_a_host_fills_neither_a_disk_nor_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that kernelspecs share are copies of each: they have a bound together. A host takes its share of the launcher."""
    large = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"x" * (LOGO_SIZE - 8)).decode()
    logos = {f"logo-{number}.png": "p" for number in range(10)}
    specs = made({"node1": [said(f"k{number}", logos=logos) for number in range(100)]}, {"p": large})
    assert sum(len(content) for each in specs.values() for _, content in each.logos) <= host_kernelspecs.LOGOS_SIZE
    monkeypatch.setattr(host_kernelspecs, "MOST", 50)
    answers = {f"node{number}": [said(f"k{other}{number}") for other in range(40)] for number in (1, 2)}
    assert {host for (host,) in hosts_of(made(answers)).values()} == {"node1", "node2"}


def test_two_names_of_one_host_are_no_two_hosts() -> None:
    """Another spelling of its name does not make it any host."""
    specs = made({"node1": [said()], "NODE1.": [said()]}, host_kernelspecs="both")
    assert plain(specs) == ["python3.node1", "python3.node1-N"]

"""Which kernelspecs a node has for its own users, as its agent says it: found as Jupyter would, made to run, and bounded."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eg_distributed.agent import aside as aside_module
from eg_distributed.agent import kernelspecs
from eg_distributed.agent.aside import EACH
from eg_distributed.agent.kernelspecs import LOGO_SIZE, LOGOS_SIZE, SPEC_SIZE, Kernelspecs
from eg_distributed.protocol import HostKernelspec, HostKernelspecs
from eg_distributed.wire import MAX_ANSWER, encode
from tests.unit.agents import DEADLINE, Refusal, own_agent
from tests.until import until

FILE = "{connection_file}"
SVG, PNG = b"<svg/>", b"\x89PNG\r\n\x1a\n"


class Login:
    """A login with a home of its own, in which nothing is yet, and no other folder is looked at."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.env = {"HOME": str(home), "PATH": str(home / "bin"), "JUPYTER_DATA_DIR": str(home / "data")}
        self.program("bin/python3")

    def program(self, path: str) -> Path:
        """Make a program."""
        made = self.home / path
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_text("#!/bin/sh\n")
        made.chmod(0o755)
        return made

    def spec(self, folder: str, *argv: str, logos: dict[str, bytes] | None = None, **more: Any) -> Path:
        """Make a kernelspec."""
        made = self.home / folder
        made.mkdir(parents=True)
        (made / "kernel.json").write_text(
            json.dumps({"argv": argv, "display_name": made.name, "language": "x", **more})
        )
        for name, content in (logos or {}).items():
            (made / name).write_bytes(content)
        return made

    def ask(self, *patterns: str) -> HostKernelspecs:
        """Return what an agent of this login answers."""
        return asyncio.run(Kernelspecs().find(patterns, self.env))

    def found(self, *patterns: str) -> dict[str, HostKernelspec]:
        """Return the kernelspecs of this home by name, or by name and environment."""
        every = [each for each in self.ask(*patterns).each() if each.folder.startswith(str(self.home))]
        return {f"{each.name} {Path(each.prefix).name}" if each.is_environment else each.name: each for each in every}


@pytest.fixture
def login(tmp_path: Path) -> Login:
    """A login."""
    return Login(tmp_path)


def environment(login: Login, path: str, *names: str, kind: str = "pyvenv.cfg") -> Path:
    """Make an environment with kernelspecs as ipykernel's wheel leaves them."""
    prefix = login.home / path
    login.program(f"{path}/bin/python")
    (prefix / kind).write_text("")
    for name in names:
        login.spec(f"{path}/share/jupyter/kernels/{name}", "python", "-m", "ipykernel_launcher", "-f", FILE)
    return prefix


# -- where ---------------------------------------------------------------------------------------------------------


def test_jupyters_own_folders_in_its_order(login: Login) -> None:
    """JUPYTER_PATH first, then the login's own, then those of programs on PATH; of one name the first is taken."""
    program = str(login.program("bin/kernel"))
    login.env["JUPYTER_PATH"] = str(login.home / "first")
    for folder in ("first/kernels/one", "data/kernels/one", "data/kernels/two", ".ipython/kernels/old"):
        login.spec(folder, program, FILE, display_name=folder)
    login.spec("share/jupyter/kernels/two", program, FILE)
    login.spec("share/jupyter/kernels/three", program, FILE)
    found = login.found()
    assert [*found] == ["one", "two", "three", "old"]
    assert found["one"].display_name == "first/kernels/one"
    assert found["two"].folder == str(login.home / "data" / "kernels" / "two")


def test_environments_by_patterns(login: Login) -> None:
    """Each has its own kernelspec, whatever its name; one that two patterns or links lead to is there once."""
    first, second = environment(login, "envs/a", "python3"), environment(login, "envs/b", "python3")
    (login.home / "envs" / "link").symlink_to(first)
    found = login.found("~/envs/*", f"{login.home}/envs/a", "~/nothing/*")
    assert [*found] == ["python3 a", "python3 b"]
    assert found["python3 b"].prefix == str(second)
    assert login.ask("envs/*").left_out == ["envs/*: a pattern of environments has to begin with / or ~/"]


# -- what is executed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "variable"), [("pyvenv.cfg", "VIRTUAL_ENV"), ("conda-meta", "CONDA_PREFIX")])
@pytest.mark.parametrize("path", ["envs/a", "envs/an $a"])
def test_python_is_the_environments_interpreter(login: Login, kind: str, variable: str, path: str) -> None:
    """And what runs in it finds what its activation would set; a value that looks like a reference is none."""
    prefix = environment(login, path, "python3", kind=kind)
    (found,) = login.found("~/envs/*").values()
    assert found.argv == [f"{prefix}/bin/python", "-m", "ipykernel_launcher", "-f", FILE]
    escaped = str(prefix).replace("$", "$$")
    assert found.env == {"PATH": f"{escaped}/bin:${{PATH}}", variable: escaped}


def test_a_program_of_an_environment_is_its_own_or_none(login: Login) -> None:
    """R of a conda environment is that one; an environment without an interpreter gets none of another."""
    environment(login, "envs/a")
    login.program("bin/R")
    own = login.program("envs/a/bin/R")
    login.spec("envs/a/share/jupyter/kernels/ir", "R", "--args", FILE)
    login.spec("envs/b/share/jupyter/kernels/ir", "R", "--args", FILE)
    assert {name: each.argv[0] for name, each in login.found("~/envs/*").items()} == {"ir a": str(own)}
    assert "R is neither in" in login.ask("~/envs/*").left_out[0]


def test_python_of_a_system_is_the_version_that_has_the_module(login: Login) -> None:
    """`python` there may be an old one, or one of another package; with ~/.local it is one of PATH."""
    for name in ("bin/python", "bin/python3.9", "bin/python3.12"):
        login.program(name)
    (login.home / "lib" / "python3.9" / "site-packages").mkdir(parents=True)
    (login.home / "lib" / "python3.9" / "site-packages" / "ipykernel_launcher.py").touch()
    login.spec("share/jupyter/kernels/python3", "python", "-m", "ipykernel_launcher", "-f", FILE)
    (login.home / ".local" / "lib" / "python3.12" / "site-packages" / "bash_kernel").mkdir(parents=True)
    del login.env["JUPYTER_DATA_DIR"]
    login.spec(".local/share/jupyter/kernels/bash", "python", "-m", "bash_kernel", "-f", FILE)
    found = login.found()
    assert found["python3"].argv[0] == str(login.home / "bin" / "python3.9")
    assert found["bash"].argv[0] == str(login.home / "bin" / "python3.12")
    assert found["bash"].env == {}


def test_placeholders_of_the_node_are_filled_in(login: Login) -> None:
    """`{resource_dir}` and `{prefix}` mean folders there; the connection file is its agent's."""
    program = str(login.program("x"))
    folder = login.spec("share/jupyter/kernels/k", program, "{resource_dir}/a", "{prefix}", FILE)
    assert login.found()["k"].argv == [program, f"{folder}/a", str(login.home), FILE]


# -- what is left out ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"argv": ["/no/such/program", FILE]}, "/no/such/program cannot be executed"),
        ({"argv": ["./python3", FILE]}, "cannot be executed"),
        ({"argv": ["python3"]}, "its argv has no {connection_file}"),
        ({"argv": "python3 {connection_file}"}, "its argv is no list of words"),
        ({"argv": [3, FILE]}, "its argv is no list of words"),
        ({"argv": []}, "its argv is no list of words"),
        ({"env": ["A"]}, "its env is no object"),
        ({"metadata": "x"}, "its metadata are no object"),
        ({"metadata": {"kernel_provisioner": {"provisioner_name": "eg-distributed"}}}, "its kernels run elsewhere"),
        ({"metadata": {"process_proxy": {"class_name": "X"}}}, "it is a gateway's"),
        ({"display_name": "x" * 300}, "display_name"),
        ({"language": 3}, "language"),
        ({"interrupt_mode": "loudly"}, "interrupt_mode"),
        ({"env": {"A": "x" * 5000}}, "env"),
        ({"argv": ["python3", FILE, "x" * SPEC_SIZE]}, f"kernel.json has more than {SPEC_SIZE} bytes"),
    ],
)
def test_a_kernelspec_that_cannot_run_there_is_left_out(login: Login, spec: dict[str, Any], why: str) -> None:
    """With its reason; the others are there."""
    folder = login.home / "data" / "kernels"
    for name, content in {"bad": {"argv": ["python3", FILE], **spec}, "good": {"argv": ["python3", FILE]}}.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "kernel.json").write_text(json.dumps(content))
    assert [*login.found()] == ["good"]
    (reason,) = login.ask().left_out
    assert reason.startswith(f"{folder / 'bad'}: ")
    assert why in reason


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]", b"[" * 5000, b"3"])
def test_a_file_that_is_no_kernelspec_is_left_out(login: Login, content: bytes) -> None:
    """Whatever is in it."""
    login.spec("data/kernels/bad").joinpath("kernel.json").write_bytes(content)
    login.spec("data/kernels/good", "python3", FILE)
    assert [*login.found()] == ["good"]


def test_a_fifo_and_a_name_that_is_none_hold_up_nothing(login: Login) -> None:
    """Nor does a folder without a kernel.json."""
    (login.spec("data/kernels/fifo") / "kernel.json").unlink()
    os.mkfifo(login.home / "data" / "kernels" / "fifo" / "kernel.json")
    (login.home / "data" / "kernels" / "empty").mkdir()
    login.spec("data/kernels/a b", "python3", FILE)
    login.spec("data/kernels/Good", "python3", FILE)
    assert [*login.found()] == ["good"]


# -- bounds --------------------------------------------------------------------------------------------------------


def test_pictures_travel_once_and_have_a_bound(login: Login) -> None:
    """Those of several kernelspecs that are the same are one; what is too large, or no picture's name, is left out."""
    for name in ("a", "b"):
        logos = {"logo-64x64.png": PNG, "logo-svg.svg": SVG, "logo-big.png": PNG + b"x" * LOGO_SIZE, "kernel.js": b"x"}
        login.spec(f"data/kernels/{name}", "python3", FILE, logos=logos)
    answer = login.ask()
    found = login.found()
    assert [*found["a"].logos] == ["logo-64x64.png", "logo-svg.svg"]
    assert found["a"].logos == found["b"].logos
    assert {base64.b64decode(answer.logos[key]) for key in found["a"].logos.values()} == {PNG, SVG}


def test_an_answer_stays_within_its_bound(login: Login) -> None:
    """However many kernelspecs there are, and however large; how many are missing is said."""
    for number in range(210):
        large = {"logo-a.png": PNG + os.urandom(LOGO_SIZE - 100)} if number % 20 == 0 else {}
        env = {f"V{index}": "\u1234" * 1000 for index in range(3)}
        login.spec(f"data/kernels/k{number}", "python3", FILE, logos=large, env=env)
    answer = login.ask()
    assert len(encode({"id": 1, "result": answer.write()})) < MAX_ANSWER
    assert sum(len(base64.b64decode(content)) for content in answer.logos.values()) <= LOGOS_SIZE
    assert 10 < len(answer.kernelspecs) < 210
    assert "more than one answer may have" in answer.left_out[-1]


@pytest.fixture
def hung(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A mount at /hung that answers when the event is set; looks have a short deadline."""
    back, names = threading.Event(), kernelspecs._names

    def look(folder: str) -> list[str]:
        if folder.startswith("/hung") or "/slow/" in folder:
            assert back.wait(DEADLINE)
        return names(folder)

    monkeypatch.setattr(kernelspecs, "_names", look)
    monkeypatch.setattr(kernelspecs, "DEADLINE", 0.3)
    yield back
    back.set()


async def test_a_mount_that_hangs_is_named_and_costs_itself_alone(login: Login, hung: threading.Event) -> None:
    """What else there is comes all the same, as often as it is asked for, and no threads add up."""
    login.spec("data/kernels/good", "python3", FILE)
    login.env["JUPYTER_PATH"] = "/hung"
    looks = Kernelspecs()
    before = threading.active_count()
    for _ in range(6):
        answer = await looks.find([], login.env)
        assert answer.unread == ["/hung/kernels"]
        assert "good" in [each.name for each in answer.each()]
        assert threading.active_count() <= before + EACH
    hung.set()
    assert (await looks.find([], login.env)).unread == []


async def test_what_is_found_too_late_is_the_next_answer(login: Login, hung: threading.Event) -> None:
    """A root that is always slower than the deadline is offered all the same; in time again, it is as it is."""
    login.spec("slow/kernels/late", "python3", FILE)
    login.env["JUPYTER_PATH"] = str(login.home / "slow")
    looks = Kernelspecs()
    assert (await looks.find([], login.env)).unread == [f"{login.home}/slow/kernels"]
    hung.set()
    await until("the look has ended", lambda: looks._late)
    hung.clear()
    answer = await looks.find([], login.env)
    assert (answer.unread, [each.name for each in answer.each()][:1]) == ([], ["late"])
    hung.set()
    await until("all looks have ended", lambda: not aside_module._running)
    assert (await looks.find([], login.env)).unread == []
    assert not looks._late


def test_a_folder_with_any_number_of_names_is_not_listed_whole(login: Login, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of it is; and a look that takes too long ends with what it has."""
    monkeypatch.setattr(kernelspecs, "_LISTED", 5)
    for number in range(10):
        environment(login, f"envs/e{number}", "python3")
    assert len(login.found("~/envs/*")) == 5
    monkeypatch.setattr(kernelspecs, "LONGEST", -1.0)
    answer = login.ask("~/envs/*")
    assert "~/envs/*: there are more, or they take longer" in " ".join(answer.left_out)


def test_environments_share_their_pictures(login: Login, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are with the same, each has them; beyond the bound it is without."""
    monkeypatch.setattr(kernelspecs, "LOGOS_SIZE", len(SVG) + len(PNG))
    for number in range(5):
        logos = {"logo-svg.svg": SVG, "logo-32x32.png": PNG, "logo-own.png": PNG + bytes([number])}
        environment(login, f"envs/e{number}")
        login.spec(f"envs/e{number}/share/jupyter/kernels/k", "python", FILE, logos=logos)
    assert {tuple(each.logos) for each in login.found("~/envs/*").values()} == {("logo-32x32.png", "logo-svg.svg")}


async def test_who_asks_the_same_at_once_has_one_look(login: Login, hung: threading.Event) -> None:
    """And of different questions only some are looked into at once."""
    login.env["JUPYTER_PATH"] = "/hung"
    looks = Kernelspecs()
    same = [asyncio.ensure_future(looks.find(["~/a"], login.env)) for _ in range(5)]
    others = [asyncio.ensure_future(looks.find([f"~/b{number}"], login.env)) for number in range(8)]
    answers = await asyncio.gather(*same, *others, return_exceptions=True)
    assert len({id(answer) for answer in answers[:5]}) == 1
    assert [str(answer) for answer in answers if isinstance(answer, Exception)] == [
        "8 other looks for kernelspecs are under way"
    ]


async def test_a_gateway_is_answered_with_what_the_newest_login_has(short: Path, tmp_path: Path) -> None:
    """By the environment of that login, not of the one that once started the agent; what is no question is refused."""
    login = Login(tmp_path)
    login.spec("data/kernels/good", "python3", FILE)
    async with own_agent(short) as (_, visitor):
        await visitor.request("login", env=login.env, umask=0o22)
        answer = HostKernelspecs.read(await visitor.request("kernelspecs", patterns=["~/envs/*"]))
        assert "good" in [each.name for each in answer.each()]
        with pytest.raises(Refusal) as caught:
            await visitor.request("kernelspecs", patterns=["x"] * 65)
        assert caught.value.kind == "malformed"

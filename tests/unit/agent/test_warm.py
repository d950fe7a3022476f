"""Templates, and what is forked from them, with a stand-in for ipykernel; `tests/server/test_warm.py` has the real one."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import functools
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from eg_distributed.agent import forks, warm
from eg_distributed.agent.admission import COLD, Turn
from eg_distributed.agent.server import Agent
from eg_distributed.protocol import Start
from eg_distributed.wire import Message
from tests.unit.agents import STANDIN, Visitor, alive, own_agent, written
from tests.until import until

PYTHON = getattr(sys, "_base_executable", sys.executable)  # whose site has none of our test suite's
LAUNCHER = f"""
import runpy, sys
if __name__ == "__main__":
    import ipykernel.kernelapp
    del sys.argv[1]
    runpy.run_path({STANDIN[-1]!r}, run_name="__main__")
"""


def _is_gone(path: Path) -> bool:
    return not path.exists()


class Node:
    """An agent in this process, and packages for its kernels."""

    def __init__(self, agent: Agent, visitor: Visitor, folder: Path) -> None:
        self.agent, self.visitor, self.folder = agent, visitor, folder
        self.packages = folder / "site-packages"
        self.work = folder / "work"
        for made in (self.packages / "ipykernel", self.work):
            made.mkdir(parents=True)
        (self.packages / "ipykernel" / "__init__.py").write_text("")
        (self.packages / "ipykernel_launcher.py").write_text(LAUNCHER)
        self.imports("")
        self._number = 0

    def imports(self, text: str) -> None:
        """Have kernels execute *text* while they import."""
        path = self.packages / "ipykernel" / "kernelapp.py"
        path.write_text(text)
        self.settle(path)

    def settle(self, *paths: Path) -> None:
        """Make *paths*, and all packages, older than any template that is made now."""
        for path in (*paths, *self.packages.rglob("*"), self.packages, self.folder):
            os.utime(path, (1e9, path.stat().st_mtime - 5))

    async def start(self, *behaviours: str, env: dict[str, str] | None = None, **params: Any) -> Message:
        """Start a kernel that may be forked, and wait until it is ready."""
        self._number += 1
        name = f"k{self._number}"
        argv = [PYTHON, "-m", "ipykernel_launcher", "-f", "{connection_file}", *behaviours]
        given = {"PYTHONPATH": str(self.packages), "KERNEL_ID": name, **(env or {})}
        return await self.visitor.ready(name, argv, **{"env": given, "cwd": str(self.work), "warm": True, **params})

    async def template(self, **params: Any) -> Message:
        """Have a template made; return what is told of it."""
        first = await self.start(**params)
        assert first["warm"] == "cold"
        await until("a template is there", self.made)
        seen = await self.seen()
        found: Message = seen["templates"][-1]
        return found

    def made(self) -> bool:
        making = self.agent._templates._making
        return making is not None and making.done()

    async def seen(self) -> Message:
        """Return what the agent tells of its templates."""
        found: Message = await self.visitor.request("templates")
        return found

    async def why(self) -> set[str]:
        """Return why starts were cold, but for the first one's reason."""
        return set((await self.seen())["cold"]) - {"there is no template yet"}


@pytest.fixture
async def node(short: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    monkeypatch.setattr(warm, "MAKE_AFTER", 0.0)
    folder = short / "agent"
    folder.mkdir(mode=0o700)
    async with own_agent(folder) as (agent, visitor):
        yield Node(agent, visitor, short)


async def test_a_start_is_expected_to_be_forked_as_the_last_one_was(node: Node) -> None:
    """Whether it waits among cold ones is decided before it begins, by how the last start of its user and interpreter went."""

    def expects(user: str = "") -> bool:
        env = {"KERNEL_USERNAME": user} if user else {}
        what: dict[str, Any] = {
            "argv": [PYTHON],
            "spec_env": {},
            "env": env,
            "transport": "ipc",
            "key": "",
            "warm": True,
        }
        return node.agent._templates.may_fork(
            Start("k", "a", "one", "", **what, signature_scheme="", orphan_timeout=0.0)
        )

    assert not expects()
    await node.template()
    assert not expects()
    assert expects("ann")
    assert (await node.start())["warm"] == "forked"
    assert expects()
    differs = {"KERNEL_USERNAME": "ann", "LD_LIBRARY_PATH": "/nowhere"}
    assert (await node.start(env=differs))["warm"] == "cold"
    assert not expects("ann")
    assert expects()


async def test_a_start_that_is_cold_after_all_counts_as_such_before_it_computes(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others wait for it from the moment in which it is known, and those of its like that wait are cold ones as well."""
    await node.template()
    known: list[tuple[int, float]] = []
    admission = node.agent._admission
    note = admission.note_cold

    def noted(turn: Turn, weigh: Callable[[Start], float]) -> None:
        known.append((node.agent.kernels[turn.asked.kernel].pid, weigh(turn.asked)))
        note(turn, weigh)

    monkeypatch.setattr(admission, "note_cold", noted)
    assert (await node.start())["warm"] == "forked"
    assert known == []
    assert (await node.start(env={"LD_LIBRARY_PATH": "/nowhere"}))["warm"] == "cold"
    assert known == [(0, COLD)]


async def test_a_start_is_forked_once_there_is_a_template(node: Node) -> None:
    """The first start is as any other; the next one is forked, with what it was asked for, and looks like it was executed."""
    facts = node.folder / "facts"
    template = await node.template()
    kernel = await node.start(f"facts:{facts}", env={"OTHER": "ü = \udcff"})
    assert kernel["warm"] == "forked"
    found = await written(facts)
    assert found["env"]["KERNEL_ID"] == "k2"
    assert found["env"]["OTHER"].encode("latin-1") == "ü = \udcff".encode("utf-8", "surrogateescape")
    assert found["env"]["PWD"] == found["cwd"] == str(node.work)
    assert found["pid"] == found["group"] == found["session"] == kernel["pid"]
    assert not found["descriptors"]
    assert Path(f"/proc/{kernel['pid']}/cmdline").read_bytes().decode().split("\0")[:-1] == kernel["argv"]
    seen = await node.seen()
    assert (seen["forked"], seen["templates"][0]["kernels"], seen["templates"][0]["pid"]) == (1, 1, template["pid"])
    assert seen["templates"][0]["memory"] > 1 << 20
    assert b"KERNEL_ID" not in Path(f"/proc/{template['pid']}/environ").read_bytes()


async def test_no_template_where_none_is_asked_for(node: Node) -> None:
    """Kernels that need not be warm, and those of other commands, have none."""
    assert (await node.start(warm=False))["warm"] == ""
    for argv in (
        [PYTHON, STANDIN[-1], "{connection_file}"],
        [PYTHON, "-c", "1", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
    ):
        with contextlib.suppress(AssertionError):
            await node.visitor.start("other", argv, warm=True)
        await node.visitor.request("stop", kernel="other", grace=0, forget=True, force=True)
    assert not node.agent._templates._awaited
    assert node.agent._templates._making is None
    assert await node.why() == {"its command is not `python -m ipykernel_launcher`"}


async def test_a_template_waits_for_the_first_answer(node: Node) -> None:
    """As long as the first kernel is not ready, no template is made."""
    gate = node.folder / "gate"
    node.imports(f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)")
    starting = asyncio.ensure_future(node.start())
    await until("the kernel runs", lambda: node.agent.kernels and all(k.pid for k in node.agent.kernels.values()))
    assert node.agent._templates._making is None
    gate.touch()
    await starting
    await until("a template is there", node.made)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()",
            "has started 1 threads",
        ),
        ("import socket; kept = socket.socket()", "has opened socket:"),
        ("kept = open('/etc/hostname')", "has opened /etc/hostname"),
        ("import os; kept = dict(os.environ)", "reads the whole environment"),
        ("import os; kept = os.getcwd()", "reads in which folder it is"),
        ("import os; os.kill(os.getpid(), 9)", "it ended while it imported"),
    ],
)
async def test_what_no_fork_can_give(node: Node, capfd: pytest.CaptureFixture[str], text: str, why: str) -> None:
    """Where imports leave what a child would not have, or depend on what it has of its own, kernels go on being started."""
    node.imports("import sys\nif 'template' in str(sys._getframe(5).f_code) or sys.argv[0] == '-c':\n  " + text)
    await node.start()
    await until("the template is refused", node.made)
    assert why in capfd.readouterr().err
    assert (await node.start())["warm"] == "cold"


async def test_what_imports_have_read_is_the_same(node: Node) -> None:
    """A variable that an import reads has to be as it was; any other may differ."""
    node.imports("import os; mode = os.environ.get('SITE_MODE', 'none')")
    await node.template()
    assert (await node.start(env={"ANY": "1"}))["warm"] == "forked"
    assert (await node.start(env={"SITE_MODE": "new"}))["warm"] == "cold"
    assert (await node.start(env={"LD_LIBRARY_PATH": "/nowhere"}))["warm"] == "cold"
    assert (await node.start(env={"PYTHONHASHSEED": "1"}))["warm"] == "cold"
    assert await node.why() == {
        f"templates have another {n}" for n in ("SITE_MODE", "LD_LIBRARY_PATH", "PYTHONHASHSEED")
    }


async def test_with_modules_of_a_site_all_of_the_environment_is_the_same(node: Node) -> None:
    """What libraries in C read nobody sees, so a template with further modules serves just the same environment."""
    (node.packages / "heavy.py").write_text("loaded = True")
    node.settle()
    template = await node.template(preload=["heavy"])
    assert template["preload"] == ["heavy"]
    assert (await node.start(preload=["heavy"]))["warm"] == "forked"
    assert (await node.start(preload=["heavy"], env={"ANY": "1"}))["warm"] == "cold"
    assert (await node.start())["warm"] == "cold"


@pytest.mark.parametrize("what", ["module", "upgrade", "pth"])
async def test_nothing_stale_is_served(node: Node, what: str) -> None:
    """A start that finds other files than the template did is cold, and another template is made."""
    old = await node.template()
    if what == "module":
        (node.packages / "ipykernel" / "kernelapp.py").write_text("changed = True")
    elif what == "upgrade":
        (node.packages / "numpy-2.0.dist-info").mkdir()
    else:
        (node.packages / "site.pth").write_text("/nowhere")
    assert (await node.start())["warm"] == "cold"
    assert "has changed" in str(await node.why())
    node.settle()
    await node.start()
    await until("another template is there", lambda: any(t.pid != old["pid"] for t in node.agent._templates._templates))
    await until("it is ready", node.made)
    await until("it is of use", lambda: any(not t.is_retired for t in node.agent._templates._templates))
    assert (await node.start())["warm"] == "forked"


async def test_a_module_in_the_notebooks_folder_hides_none(node: Node) -> None:
    """Where the kernel's folder has a module that it would import instead of one that the template has, it is started."""
    await node.template()
    other = node.folder / "other"
    (other / "sqlite3").mkdir(parents=True)
    assert (await node.start(cwd=str(other)))["warm"] == "forked"  # a folder alone is no module
    (other / "sqlite3" / "__init__.py").write_text("")
    assert (await node.start(cwd=str(other)))["warm"] == "cold"
    assert (await node.start())["warm"] == "forked"  # from the same one
    assert len((await node.seen())["templates"]) == 1


async def test_a_module_that_was_never_compiled(node: Node) -> None:
    """Its folder is not changed by the template that imports it first, and kernels write bytecode as ever."""
    more = node.folder / "more" / "site-packages"
    more.mkdir(parents=True)
    (more / "never.py").write_text("")
    node.settle(more, more / "never.py")
    path = f"{node.packages}:{more}"
    how: dict[str, Any] = {"preload": ["never"], "env": {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": ""}}
    await node.template(**how)
    assert (await node.start(**how))["warm"] == "forked"


async def test_a_folder_that_is_not_there(node: Node) -> None:
    """As one that is started, a fork is in the home then, and says so: notebook servers send folders of their own disk."""
    env = {"HOME": str(node.work)}
    started = await node.template(env=env, cwd="/of/a/laptop")
    path = node.folder / "facts"
    forked = await node.start(f"facts:{path}", env=env, cwd="/of/a/laptop")
    assert started["argv"][0] == PYTHON
    assert forked["warm"] == "forked"
    assert forked["warning"] == f"working directory /of/a/laptop does not exist on this node: started in {node.work}"
    assert (await written(path))["cwd"] == str(node.work)


async def test_ends_are_told(node: Node) -> None:
    """Exit codes and signals of what was forked arrive, and no zombie stays."""
    await node.template()
    for behaviour, signum, code in (("", signal.SIGKILL, -9), ("", signal.SIGTERM, -15)):
        kernel = await node.start(*filter(None, [behaviour]))
        await node.visitor.request("signal", kernel=kernel["kernel"], signum=int(signum))
        assert (await node.visitor.event("exited", kernel["kernel"]))["exit_code"] == code
        left = Path(f"/proc/{kernel['pid']}")
        await until("it is reaped", functools.partial(_is_gone, left))
    assert not (await node.seen())["templates"][0]["kernels"]


async def test_a_template_that_is_killed(node: Node) -> None:
    """Its kernels run on, their end is told, and the next start is cold and brings another template."""
    template = await node.template()
    kernel = await node.start()
    os.kill(template["pid"], signal.SIGKILL)
    await until("the agent knows", lambda: all(each.is_closed for each in node.agent._templates._templates))
    assert alive(kernel["pid"])
    assert (await node.start())["warm"] == "cold"
    os.kill(kernel["pid"], signal.SIGKILL)
    await node.visitor.event("exited", kernel["kernel"])


async def test_a_template_that_stands_still(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start waits for it for a moment, and is cold then; the template is ended, and others of its kind wait as well."""
    monkeypatch.setattr(warm, "FORK_DEADLINE", 0.2)
    template = await node.template()
    os.kill(template["pid"], signal.SIGSTOP)
    assert (await node.start())["warm"] == "cold"
    await until("the template has ended", lambda: not alive(template["pid"]))
    assert await node.why() == {"the fork was no kernel in time"}
    assert len(node.agent._templates._failed) == 1


async def test_a_fork_that_comes_too_late_leaves_nothing(node: Node) -> None:
    """A child that its start has given up becomes no kernel, and ends."""
    await node.template()
    template = node.agent._templates._templates[0]
    asked = forks.Wish(template.kind, {b"PATH": b"/"}, 0o22, -1)
    with pytest.raises(forks.Cold, match="in time"):
        await template.fork(["python", "ipykernel_launcher"], asked, "/", 2, 0.0)
    children = Path(f"/proc/{template.pid}/task/{template.pid}/children")
    await until("it is forked", lambda: children.read_text())
    await until("it has ended", lambda: not any(alive(int(pid)) for pid in children.read_text().split()))


async def test_a_fork_that_ends_at_once_is_started(node: Node) -> None:
    """A kernel that was forked and ends before it is ready is started instead, for the same request."""
    launcher = LAUNCHER.replace(
        "    del sys", "    import os\n    if ipykernel.kernelapp.pid != os.getpid(): os._exit(1)\n    del sys"
    )
    (node.packages / "ipykernel_launcher.py").write_text(launcher)
    node.imports("import os; pid = os.getpid()")
    await node.template()
    kernel = await node.start()
    assert alive(node.agent.kernels[kernel["kernel"]].pid)
    assert not node.agent.kernels[kernel["kernel"]].is_forked
    assert await node.why() == {"the kernel ended before it was ready"}
    log = await node.visitor.request("log", kernel=kernel["kernel"])
    assert "forked" not in log  # what is read begins with the start that counts
    assert all(each.is_retired for each in node.agent._templates._templates)


async def test_what_imports_print_is_in_each_log(node: Node) -> None:
    """A kernel's log begins with what its imports would have printed."""
    node.imports("import sys; print('imported'); sys.stderr.write('with a warning\\n')")
    await node.template()
    kernel = await node.start("say:hello")
    assert kernel["warm"] == "forked"

    async def is_said() -> bool:
        return "hello" in await node.visitor.request("log", kernel=kernel["kernel"])

    await until("it has said hello", is_said)
    log = await node.visitor.request("log", kernel=kernel["kernel"])
    assert sorted(log.splitlines()) == ["hello", "imported", "with a warning"]


async def test_an_idle_template_leaves(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that nobody has used for long goes, but not as long as it has kernels."""
    template = await node.template()
    kernel = await node.start()
    monkeypatch.setattr(warm, "IDLE", 0.0)
    node.agent._templates.tick()
    assert alive(template["pid"])
    await node.visitor.request("stop", kernel=kernel["kernel"], grace=0, forget=True)
    await until("the template has left", lambda: not alive(template["pid"]))
    await until("it is forgotten", lambda: not node.agent._templates._templates)


async def test_short_memory(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory is short templates without kernels go first, and none is made."""
    template = await node.template()
    monkeypatch.setattr(warm, "_available_memory", lambda: 0.01)
    node.agent._templates._looked = -warm.MEMORY_CHECK
    await until("the template has left", lambda: not alive(template["pid"]))
    node.agent._templates._making = None
    await node.start()
    assert node.agent._templates._making is None


async def test_templates_have_a_bound(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more kinds than there may be templates, the one that was used longest ago goes."""
    monkeypatch.setattr(warm, "MOST", 1)
    first = await node.template()
    assert (await node.start(env={"LANGUAGE": "de"}))["warm"] == "cold"
    await until("the first has left", lambda: not alive(first["pid"]))
    await until(
        "the second is there", lambda: node.made() and any(not t.is_closed for t in node.agent._templates._templates)
    )
    assert (await node.start(env={"LANGUAGE": "de"}))["warm"] == "forked"


async def test_templates_of_no_use_are_made_no_more(node: Node) -> None:
    """Where each start has another environment that imports read, the third template is the last one for a while."""
    node.imports("import os; mode = os.environ.get('SITE_MODE', 'none')")
    for number in range(warm.UNUSED + 2):
        await node.start(env={"SITE_MODE": str(number)})
        making = node.agent._templates._making
        if making is not None:
            await asyncio.wait({making})
        for each in node.agent._templates._templates:
            each.close()
            await asyncio.to_thread(each._process.wait)
        node.agent._templates.tick()
    made = node.agent._templates._failed
    assert len(made) == 1


async def test_templates_end_with_their_agent(visitor: Visitor, short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that is killed takes its templates with it, and none of their kernels; the next agent has those."""
    packages = Node(None, visitor, short)  # type: ignore[arg-type] # of an agent in a process of its own
    packages.settle()
    started = [await packages.start()]

    async def template() -> Message | None:
        seen = await packages.seen()
        return next((each for each in seen["templates"] if each["memory"]), None)

    await until("a template is there", template)
    kernel: Message = {}

    async def is_forked() -> bool:
        kernel.update(await packages.start())
        started.append(dict(kernel))
        return bool(kernel["warm"] == "forked")

    await until("a kernel is forked", is_forked, pause=0.1)
    found = await template()
    assert found is not None
    os.kill((await visitor.request("ping"))["pid"], signal.SIGKILL)
    await until("the template has ended", lambda: not alive(found["pid"]))
    assert alive(kernel["pid"])
    for each in started:  # no agent is there that would
        os.kill(each["pid"], signal.SIGKILL)


def test_the_template_is_read_by_old_pythons() -> None:
    """Its text keeps to what the oldest Python can read that has a current ipykernel, and is short enough to be sent at once."""
    text = forks.SOURCE
    ast.parse(text, feature_version=(3, 8))
    assert len(text) < 1 << 17

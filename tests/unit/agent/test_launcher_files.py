"""What a launcher brings to a node, and what follows its kernel's end."""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
from pathlib import Path

import pytest

from tests.unit.agents import Refusal, Visitor, alive, standin, written
from tests.until import until

LEAVING = """
import os, sys
with open(sys.argv[1] + ".new", "w") as file:
    file.write('{"alive": %d, "word": "%s"}' % (os.path.exists("/proc/" + sys.argv[2] + "/exe"), os.environ.get("WORD", "")))
os.rename(sys.argv[1] + ".new", sys.argv[1])
"""


def kernel_folders(home: Path) -> list[Path]:
    """Return the folders of all kernels of the agents below *home*."""
    return list(home.glob("eg-distributed/*/k/*"))


async def test_files_are_there_for_the_kernel_and_go_with_it(visitor: Visitor, home: Path) -> None:
    """A launcher's files lie in a private folder that `{launcher}` names, and are removed with the kernel."""
    files = {"main.py": "print('ä')\n", "main.R": "", "r/more/of_it.R": "x"}
    await visitor.ready("k1", standin("say:{launcher}/main.py"), files=files)
    shown = Path((await visitor.request("log", kernel="k1")).strip())
    assert shown.read_text("utf-8") == "print('ä')\n"
    assert stat.S_IMODE(shown.stat().st_mode) == 0o600
    assert stat.S_IMODE(shown.parent.stat().st_mode) == 0o700
    inner = shown.parent / "r/more/of_it.R"
    assert inner.read_text("utf-8") == "x"
    assert stat.S_IMODE(inner.stat().st_mode) == 0o600
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in inner.parents[:2]} == {0o700}
    await visitor.request("stop", kernel="k1", grace=0, forget=True)
    assert kernel_folders(home) == []


@pytest.mark.parametrize(
    "name", ["../main.py", "a/../b.py", "/a", "a//b.py", "a/", "a/.b", "a/b/c/d/e.py", "", ".hidden", "a\0b"]
)
async def test_a_file_can_be_put_nowhere_else(visitor: Visitor, home: Path, name: str) -> None:
    """A path that leads out of the folder, or too deep, is refused, and nothing stays."""
    with pytest.raises(Refusal, match="is no name for a launcher's file"):
        await visitor.start("k1", standin(), files={name: "x"})
    assert kernel_folders(home) == []


async def test_the_command_after_the_end_runs_with_the_kernels_environment(visitor: Visitor, home: Path) -> None:
    """`on_exit` runs once the kernel has ended, killed or not, with its env and `{launcher}` filled in; then all is gone."""
    done = home / "done"
    pid = (await visitor.ready("k0", standin()))["pid"]  # any pid to look for will do: here, of a kernel that lives
    command = [sys.executable, "{launcher}/leave.py", str(done), str(pid)]
    started = await visitor.ready(
        "k1", standin(), files={"leave.py": LEAVING}, on_exit=command, env={"WORD": "from the client $HOME"}
    )
    assert not done.exists()
    os.kill(started["pid"], signal.SIGKILL)
    await visitor.event("exited", "k1")
    assert await written(done) == {"alive": 1, "word": "from the client $HOME"}
    await visitor.request("stop", kernel="k1", grace=0, forget=True)
    await visitor.request("stop", kernel="k0", grace=0, forget=True)
    await until("its files are gone", lambda: not kernel_folders(home))


async def test_files_stay_until_the_command_after_the_end_has_run(visitor: Visitor, home: Path) -> None:
    """A kernel that is forgotten at once still has its `on_exit` run from its own files."""
    gate, done = home / "gate", home / "done"
    os.mkfifo(gate)
    script = "import sys; open(sys.argv[1]).read(); open(sys.argv[2], 'w').close()"
    command = [sys.executable, "{launcher}/leave.py", str(gate), str(done)]
    await visitor.ready("k1", standin(), files={"leave.py": script}, on_exit=command)
    await visitor.request("stop", kernel="k1", grace=0, forget=True)
    assert await visitor.request("list") == []
    assert len(kernel_folders(home)) == 1
    assert await visitor.request("leave") is False  # nor does an agent make room for another one meanwhile
    gate.write_text("go")
    await until("the command has run", done.exists)
    await until("its files are gone", lambda: not kernel_folders(home))


async def test_a_restart_waits_for_nobodys_end(visitor: Visitor, home: Path) -> None:
    """The next start of the same kernel has a folder of its own while the last one's command still runs."""
    gate = home / "gate"
    os.mkfifo(gate)
    script = "import sys; open(sys.argv[1]).read()"
    await visitor.ready("k1", standin(), on_exit=[sys.executable, "-c", script, str(gate)])
    await visitor.request("stop", kernel="k1", grace=0)
    visitor.events.clear()
    again = await visitor.ready("k1", standin(), attempt="a2")
    assert len(kernel_folders(home)) == 2
    gate.write_text("go")
    await until("the first one's files are gone", lambda: len(kernel_folders(home)) == 1)
    assert alive(again["pid"])


async def test_an_interrupt_may_be_another_signal(visitor: Visitor, home: Path) -> None:
    """`interrupt_signal` is sent in place of SIGINT, and to the kernel alone."""
    heard = home / "heard"
    script = (
        "import os,signal,socket,sys,json,time\n"
        "info=json.load(open(sys.argv[1]))\n"
        f"signal.signal(signal.SIGUSR2, lambda *_: open({str(heard)!r}, 'w').write('usr2'))\n"
        "keep=[]\n"
        "for i in range(1,6):\n"
        "    s=socket.socket(socket.AF_UNIX); s.bind(info['ip']+'-%d'%i); s.listen(); keep.append(s)\n"
        "while True: signal.pause()\n"
    )
    argv = [sys.executable, "-c", script, "{connection_file}"]
    started = await visitor.ready("k1", argv, interrupt_signal="SIGUSR2")
    assert await visitor.request("signal", kernel="k1", signum=int(signal.SIGINT)) is True
    await until("the signal has been heard", lambda: heard.exists() and heard.read_text() == "usr2")
    assert alive(started["pid"])


async def test_a_signal_that_is_none_is_refused(visitor: Visitor, home: Path) -> None:
    """A kernelspec's slip is an error of the start."""
    with pytest.raises(Refusal, match="'SIGNOTHING' is no signal"):
        await visitor.start("k1", standin(), interrupt_signal="SIGNOTHING")
    assert kernel_folders(home) == []


def test_every_file_of_the_launchers_is_brought() -> None:
    """What a launcher imports goes along with it."""
    from eg_distributed.launcher_files import launcher_files

    folder = Path(__file__).parents[3] / "eg_distributed" / "launchers" / "spark"
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix in {".py", ".R", ".java"}}
    assert set(launcher_files()) == there
    assert len(json.dumps(launcher_files())) < 300_000

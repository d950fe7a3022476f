"""A kernel that was forked from a template, beside one that was started: nothing may tell them apart.

Each kernel's interpreter is that of the tests, which has ipykernel; more of them, such as those with another ipykernel, or with
numpy, matplotlib and ipywidgets, are named by WARM_PYTHONS, with colons between them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
import time
import venv
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import AsyncKernelManager

from eg_distributed.agent.server import socket_path
from eg_distributed.cluster import Cluster
from eg_distributed.jupyter_server import process
from eg_distributed.link.agent_archive import agent_archive
from eg_distributed.link.links import LocalLink
from eg_distributed.wire import Message
from tests.unit.agents import Visitor
from tests.until import PROCESS_SECONDS, block_until, until

from .cells import said_async
from .site import NAMES, Site

T = TypeVar("T")
PYTHONS = [sys.executable, *filter(None, os.environ.get("WARM_PYTHONS", "").split(":"))]


class Kernel:
    """A kernel of the agent, and a client of it."""

    def __init__(self, agent: AgentProcess, name: str, described: Message) -> None:
        self.name, self.pid, self.warm = name, described["pid"], described["warm"]
        self.agent = agent
        self.log = Path(described["log_path"])
        self.client = BlockingKernelClient(connection_file=str(self.log.with_name("connection.json")))
        self.client.load_connection_file()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=PROCESS_SECONDS)

    def messages(self, code: str) -> list[tuple[str, Any]]:
        """Run a cell; return the types and contents of what it says, errors included."""
        said: list[tuple[str, Any]] = []
        self.client.execute_interactive(
            textwrap.dedent(code),
            timeout=PROCESS_SECONDS,
            output_hook=lambda message: said.append((message["msg_type"], message["content"])),
        )
        return [each for each in said if each[0] not in ("status", "execute_input")]

    def run(self, code: str) -> str:
        """Run a cell; return what it prints, without what only this kernel can say of itself."""
        said = self.messages(code)
        assert [kind for kind, _ in said if kind == "error"] == [], said
        return self.plain("".join(content["text"] for kind, content in said if kind == "stream"))

    def json(self, expression: str, *, before: str = "") -> Any:
        """Return the value of a Python expression."""
        return json.loads(
            self.run(f"{textwrap.dedent(before)}\nimport json\nprint(json.dumps({expression}, default=repr))")
        )

    def plain(self, text: str) -> str:
        """Return *text* without names and numbers of this kernel."""
        text = text.replace(self.name, "KERNEL").replace(str(self.pid), "PID")
        return re.sub(r"0x[0-9a-f]+", "0x…", text)

    def exited(self) -> Message:
        """Wait for its end; return what is told of it."""
        return self.agent.do(self.agent.visitor.event("exited", self.name))

    def close(self) -> None:
        self.client.stop_channels()
        with contextlib.suppress(AssertionError):
            self.agent.stop(self.name)


class AgentProcess:
    """A real agent, as a login leaves it behind, in a folder of its own."""

    def __init__(self, folder: Path, python: str) -> None:
        self.folder, self.python = folder, python
        self.work = folder / "work"
        self.work.mkdir()
        digest, archive = agent_archive()
        (folder / "agent.zip").write_bytes(archive)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
        with (folder / "agent.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-I", str(folder / "agent.zip"), "agent", str(folder), digest, "022", "s"],
                env={**environment, "HOME": str(folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        path = socket_path(folder)
        block_until("the agent listens", path.exists, PROCESS_SECONDS)
        self.loop = asyncio.new_event_loop()
        self.visitor = self.do(Visitor.at(LocalLink(str(path))))
        self._number = 0

    def do(self, awaited: Awaitable[T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(awaited, PROCESS_SECONDS))

    def start(self, *, forked: bool, options: tuple[str, ...] = (), **params: Any) -> Kernel:
        """Start a kernel; *forked*: from a template, which is waited for if there is none yet."""
        self._number += 1
        name = f"kernel{self._number:03}x"
        argv = [self.python, "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "{connection_file}", *options]
        given = {"KERNEL_ID": name, "LATE": name}
        params = {"env": given, "cwd": str(self.work), "kernel_name": "python3", "warm": forked, **params}
        described = self.do(self.visitor.ready(name, argv, **params))
        described["log_path"] = str(self.folder / "k" / name[:12] / "kernel.log")
        return Kernel(self, name, described)

    def seen(self) -> Message:
        found: Message = self.do(self.visitor.request("templates"))
        return found

    def forked(self, **params: Any) -> Kernel:
        """Return a kernel that was forked."""
        first = self.start(forked=True, **params)
        if first.warm == "forked":
            return first
        first.close()

        def is_there() -> bool:
            found = [each for each in self.seen()["templates"] if each["preload"] == params.get("preload", [])]
            return any(not each["is_retired"] and each["memory"] for each in found)

        block_until("a template is there", is_there, PROCESS_SECONDS, pause=0.1)
        kernel = self.start(forked=True, **params)
        said = (self.folder / "agent.log").read_text()
        assert kernel.warm == "forked", (self.seen(), said)
        return kernel

    def stop(self, name: str) -> None:
        self.do(self.visitor.request("stop", kernel=name, grace=5, forget=True, force=True))

    def close(self) -> None:
        for kernel in self.do(self.visitor.request("list")):
            self.stop(kernel["kernel"])
        self.visitor.close()
        self.do(self.visitor.ended())
        self.process.terminate()
        self.process.wait(PROCESS_SECONDS)
        self.loop.close()


@contextlib.contextmanager
def an_agent(python: str) -> Iterator[AgentProcess]:
    folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="egw"))
    try:
        agent = AgentProcess(folder, python)
        try:
            yield agent
        finally:
            agent.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module", params=PYTHONS)
def agent(request: pytest.FixtureRequest) -> Iterator[AgentProcess]:
    with an_agent(request.param) as made:
        yield made


@pytest.fixture(autouse=True)
def _ping(request: pytest.FixtureRequest) -> None:
    """The agent hears of its gateway, which is gone after a minute's silence."""
    if "agent" in request.fixturenames:
        agent: AgentProcess = request.getfixturevalue("agent")
        agent.do(agent.visitor.request("ping"))


class Pair:
    """A kernel that was started, and one that was forked."""

    def __init__(self, agent: AgentProcess) -> None:
        self.agent = agent
        self.cold = agent.start(forked=False)
        self.warm = agent.forked()

    def same(self, expression: str, *, before: str = "") -> Any:
        """Return the value of an expression, which has to be the same in both."""
        cold, warm = (kernel.json(expression, before=before) for kernel in (self.cold, self.warm))
        assert warm == cold
        return warm

    def has(self, module: str) -> None:
        """Skip the test where the kernels have no such module."""
        found = self.cold.json(f"importlib.util.find_spec({module!r}) is not None", before="import importlib.util")
        if not found:
            pytest.skip(f"{self.agent.python} has no {module}; see WARM_PYTHONS")


@pytest.fixture(scope="module")
def pair(agent: AgentProcess) -> Iterator[Pair]:
    made = Pair(agent)
    yield made
    made.cold.close()
    made.warm.close()


# -- what a process is made of -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "expression",
    [
        "sys.path",
        "sys.argv",
        "getattr(sys, 'orig_argv', None)",
        "[sys.executable, sys.prefix, sys.exec_prefix, sys.base_prefix, sys.pycache_prefix]",
        "[list(sys.flags), sys._xoptions, sys.warnoptions, sys.dont_write_bytecode]",
        "[sys.getrecursionlimit(), sys.getswitchinterval(), sys.getdlopenflags()]",
        "[str(type(each)) + str(each) for each in [*sys.meta_path, *sys.path_hooks]]",
        "[sys.gettrace(), sys.getprofile(), str(sys.excepthook), str(sys.displayhook), str(sys.unraisablehook)]",
        "sorted(vars(__import__('builtins')))",
        "sorted(sys.modules)",
        "list(os.environ.items())",
        "sorted(map(str, __import__('posix').environ.items()))",
        "[os.getcwd(), oct(os.umask(0o22)), os.getuid(), os.geteuid(), os.getgid(), os.getgroups(), os.nice(0)]",
        "[os.getpgrp() == os.getpid(), os.getsid(0) == os.getpid(), sorted(os.sched_getaffinity(0))]",
        "{name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith('RLIMIT')}",
    ],
)
def test_what_an_interpreter_has(pair: Pair, expression: str) -> None:
    """What an interpreter takes from its start, and what its process has, is the same."""
    pair.same(expression, before="import sys, os, resource")


def test_what_the_system_shows_of_it(pair: Pair) -> None:
    """What other processes see of it in /proc is the same: command line, environment, signals, rights."""
    shown = {}
    for kernel in (pair.cold, pair.warm):
        folder = Path("/proc", str(kernel.pid))
        status = dict(line.split(":\t", 1) for line in (folder / "status").read_text().splitlines())
        names = (
            "Name Umask Uid Gid Groups SigPnd ShdPnd SigBlk SigIgn SigCgt CapPrm CapEff CapBnd CapAmb CapInh NoNewPrivs"
        )
        kept = [*names.split(), "Seccomp", "Threads", "Cpus_allowed", "THP_enabled"]
        shown[kernel.name] = {
            "status": {name: status.get(name) for name in kept},
            "cmdline": kernel.plain((folder / "cmdline").read_bytes().decode()),
            "environ": sorted(kernel.plain((folder / "environ").read_bytes().decode()).split("\0")),
            **{name: str((folder / name).readlink()) for name in ("exe", "cwd", "root")},
            **{
                name: (folder / name).read_text()
                for name in ("comm", "oom_score_adj", "coredump_filter", "cgroup", "limits")
            },
            "terminal": (folder / "stat").read_text().rpartition(")")[2].split()[4],
        }
    cold, warm = shown.values()
    assert warm == cold
    assert "KERNEL_ID=KERNEL" in warm["environ"]


def test_open_files(pair: Pair) -> None:
    """It has as many descriptors to the same kinds of files, with the same flags; threads open some of them in any order."""
    code = """
        import os, re
        found = {}
        for name in sorted(os.listdir("/proc/self/fd"), key=int):
            try:
                where = re.sub(r"[0-9]+", "N", os.readlink("/proc/self/fd/" + name))
                info = open("/proc/self/fdinfo/" + name).read()
            except FileNotFoundError:
                continue
            if not where.endswith("-journal"):  # only while it writes
                found[name] = [where, re.search("flags:\\t(.*)", info)[1]]
        """
    pair.same("[[found[n] for n in '012'], sorted(map(str, found.values())), len(found)]", before=code)


def test_main(pair: Pair) -> None:
    """`__main__` has the same names and is the same kind of module, and pickles of what cells define find it."""
    pair.same("[sorted(n for n in vars(m) if n.startswith('__')), str(m.__spec__), str(m.__loader__), str(m.__doc__)]",
              before="import sys; m = sys.modules['__main__']")  # fmt: skip
    assert pair.same(
        "pickle.loads(pickle.dumps(Thing())).__class__ is Thing", before="import pickle\nclass Thing: pass"
    )


def test_locale_and_streams(pair: Pair) -> None:
    """Locale, encodings and the buffering of the first three files are the same."""
    pair.same("[locale.setlocale(locale.LC_ALL), locale.getpreferredencoding(), sys.getfilesystemencoding()]",
              before="import locale, sys")  # fmt: skip
    pair.same("[[s.encoding, s.errors, s.line_buffering, s.write_through, s.name, s.mode, s.newlines] for s in files]",
              before="import sys; files = [sys.__stdin__, sys.__stdout__, sys.__stderr__]")  # fmt: skip


def test_signals(pair: Pair) -> None:
    """Each signal has the same handler, or none."""
    found = pair.same("{int(n): str(signal.getsignal(n)) for n in signal.valid_signals()}", before="import signal")
    assert "default_int_handler" in found[str(int(signal.SIGINT))] or "function" in found[str(int(signal.SIGINT))]


def test_threads_and_loops(pair: Pair) -> None:
    """The same threads run, the main one is the process's own, and asyncio has the same loop."""
    pair.same(
        "sorted([t.name.split('-')[0], t.daemon, str(type(t))] for t in threading.enumerate())",
        before="import threading",
    )
    pair.same("[t.native_id == os.getpid(), t.ident == threading.get_ident(), t is threading.current_thread()]",
              before="import threading, os; t = threading.main_thread()")  # fmt: skip
    pair.same(
        "[str(type(asyncio.get_running_loop())), asyncio.get_running_loop().get_debug()]", before="import asyncio"
    )
    assert pair.warm.run("import asyncio\nprint(await asyncio.sleep(0.01, 'slept'))") == "slept\n"


def test_memory_and_faults(pair: Pair) -> None:
    """The collector of garbage, faulthandler and tracemalloc are as they were."""
    pair.same("[gc.isenabled(), gc.get_threshold(), gc.get_debug(), faulthandler.is_enabled(), tracemalloc.is_tracing()]",
              before="import gc, faulthandler, tracemalloc")  # fmt: skip


def test_clocks_begin_with_the_kernel(pair: Pair) -> None:
    """Its age and the time of its log records are the kernel's, and not those of the template."""
    age, since = pair.warm.json(
        "[time.time() - psutil.Process().create_time(), logging.makeLogRecord({}).relativeCreated / 1000]",
        before="import psutil, time, logging",
    )
    assert abs(age - since) < 2


def test_atexit_has_the_same_handlers(pair: Pair) -> None:
    """As many functions are to be called at the end."""
    pair.same("atexit._ncallbacks()", before="import atexit")


# -- what cells do -------------------------------------------------------------------------------------------------


def test_chance_differs(agent: AgentProcess, pair: Pair) -> None:
    """Two kernels that were forked from one template draw different numbers, from whichever source."""
    other = agent.forked()
    code = "import random, uuid, multiprocessing, tempfile, secrets, os"
    drawn = "[random.random(), str(uuid.uuid4()), multiprocessing.current_process().authkey.hex(), tempfile.mktemp()]"
    numpy = "import numpy; numbers = [numpy.random.random(), numpy.random.default_rng().random()]"
    ours, theirs = ({*kernel.json(drawn, before=code)} for kernel in (pair.warm, other))
    assert not ours & theirs
    if pair.warm.json("importlib.util.find_spec('numpy') is not None", before="import importlib.util"):
        assert not {*pair.warm.json("numbers", before=numpy)} & {*other.json("numbers", before=numpy)}
    other.close()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(pair: Pair, method: str) -> None:
    """Pools of either kind work, and their processes have the same arguments and paths."""
    code = f"""
        import multiprocessing, warnings, math, sys
        warnings.simplefilter("ignore")
        context = multiprocessing.get_context({method!r})
        with context.Pool(2) as pool:
            roots = pool.map(math.sqrt, [1, 4, 9])
            paths = pool.apply(eval, ("[__import__('sys').path, __import__('os').getcwd()]",))
        """
    assert pair.same("[roots, paths]", before=code)[0] == [1, 2, 3]


def test_subprocesses(pair: Pair) -> None:
    """What it executes has the same environment, files, signals and folder, and its exit code arrives."""
    code = """
        import subprocess, sys, re
        look = "import os, re; print([[n, re.sub('[0-9]+', 'N', os.readlink('/proc/self/fd/' + n))] for n in '012'],"
        look += "[l for l in open('/proc/self/status') if l.startswith('Sig')], sorted(os.environ.items()), os.getcwd())"
        done = subprocess.run([sys.executable, "-c", look + "; raise SystemExit(7)"], capture_output=True, text=True)
        """
    assert pair.same("[done.returncode, re.sub('SigQ:[^,]*', '', done.stdout), done.stderr]", before=code)[0] == 7
    assert pair.warm.run("!echo $LATE") == pair.cold.run("!echo $LATE")


def test_errors_look_the_same(pair: Pair) -> None:
    """A traceback has the same text."""
    cold, warm = (kernel.messages("def f():\n    return 1/0\nf()") for kernel in (pair.cold, pair.warm))
    texts = [pair.warm.plain(pair.cold.plain("\n".join(said[0][1]["traceback"]))) for said in (cold, warm)]
    texts = [re.sub(r"ipykernel_\d+|In\s*\[\d+\]|\d+\.py", "N", text) for text in texts]
    assert texts[0] == texts[1]


def test_history(pair: Pair) -> None:
    """History is kept in sessions of their own."""
    for kernel in (pair.cold, pair.warm):
        kernel.messages("marker = 'of the history'")
        assert "of the history" in kernel.run("%history -l 2")
    sessions = [kernel.json("get_ipython().history_manager.session_number") for kernel in (pair.cold, pair.warm)]
    assert sessions[0] != sessions[1]


def test_autoreload(pair: Pair) -> None:
    """%autoreload finds a changed module of the notebook's folder."""
    for kernel in (pair.cold, pair.warm):
        module = pair.agent.work / f"of_{kernel.name}.py"
        module.write_text("value = 1\n")
        kernel.run(f"%load_ext autoreload\n%autoreload 2\nimport {module.stem} as reloaded")
        module.write_text("value = 'changed'\n")
        os.utime(module, (time.time() + 10,) * 2)
        assert kernel.run("print(reloaded.value)") == "changed\n"
        module.unlink()


def test_a_module_that_is_made_later(pair: Pair) -> None:
    """A module that appears on disk after the template was made is found at once."""
    for kernel in (pair.cold, pair.warm):
        module = pair.agent.work / f"late_{kernel.name}.py"
        module.write_text("value = 'late'\n")
        assert kernel.run(f"import {module.stem} as late; print(late.value)") == "late\n"
        module.unlink()


def test_interrupts(pair: Pair) -> None:
    """A signal ends a cell, with the same error."""
    for kernel in (pair.cold, pair.warm):
        message = kernel.client.execute("import time\nprint('begun', flush=True)\ntime.sleep(60)")
        while True:
            said = kernel.client.get_iopub_msg(timeout=PROCESS_SECONDS)
            if said["msg_type"] == "stream":
                break
        pair.agent.do(pair.agent.visitor.request("signal", kernel=kernel.name, signum=2))
        reply = kernel.client.get_shell_msg(timeout=PROCESS_SECONDS)
        assert (reply["parent_header"]["msg_id"], reply["content"]["ename"]) == (message, "KeyboardInterrupt")


def test_the_debugger(pair: Pair) -> None:
    """The debugger has the same abilities, attaches, and stops at a breakpoint."""
    replies = []
    for kernel in (pair.cold, pair.warm):
        number = 0

        def ask(command: str, kernel: Any = kernel, **arguments: Any) -> Any:
            nonlocal number
            number += 1
            content = {"type": "request", "seq": number, "command": command, "arguments": arguments}
            message = kernel.client.session.msg("debug_request", content)
            kernel.client.control_channel.send(message)
            while True:
                reply = kernel.client.get_control_msg(timeout=PROCESS_SECONDS)
                if reply["parent_header"].get("msg_id") == message["header"]["msg_id"]:
                    return reply["content"]

        client: dict[str, Any] = {"clientID": "t", "clientName": "t", "adapterID": "", "pathFormat": "path"}
        begun = ask("initialize", **client, linesStartAt1=True, columnsStartAt1=True)
        attached = ask("attach")
        code = "def f():\n    found = 5\n    return found\nprint(f())"
        path = ask("dumpCell", code=code)["body"]["sourcePath"]
        points = ask("setBreakpoints", breakpoints=[{"line": 3}], source={"path": path}, sourceModified=False)
        ask("configurationDone")
        kernel.client.execute(code)
        events: list[str] = []
        while "stopped" not in events:
            said = kernel.client.get_iopub_msg(timeout=PROCESS_SECONDS)
            if said["msg_type"] == "debug_event":
                events.append(said["content"]["event"])
        ask("continue", threadId=1)
        ask("disconnect", restart=False, terminateDebuggee=False)
        kernel.client.get_shell_msg(timeout=PROCESS_SECONDS)
        verified = [point["verified"] for point in points["body"]["breakpoints"]]
        replies.append([begun["body"], attached["success"], verified])
    assert replies[0] == replies[1]


def test_plots(pair: Pair) -> None:
    """Plots come inline, and matplotlib takes the same back end and configuration."""
    pair.has("matplotlib")
    for kernel in (pair.cold, pair.warm):
        said = kernel.messages("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()")
        assert [sorted(content["data"]) for kind, content in said if kind == "display_data"] == [
            ["image/png", "text/plain"]
        ]
    pair.same(
        "[matplotlib.get_backend(), matplotlib.matplotlib_fname(), str(matplotlib.rcParams)]",
        before="import matplotlib",
    )


def test_widgets(pair: Pair) -> None:
    """A widget opens its comms, and hears of a change."""
    pair.has("ipywidgets")
    kinds = []
    for kernel in (pair.cold, pair.warm):
        said = kernel.messages("import ipywidgets\nslider = ipywidgets.IntSlider()\ndisplay(slider)")
        kinds.append([[kind, content.get("target_name")] for kind, content in said])
    assert kinds[0] == kinds[1]
    assert ["comm_open", "jupyter.widget"] in kinds[1]


def test_threads_of_numpy(pair: Pair) -> None:
    """Its libraries compute with as many threads."""
    pair.has("threadpoolctl")
    code = "import numpy, threadpoolctl; product = numpy.ones((300, 300)) @ numpy.ones((300, 300))"
    pair.same("[float(product[0, 0]), [[i['internal_api'], i['num_threads']] for i in threadpoolctl.threadpool_info()]]",
              before=code)  # fmt: skip


def test_numpy_that_is_imported_before(agent: AgentProcess, pair: Pair) -> None:
    """With numpy in the template a kernel has it at once, computes with as many threads, and draws numbers of its own."""
    pair.has("numpy")
    kernels = [agent.forked(preload=["numpy"], env={}) for _ in range(2)]
    assert all(kernel.json("'numpy' in sys.modules", before="import sys") for kernel in kernels)
    look = "import numpy, os; product = numpy.ones((300, 300)) @ numpy.ones((300, 300)); tasks = os.listdir('/proc/self/task')"
    kernels.append(agent.start(forked=False, env={}))
    done = [kernel.json("[float(product[0, 0]), len(tasks)]", before=look) for kernel in kernels[::2]]
    assert done[0] == done[1]
    drawn = {kernel.json("numpy.random.random()", before="import numpy") for kernel in kernels}
    assert len(drawn) == 3
    for kernel in kernels:
        kernel.close()


# -- options, ends -------------------------------------------------------------------------------------------------


def test_options_of_the_kernelspec(agent: AgentProcess) -> None:
    """What stands behind the connection file in argv is as for a kernel that was started."""
    options = ("--IPKernelApp.exec_lines=['given = 17']", "--matplotlib=", "--InteractiveShell.xmode=Plain")[0::2]
    cold = agent.start(forked=False, options=options)
    warm = agent.forked(options=options)
    for kernel in (cold, warm):
        assert kernel.run("print(given, get_ipython().InteractiveTB.mode)") == "17 Plain\n"
    assert warm.json("sys.argv", before="import sys") == cold.json("sys.argv", before="import sys")
    cold.close()
    warm.close()


@pytest.mark.parametrize(
    ("cell", "code"),
    [
        ("import os; os._exit(3)", 3),
        ("import os; os.abort()", -6),
        ("import os; os.kill(os.getpid(), 9)", -9),
        ("import ctypes; ctypes.string_at(0)", -11),
    ],
)
def test_exit_codes_and_last_words(agent: AgentProcess, cell: str, code: int) -> None:
    """However it ends, the exit code arrives, and its log has the same last words."""
    logs = []
    for forked in (False, True):
        kernel = agent.forked() if forked else agent.start(forked=False)
        kernel.client.execute(cell)
        ended = kernel.exited()
        assert ended["exit_code"] == code
        lines = [re.sub(r"line \d+|\d{6,}|PID", "N", kernel.plain(line)) for line in ended["log"].splitlines()]
        # The stack of the main thread ends in what ran the kernel; a fork has one line more there.
        logs.append([line for line in lines if "<template>" not in line and "in _run_" not in line])
        kernel.close()
    assert logs[0] == logs[1]


def test_an_orderly_end(agent: AgentProcess) -> None:
    """A shutdown request runs what was registered for the end, and ends with 0."""
    for forked in (False, True):
        kernel = agent.forked() if forked else agent.start(forked=False)
        path = agent.work / f"{kernel.name}.end"
        kernel.run(f"import atexit, pathlib; _ = atexit.register(pathlib.Path({str(path)!r}).write_text, 'ended')")
        kernel.client.shutdown()
        assert kernel.exited()["exit_code"] == 0
        assert path.read_text() == "ended"
        kernel.close()


def test_a_templates_end_leaves_its_kernels(agent: AgentProcess) -> None:
    """A template that is killed takes no kernel with it; their end is still told."""
    kernel = agent.forked()
    for template in agent.seen()["templates"]:
        os.kill(template["pid"], signal.SIGKILL)
    assert kernel.run("print(1 + 1)") == "2\n"
    kernel.client.shutdown()
    kernel.exited()
    kernel.close()
    block_until("the template is gone", lambda: not agent.seen()["templates"], PROCESS_SECONDS)


# -- all of the way ------------------------------------------------------------------------------------------------


async def test_starts_and_restarts_of_a_kernelspec(site: Site, anew: None) -> None:
    """A kernelspec that says `warm` has its second kernel forked, and restarts of either, with what the client asks for."""
    site.kernelspec("warmed", config={"warm": True, "remote_hosts": NAMES[0]})
    managers = []
    try:
        for number in range(2):
            manager: Any = AsyncKernelManager(kernel_name="warmed")
            managers.append(manager)
            await manager.start_kernel(env={**os.environ, "KERNEL_NUMBER": str(number)})
            client = manager.client()
            client.start_channels()
            await client.wait_for_ready(timeout=PROCESS_SECONDS)
            (cluster,) = process._clusters.made.values()
            if not number:
                await until("a template is there", functools.partial(_has_template, cluster), pause=0.1)
            assert await said_async(client, "import os; print(os.environ['KERNEL_NUMBER'], os.environ['NODE'])") == (
                f"{number} {NAMES[0]}"
            )
            await manager.restart_kernel(now=True)
            await client.wait_for_ready(timeout=PROCESS_SECONDS)
            assert await said_async(client, "print(1 + 1)") == "2"
            client.stop_channels()
        assert cluster.counters.of_host(NAMES[0]).warm_starts == {"forked": 3, "cold": 1}
    finally:
        for manager in managers:
            await manager.shutdown_kernel(now=True)


async def _has_template(cluster: Cluster) -> bool:
    seen = await asyncio.wrap_future(cluster.submit(cluster.find_templates(NAMES[0])))
    return any(each.memory for each in seen.templates)


# -- packages that change ------------------------------------------------------------------------------------------


def test_an_upgrade_is_noticed(tmp_path: Path) -> None:
    """A package that is upgraded after the template has imported it has its new version in the next kernel, which is cold."""
    prefix = tmp_path / "env"
    venv.create(prefix, symlinks=True)
    (packages,) = prefix.glob("lib/python3*/site-packages")
    (packages / "ours.pth").write_text(sysconfig.get_path("purelib"))

    def install(version: str) -> None:
        for info in packages.glob("thing-*.dist-info"):
            shutil.rmtree(info)
        (packages / "thing.py").write_text(f"version = {version!r}\n")
        (packages / f"thing-{version}.dist-info").mkdir()
        (packages / f"thing-{version}.dist-info" / "METADATA").write_text(f"Name: thing\nVersion: {version}\n")

    look = "import thing, importlib.metadata as m; print(thing.version, m.version('thing'))"
    install("1.0")
    with an_agent(str(prefix / "bin" / "python")) as agent:
        kernel = agent.forked(preload=["thing"], env={})
        assert kernel.json("'thing' in sys.modules", before="import sys")
        assert kernel.run(look) == "1.0 1.0\n"
        install("2.0")
        late = agent.start(forked=True, preload=["thing"], env={})
        assert (late.warm, late.run(look)) == ("cold", "2.0 2.0\n")
        (packages / "another.py").write_text("here = True\n")
        assert kernel.run("import another; print(another.here)") == "True\n"
        for each in (kernel, late):
            each.close()


def test_a_matplotlibrc_beside_the_notebook(agent: AgentProcess, pair: Pair) -> None:
    """Where the template has matplotlib, a kernel whose folder has a configuration of that is started."""
    pair.has("matplotlib")
    kernel = agent.forked(preload=["matplotlib"], env={})
    folder = agent.folder / "configured"
    folder.mkdir()
    (folder / "matplotlibrc").write_text("lines.linewidth: 7\n")
    other = agent.start(forked=True, preload=["matplotlib"], env={}, cwd=str(folder))
    assert other.warm == "cold"
    widths = [
        each.json("matplotlib.rcParams['lines.linewidth']", before="import matplotlib") for each in (kernel, other)
    ]
    assert widths == [1.5, 7]
    kernel.close()
    other.close()

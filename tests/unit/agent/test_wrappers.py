"""Kernels behind other programs: which process is the kernel, what an interrupt reaches, what is left at the end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from eg_distributed.link.connect import connect
from eg_distributed.settings import Distributed
from tests.unit.agents import Visitor, alive, standin, written
from tests.until import until


def script(text: str) -> list[str]:
    """Return the argv of a Python wrapper."""
    return [sys.executable, "-ISc", f"import subprocess, sys; argv = sys.argv[1:]; {text}"]


WRAPPERS: dict[str, list[str]] = {
    "call": script("sys.exit(subprocess.call(argv))"),
    "communicate": script("p = subprocess.Popen(argv); p.communicate(); sys.exit(p.returncode)"),
    "own session": script("sys.exit(subprocess.Popen(argv, start_new_session=True).wait())"),
    "setsid": ["setsid", "--wait"],
    "shell and timeout": ["/bin/sh", "-c", 'timeout 600 "$@"; exit $?', "sh"],
    "nice": ["nice"],
    "login shell": ["bash", "-lc", '"$@"; exit $?', "bash"],
    "call in shell": ["bash", "-c", '"$@"; exit $?', "bash", *script("sys.exit(subprocess.call(argv))")],
    "beside another": ["/bin/sh", "-c", 'sleep 600 & "$@"; exit $?', "sh"],
    "left alone": ["/bin/sh", "-c", 'nohup setsid "$@" >/dev/null 2>&1 & exit 0', "sh"],
    "left alone in its group": ["/bin/sh", "-c", 'nohup "$@" >/dev/null 2>&1 & exit 0', "sh"],
    "left alone later": ["/bin/sh", "-c", 'nohup setsid "$@" & read -r line < "$EGTEST_FIFO"', "sh"],
}


def behind(*names: str) -> pytest.MarkDecorator:
    """Return the mark of a test that is run for the wrappers of these *names*, or for all."""
    return pytest.mark.parametrize("wrapper", [pytest.param(WRAPPERS[n], id=n) for n in names or WRAPPERS])


async def family(visitor: Visitor, home: Path, wrapper: list[str], *behaviours: str, **params: Any) -> tuple[int, int]:
    """Start a stand-in behind *wrapper*; return the pids of the process that was executed and of the kernel."""
    fifo = home / "fifo"
    if not fifo.exists():
        os.mkfifo(fifo)
    (home / "facts").unlink(missing_ok=True)
    argv = [*wrapper, *standin(f"facts:{home / 'facts'}", *behaviours)]
    described = await visitor.ready("k1", argv, env={"EGTEST_FIFO": str(fifo)}, **params)
    return described["pid"], (await written(home / "facts"))["pid"]


def with_our_files(home: Path) -> list[int]:
    """Return the pids of processes whose command line has a path below *home*, agents apart."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and alive(int(entry.name)):
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:  # it has ended meanwhile
                continue
            if os.fsencode(home) in line and b"connection.json" in line:
                found.append(int(entry.name))
    return found


def release(home: Path) -> None:
    """Let a wrapper that waits for the FIFO end."""
    descriptor = os.open(home / "fifo", os.O_RDWR | os.O_NONBLOCK)
    os.write(descriptor, b"go\n")
    os.close(descriptor)


async def interrupted(visitor: Visitor, home: Path, wrapper: list[str], **params: Any) -> None:
    """Start a kernel behind *wrapper*, interrupt it, and have it end by itself."""
    executed, kernel = await family(visitor, home, wrapper, f"note:{home / 'note'}", **params)
    was_alive = alive(executed)
    assert await visitor.request("signal", kernel="k1", signum=signal.SIGINT)
    assert await written(home / "note") == "SIGINT"
    assert alive(kernel)
    assert alive(executed) == was_alive
    _, _, writer = await visitor.stream("k1")
    writer.write(b"\0\0\0\0\3bye")
    ended = await visitor.event("exited", "k1")
    # Of a process that is another's child, only Linux 6.15 and later tell the code.
    assert ended["exit_code"] in ((7, None) if "nohup" in str(wrapper) else (7,))
    writer.close()
    await until("nothing is left", lambda: not with_our_files(home))
    assert not alive(executed)


@behind()
async def test_an_interrupt_is_the_kernels_alone(visitor: Visitor, home: Path, wrapper: list[str]) -> None:
    """SIGINT reaches the process that listens, wherever its wrapper put it, and no wrapper; the kernel's code is told."""
    await interrupted(visitor, home, wrapper)


@behind("call", "own session", "left alone")
async def test_a_kernel_on_ports_is_known_as_well(visitor: Visitor, home: Path, wrapper: list[str]) -> None:
    """Who listens on a TCP port is found by its inode, and interrupted alone."""
    await interrupted(visitor, home, wrapper, transport="tcp")


@behind()
async def test_an_end_reaches_all_of_them(visitor: Visitor, home: Path, wrapper: list[str]) -> None:
    """A stop ends the kernel and its wrappers, although the kernel ignores SIGTERM; then it can be started again."""
    for attempt in ("a1", "a2"):
        visitor.events.clear()
        executed, kernel = await family(visitor, home, wrapper, "ignore:SIGTERM", attempt=attempt)
        assert (await visitor.request("stop", kernel="k1", attempt=attempt, grace=0.1))["stopped"]
        assert not alive(kernel)
        await until("nothing is left", lambda: not with_our_files(home))
        assert not alive(executed)


@behind("call", "own session", "shell and timeout", "beside another", "left alone")
async def test_a_kernel_that_is_killed_takes_its_wrappers_along(
    visitor: Visitor, home: Path, wrapper: list[str]
) -> None:
    """The death of the kernel itself is told, whatever its wrapper makes of it, and nothing is left."""
    executed, kernel = await family(visitor, home, wrapper)
    os.kill(kernel, signal.SIGKILL)
    code = (await visitor.event("exited", "k1"))["exit_code"]
    # One that leaves the kernel alone ends with 0, which is all that is known where both ends are seen at once.
    assert code in (
        -signal.SIGKILL,
        128 + signal.SIGKILL,
        256 - signal.SIGKILL,
        None,
        *([0] if "exit 0" in wrapper[2] else []),
    )
    await until("nothing is left", lambda: not with_our_files(home))
    assert not alive(executed)


@behind("call", "own session", "left alone later")
async def test_the_next_agent_knows_the_kernel_as_well(
    visitor: Visitor, home: Path, settings: Distributed, wrapper: list[str]
) -> None:
    """After the agent's death the next one interrupts and ends the kernel behind its wrapper."""
    executed, kernel = await family(visitor, home, wrapper, f"note:{home / 'note'}")
    agent = (await visitor.request("ping"))["pid"]
    os.kill(agent, signal.SIGKILL)
    await visitor.ended()
    again = await Visitor.at(await connect("localhost", settings))
    assert "k1" in await again.request("adopt", kernels=["k1"])
    was_alive = alive(executed)
    assert await again.request("signal", kernel="k1", signum=signal.SIGINT)
    assert await written(home / "note") == "SIGINT"
    assert alive(executed) == was_alive
    assert (await again.request("stop", kernel="k1", grace=5, forget=True))["stopped"]
    assert not alive(kernel)
    await until("nothing is left", lambda: not with_our_files(home))
    again.close()


async def test_a_record_of_an_older_release_is_mended(visitor: Visitor, home: Path, settings: Distributed) -> None:
    """A kernel that runs, and whose record does not say which process it is, is interrupted as any other."""
    executed, kernel = await family(visitor, home, WRAPPERS["call"], f"note:{home / 'note'}")
    os.kill((await visitor.request("ping"))["pid"], signal.SIGKILL)
    await visitor.ended()
    (path,) = home.glob("eg-distributed/*/k/*/record.json")
    record = json.loads(path.read_text())
    assert record.pop("family")["kernel"][0] == kernel
    path.write_text(json.dumps(record))
    again = await Visitor.at(await connect("localhost", settings))
    await until("the kernel is known", lambda: json.loads(path.read_text()).get("family", {}).get("kernel"))
    assert await again.request("signal", kernel="k1", signum=signal.SIGINT)
    assert await written(home / "note") == "SIGINT"
    assert alive(executed)
    again.close()


async def test_a_wrapper_that_leaves_its_kernel_takes_nothing_with_it(visitor: Visitor, home: Path) -> None:
    """The kernel of a wrapper that has ended goes on, and its end is told when it comes."""
    executed, kernel = await family(visitor, home, WRAPPERS["left alone later"])
    release(home)
    await until("the wrapper has ended", lambda: not alive(executed))
    (listed,) = await visitor.request("list")
    assert listed["state"] == "running"
    assert alive(kernel)
    os.kill(kernel, signal.SIGTERM)
    assert (await visitor.event("exited", "k1"))["exit_code"] in (-signal.SIGTERM, None)


async def test_a_start_that_is_given_up_leaves_no_process_in_another_session(visitor: Visitor, home: Path) -> None:
    """A kernel that does not listen yet is found by its connection file, and ended."""
    await visitor.start("k1", [*WRAPPERS["left alone"], *standin("ignore:SIGTERM", "deaf:")])
    await until("it runs", lambda: with_our_files(home))
    assert (await visitor.request("stop", kernel="k1", grace=0.1, forget=True))["stopped"]
    await until("nothing is left", lambda: not with_our_files(home))


async def test_what_the_kernel_runs_is_interrupted_with_it(visitor: Visitor, home: Path) -> None:
    """Behind a wrapper, too, a program in the kernel's foreground gets the interrupt, and what the wrapper runs does not."""
    beside = standin(f"note:{home / 'beside'}")
    wrapper = ["/bin/sh", "-c", f'{" ".join(beside).format(connection_file="-")} & "$@"; exit $?', "sh"]
    inner = f"import subprocess; subprocess.Popen({[*standin()[:-1], '-', 'note:' + str(home / 'child')]!r});"
    inner += f"import sys; sys.argv=sys.argv[1:]; exec(compile(open({standin()[2]!r}).read(), 'standin', 'exec'))"
    argv = [*wrapper, sys.executable, "-ISc", inner, *standin(f"note:{home / 'kernel'}")[2:]]
    await visitor.ready("k1", argv)
    await until("all have handlers", lambda: all((home / f"{n}.set").exists() for n in ("beside", "child", "kernel")))
    assert await visitor.request("signal", kernel="k1", signum=signal.SIGINT)
    assert await written(home / "kernel") == "SIGINT"
    assert await written(home / "child") == "SIGINT"
    assert not (home / "beside").exists()
    await asyncio.wait_for(visitor.request("stop", kernel="k1", grace=5, forget=True), 30)

"""Programs that start a kernel for themselves: nbclient, papermill, nbconvert, `jupyter run`, `execute`, `console`, Voila."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import nbformat
import pytest
from nbclient import NotebookClient

from eg_distributed.kernelspecs.guard import guarded
from lab.ports import free_port
from tests.until import PROCESS_SECONDS, block_until

from .site import ARGV, KERNEL, NAMES, Site

NODE = "import os; print('on', os.environ['NODE'])"
JUPYTER = (sys.executable, "-m", "jupyter")


def notebook(*cells: str) -> nbformat.NotebookNode:
    """Return a notebook of our kernelspec."""
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    made.metadata["kernelspec"] = {"name": KERNEL, "display_name": KERNEL, "language": "python"}
    return made


@pytest.fixture
def file(site: Site) -> Iterator[Path]:
    """A notebook on disk."""
    path = site.work / "some.ipynb"
    nbformat.write(notebook("import os", NODE, "print(os.getcwd())"), path)
    yield path
    path.unlink()


def ran(site: Site, *argv: str, said: str = "", **more: str) -> str:
    """Run a client's program to its end, with *said* on its stdin; return what it prints."""
    done = subprocess.run(
        argv,
        cwd=site.work,
        env=site.environment(**more),
        input=said,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def node_in(text: str) -> str:
    """Return the node that a cell of ours has named."""
    found = re.search(r"on (node\d)", text)
    assert found, text
    return found[1]


def test_nbclient(site: Site) -> None:
    """A notebook runs on a host, in the folder that is asked for."""
    done = NotebookClient(
        notebook(NODE, "print(os.getcwd())"), kernel_name=KERNEL, resources={"metadata": {"path": "."}}
    ).execute()
    assert node_in(done.cells[0].outputs[0].text) in NAMES
    assert done.cells[1].outputs[0].text.strip() == str(site.work)


@pytest.mark.long
def test_papermill(site: Site, file: Path) -> None:
    """The same by papermill's command."""
    target = site.work / "done.ipynb"
    ran(site, sys.executable, "-m", "papermill", str(file), str(target), "-k", KERNEL)
    assert node_in(target.read_text()) in NAMES


@pytest.mark.long
def test_nbconvert(site: Site, file: Path) -> None:
    """`jupyter nbconvert --execute` runs the notebook in its own folder."""
    said = ran(site, *JUPYTER, "nbconvert", "--execute", "--to", "markdown", "--stdout", str(file))
    assert node_in(said) in NAMES
    assert str(site.work) in said


@pytest.mark.long
def test_jupyter_execute(site: Site, file: Path) -> None:
    """`jupyter execute` writes what the host has said into the notebook."""
    ran(site, *JUPYTER, "execute", "--inplace", str(file))
    assert node_in(file.read_text()) in NAMES


def test_jupyter_run(site: Site) -> None:
    """`jupyter run` runs a file; each of several processes goes to another host than those that run there have."""
    (site.work / "some.py").write_text(f"{NODE}; print(os.getcwd())")
    said = ran(site, *JUPYTER, "run", f"--kernel={KERNEL}", "some.py")
    assert node_in(said) in NAMES
    assert str(site.work) in said


@pytest.fixture
def spread() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that run at once; they end with the test."""
    running: list[subprocess.Popen[str]] = []
    yield running
    for process in running:
        process.kill()
        process.communicate()


SLOW = f"{NODE}; import sys; sys.stdout.flush(); import time; time.sleep(60)"


@pytest.mark.long
def test_processes_spread_over_the_hosts(site: Site, spread: list[subprocess.Popen[str]]) -> None:
    """Each starts one kernel, and goes where fewest run. Killed, they leave kernels that end by themselves, and no socket."""
    (site.work / "slow.py").write_text(SLOW)
    env = site.environment(EG_DISTRIBUTED_ORPHAN_TIMEOUT="1")
    nodes = []
    for _ in NAMES:
        argv = [*JUPYTER, "run", f"--kernel={KERNEL}", "slow.py"]
        process = subprocess.Popen(
            argv, cwd=site.work, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        spread.append(process)
        assert process.stdout is not None
        nodes.append(node_in(process.stdout.readline()))
    assert len(set(nodes)) > 1  # each, where logins take less than the second for which a count is waited for
    folders = [path.parent for path in Path("/tmp").glob(f"eg-distributed-{os.getuid()}-*/owner.lock")]
    assert len(folders) >= len(NAMES)
    for process in spread:
        process.send_signal(signal.SIGKILL)
        process.wait()
    site.await_none()
    ran(site, *JUPYTER, "run", f"--kernel={KERNEL}", said=NODE)
    assert not [folder for folder in folders if locked_by_nobody(folder)]


def locked_by_nobody(folder: Path) -> bool:
    """Return True if *folder* is there, and its process is not."""
    from eg_distributed.jupyter_server.process import _locked

    with contextlib.suppress(OSError):
        lock = _locked(folder / "owner.lock")
        if lock is not None:
            os.close(lock)
            return True
    return False


# -- consoles ------------------------------------------------------------------------------------------------------


def test_a_console(site: Site) -> None:
    """`jupyter console --kernel` starts a kernel on a host and ends it."""
    said = ran(site, *JUPYTER, "console", "--simple-prompt", f"--kernel={KERNEL}", said=f"{NODE}\nexit\n")
    assert node_in(said) in NAMES


@pytest.mark.long
def test_a_console_for_an_existing_kernel(site: Site) -> None:
    """`--existing` reaches another process's kernel by its connection file, and leaves it running."""
    argv = [*JUPYTER, "kernel", f"--kernel={KERNEL}"]
    with subprocess.Popen(argv, cwd=site.work, env=site.environment(), stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            found = next(match for line in process.stderr if (match := re.search(r"Connection file: (\S+)", line)))
            ran(
                site,
                *JUPYTER,
                "console",
                "--simple-prompt",
                "--existing",
                found[1],
                said="x = 42\nexit(keep_kernel=True)\n",
            )
            said = ran(
                site,
                *JUPYTER,
                "console",
                "--simple-prompt",
                "--existing",
                found[1],
                said="print(x)\nexit(keep_kernel=True)\n",
            )
            assert "42" in said
        finally:
            process.terminate()
            process.communicate(timeout=PROCESS_SECONDS)


# -- Voila ---------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_voila(site: Site, file: Path) -> None:
    """A notebook as an application: its cells have run on a host, in the notebook's folder."""
    pytest.importorskip("voila")
    port = free_port()
    argv = [sys.executable, "-m", "voila", "--no-browser", f"--port={port}", str(file)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(argv, cwd=site.work, env=site.environment(), stdout=log, stderr=log)
        try:

            def page() -> str:
                assert process.poll() is None
                with contextlib.suppress(httpx.TransportError):
                    return httpx.get(f"http://127.0.0.1:{port}/", timeout=60).text
                return ""

            text = block_until("Voila answers", page, 60.0)
            assert node_in(text) in NAMES
            assert str(site.work) in text
        finally:
            process.terminate()
            process.wait(PROCESS_SECONDS)
            log.seek(0)
            print(log.read())


# -- clients that know no provisioners -----------------------------------------------------------------------------


def told(argv: Sequence[str]) -> str:
    """Run *argv* as a client that knows no provisioners does, and return what it prints."""
    filled = [word.replace("{connection_file}", "/nowhere/kernel.json") for word in argv]
    done = subprocess.run(filled, capture_output=True, text=True, timeout=PROCESS_SECONDS, check=False)
    assert done.returncode == 78
    return done.stderr


def test_a_client_that_ignores_provisioners_starts_nothing_here(site: Site) -> None:
    """argv, executed as it stands, says what to install and fails."""
    spec = json.loads((site.home / "data" / "kernels" / KERNEL / "kernel.json").read_text())
    assert spec["argv"] == guarded(ARGV)
    assert 'pip install "eg_distributed[server]"' in told(spec["argv"])

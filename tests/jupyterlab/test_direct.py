"""JupyterLab on its own server, its kernels on hosts: what people do, and what hosts and networks do to them."""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Error, Locator, Page, expect

from lab import Lab
from lab.faults import active, add
from tests.integration.looks import processes
from tests.jupyterlab.cells import BINARY, DEBUGGED, FIGURE, SLIDER, printed, printing
from tests.jupyterlab.notebook import SECONDS, Cell, JupyterLab
from tests.jupyterlab.worlds import World
from tests.until import MACHINE_SECONDS, block_until

pytestmark = [pytest.mark.timeout(300), pytest.mark.parametrize("world", ["direct"], indirect=True, scope="module")]


Picture = Callable[[Page, str], None]
_NOT_RESTARTING = (
    """() => !window.jupyterapp.shell.currentWidget.context.sessionContext.kernelDisplayStatus.includes('restarting')"""
)
OUTAGE = 10.0
"""Seconds for which a host stands still: long enough that people are told."""
MEGABYTES_50 = 50 * 1024 * 1024
_BYTES = """() => {
    const kernel = window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel;
    window.received = 0;
    kernel.iopubMessage.connect((_, message) => {
        for (const buffer of message.buffers ?? []) { window.received += buffer.byteLength; }
    });
}"""


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left(own: Lab, tab: JupyterLab) -> Iterator[None]:
    """Have no process of a kernel on any node once the last notebook is shut down."""
    yield
    tab.clear()
    block_until(
        "no kernel's process is left on the nodes",
        lambda: not any(processes(node) for node in own.nodes),
        seconds=MACHINE_SECONDS,
    )


def test_a_kernel_of_a_host_is_chosen_in_the_launcher(jupyterlab: JupyterLab, picture: Picture) -> None:
    """The launcher has a card for each host; what is clicked on runs there."""
    jupyterlab.command("launcher:create")
    jupyterlab.page.locator(".jp-LauncherCard[title='Python 3 on node2']:visible").first.wait_for()
    picture(jupyterlab.page, "launcher")
    for host in ("node1", "node2"):
        notebook = jupyterlab.launch(f"Python 3 on {host}")
        notebook.run("import os, socket; print(os.environ.get('LAB_NODE') or socket.gethostname())").shows(host)


def test_names_are_completed_and_explained(jupyterlab: JupyterLab) -> None:
    """Tab completes what the kernel knows, Shift and Tab show its documentation."""
    notebook = jupyterlab.fresh()
    notebook.run("import os").ended()
    cell = notebook.add("os.getp")
    cell.editor.click()
    cell.editor.press("End")
    found, tooltip = jupyterlab.page.locator(".jp-Completer:visible"), jupyterlab.page.locator(".jp-Tooltip:visible")

    def shown(box: Locator, key: str) -> str | None:
        # JupyterLab gives up a kernel that has not answered within a second, without a word: people press the key again.
        cell.editor.press(key)
        with contextlib.suppress(Error):
            box.wait_for(timeout=3000)
        return box.inner_text() if box.is_visible() else None

    names = block_until("names are offered", lambda: shown(found, "Tab"), seconds=SECONDS)
    assert {"getpid", "getppid"} <= set(names.split())
    cell.editor.press("Escape")
    cell = notebook.add("os.getpid")
    cell.editor.click()
    cell.editor.press("End")
    assert "current process id" in block_until("it is explained", lambda: shown(tooltip, "Shift+Tab"), seconds=SECONDS)


def test_a_cell_is_debugged(jupyterlab: JupyterLab, picture: Picture) -> None:
    """A cell stops at a breakpoint, shows its variables, and goes on."""
    notebook = jupyterlab.fresh()
    page = jupyterlab.page
    cell = notebook.add(DEBUGGED)
    notebook.click("debugger-icon")
    gutter = cell.element.locator(".cm-breakpoint-gutter .cm-gutterElement")
    gutter.nth(4).click(timeout=SECONDS * 1000)  # the first of them is a spacer
    cell.element.locator(".cm-breakpoint-icon:visible").wait_for()
    cell.editor.click()
    notebook.click("run")
    stack = page.locator(".jp-DebuggerCallstack-body")
    expect(stack).to_contain_text("<module>", timeout=SECONDS * 1000)
    expect(page.locator(".jp-DebuggerVariables-body:visible")).to_contain_text("total", timeout=SECONDS * 1000)
    picture(page, "debugger")
    jupyterlab.command("debugger:continue")
    cell.shows("total 3")


def test_a_figure_of_matplotlib_is_shown(jupyterlab: JupyterLab) -> None:
    """What pyplot draws on the host is an image below the cell."""
    image = jupyterlab.fresh().run(FIGURE).output.locator("img")
    image.wait_for()
    assert image.evaluate("(image) => image.decode().then(() => image.naturalWidth)") > 300


def test_a_slider_calls_back(jupyterlab: JupyterLab, picture: Picture) -> None:
    """A slider that is moved in the browser calls a function on the host, whose answer the page shows."""
    notebook = jupyterlab.fresh()
    cell = notebook.run(SLIDER)
    handle = cell.output.locator(".noUi-handle")
    handle.focus()
    for _ in range(3):
        handle.press("ArrowRight")
    cell.shows("moved to 3")
    picture(jupyterlab.page, "widgets")
    notebook.run("print('moved', moved[-1])").shows("moved 3")


def test_twenty_thousand_lines_are_all_there(jupyterlab: JupyterLab) -> None:
    """Nothing of a long output is dropped, and the next cell answers."""
    notebook = jupyterlab.fresh()
    cell = notebook.run("for number in range(20_000): print(number)")
    cell.ended()
    cell.shows("19999")
    assert cell.numbers() == list(range(20_000))
    notebook.run("print('next')").shows("next")


def test_a_widgets_message_may_have_50_megabytes(jupyterlab: JupyterLab) -> None:
    """Its bytes all reach the page, and the kernel answers after them."""
    notebook = jupyterlab.fresh()
    jupyterlab.page.evaluate(_BYTES)
    notebook.run(BINARY).shows(f"sent {MEGABYTES_50}")
    jupyterlab.page.wait_for_function("(size) => window.received >= size", arg=MEGABYTES_50)
    notebook.run("print('next')").shows("next")


def test_a_kernel_that_dies_is_started_again(jupyterlab: JupyterLab) -> None:
    """JupyterLab says that it died, and the next cell runs in a new one, on a host."""
    notebook = jupyterlab.fresh()
    notebook.run("kept = 1").ended()
    notebook.run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    dialog = jupyterlab.page.locator(".jp-Dialog")
    expect(dialog).to_contain_text("appears to have died", timeout=SECONDS * 1000)
    dialog.locator("button").first.click()
    notebook.idle()
    notebook.run("print('kept' in globals(), 'anew')").shows("False anew")


def test_a_failing_start_says_why(world: World, jupyterlab: JupyterLab, picture: Picture) -> None:
    """JupyterLab's dialog has host, cause and remedy of a kernel that cannot start."""
    spec = {
        "argv": ["/opt/nowhere/bin/python", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Nowhere",
        "language": "python",
        "metadata": {"process_proxy": {"class_name": "eg_distributed.DistributedProcessProxy"}},
    }
    world.gateway.add_kernelspec("nowhere", spec)
    page = jupyterlab.page
    page.evaluate(
        "() => window.jupyterapp.serviceManager.kernelspecs.refreshSpecs()"
    )  # it does so by itself each minute
    jupyterlab.command("notebook:create-new", kernelName="nowhere")
    dialog = page.locator(".jp-Dialog")
    expect(dialog).to_contain_text(re.compile("/opt/nowhere/bin/python"), timeout=SECONDS * 1000)
    expect(dialog).to_contain_text(re.compile(r"node\d\.lab\.test"))
    assert "directory.\nCheck argv" in dialog.locator("pre").inner_text()  # in lines: it is as wide as it shows
    picture(page, "failing-start")
    dialog.locator("button").first.click()
    dialog.filter(has_text="Select Kernel").locator(".jp-mod-reject").click()  # "No Kernel"


def test_a_host_hangs_and_is_back(own: Lab, jupyterlab: JupyterLab) -> None:
    """The cell says so, and that it is back; it goes on where it was, no line is lost, and names are there."""
    notebook = jupyterlab.fresh("python_node1")
    cell = notebook.run(printing(60, 0.2))
    cell.reached(5)
    add(own, "pause", [own.node("node1")], duration=OUTAGE)
    cell.shows("node1.lab.test has not answered since")
    block_until("the pause is healed", lambda: not active(own), seconds=3 * OUTAGE, pause=0.2)
    cell.shows("It is back, with your kernel.")
    cell.reached(59)
    cell.ended()
    assert lines_of(cell) == list(range(60))
    notebook.run("print('number', number)").shows("number 59")


def test_the_page_shows_the_host_and_what_happens_to_it(own: Lab, jupyterlab: JupyterLab, picture: Picture) -> None:
    """The host stands beside the kernel's name; toasts say that it hangs, why a restart was refused, and that it is back."""
    page = jupyterlab.page
    if not page.evaluate("() => window.jupyterapp.hasPlugin('eg-distributed:plugin')"):
        pytest.skip("the front-end extension is not in the lab's wheel: `nox -s frontend`, before the lab is made")
    notebook = jupyterlab.fresh("python_node1")
    host, toast = page.locator(".jp-eg-distributed-host:visible"), page.locator(".Toastify__toast")
    expect(host).to_have_text("node1", timeout=SECONDS * 1000)
    notebook.run("print('here')").shows("here")
    with add(own, "pause", [own.node("node1")]):
        expect(toast.filter(has_text="node1.lab.test has not answered since")).to_be_visible(timeout=SECONDS * 1000)
        expect(host).to_have_text("node1 (out of reach)", timeout=SECONDS * 1000)
        picture(page, "host-hangs")
        notebook.restart()
        expect(toast.filter(has_text="The kernel was not restarted")).to_be_visible(timeout=SECONDS * 1000)
        page.wait_for_function(_NOT_RESTARTING)  # while the host still hangs
    expect(toast.filter(has_text="node1.lab.test is back")).to_be_visible(timeout=SECONDS * 1000)
    expect(host).to_have_text("node1", timeout=SECONDS * 1000)
    notebook.idle()
    notebook.run("print('there')").shows("there")


def test_ssh_is_cut_for_30_seconds(own: Lab, jupyterlab: JupyterLab) -> None:
    """A cell that prints meanwhile loses no line, and none comes twice."""
    notebook = jupyterlab.fresh("python_node1")
    lines, where = 180, f"/tmp/{uuid.uuid4()}"
    cell = notebook.run(printing(lines, 0.2, where))
    cell.reached(5)
    with add(own, "partition", [own.node("node1")]):
        before = printed(own, where)
        block_until("30 s of output", lambda: printed(own, where) >= before + 145, seconds=90, pause=1)
    cell.reached(lines - 1)
    cell.ended()
    assert lines_of(cell) == list(range(lines))


def test_the_server_is_killed_and_started_again(own: Lab, world: World, jupyterlab: JupyterLab) -> None:
    """The open page connects again, to the same kernel, and its cell has all that it printed meanwhile.

    A line that came just before the kill could not be confirmed any more, and may be there twice.
    """
    notebook = jupyterlab.fresh()
    notebook.run("kept = 1").ended()
    lines, where = 150, f"/tmp/{uuid.uuid4()}"
    cell = notebook.run(printing(lines, 0.1, where))
    cell.reached(20)
    world.gateway.kill()
    reached = printed(own, where)
    block_until("the kernel has printed more meanwhile", lambda: printed(own, where) > reached + 20, pause=0.2)
    world.gateway.start()
    world.path.follow(world.gateway)
    cell.reached(lines - 1)
    cell.ended()
    shown = lines_of(cell)
    assert list(dict.fromkeys(shown)) == list(range(lines))
    assert len(shown) <= lines + 3
    notebook.run("print('kept', kept)").shows("kept 1")


def lines_of(cell: Cell) -> list[int]:
    """Return the numbers that a cell of `printing` shows, without what it is told beside."""
    return [int(line) for line in cell.text().splitlines() if line.strip().isdecimal()]

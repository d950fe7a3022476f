"""What people do with a notebook in JupyterLab works through Enterprise Gateway, and without it, as with a kernel beside it."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from tests.jupyterlab.cells import PLOT, WIDGET, printing
from tests.jupyterlab.notebook import SECONDS, JupyterLab
from tests.jupyterlab.worlds import WORLDS, World

pytestmark = [pytest.mark.timeout(600), pytest.mark.parametrize("world", list(WORLDS), indirect=True, scope="module")]

NOTEBOOKS = {"gateway": 20, "direct": 5}
FIRST_OUTPUT = 2.0
"""Seconds from the click to the first output, as we promise it for a machine that does nothing else; here that is the median."""
FIRST_OUTPUT_EACH = 8.0
"""What a single one may take here, where browser, JupyterLab's server, gateway and nodes share two processors."""
SESSION = 5.0
"""Seconds from a new notebook to its idle kernel, in the median."""
SESSION_EACH = 15.0
"""What a single one may take here."""


def test_the_first_cell_of_a_fresh_notebook_answers(world: World, jupyterlab: JupyterLab) -> None:
    """Many notebooks in a row, in the median: the session within 5 s, the first output within 2 s of the click.

    A single one may take three and four times as long here: our promise is for a machine that does nothing else.
    """
    sessions, outputs = [], []
    for number in range(NOTEBOOKS[world.name]):
        notebook = jupyterlab.fresh()
        sessions.append(notebook.started)
        outputs.append(notebook.add(f"print('notebook', {number})").seconds_to_output(f"notebook {number}"))
        jupyterlab.clear()
    took = [
        f"{what}: {', '.join(f'{each:.2f}' for each in seconds)}"
        for what, seconds in (("idle", sessions), ("output", outputs))
    ]
    print("seconds to", "; to ".join(took))
    assert statistics.median(sessions) <= SESSION, took
    assert max(sessions) <= SESSION_EACH, took
    assert statistics.median(outputs) <= FIRST_OUTPUT, took
    assert max(outputs) <= FIRST_OUTPUT_EACH, took


def test_a_cell_is_interrupted(jupyterlab: JupyterLab) -> None:
    """The button with the square ends the cell, and the next one runs."""
    notebook = jupyterlab.fresh()
    cell = notebook.run("import time\nkept = 1\nprint('on', flush=True)\nwhile True: time.sleep(0.1)")
    cell.shows("on")
    notebook.click("interrupt")
    cell.shows("KeyboardInterrupt")
    notebook.run("print('kept', kept)").shows("kept 1")


def test_a_kernel_is_restarted(jupyterlab: JupyterLab) -> None:
    """After a restart names are gone and a cell answers: while the kernel was idle, and while it ran one."""
    notebook = jupyterlab.fresh()
    notebook.run("kept = 1").ended()
    for before in ("pass", "import time\nwhile True: time.sleep(0.1)"):
        notebook.run(before)
        notebook.restart()
        notebook.idle()
        notebook.run("print('kept' in globals(), 1)").shows("False 1")


def test_a_cell_asks_for_input(jupyterlab: JupyterLab) -> None:
    """What is typed into the box of `input()` is what the cell gets."""
    notebook = jupyterlab.fresh()
    cell = notebook.run("print('Hello', input('name? '))")
    box = cell.element.locator(".jp-Stdin-input")
    box.fill("Ada")
    box.press("Enter")
    cell.shows("Hello Ada")


def test_a_plot_is_shown(jupyterlab: JupyterLab) -> None:
    """An image that a cell makes, as plotting libraries do, is shown below it."""
    cell = jupyterlab.fresh().run(PLOT)
    image = cell.output.locator("img")
    image.wait_for()
    assert image.evaluate("(image) => image.decode().then(() => [image.naturalWidth, image.naturalHeight])") == [
        300,
        100,
    ]


def test_a_widget_calls_back(jupyterlab: JupyterLab) -> None:
    """A click on a button in the output runs its callback in the kernel, and the widget shows what that did."""
    notebook = jupyterlab.fresh()
    cell = notebook.run(WIDGET)
    button = cell.output.locator("button.jupyter-button")
    for clicks in (1, 2):
        button.click()
        expect(button).to_have_text(f"clicked {clicks}", timeout=SECONDS * 1000)


def test_a_page_is_reloaded_while_a_cell_prints(jupyterlab: JupyterLab) -> None:
    """What was saved before is there after, and the cell runs on, undisturbed.

    Its further output is not there: JupyterLab itself shows that of cells alone which the page has sent.
    """
    notebook = jupyterlab.fresh()
    path = notebook.path
    cell = notebook.run("lines = []\n" + printing(60, 0.1).replace("time.sleep", "lines.append(number); time.sleep"))
    cell.reached(10)
    notebook.save()
    jupyterlab.page.reload()
    jupyterlab.loaded()
    again = jupyterlab.open(path)
    assert again.cell(0).numbers()[:11] == list(range(11))
    again.run("print(lines == list(range(60)))").shows("True")


def test_two_tabs_share_a_kernel(jupyterlab: JupyterLab, open_tab: Callable[[str], JupyterLab]) -> None:
    """Each shows the output of its own cells, whole, also when the other one closes in the middle."""
    notebook = jupyterlab.fresh()
    cell = notebook.run(printing(60, 0.1))
    notebook.save()
    second = open_tab("second")
    other = second.open(notebook.path)
    theirs = other.run("print('second', number)")
    cell.reached(59)
    theirs.shows("second 59")
    third = other.run(printing(40, 0.1))
    third.reached(5)
    second.page.close()
    assert cell.numbers() == list(range(60))
    notebook.run("print('first', number)").shows("first 39")

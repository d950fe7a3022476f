"""What people do with a notebook in JupyterLab works through Enterprise Gateway, as with a kernel beside it."""

from __future__ import annotations

import base64
import io
import statistics
import zipfile
from collections.abc import Callable
from pathlib import Path

import httpx
import ipywidgets
import pytest
from playwright.sync_api import expect

from lab import Gateway, Lab
from tests.jupyterlab.conftest import SlowPath
from tests.jupyterlab.notebook import SECONDS, JupyterLab
from tests.until import block_until

pytestmark = [pytest.mark.timeout(600), pytest.mark.own_lab("jupyterlab", nodes=2)]

NOTEBOOKS = 20
FIRST_OUTPUT = 2.0
"""Seconds from the click to the first output, as we promise it for a machine that does nothing else; here that is the median."""
FIRST_OUTPUT_EACH = 8.0
"""What a single one may take here, where browser, JupyterLab's server, gateway and nodes share two processors."""
SESSION = 5.0
"""Seconds from a new notebook to its idle kernel, in the median."""
SESSION_EACH = 15.0
"""What a single one may take here."""
ASLEEP = 60.0
"""Seconds that a laptop sleeps for."""
SLEPT, OVER_A_KILL = "/tmp/slept", "/tmp/over-a-kill"
"""Where the cells that run meanwhile say how far they are; no other cells write there."""


def printing(lines: int, pause: float, where: str = "/tmp/printed") -> str:
    """Return a cell that prints numbers, and keeps on its node how far it is."""
    return f"""
import pathlib, time
for number in range({lines}):
    print(number, flush=True)
    pathlib.Path({where!r}).write_text(str(number))
    time.sleep({pause})
"""


def printed(lab: Lab, where: str) -> int:
    """Return how far a cell of `printing` is, by the file on its node."""
    found = [node.exec(["cat", where]).stdout.strip() for node in lab.nodes]
    return max((int(text) for text in found if text), default=-1)


def test_the_first_cell_of_a_fresh_notebook_answers(jupyterlab: JupyterLab) -> None:
    """Twenty notebooks in a row, in the median: the session within 5 s, the first output within 2 s of the click.

    A single one may take three and four times as long here: our promise is for a machine that does nothing else.
    """
    sessions, outputs = [], []
    for number in range(NOTEBOOKS):
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
        notebook.click("restart")
        notebook.page.locator(".jp-Dialog .jp-mod-accept").click()
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
    notebook.run(with_ipywidgets()).ended()
    cell = notebook.run(WIDGET)
    button = cell.output.locator("button.jupyter-button")
    for clicks in (1, 2):
        button.click()
        expect(button).to_have_text(f"clicked {clicks}", timeout=SECONDS * 1000)


def test_a_page_is_reloaded_while_a_cell_prints(own: Lab, jupyterlab: JupyterLab) -> None:
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


def test_a_laptop_sleeps(own: Lab, jupyterlab: JupyterLab, path: SlowPath) -> None:
    """A minute of silence, and connections that are gone without a word: the cell's lines are all there, in order.

    One that came just before the silence could not be confirmed any more, and may be there twice.
    """
    notebook = jupyterlab.fresh()
    lines = int(ASLEEP) + 10
    cell = notebook.run(printing(lines, 1.0, SLEPT))
    cell.reached(3)
    path.sleep()
    try:
        before = printed(own, SLEPT)
        block_until("the laptop has slept", lambda: printed(own, SLEPT) >= before + ASLEEP, seconds=2 * ASLEEP, pause=1)
    finally:
        path.wake()
    cell.reached(lines - 1)
    cell.ended()
    shown = cell.numbers()
    assert list(dict.fromkeys(shown)) == list(range(lines))
    assert len(shown) <= lines + 1
    notebook.run("print('awake', number)").shows(f"awake {lines - 1}")


def test_the_gateway_is_restarted(own: Lab, gateway: Gateway, jupyterlab: JupyterLab, path: SlowPath) -> None:
    """With Enterprise Gateway's persistence a notebook finds its kernel again, and what its cell has printed meanwhile.

    A line that came just before the gateway was killed could not be confirmed any more, and may be there twice.
    """
    notebook = jupyterlab.fresh()
    notebook.run("kept = 1").ended()
    lines = 150
    cell = notebook.run(printing(lines, 0.1, OVER_A_KILL))
    cell.reached(20)
    gateway.kill()
    reached = printed(own, OVER_A_KILL)
    block_until("the kernel has printed more meanwhile", lambda: printed(own, OVER_A_KILL) > reached + 20)
    gateway.start()
    path.follow(gateway)

    def connected() -> bool:
        models = httpx.get(f"{gateway.url}/api/kernels", trust_env=False, timeout=SECONDS).json()
        return [model["connections"] for model in models] == [1]

    block_until("JupyterLab's server is connected again", connected, seconds=SECONDS, pause=0.2)
    cell.ended()
    cell.reached(lines - 1)
    shown = cell.numbers()
    assert list(dict.fromkeys(shown)) == list(range(lines))
    assert len(shown) <= lines + 3
    notebook.run("print('kept', kept)").shows("kept 1")


PLOT = """
import struct, zlib
from IPython.display import Image

def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

rows = b"".join(b"\\0" + bytes(255 * (abs(x - 3 * y) > 2) for x in range(300)) for y in range(100))
header = struct.pack(">IIBBBBB", 300, 100, 8, 0, 0, 0, 0)
Image(b"\\x89PNG\\r\\n\\x1a\\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
"""
WIDGET = """
import ipywidgets

button = ipywidgets.Button(description="click")
clicks = 0

def clicked(button):
    global clicks
    clicks += 1
    button.description = f"clicked {clicks}"

button.on_click(clicked)
button
"""


def with_ipywidgets() -> str:
    """Return a cell that brings ipywidgets along: nodes have a kernel, and nothing for notebooks."""
    folder, packed = Path(ipywidgets.__file__).parent, io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*.py")):
            if "tests" not in file.parts:
                archive.write(file, file.relative_to(folder.parent))
    text = base64.b64encode(packed.getvalue()).decode()
    return f"""
import base64, pathlib, sys, tempfile
packed = pathlib.Path(tempfile.mkdtemp(), "ipywidgets.zip")
packed.write_bytes(base64.b64decode({text!r}))
sys.path.insert(0, str(packed))
"""

"""JupyterLab in a browser's tab, and a notebook in it, as tests use them: code goes into cells, clicks run them."""

from __future__ import annotations

import re
import time
from typing import Any

from playwright.sync_api import Locator, Page, expect

from tests.jupyterlab.worlds import World
from tests.until import block_until

SECONDS = 60.0
"""How long a test waits for what JupyterLab is to show."""
_PANEL = ".jp-NotebookPanel:not(.lm-mod-hidden)"
_ADD = """(code) => {
    const notebook = window.jupyterapp.shell.currentWidget.content;
    notebook.activeCellIndex = notebook.widgets.length - 1;
    notebook.activeCell.model.sharedModel.setSource(code);
    return notebook.activeCellIndex;
}"""
_CONNECTED = """(states) => {
    const context = window.jupyterapp.shell.currentWidget?.context?.sessionContext;
    return states.includes(context?.kernelDisplayStatus) && context.session?.kernel?.connectionStatus === 'connected';
}"""
_CLOSE_ALL = """async () => {
    for (const widget of [...window.jupyterapp.shell.widgets('main')]) {
        if (widget.context) { widget.context.model.dirty = false; }
        widget.dispose();
    }
}"""

_TIME = """([number, text, limit]) => {
    const panel = window.jupyterapp.shell.currentWidget.node;
    const cell = panel.querySelectorAll('.jp-Notebook .jp-Cell')[number];
    const shown = async () => {
        const start = await new Promise((clicked) => document.addEventListener(
            'mousedown', () => clicked(performance.now()), { capture: true, once: true }));
        while (!cell.querySelector('.jp-OutputArea').textContent.includes(text)) {
            if (performance.now() - start > limit) { throw new Error(`nothing was shown: ${cell.textContent}`); }
            await new Promise((go) => setTimeout(go, 5));
        }
        return performance.now() - start;
    };
    window.timed = { shown: shown() };  // in an object: a promise would be waited for here
}"""


class JupyterLab:
    """One tab."""

    def __init__(self, page: Page, world: World, workspace: str) -> None:
        self.page = page
        self.world = world
        page.goto(f"{world.url}/lab/workspaces/{workspace}?reset&token={world.token}")
        self.loaded()

    def loaded(self) -> None:
        """Wait until JupyterLab is there."""
        self.page.wait_for_function("() => window.jupyterapp && document.querySelector('#jp-main-dock-panel')")
        self.page.evaluate("async () => { await window.jupyterapp.restored; }")

    def command(self, name: str, **arguments: Any) -> None:
        """Execute one of JupyterLab's commands."""
        self.page.evaluate("async ([n, a]) => { await window.jupyterapp.commands.execute(n, a); }", [name, arguments])

    def launch(self, title: str) -> Notebook:
        """Click on the launcher's card of the kernel that is called *title*, and wait until its notebook's kernel is idle."""
        self.command("launcher:create")
        self.page.locator(f".jp-LauncherCard[data-category='Notebook'][title='{title}']:visible").click()
        notebook = Notebook(self)
        notebook.idle()
        return notebook

    def fresh(self, kernel: str = "") -> Notebook:
        """Make a notebook, as a click on the launcher's card does, and wait until its kernel is idle.

        How long that took is its `started`.
        """
        began = time.monotonic()
        self.command("notebook:create-new", kernelName=kernel or self.world.started)
        notebook = Notebook(self)
        notebook.idle()
        notebook.started = time.monotonic() - began
        return notebook

    def open(self, path: str) -> Notebook:
        """Open a notebook that is there, and wait until it shows and is connected to its kernel, which may be busy."""
        self.command("docmanager:open", path=path)
        self.page.locator(f"{_PANEL} .jp-Cell").first.wait_for()
        self.page.wait_for_function(_CONNECTED, arg=["busy", "idle"])
        return Notebook(self)

    def clear(self) -> None:
        """Close all that is open here, and end all kernels of the server."""
        self.page.evaluate(_CLOSE_ALL)
        for session in self.world.ask("GET", "/api/sessions").json():
            self.world.ask("DELETE", f"/api/sessions/{session['id']}")


class Notebook:
    """The notebook that a tab shows."""

    def __init__(self, lab: JupyterLab) -> None:
        self.lab = lab
        self.page = lab.page
        self.panel = self.page.locator(_PANEL)
        self.started = 0.0
        """Seconds until its kernel was idle, of a notebook that `fresh` has made."""

    @property
    def path(self) -> str:
        """Its path on the server."""
        return str(self.page.evaluate("() => window.jupyterapp.shell.currentWidget.context.path"))

    def idle(self) -> None:
        """Wait until JupyterLab is connected to the kernel, and has heard that it is idle.

        What is run before that, JupyterLab drops without a word; the indicator in the toolbar is idle already while it starts.
        """
        self.page.wait_for_function(_CONNECTED, arg=["idle"])

    def save(self) -> None:
        """Save it; JupyterLab's command would ask for a name first."""
        self.page.evaluate("async () => { await window.jupyterapp.shell.currentWidget.context.save(); }")

    def add(self, code: str) -> Cell:
        """Write *code* into the last cell, which is empty, and select it."""
        return Cell(self, int(self.page.evaluate(_ADD, code)))

    def run(self, code: str) -> Cell:
        """Write *code* into the last cell and click on Run."""
        cell = self.add(code)
        self.click("run")
        return cell

    def click(self, item: str) -> None:
        """Click on a button of the notebook's toolbar."""
        self.panel.locator(f"[data-jp-item-name='{item}']").click()

    def restart(self) -> None:
        """Click on the button that restarts the kernel, and say yes."""
        self.click("restart")
        self.page.locator(".jp-Dialog .jp-mod-accept").click()

    def cell(self, number: int) -> Cell:
        """Return a cell that is there; the first is 0."""
        return Cell(self, number)


class Cell:
    """One cell."""

    def __init__(self, notebook: Notebook, number: int) -> None:
        self.notebook = notebook
        self.number = number
        self.element: Locator = notebook.panel.locator(".jp-Notebook .jp-Cell").nth(number)
        self.output: Locator = self.element.locator(".jp-OutputArea-output")
        self._area: Locator = self.element.locator(".jp-OutputArea")

    def text(self) -> str:
        """Return all that its output shows."""
        return "\n".join(self.output.all_inner_texts())

    def shows(self, text: str) -> None:
        """Wait until its output has *text*."""
        expect(self._area).to_contain_text(text, timeout=SECONDS * 1000)

    @property
    def editor(self) -> Locator:
        """Where its code is typed."""
        return self.element.locator(".cm-content")

    def ended(self) -> None:
        """Wait until it has a number instead of the star."""
        expect(self.element.locator(".jp-InputPrompt").first).to_have_text(
            re.compile(r"\[\d+\]:"), timeout=SECONDS * 1000
        )

    def seconds_to_output(self, text: str) -> float:
        """Click on Run; return how many seconds later the output shows *text*, by the browser's own clock."""
        self.notebook.page.evaluate(_TIME, [self.number, text, SECONDS * 1000])
        self.notebook.click("run")
        return float(self.notebook.page.evaluate("() => window.timed.shown")) / 1000

    def numbers(self) -> list[int]:
        """Return the numbers that its output shows, one a line."""
        return [int(line) for line in self.text().split()]

    def reached(self, number: int, seconds: float = SECONDS) -> None:
        """Wait until its output shows *number*."""
        block_until(f"the cell shows {number}", lambda: str(number) in self.text().split(), seconds=seconds, pause=0.2)

"""JupyterLab in a real browser, in one of the two worlds of `worlds.py`, on nodes of a lab."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from lab import Lab
from tests.integration.fixtures import down, engine
from tests.jupyterlab.notebook import JupyterLab
from tests.jupyterlab.worlds import WORLDS, World

__all__ = ["engine"]

CHROMIUM = ("chromium", "google-chrome")
LAB = "jupyterlab"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that makes the pictures of the documentation."""
    parser.addoption(
        "--pictures", type=Path, metavar="FOLDER", help="write docs/jupyterlab-*.png anew: `--pictures docs`"
    )


@pytest.fixture(scope="session")
def own(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Two nodes, which all these tests have for themselves: in containers, unless `--lab-driver local` says otherwise."""
    driver = request.config.getoption("--lab-driver") or "docker"
    if driver == "docker":
        request.getfixturevalue("engine")
    try:
        yield Lab.up(LAB, nodes=2, driver=driver)
    finally:
        if request.config.getoption("--lab-keep") != "always":
            down(LAB)


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest, own: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The world that the file's `parametrize("world", …, indirect=True)` names."""
    with WORLDS[request.param](own, tmp_path_factory.mktemp("jupyterlab")) as made:
        yield made


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, or the Chrome that is there: Playwright's own would have to be fetched."""
    executable = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if executable is None:
        if os.environ.get("LAB_REQUIRE_DOCKER"):
            pytest.fail("Chromium is missing. Remedy: apt-get install chromium")
        pytest.skip("Chromium is missing")
    with sync_playwright() as playwright:
        # No sandbox: it takes rights that root in a container does not have.
        options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        launched = playwright.chromium.launch(executable_path=executable, args=options)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def open_tab(browser: Browser, world: World) -> Iterator[Callable[[str], JupyterLab]]:
    """Opens tabs of JupyterLab, each with a workspace of its own; what has been loaded once is not loaded again."""
    context = browser.new_context()
    context.set_default_timeout(60_000)

    def opened(workspace: str) -> JupyterLab:
        page: Page = context.new_page()
        page.on("dialog", lambda dialog: dialog.accept())  # "leave this page?"
        # JupyterLab goes on by itself once its server is back; its dialog would be in the way of clicks.
        lost = page.locator(".jp-Dialog").filter(has_text="Server Connection Error")
        page.add_locator_handler(lost, lambda dialog: dialog.locator("button").last.click())
        return JupyterLab(page, world, workspace)

    yield opened
    context.close()


@pytest.fixture(scope="module")
def tab(open_tab: Callable[[str], JupyterLab]) -> JupyterLab:
    """One tab that the tests of a file share."""
    return open_tab("first")


@pytest.fixture
def jupyterlab(tab: JupyterLab) -> Iterator[JupyterLab]:
    """JupyterLab without notebooks and kernels."""
    yield tab
    tab.clear()


@pytest.fixture
def picture(request: pytest.FixtureRequest) -> Callable[[Page, str], None]:
    """Write what a tab shows as docs/jupyterlab-NAME.png, where pytest was told to (`--pictures`)."""
    folder: Path | None = request.config.getoption("--pictures")

    def write(page: Page, name: str) -> None:
        if folder is not None:
            page.screenshot(path=folder / f"jupyterlab-{name}.png", scale="css")

    return write

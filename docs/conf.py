"""The documentation site, for Sphinx: `nox -s docs` builds it of the same pages that the repository shows.

The repository's own folder is the source, so a link from one page to another is the same text in both views. Pages are read by
MyST, which reads Markdown as GitHub does; a page that needs more than that would look wrong there. What the sidebar has, in
which order, is said by the lists of docs/README.md alone.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))  # for myst_heading_slug_func

project = "eg_distributed"
copyright = "the eg_distributed developers"  # noqa: A001 - Sphinx's name
extensions = ["myst_parser"]
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "examples/README.md"]
html_theme = "furo"
html_title = "eg_distributed"
html_copy_source = html_show_sourcelink = False
highlight_language = "none"  # a block without a language is what a terminal shows
myst_heading_anchors = 6
myst_heading_slug_func = "scripts.links.anchor"
nitpicky = True

_HEADING = re.compile(r"^## (.+)$", re.MULTILINE)
_ENTRY = re.compile(r"^- \[(.+?)\]\((\S+?)\.md\)$", re.MULTILINE)


def navigation(text: str) -> str:
    """Return docs/README.md's *text* as hidden toctrees for the front page: a heading is a caption, its list the entries."""
    found = ["\n```{toctree}\n:hidden:\n\nAll pages <docs/README>\n```\n"]
    _, *parts = _HEADING.split(text)
    for caption, body in zip(parts[::2], parts[1::2], strict=True):
        entries = [
            f"{title.replace('`', '')} <{f'docs/{path}' if not path.startswith('../') else path[3:]}>"
            for title, path in _ENTRY.findall(body)
        ]
        found.append("\n".join(("\n```{toctree}", ":hidden:", f":caption: {caption}", "", *entries, "```\n")))
    return "".join(found)


def add_navigation(app: Sphinx, page: str, source: list[str]) -> None:
    """Add the sidebar to the front page, which is the repository's README; called by Sphinx for each page that it reads."""
    if page == root_doc:
        source[0] += navigation((DOCS / "README.md").read_text("utf-8"))


def add_index(app: Sphinx, error: Exception | None) -> None:
    """Have a folder's address show the front page, too; called by Sphinx at the end."""
    if error is None and app.builder.name == "html":
        shutil.copyfile(Path(app.outdir, "README.html"), Path(app.outdir, "index.html"))


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_lexer("ssh-config", TextLexer)  # GitHub knows the language, Pygments does not
    app.connect("source-read", add_navigation)
    app.connect("build-finished", add_index)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

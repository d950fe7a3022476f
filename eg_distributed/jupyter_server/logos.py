"""Pictures of kernelspecs, served so that nothing in them can run: those of hosts come from nodes.

An SVG that a page shows as an image runs nothing; one that is opened by its address would run what it has as the server's own
page, with all that its user may do. So it is confined, as jupyter_server does with files that it serves: whatever is asked for
below a kernelspec's address, since one file has many (`%6Cogo-svg.svg`, `./logo-svg.svg`), and a script that a page loads is none
the worse for it.
"""

from __future__ import annotations

from typing import Any

from jupyter_server.kernelspecs.handlers import KernelSpecResourceHandler
from jupyter_server.services.kernelspecs.handlers import kernel_name_regex
from jupyter_server.utils import url_path_join

__all__ = ["serve_confined"]


class ConfinedResourceHandler(KernelSpecResourceHandler):
    """Serves a kernelspec's file as jupyter_server does, with a policy that lets it run, load and send nothing by itself."""

    @property
    def content_security_policy(self) -> str:
        """The server's own policy, and what confines the picture."""
        return (
            f"{super().content_security_policy}; sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
        )


def serve_confined(web_app: Any) -> None:
    """Have *web_app*, a server's, serve all kernelspecs' files so; called before HTTP is served."""
    pattern = rf"/kernelspecs/{kernel_name_regex}/(?P<path>.*)"  # jupyter_server's own, so that nothing is left to its handler
    web_app.add_handlers(".*$", [(url_path_join(web_app.settings["base_url"], pattern), ConfinedResourceHandler)])

"""The adapter for everything on jupyter_client 8 and later: JupyterLab's server, nbclient, papermill, `jupyter console`.

    provisioner      the kernel provisioner `eg-distributed`: jupyter_client's calls, turned into the cluster's
    request          what a kernel manager knows of a kernel, turned into a StartRequest
    extension        the server extension, which begins what a server has beside its kernels
    rest             /api/distributed: what runs on the hosts, for programs
    metrics          our numbers on the server's /metrics
    process          this process's clusters, and what nodes know it by: a server that may come back, or one that does not

Only `provisioner` and `rest` import Jupyter, so the others can be used, and tested, where it is not installed.
"""

from __future__ import annotations


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    """Name the module that is the extension; asked by jupyter_server."""
    return [{"module": "eg_distributed.jupyter_server.extension"}]

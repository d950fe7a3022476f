"""The adapter for everything on jupyter_client 8 and later: JupyterLab's server, nbclient, papermill, `jupyter console`.

    provisioner      the kernel provisioner `eg-distributed`: jupyter_client's calls, turned into the cluster's
    request          what a kernel manager knows of a kernel, turned into a StartRequest
    extension        the server extension, which begins what a server has beside its kernels
    websocket        a server's websockets with our ends (`eg_distributed.clients`)
    out_of_reach     what a server says of a kernel whose host does not answer
    listening        what the clients of a server's kernels are told by these
    process          this process's clusters, and what nodes know it by: a server that may come back, or one that does not

Only `provisioner`, `websocket` and `out_of_reach` import jupyter_client, so the others can be used, and tested,
where it is not installed.
"""

from __future__ import annotations


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    """Name the module that is the extension; asked by jupyter_server."""
    return [{"module": "eg_distributed.jupyter_server.extension"}]

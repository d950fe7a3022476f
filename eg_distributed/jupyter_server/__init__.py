"""The adapter for everything on jupyter_client 8 and later: JupyterLab's server, nbclient, papermill, `jupyter console`.

    provisioner      the kernel provisioner `eg-distributed`: jupyter_client's calls, turned into the cluster's
    request          what a kernel manager knows of a kernel, turned into a StartRequest
    refusal          our errors, as jupyter_server shows them
    extension        the server extension, which begins what a server has beside its kernels
    adoption         kernels of the server's earlier process, found again at its start; those that are kept at its end
    store            their records on disk; `recording` writes that of one kernel
    left_over        what servers have left that do not come back, removed
    listed           what a server lists of a kernel: its tables that a kernel enters and leaves, private ones among them
    activity         whether a kernel that was found again is busy
    taken            kernels that another server has taken over
    ending           the server's end, which comes whatever one kernel makes of it
    hand_over        taking over those of others, asked by REST
    websocket        a server's websockets with our ends (`eg_distributed.clients`)
    out_of_reach     what a server says of a kernel whose host does not answer
    printed          how fast a kernel prints, by its own clock
    listening        what the clients of a server's kernels are told by these
    rest             /api/distributed: what runs on the hosts, for programs
    metrics          our numbers on the server's /metrics
    process          this process's clusters, and what nodes know it by: a server that may come back, or one that does not

`process`, `request`, `store`, `recording`, `left_over` and `listening` import nothing of Jupyter: they can be used, and
tested, without it.
"""

from __future__ import annotations


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    """Name the module that is the extension; asked by jupyter_server."""
    return [{"module": "eg_distributed.jupyter_server.extension"}]

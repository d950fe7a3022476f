"""The floor: the same kernel on a node, started and driven there without any gateway. Runs in the node's kernel environment."""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any


def main(starts: int, cells: int) -> None:
    """Print the medians, in ms, of *starts* starts to the first kernel_info_reply and of *cells* cells `1`, as JSON."""
    from jupyter_client.manager import KernelManager

    seconds = []
    for _ in range(starts):
        began = time.perf_counter()
        manager = KernelManager(transport="ipc", ip=f"/tmp/bench-{time.time_ns()}")  # noqa: S108
        manager.start_kernel()
        client = manager.blocking_client()
        client.start_channels(stdin=False, hb=False, control=False)
        _until_answered(client)
        seconds.append(time.perf_counter() - began)
        client.stop_channels()
        if len(seconds) < starts:
            manager.shutdown_kernel(now=True)
    round_trips = _cells(manager, cells)
    manager.shutdown_kernel(now=True)
    print(json.dumps({"start": 1e3 * statistics.median(seconds), "cell": 1e3 * statistics.median(round_trips)}))


def _until_answered(client: Any) -> None:
    """Ask for kernel_info once and wait for the reply: ZMQ delivers it when the kernel listens."""
    asked = client.kernel_info()
    while client.get_shell_msg(timeout=30)["parent_header"].get("msg_id") != asked:
        pass


def _cells(manager: Any, count: int) -> list[float]:
    """Return the seconds of *count* cells, each until its reply and its idle status; plain sockets, no client threads."""
    import zmq

    context = zmq.Context()
    shell, iopub = context.socket(zmq.DEALER), context.socket(zmq.SUB)
    iopub.subscribe = b""
    shell.connect(manager._make_url("shell"))
    iopub.connect(manager._make_url("iopub"))
    poller = zmq.Poller()
    poller.register(shell, zmq.POLLIN)
    poller.register(iopub, zmq.POLLIN)
    session, seconds = manager.session, []
    content = {"code": "1", "silent": False, "store_history": False, "user_expressions": {}, "allow_stdin": False}
    for number in range(count + 20):
        message = session.msg("execute_request", content)
        began, awaited = time.perf_counter(), {"execute_reply", "idle"}
        session.send(shell, message)
        while awaited:
            ready = poller.poll(1000)
            if not ready and number == 0:
                break  # the first one may pass before iopub is subscribed
            for sock, _ in ready:
                reply = session.deserialize(session.feed_identities(sock.recv_multipart())[1])
                if reply["parent_header"].get("msg_id") == message["header"]["msg_id"]:
                    awaited -= {reply["msg_type"], reply["content"].get("execution_state", "")}
        if number >= 20:
            seconds.append(time.perf_counter() - began)
    return seconds


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

"""A client of one kernel, in a process of its own: sends the cell `1` as often as each line of its input says.

Run as `python -c TEXT CONNECTION`, which is the kernel's connection information, or `@` and the file that has it. Answers each
line with the seconds of its cells, each until the reply and the idle status are there, as JSON. Plain sockets, no threads.
"""

from __future__ import annotations

import json
import sys
import time


def main(connection: str) -> None:
    """Serve the lines of stdin."""
    import zmq
    from jupyter_client.session import Session

    if connection.startswith("@"):
        with open(connection[1:]) as file:  # noqa: PTH123 - sent to nodes as text
            info = json.load(file)
    else:
        info = json.loads(connection)
    context = zmq.Context()
    shell, iopub = context.socket(zmq.DEALER), context.socket(zmq.SUB)
    iopub.subscribe = b""
    for sock, channel in ((shell, "shell"), (iopub, "iopub")):
        ip, port = info["ip"], info[channel + "_port"]
        sock.connect(f"ipc://{ip}-{port}" if info["transport"] == "ipc" else f"tcp://{ip}:{port}")
    poller = zmq.Poller()
    for sock in (shell, iopub):
        poller.register(sock, zmq.POLLIN)
    session = Session(key=info["key"].encode())
    content = {"code": "1", "silent": False, "store_history": False, "user_expressions": {}, "allow_stdin": False}

    def cell(patience: int) -> float:
        message = session.msg("execute_request", content)
        began, awaited = time.perf_counter(), {"execute_reply", "idle"}
        session.send(shell, message)
        while awaited:
            ready = poller.poll(patience)
            if not ready:
                break  # the first ones may pass before iopub is subscribed
            for sock, _ in ready:
                reply = session.deserialize(session.feed_identities(sock.recv_multipart())[1])
                if reply["parent_header"].get("msg_id") == message["header"]["msg_id"]:
                    awaited -= {reply["msg_type"], reply["content"].get("execution_state", "")}
        return time.perf_counter() - began

    for _ in range(30):
        cell(1000)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps([cell(60_000) for _ in range(int(line))]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

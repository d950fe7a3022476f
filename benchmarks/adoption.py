"""How long a restarted gateway takes until it serves HTTP, with kernels on many hosts to be found again; and an uplink's blip.

    python -m benchmarks.adoption PYTHON [KERNELS] [HOSTS]

PYTHON has Enterprise Gateway and eg_distributed. The gateway is a real one, and so are its logins, its messages to agents and its
streams; the hosts are one SSH server on this machine, whose agents have every kernel that they are asked about. Once all are
found, every connection is cut, none can be made for some seconds, and the hosts come back.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
import urllib.request
import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import asyncssh

from eg_distributed.protocol import PROTOCOL, SENTINEL
from eg_distributed.wire import Message, encode, read_message
from lab.ports import free_port

_DEADLINE = 60.0
_BLIP = 5.0
"""Seconds without the gateway's uplink."""


class _Hosts(asyncssh.SSHServer):
    """Every host: any login is let in, and finds an agent."""

    logins = 0
    streams = 0
    first = 0.0
    """When the first login came, in time.time()'s seconds."""
    adopted: ClassVar[set[str]] = set()
    open: ClassVar[set[asyncssh.SSHServerConnection]] = set()
    back: ClassVar[Counter[str]] = Counter()
    """How often each host has been connected to since the blip, by its name."""

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        _Hosts.open.add(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        _Hosts.open.discard(self._connection)

    def begin_auth(self, username: str) -> bool:
        _Hosts.logins += 1
        _Hosts.first = _Hosts.first or time.time()
        return False

    def unix_connection_requested(self, dest_path: str) -> Any:
        return _be_agent


async def _boot(process: asyncssh.SSHServerProcess[bytes]) -> None:
    """Say where the agent is, as the code that the gateway sends would."""
    await process.stdin.readline()
    process.stdout.write(SENTINEL + json.dumps({"ok": True, "socket": "/agent"}).encode() + b"\n")
    process.exit(0)


async def _be_agent(reader: asyncssh.SSHReader[bytes], writer: asyncssh.SSHWriter[bytes]) -> None:
    """Answer as an agent that has all kernels, and whose streams stay open."""
    hello = await read_message(reader)
    if hello is None:
        return
    if "stream" in hello:
        _Hosts.streams += 1
        writer.write(encode({"ok": True}))
        await reader.read()
        return
    _Hosts.back[hello["host"]] += 1
    writer.write(encode({"ok": True, "protocol": PROTOCOL, "digest": "d", "kernels": []}))
    while (request := await read_message(reader)) is not None:
        kernels = request["params"].get("kernels", []) if request["method"] == "adopt" else []
        _Hosts.adopted.update(kernels)
        result: Any = {"pid": 7, "digest": "d", "starting": 0, "running": 0} if request["method"] == "ping" else {}
        writer.write(
            encode({"id": request["id"], "result": {kernel: _running(kernel) for kernel in kernels} or result})
        )


def _running(kernel: str) -> Message:
    return {
        "kernel": kernel, "attempt": "a1", "owner": "bench", "host_set": "", "argv": ["python"], "state": "running",
        "exit_code": None, "pid": 7, "start_time": 1.0, "log_path": "/log",
    }  # fmt: skip


def _persist(folder: Path, kernels: int, hosts: list[str], runtime: Path) -> None:
    """Write what Enterprise Gateway keeps of its kernels."""
    folder.mkdir(parents=True)
    for number in range(kernels):
        kernel = str(uuid.uuid4())
        prefix = runtime / kernel.replace("-", "")[:32] / "c"
        ports = {f"{name}_port": index for index, name in enumerate(("shell", "iopub", "stdin", "hb", "control"), 1)}
        host = hosts[number % len(hosts)]
        session = {
            "kernel_id": kernel,
            "username": "bench",
            "kernel_name": "bench",
            "connection_info": {
                **ports, "transport": "ipc", "ip": str(prefix), "key": "k", "signature_scheme": "hmac-sha256",
            },
            "launch_args": {"env": {}, "kernel_name": "bench"},
            "process_info": {
                "pid": 7, "pgid": 0, "ip": host, "assigned_ip": host, "assigned_host": host, "comm_ip": None,
                "comm_port": 0, "tunneled_connect_info": None,
                "distributed": {"host": host, "attempt": "a1", "agent": None, "launched": False},
            },
        }  # fmt: skip
        (folder / f"{kernel}.json").write_text(json.dumps({kernel: session}))


def _kernels_listed(port: int) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/kernels", timeout=60) as answer:
            return len(json.load(answer))
    except OSError:
        return -1


def _cpu(pid: int) -> float:
    """Return the seconds that a process has computed; what else runs on the machine does not count."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass
class Found:
    """What was measured."""

    http: float = 0.0
    """Seconds until the gateway served HTTP."""
    computed: float = 0.0
    """Seconds that it had computed by then."""
    adopted: float = 0.0
    """Seconds until all kernels were found on their hosts."""
    back: float = 0.0
    """Seconds from the end of the blip until all hosts were connected again."""
    twice: int = 0
    """Hosts that were connected to more than once for it."""


async def measure(python: str, kernels: int, count: int, folder: Path) -> Found:
    """Measure once, and print it; *folder* is an empty one."""
    found = Found()
    hosts = [f"bench{number}" for number in range(count)]
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(folder / "id")

    async def listen(port: int = 0) -> asyncssh.SSHAcceptor:
        return await asyncssh.create_server(
            _Hosts, "127.0.0.1", port, server_host_keys=[key], process_factory=_boot, encoding=None, line_editor=False,
            backlog=1024,
        )  # fmt: skip

    server = await listen()
    port = server.get_port()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {key.export_public_key().decode()}")
    (folder / "ssh_config").write_text(
        f"Host bench*\n  HostName 127.0.0.1\n  Port {port}\n  IdentityFile {folder / 'id'}\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {folder / 'known_hosts'}\n"
    )
    spec = folder / "jupyter" / "kernels" / "bench"
    spec.mkdir(parents=True)
    proxy = {"class_name": "eg_distributed.DistributedProcessProxy", "config": {"remote_hosts": ",".join(hosts)}}
    (spec / "kernel.json").write_text(
        json.dumps(
            {
                "argv": ["python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
                "display_name": "bench",
                "language": "python",
                "metadata": {"process_proxy": proxy},
            }
        )
    )
    _persist(folder / "p" / "kernel_sessions", kernels, hosts, folder / "r")
    env = {
        **os.environ,
        "HOME": str(folder),
        "JUPYTER_PATH": str(folder / "jupyter"),
        "JUPYTER_RUNTIME_DIR": str(folder / "jr"),
        "EG_DISTRIBUTED_RUNTIME_DIR": str(folder / "r"),
        "EG_DISTRIBUTED_SSH_CONFIG": str(folder / "ssh_config"),
        "EG_DISTRIBUTED_GATEWAY_ID": "bench",
        "EG_LIST_KERNELS": "True",
    }
    http = free_port()
    began, wall = time.monotonic(), time.time()
    with (folder / "log").open("wb") as log:
        gateway = await asyncio.create_subprocess_exec(
            python, "-m", "enterprise_gateway", f"--EnterpriseGatewayApp.port={http}", "--EnterpriseGatewayApp.ip=127.0.0.1",
            "--FileKernelSessionManager.enable_persistence=True", f"--FileKernelSessionManager.persistence_root={folder / 'p'}",
            "--EnterpriseGatewayApp.availability_mode=standalone", stdout=log, stderr=log, env=env, cwd=folder,
        )  # fmt: skip
        try:
            while (listed := await asyncio.to_thread(_kernels_listed, http)) < 0:
                if gateway.returncode is not None or time.monotonic() - began > _DEADLINE:
                    raise SystemExit((folder / "log").read_text()[-4000:])
                await asyncio.sleep(0.02)
            found.http, found.computed = time.monotonic() - began, _cpu(gateway.pid)
            print(
                f"{kernels} kernels on {count} hosts: HTTP after {found.http:.2f} s, {listed} listed; the gateway has computed "
                f"for {found.computed:.2f} s"
            )
            while len(_Hosts.adopted) < kernels and time.monotonic() - began < _DEADLINE:
                await asyncio.sleep(0.05)
            found.adopted = time.monotonic() - began
            print(
                f"all were found on their hosts after {found.adopted:.2f} s; the first login came after "
                f"{_Hosts.first - wall:.2f} s"
            )
            print(f"{_Hosts.logins} logins, {_Hosts.streams} streams so far")
            server.close()
            for connection in list(_Hosts.open):
                connection.abort()
            await asyncio.sleep(_BLIP)
            _Hosts.back.clear()
            began = time.monotonic()
            server = await listen(port)
            while len(_Hosts.back) < count and time.monotonic() - began < _DEADLINE:
                await asyncio.sleep(0.05)
            found.back = time.monotonic() - began
            found.twice = sum(times > 1 for times in _Hosts.back.values())
            print(f"{len(_Hosts.back)} hosts are back after {found.back:.2f} s, {found.twice} of them more than once")
        finally:
            if gateway.returncode is None:
                gateway.kill()
            await gateway.wait()
            server.close()
    return found


def main(python: str, kernels: str = "1000", hosts: str = "60") -> None:
    """Measure once, and print it."""
    with tempfile.TemporaryDirectory(prefix="ega") as folder:
        try:
            asyncio.run(measure(python, int(kernels), int(hosts), Path(folder)))
        finally:
            if os.environ.get("ADOPTION_LOG"):
                Path(os.environ["ADOPTION_LOG"]).write_bytes((Path(folder) / "log").read_bytes())


if __name__ == "__main__":
    main(*sys.argv[1:])

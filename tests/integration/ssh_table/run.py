"""Runs in a gateway's container, as its user: each case by `ssh`, and by our login with both readers; prints JSON lines.

Arguments: a folder with `cases.json`; standard output has a line for each case.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import asyncssh

from eg_distributed.errors import DistributedError
from eg_distributed.link.configuration import configuration
from eg_distributed.link.configuration.ask import find_ssh
from eg_distributed.link.login import log_in
from eg_distributed.settings import Distributed

HOME = Path.home()
SSH, KEYS, SYSTEM = HOME / ".ssh", HOME / "keys", Path("/etc/ssh")
SAY = 'echo "$(id -un)@$(hostname)"'
FIND_SSH = find_ssh


def lay_out(case: dict[str, Any], values: dict[str, str]) -> None:
    """Put the case's files where they belong, and nothing else."""
    shutil.rmtree(SSH, ignore_errors=True)
    SSH.mkdir(mode=0o700)
    (HOME / "proxy").unlink(missing_ok=True)
    for path in (*SYSTEM.glob("ssh_known_hosts*"), *SYSTEM.glob("ssh_config.d/*"), SYSTEM / "ssh_config"):
        path.unlink(missing_ok=True)

    def fill(text: str) -> str:
        for name, value in values.items():
            text = text.replace(f"{{{name}}}", value)
        return text

    def write(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if text.startswith("@") and "\n" not in text and (KEYS / text[1:]).exists():
            path.write_bytes((KEYS / text[1:]).read_bytes())
        else:
            path.write_bytes(fill(text).encode("utf-8", "surrogateescape"))

    def place(name: str) -> Path:
        return HOME / fill(name[2:]) if name.startswith("~/") else SSH / fill(name)

    write(SSH / "config", case["config"])
    if case["known_hosts"] is not None:
        write(SSH / "known_hosts", case["known_hosts"])
    for name, text in case["files"].items():
        write(place(name), text)
    for name, text in case["system"].items():
        write(SYSTEM / name, text)
    for name, mode in case["modes"].items():
        place(name).chmod(mode)


def start_agent(keys: list[str]) -> subprocess.Popen[bytes] | None:
    """Run an agent with *keys* at ~/agent.sock."""
    socket = HOME / "agent.sock"
    socket.unlink(missing_ok=True)
    os.environ.pop("SSH_AUTH_SOCK", None)
    if not keys:
        return None
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.DEVNULL)
    while not socket.exists():
        if agent.poll() is not None:
            raise SystemExit("ssh-agent did not start")
    os.environ["SSH_AUTH_SOCK"] = str(socket)
    for key in keys:
        subprocess.run(["ssh-add", "-q", str(KEYS / key)], check=True, capture_output=True, stdin=subprocess.DEVNULL)
    return agent


def by_ssh(host: str) -> tuple[str, str]:
    """Return what the host said to ssh, empty if there was no login, and ssh's complaint."""
    try:
        done = subprocess.run(
            ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "--", host, SAY],
            capture_output=True,
            timeout=30,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return "", "no answer within 30 s"
    return (done.stdout.decode().strip() if done.returncode == 0 else ""), done.stderr.decode("utf-8", "replace")[-400:]


async def by_us(host: str) -> tuple[str, str]:
    """Return the same of our login."""
    try:
        connection = await asyncio.wait_for(log_in(host, Distributed()), 30)
    except (DistributedError, asyncio.TimeoutError) as error:
        return "", f"{type(error).__name__}: {error}"
    try:
        done = await asyncio.wait_for(connection.run(SAY), 10)
        return str(done.stdout).strip(), ""
    except (asyncssh.Error, asyncio.TimeoutError) as error:
        return "", repr(error)
    finally:
        connection.close()
        await connection.wait_closed()


async def main(folder: Path) -> None:
    """Run all cases of *folder*."""
    data = json.loads((folder / "cases.json").read_text())
    for name, case in data["cases"].items():
        lay_out(case, data["values"])
        host = case["host"]
        for key, value in data["values"].items():
            host = host.replace(f"{{{key}}}", value)
        agent = start_agent(case["agent"])
        try:
            said, complaint = by_ssh(host)
            found: dict[str, Any] = {"name": name, "ssh": said, "complaint": complaint}
            if case["known_hosts"] is not None and not case["modes"]:
                lay_out(case, data["values"])  # ssh may have added a key
            for reader, find in (("ssh -G", FIND_SSH), ("our own", lambda: None)):
                setattr(configuration, "find_ssh", find)  # noqa: B010 - the reader's own name for it
                configuration._kept.clear()
                found[reader], found[f"{reader}: error"] = await by_us(host)
        finally:
            if agent is not None:
                agent.kill()
                agent.wait()
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    os.environ.pop("EG_REMOTE_USER", None)
    os.environ.pop("EG_SSH_PORT", None)
    asyncio.run(main(Path(sys.argv[1])))

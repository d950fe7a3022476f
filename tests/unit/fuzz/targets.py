"""What is fuzzed. Each target runs one parser on any bytes, and lets nothing pass but the errors that the parser documents.

Used by `test_targets.py` (hypothesis, with the unit tests) and by `hunt.py` (atheris, `nox -s fuzz`); imports neither.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eg_distributed.agent import boot, identity, kept_logs, kernelspecs, zmtp
from eg_distributed.agent.bridge import CHUNK, CLOSE, CREDIT, CREDITED, DATA, HEADER, WINDOW
from eg_distributed.agent.expansion import expand_all
from eg_distributed.agent.kept_output import HEARD, SILENCE, Spool, Total
from eg_distributed.agent.kept_output import RECORD as KEPT
from eg_distributed.agent.kernels import Kernel
from eg_distributed.agent.launcher_files import Shipment
from eg_distributed.agent.records import RECORD, Records
from eg_distributed.agent.spawning import StartError
from eg_distributed.agent.spec_folder import _unpack
from eg_distributed.client_options import for_scripts
from eg_distributed.clients.frames import header_of, parent_of
from eg_distributed.enterprise_gateway.status_line import reason_phrase
from eg_distributed.errors import AgentUnavailable, RequestInvalid, RequestRefused
from eg_distributed.hosts import canonical_name, parse_hosts
from eg_distributed.kept_output import Records as KeptRecords
from eg_distributed.kernel import read_launcher_answer
from eg_distributed.kernelspecs.host_kernelspecs import offered
from eg_distributed.launcher_key import LauncherKey
from eg_distributed.launchers.spark.errors import LaunchError
from eg_distributed.launchers.spark.options import clients_options
from eg_distributed.link import known_hosts
from eg_distributed.link.answer import BootAnswer
from eg_distributed.link.bridge import BridgeClient
from eg_distributed.link.configuration import Configuration
from eg_distributed.link.configuration.jumps import parse_hops
from eg_distributed.link.configuration.reader import read_files
from eg_distributed.link.configuration.words import split_words
from eg_distributed.link.examination import Report
from eg_distributed.link.public_keys import read_public_key
from eg_distributed.link.revoked import RevokedKeys
from eg_distributed.protocol import (
    _REQUESTS,
    PROTOCOL,
    SENTINEL,
    AgentIdentity,
    ControlHello,
    FolderAnswer,
    FolderHello,
    Found,
    HostKernelspecs,
    OutputPart,
    Reply,
    StreamAnswer,
    StreamHello,
    Welcome,
    read_event,
    read_request,
)
from eg_distributed.request import check_env, check_pin, data_env, fill_argv, pin_of
from eg_distributed.settings import Distributed
from eg_distributed.streams import CHUNK as STREAM_CHUNK
from eg_distributed.streams import Budget, Flow, StreamBroken
from eg_distributed.unended import read_unended
from eg_distributed.wire import MAX_ANSWER, BrokenFraming, Malformed, encode, read_message
from tests.unit.agent.pub import GREETING, READY, encoded, message
from tests.unit.malformed_agent import described

KERNEL = described("k1", host_set="node1")
RECORDED = {
    **KERNEL,
    "agent": [2, "boot:1"],
    "started": "boot:1",
    "transport": "tcp",
    "temporary": "/tmp",
    "users": [0],
    "connection": {"transport": "tcp", "ip": "127.0.0.1", **{f"{c}_port": 1 for c in ("shell", "iopub", "hb")}},
    "family": {"kernel": [7, "boot:1", 7, 7, 1], "wrappers": []},
    "interrupt": [0, ""],
    "listener": 0,
    "interrupt_signal": 0,
    "keep_log": False,
    "log_start": 0,
    "log_base": 0,
    "end_time": 0.0,
    "orphan_timeout": 60.0,
}


@dataclass(frozen=True)
class Target:
    """One parser: *run* raises nothing, whatever the bytes, unless the parser has a fault."""

    name: str
    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    """What an honest peer sends."""
    is_json: bool = False
    """Whether what the parser takes is JSON, so that it is worth changing it as such."""


TARGETS: dict[str, Target] = {}


def target(*seeds: object) -> Callable[[Callable[[bytes], None]], Callable[[bytes], None]]:
    """Make a function the target of its name; seeds that are not bytes are JSON."""

    def add(run: Callable[[bytes], None]) -> Callable[[bytes], None]:
        is_json = not all(isinstance(seed, bytes) for seed in seeds)
        raw = tuple(seed if isinstance(seed, bytes) else json.dumps(seed).encode() for seed in seeds)
        TARGETS[run.__name__] = Target(run.__name__, run, raw, is_json)
        return run

    return add


def run_loop(coroutine: Any) -> Any:
    """Run *coroutine* on one loop for all examples: making one takes longer than most of them."""
    return _loop().run_until_complete(asyncio.wait_for(coroutine, 30))


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def json_of(data: bytes) -> Any:
    """Return the JSON value in *data* as `read_message` decodes it, None if there is none."""
    try:
        return json.loads(data.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        return None


def text_of(data: bytes) -> str:
    """Return *data* as what JSON can have as text, lone surrogates included."""
    return data.decode("utf-8", "surrogateescape")


def lines_of(data: bytes) -> dict[str, str]:
    """Return *data* as an environment: NAME=value, ended by NULs."""
    pairs = (part.partition("=") for part in text_of(data).split("\0") if part)
    return {name: value for name, _, value in pairs}


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A folder for one example, on a disk of memory where there is one."""
    path = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None, prefix="egfuzz"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


# -- messages, at both ends ----------------------------------------------------------------------------------------


@target(encode({"id": 1, "result": None}), encode({"a": 1}) + encode({"b": "ü"}), struct.pack(">I", 3) + b"{}}")
def messages(data: bytes) -> None:
    """`read_message`, until the end or a length that is out of bounds."""

    async def read() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        while True:
            try:
                if await read_message(reader, MAX_ANSWER) is None:
                    return
            except Malformed:
                continue
            except BrokenFraming:
                return

    run_loop(read())


_WELCOME = {"ok": True, "protocol": PROTOCOL, "digest": "d", "kernels": [{"kernel": "k", "state": "running"}]}
_AGENT = {"id": "1", "folder": "/f", "machine": "m", "boot": "b"}


@target(
    {**_WELCOME, "agent": _AGENT},
    {"ok": True, "received": 7, "stalled": 0.5},
    {"ok": False, "error": "no"},
    {**KERNEL, "log": "l", "response": "r", "claimed": True},
    {"id": 1, "result": KERNEL},
    {"id": 1, "error": "e", "kind": "host", "remedy": "r"},
    {"python": "3.11", "executable": "/p", "old": False, "node": "n", "user": "u", "nofile": [1, 2], "nproc": [1, -1],
     "processes": 3, "took": 0.1, "time": 1.0, "sshd_files": 1024},
)  # fmt: skip
def answers(data: bytes) -> None:
    """What a node says: greetings, replies to each request, what the doctor asks."""
    value = json_of(data)
    for kind in (Welcome, StreamAnswer, FolderAnswer, Found, Reply, Report, AgentIdentity):
        with contextlib.suppress(Malformed):
            kind.read(value).write()
    for request in _REQUESTS.values():
        with contextlib.suppress(Malformed):
            request.answer(value)
            request.answer([value])


@target({"event": "ready", "kernel": "k", "attempt": "a", "pid": 7}, {"event": "exited", "kernel": "k", "attempt": "a",
        "exit_code": -9, "log": "l"}, {"event": "load", "kernels": ["k"]}, {"event": "response", "kernel": "k",
        "attempt": "a", "payload": "p"}, {"event": "stalled", "kernel": "k", "attempt": "a", "seconds": 1})  # fmt: skip
def events(data: bytes) -> None:
    """What a node says unasked."""
    if isinstance(value := json_of(data), dict):
        with contextlib.suppress(Malformed):
            read_event(value)


@target(
    {"id": 1, "method": "stop", "params": {"kernel": "k", "attempt": "a", "grace": 1, "forget": True}},
    {"id": 1, "method": "adopt", "params": {"kernels": ["k"]}},
    {"id": 1, "method": "endpoints", "params": {"kernel": "k", "connection": {"shell_port": 1}, "pid": 3}},
    {"id": 1, "method": "log_part", "params": {"kernel": "k", "attempt": "a", "position": 3}},
    {"type": "control", "gateway": "g", "incarnation": "i", "protocol": 4, "host": "h"},
    {"type": "stream", "kernel": "k", "channel": "shell", "stream": "s", "gateway": "g", "incarnation": "i",
     "resume": False, "received": 0},
    {"type": "folder", "digest": "0" * 64, "size": 3},
)  # fmt: skip
def requests(data: bytes) -> None:
    """What an agent is asked, and by whom."""
    value = json_of(data)
    for kind in (ControlHello, StreamHello, FolderHello):
        with contextlib.suppress(Malformed):
            kind.read(value)
    if isinstance(value, dict):
        with contextlib.suppress(Malformed):
            read_request(value).write()


_KERNELSPEC = {
    "name": "python3", "root": "/usr", "folder": "/usr/python3", "prefix": "/opt/x/.venv", "is_environment": True,
    "argv": ["/usr/bin/python3", "-f", "{connection_file}"], "display_name": "P", "language": "python", "env": {"A": "$B"},
    "debugger": True, "features": ["a"], "logos": {"logo-1.png": "p", "logo-2.svg": "s"},
}  # fmt: skip
_PICTURES = {"p": "iVBORw0KGgo=", "s": "PHN2Zy8+"}


@target(
    {"kernelspecs": [_KERNELSPEC, {**_KERNELSPEC, "is_environment": False}], "logos": _PICTURES, "unread": ["/a"]},
    {"kernelspecs": [{**_KERNELSPEC, "env": {"KERNEL_REMOTE_HOST": "x"}}, 3], "left_out": ["x"]},
)
def kernelspecs_of_hosts(data: bytes) -> None:
    """What a node says of its kernelspecs: none starts anything but on its host, by our provisioner, behind the guard."""
    try:
        answer = HostKernelspecs.read(json_of(data))
    except Malformed:
        return
    for each in offered({"node1": answer}, Distributed(remote_hosts="node1")):
        assert Path(each.name).name == each.name
        spec = json.loads(each.kernel_json.encode())
        assert spec["argv"][:2] == ["sh", "-c"]
        assert "/" in spec["argv"][4]
        stanza = spec["metadata"]["kernel_provisioner"]
        assert stanza == {
            "provisioner_name": "eg-distributed",
            "config": {"remote_hosts": ["node1"], "bring_folder": False},
        }
        assert not [name for name in spec["env"] if name.startswith(("KERNEL_", "EG_"))]
        assert all(name.startswith("logo-") and Path(name).name == name for name, _ in each.logos)


@target(
    {"argv": ["python", "-m", "x", "-f", "{connection_file}"], "display_name": "P", "language": "python", "env": {"A": "1"},
     "metadata": {"debugger": True, "supported_features": ["a"]}, "interrupt_mode": "message"},
    {"argv": ["/bin/sh", "{resource_dir}", "{prefix}", "{connection_file}"], "metadata": {"kernel_provisioner": {}}},
)  # fmt: skip
def kernelspecs_on_a_node(data: bytes) -> None:
    """A kernel.json of anybody's on a node."""
    with folder() as here:
        (here / "k").mkdir()
        (here / "k" / "kernel.json").write_bytes(data)
        found, left_out = kernelspecs.look_through(
            kernelspecs.Root(str(here)), {"HOME": str(here), "PATH": "/usr/bin:/bin"}
        )
        assert len(found) + len(left_out) == 1
        encode(kernelspecs.answer(found, [], left_out).write())


# -- frames --------------------------------------------------------------------------------------------------------


def _frame(kind: int, payload: bytes = b"") -> bytes:
    return struct.pack(">BI", kind, len(payload)) + payload


@target(
    _frame(0, b"hello") + _frame(1, struct.pack(">Q", 3)) + _frame(2),
    _frame(0, b"a" * 70) * 3,
    struct.pack(">BI", 0, STREAM_CHUNK + 1),
)
def frames_of_streams(data: bytes) -> None:
    """A stream's frames, in pieces: no more is kept than one frame, and the budget comes out even."""
    budget = Budget(1 << 20)
    flow = Flow(1 << 16, budget)
    flow.push(b"x" * 10)
    flow.next_frame()
    with contextlib.suppress(StreamBroken):
        for start in range(0, len(data), 7):
            for payload in flow.feed(data[start : start + 7]):
                flow.delivered(len(payload))
            assert len(flow._partial) <= STREAM_CHUNK + 12
            if flow.finish_pending:
                flow.deliver_finish()
    assert 0 <= flow.backlog <= 10
    flow.leave_budget()
    assert budget.kept == 0


@target(
    *(encoded([b"topic", *message("m1", b"x" * size)]) + encoded(message("m2")) for size in (10, 300)),
    GREETING + READY + b"\x02" + b"\xff" * 8,
)
def output_of_kernels(data: bytes) -> None:
    """What a kernel's PUB socket sends, in pieces and as what is left of a stream; no more is kept than one message."""
    framer = zmtp.Framer(400)
    with contextlib.suppress(zmtp.NotZmtp):
        for start in range(0, len(data), 7):
            for found in framer.feed(data[start : start + 7]):
                if found is not None:
                    assert len(found) <= 400
                    zmtp.split(found)
            assert len(framer._buffer) <= 400 + 7 + 9
    for begin, end in zmtp.find_messages(data):
        assert len(zmtp.split(data[begin:end])) >= 6


@target(KEPT.pack(HEARD, 3, 3) + b"\0\1a" + KEPT.pack(SILENCE, 9, 4) + b"1500", KEPT.pack(HEARD, 0, 1 << 31))
def kept_output(data: bytes) -> None:
    """The records of what an agent kept, in pieces, and as the next agent finds them on disk."""
    records = KeptRecords()
    with contextlib.suppress(Malformed):
        for start in range(0, len(data), 11):
            piece = base64.b64encode(data[start : start + 11]).decode()
            for kept in records.take(OutputPart(piece, start, start + 11, is_all=False)):
                assert kept.lost >= 0
    with folder() as here:
        (here / f"{0:016x}").write_bytes(data)
        spool = Spool(here, 1 << 20, Total())
        spool.restore()
        spool.find(b"m1")
        assert data.startswith(spool.read(0, 1 << 20)[1])


@target(
    HEADER.pack(1, DATA, 5) + b"hello" + HEADER.pack(2, CLOSE, 0) + HEADER.pack(9, 7, 0),
    HEADER.pack(1, DATA, CHUNK + 1),
    HEADER.pack(1, CREDIT, CREDITED.size) + CREDITED.pack(1 << 31) + HEADER.pack(2, CREDIT, 1) + b"x",
)
def frames_of_bridges(data: bytes) -> None:
    """What comes over a bridge from a node."""

    class Sink:
        """Takes what the gateway sends."""

        def write(self, data: bytes) -> None:
            """Forget it."""

        async def drain(self) -> None:
            """Wait for nothing."""

        def close(self) -> None:
            """Close nothing."""

    async def read() -> None:
        source = asyncio.StreamReader()
        client = BridgeClient(source, Sink())
        readers = [client.open()[0] for _ in range(2)]
        source.feed_data(data)
        source.feed_eof()
        await client.wait_closed()
        assert client._running.exception() is None
        for reader in readers:
            assert len(await reader.read(1 << 30)) <= WINDOW + CHUNK

    run_loop(read())


# -- what a login and a launcher answer ----------------------------------------------------------------------------


@target(
    SENTINEL + b'{"ok": true, "socket": "/s", "passed_over": ["/a: no"]}\n',
    b"motd\n" + SENTINEL + b'{"ok": false, "error": "e"}\n',
    SENTINEL[:9],
    SENTINEL + b"[" * 3000 + b"\n",
)
def boots(data: bytes) -> None:
    """What a login prints before and with the agent's first answer, in pieces."""

    async def read() -> None:
        out, err = asyncio.StreamReader(), asyncio.StreamReader()
        for reader in (out, err):
            reader.feed_data(data)
            reader.feed_eof()

        class Slow:
            """Gives few bytes at a time."""

            async def read(self, n: int = -1) -> bytes:
                """Return at most 11."""
                return await out.read(min(n, 11))

            async def readexactly(self, n: int) -> bytes:
                """Return *n*."""
                return await out.readexactly(n)

        async def ended() -> int | None:
            return 0

        answer = BootAnswer(Slow(), err, "node1", b"import sys" * 20, ended)
        with contextlib.suppress(AgentUnavailable):
            assert isinstance(await answer.read_within(10), str)

    run_loop(read())


@functools.cache
def _key() -> LauncherKey:
    return LauncherKey()


def _encrypted(plain: bytes) -> str:
    """Return *plain* as a launcher sends it: anybody on the node may, since the public key is in its command line."""
    from cryptography.hazmat.primitives import padding
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    secret, padder = b"0123456789abcdef", padding.PKCS7(128).padder()
    encryptor = Cipher(algorithms.AES(secret), modes.ECB()).encryptor()
    body = encryptor.update(padder.update(plain) + padder.finalize()) + encryptor.finalize()
    wrapped = _key()._private.public_key().encrypt(secret, PKCS1v15())
    outer = {"key": base64.b64encode(wrapped).decode(), "conn_info": base64.b64encode(body).decode()}
    return base64.b64encode(json.dumps(outer).encode()).decode()


_CONNECTION = {
    "shell_port": 1, "iopub_port": 2, "stdin_port": 3, "hb_port": 4, "control_port": 5, "ip": "10.0.0.1", "key": "k",
    "transport": "tcp", "signature_scheme": "hmac-sha256", "kernel_name": "", "pid": "7", "pgid": "7", "comm_port": 8,
    "kernel_id": "k1",
}  # fmt: skip


@target(_CONNECTION, {"key": "a", "conn_info": "b"}, ["key"])
def launchers(data: bytes) -> None:
    """A launcher's answer, encrypted or not, and what is told to the agent of it."""
    for payload in (text_of(data), base64.b64encode(data).decode(), _encrypted(data)):
        with contextlib.suppress(ValueError):
            info, pid = read_launcher_answer(_key().read(payload, "k1"))
            json.dumps(info)
            assert isinstance(pid, int)


# -- files that cells can write ------------------------------------------------------------------------------------


@target(RECORDED, {**RECORDED, "state": "exited", "exit_code": 1, "agent": [1, None]})
def records(data: bytes) -> None:
    """A kernel's record, by the next agent, by an agent beside it, and by a boot: each passes over one that is malformed."""
    with folder() as home:
        place = home / "k" / "k1"
        place.mkdir(parents=True)
        (place / RECORD).write_bytes(data)
        looked = Records(home / "k")
        looked.look(frozenset())
        looked.look(frozenset())
        boot.has_kernels(str(home))
        kernel = Kernel.load(place, lambda *_: None)
        if kernel is not None:
            kernel.describe().write()
            kernel.log_entry().write()
            json.dumps(kernel.record())
            Found.read({**kernel.describe().write(), "log": ""})


@target({"kernel": "k1", "attempt": "a", "state": "exited", "exit_code": 0, "start_time": 1.0, "end_time": 2.0,
         "log_path": "/nowhere/log", "log_start": 0, "log_base": 0, "log_end": 9})  # fmt: skip
def logs(data: bytes) -> None:
    """The record of a log that is kept."""
    with folder() as home:
        kept = kept_logs.folder_of(home)
        kept.mkdir()
        (kept / "k1-abc.json").write_bytes(data)
        for log in kept_logs.find(home, ""):
            with contextlib.suppress(OSError):
                log.read_part(0, 100).write()
        kept_logs.sweep(home)


@target(b"0123456789abcdef" * 2 + b"\n", b"\xff")
def identities(data: bytes) -> None:
    """The identity in an agent's folder."""
    with folder() as home:
        (home / identity.FILE).write_bytes(data)
        assert len(identity.identity_of(home).id) == 32


@target({"argv": ["true"], "env": {"A": "b"}})
def pending(data: bytes) -> None:
    """What is to be run after a kernel's end: nothing that is malformed."""
    from eg_distributed.agent.launcher_files import read_pending

    found = read_pending(data)
    if found is not None:
        argv, environment = found
        assert argv
        assert all(isinstance(word, str) for word in argv)
        assert all(isinstance(name, bytes) for name in environment)


@target({"main.py": "x", "a/b.py": "y"}, {"../x": "y"})
def shipments(data: bytes) -> None:
    """The names of a launcher's files: none leads out of their folder."""
    if not isinstance(value := json_of(data), dict) or not all(isinstance(each, str) for each in value.values()):
        return
    with folder() as home:
        (home / "k").mkdir()
        with contextlib.suppress(StartError, OSError):
            Shipment(home / "k").unpack(value)
        assert [path.name for path in home.iterdir()] == ["k"]


@functools.cache
def _archive() -> bytes:
    import io
    import zipfile

    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a/b.txt", "hello")
        archive.writestr("c.sh", "exit")
    return packed.getvalue()


@target(_archive(), _archive().replace(b"a/b.txt", b"../x.tx"))
def spec_folders(data: bytes) -> None:
    """A kernelspec's folder, as its archive: nothing is written beside it."""
    import hashlib

    with folder() as home:
        (home / "x.new").write_bytes(data)
        with contextlib.suppress(OSError, ValueError):
            _unpack(home / "x.new", hashlib.sha256(data).hexdigest(), home / "place")
        assert {path.name for path in home.iterdir()} <= {"x.new", "place"}


@target([["node1", "k1", "a1", 1.0, "cause", 2.0]], [["node1", "k1", "a1", 1.0]])
def unended(data: bytes) -> None:
    """What a gateway has left to be ended."""
    with folder() as home:
        (home / "unended.json").write_bytes(data)
        with contextlib.suppress(ValueError):
            read_unended(home / "unended.json")


# -- what clients send ---------------------------------------------------------------------------------------------


@target(b"node1,node2.example.org, [::1]:22", b"NODE1.,fe80::1%eth0,127.1", b"-oProxyCommand=x", b"[[[a")
def hosts(data: bytes) -> None:
    """Lists of hosts, and a client's choice among them; an error's text has a bound."""
    given = text_of(data)
    canonical_name(given)
    try:
        found = parse_hosts(given)
        pin = pin_of({"KERNEL_REMOTE_HOST": given})
        check_pin(pin, found[1:], allow_any_host=False)
    except (RequestInvalid, RequestRefused) as error:
        _has_bound(error, 1000 + len(given))
    else:
        assert parse_hosts(",".join(found)) == found


def _has_bound(error: Exception, most: int) -> None:
    """Fail for an error whose text grows with what a client sent: it goes into the answer and the log."""
    assert len(str(error)) < most


@target(
    {"KERNEL_ID": "k", "KERNEL_LAUNCH_TIMEOUT": "30", "PATH": "x", "KERNEL_EXTRA_SPARK_OPTS": "--conf a=b"}, {"A=": 1}
)
def environments(data: bytes) -> None:
    """A request's env: what is not refused can be an environment."""
    if not isinstance(value := json_of(data), dict):
        return
    env = data_env(value, {"HOME": "/"}, inherited=["HOME"], allowed=["PATH", " "])
    try:
        check_env(env)
    except RequestInvalid as error:
        _has_bound(error, 1000)
        return
    for name, text in env.items():
        os.fsencode(name)
        assert isinstance(text, str)
        assert "\0" not in text


@target(b"-f\0{connection_file}\0{name}{{x}}")
def argv(data: bytes) -> None:
    """A kernelspec's argv, filled in once."""
    words = text_of(data).split("\0")
    assert len(fill_argv(words, {"name": "{connection_file}", "python": "x"})) == len(words)


@target(
    b"KERNEL_EXTRA_SPARK_OPTS=--conf spark.a=b --jars 'x y'\0"
    b"SPARK_OPTS=--queue ${KERNEL_QUEUE} $KERNEL_EXTRA_SPARK_OPTS\0KERNEL_QUEUE=a b",
    b"SPARK_OPTS='\0KERNEL_EXTRA_SPARK_OPTS=\\",
)
def options(data: bytes) -> None:
    """Options of spark-submit that a client sent, and a kernelspec's references to what it sent."""
    env = lines_of(data)
    with contextlib.suppress(LaunchError):
        clients_options(env)
    with contextlib.suppress(RequestInvalid):
        for_scripts({"SPARK_OPTS": "--conf a=b $KERNEL_EXTRA_SPARK_OPTS", "TOREE_OPTS": "${X}"}, env)
    with contextlib.suppress(ValueError):
        expand_all({"SPARK_OPTS": "--queue ${KERNEL_QUEUE:-d} '$X'", "X": "$KERNEL_X"}, {"HOME": "/"}, env)


@target("Größe < 5 \x1b[31m".encode(), b"a" * 3000)
def reasons(data: bytes) -> None:
    """An error's text as a status line."""
    assert len(reason_phrase(text_of(data))) <= 2000


@target(b'id\0<IDS|MSG>\0sig\0{"h":1}\0{"msg_id":"m"}\0{}\0{}', b"<IDS|MSG>", b"")
def notebooks(data: bytes) -> None:
    """A kernel's message on iopub, as the gateway looks at it."""
    assert isinstance(header_of(parent_of(data.split(b"\0"))), dict)


# -- ssh's files ---------------------------------------------------------------------------------------------------


@target(
    b"Host node* !node9\n  HostName %h.example.org\n  Port 2222\n  IdentityFile ~/.ssh/id\n",
    b'Match host node1 user root\nUser "a b"\nSetEnv A=b\nProxyJump a@b:22,c\nConnectTimeout 1m\nCiphers +aes*\n',
    b"Include other\nCanonicalizeHostname no\nRekeyLimit 1G 1h\n",
)
def ssh_configs(data: bytes) -> None:
    """ssh_config, by our own reader."""
    if b"exec" in data.lower() or b"include" in data.lower() or b"canonical" in data.lower():
        return  # these run commands, read other files, and ask the network
    with folder() as home:
        (home / "config").write_bytes(data)
        with contextlib.suppress(ValueError, OSError):
            read_files("node1", str(home / "config"))


@target(b'a \'b c\' "d\\"e" # f', b"a@b:22,c", b"ssh://a@[::1]:22")
def words(data: bytes) -> None:
    """Words of a line of ssh_config, and hops of ProxyJump."""
    for parse in (split_words, parse_hops):
        with contextlib.suppress(ValueError):
            parse(text_of(data))


_PUBLIC = b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"


def _configuration(path: Path) -> Configuration:
    return Configuration(host="node1", hostname="node1", port=22, user="u", known_hosts=(path,))


@target(b"node1,*.org " + _PUBLIC + b" x\n@revoked node1 " + _PUBLIC + b"\n@cert-authority * " + _PUBLIC,
        b"|1|" + base64.b64encode(b"s" * 20) + b"|x= " + _PUBLIC, b"node1 ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQ")  # fmt: skip
def known_hosts_files(data: bytes) -> None:
    """known_hosts: a line that is malformed costs itself."""
    with folder() as home:
        (home / "known_hosts").write_bytes(data)
        keys = known_hosts._read(_configuration(home / "known_hosts"))
        assert len(keys.notes) <= 40


@target(
    _PUBLIC + b"\n", b"SSHKRL\n\0" + struct.pack(">IQQQ", 1, 1, 1, 0) + b"\0" * 8 + b"\2" + struct.pack(">II", 4, 0)
)
def revoked_keys(data: bytes) -> None:
    """RevokedHostKeys: a list, or ssh-keygen's binary one."""
    with folder() as home:
        (home / "revoked").write_bytes(data)
        with contextlib.suppress(ValueError):
            RevokedKeys.read(home / "revoked")
        with contextlib.suppress(ValueError):
            read_public_key(text_of(data))

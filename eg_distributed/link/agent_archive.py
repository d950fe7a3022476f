"""The agent's code as it goes over a connection: an archive that Python runs, behind one line that starts it."""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
import zlib
from functools import cache
from importlib import resources

from eg_distributed.protocol import OLDEST_PROTOCOL, PROTOCOL, SENTINEL

_PACKAGE = "eg_distributed"
_BOOT, _CHECKUP = "boot.py", "checkup.py"
"""Sent as text, the former ahead of the archive, which it unpacks: so they are not in the archive itself."""
_SHARED = ("clock.py", "connections.py", "protocol.py", "streams.py", "wire.py")
"""What gateways and agents have in common."""
_MAIN = """
import sys
from importlib import import_module
if sys.argv[1] in ("agent", "bridge"):
    sys.modules.setdefault("ssl", None)  # asyncio does without: 6 ms of a start, and a megabyte
module = {"agent": "server"}.get(sys.argv[1], sys.argv[1])
import_module("eg_distributed.agent." + module).main(*sys.argv[2:])
"""


def _agent_files() -> dict[str, bytes]:
    """Return the agent's files with what it shares with a gateway, by their names in the archive and in order of them."""
    package = resources.files(_PACKAGE)
    found = {f"{_PACKAGE}/{name}": (package / name).read_bytes() for name in _SHARED}
    for entry in (package / "agent").iterdir():
        if entry.name.endswith(".py") and entry.name not in (_BOOT, _CHECKUP):
            found[f"{_PACKAGE}/agent/{entry.name}"] = entry.read_bytes()
    return dict(sorted(found.items()))


@cache
def agent_archive() -> tuple[str, bytes]:
    """Return the agent's code as an archive that Python runs, and its digest, which is the agent's version."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        own = {"__main__.py": _MAIN.encode(), "eg_distributed/__init__.py": b""}
        for name, content in {**own, **_agent_files()}.items():
            # A fixed date: the same source must give the same digest on every gateway. Stored: compressed as a whole on its way,
            # the files take a fifth less than each by itself.
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), content, zipfile.ZIP_STORED)
    content = buffer.getvalue()
    return hashlib.sha256(content).hexdigest()[:12], content


@cache  # four lines at most, of some forty kilobytes; making one takes milliseconds, and all hosts want it at once
def boot_line(*, bridge: bool, keep: bool) -> bytes:
    """Return the one line that the node's python3 reads and executes.

    With *bridge* it becomes the bridge to the agent in the end; with *keep* it leaves an older release's agent that has
    kernels alone, see `older_agent` in agent/boot.py.
    """
    digest, archive = agent_archive()
    source = _source(_BOOT)
    config = {
        "digest": digest,
        "archive": base64.b64encode(zlib.compress(archive, 9)).decode(),
        "sentinel": SENTINEL.decode(),
        "protocol": str(PROTOCOL),
        "older": " ".join(str(protocol) for protocol in range(PROTOCOL - 1, OLDEST_PROTOCOL - 1, -1)),
        "keep": "yes" if keep else "",
        "bridge": "yes" if bridge else "",
    }
    return _packed(f"{source}\nboot({config!r})\n")


def checkup_line() -> bytes:
    """Return the one line that has the node's python3 say what the doctor wants to know; see agent/checkup.py."""
    config = {"sentinel": SENTINEL.decode(), "protocol": str(PROTOCOL)}
    given = f"import types\nboot = types.ModuleType('boot')\nexec({_source(_BOOT)!r}, vars(boot))\n"
    return _packed(f"{given}{_source(_CHECKUP)}\ncheckup(boot, {config!r})\n")


def _source(name: str) -> str:
    return (resources.files(_PACKAGE) / "agent" / name).read_text("utf-8")


def _packed(source: str) -> bytes:
    """Return a line of Python that executes *source*."""
    packed = base64.b64encode(zlib.compress(source.encode(), 9))
    return b'import base64,zlib;exec(zlib.decompress(base64.b64decode(b"' + packed + b'")))\n'

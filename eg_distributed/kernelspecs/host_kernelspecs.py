"""What hosts say of their kernelspecs, turned into kernelspecs of this machine, whose kernels run there.

A node is not trusted: any cell there can speak in its agent's place. So what it says is taken apart, and a kernel.json is made
of the parts that are known: it names its own host, or hosts that said the very same, and our provisioner. Nothing of it can have
this machine execute anything, send a kernel anywhere else, or hand on more than any other kernel gets.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fnmatch
import hashlib
import json
import logging
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from eg_distributed.errors import RequestInvalid
from eg_distributed.hosts import canonical_name, parse_hosts
from eg_distributed.protocol import HostKernelspec, HostKernelspecs
from eg_distributed.settings import Distributed
from eg_distributed.wire import Message, one_line

from . import PROVISIONER
from .guard import guarded, without_guard

log = logging.getLogger(__name__)

MOST = 500
"""Kernelspecs that are offered; a launcher with more helps nobody."""
FEW_HOSTS = 8
"""Up to so many hosts each has kernelspecs of its own, unless the settings say otherwise."""
LOGO_SIZE = 32 * 1024
"""Bytes of a picture."""
LOGOS_SIZE = 1024 * 1024
"""Bytes of all pictures of a host's kernelspecs, each with copies of its own."""
_LEAST = 20  # kernelspecs that each host may have in any case
KEY = "eg_distributed"
"""Where a kernelspec's metadata say for programs which hosts it is of."""
ANY, ANY_HOST = "any", "any host"
"""What stands for the host in the name, and in what people read, of kernelspecs for any host."""
_ARGV_SIZE = 64 * 1024  # characters
_NAME = re.compile(r"[a-z0-9._-]{1,100}\Z")
_FULL_NAME = re.compile(r"[a-z0-9_-][a-z0-9._-]{0,219}\Z")
_NO_NAME = re.compile(r"[^a-z0-9._-]+")
_LANGUAGE = re.compile(r"[A-Za-z0-9 _+#./-]{1,100}\Z")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_OURS = ("KERNEL_", "EG_")  # variables that say something to an adapter
_FEATURE = re.compile(r"[A-Za-z0-9 _.-]{1,100}\Z")
_LOGO = re.compile(r"logo-[A-Za-z0-9_-]{1,40}\.(png|svg)\Z")
_PLACEHOLDERS = re.compile(
    r"\{(?:response_address|public_key|port_range|launcher|python|resource_dir|prefix|kernel_id)\}"
)
"""What an adapter or an agent would fill in: a kernel that is started by its host's own users needs none of it."""
_UNNAMED = (".venv", "venv", ".env", "env")
"""Environments that are called after the folder which they are in."""


@dataclass(frozen=True)
class Offered:
    """A kernelspec for this machine's clients."""

    name: str
    kernel_json: str
    logos: tuple[tuple[str, bytes], ...] = ()
    """Names of files, and their contents."""
    key: str = ""
    """What it is whose name this is: the interpreter or program, of the host or of any."""


@dataclass(frozen=True)
class _Entry:
    """A kernelspec of one host, as far as it is believed."""

    host: str
    name: str
    """With its environment's, if it is in one."""
    display_name: str
    rest: str
    """The other parts of kernel.json, as JSON."""
    program: str
    """What it is whatever else changes: its name, its environment and what is executed, as JSON."""
    logos: tuple[tuple[str, bytes], ...]

    @property
    def content(self) -> tuple[str, str, str]:
        """What has to be the same for two hosts to have the same kernelspec."""
        return self.name, self.display_name, self.rest


def offered(
    answers: Mapping[str, HostKernelspecs],
    settings: Distributed,
    names: Mapping[str, str] | None = None,
    *,
    is_settled: bool = True,
) -> list[Offered]:
    """Return the kernelspecs to be offered, by what each host has answered, in the order of hosts; each name once.

    A kernelspec that has a name in *names* (by its key) keeps it: a notebook that was saved with it means that program, and no
    other one is ever called so meanwhile. Unless *is_settled* there are hosts that have not said yet what they have: what one
    host alone has may be for any host in a moment, and where that would be its only name it is not offered yet.
    """
    mode, many = settings.host_kernelspecs, len(parse_hosts(settings.remote_hosts))
    if mode == "auto":
        mode = "both" if many <= FEW_HOSTS else "any"
    share = max(MOST // max(many, 1), _LEAST)
    entries = [entry for host, answer in answers.items() for entry in islice(believed(host, answer), share)]
    same: dict[tuple[str, str, str], dict[str, _Entry]] = {}
    for entry in entries:
        same.setdefault(entry.content, {}).setdefault(canonical_name(entry.host), entry)
    groups = sorted(([*group.values()] for group in same.values()), key=lambda group: -len(group))
    wanted: list[list[_Entry]] = []
    if mode != "each":
        wanted += [group for group in groups if len(group) > 1 or mode == "any"]
    if mode in ("each", "both"):
        wanted += [[entry] for entry in entries]
    before = names or {}
    keyed: dict[str, list[_Entry]] = {}
    for group in wanted:
        key = _key(settings.kernelspec_name, group)
        if len(group) == 1 and mode == "any" and not is_settled and key not in before:
            continue
        if not _is_shown({_name(settings.kernelspec_name, group), group[0].name}, settings):
            continue
        if key in keyed:  # the same program twice, with other variables
            key = _token([key, *group[0].content])
        if key not in keyed and len(keyed) >= MOST:
            log.warning(
                "hosts have more than %d kernelspecs: see Distributed.kernelspecs_shown and kernelspecs_hidden", MOST
            )
            break
        keyed.setdefault(key, group)
    kept = {key: before[key] for key in keyed if _FULL_NAME.match(before.get(key, ""))}
    taken = set(kept.values())
    found: dict[str, Offered] = {}
    for key, group in keyed.items():
        name = kept.get(key) or _name(settings.kernelspec_name, group)
        if name in found or (key not in kept and name in taken):
            name = f"{name}-{key[:6]}"
        if name not in found:
            found[name] = Offered(name, _kernel_json(group, settings), group[0].logos, key)
    return [*found.values()]


def _key(pattern: str, group: list[_Entry]) -> str:
    """Return what tells the kernelspec of *group* from all others, for as long as it is the same to its users."""
    if len(group) == 1:
        return _token([pattern, canonical_name(group[0].host), group[0].program])
    return _token([pattern, group[0].name, json.loads(group[0].rest)["argv"]])


def _token(about: object) -> str:
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]


def _name(pattern: str, group: list[_Entry]) -> str:
    host = group[0].host if len(group) == 1 else ANY
    return _fit(_filled(pattern, kernelspec=group[0].name, host=canonical_name(host)), 200)


def _filled(pattern: str, **values: str) -> str:
    """Return *pattern* with its placeholders filled in. Not by `format`, for which `{host.x}` would be code."""
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), pattern)


def _fit(text: str, size: int) -> str:
    """Return *text* as a name for a kernelspec: what Jupyter allows none has becomes a dash."""
    name = _NO_NAME.sub("-", text.lower()).strip(".-")
    return name if 0 < len(name) <= size else f"{name[: size - 9]}-{_token(text)[:8]}".strip("-")


def _is_shown(names: set[str], settings: Distributed) -> bool:
    def matches(patterns: Iterable[str]) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)

    return matches(settings.kernelspecs_shown) and not matches(settings.kernelspecs_hidden)


def _kernel_json(group: list[_Entry], settings: Distributed) -> str:
    hosts = [entry.host for entry in group]
    spec: Message = json.loads(group[0].rest)
    label = hosts[0] if len(hosts) == 1 else ANY_HOST
    spec["display_name"] = _filled(settings.kernelspec_display_name, display_name=group[0].display_name, host=label)
    spec["argv"] = guarded(spec["argv"])
    spec["metadata"]["kernel_provisioner"] = {
        "provisioner_name": PROVISIONER,
        # Of this folder here nothing is the host's.
        "config": {"remote_hosts": hosts, "bring_folder": False},
    }
    spec["metadata"][KEY] = {"hosts": hosts}
    return json.dumps(spec, indent=1)


# -- what is believed ----------------------------------------------------------------------------------------------


class _Unbelievable(Exception):
    """Why a kernelspec is left out."""


def believed(host: str, answer: HostKernelspecs, left_out: list[str] | None = None) -> Iterator[_Entry]:
    """Yield the kernelspecs of *host* that can be offered; of the others *left_out*, or the log, says why not."""
    pictures = _Pictures(answer.logos)
    for found in answer.each():
        try:
            yield _believed(host, found, pictures)
        except (_Unbelievable, RequestInvalid, UnicodeError) as error:
            if left_out is not None:
                left_out.append(f"{one_line(found.folder)}: {one_line(str(error))}")
            else:
                log.info("%s: kernelspec %s is left out: %s", host, one_line(found.name), one_line(str(error)))


def _believed(host: str, found: HostKernelspec, pictures: _Pictures) -> _Entry:
    if not _NAME.match(found.name):
        raise _Unbelievable("its name is none")
    _check_argv(found.argv)
    env = {name: value for name, value in found.env.items() if _VARIABLE.match(name) and not name.startswith(_OURS)}
    if any("\0" in value for value in env.values()):
        raise _Unbelievable("its env has NUL")
    name, display_name = found.name, one_line(found.display_name, 100) or found.name
    if found.is_environment:
        label = environment_label(found.prefix)
        name, display_name = _fit(f"{name}-{label}", 100), f"{display_name} [{label}]"
    rest = {
        "argv": found.argv,
        "language": found.language if _LANGUAGE.match(found.language) else "",
        "env": dict(sorted(env.items())),
        "interrupt_mode": found.interrupt_mode,
        "metadata": {"debugger": found.debugger, **_features(found.features)},
    }
    written = json.dumps(rest)
    json.dumps(rest, ensure_ascii=False).encode()  # bytes of a path that are no text cannot be written
    program = json.dumps([found.name, found.prefix if found.is_environment else "", found.argv[0]])
    return _Entry(host, name, display_name, written, program, tuple(pictures.of(found.logos)))


def _features(features: list[str]) -> dict[str, Any]:
    kept = [feature for feature in features if _FEATURE.match(feature)]
    return {"supported_features": kept} if kept else {}


def _check_argv(argv: list[str]) -> None:
    """Raise _Unbelievable or RequestInvalid for an argv that is no kernel's of the host's own."""
    if not any("{connection_file}" in word for word in argv):
        raise _Unbelievable("its argv has no {connection_file}")
    if not argv[0].startswith("/"):
        raise _Unbelievable("its program is no path")
    if sum(map(len, argv)) > _ARGV_SIZE or any("\0" in word for word in argv):
        raise _Unbelievable("its argv is too long, or has NUL")
    if any(_PLACEHOLDERS.search(word) for word in argv):
        raise _Unbelievable("its argv has placeholders that are a gateway's to fill in")
    if without_guard(argv) != argv:
        raise _Unbelievable("it is itself one of ours")


def environment_label(prefix: str) -> str:
    """Return what people call the environment in *prefix*."""
    parts = [part for part in posixpath.normpath(prefix).split("/") if part.strip(".")]
    while len(parts) > 1 and parts[-1] in _UNNAMED:
        parts.pop()
    return one_line(parts[-1] if parts else "environment", 60)


class _Pictures:
    """The pictures of one answer, each decoded once; kernelspecs have copies of their own, which have a bound together."""

    def __init__(self, contents: Mapping[str, str]) -> None:
        self._contents = contents
        self._decoded: dict[str, bytes] = {}
        self._room = LOGOS_SIZE

    def of(self, named: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
        """Yield those of a kernelspec, by their files' *named* names, that are pictures."""
        for file, key in sorted(named.items()):
            if not _LOGO.match(file) or key not in self._contents:
                continue
            content = self._picture(key)
            is_one = content.startswith(b"\x89PNG\r\n\x1a\n") if file.endswith(".png") else b"<svg" in content[:4096]
            if is_one and len(content) <= self._room:
                self._room -= len(content)
                yield file, content

    def _picture(self, key: str) -> bytes:
        if key not in self._decoded:
            content = b""
            with contextlib.suppress(binascii.Error, ValueError):
                if len(self._contents[key]) <= 2 * LOGO_SIZE:
                    content = base64.b64decode(self._contents[key], validate=True)
            self._decoded[key] = content if len(content) <= LOGO_SIZE else b""
        return self._decoded[key]

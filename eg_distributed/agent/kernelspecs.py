"""The kernelspecs that a node has for its own users: looked for as Jupyter would there, and in environments that patterns name.

What is looked through is not the agent's own: homes, mounts, folders with a million names. Each root has a thread of its own
with a deadline, and one at most, so that a mount that hangs costs what is below it and nothing else. What a thread finds after
its deadline is the answer of the next time: a root that is always slow is always a little old.
"""

from __future__ import annotations

import asyncio
import fnmatch
import itertools
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Optional

from ..protocol import HostKernelspec, HostKernelspecs
from ..wire import Malformed
from .aside import aside

DEADLINE = 3.0
"""Seconds that one root may take; less than gateways wait for an answer."""
SPEC_SIZE = 64 * 1024
"""Bytes that a kernel.json may have."""
LOGO_SIZE = 32 * 1024
"""Bytes that a picture may have."""
LOGOS_SIZE = 192 * 1024
"""Bytes that all pictures of an answer may have, each counted once; what is more is left out."""
SPECS_SIZE = 384 * 1024
"""The same of the kernelspecs, as they are sent: with both, and what else there is, the answer stays below MAX_ANSWER."""
LONGEST = 60.0
"""Seconds after which a look at one root ends with what it has found."""
_LISTED = 5000
"""Names that are read of a folder which a pattern goes through."""
_REMEMBERED = 200  # roots of which the last look is remembered
_LOOKS = 8  # looks for different patterns at once
_ENTRIES = 500  # names in a folder that are looked at
_ENVIRONMENTS = 200  # environments that a pattern may lead to
_ON_PATH = 32  # folders of PATH and JUPYTER_PATH that are looked at
_TOLD = 20  # reasons why a kernelspec is left out
_KERNELS = os.path.join("share", "jupyter", "kernels")
_NAME = re.compile(r"[a-z0-9._-]{1,100}\Z")
_LOGO = re.compile(r"logo-[A-Za-z0-9_-]{1,40}\.(png|svg)\Z")
_PYTHON = re.compile(r"python(\d(\.\d+)?)?\Z")
_PACKAGES = ("site-packages", "dist-packages")


class Root(NamedTuple):
    """What is looked through."""

    text: str
    """A folder of kernelspecs, or a pattern of environments."""
    is_pattern: bool = False


class Found(NamedTuple):
    """A kernelspec that was found, with its pictures by the names of their files."""

    kernelspec: HostKernelspec
    place: str
    """Its folder's real path, by which it is found once."""
    logos: dict[str, bytes]


class Look(NamedTuple):
    """What is below a root."""

    found: list[Found]
    left_out: list[str]


class LeftOut(Exception):
    """Why a kernelspec is not offered."""


class Kernelspecs:
    """Looks for kernelspecs, and once at a time for whoever asks the same; owned by the agent."""

    def __init__(self) -> None:
        self._looks: dict[tuple[str, ...], asyncio.Task[HostKernelspecs]] = {}
        self._late: dict[Root, Look] = {}  # what a look has found whose deadline was over

    async def find(self, patterns: Sequence[str], environment: Mapping[str, str]) -> HostKernelspecs:
        """Return the kernelspecs below the roots of a login with *environment*, and in environments by *patterns*.

        Raises Malformed where too many different questions are under way.
        """
        key = tuple(patterns)
        look = self._looks.get(key)
        if look is None:
            if len(self._looks) >= _LOOKS:
                raise Malformed(f"{_LOOKS} other looks for kernelspecs are under way")
            look = self._looks[key] = asyncio.ensure_future(self._find(patterns, dict(environment)))
            look.add_done_callback(lambda _: self._looks.pop(key, None))
        return await asyncio.shield(look)

    async def _find(self, patterns: Sequence[str], environment: dict[str, str]) -> HostKernelspecs:
        roots = [*own_roots(environment), *(Root(pattern, is_pattern=True) for pattern in dict.fromkeys(patterns))]
        looks = await asyncio.gather(*(self._look(root, environment) for root in roots))
        found = [each for look in looks if look is not None for each in look.found]
        left_out = [reason for look in looks if look is not None for reason in look.left_out]
        return answer(found, [root.text for root, look in zip(roots, looks) if look is None], left_out)

    async def _look(self, root: Root, environment: dict[str, str]) -> Optional[Look]:
        """Return what is below *root*, or was when it was last looked through in more than the time for it; None if unknown."""

        def remember(look: Look) -> None:
            self._late[root] = look

        try:
            look: Look = await aside(("kernelspecs", root), DEADLINE, look_through, root, environment, late=remember)
        except (OSError, asyncio.TimeoutError):
            return self._late.get(root)
        self._late.pop(root, None)
        while len(self._late) > _REMEMBERED:
            self._late.pop(next(iter(self._late)), None)
        return look


def answer(found: Iterable[Found], unread: list[str], left_out: list[str]) -> HostKernelspecs:
    """Return *found* as it is sent, within the bounds: each folder once, and of those with one name the first, as in Jupyter.

    Environments have names of their own, so that each may have a kernelspec of the same name.
    """
    import base64  # here: an agent that nobody asks for this starts faster without them
    import hashlib

    made = HostKernelspecs([], unread=unread)
    places: set[str] = set()
    names: set[tuple[str, str]] = set()
    specs_size = logos_size = more = 0
    for kernelspec, place, logos in found:
        name = (kernelspec.name, kernelspec.prefix if kernelspec.is_environment else "")
        if place in places or name in names:
            continue
        places.add(place)
        names.add(name)
        for file, content in logos.items():
            digest = hashlib.sha256(content).hexdigest()[:32]
            if digest not in made.logos:
                if logos_size + len(content) > LOGOS_SIZE:
                    continue
                logos_size += len(content)
                made.logos[digest] = base64.b64encode(content).decode()
            kernelspec.logos[file] = digest
        entry = kernelspec.write()
        specs_size += len(json.dumps(entry))
        if len(made.kernelspecs) >= HostKernelspecs.MOST or specs_size > SPECS_SIZE:
            more += 1
            continue
        made.kernelspecs.append(entry)
    made.left_out = left_out[:_TOLD]
    if more:
        made.left_out.append(f"{more} more than one answer may have")
    return made


# -- where ---------------------------------------------------------------------------------------------------------


def own_roots(environment: Mapping[str, str]) -> list[Root]:
    """Return the folders in which Jupyter looks for a login with *environment*, in its order.

    That of the environment which Jupyter itself is in is not known here: those of all programs on PATH stand for it.
    """
    home = environment.get("HOME") or os.path.expanduser("~")
    data = environment.get("JUPYTER_DATA_DIR") or os.path.join(
        environment.get("XDG_DATA_HOME") or os.path.join(home, ".local", "share"), "jupyter"
    )
    first = [folder for folder in _parts(environment.get("JUPYTER_PATH")) if os.path.isabs(folder)]
    on_path = [os.path.dirname(each.rstrip("/")) for each in _parts(environment.get("PATH")) if _is_bin(each)]
    folders = [
        *(os.path.join(folder, "kernels") for folder in (*first, data)),
        *(os.path.join(prefix, _KERNELS) for prefix in (*on_path, "/usr/local", "/usr")),
        os.path.join(environment.get("IPYTHONDIR") or os.path.join(home, ".ipython"), "kernels"),
    ]
    return [Root(folder) for folder in dict.fromkeys(folders)]


def _parts(path: Optional[str]) -> list[str]:
    return (path or "").split(os.pathsep)[:_ON_PATH]


def _is_bin(folder: str) -> bool:
    return os.path.isabs(folder) and os.path.basename(folder.rstrip("/")) == "bin"


def look_through(root: Root, environment: Mapping[str, str]) -> Look:
    """Return what is below *root*, as much as one answer may have; raises OSError. Called in threads: it may hang."""
    until = time.monotonic() + LONGEST
    if not root.is_pattern:
        prefix = root.text[: -len(_KERNELS) - 1] if root.text.endswith(os.sep + _KERNELS) else ""
        folders: Iterable[tuple[str, str]] = [(root.text, prefix)]
    else:
        home = environment.get("HOME") or os.path.expanduser("~")
        pattern = home + root.text[1:] if root.text == "~" or root.text.startswith("~/") else root.text
        if not os.path.isabs(pattern):
            return Look([], [f"{root.text}: a pattern of environments has to begin with / or ~/"])
        folders = ((os.path.join(prefix, _KERNELS), prefix) for prefix in _matches(pattern))
    look = Look([], [])
    pictures: dict[bytes, bytes] = {}  # those of several kernelspecs are kept once
    room = LOGOS_SIZE
    for folder, prefix in folders:
        for name in _names(folder):
            if len(look.found) >= HostKernelspecs.MOST or time.monotonic() > until:
                look.left_out.append(f"{root.text}: there are more, or they take longer than {LONGEST:g} s")
                return look
            path = os.path.join(folder, name)
            try:
                found = _kernelspec(path, root, prefix, environment)
            except (LeftOut, OSError, ValueError, RecursionError) as error:
                reason = error.strerror if isinstance(error, OSError) else str(error)
                if len(look.left_out) < _TOLD:
                    look.left_out.append(f"{path}: {reason}"[:1000])
                continue
            for file, content in list(found.logos.items()):
                if content not in pictures and len(content) <= room:
                    room -= len(content)
                    pictures[content] = content
                if content in pictures:
                    found.logos[file] = pictures[content]
                else:
                    del found.logos[file]
            look.found.append(found)
    return look


def _matches(pattern: str) -> list[str]:
    """Return the folders by *pattern*, some of them where there are many. Not by `glob`, which lists a folder whole first."""
    found = ["/"]
    for part in pattern.split("/"):
        if not part:
            continue
        if not any(letter in part for letter in "*?["):
            found = [os.path.join(folder, part) for folder in found]
            continue
        is_hidden = part.startswith(".")
        matches: list[str] = []
        for folder in found:
            try:
                with os.scandir(folder) as entries:
                    names = [
                        entry.name
                        for entry in itertools.islice(entries, _LISTED)
                        if fnmatch.fnmatchcase(entry.name, part) and entry.name.startswith(".") == is_hidden
                    ]
            except OSError:
                continue
            matches += [os.path.join(folder, name) for name in sorted(names)]
            if len(matches) >= _ENVIRONMENTS:
                break
        found = matches[:_ENVIRONMENTS]
    return found


def _names(folder: str) -> list[str]:
    """Return the names of the folders in *folder* that have a kernel.json; none where there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in itertools.islice(entries, _ENTRIES))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
    return [name for name in names if os.path.isfile(os.path.join(folder, name, "kernel.json"))]


# -- one kernelspec ------------------------------------------------------------------------------------------------


def _kernelspec(folder: str, root: Root, prefix: str, environment: Mapping[str, str]) -> Found:
    """Return the kernelspec in *folder*; raises LeftOut, ValueError (Malformed) or OSError for one that is none for others."""
    name = os.path.basename(folder).lower()
    if not _NAME.match(name):
        raise LeftOut("its name is none for a kernelspec")
    content = _read(os.path.join(folder, "kernel.json"), SPEC_SIZE)
    spec = json.loads(content.decode("utf-8"))
    if not isinstance(spec, dict):
        raise LeftOut("its kernel.json is no object")
    metadata = spec.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise LeftOut("its metadata are no object")
    argv = _argv(spec, metadata, folder, prefix)
    program = _program(argv, prefix, environment, is_environment=root.is_pattern)
    own = spec.get("env") or {}
    if not isinstance(own, dict):
        raise LeftOut("its env is no object")
    made = {
        "name": name,
        "root": root.text,
        "folder": folder,
        "prefix": prefix,
        "is_environment": root.is_pattern,
        "argv": [program, *argv[1:]],
        "display_name": spec.get("display_name") or name,
        "language": spec.get("language") or "",
        "env": {**_activation(prefix, program), **{key: str(value) for key, value in own.items()}},
        "interrupt_mode": str(spec.get("interrupt_mode") or "signal").lower(),
        "debugger": metadata.get("debugger") is True,
        "features": metadata.get("supported_features") or [],
    }
    return Found(HostKernelspec.read(made), os.path.realpath(folder), dict(_logos(folder)))


def _argv(spec: Mapping[str, Any], metadata: Mapping[str, Any], folder: str, prefix: str) -> list[str]:
    """Return the argv of a kernelspec that is for kernels on this very machine; raises LeftOut for any other."""
    provisioner = metadata.get("kernel_provisioner")
    if isinstance(provisioner, dict) and provisioner.get("provisioner_name") not in (None, "local-provisioner"):
        raise LeftOut("its kernels run elsewhere, by a kernel provisioner")
    if "process_proxy" in metadata:
        raise LeftOut("it is a gateway's, with a process proxy")
    argv = spec.get("argv")
    if not isinstance(argv, list) or not argv or not all(isinstance(word, str) for word in argv):
        raise LeftOut("its argv is no list of words")
    if not any("{connection_file}" in word for word in argv):
        raise LeftOut("its argv has no {connection_file}")
    values = {"{resource_dir}": folder, "{prefix}": prefix}
    return [re.sub(r"\{(resource_dir|prefix)\}", lambda match: values[match[0]], word) for word in argv]


def _program(argv: Sequence[str], prefix: str, environment: Mapping[str, str], *, is_environment: bool) -> str:
    """Return the path of what *argv* executes; raises LeftOut where there is none.

    A plain name is that of the environment: what a login has by the name may be anything. `python` above all, which is what
    ipykernel's own kernelspec says, and for which Jupyter executes the interpreter that it runs in itself.
    """
    word, path = argv[0], environment.get("PATH")
    if os.sep in word:
        if os.path.isabs(word) and _is_program(word):
            return word
        raise LeftOut(f"{word} cannot be executed")
    names = [word]
    if _PYTHON.match(word):
        names += ["python", "python3"]
        if prefix and not is_environment and not _is_isolated(prefix):
            # A system's `python` may be an old one, and packages of ~/.local are those of one version.
            names = [*_versions_with(prefix, argv), *names]
    for name in dict.fromkeys(names):
        if prefix and _is_program(here := os.path.join(prefix, "bin", name)):
            return here
    if not is_environment:
        for name in dict.fromkeys(names):
            if found := shutil.which(name, path=path):
                return os.path.abspath(found)
    raise LeftOut(f"{word} is neither in {prefix or 'a known environment'} nor on PATH")


def _is_program(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)


def _is_isolated(prefix: str) -> bool:
    return any(os.path.exists(os.path.join(prefix, name)) for name in ("pyvenv.cfg", "conda-meta"))


def _versions_with(prefix: str, argv: Sequence[str]) -> Iterator[str]:
    """Yield the names of interpreters, such as `python3.11`, whose packages in *prefix* have the module that *argv* runs."""
    if len(argv) < 3 or argv[1] != "-m":
        return
    module, lib = argv[2].partition(".")[0], os.path.join(prefix, "lib")
    try:
        names = sorted((name for name in os.listdir(lib) if _PYTHON.match(name)), key=_newest_first)
    except OSError:
        return
    for name in names:
        for packages in _PACKAGES:
            place = os.path.join(lib, name, packages, module)
            if os.path.isdir(place) or os.path.isfile(f"{place}.py"):
                yield name


def _newest_first(name: str) -> tuple[int, ...]:
    return tuple(-int(part) for part in re.findall(r"\d+", name))


def _activation(prefix: str, program: str) -> dict[str, str]:
    """Return the variables that an environment's activation would set, as far as what runs in it looks at them."""
    if not prefix or os.path.dirname(program) != os.path.join(prefix, "bin") or not _is_isolated(prefix):
        return {}
    escaped = prefix.replace("$", "$$")
    own = "CONDA_PREFIX" if os.path.exists(os.path.join(prefix, "conda-meta")) else "VIRTUAL_ENV"
    return {"PATH": f"{escaped}/bin:${{PATH}}", own: escaped}


def _logos(folder: str) -> Iterator[tuple[str, bytes]]:
    """Yield the pictures of a kernelspec that are worth showing: name and content."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in itertools.islice(entries, _ENTRIES) if _LOGO.match(entry.name))
    for name in names[:10]:
        try:
            yield name, _read(os.path.join(folder, name), LOGO_SIZE)
        except (OSError, LeftOut):  # a kernelspec without it is as good
            continue


def _read(path: str, limit: int) -> bytes:
    """Return the content of a file of at most *limit* bytes; raises OSError, and LeftOut for what is none."""
    # O_NONBLOCK: a FIFO would never open.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise LeftOut(f"{os.path.basename(path)} is no file")
        content = file.read(limit + 1)
    if len(content) > limit:
        raise LeftOut(f"{os.path.basename(path)} has more than {limit} bytes")
    return content

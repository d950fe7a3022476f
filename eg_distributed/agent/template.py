"""A template: a process that has imported what a kernel imports, and is forked for each kernel instead of starting one.

Never imported by the agent: `warm.py` hands this text to the kernels' own interpreter (Python 3.8 or later, standard library
alone), over the socket that it talks to the template by afterwards.

    agent ── this text, what to import ──► template     imports, looks whether it may be forked at all, says what it has read
          ── fork, with a socket and a log ──► template ── fork ──► child     reads over that socket what it is to be
          ◄── cold, and why ────────────────────────────────── child     or ok, and from there on it is a kernel
          ── code, reap ──► template                   how a child ended; it stays a zombie until it is reaped

A child is to be what `python -m ipykernel_launcher …` would have been, or nothing. So what an interpreter reads at its start is
either done again here (environment, folder, argv, `__main__`, seeds, limits), or is the same for the template and the kernel, or
the child says "cold" and ends. What takes time or may hang, such as looking at files and folders, is done by the child: the
template has to be there for the next one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import stat
import sys
from typing import Any, Callable, Dict, Iterable, List, Optional, Set, Tuple

MODULES = (
    "ipykernel.kernelapp",
    "ipykernel.debugger",
    "IPython.core.completerlib",
    "IPython.core.debugger",
    "IPython.core.logger",
    "IPython.core.oinspect",
    "IPython.extensions.storemagic",
    "tornado.platform.asyncio",
    "sqlite3",
    "faulthandler",
    "encodings.idna",
    "encodings.ascii",
    "encodings.latin_1",
    "pkgutil",
    "pydoc",
    "runpy",
)
"""What every ipykernel has imported before its first cell ends, as far as it is there."""
_LAUNCHER = "ipykernel_launcher"
_MOST_ENTRIES = 20_000
"""Entries of a folder that are looked at for modules that hide others."""
_SAID = 64 * 1024
"""Bytes of what the imports printed that each kernel's log begins with, as it would have printed it itself."""
_VARIABLE = re.compile(r"""(?:environ\.get\(|environ\[|getenv\()\s*["'](\w+)["']""")
_READS = re.compile(r"\b(environ|environb|getenv|getcwd|argv|orig_argv)\b")
_KNOWN = {
    "distutils-precedence.pth": ("SETUPTOOLS_USE_DISTUTILS",),
    "_distutils_hack": ("SETUPTOOLS_USE_DISTUTILS",),
    "apport_python_hook": (),  # Ubuntu's, which looks at them once a program has failed
}
"""What is run at the start of Python in many places, and the variables that it reads then."""
_PR_SET_MM, _PR_SET_MM_MAP = 35, 14
Stamp = Optional[Tuple[int, int, int]]


class Refused(Exception):
    """This process cannot be a template, or not for this kernel; the text says why."""


class Stale(Refused):
    """This process cannot be a template any more."""


class _Recorded(Dict[bytes, bytes]):
    """The environment while modules are imported, which notes what they ask it for."""

    def __init__(self, found: Dict[bytes, bytes]) -> None:
        super().__init__(found)
        self.reads: Set[bytes] = set()
        self.is_read_whole = False

    def __getitem__(self, name: bytes) -> bytes:
        self.reads.add(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        if isinstance(name, bytes):
            self.reads.add(name)
        return super().__contains__(name)

    def __iter__(self) -> Any:
        self.is_read_whole = True
        return super().__iter__()


class _Imports:
    """What the imports read, changed and printed: a kernel for which that is the same can do without importing."""

    def __init__(self, names: Iterable[str], preload: Iterable[str], has_lc_ctype: bool) -> None:
        own_data = _data()  # which the module `posix` has as well
        before = dict(own_data)
        self.reads = set(_read_before())
        recorded = _Recorded(before)
        self.reads_folder = False
        printed = os.memfd_create("imports")
        outputs = [os.dup(1), os.dup(2)]
        getcwd, getcwdb = os.getcwd, os.getcwdb

        def noted(function: Callable[[], Any]) -> Callable[[], Any]:
            def call() -> Any:
                if sys._getframe(1).f_globals.get("__name__") != "multiprocessing.process":  # see `_reseed`
                    self.reads_folder = True
                return function()

            return call

        os.dup2(printed, 1), os.dup2(printed, 2)
        _set_data(recorded)
        os.getcwd, os.getcwdb = noted(getcwd), noted(getcwdb)
        # A first __pycache__ in a folder would look as if that was changed while it was read.
        writes_no_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
        try:
            for name in names:
                _import(name, is_needed=name == "ipykernel.kernelapp")
            for name in preload:
                _import(name, is_needed=True)
        finally:
            sys.dont_write_bytecode = writes_no_bytecode
            os.getcwd, os.getcwdb = getcwd, getcwdb
            reads, is_read_whole = set(recorded.reads), recorded.is_read_whole  # before a copy reads all of it
            after = dict(recorded)
            own_data.clear()
            own_data.update(after)
            _set_data(own_data)
            sys.stdout.flush(), sys.stderr.flush()
            self.said = os.pread(printed, _SAID, 0)
            os.dup2(outputs[0], 1), os.dup2(outputs[1], 2)
            for descriptor in (printed, *outputs):
                os.close(descriptor)
        if is_read_whole:
            raise Refused("a module that it imports reads the whole environment")
        self.reads |= reads
        self.changed = {name: value for name, value in after.items() if before.get(name) != value}
        if not has_lc_ctype and b"LC_CTYPE" in before:  # Python's own, where the locale is C (PEP 538)
            self.changed[b"LC_CTYPE"] = after[b"LC_CTYPE"]
        self.removed = [name for name in before if name not in after]


def _data() -> Dict[bytes, bytes]:
    return os.environ._data  # type: ignore[attr-defined,no-any-return] # there is no other way to see who reads it


def _set_data(data: Dict[bytes, bytes]) -> None:
    os.environ._data = data  # type: ignore[attr-defined]
    os.environb._data = data  # type: ignore[attr-defined]


def _import(name: str, *, is_needed: bool) -> None:
    try:
        __import__(name)
    except Exception as error:  # whatever a module raises: a kernel would have it raised as well, when it imports it
        if is_needed:
            raise Refused("cannot import %s: %r" % (name, error)) from error


def _borrow(name: str) -> Any:
    """Return the module *name*, which a kernel need not have imported: then it has not."""
    is_new = name not in sys.modules
    module = __import__(name)
    if is_new:
        del sys.modules[name]
    return module


def _read_before() -> List[bytes]:
    """Return which variables were read before this text was run, by what a site has its interpreters do at their start.

    Raises Refused where that cannot be told. What the standard library reads then is known to the agent.
    """
    library = os.path.dirname(os.__file__) + os.sep
    texts = []
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if not path:
            continue
        own = path.startswith(library) and not path.startswith((library + "site-packages", library + "dist-packages"))
        if name not in _KNOWN and (not own or name in ("sitecustomize", "usercustomize")):
            texts.append((path, _text(path)))
    for path in _path_files():
        if os.path.basename(path) in _KNOWN:
            continue
        lines = _text(path).splitlines()
        texts.append((path, "\n".join(line for line in lines if line.startswith(("import ", "import\t")))))
    found = [os.fsencode(name) for names in _KNOWN.values() for name in names]
    for path, text in texts:
        names = _VARIABLE.findall(text)
        if len(names) < len(_READS.findall(text)):
            raise Refused("%s may read the environment, its folder or its arguments at the start of Python" % path)
        found += [os.fsencode(name) for name in names]
    return found


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError as error:
        raise Refused("cannot read %s: %s" % (path, error.strerror)) from error


def _path_files() -> List[str]:
    """Return the *.pth files of this interpreter."""
    found = []
    for folder in filter(_has_packages, sys.path):
        try:
            found += [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.endswith(".pth")]
        except OSError:
            continue
    return found


def _has_packages(folder: str) -> bool:
    return folder.endswith(("site-packages", "dist-packages"))


# -- what was imported, and whether it still is what would be imported ---------------------------------------------


def _stamp(path: str) -> Stamp:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class _Files:
    """All files that made this process what it is; a kernel that starts now has to find the same."""

    def __init__(self, since_ns: int, folders: Dict[str, Stamp]) -> None:
        self._loaded = {name for name in sys.modules if "." not in name} | {_LAUNCHER}
        self._origins = {name: getattr(sys.modules.get(name), "__file__", None) or "" for name in self._loaded}
        self._folders = folders
        self._hidden = {folder: self._hiding(folder) for folder in folders if not _has_packages(folder)}
        paths = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
        bin_folder = os.path.dirname(sys.executable)
        own = (os.path.realpath(sys.executable), sys.executable)
        homes = [os.path.join(each, "pyvenv.cfg") for each in (bin_folder, os.path.dirname(bin_folder))]
        paths |= {*own, *homes, *_path_files(), *_mapped(), *_SYSTEMS}
        self._stamps = {path: _stamp(path) for path in paths if path}
        fresh = [path for path, stamp in self._stamps.items() if stamp is not None and stamp[0] >= since_ns]
        if fresh or any(_stamp(folder) != stamp for folder, stamp in folders.items()):
            raise Refused("its packages were changed while it was made: %s" % (fresh or sys.path)[0])

    def check(self) -> None:
        """Raise Stale if something is not what it was when this process imported it."""
        for path, stamp in self._stamps.items():
            if _stamp(path) != stamp:
                raise Stale("%s has changed" % path)
        for folder, stamp in self._folders.items():
            if _stamp(folder) == stamp:
                continue
            if _has_packages(folder):
                raise Stale("%s has changed" % folder)
            if self._hiding(folder) != self._hidden[folder]:  # others are written to for many reasons
                raise Stale("modules in %s have changed" % folder)

    def check_folder(self, folder: str) -> None:
        """Raise Refused if *folder*, where the kernel starts, has a module of the name of one that came from elsewhere."""
        for name, file in _READ_THERE.items():
            if name in sys.modules and os.path.lexists(os.path.join(folder, file)):
                raise Refused("%s has a %s, which %s reads when it is imported" % (folder, file, name))
        hiding = self._hiding(folder)
        if hiding:
            raise Refused("%s has a module of its own by the name %s" % (folder, sorted(hiding)[0]))

    def _hiding(self, folder: str) -> Set[str]:
        """Return the names of modules in *folder* by which others were imported, or would be."""
        found: Set[str] = set()
        within = folder.rstrip(os.sep) + os.sep
        try:
            with os.scandir(folder) as entries:
                for number, entry in enumerate(entries):
                    if number > _MOST_ENTRIES:
                        raise Refused("%s has more than %d entries" % (folder, _MOST_ENTRIES))
                    name, dot, ending = entry.name.partition(".")
                    if name not in self._loaded or self._origins.get(name, "").startswith(within):
                        continue
                    inits = [] if dot else [os.path.join(entry.path, "__init__" + end) for end in _ENDINGS]
                    if ("." + ending).endswith(_ENDINGS) or any(map(os.path.exists, inits)):
                        found.add(name)
        except (FileNotFoundError, NotADirectoryError):
            pass  # of a path, an archive or nothing
        except OSError as error:
            raise Refused("cannot look into %s: %s" % (folder, error.strerror)) from error
        return found


_ENDINGS = (".py", ".pyc", ".so")
_READ_THERE = {"matplotlib": "matplotlibrc"}
"""Modules that read a file of the working folder while they are imported, without asking which folder that is."""
_SYSTEMS = ("/etc/localtime", "/etc/ld.so.cache", "/etc/ssl/openssl.cnf", "/etc/pki/tls/openssl.cnf")
"""What libraries read as they are loaded, if it is there."""


def _mapped() -> Set[str]:
    """Return the files that are mapped into this process: its libraries, the system's included. Raises Refused."""
    found = set()
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            _, slash, rest = line.rstrip("\n").partition("/")
            if slash and rest.endswith(" (deleted)"):
                if ".so" in rest:
                    raise Refused("/%s was replaced while it was loaded" % rest)
            elif slash:
                found.add(slash + rest)
    return found


def _check_process(channel: int) -> None:
    """Raise Refused if this process has what a fork cannot give to a child: threads, connections, loops."""
    child = os.fork()  # libraries with threads that know what a fork is, such as OpenBLAS, end them before
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    tasks = len(os.listdir("/proc/self/task"))
    if tasks > 1:
        raise Refused("what it imports has started %d threads" % (tasks - 1))
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != channel:
            try:
                raise Refused("what it imports has opened %s" % os.readlink("/proc/self/fd/" + name))
            except FileNotFoundError:  # the listing's own
                continue
    context = getattr(sys.modules.get("zmq"), "Context", None)
    if getattr(context, "_instance", None) is not None:
        raise Refused("what it imports has made a ZMQ context")


# -- a child becomes a kernel --------------------------------------------------------------------------------------


class _Birth:
    """What one child is to be; it came over *sock*, a socket of its own."""

    def __init__(self, sock: socket.socket, log: int) -> None:
        self._sock, self._log = sock, log

    def become(self, imports: _Imports, files: _Files) -> None:
        """Make this process what the agent asks for, or say why not, and end."""
        try:
            os.setsid()
            asked = self._read()
            os.chdir(asked["cwd"])
            files.check()
            files.check_folder(asked["cwd"])
            self._take(asked, imports)
            self._sock.sendall(b'{"ok": true}\n')
            if not self._sock.recv(1):  # given up: nobody would know of this kernel
                os._exit(1)
            self._sock.close()
        except BaseException as error:  # noqa: BLE001 - whatever it is: there is no kernel then, and the agent starts one cold
            why = str(error) if isinstance(error, Refused) else repr(error)
            try:
                self._sock.sendall(json.dumps({"cold": why, "stale": isinstance(error, Stale)}).encode() + b"\n")
            finally:
                os._exit(1)

    def _read(self) -> Dict[str, Any]:
        """Return what this child is to be; raises EOFError where the agent has given it up."""
        with self._sock.makefile("rb") as file:
            size = int(file.readline() or b"-1")
            body = file.read(size) if size >= 0 else b""
            if len(body) < size or size < 0:
                raise EOFError("the agent has given it up")
        asked: Dict[str, Any] = json.loads(body)
        return asked

    def _take(self, asked: Dict[str, Any], imports: _Imports) -> None:
        argv = [_bytes(word) for word in asked["argv"]]
        environment = {_bytes(name): _bytes(value) for name, value in asked["env"].items()}
        _show(argv, environment)  # what it began with, as others see it in /proc
        environment.update(imports.changed)
        for name in imports.removed:
            environment.pop(name, None)
        os.environb.clear()
        os.environb.update(environment)
        os.umask(asked["umask"])
        if asked["open_files"] >= 0:
            resource = _borrow("resource")
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (asked["open_files"], hard))
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor, number in ((nothing, 0), (self._log, 1), (self._log, 2)):
            os.dup2(descriptor, number)
        os.close(nothing)
        os.close(self._log)
        if imports.said:
            os.write(1, imports.said)
        words = [os.fsdecode(word) for word in argv]
        if hasattr(sys, "orig_argv"):
            sys.orig_argv = words
        sys.argv = ["-m", *words[words.index(_LAUNCHER) + 1 :]]
        if not getattr(sys.flags, "safe_path", sys.flags.isolated):
            sys.path.insert(0, os.getcwd())
        sys.path_importer_cache.clear()
        _reseed()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _reseed() -> None:
    """Give the child what must not be the same in two kernels. The module `random` does so itself."""
    mtrand = sys.modules.get("numpy.random")
    if mtrand is not None:
        mtrand.seed()
    process: Any = sys.modules.get("multiprocessing.process")
    if process is not None:
        process.current_process().authkey = os.urandom(32)
        process.ORIGINAL_DIR = os.getcwd()
    logging = sys.modules.get("logging")
    started = getattr(logging, "_startTime", None)
    if started is not None:
        import time

        logging._startTime = time.time_ns() if isinstance(started, int) else time.time()  # type: ignore[union-attr]
    import threading

    main = threading.main_thread()
    if main.native_id != threading.get_native_id():
        main._set_native_id()  # type: ignore[attr-defined] # some Pythons keep the parent's


def _show(argv: List[bytes], environment: Dict[bytes, bytes]) -> None:
    """Have /proc show this process with *argv* and *environment*, as if it had been executed with them; raises Refused.

    Operators, and tests, tell kernels by both.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
    words = b"".join(word + b"\0" for word in argv)
    variables = b"".join(name + b"=" + value + b"\0" for name, value in environment.items())
    block = libc.malloc(ctypes.c_size_t(len(words) + len(variables) + 1))  # for good
    ctypes.memmove(block, words + variables + b"\0", len(words) + len(variables) + 1)
    with open("/proc/self/stat", "rb") as file:
        fields: List[Any] = [0, 0, 0, *file.read().rpartition(b")")[2].split()]  # as proc(5) counts them
    code, end_code, stack, data, end_data, brk = (int(fields[number]) for number in (26, 27, 28, 45, 46, 47))
    middle, end = block + len(words), block + len(words) + len(variables)
    places = (code, end_code, data, end_data, brk, libc.sbrk(ctypes.c_ssize_t(0)), stack, block, middle, middle, end, 0)
    layout = (ctypes.c_uint64 * 13)(*places, 0xFFFFFFFF << 32)  # no auxiliary vector, and no other program
    given = [ctypes.c_ulong(_PR_SET_MM_MAP), layout, ctypes.c_ulong(ctypes.sizeof(layout)), ctypes.c_ulong(0)]
    if libc.prctl(_PR_SET_MM, *given) != 0:
        raise Refused("this system lets no process say its command line: %s" % os.strerror(ctypes.get_errno()))


# -- serving -------------------------------------------------------------------------------------------------------


class _Template:
    """This process, until it ends, or is a kernel's."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def prepare(self) -> bool:
        """Do what the agent wants to have done before the first fork, and tell how that went."""
        asked = json.loads(self._channel.recv(1 << 18))
        try:
            if sys.path and sys.path[0] == "":
                del sys.path[0]
            self._check_environment(asked)
            since = asked["since_ns"]
            folders = {folder: _stamp(folder) for folder in sys.path}
            self._imports = _Imports(MODULES, asked["preload"], asked["has_lc_ctype"])
            _check_process(self._channel.fileno())
            self._files = _Files(since, folders)
            _test_show()
        except Refused as error:
            self._say({"refused": str(error)})
            return False
        gc = _borrow("gc")
        gc.collect()
        gc.freeze()
        reads = [os.fsdecode(name) for name in sorted(self._imports.reads)]
        self._say({"reads": reads, "reads_folder": self._imports.reads_folder, "pid": os.getpid()})
        return True

    @staticmethod
    def _check_environment(asked: Dict[str, Any]) -> None:
        """Raise Refused if something between the agent and this interpreter has changed the environment."""
        import hashlib

        found = sorted(item for item in _data().items() if item[0] != b"LC_CTYPE")
        if hashlib.sha256(repr(found).encode()).hexdigest() != asked["environment"]:
            raise Refused("what starts its interpreter changes the environment")

    def _say(self, message: Dict[str, Any]) -> None:
        self._channel.sendall(json.dumps(message).encode())

    def serve(self) -> None:
        """Do as the agent says until it has gone; returns in a child alone, which is a kernel's process then."""
        space = socket.CMSG_SPACE(2 * 4)
        while True:
            message, ancillary, _, _ = self._channel.recvmsg(256, space)
            if not message:
                os._exit(0)
            words = message.split()
            if words[0] == b"fork":
                sock, log = memoryview(ancillary[0][2]).cast("i")
                if self._fork(sock, log):
                    return
            elif words[0] == b"code":
                self._say({"pid": int(words[1]), "code": _code(int(words[1]))})
            elif words[0] == b"reap":
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(int(words[1]), os.WNOHANG)

    def _fork(self, descriptor: int, log: int) -> bool:
        """Make a child, and return True in it once it is what it was to be."""
        sock = socket.socket(fileno=descriptor)
        try:
            child = os.fork()
        except OSError as error:
            sock.sendall(json.dumps({"cold": "cannot fork: %s" % error.strerror}).encode() + b"\n")
        else:
            if not child:
                self._channel.close()
                _Birth(sock, log).become(self._imports, self._files)
                return True
            with contextlib.suppress(OSError):  # the agent has given it up
                sock.sendall(b'{"pid": %d}\n' % child)
        sock.close()
        os.close(log)
        return False


def _code(pid: int) -> Optional[int]:
    """Return how the child *pid* has ended (-N for signal N), None if it has not; it stays a zombie."""
    try:
        status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    except ChildProcessError:
        return None
    if status is None:
        return None
    return status.si_status if status.si_code == os.CLD_EXITED else -status.si_status


def _test_show() -> None:
    """Raise Refused where `_show` does not work; in a child, whose command line nobody sees."""
    child = os.fork()
    if not child:
        try:
            _show([b"-"], {})
            os._exit(0)
        finally:
            os._exit(1)
    if os.waitpid(child, 0)[1]:
        raise Refused("this system lets no process say its command line")


def main(channel: int) -> None:
    """Be a template, and then a kernel."""
    if not stat.S_ISSOCK(os.fstat(channel).st_mode):
        os._exit(1)
    os.set_inheritable(channel, False)
    template = _Template(socket.socket(fileno=channel))
    if not template.prepare():
        os._exit(1)
    import runpy

    template.serve()
    # As at the start of an interpreter: without what ran this text.
    given = {name: value for name, value in vars(sys.modules["__main__"]).items() if name != "os"}
    sys.modules["__main__"] = type(sys)("__main__")
    vars(sys.modules["__main__"]).update(given)

    runpy._run_module_as_main(_LAUNCHER)  # type: ignore[attr-defined] # what `python -m` itself calls

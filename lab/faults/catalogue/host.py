"""Host faults: machines that hang, crash or run out of something, and their sshd; their disks are in disks.py."""

from __future__ import annotations

import json
from typing import Any, Final

from lab.drivers.capabilities import Capability
from lab.faults.catalogue.ssh import SYSTEM, dropin, openssh_only
from lab.faults.inside import source
from lab.faults.model import Context, FaultKind, Mechanism, Moves, Option, Step

PROCESSES: Final[frozenset[Capability]] = frozenset({"processes"})
LIMITS: Final[frozenset[Capability]] = frozenset({"limits"})

SUPERVISOR = "/opt/lab/supervise.sh"
DOWN = "/run/lab/sshd.down"
"""While it exists, a node's supervisor starts no sshd."""

RETURN: tuple[Step, ...] = (("!return",), ("@up",))


def _fixed(apply: tuple[Step, ...], undo: tuple[Step, ...] = ()) -> Any:
    return lambda _: Moves(apply, undo)


# -- limits of the machine -------------------------------------------------------------------------------------------------


def _memory(context: Context) -> Moves:
    size, now = context.options["megabytes"] << 20, context.node.limits()
    back = {"memory": now.memory, "swap": now.swap}
    return Moves((("!limits", json.dumps({"memory": size, "swap": size})),), (("!limits", json.dumps(back)),))


def _pids(context: Context) -> Moves:
    limits, back = {"pids": context.options["limit"]}, {"pids": context.node.limits().pids}
    return Moves((("!limits", json.dumps(limits)),), (("!limits", json.dumps(back)),))


def _pam(context: Context, item: str, value: int) -> Moves:
    """Limit what each new login may have; the file sorts behind others, since the last word counts."""
    path = f"/etc/security/limits.d/zz-{context.mark}.conf"
    return Moves((("@write", path, f"{context.user} - {item} {value}\n", "644"),), (("@remove", path),))


def _descriptors(context: Context) -> Moves:
    few = ("@descriptors", context.folder, context.options["of"], str(context.options["count"]))
    return Moves((few,), (("@descriptors-back", context.folder),))


def _only(whose: str) -> Any:
    return lambda context: "" if context.options["of"] == whose else f"`of` is not {whose}"


# -- time ------------------------------------------------------------------------------------------------------------------


def _clock(context: Context) -> Moves:
    program, note = f"{context.folder}/clock.py", f"{context.folder}/clock.json"
    seconds = f"{context.options['seconds']:g}"
    return Moves(
        (
            ("@write", program, source("clock"), "644"),
            ("@python", program, "jump", note, seconds, context.options["process"]),
        ),
        (("@python", program, "back", note),),
    )


def _stopped(context: Context) -> Moves:
    return Moves((("@stop-named", context.folder, context.options["process"]),), (("@continue-named", context.folder),))


def _killed(context: Context) -> Moves:
    return Moves((("@kill-named", context.options["process"], context.options["signal"]),), ())


def _process_named(context: Context) -> str:
    return "" if context.options["process"] else "the option `process` has to name one"


PROCESS = Option("process", "text", "", "part of its command line, or its pid; exactly one process has to match")

KINDS = (
    FaultKind(
        "pause",
        "host",
        "The whole machine hangs; its connections stay open.",
        "a login times out, and goes on once healed",
        (
            Mechanism(
                "cgroup freezer",
                _fixed((("!pause",),), (("!unpause",),)),
                claims=("state",),
                needs=frozenset({"freezer"}),
            ),
            Mechanism(
                "SIGSTOP to all processes",
                _fixed((("!pause",),), (("!unpause",),)),
                claims=("state",),
                needs=frozenset({"stop-signals"}),
            ),
        ),
    ),
    FaultKind(
        "kill",
        "host",
        "The machine crashes; when healed it is started again, with its disk and its address, without rules and programs of "
        "other faults.",
        "connections end, connects fail",
        (Mechanism("SIGKILL to all processes", _fixed((("!kill",),), RETURN), claims=("state",)),),
    ),
    FaultKind(
        "reboot",
        "host",
        "The machine crashes and starts at once, with its disk and its address, without rules and programs of other faults.",
        "sessions end, a login works again, processes are new",
        (Mechanism("SIGKILL, then a start", _fixed((("!kill",), *RETURN), RETURN)),),
        momentary=True,
    ),
    FaultKind(
        "sshd-stopped",
        "host",
        "Nothing listens for SSH; sessions live on.",
        "a connect is refused",
        (
            Mechanism(
                "sshd ended, its supervisor told to wait",
                _fixed(
                    (("@need", SUPERVISOR), ("@write", DOWN, "", "644"), ("@signal", "sshd", "TERM"), ("@down",)),
                    (("@remove", DOWN), ("@up",)),
                ),
                claims=("listener",),
                needs=frozenset({"sshd-supervised"}),
            ),
            Mechanism(
                "sshd moved to a loopback port",
                lambda c: dropin(c, "Port 1\nListenAddress 127.0.0.1", "silent"),
                claims=("listener",),
                needs=frozenset({"network"}),
                refuse=openssh_only,
            ),
            Mechanism(
                "SIGTERM to sshd",
                _fixed((("@signal", "sshd", "TERM"), ("!ended",)), RETURN),
                claims=("listener",),
                needs=frozenset({"sshd-main"}),
                refuse=openssh_only,
            ),
        ),
    ),
    FaultKind(
        "sshd-hung",
        "host",
        "sshd accepts connections and says nothing; sessions live on.",
        "a connect succeeds, no banner comes",
        (
            Mechanism(
                "SIGSTOP to the listening sshd",
                _fixed((("@signal", "sshd", "STOP"),), (("@signal", "sshd", "CONT"),)),
                claims=("listener",),
                refuse=openssh_only,
            ),
        ),
    ),
    FaultKind(
        "sessions-killed",
        "host",
        "The sshd processes of all sessions are killed; what runs in them may live on.",
        "open sessions end, a new login works",
        (
            Mechanism(
                "SIGKILL to sessions' sshd",
                _fixed((("@signal", "sessions", "KILL"),)),
                refuse=openssh_only,
            ),
        ),
        momentary=True,
    ),
    FaultKind(
        "out-of-memory",
        "host",
        "The machine has little memory; what asks for more is killed.",
        "a process that grows is killed",
        (
            Mechanism("engine's memory limit", _memory, claims=("memory",), needs=LIMITS),
            Mechanism(
                "pam_limits on address space",
                lambda c: _pam(c, "as", c.options["megabytes"] << 10),
                claims=("memory",),
                needs=SYSTEM,
                logins=True,
            ),
        ),
        (Option("megabytes", "integer", 192, "memory that the whole machine has", 16, 1 << 20),),
    ),
    FaultKind(
        "out-of-pids",
        "host",
        "No process can be started.",
        "a login fails, since sshd can't fork",
        (
            Mechanism("engine's limit of processes", _pids, claims=("pids",), needs=LIMITS),
            Mechanism(
                "pam_limits on processes",
                lambda c: _pam(c, "nproc", c.options["limit"]),
                claims=("pids",),
                needs=SYSTEM,
                logins=True,
            ),
        ),
        (Option("limit", "integer", 1, "processes and threads that the machine may have", 1, 1 << 20),),
    ),
    FaultKind(
        "out-of-fds",
        "host",
        "New logins can open few files.",
        "opening a file in a login fails with EMFILE",
        (
            Mechanism(
                "pam_limits on open files",
                lambda c: _pam(c, "nofile", c.options["count"]),
                claims=("nofile",),
                needs=SYSTEM,
                logins=True,
            ),
        ),
        (Option("count", "integer", 16, "files that each process may have open", 3, 1 << 20),),
    ),
    FaultKind(
        "sshd-out-of-fds",
        "host",
        "sshd itself can open no more files: the one that listens, or those of the sessions that are open.",
        "a connect succeeds, no banner comes; or an open session takes no further channel",
        (
            Mechanism(
                "prlimit of the listening sshd",
                _descriptors,
                claims=("sshd-nofile",),
                needs=PROCESSES,
                refuse=_only("listener"),
            ),
            Mechanism(
                "prlimit of the sessions' sshd",
                _descriptors,
                elevated=True,
                claims=("sshd-nofile",),
                needs=PROCESSES,
                refuse=_only("sessions"),
            ),
        ),
        (
            Option("count", "integer", 3, "files that it may have open; a session keeps those that it has", 3, 1 << 20),
            Option("of", "text", "listener", "whose they are", choices=("listener", "sessions")),
        ),
    ),
    FaultKind(
        "process-stopped",
        "host",
        "One process hangs; what else runs there goes on.",
        "it does nothing, and goes on once healed",
        (Mechanism("SIGSTOP", _stopped, needs=PROCESSES, refuse=_process_named),),
        (PROCESS,),
    ),
    FaultKind(
        "process-killed",
        "host",
        "One process is killed.",
        "it is gone",
        (Mechanism("a signal", _killed, needs=PROCESSES, refuse=_process_named),),
        (PROCESS, Option("signal", "text", "KILL", "which", choices=("KILL", "TERM", "INT", "SEGV"))),
        momentary=True,
    ),
    FaultKind(
        "clock-jump",
        "host",
        "One running process sees another time of day.",
        "what it prints as its time is off by that much, the machine's is not",
        (
            Mechanism(
                "vDSO replaced in the process",
                _clock,
                elevated=True,
                claims=("clock",),
                needs=PROCESSES,
                refuse=_process_named,
            ),
        ),
        (
            PROCESS,
            Option("seconds", "number", 3600.0, "how far ahead; below 0: behind", -(10**9), 10**9),
        ),
    ),
)

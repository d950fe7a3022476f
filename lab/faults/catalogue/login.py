"""Hostile logins: machines on which a command over SSH is not just a command. One fault each, and `hostile` for all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from lab.faults.catalogue.disks import MOUNTS, slowed
from lab.faults.catalogue.ssh import SYSTEM, dropin, openssh_only
from lab.faults.model import Context, FaultKind, Mechanism, Moves, Option

PYTHON = "/usr/bin/python3"
TEXT = "Authorised use only! Quota 93% used."
RC = (".bashrc", ".cshrc", ".config/fish/config.fish")
"""What bash, csh and fish read for a command over SSH. One line of `echo`, `sleep` or `umask` is the same to all three."""


def rc(context: Context, line: str) -> Moves:
    """Put *line* at the top of what shells read, above the place where they return when nobody is interactive."""
    files = [f"{context.home}/{name}" for name in RC]
    return Moves(
        tuple(("@block", path, context.mark, line, context.user) for path in files),
        tuple(("@unblock", path, context.mark) for path in files),
    )


def _banner(context: Context) -> Moves:
    path = f"{context.folder}/banner"
    lines = "\n".join([f"*** {TEXT} ***"] * context.options["lines"])
    return Moves((("@write", path, f"{lines}\n", "644"),), ()) + dropin(context, f"Banner {path}")


def _motd(context: Context) -> Moves:
    text = "\n".join(f"Welcome to the noisy cluster! {TEXT}" for _ in range(context.options["lines"]))
    return Moves((("@block", "/etc/motd", context.mark, text),), (("@unblock", "/etc/motd", context.mark),))


def _noise(context: Context) -> Moves:
    return rc(context, "\n".join([f"echo 'noisy start-up file: {TEXT}'"] * context.options["lines"]))


def _shell(path: str) -> Callable[[Context], Moves]:
    def moves(context: Context) -> Moves:
        user, folder = context.user, context.folder
        return Moves((("@login-shell", user, path, folder),), (("@login-shell-back", user, folder),))

    return moves


def _forced(context: Context) -> Moves:
    path = f"{context.folder}/forced"
    body = "echo 'This account runs no commands.' >&2\nexit 1\n"
    if context.options["mode"] == "wrap":
        body = 'exec "${SHELL:-/bin/sh}" ${SSH_ORIGINAL_COMMAND:+-c "$SSH_ORIGINAL_COMMAND"}\n'
    script = f"#!/bin/sh\n# {context.mark}\n{body}"
    return Moves((("@write", path, script, "755"),), ()) + dropin(context, f"ForceCommand {path}")


def _no_python(context: Context) -> Moves:
    return Moves((("@aside", PYTHON, context.mark),), (("@back", PYTHON, context.mark),))


def _old_python(context: Context) -> Moves:
    old = f"python{context.options['version']}"
    link = (("@need", f"/usr/bin/{old}"), ("ln", "-s", old, PYTHON))
    moves = _no_python(context)
    return Moves((link[0], *moves.apply, link[1]), moves.undo)


def _standin_python(context: Context) -> Moves:
    version = context.options["version"]
    lines = [
        "#!/bin/sh",
        f'case "$1" in -V|--version) echo "Python {version}.18"; exit 0 ;; esac',
        'echo "SyntaxError: invalid syntax" >&2',
        "exit 1",
    ]
    moves = _no_python(context)
    return Moves((*moves.apply, ("@write", PYTHON, "\n".join([*lines, ""]), "755")), moves.undo)


def _wrapped_python(context: Context) -> Moves:
    redirect = "" if context.options["prints_to"] == "stdout" else " >&2"
    script = f"#!/bin/sh\necho 'module python/3 is loaded'{redirect}\nexec {PYTHON}.{context.mark} \"$@\"\n"
    moves = _no_python(context)
    return Moves((*moves.apply, ("@write", PYTHON, script, "755")), moves.undo)


def _umask(context: Context) -> Moves:
    return rc(context, f"umask {context.options['value']}")


def _slow_home(context: Context) -> Moves:
    return slowed(context, context.home, context.options["milliseconds"] / 1000)


def _environment(context: Context) -> Moves:
    path = "/etc/environment"
    return Moves(
        (("@environment", path, context.mark, str(context.options["kib"])),), (("@unblock", path, context.mark),)
    )


LINES = Option("lines", "integer", 3, "how many", 1, 1000)
SLOW = Option("seconds", "seconds", 2.0, "how long each shell takes to start", 0, 600)
VALUE = Option("value", "text", "077", "the mask", choices=("077", "000", "027", "002"))
WRAPPER = Option("prints_to", "text", "stderr", "where the wrapper says something", choices=("stderr", "stdout"))
MODE = Option(
    "mode", "text", "wrap", "run the command through the forced one, or refuse it", choices=("wrap", "refuse")
)
KIB = Option("kib", "integer", 100, "KiB of variables", 1, 1024)
DISK = Option("milliseconds", "number", 20.0, "for each file that is opened, each read from it", 0, 10_000)


def _startup(name: str, summary: str, shows: str, moves: Callable[[Context], Moves], *options: Option) -> FaultKind:
    mechanism = Mechanism("lines in shells' start-up files", moves, refuse=openssh_only)
    return FaultKind(name, "login", summary, shows, (mechanism,), options)


def _other_shell(name: str, path: str, what: str) -> FaultKind:
    mechanism = Mechanism(f"usermod --shell {path}", _shell(path), claims=("shell",), needs=SYSTEM)
    return FaultKind(name, "login", f"The login shell is {what}.", "a command is read by that shell", (mechanism,))


PARTS = (
    FaultKind(
        "noisy-banner",
        "login",
        "sshd shows a banner before the login.",
        "ssh prints it to stderr",
        (Mechanism("Banner", _banner, claims=("Banner",), refuse=openssh_only),),
        (LINES,),
    ),
    FaultKind(
        "noisy-motd",
        "login",
        "A message of the day.",
        "an interactive login prints it",
        (Mechanism("/etc/motd", _motd, needs=SYSTEM),),
        (LINES,),
    ),
    _startup("noisy-rc", "Shells' start-up files print.", "a command's output begins with it", _noise, LINES),
    _startup(
        "slow-shell",
        "Every shell takes its time to start.",
        "a command takes that much longer",
        lambda c: rc(c, f"sleep {c.options['seconds']:g}"),
        SLOW,
    ),
    _other_shell("csh", "/bin/tcsh", "a C shell"),
    FaultKind(
        "force-command",
        "login",
        "sshd runs a command of its own, whatever was asked for.",
        "a command runs inside another one, or not at all",
        (Mechanism("ForceCommand", _forced, claims=("ForceCommand",), refuse=openssh_only),),
        (MODE,),
    ),
    FaultKind(
        "python-wrapper",
        "login",
        "`python3` is a script around the real one, and says something first.",
        "running it prints that line",
        (Mechanism("script in its place", _wrapped_python, claims=("python3",), needs=SYSTEM),),
        (WRAPPER,),
    ),
    _startup("umask", "Another umask.", "a file that is made has other permissions", _umask, VALUE),
    FaultKind(
        "big-environment",
        "login",
        "Every login has much in its environment.",
        "`env` prints that much",
        (Mechanism("pam_env's /etc/environment", _environment, needs=SYSTEM),),
        (KIB,),
    ),
    FaultKind(
        "slow-home",
        "login",
        "The home is on a slow disk: each file that is opened or read waits.",
        "reading files takes that much longer",
        (Mechanism("fanotify permission events", _slow_home, elevated=True, claims=("mounts",), needs=MOUNTS),),
        (DISK,),
    ),
)

_HOSTILE = (LINES, SLOW, MODE, WRAPPER, VALUE, KIB, DISK)


def _all(*names: str) -> Callable[[Context], Moves]:
    """Return what does all parts but *names*, each with a mark and a folder of its own."""

    def moves(context: Context) -> Moves:
        total = Moves((), ())
        for part in PARTS:
            if part.name not in names:
                own = dataclasses.replace(context, fault=f"{context.fault}-{part.name}")
                total += Moves((), (("@remove", own.folder),)) + part.mechanisms[0].moves(own)
        return total

    return moves


_CLAIMS = tuple(dict.fromkeys(claim for part in PARTS for claim in part.mechanisms[0].claims))

KINDS = (
    *PARTS,
    _other_shell("fish", "/usr/bin/fish", "fish"),
    _other_shell("restricted-shell", "/bin/rbash", "a restricted bash: no path in a command's name, no cd"),
    FaultKind(
        "python-old",
        "login",
        "`python3` is an old one.",
        "its version",
        (
            Mechanism("link to an older Python", _old_python, claims=("python3",), needs=SYSTEM),
            Mechanism("stand-in that knows its version only", _standin_python, claims=("python3",), needs=SYSTEM),
        ),
        (Option("version", "text", "3.9", "which", choices=("3.9", "3.8", "3.6", "2.7")),),
    ),
    FaultKind(
        "python-missing",
        "login",
        "There is no `python3`.",
        "the command is not found",
        (Mechanism("moved aside", _no_python, claims=("python3",), needs=SYSTEM),),
    ),
    FaultKind(
        "hostile",
        "login",
        "All of the above that can be had at once: noise, a slow csh, ForceCommand, a wrapper, a umask, a slow home.",
        "each of them",
        (
            Mechanism("all hostile logins", _all(), elevated=True, claims=_CLAIMS, needs=SYSTEM | MOUNTS),
            Mechanism("all hostile logins but the slow home", _all("slow-home"), claims=_CLAIMS, needs=SYSTEM),
        ),
        _HOSTILE,
    ),
)

"""Our own reader of ssh_config, for machines without `ssh`; where there is one, `ssh -G` reads it (see ask.py).

It follows OpenSSH's readconf.c: the first value of a keyword wins, but for identities, certificates and SendEnv, which add up.
It is lenient where ssh refuses a file: an unknown keyword or a value that is no value is passed over and noted.
"""

from __future__ import annotations

import glob
import os
import pwd
import re
import signal
import socket
import subprocess
from dataclasses import dataclass, field
from fnmatch import translate
from functools import lru_cache
from pathlib import Path

from .algorithms import DEFAULTS, choose
from .tokens import Unexpandable, expand_path, expand_tilde, expand_tokens, expand_variables, home_folder, host_tokens

__all__ = ["Reading", "Values", "read_files"]

Values = dict[str, list[str]]
"""For each keyword in lower case its values, as `ssh -G` prints them."""

_SYSTEM = "/etc/ssh/ssh_config"
_MOST_INCLUDED = 16
"""Files that include each other, at most: OpenSSH's own limit."""
_EXEC_SECONDS = 10.0
"""For a command of `Match exec`; ssh waits for ever, and so would everybody else."""
_IDENTITIES = ("id_rsa", "id_ecdsa", "id_ecdsa_sk", "id_ed25519", "id_ed25519_sk", "id_xmss", "id_dsa")
_LISTS = frozenset({"identityfile", "certificatefile", "sendenv"})
_LINES = frozenset({"proxycommand", "knownhostscommand", "remotecommand", "localcommand"})
"""Keywords whose value is the rest of the line as it stands."""
_WORDS = frozenset(
    {"userknownhostsfile", "globalknownhostsfile", "setenv", "canonicaldomains", "rekeylimit", "revokedhostkeys"}
)
"""Keywords that take several words."""
_TIMES = frozenset({"connecttimeout", "serveraliveinterval"})
_FLAGS = {
    "pubkeyauthentication": ("yes", "no", "unbound", "host-bound"),
    "passwordauthentication": ("yes", "no"),
    "kbdinteractiveauthentication": ("yes", "no"),
    "hostbasedauthentication": ("yes", "no"),
    "gssapiauthentication": ("yes", "no"),
    "gssapidelegatecredentials": ("yes", "no"),
    "identitiesonly": ("yes", "no"),
    "compression": ("yes", "no"),
    "tcpkeepalive": ("yes", "no"),
    "proxyusefdpass": ("yes", "no"),
    "addressfamily": ("any", "inet", "inet6"),
    "canonicalizehostname": ("yes", "no", "always", "none"),
    "canonicalizefallbacklocal": ("yes", "no"),
}
_NUMBERS = frozenset({"serveralivecountmax", "requiredrsasize", "canonicalizemaxdots"})
_STRINGS = frozenset(
    {
        *("hostname", "user", "hostkeyalias", "identityagent", "pkcs11provider", "bindaddress"),
        *("bindinterface", "preferredauthentications", "tag"),
    }
)
_ALIASES = {
    "challengeresponseauthentication": "kbdinteractiveauthentication",
    "skeyauthentication": "kbdinteractiveauthentication",
    "tisauthentication": "kbdinteractiveauthentication",
    "dsaauthentication": "pubkeyauthentication",
    "identityfile2": "identityfile",
    "keepalive": "tcpkeepalive",
    "pubkeyacceptedkeytypes": "pubkeyacceptedalgorithms",
    "smartcarddevice": "pkcs11provider",
}
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


class _Invalid(ValueError):
    """A line that says nothing that could be used."""


@dataclass
class Reading:
    """What was found for one host: `values`, and in `notes` what was passed over, by file and line."""

    values: Values = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_files(host: str, file: str = "", user: str = "", port: int = 0) -> Reading:
    """Return what *file* says of *host*, or ~/.ssh/config and /etc/ssh/ssh_config where no file is named.

    *user* and *port* are those that were given beside it, as by `ssh -l` and `-p`: they win. Raises OSError for a named file
    that can't be read. Reads files, runs the commands of `Match exec`, and looks names up for CanonicalizeHostname: call it in
    a thread.
    """
    return _Reader(host, file, user, port).read()


class _Reader:
    """One reading: one host, two passes at the most."""

    def __init__(self, host: str, file: str, user: str, port: int) -> None:
        self._original = host
        self._host = host
        self._file = file
        self._found: Values = {}
        self._notes: list[str] = []
        self._final = False
        self._wants_final = False
        if user:
            self._found["user"] = [user]
        if port:
            self._found["port"] = [str(port)]

    def read(self) -> Reading:
        self._pass()
        canonical = self._canonical_name()
        if canonical or self._wants_final:
            self._host = canonical or self._hostname()
            self._found["hostname"] = [self._host.replace("%", "%%")]
            self._final = True
            self._pass()
        return Reading(self._with_defaults(), list(dict.fromkeys(self._notes)))

    def _pass(self) -> None:
        if self._file:
            self._read(Path(expand_tilde(self._file)), Path(home_folder(), ".ssh"), depth=0, required=True)
        else:
            self._read(Path(home_folder(), ".ssh/config"), Path(home_folder(), ".ssh"), depth=0)
            self._read(Path(_SYSTEM), Path(_SYSTEM).parent, depth=0)

    def _read(self, path: Path, folder: Path, depth: int, *, required: bool = False) -> None:
        """Take the lines of *path*; *folder* is where relative names of Include are looked for."""
        try:
            # Comments may be in any encoding, and names of files in the file system's.
            text = path.read_bytes().decode("utf-8", "surrogateescape")
        except OSError as error:
            if required:
                raise
            if not isinstance(error, FileNotFoundError):
                self._notes.append(f"{path} is passed over: {error.strerror}")
            return
        active = True
        for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
            where = f"{path} line {number}"
            keyword, rest = _split_keyword(line)
            if not keyword:
                continue
            try:
                if keyword == "host":
                    active = self._matches_host(_split_words(rest))
                elif keyword == "match":
                    active = self._matches(_split_words(rest))
                elif keyword == "include":
                    if active:
                        self._include(_split_words(rest), folder, depth)
                else:
                    self._take(keyword, rest, active=active)
            except (_Invalid, Unexpandable) as error:
                self._notes.append(f"{where} is passed over: {error}")
                if keyword in ("host", "match"):
                    active = False

    def _include(self, names: list[str], folder: Path, depth: int) -> None:
        if depth >= _MOST_INCLUDED:
            raise _Invalid("too many files include each other")
        for name in names:
            pattern = expand_variables(expand_tilde(expand_tokens(name, self._tokens()) if "%" in name else name))
            # Sorted, as glob(3) does it, and without hidden files, as both do; Path.glob takes no absolute pattern.
            for found in sorted(glob.glob(str(folder / pattern))):  # noqa: PTH207
                self._read(Path(found), folder, depth + 1)

    # -- blocks ------------------------------------------------------------------------------------------------

    def _matches_host(self, patterns: list[str]) -> bool:
        if not patterns:
            raise _Invalid("Host has no pattern")
        name, matched = self._host, False
        for pattern in patterns:
            if pattern.startswith("!"):
                if _matches(name, pattern[1:]):
                    return False
            elif _matches(name, pattern):
                matched = True
        return matched

    def _matches(self, words: list[str]) -> bool:
        """Return True if all criteria of a Match line hold."""
        if not words:
            raise _Invalid("Match has no criterion")
        result, rest = True, list(words)
        while rest:
            word = rest.pop(0)
            negated, word = word.startswith("!"), word.removeprefix("!")
            name, equals, value = word.partition("=")
            name = name.lower()
            if name == "all":
                return result and not negated
            if name in ("canonical", "final"):
                self._wants_final |= name == "final" and not negated
                holds = self._final
            else:
                if not equals:
                    if not rest:
                        raise _Invalid(f"Match {name} has no value")
                    value = rest.pop(0)
                holds = self._criterion(name, value, needed=result)
            result = result and holds != negated
        return result

    def _criterion(self, name: str, value: str, *, needed: bool) -> bool:
        local = _local_user()
        if name == "host":
            return _matches_list(self._hostname().lower(), value.lower())
        if name == "originalhost":
            return _matches_list(self._original.lower(), value.lower())
        if name == "user":
            return _matches_list(self._first("user") or local, value)
        if name == "localuser":
            return _matches_list(local, value)
        if name in ("tagged", "command"):
            said = self._first("tag") if name == "tagged" else ""
            return _matches_list(said, value) if said else not value
        if name == "sessiontype":
            return _matches_list("exec", value)
        if name == "exec":
            return needed and _succeeds(expand_tokens(value, self._tokens()))
        raise _Invalid(f"Match {name} is not supported without ssh on this machine")

    # -- values ------------------------------------------------------------------------------------------------

    def _take(self, keyword: str, rest: str, *, active: bool) -> None:
        """Remember the value of *keyword* if it counts; raises _Invalid for a value that is none."""
        keyword = _ALIASES.get(keyword, keyword)
        if keyword in _LINES:
            line = rest.lstrip(" \t=")
            if active and not (keyword == "proxycommand" and "proxyjump" in self._found):
                self._found.setdefault(keyword, [line])
            return
        if keyword == "proxyjump":
            value = " ".join(_split_words(rest.lstrip(" \t=")))
            if active and "proxycommand" not in self._found:
                self._found.setdefault(keyword, [value])
            return
        words = _split_words(rest)
        if not words:
            raise _Invalid(f"{keyword} has no value")
        said = self._value(keyword, words)
        if said is None or not active:
            return
        if keyword in _LISTS:
            known = self._found.setdefault(keyword, [])
            known.extend(each for each in (words if keyword == "sendenv" else [said]) if each not in known)
        else:
            self._found.setdefault(keyword, [said])

    def _value(self, keyword: str, words: list[str]) -> str | None:
        """Return the value in the form of `ssh -G`, None for a keyword that logins don't use."""
        first = words[0]
        if keyword in _FLAGS:
            said = {"true": "yes", "false": "no"}.get(first.lower(), first.lower())
            if said not in _FLAGS[keyword]:
                raise _Invalid(f"{keyword} {first} is unknown")
            return said
        if keyword in _TIMES:
            return "none" if first == "none" else str(_seconds(first))
        if keyword == "port":
            return str(_port(first))
        if keyword in DEFAULTS:
            return choose(keyword, first)
        if keyword in _NUMBERS:
            if not first.isdigit():
                raise _Invalid(f"{keyword} {first} is not a number")
            return first
        if keyword == "hostkeyalias":
            return first.lower()
        if keyword == "rekeylimit" and len(words) > 1:
            return f"{first}\t{0 if words[1] == 'none' else _seconds(words[1])}"
        if keyword in _WORDS:
            # A tab stands between words, since names of files may have blanks; `ssh -G` prints a blank, and leaves it open.
            return "\t".join(words)
        return first if keyword in _STRINGS or keyword in _LISTS else None

    def _first(self, keyword: str) -> str:
        return self._found.get(keyword, [""])[0]

    def _hostname(self) -> str:
        said = self._first("hostname")
        return expand_tokens(said, {"h": self._original}) if said else self._host

    def _tokens(self) -> dict[str, str]:
        local, jump = _local_user(), self._first("proxyjump")
        return host_tokens(
            self._original,
            self._hostname(),
            self._first("port") or "22",
            self._first("user") or local,
            self._first("hostkeyalias"),
            "" if jump == "none" else jump,
            local=local,
        )

    def _canonical_name(self) -> str:
        """Return the canonical name of the host where CanonicalizeHostname asks for it and one is found, else nothing."""
        said = self._first("canonicalizehostname")
        host = self._hostname()
        if said not in ("yes", "always"):
            return ""
        if said == "yes" and (self._is_set("proxycommand") or self._is_set("proxyjump")):
            return ""
        dots = int(self._first("canonicalizemaxdots") or 1)
        if host.count(".") > dots or re.fullmatch(r"[0-9.]+|.*:.*", host):
            return host
        for domain in self._first("canonicaldomains").split():
            try:
                socket.getaddrinfo(f"{host}.{domain}", None)
            except OSError:
                continue
            return f"{host}.{domain}".lower()
        if self._first("canonicalizefallbacklocal") == "no":
            self._notes.append(f"{host} is in none of CanonicalDomains")
        return host

    def _is_set(self, keyword: str) -> bool:
        return self._first(keyword) not in ("", "none")

    def _with_defaults(self) -> Values:
        found = {keyword: list(values) for keyword, values in self._found.items()}
        host = self._hostname() if "hostname" in found else self._host.lower()
        found["hostname"] = [host.lower()]
        found.setdefault("user", [_local_user()])
        found.setdefault("port", ["22"])
        found.setdefault("identityfile", [f"~/.ssh/{name}" for name in _IDENTITIES])
        found.setdefault("userknownhostsfile", ["~/.ssh/known_hosts\t~/.ssh/known_hosts2"])
        found.setdefault("globalknownhostsfile", ["/etc/ssh/ssh_known_hosts\t/etc/ssh/ssh_known_hosts2"])
        tokens = {**self._tokens(), "h": host, "k": self._first("hostkeyalias") or self._original}
        for keyword in ("userknownhostsfile", "identityagent"):  # those that `ssh -G` expands as well
            if keyword in found:
                found[keyword] = ["\t".join(self._expanded(keyword, found[keyword][0], tokens))]
        for keyword, names in DEFAULTS.items():
            found.setdefault(keyword, [",".join(names)])
        return found

    def _expanded(self, keyword: str, value: str, tokens: dict[str, str]) -> list[str]:
        """Return the words of *value* expanded, without those that can't be."""
        words = []
        for word in value.split("\t"):
            is_name = keyword == "identityagent" and (word == "SSH_AUTH_SOCK" or re.match(r"\$[^{]", word))
            try:
                words.append(word if is_name or word.lower() == "none" else expand_path(word, tokens))
            except Unexpandable as error:
                self._notes.append(f"{keyword}: {error}")
        return words


# -- words and patterns --------------------------------------------------------------------------------------------


def _split_keyword(line: str) -> tuple[str, str]:
    """Return the keyword of *line* in lower case, and the rest; nothing for an empty line or a comment."""
    line = line.strip(" \t\r\n\f")
    if not line or line[0] == "#":
        return "", ""
    found = re.match(r'"([^"]*)"[ \t]*|([^ \t="]+)[ \t]*', line)
    if found is None:
        return "", ""
    rest = line[found.end() :]
    return (found[1] or found[2] or "").lower(), re.sub(r"^=[ \t]*", "", rest)


def _split_words(text: str) -> list[str]:
    """Split as OpenSSH's argv_split does: quotes of both kinds, few escapes, a comment ends the line; raises _Invalid."""
    words: list[str] = []
    index, end = 0, len(text)
    while index < end:
        if text[index] in " \t\r":
            index += 1
            continue
        if text[index] == "#":
            break
        word, quote = "", ""
        while index < end:
            char = text[index]
            if (
                char == "\\"
                and index + 1 < end
                and (text[index + 1] in "'\"\\" or (not quote and text[index + 1] == " "))
            ):
                index += 1
                word += text[index]
            elif not quote and char in " \t":
                break
            elif not quote and char in "'\"":
                quote = char
            elif quote and char == quote:
                quote = ""
            else:
                word += char
            index += 1
        if quote:
            raise _Invalid("a quote is not closed")
        words.append(word)
    return words


@lru_cache(maxsize=4096)
def _pattern(pattern: str) -> re.Pattern[str]:
    # Only * and ? mean anything to OpenSSH; fnmatch knows [] as well.
    return re.compile(translate(pattern.replace("[", "[[]")))


def _matches(name: str, pattern: str) -> bool:
    return _pattern(pattern).match(name) is not None


def _matches_list(name: str, patterns: str) -> bool:
    """Return True if one of the comma-separated *patterns* matches, and none of those behind a `!`."""
    matched = False
    for pattern in patterns.split(","):
        if pattern.startswith("!"):
            if _matches(name, pattern[1:]):
                return False
        elif _matches(name, pattern):
            matched = True
    return matched


def _seconds(text: str) -> int:
    """Return the seconds of `90`, `10s` or `1m30s`; raises _Invalid."""
    if not re.fullmatch(r"(\d+[smhdwSMHDW]?)+", text):
        raise _Invalid(f"{text} is not a time")
    return sum(int(number) * _UNITS[unit.lower()] for number, unit in re.findall(r"(\d+)([a-zA-Z]?)", text))


def _port(text: str) -> int:
    """Return a port by number or by the name of its service; raises _Invalid."""
    try:
        port = int(text) if text.isdigit() else socket.getservbyname(text, "tcp")
    except OSError:
        port = 0
    if not 0 < port < 65536:
        raise _Invalid(f"{text} is not a port")
    return port


def _local_user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return os.environ.get("LOGNAME") or os.environ.get("USER") or str(os.getuid())


def _succeeds(command: str) -> bool:
    """Return True if *command* of `Match exec` ends with 0; by the user's shell, as ssh runs it, and with a deadline."""
    shell = os.environ.get("SHELL") or "/bin/sh"
    process = subprocess.Popen(
        (shell, "-c", command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return process.wait(_EXEC_SECONDS) == 0
    except subprocess.TimeoutExpired:
        raise _Invalid(f"the command of Match exec took longer than {_EXEC_SECONDS:g} s: {command}") from None
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

"""Our own reader of ssh_config, for machines without `ssh`; where there is one, `ssh -G` reads it (see ask.py).

It follows OpenSSH's readconf.c: the first value of a keyword wins, but for identities, certificates and SendEnv, which add up.
It is lenient where ssh refuses a file: an unknown keyword or a value that is no value is passed over and noted.
"""

from __future__ import annotations

import glob
import grp
import os
import pwd
import re
import stat
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from eg_distributed.link.groups import end_group

from .algorithms import DEFAULTS, choose
from .jumps import print_jump
from .names import Canonicalization, canonical_address, check_host, check_user
from .numbers import parse_number, parse_port, parse_size, parse_time
from .tokens import (
    Unexpandable,
    expand_path,
    expand_tilde,
    expand_tokens,
    expand_variables,
    home_folder,
    host_tokens,
    own_user,
)
from .words import Invalid, lower, matches, matches_list, matches_one, split_keyword, split_words

__all__ = ["Reading", "Values", "read_files"]

Values = dict[str, list[str]]
"""For each keyword in lower case its values, as `ssh -G` prints them."""

_SYSTEM = "/etc/ssh/ssh_config"
_MOST_INCLUDED = 16
"""Files that include each other, at most: OpenSSH's own limit."""
_EXEC_SECONDS = 10.0
"""For a command of `Match exec`; ssh waits for ever, and so would everybody else."""
_IDENTITIES = ("id_rsa", "id_ecdsa", "id_ecdsa_sk", "id_ed25519", "id_ed25519_sk", "id_xmss", "id_dsa")
_LISTS = frozenset({"identityfile", "certificatefile"})
"""Keywords that add up."""
_MOST_LISTED = 100
"""Keys, and certificates, that ssh takes."""
_LINES = frozenset({"proxycommand", "knownhostscommand", "remotecommand", "localcommand"})
"""Keywords whose value is the rest of the line as it stands."""
_FILES = frozenset({"userknownhostsfile", "globalknownhostsfile", "revokedhostkeys"})
"""Keywords that take several files, or `none` alone."""
_MOST_FILES = 32
_TIMES = frozenset({"connecttimeout", "serveraliveinterval"})
_FLAGS = {
    "pubkeyauthentication": ("yes", "no", "unbound", "host-bound"),
    "passwordauthentication": ("yes", "no"),
    "kbdinteractiveauthentication": ("yes", "no"),
    "hostbasedauthentication": ("yes", "no"),
    "checkhostip": ("yes", "no"),
    "nohostauthenticationforlocalhost": ("yes", "no"),
    "stricthostkeychecking": ("yes", "no", "off", "ask", "accept-new"),
    "verifyhostkeydns": ("yes", "no", "ask"),
    "gssapiauthentication": ("yes", "no"),
    "gssapidelegatecredentials": ("yes", "no"),
    "identitiesonly": ("yes", "no"),
    "compression": ("yes", "no"),
    "tcpkeepalive": ("yes", "no"),
    "proxyusefdpass": ("yes", "no"),
    "addressfamily": ("any", "inet", "inet6"),
    "canonicalizehostname": ("yes", "no", "always"),
    "canonicalizefallbacklocal": ("yes", "no"),
}
_WORDED = frozenset({"compression", "addressfamily"})
"""Flags that can't be said as `true` and `false`."""
_NUMBERS = frozenset({"serveralivecountmax", "requiredrsasize", "canonicalizemaxdots"})
_STRINGS = frozenset(
    {
        *("hostname", "user", "hostkeyalias", "identityagent", "pkcs11provider", "bindaddress", "ignoreunknown"),
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
    "hostbasedkeytypes": "hostbasedacceptedalgorithms",
    "pubkeyacceptedkeytypes": "pubkeyacceptedalgorithms",
    "smartcarddevice": "pkcs11provider",
}
_UNUSED = frozenset(
    """
    addkeystoagent afstokenpassing batchmode channeltimeout cipher clearallforwardings compressionlevel
    connectionattempts controlmaster controlpath controlpersist dynamicforward enableescapecommandline enablesshkeysign
    escapechar exitonforwardfailure fallbacktorsh fingerprinthash forkafterauthentication forwardagent forwardx11
    forwardx11timeout forwardx11trusted gatewayports globalknownhostsfile2 gssapiclientidentity gssapikexalgorithms
    gssapikeyexchange gssapirenewalforcesrekey gssapiserveridentity gssapitrustdns hashknownhosts
    ipqos kbdinteractivedevices kerberosauthentication kerberostgtpassing
    localforward logfacility loglevel logverbose numberofpasswordprompts
    obscurekeystroketiming permitlocalcommand permitremoteopen protocol remoteforward requesttty rhostsauthentication
    refuseconnection rhostsrsaauthentication rsaauthentication securitykeyprovider sessiontype stdinnull streamlocalbindmask
    streamlocalbindunlink syslogfacility tunnel tunneldevice updatehostkeys useprivilegedport
    userknownhostsfile2 useroaming usersh versionaddendum visualhostkey warnweakcrypto xauthlocation
    """.split()  # noqa: SIM905
)
"""Keywords of ssh's that logins don't use: their values are not looked at."""
_SEVERAL = _FILES | {"canonicaldomains", "canonicalizepermittedcnames"}
"""Keywords that take several words."""
_KNOWN = frozenset(
    {
        *(_UNUSED | _SEVERAL | _LISTS | _LINES | _TIMES | _NUMBERS | _STRINGS),
        *(*_FLAGS, *DEFAULTS, "port", "rekeylimit", "sendenv", "setenv", "proxyjump"),
    }
)
_PLAIN = _KNOWN - _UNUSED - _LISTS - _LINES - {"proxyjump", "sendenv", "setenv"}
"""Keywords with one value, of which the first counts."""
_MAY_BE_EMPTY = ("tagged", "command")
"""Criteria of Match whose value may be empty."""


@dataclass
class Reading:
    """What was found for one host: `values`, and in `notes` what was passed over, by file and line."""

    values: Values = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_files(host: str, file: str = "", user: str = "", port: int = 0) -> Reading:
    """Return what *file* says of *host*, or ~/.ssh/config and /etc/ssh/ssh_config where no file is named.

    *user* and *port* are those that were given beside it, as by `ssh -l` and `-p`: they win. Raises OSError for a named file
    that can't be read, PermissionError for one of the user's own that others can write, and ValueError for a name that ssh
    refuses. Reads files, runs the commands of `Match exec`, and looks names up for CanonicalizeHostname: call it in a thread.
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
        check_host(host)
        if user:
            check_user(user)
            self._found["user"] = [user]
        if port:
            self._found["port"] = [str(port)]

    def read(self) -> Reading:
        self._pass()
        said = self._first("hostname")
        host = expand_tokens(said, {"h": self._host}) if said else self._host
        canonicalization = Canonicalization(self._found)
        address = canonical_address(host, canonicalization.family)
        self._host = address or canonicalization.canonical_name(lower(host))
        if canonicalization.is_wanted or self._wants_final:
            self._found["hostname"] = [self._host]
            self._final = True
            self._pass()
        return Reading(self._with_defaults(), list(dict.fromkeys(self._notes)))

    def _pass(self) -> None:
        if self._file:
            self._read(Path(expand_tilde(self._file)), Path(home_folder(), ".ssh"), depth=0, required=True)
        else:
            self._read(Path(home_folder(), ".ssh/config"), Path(home_folder(), ".ssh"), depth=0, checked=True)
            self._read(Path(_SYSTEM), Path(_SYSTEM).parent, depth=0)

    def _read(
        self,
        path: Path,
        folder: Path,
        depth: int,
        *,
        required: bool = False,
        checked: bool = False,
        never: bool = False,
    ) -> None:
        """Take the lines of *path*; *folder* is where relative names of Include are looked for.

        Raises PermissionError for a file that is *checked* and that others can write; no block of one that *never* counts does.
        """
        try:
            with path.open("rb") as file:
                if checked and not _is_safe(os.fstat(file.fileno())):
                    raise PermissionError(f"bad owner or permissions on {path}: chmod 600")
                # Comments may be in any encoding, and names of files in the file system's.
                text = file.read().decode("utf-8", "surrogateescape")
        except OSError as error:
            if required or error.errno is None:
                raise
            if not isinstance(error, FileNotFoundError):
                self._notes.append(f"{path} is passed over: {error.strerror}")
            return
        active = not never
        for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
            keyword = ""
            try:
                keyword, rest = split_keyword(line)
                if keyword == "host":
                    active = self._matches_host(split_words(rest)) and not never
                elif keyword == "match":
                    active = self._matches(split_words(rest)) and not never
                elif keyword == "include":
                    self._include(split_words(rest), folder, depth, never=not active)
                elif keyword:
                    self._take(keyword, rest, active=active)
            except (Invalid, Unexpandable) as error:
                self._notes.append(f"{path} line {number} is passed over: {error}")
                if keyword in ("host", "match"):
                    active = False

    def _include(self, names: list[str], folder: Path, depth: int, *, never: bool) -> None:
        if depth >= _MOST_INCLUDED:
            raise Invalid("too many files include each other")
        if not all(names):
            raise Invalid("the name of a file is empty")
        for name in names:
            pattern = expand_tilde(expand_variables(expand_tokens(name, self._tokens())))
            # Sorted, as glob(3) does it, and without hidden files, as both do; Path.glob takes no absolute pattern.
            for found in sorted(glob.glob(os.path.join(folder, pattern))):  # noqa: PTH118, PTH207 - a slash at the end counts
                self._read(Path(found), folder, depth + 1, checked=True, never=never)

    # -- blocks ------------------------------------------------------------------------------------------------

    def _matches_host(self, patterns: list[str]) -> bool:
        if not all(patterns):
            raise Invalid("a pattern of Host is empty")
        return matches_one(self._host, patterns)

    def _matches(self, words: list[str]) -> bool:
        """Return True if all criteria of a Match line hold."""
        result, rest, taken = True, list(words), 0
        while rest:
            word = rest.pop(0)
            negated, word = word.startswith("!"), word.removeprefix("!")
            name, equals, value = word.partition("=")
            name = name.lower()
            if name == "all":
                if rest or taken > 1:
                    raise Invalid("Match all stands beside other criteria")
                return result and not negated
            taken += 1
            if name in ("canonical", "final"):
                self._wants_final |= name == "final" and not negated
                holds = self._final
            else:
                holds = self._criterion(name, value or self._value_of(name, rest, equals), needed=result)
            result = result and holds != negated
        if not taken:
            raise Invalid("Match has no criterion")
        return result

    def _value_of(self, name: str, rest: list[str], equals: str) -> str:
        """Take the value of a criterion from *rest*; older releases of ssh have also that behind an `=` that stands alone."""
        if equals and name in _MAY_BE_EMPTY:
            return ""
        value = rest.pop(0) if rest else ""
        if not equals and value == "=" and rest:
            value = rest.pop(0)
        elif not equals:
            value = value.removeprefix("=")
        if not value and name not in _MAY_BE_EMPTY:
            raise Invalid(f"Match {name} has no value")
        return value

    def _criterion(self, name: str, value: str, *, needed: bool) -> bool:
        local = own_user()
        if name == "host":
            return matches_list(lower(self._hostname()), lower(value))
        if name == "originalhost":
            return matches_list(lower(self._original), lower(value))
        if name == "user":
            return matches_list(self._first("user") or local, value)
        if name == "localuser":
            return matches_list(local, value)
        if name in _MAY_BE_EMPTY:
            said = self._first("tag") if name == "tagged" else ""
            return matches_list(said, value) if said else not value
        if name == "sessiontype":
            return matches_list("exec", value)
        if name == "exec":
            command = expand_tokens(value, self._tokens())
            return needed and _succeeds(command)
        raise Invalid(f"Match {name} is not supported without ssh on this machine")

    # -- values ------------------------------------------------------------------------------------------------

    def _take(self, keyword: str, rest: str, *, active: bool) -> None:
        """Remember the value of *keyword* if it counts; raises Invalid for a value that is none."""
        keyword = _ALIASES.get(keyword, keyword)
        if keyword == "refuseconnection" and active:
            raise ValueError(f"RefuseConnection: {' '.join(split_words(rest))}")
        if keyword not in _KNOWN:
            if matches_list(keyword, lower(self._first("ignoreunknown"))):
                return
            raise Invalid(f"the keyword {keyword} is unknown")
        words = split_words(rest)
        if keyword in _UNUSED:
            return
        if keyword in _PLAIN:
            counts = self._counts(keyword, active=active)
            try:
                said = self._value(keyword, words)  # also where it does not count: a mistake is one for all hosts
            except Invalid as error:
                if counts and keyword in DEFAULTS:  # passed over, it would have a login use what somebody did not want
                    raise ValueError(str(error)) from error
                raise
            if counts:
                self._found[keyword] = [said]
        elif not self._counts(keyword, active=active):
            return
        elif keyword in _LINES or keyword == "proxyjump":
            line = rest.lstrip(" \t\r=")
            try:
                self._found[keyword] = [print_jump(line) if keyword == "proxyjump" else line]
            except Invalid:
                # Not passed over: the login would go directly. What can't be read is refused later, with the host's name.
                self._found[keyword] = [line]
        elif keyword == "sendenv":
            self._send(words)
        elif keyword in _LISTS:
            listed = self._found.setdefault(keyword, [])
            said = self._value(keyword, words)
            if len(listed) >= _MOST_LISTED:
                raise Invalid(f"more than {_MOST_LISTED} of {keyword}")
            if said not in listed:
                listed.append(said)
        else:
            self._found[keyword] = _assignments(words)

    def _counts(self, keyword: str, *, active: bool) -> bool:
        """Return True if a value of *keyword* would be used: its block matches, and it was not said before."""
        if not active or keyword in _LISTS or keyword == "sendenv":
            return active
        if keyword == "proxycommand" and self._first("proxyjump") not in (
            "",
            "none",
        ):  # a `ProxyJump none` forbids no command
            return False
        if keyword == "proxyjump" and "proxycommand" in self._found:
            return False
        return keyword not in self._found

    def _send(self, names: list[str]) -> None:
        """Take the names and patterns of SendEnv; those behind a `-` take back what was said before."""
        if not all(names) or any("=" in name for name in names):
            raise Invalid("sendenv takes names of variables")
        sent = self._found.setdefault("sendenv", [])
        for name in names:
            if name.startswith("-"):
                sent[:] = [known for known in sent if not matches(known, name[1:])]
            else:
                sent.append(name)

    def _value(self, keyword: str, words: list[str]) -> str:
        """Return the value in the form of `ssh -G`; raises Invalid."""
        first = words[0] if words else ""
        if not first:
            raise Invalid(f"{keyword} has no value")
        if keyword in _SEVERAL:
            return self._words(keyword, words)
        if len(words) > 1 and keyword != "rekeylimit":
            raise Invalid(f"{keyword} has more than one value; write quotes around one with blanks")
        if keyword in _FLAGS:
            said = lower(first)
            if keyword not in _WORDED:
                said = {"true": "yes", "false": "no"}.get(said, said)
            if said not in _FLAGS[keyword]:
                raise Invalid(f"{keyword} {first} is unknown")
            return said
        if keyword in _TIMES:
            return "none" if first == "none" else str(parse_time(first))
        if keyword == "port":
            return str(parse_port(first))
        if keyword in DEFAULTS:
            return choose(keyword, first)
        if keyword in _NUMBERS:
            return str(parse_number(first))
        if keyword == "hostkeyalias":
            return lower(first)
        if keyword == "identityagent":
            return _agent(first)
        if keyword == "rekeylimit":
            return _rekey_limit(words)
        return first

    @staticmethod
    def _words(keyword: str, words: list[str]) -> str:
        """Return several words with zero bytes between them, which no line of ssh's can have; raises Invalid."""
        if not all(words):
            raise Invalid(f"a value of {keyword} is empty")
        if len(words) > 1 and any(word.lower() == "none" for word in words):
            raise Invalid(f"none stands beside other values of {keyword}")
        if keyword in _FILES and len(words) > _MOST_FILES:
            raise Invalid(f"more than {_MOST_FILES} files of {keyword}")
        return "\0".join(words)

    def _first(self, keyword: str) -> str:
        return self._found.get(keyword, [""])[0]

    def _hostname(self) -> str:
        """Return the name to connect to as far as it is known; in the second pass it is final."""
        said = self._first("hostname")
        if self._final or not said:
            return self._host
        return expand_tokens(said, {"h": self._host})

    def _tokens(self) -> dict[str, str]:
        """Return what tokens mean in the midst of a reading, as in `Match exec`."""
        local, jump, host = own_user(), self._first("proxyjump"), self._hostname()
        return {
            **host_tokens(
                self._original,
                host,
                self._first("port") or "22",
                self._first("user") or local,
                self._first("hostkeyalias"),
                "" if jump == "none" else jump,
                local=local,
            ),
            "k": self._first("hostkeyalias") or host,
        }

    def _with_defaults(self) -> Values:
        found = {keyword: list(values) for keyword, values in self._found.items()}
        found["hostname"] = [self._host]
        found.setdefault("user", [own_user()])
        found.setdefault("port", ["22"])
        found.setdefault("identityfile", [f"~/.ssh/{name}" for name in _IDENTITIES])
        found.setdefault("userknownhostsfile", ["~/.ssh/known_hosts\0~/.ssh/known_hosts2"])
        found.setdefault("globalknownhostsfile", ["/etc/ssh/ssh_known_hosts\0/etc/ssh/ssh_known_hosts2"])
        tokens = {**self._tokens(), "h": self._host, "k": self._first("hostkeyalias") or self._original}
        for keyword in ("userknownhostsfile", "identityagent"):  # those that `ssh -G` expands as well
            if keyword in found:
                found[keyword] = ["\0".join(self._expanded(keyword, found[keyword][0], tokens))]
        for keyword in _FILES & found.keys():  # as `ssh -G` prints them
            found[keyword] = [found[keyword][0].replace("\0", " ")]
        for keyword, names in DEFAULTS.items():
            found.setdefault(keyword, [",".join(names)])
        return found

    def _expanded(self, keyword: str, value: str, tokens: dict[str, str]) -> list[str]:
        """Return the words of *value* expanded, without those that can't be."""
        words = []
        for word in value.split("\0"):
            is_name = keyword == "identityagent" and (word == "SSH_AUTH_SOCK" or re.match(r"\$[^{]", word))
            try:
                words.append(word if is_name or word.lower() == "none" else expand_path(word, tokens))
            except Unexpandable as error:
                self._notes.append(f"{keyword}: {error}")
        return words


# -- values --------------------------------------------------------------------------------------------------------


def _assignments(words: list[str]) -> list[str]:
    """Return the variables of SetEnv; raises Invalid."""
    if not words or not all("=" in word for word in words):
        raise Invalid("setenv takes NAME=value")
    return words


def _agent(value: str) -> str:
    """Return *value* of IdentityAgent; raises Invalid for a variable that can't be one."""
    if value.startswith("$") and not re.match(r"\$(\{|[A-Za-z0-9_]+\Z)", value):
        raise Invalid(f"identityagent {value} names no variable")
    expand_variables(value)
    return value


def _rekey_limit(words: list[str]) -> str:
    """Return bytes and seconds of RekeyLimit; raises Invalid."""
    if len(words) > 2:
        raise Invalid("rekeylimit has more than two values")
    seconds = 0 if len(words) == 1 or words[1] == "none" else parse_time(words[1])
    return f"{parse_size(words[0])} {seconds}"


def _is_safe(state: os.stat_result) -> bool:
    """Return True if only its owner, the user or root, can write a file; Debian's ssh also takes one of the owner's own group."""
    if state.st_uid not in (0, os.getuid()) or state.st_mode & stat.S_IWOTH:
        return False
    if not state.st_mode & stat.S_IWGRP:
        return True
    try:
        owner, group = pwd.getpwuid(state.st_uid), grp.getgrgid(state.st_gid)
    except KeyError:
        return False
    return owner.pw_gid == state.st_gid and not set(group.gr_mem) - {owner.pw_name}


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
        code = process.wait(_EXEC_SECONDS)
    except subprocess.TimeoutExpired:
        raise Invalid(f"the command of Match exec took longer than {_EXEC_SECONDS:g} s: {command}") from None
    finally:
        if process.returncode is None:
            end_group(process.pid)
            process.wait()
    if code < 0:
        raise Invalid(f"the command of Match exec was killed by signal {-code}: {command}")
    return code == 0

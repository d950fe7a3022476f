"""Everything that a login to one host will use, read once: what was checked is what is used."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import weakref
from dataclasses import dataclass, field
from pathlib import Path

from eg_distributed.aside import aside
from eg_distributed.errors import SSHConfigInvalid
from eg_distributed.link.deadlines import within
from eg_distributed.settings import Distributed

from .algorithms import DEFAULTS, OUR_CIPHERS, known
from .ask import Refused, Unable, ask_ssh, find_ssh
from .jumps import Hop, parse_hops
from .names import FAMILIES
from .reader import Values, read_files
from .readings import NoPlace, Readings
from .tokens import Unexpandable, expand_path, expand_tokens, home_folder, host_tokens, own_user
from .words import lower

__all__ = ["Configuration", "Hop", "configuration_of", "own_user"]

log = logging.getLogger(__name__)

_READ_SECONDS = 15.0
"""For one reading, whoever does it."""


@dataclass(frozen=True)
class Configuration:
    """What `ssh` would use for *host*, with the gateway's own settings in front; paths and commands are expanded."""

    host: str
    """As it stands in the list of hosts."""
    hostname: str
    """Where to connect to, in lower case."""
    port: int
    user: str
    host_key_alias: str = ""
    known_hosts: tuple[Path, ...] = ()
    """The user's files, then the system's, in ssh's order."""
    revoked_host_keys: tuple[Path, ...] = ()
    known_hosts_command: str = ""
    identities: tuple[Path, ...] = ()
    certificates: tuple[Path, ...] = ()
    identities_only: bool = False
    identity_agent: str = ""
    """The agent's socket; empty for none."""
    pkcs11_provider: str = ""
    proxy_command: str = ""
    """A line for the user's shell; empty for none."""
    proxy_passes_socket: bool = False
    jumps: tuple[Hop, ...] = ()
    """Jump hosts in the order in which they are gone through."""
    family: int = socket.AF_UNSPEC
    bind_address: str = ""
    bind_interface: str = ""
    """The network interface whose address is used, where no address is named."""
    connect_timeout: float = 0.0
    """Seconds, as ConnectTimeout says; 0 where it says nothing."""
    ciphers: tuple[str, ...] = ()
    macs: tuple[str, ...] = ()
    key_exchanges: tuple[str, ...] = ()
    host_key_algorithms: tuple[str, ...] = ()
    public_key_algorithms: tuple[str, ...] = ()
    host_based_algorithms: tuple[str, ...] = ()
    authority_algorithms: tuple[str, ...] = ()
    """With which an authority may sign certificates of hosts."""
    chosen: frozenset[str] = frozenset()
    """Keywords whose list of algorithms is not ssh's default."""
    smallest_rsa_key: int = 1024
    check_host_ip: bool = False
    """True where known_hosts has to know the address as well."""
    lenient: tuple[str, ...] = ()
    """Keywords by which ssh may take a host whose key it does not know, and which do not count here."""
    public_key: bool = True
    password: bool = True
    keyboard: bool = True
    host_based: bool = False
    kerberos: bool = False
    kerberos_delegation: bool = False
    preferred: tuple[str, ...] = ()
    compression: bool = False
    rekey_bytes: int = 0
    rekey_seconds: int = 0
    tcp_keepalive: bool = True
    send_env: tuple[str, ...] = ()
    set_env: dict[str, str] = field(default_factory=dict)
    reader: str = ""
    """Who read ssh_config: `ssh -G`, or our own reader and why."""
    notes: tuple[str, ...] = ()
    """What was passed over, with file and line."""

    @property
    def tokens(self) -> dict[str, str]:
        """What `%x` means in values that are expanded later."""
        return host_tokens(self.host, self.hostname, self.port, self.user, self.host_key_alias, local=own_user())


_kept: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Readings[Configuration]] = weakref.WeakKeyDictionary()
_said: set[str] = set()


async def configuration_of(host: str, settings: Distributed, hop: Hop | None = None) -> Configuration:
    """Return what a login to *host* uses; raises SSHConfigInvalid. For a jump host, *hop* has what ProxyJump says of it.

    Called before each login, and by `doctor`. The gateway's user and port count for hosts, and not for their jump hosts.
    Who asks for the same while it is read gets the same answer; no host waits for another's commands. Cancellation ends the
    child that reads, unless others wait for it.
    """
    user, port = (hop.user, hop.port) if hop else ("" if settings.gss else settings.user, settings.port)
    kept = _kept.setdefault(asyncio.get_running_loop(), Readings())
    key = (host, user, str(port), settings.ssh_config, os.environ.get("HOME", ""), os.environ.get("PATH", ""))
    try:
        return await kept.get(key, lambda: _read(host, settings.ssh_config, user, port))
    except NoPlace:
        raise SSHConfigInvalid(
            "its ssh_config could not be read in time, since those of many other hosts take long to read",
            host=host,
            remedy="see what `ssh -G` waits for with other hosts, such as a command of Match exec that hangs",
        ) from None


async def _read(host: str, file: str, user: str, port: int) -> Configuration:
    try:
        values, defaults, reader, notes = await within(_values(host, file, user, port), _READ_SECONDS)
        _say_once(f"ssh_config is read by {reader}")
        return _interpret(host, values, defaults, reader, notes)
    except asyncio.TimeoutError:
        raise SSHConfigInvalid(
            "reading ssh_config took too long",
            host=host,
            remedy=f"see what `ssh -G {host}` waits for, such as a command of Match exec or a home that hangs",
        ) from None
    except Refused as error:
        raise SSHConfigInvalid(
            f"ssh refuses its configuration: {error}",
            host=host,
            remedy=f"correct that line; `ssh -G {host}` says the same",
        ) from error
    except (OSError, ValueError) as error:
        raise SSHConfigInvalid(
            f"ssh_config cannot be used ({error})", host=host, remedy="correct ssh_config, or Distributed.ssh_config"
        ) from error


async def _values(
    host: str, file: str, user: str, port: int
) -> tuple[Values, dict[str, tuple[str, ...]], str, list[str]]:
    """Return what is said of *host*, ssh's defaults, who has read it, and what was passed over; raises what readers raise."""
    reader = "our own reader, since there is no ssh on PATH"
    if (ssh := find_ssh()) is not None:
        try:
            return await ask_ssh(ssh, host, file, user, port), await _defaults(ssh), f"{ssh} -G", []
        except Unable as error:
            reader = f"our own reader, since ssh cannot ({error})"
    reading = await aside(("ssh_config", host, file, user, port), lambda: read_files(host, file, user, port))
    return reading.values, DEFAULTS, reader, reading.notes


_ssh_defaults: dict[str, dict[str, tuple[str, ...]]] = {}


async def _defaults(ssh: str) -> dict[str, tuple[str, ...]]:
    """Return the algorithms that this ssh uses where no file says anything: `ssh -G` does not tell a default from a choice."""
    if ssh not in _ssh_defaults:
        values = await ask_ssh(ssh, "defaults", "/dev/null")
        _ssh_defaults[ssh] = {keyword: tuple(values.get(keyword, [""])[0].split(",")) for keyword in DEFAULTS}
    return _ssh_defaults[ssh]


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        log.info(text)


def _interpret(
    host: str, values: Values, defaults: dict[str, tuple[str, ...]], reader: str, notes: list[str]
) -> Configuration:
    """Make the object of what `ssh -G` or our reader says; raises ValueError for what nothing can be made of."""

    def first(keyword: str) -> str:
        value = values.get(keyword, [""])[0]
        return "" if value.lower() == "none" else value

    def flag(keyword: str, default: str) -> bool:
        return (values.get(keyword, [default])[0].lower() or default) in (
            "yes",
            "true",
            "unbound",
            "host-bound",
            "always",
        )

    hostname, port, user = (
        _lower(first("hostname") or host),
        int(first("port") or 22),
        first("user") or own_user(),
    )
    jump = first("proxyjump")
    tokens = host_tokens(host, hostname, port, user, first("hostkeyalias"), jump, local=own_user())

    def paths(keyword: str) -> tuple[Path, ...]:
        found = []
        for value in _words_of(values, keyword) if keyword == "revokedhostkeys" else values.get(keyword, []):
            if value.lower() == "none":
                continue
            try:
                found.append(Path(expand_path(_unquoted(value), tokens)))
            except Unexpandable as error:
                notes.append(f"{keyword} {value} is passed over: {error}")
        return tuple(dict.fromkeys(found))

    algorithms = {keyword: tuple(values.get(keyword, [""])[0].split(",")) for keyword in DEFAULTS}
    chosen = frozenset(
        keyword
        for keyword, names in algorithms.items()
        if set(names) ^ set(defaults[keyword]) or (names != defaults[keyword] and names != DEFAULTS[keyword])
    )
    hop_tokens = {name: tokens[name] for name in "hknpr"}  # `%k` as well, although the manual does not say so
    command = first("proxycommand")
    rekey = (first("rekeylimit") or "0 0").split()
    return Configuration(
        host=host,
        hostname=hostname,
        port=port,
        user=user,
        host_key_alias=first("hostkeyalias"),
        known_hosts=_files(values, "userknownhostsfile") + _files(values, "globalknownhostsfile"),
        revoked_host_keys=paths("revokedhostkeys"),
        known_hosts_command=first("knownhostscommand"),
        identities=paths("identityfile"),
        certificates=paths("certificatefile"),
        identities_only=flag("identitiesonly", "no"),
        identity_agent=_agent(values.get("identityagent", ["SSH_AUTH_SOCK"])[0], tokens),
        pkcs11_provider=first("pkcs11provider"),
        proxy_command=expand_tokens(command, hop_tokens) if command else "",
        proxy_passes_socket=flag("proxyusefdpass", "no"),
        jumps=() if command else parse_hops(expand_tokens(jump, hop_tokens)),
        family=FAMILIES.get(first("addressfamily"), socket.AF_UNSPEC),
        bind_address=first("bindaddress"),
        bind_interface=first("bindinterface"),
        connect_timeout=float(first("connecttimeout") or 0),
        ciphers=_ciphers(algorithms["ciphers"], "ciphers" in chosen),
        macs=known("macs", algorithms["macs"]),
        key_exchanges=known("kexalgorithms", algorithms["kexalgorithms"]),
        host_key_algorithms=known("hostkeyalgorithms", algorithms["hostkeyalgorithms"]),
        public_key_algorithms=known("pubkeyacceptedalgorithms", algorithms["pubkeyacceptedalgorithms"]),
        chosen=chosen,
        host_based_algorithms=algorithms["hostbasedacceptedalgorithms"],
        authority_algorithms=algorithms["casignaturealgorithms"],
        check_host_ip=flag("checkhostip", "no"),
        lenient=_lenient(values),
        smallest_rsa_key=int(first("requiredrsasize") or 1024),
        public_key=flag("pubkeyauthentication", "yes"),
        password=flag("passwordauthentication", "yes"),
        keyboard=flag("kbdinteractiveauthentication", "yes"),
        host_based=flag("hostbasedauthentication", "no"),
        kerberos=flag("gssapiauthentication", "no"),
        kerberos_delegation=flag("gssapidelegatecredentials", "no"),
        preferred=tuple(name for name in first("preferredauthentications").split(",") if name),
        compression=flag("compression", "no"),
        rekey_bytes=int(rekey[0]),
        rekey_seconds=int(rekey[1]),
        tcp_keepalive=flag("tcpkeepalive", "yes"),
        send_env=tuple(dict.fromkeys(values.get("sendenv", []))),
        set_env=_environment(values.get("setenv", [])),
        reader=reader,
        notes=tuple(notes),
    )


_LENIENT = {
    "stricthostkeychecking": ("StrictHostKeyChecking", ("no", "off", "accept-new")),
    "nohostauthenticationforlocalhost": ("NoHostAuthenticationForLocalhost", ("yes",)),
    "verifyhostkeydns": ("VerifyHostKeyDNS", ("yes",)),
}
"""Keywords by which ssh may take a host whose key no file knows, and the values with which it does."""


def _lenient(values: Values) -> tuple[str, ...]:
    """Return the keywords of `_LENIENT` that are set so, as people write them."""
    found = []
    for keyword, (name, wanted) in _LENIENT.items():
        said = values.get(keyword, [""])[0].lower()  # `ssh -G` prints `true` and `false` for some
        if {"true": "yes", "false": "no"}.get(said, said) in wanted:
            found.append(name)
    return tuple(found)


def _lower(hostname: str) -> str:
    """Return *hostname* in lower case, but for the name of a link in an address, which is what it is."""
    name, percent, link = hostname.partition("%")
    return f"{lower(name)}{percent}{link}"


def _unquoted(value: str) -> str:
    """Return *value* without the quotes that `ssh -G` may leave around it."""
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value


def _files(values: Values, keyword: str) -> tuple[Path, ...]:
    return tuple(Path(_tilde(word)) for word in _words_of(values, keyword) if word.lower() != "none")


def _words_of(values: Values, keyword: str) -> list[str]:
    """Return the files of a list, which `ssh -G` prints with blanks between them, also where a name has blanks itself."""
    found: list[str] = []
    for value in values.get(keyword, []):
        found += _joined([word for word in value.split(" ") if word])
    return found


def _joined(words: list[str]) -> list[str]:
    """Return *words* with those joined that make the name of a file that is there, where one alone is none."""
    found: list[str] = []
    start = 0
    while start < len(words):
        end = start + 1
        if not Path(_tilde(words[start])).exists():
            for further in range(start + 2, len(words) + 1):
                if Path(_tilde(" ".join(words[start:further]))).exists():
                    end = further
                    break
        found.append(" ".join(words[start:end]))
        start = end
    return found


def _tilde(path: str) -> str:
    return home_folder().rstrip("/") + path[1:] if path == "~" or path.startswith("~/") else path


def _agent(value: str, tokens: dict[str, str]) -> str:
    """Return the socket of IdentityAgent: a path, `none`, SSH_AUTH_SOCK, or the name of another variable behind `$`."""
    value = _unquoted(value)
    if value.lower() == "none":
        return ""
    if value == "SSH_AUTH_SOCK":
        return os.environ.get("SSH_AUTH_SOCK", "")
    if value.startswith("$") and not value.startswith("${"):
        return os.environ.get(value[1:], "")
    return expand_path(value, tokens)


def _ciphers(names: tuple[str, ...], chosen: bool) -> tuple[str, ...]:
    """Return those that are used: as ssh_config says, else all that ssh has, in the order that serves a gateway best."""
    if chosen:
        return known("ciphers", names)
    return known("ciphers", [*(name for name in OUR_CIPHERS if name in names), *names])


def _environment(lines: list[str]) -> dict[str, str]:
    """Return the variables of SetEnv, of which `ssh -G` prints each on a line of its own, without quotes."""
    found: dict[str, str] = {}
    for line in lines:
        name, equals, value = line.partition("=")
        if equals:
            found.setdefault(name, value)
    return found

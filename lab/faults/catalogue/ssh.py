"""SSH faults: an sshd that has enough, doesn't know you, isn't who it was, or forbids what you came for.

Those of sshd's configuration meet connections that are made after them: sessions keep what they were given.
"""

from __future__ import annotations

from typing import Final

from lab.drivers.capabilities import Capability
from lab.faults.inside import source
from lab.faults.model import Context, FaultKind, Mechanism, Moves, Option, Step
from lab.names import fqdn

SYSTEM: Final[frozenset[Capability]] = frozenset({"system"})
LONG_AGO = "20200101:20200102"
"""When expired certificates were valid."""


def openssh_only(context: Context) -> str:
    """Refuse where the node's server is not OpenSSH's, and on a machine without one."""
    if context.node.sshd is None:
        return "no sshd runs here"
    if context.node.sshd.kind != "openssh":
        return "this node's SSH server is asyncssh's, which has no sshd_config and no process for each session"
    return ""


def dropin(context: Context, lines: str, expected: str = "") -> Moves:
    """Put *lines* before all else in sshd's configuration, where the first value wins, and make sshd read it."""
    tell: Step = ("@hup", expected) if expected else ("@hup",)
    sshd = context.sshd
    if not sshd.dropins:
        return Moves(
            (("@block", sshd.config, context.mark, lines), tell),
            (("@unblock", sshd.config, context.mark), ("@hup", "healed")),
        )
    path = f"{sshd.dropins}/00-fault-{context.fault}.conf"
    return Moves((("@write", path, f"{lines}\n"), tell), (("@remove", path), ("@hup", "healed")))


def configured(name: str, lines: str, claim: str) -> Mechanism:
    """Return the mechanism that is nothing but lines of sshd's configuration."""
    return Mechanism(name, lambda c: dropin(c, lines), claims=(claim,), refuse=openssh_only)


def _startups(context: Context) -> Moves:
    """Few unauthenticated connections are allowed, and somebody holds them all."""
    folder, count = context.folder, str(context.options["connections"])
    port = str(context.sshd.port)
    limit = dropin(context, f"MaxStartups {count}\nLoginGraceTime 600")
    return limit + Moves(
        (("@write", f"{folder}/holder.py", source("holder"), "644"), ("@spawn", folder, "holder", port, count)),
        (("@end", folder, "holder"),),
    )


def _sessions(context: Context) -> Moves:
    return dropin(context, f"MaxSessions {context.options['sessions']}")


def _no_key(context: Context) -> Moves:
    path = context.sshd.authorized_keys
    return Moves((("@aside", path, context.mark),), (("@back", path, context.mark),))


def _locked(context: Context) -> Moves:
    user = context.user
    return Moves(
        (("usermod", "--lock", "--expiredate", "1", user),), (("usermod", "--unlock", "--expiredate", "", user),)
    )


def _new_host_key(context: Context) -> Moves:
    key = f"{context.folder}/host_key"
    make: tuple[Step, ...] = (
        ("@write", f"{context.folder}/about", context.node.name),
        ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab fault", "-f", key),
    )
    return Moves(make, ()) + dropin(context, f"HostKey {key}")


def _expired(context: Context) -> Moves:
    """Make an authority of the fault's own and a certificate of long ago, and let sshd show it, or ask for such ones."""
    folder = context.folder
    ca: tuple[Step, ...] = (
        ("@write", f"{folder}/about", context.node.name, "644"),
        ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab fault", "-f", f"{folder}/ca"),
    )
    sign: Step = ("ssh-keygen", "-q", "-s", f"{folder}/ca", "-I", "lab-fault", "-V", LONG_AGO)
    if context.options["of"] == "host":
        names = f"{fqdn(context.node.name)},{context.node.address}"
        host = (
            ("@public", context.sshd.host_key, f"{folder}/host.pub"),
            (*sign, "-h", "-n", names, f"{folder}/host.pub"),
        )
        return Moves((*ca, *host), ()) + dropin(context, f"HostCertificate {folder}/host-cert.pub")
    user = (
        ("@first-key", context.sshd.authorized_keys, f"{folder}/user.pub"),
        (*sign, "-n", context.user, f"{folder}/user.pub"),
    )
    return Moves((*ca, *user), ()) + dropin(context, f"TrustedUserCAKeys {folder}/ca.pub\nAuthorizedKeysFile none")


def _no_sftp(context: Context) -> Moves:
    path = context.sshd.config
    return Moves(
        (("@comment", path, context.mark, r"[Ss]ubsystem\s+sftp"), ("@hup",)),
        (("@uncomment", path, context.mark), ("@hup", "healed")),
    )


def _penalties(context: Context) -> Moves:
    seconds = f"{context.options['seconds']:.0f}"
    lines = f"PerSourcePenalties crash:{seconds} authfail:{seconds} noauth:{seconds} min:1 max:{max(1, int(seconds))}"
    return Moves((("@knows", "PerSourcePenalties", "9.8"),), ()) + dropin(context, lines)


KINDS = (
    FaultKind(
        "max-startups",
        "ssh",
        "sshd has as many unauthenticated connections as it takes (MaxStartups).",
        "a connection is closed before the login",
        (
            Mechanism(
                "MaxStartups, and idle connections that fill it",
                _startups,
                claims=("MaxStartups",),
                refuse=openssh_only,
            ),
        ),
        (Option("connections", "integer", 2, "how many it takes, all of them taken", 1, 1000),),
    ),
    FaultKind(
        "max-sessions",
        "ssh",
        "A connection carries few sessions (MaxSessions).",
        "a further session on an open connection is refused",
        (Mechanism("MaxSessions", _sessions, claims=("MaxSessions",), refuse=openssh_only),),
        (Option("sessions", "integer", 1, "sessions on each connection; 0: none at all", 0, 10),),
    ),
    FaultKind(
        "key-removed",
        "ssh",
        "The user's public key is no longer authorized.",
        "a login is denied",
        (
            Mechanism(
                "authorized_keys moved aside",
                _no_key,
                claims=("authorized_keys",),
                # asyncssh's server has read the file when it started.
                refuse=openssh_only,
            ),
        ),
    ),
    FaultKind(
        "account-locked",
        "ssh",
        "The user's account is locked and has expired.",
        "a login with the right key is denied",
        (Mechanism("usermod --lock --expiredate", _locked, claims=("account",), needs=SYSTEM),),
    ),
    FaultKind(
        "host-key-changed",
        "ssh",
        "sshd shows another host key.",
        "a client with strict host keys refuses to go on",
        (Mechanism("HostKey", _new_host_key, claims=("HostKey",), refuse=openssh_only),),
    ),
    FaultKind(
        "certificate-expired",
        "ssh",
        "Certificates were valid long ago: the host's own, or those that users have to log in with.",
        "a client that trusts the authority refuses the host, or is denied",
        (
            Mechanism(
                "authority of its own, certificate of 2020",
                _expired,
                claims=("authorized_keys", "HostCertificate"),
                needs=SYSTEM,
            ),
        ),
        (Option("of", "text", "user", "whose", choices=("user", "host")),),
    ),
    FaultKind(
        "password-asked",
        "ssh",
        "sshd wants a password, not a key.",
        "a login without a password is denied",
        (
            configured(
                "PubkeyAuthentication no",
                "PubkeyAuthentication no\nPasswordAuthentication yes\nKbdInteractiveAuthentication yes",
                "PubkeyAuthentication",
            ),
        ),
    ),
    FaultKind(
        "forwarding-forbidden",
        "ssh",
        "sshd forwards nothing: no ports, no sockets, no agent.",
        "a forwarded connection is refused, commands work",
        (configured("DisableForwarding", "DisableForwarding yes\nAllowTcpForwarding no", "DisableForwarding"),),
    ),
    FaultKind(
        "no-sftp",
        "ssh",
        "sshd offers no SFTP.",
        "an SFTP session is refused, commands work",
        (Mechanism("Subsystem taken out", _no_sftp, claims=("Subsystem",), refuse=openssh_only),),
    ),
    FaultKind(
        "penalties",
        "ssh",
        "sshd refuses sources for a while that failed to log in (OpenSSH 9.8 and later; containers have 9.2, or what "
        "`packages` says).",
        "after a failed login, connects are closed at once",
        (Mechanism("PerSourcePenalties", _penalties, claims=("PerSourcePenalties",), refuse=openssh_only),),
        (Option("seconds", "seconds", 30.0, "how long, for each failure", 1, 3600),),
    ),
)

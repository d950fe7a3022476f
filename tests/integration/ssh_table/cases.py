"""Set-ups of other people, as texts: ssh_config, known_hosts, keys and agents of one login each.

In texts, `{node}` is the node's full name, `{short}` its short one, `{address}` its address; `{ed25519}`, `{rsa}`, `{ecdsa}`,
`{other}`, `{ca}` are public host keys (type and base64), the last two not the host's own and its certificate's authority.
Files are below ~/.ssh. Keys that the node accepts lie in ~/keys: `good` (ed25519), `good_rsa`, `good_ecdsa`, `good_pem`, `locked`
(encrypted), and `certified` (by its certificate only); `bad` is one that it does not.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["CASES", "Case"]

KNOWN = "{node} {ed25519}\n"
BY_KEY = "IdentityFile ~/keys/good\n"
BASE = "User lab\n" + BY_KEY
PLAIN, AES192, RSA_HOST, ECDSA_HOST, CERTIFIED, FEW_TRIES, SHA1, GROUP1, MD5 = 22, *range(2201, 2209)
HOST_BASED, BY_RSA, BY_SHA1, EXPIRED, UNNAMED, WILD, DEMANDING, OF_USERS, RSA_CERTIFIED = range(2209, 2218)
THREE_KEYS, TALKATIVE, TWO_KEYS, HOST_AND_KEY, RSA_USERS, NO_PASSWORD, CHACHA, UMAC, TWO_WAYS = range(2218, 2227)
BY_HOST = "HostbasedAuthentication yes\nIdentityFile none\nUser certified\n"
SIGNS = {"ssh_config": "EnableSSHKeysign yes\n"}
"""What the machine's own ssh_config has to say before ssh-keysign signs."""


@dataclass(frozen=True)
class Case:
    """One login: what stands in ~/.ssh before it, and the host that is named."""

    config: str = BASE
    known_hosts: str | bytes | None = KNOWN
    files: dict[str, str | bytes] = field(default_factory=dict)
    """Further files below ~/.ssh, by name; `~/` in front of a name means the home itself."""
    modes: dict[str, int] = field(default_factory=dict)
    host: str = "{node}"
    agent: tuple[str, ...] = ()
    """Keys of ~/keys in an ssh-agent; none: no agent runs."""
    system: dict[str, str] = field(default_factory=dict)
    """Files below /etc/ssh."""
    kinder: str = ""
    """Why we may let a login through that ssh refuses."""
    stricter: str = ""
    """Why we refuse what ssh lets through."""


def config(text: str, **others: object) -> Case:
    """A case that differs by its ssh_config, which gets user and key unless it says them itself."""
    return Case(config=text, **others)  # type: ignore[arg-type]


def hosts(text: str | bytes | None, **others: object) -> Case:
    """A case that differs by its known_hosts."""
    return Case(known_hosts=text, **others)  # type: ignore[arg-type]


def port(number: int, more: str = "", known: str = "", **others: object) -> Case:
    """A case at another sshd of the node."""
    return Case(
        config=f"Port {number}\n{more}{BASE}",
        known_hosts=known or f"[{{node}}]:{number} {{ed25519}}\n",
        **others,  # type: ignore[arg-type]
    )


def by_host(text: str = "", number: int = HOST_BASED, **others: object) -> Case:
    """A case of HostbasedAuthentication."""
    given: dict[str, object] = {"known_hosts": f"[{{node}}]:{number} {{ed25519}}\n", "system": SIGNS, **others}
    return Case(config=f"{text}Port {number}\n{BY_HOST}", **given)  # type: ignore[arg-type]


CASES: dict[str, Case] = {
    "plain": Case(),
    "no-config": Case(config="", host="{node}", files={"id_ed25519": "@good"}, kinder=""),
    "user-of-config": config("Host {node}\n  User alice\n" + BY_KEY),
    "wrong-user": config("User nobody\n" + BY_KEY),
    # -- known_hosts -------------------------------------------------------------------------------------------------
    "known-missing": hosts(None),
    "known-empty": hosts(""),
    "known-wrong": hosts("{node} {other}\n"),
    "known-wrong-and-right": hosts("{node} {other}\n{node} {ed25519}\n"),
    "known-rsa-only": hosts("{node} {rsa}\n"),
    "known-ecdsa-only": hosts("{node} {ecdsa}\n"),
    "known-capitals": hosts("NODE1.LAB.TEST {ed25519}\n"),
    "known-capitals-asked": hosts(KNOWN, host="NODE1.lab.test"),
    "known-pattern": hosts("*.lab.test {ed25519}\n"),
    "known-pattern-capitals": hosts("*.LAB.TEST {ed25519}\n"),
    "known-question": hosts("node?.lab.test {ed25519}\n"),
    "known-negated": hosts("*.lab.test,!node1.lab.test {ed25519}\n"),
    "known-negated-other": hosts("*.lab.test,!node2.lab.test {ed25519}\n"),
    "known-list": hosts("a,b,{node},c {ed25519}\n"),
    "known-address-only": hosts("{address} {ed25519}\n"),
    "known-by-address": hosts("{address} {ed25519}\n", host="{address}"),
    "known-short": hosts("{short} {ed25519}\n", host="{short}"),
    "known-hashed": hosts("{hashed} {ed25519}\n"),
    "known-hashed-capitals-asked": hosts("{hashed} {ed25519}\n", host="NODE1.LAB.TEST"),
    "known-hashed-wrong": hosts("|1|AAAAAAAAAAAAAAAAAAAAAAAAAAA=|AAAAAAAAAAAAAAAAAAAAAAAAAAA= {ed25519}\n"),
    "known-hash-broken": hosts("|1|broken {other}\n" + KNOWN),
    "known-hash-unknown-kind": hosts("|2|a|b {ed25519}\n" + KNOWN),
    "known-comment-lines": hosts("# a\n\n  # b\n" + KNOWN),
    "known-trailing-comment": hosts("{node} {ed25519} root@node1 # x\n"),
    "known-tabs": hosts("{node}\t{ed25519}\n"),
    "known-leading-blanks": hosts("   {node} {ed25519}\n"),
    "known-crlf": hosts("{node} {ed25519}\r\n"),
    "known-no-newline": hosts("{node} {ed25519}"),
    "known-half-line": hosts("node9.lab.te\n" + KNOWN),
    "known-half-key": hosts("{node} ssh-ed25519 AAAA\n" + KNOWN),
    "known-unknown-type": hosts("{node} ssh-future AAAA\n" + KNOWN),
    "known-marker-unknown": hosts("@trusted {node} {ed25519}\n" + KNOWN),
    "known-marker-unknown-only": hosts("@trusted {node} {ed25519}\n"),
    "known-merge-markers": hosts("<<<<<<< HEAD\n" + KNOWN + "=======\n>>>>>>> x\n"),
    "known-nul": hosts(b"\0\0\0\n{node} {ed25519}\n"),
    "known-latin-1": hosts(b"m\xfcller ssh-rsa x\n{node} {ed25519}\n"),
    "known-bom": hosts("\ufeffother {other}\n" + KNOWN),
    "known-old-rsa1": hosts("{node} 1024 35 1234567\n" + KNOWN),
    "known-revoked": hosts("@revoked {node} {ed25519}\n" + KNOWN),
    "known-revoked-capitals": hosts("@revoked NODE1.lab.test {ed25519}\n" + KNOWN),
    "known-revoked-pattern": hosts("@revoked * {ed25519}\n" + KNOWN),
    "known-revoked-other-host": hosts("@revoked node2.lab.test {ed25519}\n" + KNOWN),
    "known-revoked-other-key": hosts("@revoked * {other}\n" + KNOWN),
    "known-two-files": Case(known_hosts="", files={"known_hosts2": KNOWN}),
    "known-second-wrong": Case(files={"known_hosts2": "{node} {other}\n"}),
    "known-system": Case(known_hosts=None, system={"ssh_known_hosts": KNOWN}),
    "known-system-2": Case(known_hosts=None, system={"ssh_known_hosts2": KNOWN}),
    "known-system-revoked": Case(system={"ssh_known_hosts": "@revoked * {ed25519}\n"}),
    "known-global-elsewhere": config(
        "GlobalKnownHostsFile ~/.ssh/global\n" + BASE, known_hosts=None, files={"global": KNOWN}
    ),
    "known-global-beside-users": config("GlobalKnownHostsFile /nowhere\n" + BASE),
    "known-user-elsewhere": config("UserKnownHostsFile ~/.ssh/kh\n" + BASE, known_hosts=None, files={"kh": KNOWN}),
    "known-user-elsewhere-missing": config("UserKnownHostsFile ~/.ssh/kh\n" + BASE),
    "known-user-two": config(
        "UserKnownHostsFile ~/.ssh/nope ~/.ssh/kh\n" + BASE, known_hosts=None, files={"kh": KNOWN}
    ),
    "known-user-token": config(
        "UserKnownHostsFile ~/.ssh/kh-%h\n" + BASE, known_hosts=None, files={"kh-{node}": KNOWN}
    ),
    "known-user-variable": config("UserKnownHostsFile ${HOME}/.ssh/kh\n" + BASE, known_hosts=None, files={"kh": KNOWN}),
    "known-user-quoted": config('UserKnownHostsFile "~/.ssh/k h"\n' + BASE, known_hosts=None, files={"k h": KNOWN}),
    "known-user-none": config("UserKnownHostsFile none\n" + BASE),
    "known-user-none-wrong-key": config("UserKnownHostsFile none\n" + BASE, known_hosts="{node} {other}\n"),
    "known-user-null": config("UserKnownHostsFile /dev/null\n" + BASE),
    "known-folder": config("UserKnownHostsFile ~/keys ~/.ssh/known_hosts\n" + BASE),
    "known-unreadable": Case(modes={"known_hosts": 0}),
    "known-unreadable-and-second": Case(known_hosts="x\n", modes={"known_hosts": 0}, files={"known_hosts2": KNOWN}),
    "known-alias": config("HostKeyAlias nick\n" + BASE, known_hosts="nick {ed25519}\n"),
    "known-alias-only-name": config("HostKeyAlias nick\n" + BASE),
    "known-alias-capitals": config("HostKeyAlias Nick\n" + BASE, known_hosts="nick {ed25519}\n"),
    "known-alias-port": config(
        f"HostKeyAlias nick\nPort {AES192}\nCiphers aes192-ctr\n" + BASE, known_hosts="nick {ed25519}\n"
    ),
    "strict-no": config("StrictHostKeyChecking no\n" + BASE, known_hosts="", stricter="host keys are always checked"),
    "strict-no-wrong-key": config(
        "StrictHostKeyChecking no\n" + BASE, known_hosts="{node} {other}\n", stricter="they are always checked"
    ),
    "strict-accept-new": config(
        "StrictHostKeyChecking accept-new\n" + BASE, known_hosts="", stricter="they are always checked"
    ),
    "strict-yes": config("StrictHostKeyChecking yes\n" + BASE),
    "check-host-ip": config("CheckHostIP yes\n" + BASE),
    # -- ports -------------------------------------------------------------------------------------------------------
    "port-known": port(RSA_HOST, known=f"[{{node}}]:{RSA_HOST} {{rsa}}\n"),
    "port-known-without-port": port(RSA_HOST, known="{node} {rsa}\n"),
    "port-known-wrong-with-port": port(RSA_HOST, known=f"[{{node}}]:{RSA_HOST} {{other_rsa}}\n{{node}} {{rsa}}\n"),
    "port-known-other-type-with-port": port(RSA_HOST, known=f"[{{node}}]:{RSA_HOST} {{ed25519}}\n{{node}} {{rsa}}\n"),
    "port-known-other-port": port(RSA_HOST, known="[{node}]:2299 {rsa}\n"),
    "port-closed": port(2299),
    # OpenSSH 9.2 does not know `~` here, newer ones do: whole paths.
    # -- revocation --------------------------------------------------------------------------------------------------
    "revoked-file": config("RevokedHostKeys /home/gateway/.ssh/revoked\n" + BASE, files={"revoked": "{ed25519}\n"}),
    "revoked-file-other": config("RevokedHostKeys /home/gateway/.ssh/revoked\n" + BASE, files={"revoked": "{other}\n"}),
    "revoked-file-comments": config(
        "RevokedHostKeys /home/gateway/.ssh/revoked\n" + BASE, files={"revoked": "# x\n\n{other} c\n"}
    ),
    "revoked-file-empty": config("RevokedHostKeys /home/gateway/.ssh/revoked\n" + BASE, files={"revoked": ""}),
    "revoked-file-missing": config("RevokedHostKeys /home/gateway/.ssh/revoked\n" + BASE),
    "revoked-file-garbage": config(
        "RevokedHostKeys /home/gateway/.ssh/revoked\n" + BASE, files={"revoked": "nonsense\n"}
    ),
    "revoked-none": config("RevokedHostKeys none\n" + BASE),
    "revoked-list": config("RevokedHostKeys /home/gateway/keys/host.krl\n" + BASE),
    "revoked-list-other": config("RevokedHostKeys /home/gateway/keys/other.krl\n" + BASE),
    "revoked-list-digest": config("RevokedHostKeys /home/gateway/keys/digest.krl\n" + BASE),
    # -- certificates of hosts ---------------------------------------------------------------------------------------
    "host-certificate": port(CERTIFIED, known="@cert-authority *.lab.test {ca}\n"),
    "host-certificate-port": port(CERTIFIED, known=f"@cert-authority [*.lab.test]:{CERTIFIED} {{ca}}\n"),
    "host-certificate-capitals": port(CERTIFIED, known="@cert-authority *.LAB.TEST {ca}\n"),
    "host-certificate-other-authority": port(CERTIFIED, known="@cert-authority * {other}\n"),
    "host-certificate-other-authority-plain-key": port(
        CERTIFIED, known="@cert-authority * {other}\n{node} {ed25519}\n"
    ),
    "host-certificate-plain-key": port(CERTIFIED, known="{node} {ed25519}\n"),
    "host-certificate-revoked-authority": port(CERTIFIED, known="@revoked * {ca}\n@cert-authority * {ca}\n"),
    "host-certificate-revoked-key": port(CERTIFIED, known="@revoked * {ed25519}\n@cert-authority * {ca}\n"),
    "host-certificate-other-principal": port(CERTIFIED, known="@cert-authority * {ca}\n", host="{address}"),
    "host-certificate-alias": port(
        CERTIFIED, "HostKeyAlias {node}\n", known="@cert-authority * {ca}\n", host="{address}"
    ),
    "authority-without-certificate": hosts("@cert-authority * {ca}\n"),
    "authority-and-plain-key": hosts("@cert-authority * {ca}\n" + KNOWN),
    # -- KnownHostsCommand -------------------------------------------------------------------------------------------
    "command": config(
        "KnownHostsCommand /bin/cat /home/gateway/.ssh/kh\n" + BASE, known_hosts=None, files={"kh": KNOWN}
    ),
    "command-token": config(
        "KnownHostsCommand /bin/cat /home/gateway/.ssh/kh-%H\n" + BASE, known_hosts=None, files={"kh-{node}": KNOWN}
    ),
    "command-says-nothing": config("KnownHostsCommand /bin/true\n" + BASE),
    "command-fails": config(
        "KnownHostsCommand /bin/false\n" + BASE, kinder="ssh is as strict as this; a file still knows it"
    ),
    "command-revokes": config(
        "KnownHostsCommand /bin/cat /home/gateway/.ssh/kh\n" + BASE, files={"kh": "@revoked * {ed25519}\n"}
    ),
    # -- identities --------------------------------------------------------------------------------------------------
    "identity-missing-then-good": config("User lab\nIdentityFile ~/keys/nope\n" + BY_KEY),
    "identity-good-then-missing": config(BASE + "IdentityFile ~/keys/nope\n"),
    "identity-missing": config("User lab\nIdentityFile ~/keys/nope\n"),
    "identity-bad": config("User lab\nIdentityFile ~/keys/bad\n"),
    "identity-bad-then-good": config("User lab\nIdentityFile ~/keys/bad\n" + BY_KEY),
    "identity-rsa": config("User lab\nIdentityFile ~/keys/good_rsa\n"),
    "identity-ecdsa": config("User lab\nIdentityFile ~/keys/good_ecdsa\n"),
    "identity-pem": config("User lab\nIdentityFile ~/keys/good_pem\n"),
    "identity-default": config("User lab\n", files={"id_ed25519": "@good"}, modes={"id_ed25519": 0o600}),
    "identity-default-rsa": config("User lab\n", files={"id_rsa": "@good_rsa"}, modes={"id_rsa": 0o600}),
    "identity-default-broken-beside": config(
        "User lab\n", files={"id_ed25519": "@good", "id_rsa": "garbage"}, modes={"id_ed25519": 0o600, "id_rsa": 0o600}
    ),
    "identity-default-stray-certificate": config(
        "User lab\n",
        files={"id_ed25519": "@good", "id_ed25519-cert.pub": "@certified-cert.pub"},
        modes={"id_ed25519": 0o600},
    ),
    "identity-none": config(
        "User lab\nIdentityFile none\n", files={"id_ed25519": "@good"}, modes={"id_ed25519": 0o600}
    ),
    "identity-garbage-then-good": config(
        "User lab\nIdentityFile ~/.ssh/x\n" + BY_KEY, files={"x": "garbage"}, modes={"x": 0o600}
    ),
    "identity-empty-then-good": config(
        "User lab\nIdentityFile ~/.ssh/x\n" + BY_KEY, files={"x": ""}, modes={"x": 0o600}
    ),
    "identity-folder-then-good": config("User lab\nIdentityFile ~/keys\n" + BY_KEY),
    "identity-unreadable-then-good": config(
        "User lab\nIdentityFile ~/.ssh/x\n" + BY_KEY, files={"x": "@bad"}, modes={"x": 0}
    ),
    "identity-open-permissions": config("User lab\nIdentityFile ~/.ssh/x\n", files={"x": "@good"}, modes={"x": 0o644}),
    "identity-group-permissions": config("User lab\nIdentityFile ~/.ssh/x\n", files={"x": "@good"}, modes={"x": 0o640}),
    "identity-read-only": config("User lab\nIdentityFile ~/.ssh/x\n", files={"x": "@good"}, modes={"x": 0o400}),
    "identity-public-half": config("User lab\nIdentityFile ~/keys/good.pub\n"),
    "identity-public-half-agent": config("User lab\nIdentityFile ~/keys/good.pub\n", agent=("good",)),
    "identity-public-half-agent-only": config(
        "User lab\nIdentitiesOnly yes\nIdentityFile ~/keys/good.pub\n", agent=("bad", "good")
    ),
    "identity-name-without-private": config("User lab\nIdentityFile ~/.ssh/x\n", files={"x.pub": "@good.pub"}),
    "identity-name-without-private-agent": config(
        "User lab\nIdentitiesOnly yes\nIdentityFile ~/.ssh/x\n", files={"x.pub": "@good.pub"}, agent=("bad", "good")
    ),
    "identity-locked": config("User lab\nIdentityFile ~/keys/locked\n"),
    "identity-locked-then-good": config("User lab\nIdentityFile ~/keys/locked\n" + BY_KEY),
    "identity-locked-agent": config("User lab\nIdentityFile ~/keys/locked\n", agent=("unlocked",)),
    "identity-locked-agent-only": config(
        "User lab\nIdentitiesOnly yes\nIdentityFile ~/keys/locked\n", agent=("bad", "unlocked")
    ),
    "identity-locked-without-public-agent": config(
        "User lab\nIdentitiesOnly yes\nIdentityFile ~/.ssh/x\n",
        files={"x": "@locked"},
        modes={"x": 0o600},
        agent=("unlocked",),
    ),
    "identity-token": config(
        "User lab\nIdentityFile ~/keys/%k\n", files={"~/keys/{node}": "@good"}, modes={"~/keys/{node}": 0o600}
    ),
    "identity-many": config(
        "User lab\n" + "".join(f"IdentityFile ~/keys/bad{number}\n" for number in range(4)) + BY_KEY
    ),
    "identity-too-many": port(FEW_TRIES, "".join(f"IdentityFile ~/keys/bad{number}\n" for number in range(4))),
    "identity-publickey-off": config("PubkeyAuthentication no\n" + BASE),
    "agent": config("User lab\n", agent=("good",)),
    "agent-bad": config("User lab\n", agent=("bad",)),
    "agent-several": config("User lab\n", agent=("bad", "good_rsa", "good")),
    "agent-only-files": config("User lab\nIdentitiesOnly yes\n", agent=("good",)),
    "agent-only-other-file": config("User lab\nIdentitiesOnly yes\nIdentityFile ~/keys/bad\n", agent=("good",)),
    "agent-none": config("User lab\nIdentityAgent none\n", agent=("good",)),
    "agent-by-path": config("User lab\nIdentityAgent ~/agent.sock\n", agent=("good",)),
    "agent-by-variable": config("User lab\nIdentityAgent $SSH_AUTH_SOCK\n", agent=("good",)),
    "agent-by-name": config("User lab\nIdentityAgent SSH_AUTH_SOCK\n", agent=("good",)),
    "agent-gone": config("IdentityAgent /nowhere/agent\n" + BASE),
    "agent-not-a-socket": config("IdentityAgent ~/keys/good\n" + BASE),
    "agent-certificate": config("User certified\n", agent=("certified",)),
    "certificate-beside": config("User certified\nIdentityFile ~/keys/certified\n"),
    "certificate-file": config(
        "User certified\nIdentityFile ~/keys/certified_plain\nCertificateFile ~/keys/certified-cert.pub\n"
    ),
    "certificate-missing": config("CertificateFile ~/keys/nope-cert.pub\n" + BASE),
    "certificate-garbage": config("CertificateFile ~/.ssh/x\n" + BASE, files={"x": "garbage"}),
    "certificate-of-agents-key": config(
        "User certified\nIdentityFile ~/keys/certified_plain.pub\nCertificateFile ~/keys/certified-cert.pub\n",
        agent=("certified_plain",),
    ),
    "pkcs11": config("PKCS11Provider /nowhere/pkcs11.so\n" + BASE),
    "preferred": config("PreferredAuthentications publickey\n" + BASE),
    "preferred-password": config("PreferredAuthentications password\n" + BASE),
    "rsa-size": config("RequiredRSASize 4096\nUser lab\nIdentityFile ~/keys/good_rsa\n"),
    "rsa-size-host": port(RSA_HOST, "RequiredRSASize 4096\n", known="{node} {rsa}\n"),
    "accepted-algorithms": config("PubkeyAcceptedAlgorithms rsa-sha2-256\nUser lab\nIdentityFile ~/keys/good_rsa\n"),
    "accepted-algorithms-exclude": config("PubkeyAcceptedAlgorithms rsa-sha2-256\n" + BASE),
    # -- algorithms --------------------------------------------------------------------------------------------------
    "ciphers-old-server": port(AES192),
    "ciphers-restricted": port(AES192, "Ciphers aes256-ctr\n"),
    "ciphers-named": port(AES192, "Ciphers aes192-ctr\n"),
    "ciphers-wrong": config("Ciphers aes999\n" + BASE),
    "host-key-rsa": port(RSA_HOST, known="{node} {rsa}\n"),
    "host-key-rsa-known-ed25519": port(RSA_HOST, known="{node} {ed25519}\n"),
    "host-key-ecdsa": port(ECDSA_HOST, known="{node} {ecdsa}\n"),
    "host-key-ecdsa-known-ed25519": port(ECDSA_HOST, known="{node} {ed25519}\n"),
    "host-key-algorithms": config("HostKeyAlgorithms rsa-sha2-512\n" + BASE, known_hosts="{node} {rsa}\n"),
    "host-key-algorithms-other": config("HostKeyAlgorithms rsa-sha2-512\n" + BASE),
    "host-key-algorithms-both": config("HostKeyAlgorithms ecdsa-sha2-nistp256,ssh-ed25519\n" + BASE),
    "host-key-sha1": port(SHA1, known="{node} {rsa}\n"),
    "host-key-sha1-allowed": port(SHA1, "HostKeyAlgorithms +ssh-rsa\n", known="{node} {rsa}\n"),
    "kex-old": port(GROUP1),
    "kex-old-allowed": port(GROUP1, "KexAlgorithms +diffie-hellman-group14-sha1\n"),
    "kex-named": config("KexAlgorithms curve25519-sha256\n" + BASE),
    "macs-old": port(MD5, "Ciphers aes256-ctr\n"),
    "macs-old-allowed": port(MD5, "Ciphers aes256-ctr\nMACs +hmac-md5\n"),
    "compression": config("Compression yes\n" + BASE),
    "rekey": config("RekeyLimit 16K\n" + BASE),
    # -- ways --------------------------------------------------------------------------------------------------------
    "hostname": config("Host it\n  HostName {node}\n" + BASE, host="it"),
    "hostname-address": config("Host it\n  HostName {address}\n  HostKeyAlias {node}\n" + BASE, host="it"),
    "hostname-token": config("Host node1\n  HostName %h.lab.test\n" + BASE, host="node1"),
    "family-inet": config("AddressFamily inet\n" + BASE),
    "family-inet6": config("AddressFamily inet6\n" + BASE),
    "bind": config("BindAddress 0.0.0.0\n" + BASE),
    "bind-nowhere": config("BindAddress 192.0.2.1\n" + BASE),
    "name-unknown": config(BASE, host="nowhere.invalid"),
    "jump": config(
        "Host it\n  HostName {node}\n  ProxyJump {address}\n" + BASE,
        host="it",
        known_hosts="{node},{address} {ed25519}\n",
    ),
    "jump-user": config(
        "Host it\n  HostName {node}\n  ProxyJump alice@{address}\n" + BASE,
        host="it",
        known_hosts="{node},{address} {ed25519}\n",
    ),
    "jump-port": config(
        f"Host it\n  HostName {{node}}\n  ProxyJump {{address}}:{RSA_HOST}\n" + BASE,
        host="it",
        known_hosts=f"{{node}} {{ed25519}}\n[{{address}}]:{RSA_HOST} {{rsa}}\n",
    ),
    "jump-token": config(
        "Host it\n  HostName {node}\n  ProxyJump %r@{address}\n" + BASE,
        host="it",
        known_hosts="{node},{address} {ed25519}\n",
    ),
    "jump-alias": config(
        "Host gate\n  HostName {address}\n  HostKeyAlias gate\nHost it\n  HostName {node}\n  ProxyJump gate\nHost *\n"
        + BASE,
        host="it",
        known_hosts="{node},gate {ed25519}\n",
    ),
    "jump-chain": config(
        "Host a b\n  HostName {address}\n  HostKeyAlias gate\nHost it\n  HostName {node}\n  ProxyJump a,b\nHost *\n"
        + BASE,
        host="it",
        known_hosts="{node},gate {ed25519}\n",
    ),
    "jump-of-jump": config(
        "Host a b\n  HostName {address}\n  HostKeyAlias gate\nHost b\n  ProxyJump a\n"
        "Host it\n  HostName {node}\n  ProxyJump b\nHost *\n" + BASE,
        host="it",
        known_hosts="{node},gate {ed25519}\n",
    ),
    "jump-unknown-key": config("Host it\n  HostName {node}\n  ProxyJump {address}\n" + BASE, host="it"),
    "jump-none": config(
        "Host it\n  HostName {node}\n  ProxyJump none\nHost *\n  ProxyJump nowhere\n" + BASE, host="it"
    ),
    "jump-loop": config(
        "Host it\n  HostName {node}\nHost *\n  ProxyJump {address}\n" + BASE,
        host="it",
        known_hosts="{node},{address} {ed25519}\n",
    ),
    "jump-to-itself": config("ProxyJump {node}\n" + BASE),
    "jump-to-itself-by-another-name": config(
        "Host it\n  HostName {node}\nHost *\n  ProxyJump {node}\n" + BASE, host="it"
    ),
    "jump-nowhere": config("Host it\n  HostName {node}\n  ProxyJump nowhere.invalid\n" + BASE, host="it"),
    "jump-final": config(
        "Match final host {node}\n  ProxyJump {address}\nHost *\n" + BASE, known_hosts="{node},{address} {ed25519}\n"
    ),
    "jump-then-command": config(
        "Host it\n  HostName {node}\n  ProxyJump {address}\n  ProxyCommand false\n" + BASE,
        host="it",
        known_hosts="{node},{address} {ed25519}\n",
    ),
    "command-then-jump": config(
        "Host it\n  HostName {node}\n  ProxyCommand nc %h %p\n  ProxyJump nowhere\n" + BASE, host="it"
    ),
    "proxy": config("ProxyCommand nc %h %p\n" + BASE),
    "proxy-equals": config("ProxyCommand=nc %h %p\n" + BASE),
    "proxy-equals-blanks": config("ProxyCommand = nc %h %p\n" + BASE),
    "proxy-stderr-closed": config("ProxyCommand nc %h %p 2>/dev/null\n" + BASE),
    "proxy-substitution": config("ProxyCommand nc $(printf %%s %h) %p\n" + BASE),
    "proxy-tilde": config(
        "ProxyCommand ~/proxy %h %p\n" + BASE, files={"~/proxy": '#!/bin/sh\nexec nc "$@"\n'}, modes={"~/proxy": 0o755}
    ),
    "proxy-home": config(
        "ProxyCommand $HOME/proxy %h %p\n" + BASE,
        files={"~/proxy": '#!/bin/sh\nexec nc "$@"\n'},
        modes={"~/proxy": 0o755},
    ),
    "proxy-default": config("ProxyCommand nc ${NOPE:-{node}} %p\n" + BASE),
    "proxy-comment": config("ProxyCommand nc %h %p # Ann's\n" + BASE),
    "proxy-noise": config("ProxyCommand sh -c 'echo noise >&2; exec nc %h %p'\n" + BASE),
    "proxy-late-noise": config("ProxyCommand sh -c '(sleep 0.05; echo noise >&2)& exec nc %h %p'\n" + BASE),
    "proxy-noise-without-end": config("ProxyCommand sh -c '(yes >&2)& exec nc %h %p'\n" + BASE, kinder=""),
    "proxy-fails": config("ProxyCommand sh -c 'echo bastion says no >&2; exit 3'\n" + BASE),
    "proxy-missing": config("ProxyCommand nosuchprogram %h %p\n" + BASE),
    "proxy-none": config("ProxyCommand none\n" + BASE),
    "proxy-unknown-token": config("ProxyCommand nc %x %p\n" + BASE),
    "proxy-fdpass": config("ProxyCommand nc -F %h %p\nProxyUseFdpass yes\n" + BASE),
    "proxy-by-ssh": config(
        "Host it\n  HostName {node}\n  ProxyCommand ssh -W %h:%p gate\nHost gate\n  HostName {node}\nHost *\n" + BASE,
        host="it",
    ),
    "proxy-dead-name": config(
        "Host it\n  HostName only-the-proxy-knows\n  HostKeyAlias {node}\n  ProxyCommand nc {node} %p\n" + BASE,
        host="it",
    ),
    # -- files -------------------------------------------------------------------------------------------------------
    "system-config": config("", system={"ssh_config": BASE}),
    "system-config-d": config(
        "", system={"ssh_config": "Include /etc/ssh/ssh_config.d/*.conf\n", "ssh_config.d/10.conf": BASE}
    ),
    "system-config-behind-users": config("User lab\n", system={"ssh_config": "User nobody\n" + BY_KEY}),
    "config-writable-by-group": Case(modes={"config": 0o664}),
    "config-unreadable": Case(modes={"config": 0}, files={"id_ed25519": "@good"}),
    "config-broken": config("Nonsense\n" + BASE, kinder="our own reader passes a bad line over"),
    "config-remote-command": config("RemoteCommand echo no\n" + BASE, kinder="ssh refuses to run two commands"),
    "config-request-tty": config("RequestTTY force\n" + BASE),
    "config-control-master": config("ControlMaster no\nControlPath none\n" + BASE),
    "send-env": config("SendEnv LANG LC_*\n" + BASE),
    "set-env": config("SetEnv FOO=bar\n" + BASE),
    "gssapi": config("GSSAPIAuthentication yes\n" + BASE),
    # -- the gateway's own host key ----------------------------------------------------------------------------------
    "host-based": by_host(),
    "host-based-keysign-off": by_host(system={}),
    "host-based-keysign-by-user": by_host("EnableSSHKeysign yes\n", system={}),
    "host-based-off": by_host("HostbasedAuthentication no\n"),
    "host-based-not-at-host": by_host(number=RSA_USERS),
    "host-based-other-user": by_host("User lab\n"),
    "host-based-then-key": by_host(
        "PreferredAuthentications hostbased,publickey\nUser lab\nIdentityFile ~/keys/good\n"
    ),
    "host-based-keysign-off-then-key": by_host("User lab\nIdentityFile ~/keys/good\n", system={}),
    "host-based-behind-keys": by_host("PreferredAuthentications publickey,hostbased\nIdentityFile ~/keys/bad\n"),
    "host-based-not-preferred": by_host("PreferredAuthentications publickey\n"),
    "host-based-proxy": by_host("ProxyCommand nc %h %p\n"),
    "host-based-fdpass": by_host("ProxyCommand nc -F %h %p\nProxyUseFdpass yes\n"),
    "host-based-jump": config(
        f"Host it\n  HostName {{node}}\n  Port {HOST_BASED}\n  ProxyJump {{address}}\n{BY_HOST}Host *\n{BASE}",
        host="it",
        known_hosts=f"[{{node}}]:{HOST_BASED},{{address}} {{ed25519}}\n",
        system=SIGNS,
    ),
    "host-based-rsa": by_host("HostbasedAcceptedAlgorithms rsa-sha2-256\n"),
    "host-based-old-keyword": by_host("HostbasedKeyTypes rsa-sha2-512\n"),
    "host-based-sha1": by_host("HostbasedAcceptedAlgorithms ssh-rsa\n"),
    "host-based-no-such-key": by_host("HostbasedAcceptedAlgorithms ecdsa-sha2-nistp521\n"),
    "host-based-unknown-algorithm": by_host("HostbasedAcceptedAlgorithms ssh-future\n", kinder=""),
    "host-based-users-algorithms": by_host("PubkeyAcceptedAlgorithms rsa-sha2-256\n"),
    "host-based-and-key": by_host("User certified\nIdentityFile ~/keys/certified\n", number=HOST_AND_KEY),
    "host-based-and-no-key": by_host(number=HOST_AND_KEY),
    # -- what signs certificates, and what revokes them ----------------------------------------------------------------
    "authority-rsa": port(BY_RSA, known="@cert-authority * {ca_rsa}\n"),
    "authority-sha1": port(BY_SHA1, known="@cert-authority * {ca_rsa}\n"),
    "authority-sha1-allowed": port(BY_SHA1, "CASignatureAlgorithms +ssh-rsa\n", known="@cert-authority * {ca_rsa}\n"),
    "authority-sha1-plain-key": port(
        BY_SHA1, known=f"@cert-authority * {{ca_rsa}}\n[{{node}}]:{BY_SHA1} {{ed25519}}\n"
    ),
    "authority-algorithms": port(CERTIFIED, "CASignatureAlgorithms ssh-ed25519\n", known="@cert-authority * {ca}\n"),
    "authority-algorithms-others": port(
        CERTIFIED, "CASignatureAlgorithms rsa-sha2-512\n", known="@cert-authority * {ca}\n"
    ),
    "authority-algorithms-removed": port(
        CERTIFIED, "CASignatureAlgorithms -*ed25519*\n", known="@cert-authority * {ca}\n"
    ),
    "authority-algorithms-rsa": port(
        BY_RSA, "CASignatureAlgorithms rsa-sha2-512\n", known="@cert-authority * {ca_rsa}\n"
    ),
    "authority-algorithms-rsa-others": port(
        BY_RSA, "CASignatureAlgorithms rsa-sha2-256\n", known="@cert-authority * {ca_rsa}\n"
    ),
    "authority-algorithms-of-users": config(
        "CASignatureAlgorithms rsa-sha2-512\nUser certified\nIdentityFile ~/keys/certified\n"
    ),
    "certificate-expired": port(EXPIRED, known="@cert-authority * {ca}\n"),
    "certificate-expired-plain-key": port(
        EXPIRED, known=f"@cert-authority * {{ca}}\n[{{node}}]:{EXPIRED} {{ed25519}}\n"
    ),
    "certificate-for-no-name": port(UNNAMED, known="@cert-authority * {ca}\n"),
    "certificate-for-pattern": port(
        WILD, known="@cert-authority * {ca}\n", kinder="OpenSSH takes patterns there from 10.3 on"
    ),
    "certificate-for-pattern-other": port(WILD, known="@cert-authority * {ca}\n", host="{address}"),
    "certificate-demands": port(DEMANDING, known="@cert-authority * {ca}\n"),
    "certificate-of-users": port(OF_USERS, known="@cert-authority * {ca}\n"),
    "certificate-rsa": port(RSA_CERTIFIED, known="@cert-authority * {ca}\n"),
    "certificate-rsa-algorithms": port(
        RSA_CERTIFIED,
        "HostKeyAlgorithms rsa-sha2-256-cert-v01@openssh.com\n",
        known="@cert-authority * {ca}\n",
    ),
    **{
        f"revoked-certificate-{name}": port(
            CERTIFIED,
            f"RevokedHostKeys /home/gateway/keys/{name}.krl\n",
            known="@cert-authority * {ca}\n",
        )
        for name in (
            *("serial:7", "serial:5-9", "serial:8", "id:host", "id:guest", "ca"),
            *("host", "other", "sha1", "sha256", "digest"),  # all but the second mean the certificate's own key
        )
    },
    "revoked-certificate-plain-key": port(CERTIFIED, "RevokedHostKeys /home/gateway/keys/serial:7.krl\n"),
    "revoked-certificate-of-none": config("RevokedHostKeys /home/gateway/keys/id:host.krl\n" + BASE),
    # -- addresses -----------------------------------------------------------------------------------------------------
    "check-host-ip-same": config("CheckHostIP yes\n" + BASE, known_hosts="{node},{address} {ed25519}\n"),
    "check-host-ip-other": config("CheckHostIP yes\n" + BASE, known_hosts=KNOWN + "{address} {other}\n"),
    "check-host-ip-other-type": config("CheckHostIP yes\n" + BASE, known_hosts=KNOWN + "{address} {rsa}\n"),
    "check-host-ip-several": config(
        "CheckHostIP yes\n" + BASE, known_hosts=KNOWN + "{address} {other}\n{address} {ed25519}\n"
    ),
    "check-host-ip-off": config("CheckHostIP no\n" + BASE, known_hosts=KNOWN + "{address} {other}\n"),
    "check-host-ip-proxy": config(
        "CheckHostIP yes\nProxyCommand nc %h %p\n" + BASE, known_hosts=KNOWN + "{address} {other}\n"
    ),
    "check-host-ip-jump": config(
        "Host it\n  HostName {node}\n  ProxyJump {short}\nHost *\n  CheckHostIP yes\n" + BASE,
        host="it",
        known_hosts="{node},{short},{address} {ed25519}\n",
    ),
    "check-host-ip-alias": config(
        "CheckHostIP yes\nHostKeyAlias nick\n" + BASE, known_hosts="nick {ed25519}\n{address} {other}\n"
    ),
    "check-host-ip-port": port(
        TALKATIVE,
        "CheckHostIP yes\n",
        known=f"[{{node}}]:{TALKATIVE} {{ed25519}}\n[{{address}}]:{TALKATIVE} {{other}}\n",
    ),
    "check-host-ip-other-port": port(
        TALKATIVE, "CheckHostIP yes\n", known=f"[{{node}}]:{TALKATIVE} {{ed25519}}\n{{address}} {{other}}\n"
    ),
    "check-host-ip-certificate": port(
        CERTIFIED, "CheckHostIP yes\n", known="@cert-authority * {ca}\n[{address}]:2204 {other}\n"
    ),
    "check-host-ip-command": config(
        "CheckHostIP yes\nKnownHostsCommand /bin/cat /home/gateway/.ssh/%I\n" + BASE,
        files={"HOSTNAME": KNOWN, "ADDRESS": "{address} {other}\n", "ORDER": ""},
    ),
    "update-host-keys": config("UpdateHostKeys yes\n" + BASE),
    "verify-host-key-dns": config("VerifyHostKeyDNS yes\n" + BASE),
    "no-host-authentication": config("NoHostAuthenticationForLocalhost yes\n" + BASE, known_hosts=""),
    # -- other servers -------------------------------------------------------------------------------------------------
    "three-keys-known-ed25519": port(THREE_KEYS),
    "three-keys-known-rsa": port(THREE_KEYS, known=f"[{{node}}]:{THREE_KEYS} {{rsa}}\n"),
    "three-keys-known-ecdsa": port(THREE_KEYS, known=f"[{{node}}]:{THREE_KEYS} {{ecdsa}}\n"),
    "three-keys-one-wrong": port(
        THREE_KEYS, known=f"[{{node}}]:{THREE_KEYS} {{other}}\n[{{node}}]:{THREE_KEYS} {{rsa}}\n"
    ),
    "three-keys-one-revoked": port(
        THREE_KEYS,
        known=f"@revoked * {{ed25519}}\n[{{node}}]:{THREE_KEYS} {{ed25519}}\n[{{node}}]:{THREE_KEYS} {{rsa}}\n",
    ),
    "banner": port(TALKATIVE),
    "two-keys": port(TWO_KEYS, "IdentityFile ~/keys/good_rsa\n"),
    "two-keys-one-there": port(TWO_KEYS),
    "two-ways-one-there": port(TWO_WAYS),
    "rsa-users": port(RSA_USERS, "IdentityFile ~/keys/good_rsa\n"),
    "rsa-users-other-algorithm": port(
        RSA_USERS, "PubkeyAcceptedAlgorithms rsa-sha2-256\nIdentityFile ~/keys/good_rsa\n"
    ),
    "rsa-users-other-key": port(RSA_USERS),
    "no-password": config(
        f"Port {NO_PASSWORD}\nUser open\nIdentityFile none\n", known_hosts=f"[{{node}}]:{NO_PASSWORD} {{ed25519}}\n"
    ),
    "chacha": port(CHACHA),
    "umac": port(UMAC),
    # -- ssh_config as others write it -------------------------------------------------------------------------------
    "crlf": config("Host *\r\n  User lab\r\n  IdentityFile ~/keys/good\r\n"),
    "capitals": config("HOST *\n  USER lab\n  identityFILE ~/keys/good\n"),
    "tabs": config("Host\t*\n\tUser\tlab\n\tIdentityFile\t~/keys/good\n"),
    "equals-everywhere": config("Host=*\nUser = lab\nIdentityFile=~/keys/good"),
    "quoted": config('Host "*"\n  User "lab"\n  IdentityFile "~/keys/good"\n'),
    "host-negated": config("Host * !node1*\n  User nobody\nHost *\n" + BASE),
    "host-negated-alone": config("Host !node2*\n  User lab\nHost *\n  User nobody\n" + BY_KEY),
    "host-of-address": config("Host 10.* 172.* 192.168.*\n  User nobody\nHost *\n" + BASE),
    "match-exec": config('Match exec "test %n = {node}"\n  User lab\nMatch all\n  User nobody\n' + BY_KEY),
    "match-localuser": config("Match localuser gateway,root\n" + BASE),
    "match-not-user": config("Match !user alice host *.lab.test\n" + BASE),
    "match-user-of-before": config("User lab\nMatch user lab\n" + BY_KEY),
    "include-in-block": config("Host *.lab.test\n  Include more\nHost *\n  User nobody\n", files={"more": BASE}),
    "include-glob": config(
        "Include conf.d/*.conf\n",
        files={"conf.d/20.conf": "User nobody\n", "conf.d/10.conf": BASE, "conf.d/x.off": "User alice\n"},
        modes={"conf.d": 0o755},
    ),
    "include-with-block": config(
        "Include more\nUser lab\n", files={"more": "Host elsewhere\n  User nobody\nHost *\n" + BY_KEY}
    ),
    "ignore-unknown": config("IgnoreUnknown UseKeychain,AddKeys*\nUseKeychain yes\n" + BASE),
    "old-keywords": config("Protocol 2\nRSAAuthentication yes\nUseRoaming no\nKeepAlive yes\n" + BASE),
    "canonical": config("CanonicalizeHostname yes\nCanonicalDomains nowhere.invalid lab.test\n" + BASE, host="{short}"),
    "canonical-match": config(
        "CanonicalizeHostname yes\nCanonicalDomains lab.test\nMatch canonical host *.lab.test\n" + BASE, host="{short}"
    ),
    "canonical-no-fallback": config(
        "CanonicalizeHostname yes\nCanonicalDomains nowhere.invalid\nCanonicalizeFallbackLocal no\n" + BASE,
        host="{short}",
    ),
    "hostname-dot": config("Host it\n  HostName {node}.\n" + BASE, host="it"),
    "hostname-dot-known": config("Host it\n  HostName {node}.\n" + BASE, host="it", known_hosts="{node}. {ed25519}\n"),
    "hostname-short": config("Host it\n  HostName {short}\n  HostKeyAlias {node}\n" + BASE, host="it"),
    "port-by-name": config("Port ssh\n" + BASE),
    "known-port-22": hosts("[{node}]:22 {ed25519}\n"),
    "identity-of-home": config("User lab\nIdentityFile ~gateway/keys/good\n"),
    "identity-by-token-home": config("User lab\nIdentityFile %d/keys/good\n"),
    "identity-by-token-users": config(
        "User lab\nIdentityFile ~/keys/%u-%r-%p\n",
        files={"~/keys/gateway-lab-22": "@good"},
        modes={"~/keys/gateway-lab-22": 0o600},
    ),
    "identity-by-variable": config("User lab\nIdentityFile ${HOME}/keys/good\n"),
    "identity-by-variable-unset": config(
        "User lab\nIdentityFile ${NOPE}/keys/bad\n" + BY_KEY, kinder="that key alone is passed over"
    ),
    "identity-relative": config("User lab\nIdentityFile keys/good\n"),
    "identity-none-then-good": config("User lab\nIdentityFile none\n" + BY_KEY),
    "identity-pkcs8": config("User lab\nIdentityFile ~/keys/good_pkcs8\n"),
    "identity-ec-pem": config("User lab\nIdentityFile ~/keys/good_ec_pem\n"),
    "identity-nistp521": config("User lab\nIdentityFile ~/keys/good_nistp521\n"),
    "identity-others-public-half": config(
        "User lab\nIdentityFile ~/.ssh/x\n",
        files={"x": "@good", "x.pub": "@bad.pub"},
        modes={"x": 0o600},
        kinder="the private key has its public half in it",
    ),
    "identity-others-certificate": config(
        "User lab\nIdentityFile ~/.ssh/x\n",
        files={"x": "@good", "x-cert.pub": "@certified-cert.pub"},
        modes={"x": 0o600},
    ),
    "identity-twice": port(FEW_TRIES, "IdentityFile ~/keys/bad\nIdentityFile ~/keys/bad\n"),
    "identities-only-default": config(
        "User lab\nIdentitiesOnly yes\n", files={"id_rsa": "@good_rsa"}, modes={"id_rsa": 0o600}, agent=("bad",)
    ),
    "certificate-alone": config(
        "User certified\nCertificateFile ~/keys/certified-cert.pub\n",
        files={"id_ed25519": "@certified_plain"},
        modes={"id_ed25519": 0o600},
    ),
    "certificate-alone-agent": config(
        "User certified\nCertificateFile ~/keys/certified-cert.pub\n", agent=("certified_plain",)
    ),
    "agent-certificate-only": config(
        "User certified\nIdentitiesOnly yes\nIdentityFile ~/keys/certified\n", agent=("certified",)
    ),
    "agent-by-token": config("User lab\nIdentityAgent %d/agent.sock\n", agent=("good",)),
    "agent-by-braces": config("User lab\nIdentityAgent ${SSH_AUTH_SOCK}\n", agent=("good",)),
    "add-keys-to-agent": config("AddKeysToAgent yes\n" + BASE, agent=("bad",)),
    "forward-everything": config("ForwardAgent yes\nForwardX11 yes\nTunnel no\n" + BASE, agent=("bad",)),
    "preferred-unknown": config("PreferredAuthentications publickey,carrier-pigeon\n" + BASE),
    "preferred-nothing-known": config("PreferredAuthentications carrier-pigeon\n" + BASE),
    "accepted-sha1": config("PubkeyAcceptedAlgorithms +ssh-rsa\nUser lab\nIdentityFile ~/keys/good_rsa\n"),
    "accepted-only-certificates": config("PubkeyAcceptedAlgorithms *-cert-*\n" + BASE),
    "jump-by-url": config(
        "Host it\n  HostName {node}\n  ProxyJump ssh://alice@{address}:22\n" + BASE,
        host="it",
        known_hosts="{node},{address} {ed25519}\n",
    ),
    "jump-capitals": config(
        "Host gate\n  HostName {address}\nHost it\n  HostName {node}\n  ProxyJump GATE\nHost *\n" + BASE,
        host="it",
        known_hosts="{node},{address} {ed25519}\n",
    ),
    "jump-first-of-two": config(
        "Host it\n  HostName {node}\n  ProxyJump {address}\nHost *\n  ProxyCommand false\n" + BASE,
        host="it",
        known_hosts="{node},{address} {ed25519}\n",
    ),
    "jump-wrong-key-of-jump": config(
        "Host it\n  HostName {node}\n  ProxyJump {address}\n" + BASE,
        host="it",
        known_hosts="{node} {ed25519}\n{address} {other}\n",
    ),
    "bind-interface": config("BindInterface lo\n" + BASE),
    "bind-interface-missing": config("BindInterface nosuch0\n" + BASE),
    "server-alive": config("ServerAliveInterval 1\nServerAliveCountMax 1\nTCPKeepAlive no\nIPQoS none\n" + BASE),
    "log-level": config("LogLevel QUIET\nVisualHostKey yes\nFingerprintHash md5\n" + BASE),
    "rekey-time": config("RekeyLimit 1G 1h\nConnectionAttempts 2\nNumberOfPasswordPrompts 0\n" + BASE),
    # -- whatever else somebody may have written ------------------------------------------------------------------------
    "authority-hashed": port(CERTIFIED, known="@cert-authority {hashed} {ca}\n"),
    "authority-hashed-22": hosts("@cert-authority {hashed} {ca}\n" + KNOWN),
    "authority-negated": port(CERTIFIED, known="@cert-authority *,!{node} {ca}\n"),
    "revoked-hashed": hosts("@revoked {hashed} {ed25519}\n" + KNOWN),
    "revoked-crlf": hosts("@revoked * {ed25519}\r\n" + KNOWN),
    "proxy-quoted": config('ProxyCommand "nc" %h %p\n' + BASE),
    "proxy-exec": config("ProxyCommand exec nc %h %p\n" + BASE),
    "proxy-then-true": config("ProxyCommand nc %h %p; true\n" + BASE),
    "proxy-delay": config("ProxyCommand sh -c 'sleep 1; exec nc %h %p'\n" + BASE),
    "proxy-stdout-noise": config("ProxyCommand sh -c 'echo hello; exec nc %h %p'\n" + BASE),
    "proxy-alias": config("HostKeyAlias nick\nProxyCommand nc %h %p\n" + BASE, known_hosts="nick {ed25519}\n"),
    "proxy-key-token": config("HostKeyAlias {node}\nProxyCommand nc %k %p\n" + BASE),
    "identity-single-quotes": config("User lab\nIdentityFile '~/keys/good'\n"),
    "certificate-none": config("CertificateFile none\n" + BASE),
    "known-user-home": config("UserKnownHostsFile ~gateway/.ssh/kh\n" + BASE, known_hosts=None, files={"kh": KNOWN}),
    "port-zeros": config("Port 0022\n" + BASE),
    "port-twice": config("Port 22\nPort 2299\n" + BASE),
    "timeout-none": config("ConnectTimeout none\n" + BASE),
    "host-key-algorithms-caret": port(THREE_KEYS, "HostKeyAlgorithms ^rsa-sha2-256\n", known="[{node}]:2218 {rsa}\n"),
    "host-key-algorithms-minus": port(
        THREE_KEYS, "HostKeyAlgorithms -ssh-ed25519*\n", known="[{node}]:2218 {ed25519}\n"
    ),
    "pubkey-unbound": config("PubkeyAuthentication unbound\n" + BASE),
    "jump-comma": config(
        "Host it\n  HostName {node}\n  ProxyJump {address},\nHost *\n" + BASE,
        host="it",
        known_hosts="{node},{address} {ed25519}\n",
    ),
    "jump-user-empty": config(
        "Host it\n  HostName {node}\n  ProxyJump @{address}\nHost *\n" + BASE,
        host="it",
        known_hosts="{node},{address} {ed25519}\n",
    ),
    "jump-brackets": config(
        "Host it\n  HostName {node}\n  ProxyJump [{address}]:22\nHost *\n" + BASE,
        host="it",
        known_hosts="{node},{address} {ed25519}\n",
    ),
    "jump-alias-inherits": config(
        "Host it\n  HostName {node}\n  ProxyJump {short}\nHost {short}\n  HostName {address}\n  User alice\nHost *\n"
        + BASE,
        host="it",
        known_hosts="{node},{address} {ed25519}\n",
    ),
    "jump-by-certificate": config(
        "Host it\n  HostName {node}\n  Port 2204\n  ProxyJump jump\nHost jump\n  HostName {node}\n  Port 2204\nHost *\n"
        + BASE,
        host="it",
        known_hosts="@cert-authority * {ca}\n",
    ),
    "jump-two-by-certificate": config(
        "Host it\n  HostName {node}\n  ProxyJump jump,jump2\nHost jump jump2\n  HostName {node}\n  Port 2204\nHost *\n"
        + BASE,
        host="it",
        known_hosts="@cert-authority [*]:2204 {ca}\n" + KNOWN,
    ),
    "jump-two-by-other-authority": config(
        "Host it\n  HostName {node}\n  ProxyJump jump,jump2\nHost jump jump2\n  HostName {node}\n  Port 2204\nHost *\n"
        + BASE,
        host="it",
        known_hosts="@cert-authority * {other}\n[{node}]:2204 {ed25519}\n" + KNOWN,
    ),
    "jump-check-host-ip": config(
        "Host it\n  HostName {node}\n  ProxyJump jump\nHost jump\n  HostName {node}\n  CheckHostIP yes\nHost *\n"
        + BASE,
        host="it",
        known_hosts=KNOWN + "{address} {other}\n",
    ),
    "match-final-all": config("Match final all\n  User lab\nHost *\n" + BY_KEY),
    "match-negated-exec": config('Match !exec "false"\n  User alice\nMatch all\n' + BASE),
    "match-originalhost": config("Match originalhost it\n  HostName {node}\nMatch host {node}\n" + BASE, host="it"),
    "bind-name": config("BindAddress {node}\n" + BASE),
    "identity-hash": config("User lab\nIdentityFile ~/keys/good # mine\n"),
    "authority-algorithms-unknown": port(
        CERTIFIED, "CASignatureAlgorithms nonsense\n", known="@cert-authority * {ca}\n"
    ),
    "host-based-off-unknown-algorithm": config("HostbasedAcceptedAlgorithms nonsense\n" + BASE),
    "check-host-ip-known-in-system": config(
        "CheckHostIP yes\n" + BASE, system={"ssh_known_hosts": "{address} {other}\n"}
    ),
    "check-host-ip-revoked": config("CheckHostIP yes\n" + BASE, known_hosts=KNOWN + "@revoked {address} {ed25519}\n"),
    "check-host-ip-by-address": config(
        "CheckHostIP yes\n" + BASE, known_hosts="{address} {ed25519}\n", host="{address}"
    ),
    "check-host-ip-authority": config(
        "CheckHostIP yes\n" + BASE, known_hosts=KNOWN + "@cert-authority {address} {ca}\n"
    ),
}

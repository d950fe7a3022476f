"""What ssh_config says of a host: our own reader says the same as `ssh -G`, which is the oracle, on several hundred texts."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from eg_distributed.errors import SSHConfigInvalid
from eg_distributed.link.configuration import Configuration, Hop, ask, configuration, configuration_of, reader, readings
from eg_distributed.settings import Distributed
from tests.until import until_in_thread

HOST = "node1.lab.test"
needs_ssh = pytest.mark.skipif(shutil.which("ssh") is None, reason="without ssh there is no oracle")

IN_BLOCK = {
    # -- values ----------------------------------------------------------------------------------------------------
    "user": "User alice",
    "user-quoted": 'User "alice"',
    "user-equals": "User=alice",
    "user-equals-blanks": "User = alice",
    "user-tabs": "\tUser\t\talice\t",
    "user-trailing-comment": "User alice # the boss",
    "user-hash-inside": "User al#ice",
    "keyword-case": "uSeR alice",
    "two-users": "User alice\nUser bob",
    "port": "Port 2222",
    "port-service": "Port ssh",
    "port-service-name": "Port telnet",
    "port-equals": "Port=2222",
    "hostname": "HostName other.example.org",
    "hostname-token": "HostName %h.example.org",
    "hostname-percent": "HostName 100%%.example.org",
    "hostname-capitals": "HostName OTHER.Example.org",
    "hostname-address": "HostName 10.0.0.1",
    "hostname-ipv6": "HostName fe80::1",
    "alias": "HostKeyAlias some-alias",
    "alias-capitals": "HostKeyAlias Some-Alias",
    "timeout": "ConnectTimeout 10",
    "timeout-seconds": "ConnectTimeout 10s",
    "timeout-minutes": "ConnectTimeout 1m",
    "timeout-mixed": "ConnectTimeout 1m30s",
    "timeout-hours": "ConnectTimeout 1h",
    "timeout-none": "ConnectTimeout none",
    "alive": "ServerAliveInterval 1m\nServerAliveCountMax 5",
    "family-inet": "AddressFamily inet",
    "family-inet6": "AddressFamily inet6",
    "family-any": "AddressFamily any",
    "bind": "BindAddress 127.0.0.1",
    "compression": "Compression yes",
    "compression-no": "Compression no",
    "keepalive": "TCPKeepAlive no",
    "keepalive-old": "KeepAlive no",
    "rekey": "RekeyLimit 1G",
    "rekey-time": "RekeyLimit 1M 20s",
    "rekey-hour": "RekeyLimit 512K 1h",
    "rekey-default": "RekeyLimit default none",
    "preferred": "PreferredAuthentications publickey,password",
    "pubkey-no": "PubkeyAuthentication no",
    "pubkey-unbound": "PubkeyAuthentication unbound",
    "pubkey-host-bound": "PubkeyAuthentication host-bound",
    "dsa-alias": "DSAAuthentication no",
    "password-no": "PasswordAuthentication no",
    "kbdint-no": "KbdInteractiveAuthentication no",
    "challenge-alias": "ChallengeResponseAuthentication no",
    "hostbased": "HostbasedAuthentication yes",
    "gssapi": "GSSAPIAuthentication yes\nGSSAPIDelegateCredentials yes",
    "flag-true": "Compression true",
    "flag-capitals": "Compression YES",
    "rsa-size": "RequiredRSASize 2048",
    "user-escaped": r"User al\ ice",
    "user-zero-byte": "User alice\0bob",
    "user-line-separator": "User alice\u2028bob",
    "user-form-feed-inside": "User ali\fce",
    "hostname-short-address": "HostName 10.1",
    "hostname-octal-address": "HostName 010.0.0.1",
    "hostname-number": "HostName 1234",
    "hostname-long-ipv6": "HostName 2001:db8:0:0::1",
    "hostname-ipv6-capitals": "HostName FE80::1\nUserKnownHostsFile /%h",
    "hostname-address-for-tokens": "HostName 10.1\nIdentityFile /%h\nProxyCommand nc %h %p",
    "hostname-capitals-for-tokens": "HostName Other\nUserKnownHostsFile /%h\nIdentityAgent /%h",
    "alias-beyond-ascii": "HostKeyAlias ÜBER",
    "timeout-plus": "ConnectTimeout +5",
    "timeout-pluses": "ConnectTimeout 1m+5",
    "rsa-size-plus": "RequiredRSASize +2048",
    "rekey-fraction": "RekeyLimit 1.5G",
    "rekey-fraction-alone": "RekeyLimit .5M 10",
    "rekey-terabyte": "RekeyLimit 1T",
    "rekey-exabyte": "RekeyLimit 7e 1w",
    "rekey-quoted": "RekeyLimit '1G 1h'",
    # -- identities ------------------------------------------------------------------------------------------------
    "agent-home": "IdentityAgent ~",
    "identity": "IdentityFile ~/.ssh/id_work",
    "identity-two": "IdentityFile ~/.ssh/a\nIdentityFile ~/.ssh/b",
    "identity-doubled": "IdentityFile ~/.ssh/a\nIdentityFile ~/.ssh/a",
    "identity-none": "IdentityFile none",
    "identity-none-first": "IdentityFile none\nIdentityFile ~/.ssh/a",
    "identity-quoted": 'IdentityFile "~/.ssh/my key"',
    "identity-single-quotes": "IdentityFile '~/.ssh/my key'",
    "identity-escaped-blank": r"IdentityFile ~/.ssh/my\ key",
    "identity-backslash": r"IdentityFile ~/.ssh/my\\key",
    "identity-escaped-quote": r"IdentityFile ~/.ssh/my\"key",
    "identity-other-escape": r"IdentityFile ~/.ssh/my\nkey",
    "identity-tokens": "IdentityFile %d/.ssh/%h-%p-%r-%n-%u-%i",
    "identity-local-names": "IdentityFile ~/.ssh/%L-%l",
    "identity-percent": "IdentityFile ~/.ssh/100%%",
    "identity-k": "IdentityFile ~/.ssh/%k",
    "identity-k-alias": "HostKeyAlias nick\nIdentityFile ~/.ssh/%k",
    "identity-variable": "IdentityFile ${HOME}/.ssh/x",
    "identity-variable-unset": "IdentityFile ${SURELY_UNSET}/x\nIdentityFile ~/y",
    "identity-user-home": "IdentityFile ~root/x",
    "identity-no-such-user": "IdentityFile ~nosuchuser/x\nIdentityFile ~/y",
    "identity-relative": "IdentityFile keys/x",
    "identity-old-name": "IdentityFile2 ~/x",
    "identity-comment": "IdentityFile ~/x # Ann's",
    "identities-only": "IdentitiesOnly yes\nIdentityFile ~/x",
    "certificate": "CertificateFile ~/.ssh/x-cert.pub",
    "certificates": "CertificateFile ~/a-cert.pub\nCertificateFile ~/b-cert.pub",
    "agent": "IdentityAgent ~/agent.sock",
    "agent-none": "IdentityAgent none",
    "agent-variable": "IdentityAgent $OTHER_AGENT",
    "agent-braces": "IdentityAgent ${OTHER_AGENT}",
    "agent-name": "IdentityAgent SSH_AUTH_SOCK",
    "agent-tokens": "IdentityAgent %d/%r.sock",
    # -- known hosts -----------------------------------------------------------------------------------------------
    "known-hosts": "UserKnownHostsFile ~/kh",
    "known-hosts-two": "UserKnownHostsFile ~/kh ~/kh2",
    "known-hosts-none": "UserKnownHostsFile none",
    "known-hosts-null": "UserKnownHostsFile /dev/null",
    "known-hosts-tokens": "UserKnownHostsFile ~/kh-%h-%r",
    "known-hosts-variable": "UserKnownHostsFile ${HOME}/kh",
    "known-hosts-k": "UserKnownHostsFile ~/.ssh/kh.d/%k",
    "global": "GlobalKnownHostsFile /etc/kh /etc/kh2",
    "global-none": "GlobalKnownHostsFile none",
    "revoked": "RevokedHostKeys ~/revoked",
    "revoked-none": "RevokedHostKeys none",
    "known-hosts-command": "KnownHostsCommand /usr/bin/find-key %H %t",
    "known-hosts-command-quotes": 'KnownHostsCommand /usr/bin/printf "%%s" x',
    "known-hosts-blank-missing": "UserKnownHostsFile '~/no such' ~/c",
    "known-hosts-tab": "UserKnownHostsFile '~/a\tb' ~/c",
    # -- proxies ---------------------------------------------------------------------------------------------------
    "jump-service": "ProxyJump gate:ssh",
    "jump-empty-port": "ProxyJump gate:",
    "jump-plus": "ProxyJump gate:+22,b:022",
    "jump-comment": "ProxyJump gate#old",
    "jump-quoted": "ProxyJump 'gate'",
    "jump-none-quoted": "ProxyJump 'none'",
    "jump-uri-service": "ProxyJump ssh://gate:ssh",
    "jump-uri-escaped-user": "ProxyJump ssh://ann%40corp@gate",
    "jump-uri-fingerprint": "ProxyJump ssh://ann;fingerprint=x@gate",
    "jump-uri-dot": "ProxyJump ssh://gate.",
    "jump-user-at": "ProxyJump ann@corp@gate",
    "jump": "ProxyJump gate",
    "jump-user-port": "ProxyJump ann@gate:2222",
    "jump-chain": "ProxyJump a,b,c",
    "jump-chain-full": "ProxyJump ann@a:22,bob@b:2222",
    "jump-none": "ProxyJump none",
    "jump-uri": "ProxyJump ssh://ann@gate:2222",
    "jump-ipv6": "ProxyJump [fe80::1]:2222",
    "jump-ipv6-user": "ProxyJump ann@[fe80::1]",
    "jump-token": "ProxyJump %r@gate",
    "jump-equals": "ProxyJump=gate",
    "jump-equals-blanks": "ProxyJump = gate",
    "command": "ProxyCommand nc %h %p",
    "command-tokens": "ProxyCommand ssh -W [%h]:%p %r@gate %n %%",
    "command-equals": "ProxyCommand=nc %h %p",
    "command-equals-blanks": "ProxyCommand = nc %h %p",
    "command-quotes": "ProxyCommand sh -c 'exec nc %h %p'",
    "command-double-quotes": 'ProxyCommand sh -c "exec nc %h %p"',
    "command-comment": "ProxyCommand nc %h %p # Ann's",
    "command-shell": "ProxyCommand nc $(echo %h) ${X:-y} 2>/dev/null",
    "command-none": "ProxyCommand none",
    "command-then-jump": "ProxyCommand nc %h %p\nProxyJump gate",
    "jump-then-command": "ProxyJump gate\nProxyCommand nc %h %p",
    "command-none-then-jump": "ProxyCommand none\nProxyJump gate",
    "jump-none-then-command": "ProxyJump none\nProxyCommand nc %h %p",
    "jump-none-then-command-then-jump": "ProxyJump none\nProxyCommand nc %h %p\nProxyJump gate",
    "jump-none-then-two-commands": "ProxyJump NONE\nProxyCommand none\nProxyCommand nc %h %p",
    "jump-none-then-jump": "ProxyJump none\nProxyJump gate",
    "command-then-jump-none": "ProxyCommand nc %h %p\nProxyJump none\nProxyJump gate",
    "fdpass": "ProxyCommand nc -F %h %p\nProxyUseFdpass yes",
    # -- algorithms ------------------------------------------------------------------------------------------------
    "ciphers": "Ciphers aes256-ctr",
    "ciphers-two": "Ciphers aes192-ctr,aes128-ctr",
    "ciphers-plus": "Ciphers +aes256-cbc",
    "ciphers-minus": "Ciphers -chacha20*",
    "ciphers-minus-two": "Ciphers -aes128-ctr,aes192-ctr",
    "ciphers-hat": "Ciphers ^aes256-ctr",
    "ciphers-hat-new": "Ciphers ^aes256-cbc",
    "macs": "MACs hmac-sha2-256",
    "macs-minus": "MACs -umac*",
    "macs-plus": "MACs +hmac-md5",
    "host-key-algorithms": "HostKeyAlgorithms ssh-ed25519",
    "host-key-algorithms-plus": "HostKeyAlgorithms +ssh-rsa",
    "host-key-algorithms-hat": "HostKeyAlgorithms ^rsa-sha2-512",
    "public-key-algorithms": "PubkeyAcceptedAlgorithms rsa-sha2-256,ssh-ed25519",
    "public-key-algorithms-old-name": "PubkeyAcceptedKeyTypes +ssh-rsa",
    "authority-algorithms": "CASignatureAlgorithms ssh-ed25519",
    "ciphers-minus-negated": "Ciphers -!aes128-ctr,*",
    "ciphers-minus-plus": "Ciphers -+aes128-ctr",
    "host-key-algorithms-pattern": "HostKeyAlgorithms ssh-*,ecdsa*",
    "host-key-algorithms-all": "HostKeyAlgorithms *",
    "host-key-algorithms-hat-pattern": "HostKeyAlgorithms ^rsa*",
    "host-key-algorithms-plus-pattern": "HostKeyAlgorithms +ssh-*",
    "public-key-algorithms-pattern": "PubkeyAcceptedAlgorithms rsa*",
    # -- environment -----------------------------------------------------------------------------------------------
    "send-env-back": "SendEnv LC_A LC_B FOO -LC_*",
    "send-env-back-and-again": "SendEnv A B\nSendEnv -A\nSendEnv A",
    "send-env-doubled": "SendEnv A A",
    "set-env-assignment-inside": "SetEnv 'A=b C=d'",
    "set-env-tab": "SetEnv 'A=b\tC=d'",
    "set-env-doubled": "SetEnv A=b A=c",
    "send-env": "SendEnv LANG LC_*",
    "send-env-two": "SendEnv LANG\nSendEnv FOO",
    "set-env": "SetEnv A=b",
    "set-env-two": "SetEnv A=b C=d",
    "set-env-quoted": 'SetEnv A="b c" D=e',
    "set-env-second-line": "SetEnv A=b\nSetEnv C=d",
    # -- what logins do not use ------------------------------------------------------------------------------------
    "others": "LogLevel ERROR\nForwardAgent yes\nControlMaster auto\nControlPath ~/.ssh/%C\nStrictHostKeyChecking no",
    "forwards": "LocalForward 8080 localhost:80\nDynamicForward 1080",
    "request-tty": "RequestTTY force\nRemoteCommand echo hi",
}
WHOLE = {
    # -- blocks ----------------------------------------------------------------------------------------------------
    "no-block": "User alice",
    "other-block": "Host other\n  User alice",
    "pattern": "Host *.lab.test\n  User alice",
    "pattern-question": "Host node?.lab.test\n  User alice",
    "pattern-brackets": "Host node[1].lab.test\n  User alice",
    "patterns": "Host a b node1.lab.test c\n  User alice",
    "negated": "Host *.lab.test !node1.lab.test\n  User alice",
    "negated-first": "Host !node1.lab.test *\n  User alice",
    "negated-other": "Host *.lab.test !node2.lab.test\n  User alice",
    "negated-alone": "Host !node2.lab.test\n  User alice",
    "host-comment": "Host node1.lab.test # all but !node1.lab.test\n  User alice",
    "host-quoted": 'Host "node1.lab.test"\n  User alice',
    "host-quoted-two": 'Host "a b" node1.lab.test\n  User alice',
    "host-equals": "Host=node1.lab.test\n  User alice",
    "host-capitals": "Host NODE1.LAB.TEST\n  User alice",
    "host-comma": "Host a,node1.lab.test\n  User alice",
    "first-wins": "Host node1.lab.test\n  User alice\nHost *\n  User bob\n  Port 2222",
    "general-first": "User bob\nHost node1.lab.test\n  User alice",
    "star": "Host *\n  User alice",
    "match-host": "Match host node1.lab.test\n  User alice",
    "match-host-pattern": "Match host *.lab.test,!node2*\n  User alice",
    "match-host-negated": "Match !host node2.lab.test\n  User alice",
    "match-host-capitals": "Match host NODE1.lab.test\n  User alice",
    "match-host-after-hostname": "HostName other.org\nMatch host other.org\n  User alice",
    "match-original": "HostName other.org\nMatch originalhost node1.lab.test\n  User alice",
    "match-user": "User bob\nMatch user bob\n  Port 2222",
    "match-user-not": "User bob\nMatch user alice\n  Port 2222",
    "match-localuser": "Match localuser *\n  User alice",
    "match-all": "Match all\n  User alice",
    "match-two": "Match host *.test user nobody\n  Port 1\nMatch host *.test localuser *\n  Port 2",
    "match-exec-true": 'Match exec "true"\n  User alice',
    "match-exec-false": 'Match exec "false"\n  User alice',
    "match-exec-negated": 'Match !exec "false"\n  User alice',
    "match-exec-token": 'Match exec "test %h = node1.lab.test"\n  User alice',
    "match-exec-tokens": 'Match exec "test %n-%p-%r = node1.lab.test-2222-bob"\n  Compression yes\nHost *\n  User alice',
    "match-exec-equals": 'Match exec "test a = a"\n  User alice',
    "match-exec-after-host": 'Match host nope exec "false"\n  User a\nMatch host node1* exec "true"\n  User alice',
    "match-exec-quotes": "Match exec \"test 'a b' = 'a b'\"\n  User alice",
    "match-exec-shell": 'Match exec "echo x | grep -q x && true"\n  User alice',
    "match-exec-backslash": 'Match exec "test \\"a\\" = a"\n  User alice',
    "match-exec-equals-form": 'Match exec="true"\n  User alice',
    "match-host-equals-form": "Match host=node1.lab.test\n  User alice",
    "match-final": "Match final\n  User alice",
    "match-final-jump": "Match final host node1.lab.test\n  ProxyJump gate",
    "match-final-first-wins": "Match final\n  User alice\nHost *\n  User bob",
    "match-not-final": "Match !final\n  User alice",
    "match-final-hostname": "HostName other.org\nMatch final host other.org\n  User alice",
    "match-final-host-block": (
        "Host node1.lab.test\n  HostName other.org\nHost other.org\n  User alice\nMatch final all\n  Port 2222"
    ),
    "match-canonical": "Match canonical\n  User alice",
    "canonical": "CanonicalizeHostname yes\nMatch canonical\n  User alice",
    "canonical-dots": "CanonicalizeHostname yes\nCanonicalizeMaxDots 0\nHost node1.lab.test\n  User alice",
    "canonical-always": "CanonicalizeHostname always\nMatch canonical host node1.lab.test\n  User alice",
    "match-capitals": "MATCH HOST node1.lab.test\n  User alice",
    "match-comment": "Match host node1.lab.test # all\n  User alice",
    "match-equals-blanks": "Match host = node1*\n  User alice",
    "match-equals-after-blank": "Match host =node1*\n  User alice",
    "match-equals-before-blank": "Match host= node1*\n  User alice",
    "match-exec-k": 'HostName x\nMatch exec "test %k = x"\n  User alice',
    "match-final-send-env": "SendEnv A B\nMatch final\n  SendEnv C -A",
    "canonical-address": "CanonicalizeHostname yes\nHostName 10.1\nMatch canonical host 10.0.0.1\n  User alice",
    "canonical-proxy": "CanonicalizeHostname yes\nProxyCommand nc\nMatch canonical\n  User alice",
    "canonical-jump": "CanonicalizeHostname yes\nProxyJump gate\nMatch canonical\n  User alice",
    "canonical-local": (
        "CanonicalizeHostname yes\nHostName localhost.\nMatch canonical host localhost,*.test\n  User alice"
    ),
    # -- lines -----------------------------------------------------------------------------------------------------
    "equals-first": "=User alice",
    "keyword-quoted-equals": '"User"=alice',
    "keyword-half-quoted": 'Us"er" alice',
    "keyword-behind-empty-quotes": '"" User alice',
    "keyword-open-quote": '"User alice\nPort 2222',
    "zero-byte": "User alice\nPort 2222\0x\n\0User bob",
    "ignored-pattern": "IgnoreUnknown FOO,bar*\nfoo 1\nbarbaz\t2\nUser alice",
    "empty": "",
    "comments": "# a comment\n   # another\n\n\t\nUser alice",
    "apostrophe-in-comment": "# Ann's hosts\nUser alice",
    "apostrophe-in-trailing-comment": "Host other # Ann's\n  User bob\nHost *\n  User alice",
    "quote-in-comment": '# "\nUser alice',
    "crlf": "User alice\r\nPort 2222\r\n",
    "form-feed": "User alice\f\nPort 2222",
    "no-newline-at-end": "Host *\n  User alice",
    "indented-host": "   Host *\n User alice",
    "keyword-quoted": '"User" alice',
    "ignored": "IgnoreUnknown Foo*\nFooBar 1\nUser alice",
    "deprecated": "Protocol 2\nUser alice",
    "latin-1": "# M\udcfcller\nUser alice",
    "utf-8": "# Müller\nUser älice",
    "long": "User alice\n" + "# x\n" * 3000 + "Port 2222",
    # -- what ssh refuses, and our own reader passes over ----------------------------------------------------------
    "unknown": "Nonsense yes\nUser alice",
    "no-value": "User\nPort 2222",
    "bad-port": "Port 70000\nUser alice",
    "bad-flag": "Compression maybe\nUser alice",
    "bad-time": "ConnectTimeout soon\nUser alice",
    "open-quote": 'User "alice\nPort 2222',
    "merge-marker": "<<<<<<< HEAD\nUser alice",
    "bom": "\ufeffUser alice",
    "unknown-criterion": "Match weather sunny\n  User alice",
}
INCLUDED = {
    "one": ("Include {folder}/a\nPort 2", {"a": "User alice"}),
    "quoted": ('Include "{folder}/a b"\nPort 2', {"a b": "User alice"}),
    "sorted": (
        "Include {folder}/conf.d/*",
        {"conf.d/20-b": "User bob", "conf.d/10-a": "User alice", "conf.d/30": "User c"},
    ),
    "hidden": ("Include {folder}/conf.d/*", {"conf.d/.10-a.swp": "User bob", "conf.d/20": "User alice"}),
    "nothing": ("Include {folder}/conf.d/*\nUser alice", {}),
    "missing": ("Include {folder}/nope\nUser alice", {}),
    "two": ("Include {folder}/a {folder}/b", {"a": "Port 2222", "b": "User alice"}),
    "nested": ("Include {folder}/a", {"a": "Include {folder}/b\nPort 2222", "b": "User alice"}),
    "in-block": ("Host node1*\n  Include {folder}/a\nHost *\n  User bob", {"a": "User alice"}),
    "in-other-block": ("Host other\n  Include {folder}/a\nHost *\n  User bob", {"a": "User alice"}),
    "in-other-block-with-host": ("Host other\n  Include {folder}/a\nHost *\n  User bob", {"a": "Host *\n  User alice"}),
    "block-ends-with-file": ("Include {folder}/a\nUser bob", {"a": "Host other\n  User alice"}),
    "block-goes-on-after": ("Host node1*\n  Include {folder}/a\n  User bob", {"a": "Host other\n  User alice"}),
    "tokens-late": ("Include {folder}/a\nHostName other.org", {"a": "IdentityFile ~/%h"}),
    "slash-at-end": ("Include {folder}/conf.d/a/", {"conf.d/a": "User alice"}),
    "match-final-inside": ("Include {folder}/a", {"a": "Match final\n  User alice"}),
}
REFUSED = {
    "two-words": "User alice bob",
    "empty-word": "User ''",
    "address-family": "AddressFamily inet inet6",
    "other-digits": "Port ٢٢",
    "squared": "RequiredRSASize ²",
    "large": "RequiredRSASize 99999999999",
    "long-time": "ConnectTimeout 2147483648",
    "small-limit": "RekeyLimit 15",
    "no-limit": "RekeyLimit none",
    "compression": "Compression true",
    "canonical-none": "CanonicalizeHostname none",
    "two-keys": "IdentityFile ~/a ~/b",
    "many-keys": "\n".join(f"IdentityFile /k{number}" for number in range(101)),
    "many-files": f"UserKnownHostsFile {' '.join(f'/k{number}' for number in range(33))}",
    "agent-name": "IdentityAgent $OTHER-AGENT",
    "agent-unset": "IdentityAgent ${SURELY_UNSET}",
    "none-and-more": "UserKnownHostsFile none ~/a",
    "send-env": "SendEnv A=b",
    "set-env": "SetEnv A",
    "unknown": "Nonsense yes",
    "unknown-elsewhere": "Host other\n  Nonsense yes",
    "ignored-too-late": "Nonsense yes\nIgnoreUnknown nonsense",
    "command-quote": "ProxyCommand nc 'a",
    "empty-pattern": "Host ''",
    "all-and-more": "Match all host node1*",
    "empty-criterion": 'Match host ""',
    "killed": 'Match exec "kill -9 $$"',
    "included-elsewhere": "Host other\n  Include {folder}/bad",
}
FIELDS = [
    field.name
    for field in dataclasses.fields(Configuration)
    # How and by whom; and of key exchanges each release of ssh has its own list.
    if field.name not in ("reader", "notes", "chosen", "key_exchanges")
]


@pytest.fixture(autouse=True)
def agents(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Variables that texts speak of; and nothing is kept from test to test."""
    monkeypatch.setenv("OTHER_AGENT", str(home / "other.sock"))
    monkeypatch.setenv("SSH_AUTH_SOCK", str(home / "agent.sock"))


async def read(text: str, folder: Path, host: str = HOST, **settings: str | int) -> Configuration:
    """Return what *text* says of *host*."""
    file = folder / "config"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    return await configuration_of(host, Distributed(ssh_config=str(file), **settings))


@functools.cache
def forgets_a_command_behind_no_jump() -> bool:
    """Whether the ssh that is here does: one release of Debian's 9.2 does, and a later security update of it does not."""
    options = ["-F", "/dev/null", "-o", "ProxyJump none", "-o", "ProxyCommand true"]
    said = subprocess.run(["ssh", "-G", *options, HOST], capture_output=True, text=True, timeout=30, check=True).stdout
    return "\nproxycommand " not in said


async def read_by_both(
    text: str, folder: Path, monkeypatch: pytest.MonkeyPatch, host: str = HOST
) -> tuple[Configuration | SSHConfigInvalid, Configuration]:
    """Return what ssh and our own reader make of *text*; ssh may refuse it."""
    theirs: Configuration | SSHConfigInvalid
    try:
        theirs = await read(text, folder, host)
    except SSHConfigInvalid as error:
        theirs = error
    with monkeypatch.context() as without:
        without.setattr(configuration, "find_ssh", lambda: None)
        configuration._kept.clear()
        ours = await read(text, folder, host)
    return theirs, ours


def differences(theirs: Configuration, ours: Configuration) -> dict[str, tuple[object, object]]:
    """Return what the two say differently, by field."""
    return {
        name: (getattr(theirs, name), getattr(ours, name))
        for name in FIELDS
        if getattr(theirs, name) != getattr(ours, name)
    }


@needs_ssh
@pytest.mark.parametrize(
    "text",
    [
        *(pytest.param(f"Host {HOST}\n{text}\n", id=name) for name, text in IN_BLOCK.items()),
        *(pytest.param(text, id=name) for name, text in WHOLE.items()),
    ],
)
async def test_our_reader_says_what_ssh_says(text: str, short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text means the same to ssh and to our own reader; where ssh refuses it, ours passes the line over and says so."""
    if "ProxyJump none\nProxyCommand" in text and forgets_a_command_behind_no_jump():
        pytest.skip("this ssh is older than what our reader follows: to it `ProxyJump none` rules a ProxyCommand out")
    theirs, ours = await read_by_both(text, short, monkeypatch)
    if isinstance(theirs, SSHConfigInvalid):
        assert "line" in str(theirs) or "user" in str(theirs)
    else:
        assert differences(theirs, ours) == {}


@needs_ssh
@pytest.mark.parametrize("name", REFUSED)
async def test_what_ssh_refuses_is_noted(name: str, short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line for which ssh refuses the file is passed over by our own reader, and named."""
    (short / "bad").write_text("Port 70000\n")
    theirs, ours = await read_by_both(REFUSED[name].replace("{folder}", str(short)), short, monkeypatch)
    assert isinstance(theirs, SSHConfigInvalid)
    assert any("is passed over" in note for note in ours.notes)


@needs_ssh
@pytest.mark.parametrize("name", INCLUDED)
async def test_our_reader_includes_what_ssh_includes(name: str, short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are included in the same order, under the same conditions."""
    text, files = INCLUDED[name]
    for path, content in files.items():
        (short / path).parent.mkdir(parents=True, exist_ok=True)
        (short / path).write_text(content.replace("{folder}", str(short)))
    theirs, ours = await read_by_both(text.replace("{folder}", str(short)), short, monkeypatch)
    assert isinstance(theirs, Configuration)
    assert differences(theirs, ours) == {}


@needs_ssh
@pytest.mark.parametrize(
    "host",
    [
        *("NODE1.Lab.Test", "node1", "10.213.98.11", "::1", "fe80::1%eth0", "node1.lab.test."),
        *("10.1", "010.0.0.1", "1234", "0", "fe80:0::1", "2001:DB8::1", "FE80::1%lo", "1.2.3.4.5"),
    ],
)
@pytest.mark.parametrize("text", ["", "Host node1*\n  User alice", "HostName %h", "IdentityFile ~/%h-%n-%k"])
async def test_our_reader_takes_names_as_ssh_does(
    host: str, text: str, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Capitals, short names, addresses and dots at the end mean the same to both."""
    theirs, ours = await read_by_both(text, short, monkeypatch, host)
    assert isinstance(theirs, Configuration)
    assert differences(theirs, ours) == {}


# -- what is read, and by whom -----------------------------------------------------------------------------------------


async def test_the_homes_own_file_is_read(home: Path) -> None:
    """Without Distributed.ssh_config, ~/.ssh/config counts."""
    (home / ".ssh/config").write_text("Host node1.lab.test\n  ProxyJump gate\n  User alice\n")
    found = await configuration_of(HOST, Distributed())
    assert (found.user, found.jumps) == ("alice", (Hop("gate"),))


@needs_ssh
async def test_a_home_below_the_users_own_is_the_home(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where $HOME is another folder than the system's list says, `~` is $HOME, and whole paths stay what they are."""
    monkeypatch.setattr(ask, "_other_home", lambda: str(short))
    monkeypatch.setenv("HOME", str(short / "below"))
    (short / "kept").touch()
    text = f"UserKnownHostsFile {short}/below/.ssh/a {short}/.ssh/b {short}/kept {short}/c /dev/null\n"
    found = await read(text, short)
    below = short / "below"
    assert found.known_hosts[:5] == (below / ".ssh/a", below / ".ssh/b", short / "kept", below / "c", Path("/dev/null"))


async def test_an_edit_counts_within_seconds(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer is kept for a moment only."""
    (home / ".ssh/config").write_text("User alice\n")
    assert (await configuration_of(HOST, Distributed())).user == "alice"
    (home / ".ssh/config").write_text("User bob\n")
    monkeypatch.setattr(readings, "_KEPT_SECONDS", 0.0)
    assert (await configuration_of(HOST, Distributed())).user == "bob"


async def test_the_settings_win(short: Path) -> None:
    """EG_REMOTE_USER and EG_SSH_PORT count more than ssh_config, and not for jump hosts."""
    text = "User bob\nPort 1\n"
    found = await read(text, short, user="alice", port=2222)
    assert (found.user, found.port) == ("alice", 2222)
    settings = Distributed(ssh_config=str(short / "config"), user="alice", port=2222)
    jump = await configuration_of("gate", settings, Hop("gate", "", 7))
    assert (jump.user, jump.port) == ("bob", 7)


@pytest.mark.parametrize("name", ["a;b", "a b", "-x", "$(a)"])
async def test_names_that_ssh_refuses_are_refused(name: str, short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that could mean something to a shell never gets into a command, whoever reads ssh_config."""
    with pytest.raises(SSHConfigInvalid, match="invalid characters"):
        await read("ProxyCommand nc %h %p\n", short, name)
    monkeypatch.setattr(configuration, "find_ssh", lambda: None)
    with pytest.raises(SSHConfigInvalid, match="invalid characters"):
        await read("ProxyCommand nc %h %p\n", short, name)


@pytest.mark.parametrize("included", [False, True])
async def test_a_file_that_others_can_write_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch, *, included: bool
) -> None:
    """As with ssh, ~/.ssh/config and what is included must not be writable for others: it names programs to run."""
    monkeypatch.setattr(configuration, "find_ssh", lambda: None)
    (home / ".ssh/config").write_text("Include more\nUser alice\n")
    (home / ".ssh/more").write_text("Port 2222\n")
    assert (await configuration_of(HOST, Distributed())).port == 2222
    configuration._kept.clear()
    (home / ".ssh" / ("more" if included else "config")).chmod(0o646)
    with pytest.raises(SSHConfigInvalid, match=r"bad owner or permissions on .*/\.ssh/(more|config): chmod 600"):
        await configuration_of(HOST, Distributed())


@pytest.mark.parametrize("said", ["gate:nosuchservice", "ann@", "ssh://gate/path", "[gate", "a,,b"])
async def test_a_jump_host_that_cannot_be_read_is_refused(
    said: str, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake in ProxyJump is an error for our own reader too: passed over, the login would go directly."""
    monkeypatch.setattr(configuration, "find_ssh", lambda: None)
    with pytest.raises(SSHConfigInvalid, match=r"is not \[user@\]host\[:port\]"):
        await read(f"ProxyJump {said}\n", short)


@pytest.mark.parametrize(
    "line", ["Ciphers aes128-ctr,nosuch", "Ciphers +aes*", "Ciphers ''", "HostKeyAlgorithms nosuch*"]
)
async def test_algorithms_that_nobody_knows_are_refused(
    line: str, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake in a list of algorithms is an error for our own reader too: passed over, others would be used."""
    monkeypatch.setattr(configuration, "find_ssh", lambda: None)
    with pytest.raises(SSHConfigInvalid):
        await read(f"{line}\n", short)
    configuration._kept.clear()
    assert (await read(f"Host other\n  {line}\n", short)).port == 22


async def test_a_refused_connection_is_refused(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RefuseConnection, which older releases of ssh do not have, ends a login before it begins, with its words."""
    monkeypatch.setattr(configuration, "find_ssh", lambda: None)
    assert (await read("Host other\n  RefuseConnection no\n", short)).port == 22
    configuration._kept.clear()
    with pytest.raises(SSHConfigInvalid, match="RefuseConnection: it is retired"):
        await read("RefuseConnection 'it is retired'\n", short)


@needs_ssh
async def test_what_ssh_refuses_is_said_in_its_words(short: Path) -> None:
    """The error has file and line, as ssh says them."""
    with pytest.raises(
        SSHConfigInvalid, match=rf"^Host {HOST}: Ssh refuses its configuration: {short}/config.* line 2"
    ):
        await read("User alice\nNonsense yes\n", short)


async def test_what_our_reader_passes_over_is_noted(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that says nothing usable is named by file and number, and the rest counts."""
    monkeypatch.setattr(configuration, "find_ssh", lambda: None)
    found = await read("Port 70000\nUser alice\n", short)
    assert found.user == "alice"
    assert found.notes == (f"{short}/config line 1 is passed over: 70000 is not a port",)
    assert "no ssh on PATH" in found.reader


@pytest.mark.parametrize("installed", [pytest.param(True, marks=needs_ssh), False])
async def test_a_command_that_hangs_is_ended(short: Path, monkeypatch: pytest.MonkeyPatch, *, installed: bool) -> None:
    """`Match exec` that never comes back costs its deadline, leaves no process, and the error says so."""
    monkeypatch.setattr(ask, "_SECONDS", 0.5)
    monkeypatch.setattr(reader, "_EXEC_SECONDS", 0.5)
    if not installed:
        monkeypatch.setattr(configuration, "find_ssh", lambda: None)
    text = f'Match exec "echo $$ > {short}/pid; exec sleep 600"\n  User alice\n'
    with contextlib.suppress(SSHConfigInvalid):
        assert (await read(text, short)).user != "alice"
    pid = int((short / "pid").read_text())
    await until_in_thread("the command is gone", lambda: not Path(f"/proc/{pid}").exists())


@pytest.mark.parametrize("installed", [pytest.param(True, marks=needs_ssh), False])
async def test_no_host_waits_for_anothers_commands(
    short: Path, monkeypatch: pytest.MonkeyPatch, *, installed: bool
) -> None:
    """While two dozen hosts wait for commands of `Match exec`, others are read, and what was read is there at once."""
    if not installed:
        monkeypatch.setattr(configuration, "find_ssh", lambda: None)
    slow = f'Match originalhost slow* exec "echo $$ >> {short}/began; exec sleep 600"\n  User alice\n'
    text = f"Host healthy*\n  User bob\n{slow}"
    (short / "config").write_text(text)
    settings = Distributed(ssh_config=str(short / "config"))
    await configuration_of("healthy", settings)
    waiting = [asyncio.ensure_future(configuration_of(f"slow{number}", settings)) for number in range(24)]
    try:
        await until_in_thread("a command runs", (short / "began").exists)
        assert (await asyncio.wait_for(configuration_of("healthy", settings), 0.1)).user == "bob"
        for number in range(12):
            assert (await asyncio.wait_for(configuration_of(f"healthy{number}", settings), 5)).user == "bob"
        assert not any(each.done() for each in waiting)
    finally:
        for each in waiting:
            each.cancel()
        await asyncio.wait(waiting)
        for pid in (short / "began").read_text().split():  # those of our own reader, whose threads wait for them
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(pid), signal.SIGKILL)


@needs_ssh
async def test_what_is_asked_for_twice_is_read_once(short: Path) -> None:
    """Who asks for a host while it is read gets that answer; one who gives up takes it from no other."""
    os.mkfifo(short / "go")
    text = f'Match exec "echo $$ >> {short}/began; cat {short}/go"\n  User alice\n'
    (short / "config").write_text(text)
    settings = Distributed(ssh_config=str(short / "config"))
    asking = [asyncio.ensure_future(configuration_of(HOST, settings)) for _ in range(20)]
    await until_in_thread("the command runs", (short / "began").exists)
    asking[0].cancel()
    await asyncio.wait({asking[0]})
    await asyncio.to_thread((short / "go").write_text, "")
    assert {(await each).user for each in asking[1:]} == {"alice"}
    assert len((short / "began").read_text().split()) == 1


async def test_a_place_is_waited_for_with_a_deadline(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where slow readings have all places, the others are told so in time, and those that give up take no place along."""
    monkeypatch.setattr(readings, "_AT_ONCE", 1)
    monkeypatch.setattr(readings, "_SLOW_AT_ONCE", 0)
    monkeypatch.setattr(readings, "_PLACE_SECONDS", 0.3)
    monkeypatch.setattr(configuration, "find_ssh", lambda: None)
    os.mkfifo(short / "hangs")
    hanging = asyncio.ensure_future(configuration_of("other", Distributed(ssh_config=str(short / "hangs"))))
    await asyncio.sleep(0)
    with pytest.raises(SSHConfigInvalid, match=r"node1.*could not be read in time.*other hosts"):
        await read("User alice\n", short)
    given_up = asyncio.ensure_future(read("User alice\n", short))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.wait({given_up})
    hanging.cancel()
    with open(os.open(short / "hangs", os.O_RDWR | os.O_NONBLOCK), "wb"):  # noqa: PTH123, ASYNC230
        await asyncio.wait({hanging})
        assert (await read("User alice\n", short)).user == "alice"


@needs_ssh
async def test_cancellation_ends_the_reading(short: Path) -> None:
    """Who gives up leaves no ssh behind, nor what it started."""
    text = f'Match exec "echo $$ > {short}/pid; exec sleep 600"\n  User alice\n'
    reading = asyncio.ensure_future(read(text, short))
    await until_in_thread("the command runs", lambda: (short / "pid").exists() and (short / "pid").read_text().strip())
    reading.cancel()
    await asyncio.wait({reading})
    pid = int((short / "pid").read_text())
    await until_in_thread("the command is gone", lambda: not Path(f"/proc/{pid}").exists())


async def test_a_user_without_a_name_can_read(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ssh gives up since the system lists no such user, our own reader reads."""
    monkeypatch.setattr(configuration, "ask_ssh", _unable)
    monkeypatch.setattr(configuration, "find_ssh", lambda: "/usr/bin/ssh")
    found = await read("User alice\n", short)
    assert found.user == "alice"
    assert "No user exists" in found.reader


async def _unable(*_: object) -> None:
    raise ask.Unable("No user exists for uid 4321")


@pytest.mark.parametrize(
    ("said", "hops"),
    [
        ("gate", (Hop("gate"),)),
        ("ann@gate:2222", (Hop("gate", "ann", 2222),)),
        ("ssh://ann@gate:2222/", (Hop("gate", "ann", 2222),)),
        ("[fe80::1]:22", (Hop("fe80::1", "", 22),)),
        ("a,ann@b", (Hop("a"), Hop("b", "ann"))),
        ("%r@gate", (Hop("gate", "alice"),)),
        ('"gate"', (Hop("gate"),)),
    ],
)
async def test_jump_hosts_are_taken_apart(said: str, hops: tuple[Hop, ...], short: Path) -> None:
    """Users, ports, addresses, chains, tokens and quotes of ProxyJump mean what they mean to ssh."""
    assert (await read(f"User alice\nProxyJump {said}\n", short)).jumps == hops


async def test_a_proxy_command_may_name_the_alias(short: Path) -> None:
    """`%k` of ProxyCommand, which the manual does not list, is the alias of the host's key, else its name, as in ssh.c."""
    assert (await read("HostKeyAlias Nick\nProxyCommand nc %k %h\n", short)).proxy_command == f"nc nick {HOST}"


async def test_our_ciphers_come_first_where_nobody_says(short: Path) -> None:
    """Without Ciphers in ssh_config the fast ones come first, and all that ssh has are offered."""
    found = await read("User alice\n", short)
    assert found.ciphers[0] == "aes256-gcm@openssh.com"
    assert {"aes192-ctr", "chacha20-poly1305@openssh.com"} <= set(found.ciphers)
    assert "ciphers" not in found.chosen


@pytest.mark.parametrize(("line", "ciphers"), [("aes192-ctr,aes256-ctr", ("aes192-ctr", "aes256-ctr"))])
async def test_ciphers_of_ssh_config_are_a_restriction(line: str, ciphers: tuple[str, ...], short: Path) -> None:
    """What ssh_config says is used, in its order, and nothing else."""
    found = await read(f"Ciphers {line}\n", short)
    assert found.ciphers == ciphers
    assert "ciphers" in found.chosen


async def test_names_of_files_may_have_blanks(short: Path) -> None:
    """A file of known hosts with a blank in its name is one file, although `ssh -G` prints no quotes."""
    (short / "known hosts").touch()
    found = await read(f'UserKnownHostsFile "{short}/known hosts" {short}/other\n', short)
    assert found.known_hosts[:2] == (short / "known hosts", short / "other")


async def test_no_thread_of_the_loop_is_taken(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home that hangs holds up its own reading, and neither name look-ups nor other hosts."""
    monkeypatch.setattr(configuration, "find_ssh", lambda: None)
    os.mkfifo(short / "hangs")
    hanging = asyncio.ensure_future(configuration_of("other", Distributed(ssh_config=str(short / "hangs"))))
    try:
        for number in range(20):
            assert (await read("User alice\n", short, f"node{number}")).user == "alice"
        assert not hanging.done()
    finally:
        hanging.cancel()
        with socket.socket(), open(os.open(short / "hangs", os.O_RDWR | os.O_NONBLOCK), "wb"):  # noqa: PTH123, ASYNC230
            pass

"""What files of known and of revoked host keys say: the same as `ssh-keygen`, which is the oracle, says of them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import shutil
import subprocess
from pathlib import Path

import asyncssh
import pytest

from eg_distributed.link import known_hosts
from eg_distributed.link.certificates import HostCertificate
from eg_distributed.link.configuration import Configuration
from eg_distributed.link.known_hosts import host_keys_of
from eg_distributed.link.revoked import RevokedKeys

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="without ssh-keygen there is no oracle")

KEY = asyncssh.generate_private_key("ssh-ed25519")
RSA = asyncssh.generate_private_key("ssh-rsa", key_size=2048)
CURVE = asyncssh.generate_private_key("ecdsa-sha2-nistp256")
OTHER_CURVE = asyncssh.generate_private_key("ecdsa-sha2-nistp384")
AUTHORITY = asyncssh.generate_private_key("ssh-ed25519")
CERTIFICATE = AUTHORITY.generate_host_certificate(KEY, "node1")


def said(key: asyncssh.SSHKey | asyncssh.SSHCertificate) -> tuple[str, str]:
    """Return type and base64 of a public key."""
    text = key.export_certificate() if isinstance(key, asyncssh.SSHCertificate) else key.export_public_key()
    name, blob = text.decode("ascii").split()[:2]
    return name, blob


NAME, BLOB = said(KEY)
RSA_BLOB = said(RSA)[1]
LINE = f"{NAME} {BLOB}"


def hashed(name: str, salt: bytes = b"s" * 20) -> str:
    """Return the hash that stands for *name*."""
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


NAMES = {
    "plain": "node1",
    "capitals": "NODE1",
    "pattern": "node?,*.test",
    "star": "*",
    "stars": "**1",
    "list": "other,node1",
    "list-port": "node1,[node1]:2222",
    "negated": "*,!node1",
    "negated-first": "!node1,*",
    "negated-alone": "!node2",
    "negated-port": "*,![*]:2222",
    "port": "[node1]:2222",
    "port-22": "[node1]:22",
    "port-pattern": "[*]:2222,[node1]:*",
    "port-without-brackets": "node1:2222",
    "brackets": "node[1]",
    "ipv6": "::1,[::1]:2222",
    "ipv6-link": "fe80::1%eth0",
    "empty-parts": ",node1,,",
    "backslash": "node\\1",
    "beyond-ascii": "NÖDE1,nöde1",
    "very-long": f"node1,{'x' * 1100}",
    "hash": hashed("node1"),
    "hash-port": hashed("[node1]:2222"),
    "hash-capitals": hashed("NODE1"),
    "hash-short-salt": hashed("node1", b"short"),
    "hash-long-salt": hashed("node1", b"x" * 21),
    "hash-unknown": hashed("node1").replace("|1|", "|2|"),
    "hash-more": f"{hashed('node1')}|x",
    "hash-list": f"{hashed('node1')},node1",
    "hash-behind-name": f"node1,{hashed('other')}",
    "hash-unpadded": hashed("node1").rstrip("="),
    "hash-return": f"{hashed('node1')}\r",
    "hash-empty": "|1||",
}
LINES = {
    "comment": f"node1 {LINE} ann@home # x",
    "tabs": f"\tnode1\t\t{NAME}\t{BLOB}\tx",
    "return": f"node1 {LINE}\r",
    "return-comment": f"node1 {LINE} x\r",
    "return-first": f"\rnode1 {LINE}",
    "return-before-type": f"node1 \r{LINE}",
    "return-behind-type": f"node1 {NAME}\r {BLOB}",
    "hash-sign": f"#node1 {LINE}",
    "hash-sign-behind-name": f"node1 # {LINE}",
    "form-feed-first": f"\fnode1 {LINE}",
    "form-feed-last": f"node1 {LINE}\f",
    "zero-byte": f"node1 {LINE}\0x",
    "zero-byte-in-key": f"node1 {NAME} {BLOB[:20]}\0{BLOB[20:]}",
    "beyond-ascii": f"node1 {LINE} Müller \udcff",
    "byte-order-mark": f"\ufeffnode1 {LINE}",
    "revoked": f"@revoked node1 {LINE}",
    "revoked-tabs": f"@revoked\tnode1\t{NAME}\t{BLOB}",
    "revoked-tab-and-blank": f"@revoked\tnode1 {LINE}",
    "revoked-blanks": f"@revoked  node1 {LINE}",
    "revoked-capitals": f"@REVOKED node1 {LINE}",
    "revoked-certificate": f"@revoked node1 {' '.join(said(CERTIFICATE))}",
    "authority": f"@cert-authority *1 {LINE}",
    "authority-certificate": f"@cert-authority node1 {' '.join(said(CERTIFICATE))}",
    "two-markers": f"@revoked @cert-authority node1 {LINE}",
    "unknown-marker": f"@own node1 {LINE}",
    "no-key": "node1",
    "no-blob": f"node1 {NAME} ",
    "cut-off": f"node1 {NAME} {BLOB[:-4]}",
    "cut-off-by-one": f"node1 {NAME} {BLOB[:-1]}",
    "padded": f"node1 {LINE}==",
    "broken": f"node1 {NAME} {BLOB[:20]}!{BLOB[20:]}",
    "blank-in-key": f"node1 {NAME} {BLOB[:20]} {BLOB[20:]}",
    "longer": f"node1 {LINE}AAAA",
    "other-type": f"node1 {NAME} {RSA_BLOB}",
    "other-type-rsa": f"node1 ssh-rsa {BLOB}",
    "other-curve": f"node1 {said(CURVE)[0]} {said(OTHER_CURVE)[1]}",
    "unknown-type": f"node1 ssh-new {BLOB}",
    "capital-type": f"node1 {NAME.upper()} {BLOB}",
    "rsa": f"node1 ssh-rsa {RSA_BLOB}",
    "rsa-by-signature": f"node1 rsa-sha2-256 {RSA_BLOB}\nnode1 rsa-sha2-512 {RSA_BLOB}",
    "version-1": "node1 1024 35 12345678901234567890",
    "options": f'node1 from="x" {LINE}',
    "quoted": f'node1 "{LINE}"',
}
HOSTS = ["node1", "[node1]:2222", "node1.lab.test", "::1", "[::1]:2222", "fe80::1%eth0"]


def keygen(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run ssh-keygen."""
    return subprocess.run(["ssh-keygen", *argv], capture_output=True, text=True, errors="replace", timeout=10)


def found_by_keygen(file: Path, host: str) -> set[tuple[str, str]]:
    """Return marker and fingerprint of each key that `ssh-keygen -F` finds for *host*."""
    markers = {"CA": "@cert-authority", "REVOKED": "@revoked", "": ""}
    text = keygen("-l", "-F", host, "-f", str(file)).stdout
    return {
        (markers[marker], digest)
        for marker, digest in re.findall(r"found: line \d+ ?(CA|REVOKED|)\n.*?(SHA256:\S+)", text)
    }


async def found_by_us(file: Path, host: str) -> set[tuple[str, str]]:
    """Return the same of our own reading."""
    name, port = re.fullmatch(r"\[?(.*?)\]?(?:(?<=\]):(\d+))?", host).groups()  # type: ignore[union-attr]
    keys = await host_keys_of(
        Configuration(
            host=name, hostname=name, port=22, user="ann", host_key_alias=host if port else "", known_hosts=(file,)
        )
    )
    parts = {"": keys.trusted, "@cert-authority": keys.authorities, "@revoked": keys.revoked}
    return {(marker, key.get_fingerprint()) for marker, listed in parts.items() for key in listed}


@pytest.mark.parametrize(
    "text",
    [
        *(pytest.param(f"{names} {LINE}", id=f"name-{name}") for name, names in NAMES.items()),
        *(pytest.param(text, id=name) for name, text in LINES.items()),
    ],
)
async def test_known_hosts_says_what_ssh_keygen_finds(text: str, short: Path) -> None:
    """A line of known_hosts means the same hosts, the same key and the same trust to OpenSSH and to us."""
    for host in HOSTS:
        file = short / f"known_hosts-{HOSTS.index(host)}"
        file.write_bytes(f"# first\n\n{text}\n".encode("utf-8", "surrogateescape"))
        assert await found_by_us(file, host) == found_by_keygen(file, host), host


async def test_a_certificate_without_a_marker_tells_no_host(short: Path) -> None:
    """As with ssh, which compares a host's key with plain keys only, a certificate without a marker is no trusted key."""
    (short / "known_hosts").write_text(f"node1 {' '.join(said(CERTIFICATE))}\n")
    assert await found_by_us(short / "known_hosts", "node1") == set()


@pytest.mark.parametrize(
    ("command", "printed"),
    [
        ("/usr/bin/printf '%%s|' a 'b c' \"d e\"", "a|b c|d e|"),
        ("/usr/bin/printf %%s| ${FOLDER}/%H $FOLDER", "/srv/[node1]:2222|$FOLDER|"),
        (r"/usr/bin/printf %%s| a\b a\ b a\\b", r"a\b|a b|a\b|"),
        ("/usr/bin/printf %%s| a # b", "a|#|b|"),
    ],
)
async def test_the_command_gets_the_words_that_ssh_gives_it(
    command: str, printed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KnownHostsCommand is split, and tokens and variables in its words are replaced, as by ssh (load_hostkeys_command)."""
    monkeypatch.setenv("FOLDER", "/srv")
    configuration = Configuration(host="node1", hostname="node1", port=2222, user="ann", known_hosts_command=command)
    assert await known_hosts._ask_command(configuration) == printed


def test_a_certificate_needs_an_allowed_signature() -> None:
    """A certificate whose signature is of an algorithm that CASignatureAlgorithms leaves out is not taken."""
    shown = RSA.generate_host_certificate(KEY, "node1", sig_alg="ssh-rsa").public_data
    strict = Configuration("node1", "node1", 22, "ann", authority_algorithms=("rsa-sha2-512", "ssh-ed25519"))
    lax = Configuration("node1", "node1", 22, "ann", authority_algorithms=("ssh-rsa",))
    assert re.search("ssh-rsa.*CASignatureAlgorithms", known_hosts.HostKeys().objection(shown, strict))
    assert known_hosts.HostKeys().objection(shown, lax) == ""
    assert known_hosts.HostKeys().objection(KEY.public_data, strict) == ""


@pytest.mark.parametrize(
    ("lines", "is_taken"),
    [
        ("", True),
        (f"10.0.0.1 {LINE}", True),
        (f"10.0.0.1 ssh-rsa {RSA_BLOB}", False),
        (f"10.0.0.2 ssh-rsa {RSA_BLOB}", True),
    ],
    ids=["no line", "this key", "another key", "another address"],
)
@pytest.mark.parametrize("asked", [True, False])
async def test_an_address_that_is_known_by_another_key_is_refused(
    lines: str, is_taken: bool, asked: bool, short: Path
) -> None:
    """With CheckHostIP, and only with it, a key that known_hosts does not have for a known address is not taken."""
    (short / "known").write_text(f"node1 {LINE}\n{lines}\n")
    configuration = Configuration("node1", "node1", 22, "ann", known_hosts=(short / "known",), check_host_ip=asked)
    keys = await host_keys_of(configuration)
    await known_hosts.add_keys_of_address(configuration, "10.0.0.1", keys)
    assert ("CheckHostIP" in keys.objection(KEY.public_data, configuration)) == (asked and not is_taken)


REVOKED = {
    "key": LINE,
    "rsa": f"ssh-rsa {RSA_BLOB}",
    "sha1": f"sha1: {LINE}",
    "sha256": f"sha256: {LINE}",
    "hash": f"hash: {KEY.get_fingerprint()}",
    "two": f"{LINE}\nsha256: ssh-rsa {RSA_BLOB}",
    "certificate-of-it": " ".join(said(CERTIFICATE)),
    "serial": "serial: 1-5",
    "id": "id: node1",
    "curve": " ".join(said(CURVE)),
    "nothing": "",
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "list") for name in REVOKED),
        *(
            (name, "text") for name, text in REVOKED.items() if ": " not in text
        ),  # a file of public keys has no other lines
    ],
)
async def test_revoked_keys_are_those_that_ssh_keygen_tells(name: str, kind: str, short: Path) -> None:
    """A revocation list, or a file of public keys, revokes the same keys for OpenSSH and for us."""
    text, file = REVOKED[name], short / "revoked"
    if kind == "list":
        (short / "spec").write_text(f"{text}\n")
        (short / "authority.pub").write_bytes(AUTHORITY.export_public_key())
        made = keygen("-k", "-f", str(file), "-s", str(short / "authority.pub"), "-z", "7", str(short / "spec"))
        assert made.returncode == 0, made.stderr
    else:
        file.write_text(f"# revoked\n\n  {text}\n" if text else "")
    revoked = RevokedKeys.read(file)
    for key in (KEY, RSA, CURVE, OTHER_CURVE):
        public = short / "key.pub"
        public.write_bytes(key.export_public_key())
        if kind == "list":
            theirs = keygen("-Q", "-f", str(file), str(public)).returncode != 0
        else:  # what ssh-keygen does not tell: ssh compares the keys themselves, also with those of certificates
            theirs = key is {"rsa": RSA, "curve": CURVE, "nothing": None}.get(name, KEY)
        assert revoked.has(key.public_data) == theirs, key.get_algorithm()


@pytest.mark.parametrize(
    "spec",
    [
        *("serial: 7", "serial: 5-9", "serial: 8", "serial: 1-6", "serial: 7\nserial: 9\nserial: 11", "id: node1"),
        *("id: node2", "serial: 1\nserial: 18446744073709551615", "serial: 9000000000-9000000007"),
        pytest.param(f"key: {' '.join(said(AUTHORITY))}", id="authority"),
        pytest.param(f"sha256: {' '.join(said(AUTHORITY))}", id="digest of the authority"),
        pytest.param(f"key: {LINE}", id="key"),
        pytest.param(f"sha1: {LINE}", id="sha1 of the key"),
        pytest.param(f"sha256: {LINE}", id="sha256 of the key"),
        pytest.param(f"hash: {KEY.get_fingerprint()}", id="fingerprint of the key"),
        pytest.param(f"sha256: ssh-rsa {RSA_BLOB}", id="sha256 of another key"),
    ],
)
async def test_revoked_certificates_are_those_that_ssh_keygen_tells(spec: str, short: Path) -> None:
    """A revocation list that names certificates by number, by name or with their authority means the same to OpenSSH."""
    (short / "authority.pub").write_bytes(AUTHORITY.export_public_key())
    (short / "spec").write_text(f"{spec}\n")
    made = keygen("-k", "-f", str(short / "list"), "-s", str(short / "authority.pub"), str(short / "spec"))
    assert made.returncode == 0, made.stderr
    revoked = RevokedKeys.read(short / "list")
    for serial in (0, 7, 9000000003):
        shown = AUTHORITY.generate_host_certificate(KEY, "node1", serial=serial)
        (short / "shown-cert.pub").write_bytes(shown.export_certificate())
        theirs = keygen("-Q", "-f", str(short / "list"), str(short / "shown-cert.pub")).returncode != 0
        read = HostCertificate.read(shown.public_data)
        assert read is not None
        assert revoked.has_certificate(read) == theirs, serial


@pytest.mark.parametrize("authority", [AUTHORITY, RSA, CURVE], ids=["ed25519", "rsa", "ecdsa"])
@pytest.mark.parametrize("key", [KEY, RSA, OTHER_CURVE], ids=["ed25519", "rsa", "ecdsa"])
def test_a_certificate_is_read_as_ssh_keygen_reads_it(
    key: asyncssh.SSHKey, authority: asyncssh.SSHKey, short: Path
) -> None:
    """Number, names and the algorithm of the signature are found behind a key of any type; a plain key is no certificate."""
    shown = authority.generate_host_certificate(key, "some id", principals=["node1", "*.lab.test"], serial=42)
    (short / "shown-cert.pub").write_bytes(shown.export_certificate())
    told = keygen("-L", "-f", str(short / "shown-cert.pub")).stdout
    found = HostCertificate.read(shown.public_data)
    assert found is not None
    assert (found.serial, found.name, found.principals) == (42, "some id", ("node1", "*.lab.test"))
    assert found.authority == authority.public_data
    assert found.key == key.public_data
    assert f"(using {found.signed_with})" in told
    assert HostCertificate.read(key.public_data) is None
    with pytest.raises(ValueError, match="cut off"):
        HostCertificate.read(shown.public_data[:-5])


@pytest.mark.parametrize(
    "line",
    [f"sha1: {LINE}", f"sha256: {LINE}", f"hash: {KEY.get_fingerprint()}", LINE],
    ids=["sha1", "sha256", "hash", "key"],
)
async def test_a_certificate_for_a_revoked_key_is_refused(line: str, short: Path) -> None:
    """A key that RevokedHostKeys revokes, by its digest too, is not taken in a certificate either."""
    (short / "spec").write_text(f"{line}\n")
    assert keygen("-k", "-f", str(short / "list"), str(short / "spec")).returncode == 0
    (short / "known").write_text(f"@cert-authority * {' '.join(said(AUTHORITY))}\n")
    configuration = Configuration(
        *("node1", "node1", 22, "ann"),
        known_hosts=(short / "known",),
        revoked_host_keys=(short / "list",),
        authority_algorithms=("ssh-ed25519",),
    )
    keys = await host_keys_of(configuration)
    assert keys.objection(CERTIFICATE.public_data, configuration) == "Host certificate is revoked"
    other = AUTHORITY.generate_host_certificate(CURVE, "node1")
    assert keys.objection(other.public_data, configuration) == ""


@pytest.mark.parametrize(
    ("sections", "is_broken"),
    [
        (b"", False),
        (b"\xff" + (16).to_bytes(4, "big") + b"\0\0\0\3new\0\0\0\0\4abcd", False),
        (b"\xff" + (16).to_bytes(4, "big") + b"\0\0\0\3new\1\0\0\0\4abcd", True),
        (b"\x09\0\0\0\0", True),
        (b"\x02\0\0\0\x0c\0\0\0\x08\0\0\0\4abcd", False),
        (b"\x02\0\0\0\x0c", True),
        (b"\x04\0\0\0\1k\0\0\0\1s", False),
        (b"\x04\0\0\0\1k\0\0\0\1s\x09\0\0\0\0", True),
        (b"\x01\0\0\0\x0d\0\0\0\0\0\0\0\0\x99\0\0\0\0", True),
    ],
    ids=[
        *("none", "extension", "critical-extension", "unknown", "unknown-type-of-key", "cut-off"),
        *("signature", "unknown-behind-signature", "unknown-way-to-name-certificates"),
    ],
)
async def test_a_list_that_cannot_be_understood_is_refused(sections: bytes, is_broken: bool, short: Path) -> None:
    """What a revocation list says and we don't know makes it unusable; a key of a type that no host can show does not."""
    header = b"SSHKRL\n\0" + (1).to_bytes(4, "big") + bytes(24) + bytes(8)
    (short / "revoked").write_bytes(header + sections)
    if is_broken:
        with pytest.raises(ValueError, match="revocation list"):
            RevokedKeys.read(short / "revoked")
    else:
        assert not RevokedKeys.read(short / "revoked").has(KEY.public_data)

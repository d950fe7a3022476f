from pathlib import Path
from typing import Any

import asyncssh

from lab import keys

ENTRY = keys.HostEntry("node1.lab.test", "10.213.7.11", 32768, "ssh-ed25519 AAAA")


def test_known_hosts_knows_names_and_the_address() -> None:
    """A host is found by full name, short name and lab address: stock Enterprise Gateway looks it up by address."""
    assert keys.known_hosts([ENTRY]) == "node1.lab.test,node1,10.213.7.11 ssh-ed25519 AAAA\n"


def test_known_hosts_never_names_loopback() -> None:
    """Local nodes share 127.0.0.1, so a key for that address would be wrong for all nodes but one."""
    local = keys.HostEntry("node1.lab.test", "127.0.0.1", 2201, "ssh-ed25519 AAAA")
    assert "127.0.0.1" not in keys.known_hosts([local])


def test_ssh_config_is_strict_and_names_both_spellings() -> None:
    """Host keys are checked strictly, under the node's own name, from the lab's own file."""
    text = keys.ssh_config([ENTRY], identity=Path("/s/id"), known_hosts_file=Path("/s/known hosts"))
    lines = [line.strip() for line in text.splitlines()]
    assert lines[0] == "Host node1.lab.test node1"
    for expected in (
        "HostName 127.0.0.1",
        "Port 32768",
        "User lab",
        "HostKeyAlias node1.lab.test",
        'IdentityFile "/s/id"',
        'UserKnownHostsFile "/s/known hosts"',
        "StrictHostKeyChecking yes",
    ):
        assert expected in lines
    assert "Host *" not in text


def test_a_key_is_made_once_and_private(tmp_path: Path) -> None:
    """The second call reads what the first one wrote; the file is readable for its owner alone."""
    path = tmp_path / "deep" / "id_ed25519"
    first = keys.read_or_generate(path, "me")
    assert keys.read_or_generate(path, "me") == first
    assert path.stat().st_mode & 0o777 == 0o600
    assert first.public.split()[0] == "ssh-ed25519"
    assert len(first.public.split()) == 2


def test_a_damaged_key_is_replaced(tmp_path: Path) -> None:
    """A half-written file is no reason to fail: the folder is a cache."""
    path = tmp_path / "id_ed25519"
    path.write_text("-----BEGIN NONSENSE-----")
    pair = keys.read_or_generate(path, "me")
    assert asyncssh.import_private_key(pair.private).get_algorithm() == "ssh-ed25519"


def test_a_certified_host_is_known_by_its_authority_alone() -> None:
    """With the key itself beside it, a wrong certificate would go unnoticed."""
    certified = keys.HostEntry("node1.lab.test", "10.213.7.11", 1, "ssh-ed25519 AAAA", authority="ssh-ed25519 CA")
    assert keys.known_hosts([certified]) == "@cert-authority node1.lab.test,node1,10.213.7.11 ssh-ed25519 CA\n"


def test_the_authority_signs_hosts_and_logins(tmp_path: Path) -> None:
    """Certificates name who they are for and end when they shall; the authority is made once."""
    authority = keys.Authority(tmp_path / "authority", "lab")
    assert keys.Authority(tmp_path / "authority", "lab", make=False).public == authority.public
    public = keys.generate_key("x").public
    host: Any = asyncssh.import_certificate(authority.sign_host(public, ["node1.lab.test", "node1"], 3600))
    user: Any = asyncssh.import_certificate(authority.sign_user(public, ["lab", "alice"], 3600))
    assert (host.principals, user.principals) == (["node1.lab.test", "node1"], ["lab", "alice"])
    assert host.signing_key is not None
    assert " ".join(host.signing_key.export_public_key().decode().split()[:2]) == authority.public


def test_an_authority_that_is_only_looked_for_is_not_made(tmp_path: Path) -> None:
    """A plan touches nothing: without a key there is an empty one, and no file."""
    assert keys.Authority(tmp_path / "authority", "lab", make=False).public == ""
    assert list(tmp_path.iterdir()) == []

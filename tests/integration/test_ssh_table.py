"""Every login goes as with `ssh`: some four hundred set-ups of other people, each tried by both, with real sshds."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import hmac
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import Gateway, Node
from tests.integration.conftest import MakeGateway
from tests.integration.ssh_table.cases import CASES, Case

FOLDER = Path(__file__).with_name("ssh_table")
PYTHON = "/opt/gateway/bin/python"
ROWS_SECONDS = 1500.0


@pytest.fixture
def client_machine(nodes: list[Node], extra_gateway: MakeGateway) -> Gateway:
    """A gateway's container whose ~/.ssh and /etc/ssh are this test's own."""
    gateway = extra_gateway("table", hosts=[nodes[0].name])
    gateway.exec(["chown", "-R", "gateway", "/etc/ssh"], user="root").check()
    gateway.exec(["ssh-keygen", "-q", "-A"], user="root").check()  # for ssh-keysign, which alone may read them
    gateway.exec(["bash", "-c", (FOLDER / "keys.sh").read_text("utf-8")], timeout=60).check()
    return gateway


@pytest.fixture
def values(nodes: list[Node], client_machine: Gateway) -> Iterator[dict[str, str]]:
    """What stands for `{…}` in cases; the node has its further sshds meanwhile."""
    node, script = nodes[0], (FOLDER / "servers.sh").read_text("utf-8")
    public = client_machine.exec(["bash", "-c", "cd ~/keys && cat good*.pub locked.pub"]).check()
    authority = client_machine.exec(["bash", "-c", "cat ~/keys/user_ca.pub"]).check()
    own_keys = client_machine.exec(["bash", "-c", "cat /etc/ssh/ssh_host_*_key.pub"]).check()
    own_names = client_machine.exec(
        ["bash", "-c", "hostname; hostname -I; for each in $(hostname -I); do getent hosts $each; done"]
    ).check()
    try:
        made = node.exec(
            [
                *("bash", "-c", script, "servers.sh", public.stdout.strip(), authority.stdout.strip()),
                *(own_keys.stdout.strip(), " ".join(own_names.stdout.split())),
            ],
            user="root",
            timeout=60,
        ).check()
        found = dict(line.split(" ", 1) for line in made.stdout.splitlines())
        for name in ("other", "other_rsa"):
            line = client_machine.exec(["bash", "-c", f"cut -d' ' -f1,2 ~/keys/{name}.pub"]).check()
            found[name] = line.stdout.strip()
        found |= {"node": node.name, "short": node.short_name, "address": node.address, "hashed": hashed(node.name)}
        write_revocations(client_machine, found)
        yield found
    finally:
        node.exec(["bash", "-c", script, "servers.sh", "end"], user="root", timeout=60).check()


def hashed(name: str) -> str:
    """Return *name* as `ssh-keygen -H` would write it."""
    salt = b"0123456789abcdefghij"
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


def write_revocations(gateway: Gateway, values: dict[str, str]) -> None:
    """Make the key revocation lists that cases name."""
    script = (
        "cd ~/keys && printf '%s\\n' \"$1\" >host.txt && printf '%s\\n' \"$2\" >other.txt && "
        "ssh-keygen -q -k -f host.krl host.txt && ssh-keygen -q -k -f other.krl other.txt && "
        "printf 'sha256: %s\\n' \"$(ssh-keygen -lf host.txt | cut -d' ' -f2)\" >digest.txt && "
        "printf 'hash: %s\\n' \"$(ssh-keygen -lf host.txt | cut -d' ' -f2)\" >digest.txt && "
        "ssh-keygen -q -k -f digest.krl digest.txt && printf '%s\\n' \"$3\" >ca.pub && "
        "for each in sha1 sha256; do printf '%s: %s\\n' $each \"$1\" >key.txt; "
        "ssh-keygen -q -k -f $each.krl key.txt; done && "
        "for each in 'serial: 7' 'serial: 5-9' 'serial: 8' 'id: host' 'id: guest'; do "
        "printf '%s\\n' \"$each\" >certificates.txt; "
        'ssh-keygen -q -k -s ca.pub -f "${each// /}.krl" certificates.txt; done && '
        "printf 'key: %s\\n' \"$3\" >ca.txt && ssh-keygen -q -k -f ca.krl ca.txt"
    )
    gateway.exec(["bash", "-c", script, "krl", values["ed25519"], values["other"], values["ca"]]).check()


def rows(gateway: Gateway, values: dict[str, str], cases: dict[str, Case], folder: Path) -> list[dict[str, Any]]:
    """Run *cases* in the gateway's container and return what came of each."""
    data = {"values": values, "cases": {name: as_json(case) for name, case in cases.items()}}
    (folder / "cases.json").write_text(json.dumps(data))
    (folder / "run.py").write_text((FOLDER / "run.py").read_text("utf-8"))
    for name in ("cases.json", "run.py"):
        gateway.copy_in(folder / name, "/home/gateway")
    done = gateway.exec([PYTHON, "/home/gateway/run.py", "/home/gateway"], timeout=ROWS_SECONDS)
    assert done.exit_code == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def as_json(case: Case) -> dict[str, Any]:
    """Return *case* as JSON takes it: bytes as text that becomes the same bytes again."""

    def plain(value: Any) -> Any:
        if isinstance(value, bytes):
            return value.decode("utf-8", "surrogateescape")
        if isinstance(value, dict):
            return {name: plain(each) for name, each in value.items()}
        return list(value) if isinstance(value, tuple) else value

    return {name: plain(value) for name, value in dataclasses.asdict(case).items()}


def judge(row: dict[str, Any], case: Case, reader: str) -> str:
    """Return what is wrong with a row, empty if our login did what ssh did, or differs as the case says."""
    theirs, ours = row["ssh"], row[reader]
    if theirs == ours:
        return ""
    if (case.kinder and ours and not theirs) or (case.stricter and theirs and not ours):
        return ""
    return f"{row['name']} ({reader}): ssh {theirs or row['complaint']!r}, ours {ours or row[f'{reader}: error']!r}"


def faults(row: dict[str, Any]) -> list[str]:
    """Return what is wrong with a row, by either reader."""
    found = [judge(row, CASES[row["name"]], reader) for reader in ("ssh -G", "our own")]
    return [each for each in found if each]


def nameless(row: dict[str, Any], node: str) -> list[str]:
    """Return our refusals of a row that name no host, by either reader: mostly a deadline of this test's, no error of ours."""
    found = [(reader, row[f"{reader}: error"]) for reader in ("ssh -G", "our own") if not row[reader]]
    return [
        f"{row['name']} ({reader}): {error!r}" for reader, error in found if node not in error and "Host " not in error
    ]


def share_of(parts: int) -> dict[str, Case]:
    """Return one of *parts* of the set-ups, always the same one, of all their kinds: by a digest of their names."""
    return {name: case for name, case in CASES.items() if zlib.crc32(name.encode()) % parts == 0}


@pytest.mark.timeout(2000)
@pytest.mark.lab(nodes=1)
@pytest.mark.parametrize("parts", [pytest.param(1, id="all", marks=pytest.mark.long), pytest.param(3, id="a-third")])
def test_every_login_goes_as_with_ssh(
    client_machine: Gateway, values: dict[str, str], tmp_path: Path, parts: int
) -> None:
    """The same user gets in, or nobody does, for each set-up, whoever reads ssh_config; every refusal names the host."""
    cases = share_of(parts)
    found = rows(client_machine, values, cases, tmp_path)
    assert [row["name"] for row in found] == list(cases)
    doubtful = {row["name"]: CASES[row["name"]] for row in found if any(faults(row))}
    # Once, on a loaded machine, ssh itself refused what it lets through: what differs has to differ again.
    again = rows(client_machine, values, doubtful, tmp_path) if doubtful else []
    wrong = [fault for row in again for fault in faults(row)]
    (tmp_path / "rows.json").write_text(json.dumps(found, indent=1))
    assert wrong == []
    assert [fault for row in found for fault in nameless(row, values["node"])] == []
    logged_in = sum(bool(row["ssh"]) for row in found)
    assert logged_in > len(found) / 3, "most logins fail: the set-up of this test is broken"

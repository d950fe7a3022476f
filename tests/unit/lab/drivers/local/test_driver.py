import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.drivers.local import processes
from lab.drivers.local.driver import LocalDriver
from lab.drivers.local.files import make_own
from lab.drivers.local.gateway import LocalGateway
from lab.drivers.local.machine import LocalMachine
from lab.drivers.local.node import LocalNode
from lab.errors import LabConflict, LabNotFound
from lab.keys import read_or_generate
from lab.state import StateFolder
from lab.topology.specs import NodeSpec

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")

SPEC = NodeSpec("node1.lab.test", group="node", template="node{n}")


@pytest.fixture
def driver() -> Iterator[LocalDriver]:
    """A local lab's driver; environments of Enterprise Gateway are not made, since no gateway is."""
    found = make()
    yield found
    found.destroy()


def make() -> LocalDriver:
    found = LocalDriver("mine", StateFolder("mine"), "asyncssh")
    found._environments = {"node": Path("/nowhere")}
    return found


def put(driver: LocalDriver) -> LocalNode:
    """Do with one node what `up` does, and wait for its sshd."""
    identity = read_or_generate(driver.folder.identity, "test").public
    node = driver.put_node(SPEC, identity)
    assert isinstance(node, LocalNode)
    node.wait_ready()
    return node


def test_an_up_from_another_shell_ends_no_machine(driver: LocalDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Path, language, TMPDIR and interpreter of whoever calls are no part of what a machine is."""
    first = put(driver)
    before = processes.main_process(first.folder)
    with tempfile.TemporaryDirectory() as other:
        monkeypatch.setenv("PATH", f"{other}:{os.environ['PATH']}")
        monkeypatch.setenv("LANG", "xx_XX")
        monkeypatch.setattr("tempfile.tempdir", other)
        monkeypatch.setattr("sys.executable", shutil.which("true"))
        assert make().reasons(SPEC) == []
        again = put(make())
    assert processes.main_process(again.folder) == before


def test_a_port_that_is_taken_is_replaced(driver: LocalDriver) -> None:
    """Another program may listen on a stopped node's port: the next `up` gives it another one; otherwise it stays."""
    node = put(driver)
    node.stop()
    assert put(driver).port == node.port
    node.stop()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", node.port))
        other.listen()
        again = put(driver)
        assert again.port != node.port
        assert again.state == "running"


def test_a_server_that_nobody_wrote_down_is_ended(driver: LocalDriver) -> None:
    """A command that was killed between start and note leaves a server; the next start is not kept from its port."""
    node = put(driver)
    lost = processes.main_process(node.folder)
    node.save(process=[0, 0])
    again = LocalNode(node.folder, driver.folder.identity, lambda: None)
    again.start()
    assert lost.status == ""
    assert again.state == "running"
    assert again.port == node.port


def test_a_machine_that_vanishes_is_not_listed(driver: LocalDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever lists machines while one is removed doesn't see it, and gets no error."""
    put(driver)
    read = LocalMachine.__init__

    def late(self: LocalMachine, folder: Path, *rest: object) -> None:
        shutil.rmtree(folder)
        read(self, folder, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalMachine, "__init__", late)
    assert driver.nodes() == []


def test_a_removed_gateway_does_not_come_back(tmp_path: Path) -> None:
    """Telling a gateway of its nodes or its kernelspecs after its removal is an error and makes no folder."""
    folder = tmp_path / "machines" / "gateway"
    (folder / "home").mkdir(parents=True)
    (folder / "machine.json").write_text('{"hosts": [], "python": "python3"}')
    gateway = LocalGateway(folder, lambda: None)
    gateway.trust([], "key")
    gateway.write_files({"kernels/x/kernel.json": "{}"})
    assert (folder / "home" / ".ssh" / "id_ed25519").read_text() == "key"
    shutil.rmtree(folder)
    with pytest.raises(LabNotFound):
        gateway.trust([], "key")
    with pytest.raises(LabNotFound):
        gateway.write_files({"kernels/x/kernel.json": "{}"})
    assert not folder.exists()


def test_sockets_are_in_a_folder_of_ones_own(tmp_path: Path) -> None:
    """A folder or a link that somebody else may have put there is refused with a remedy."""
    make_own(tmp_path / "a" / "node1")
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "a", tmp_path / "a" / "node1")] == [0o700, 0o700]
    (tmp_path / "b").mkdir()
    (tmp_path / "b").chmod(0o777)
    (tmp_path / "c").symlink_to(tmp_path / "a")
    for name in ("b", "c"):
        with pytest.raises(LabConflict, match="TMPDIR"):
            make_own(tmp_path / name / "node1")

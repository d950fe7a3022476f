import json
from pathlib import Path

import pytest

from lab.drivers.local import programs


@pytest.mark.parametrize("name", ["/src/lab/drivers/local/init.py", "/src/lab/local/init.py"])
def test_an_init_is_known_by_both_names(name: str) -> None:
    """A machine that was made before the program moved is reset like any other."""
    assert programs.is_init(["python", "-I", "-S", name, "run"])
    assert not programs.is_init(["python", "-I", "-S", "/src/init.py", "run"])


@pytest.mark.parametrize("name", ["/src/lab/drivers/local/supervisor.py", "/src/lab/local/daemons.py"])
def test_a_supervisor_is_known_by_both_names(name: str) -> None:
    """The init that stands above it has the same words behind its own, and is not taken for it."""
    argv = ["python", "-I", "-S", name, "run"]
    assert programs.is_supervisor(argv)
    assert not programs.is_supervisor(["python", "-I", "-S", "init.py", "run", *argv])


@pytest.mark.parametrize("name", [programs.SERVER, "-m lab.local.server"])
def test_a_server_is_known_by_both_names(name: str) -> None:
    """It is no process that a test has left behind."""
    assert programs.is_server(f"/usr/bin/python3 {name} server.json")
    assert not programs.is_server("sleep 60")


def test_a_fingerprint_does_not_change_with_the_names() -> None:
    """An older lab in the same checkout compares as equal, so that `up` leaves its machines alone."""
    now = {
        "init": ["/src/lab/drivers/local/init.py", "/src/lab/drivers/local/supervisor.py"],
        "argv": [programs.SERVER, "server.json"],
    }
    before = {
        "init": ["/src/lab/local/init.py", "/src/lab/local/daemons.py"],
        "argv": ["-m", "lab.local.server", "server.json"],
    }
    assert programs.with_former_names(json.dumps(now)) == json.dumps(before)


def test_an_older_machine_is_started_by_todays_programs(tmp_path: Path) -> None:
    """Only paths that lead nowhere are replaced: another checkout's program stays. A module may be unknown, a file is not."""
    there = tmp_path / "lab" / "local" / "init.py"
    there.parent.mkdir(parents=True)
    there.touch()
    argv = ["python", "/gone/lab/local/init.py", str(there), "/gone/lab/local/daemons.py"]
    assert programs.with_current_names(argv) == ["python", programs.INIT, str(there), programs.SUPERVISOR]
    server = ["/other/bin/python", "-m", "lab.local.server", "server.json"]
    assert programs.with_current_names(server) == ["/other/bin/python", programs.SERVER, "server.json"]

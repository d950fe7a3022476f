import pytest

from lab.drivers.choice import choose_driver
from lab.errors import EnvironmentUnfit, LabConflict
from lab.progress import Silent
from lab.state import StateFolder, locked, state_root


def test_a_folder_comes_with_its_first_file_and_goes_whole() -> None:
    """Nothing is left of a lab's folder, nor of the folder around it when it was the last."""
    folder = StateFolder("x")
    assert not folder.path.exists()
    folder.write(folder.ssh_config, "Host a\n")
    assert folder.ssh_config.read_text() == "Host a\n"
    assert [path.name for path in folder.path.iterdir()] == ["ssh_config"]
    assert folder.remove() is True
    assert not state_root().exists()
    assert folder.remove() is False


def test_two_at_once_are_refused_with_what_is_busy() -> None:
    """A second holder of the same lock is told what it waits for."""
    with locked("lab-x", what="the lab x"), pytest.raises(LabConflict, match="the lab x is busy"):  # noqa: SIM117
        with locked("lab-x", what="the lab x", seconds=0.05):
            pass


def test_a_folder_knows_whose_lab_it_is() -> None:
    """The driver is kept, so that a docker lab isn't taken for a new one while its engine is away."""
    folder = StateFolder("x")
    assert folder.made_by is None
    folder.write(folder.driver, "docker")
    assert folder.made_by == "docker"
    with pytest.raises(EnvironmentUnfit):
        choose_driver("x", folder, None, Silent())
    assert choose_driver("y", StateFolder("y"), None, Silent()).kind == "local"

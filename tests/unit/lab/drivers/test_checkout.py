from typing import Any

import pytest

from lab.drivers.checkout import only_pinned, sdist
from lab.errors import LabError

SHA = "ab" * 32
OTHER = "cd" * 32
GATEWAY: dict[str, Any] = {
    "name": "jupyter-enterprise-gateway",
    "version": "3.3.0",
    "sdist": {"url": "x://right/eg.tar.gz", "hash": f"sha256:{SHA}", "size": 1},
}
ELSE: dict[str, Any] = {"name": "other", "sdist": {"url": "x://wrong", "hash": f"sha256:{'0' * 64}"}}
REQUIREMENTS = f"""\
one==1 ; python_full_version < '3.12' \\
    --hash=sha256:{SHA} \\
    --hash=sha256:{OTHER}
two==2 \\
    --hash=sha256:{OTHER}
"""


def test_the_sdist_is_the_gateways_own() -> None:
    """Hash and address come from Enterprise Gateway's entry and from no other."""
    assert sdist({"package": [ELSE, GATEWAY]}) == (SHA, "x://right/eg.tar.gz")


@pytest.mark.parametrize("lock", [{"package": [ELSE]}, {"package": [{"name": GATEWAY["name"]}]}, {}])
def test_a_lock_without_the_gateway_is_an_error(lock: dict[str, Any]) -> None:
    """Nothing is guessed where the lock says nothing."""
    with pytest.raises(LabError, match="names no sdist"):
        sdist(lock)


def test_pinned_requirements_stay_as_they_are() -> None:
    """Requirements whose files are all pinned are exported letter by letter, so that they make the same image."""
    assert only_pinned(REQUIREMENTS, frozenset({SHA, OTHER})) == REQUIREMENTS


def test_a_file_published_later_makes_no_other_image() -> None:
    """A file that the index has got since its version was pinned is left out of the requirements."""
    later = REQUIREMENTS.replace(f"two==2 \\\n    --hash=sha256:{OTHER}\n", f"two==2 \\\n    --hash=sha256:{SHA}\n")

    assert only_pinned(later, frozenset({SHA})) == later.replace(f" \\\n    --hash=sha256:{OTHER}", "")


def test_a_requirement_with_other_files_is_refused() -> None:
    """A version of which the index has none of the pinned files is an error that names it and the remedy."""
    with pytest.raises(LabError, match=r"files of two==2 that are not pinned") as caught:
        only_pinned(REQUIREMENTS, frozenset({SHA}))

    assert "nox -s lock" in caught.value.remedy

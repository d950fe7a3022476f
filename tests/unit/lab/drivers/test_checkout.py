import pytest

from lab.drivers.checkout import _sdist_in
from lab.errors import LabError

SHA = "ab" * 32
LOCK = f"""
[[package]]
name = "other"
sdist = {{ url = "x://wrong", hash = "sha256:{"0" * 64}" }}

[[package]]
name = "jupyter-enterprise-gateway"
version = "3.3.0"
sdist = {{ url = "x://right/eg.tar.gz", hash = "sha256:{SHA}", size = 1 }}

[[package]]
name = "after"
"""


def test_the_sdist_is_the_gateways_own() -> None:
    """Hash and address come from Enterprise Gateway's block and from no other."""
    assert _sdist_in(LOCK) == (SHA, "x://right/eg.tar.gz")


def test_a_lock_without_addresses_still_has_the_hash() -> None:
    """The committed lock names no index; the hash alone finds a download that is kept already."""
    assert _sdist_in(LOCK.replace('url = "x://right/eg.tar.gz"', 'filename = "eg.tar.gz"')) == (SHA, "")


def test_a_lock_without_the_gateway_is_an_error() -> None:
    """Nothing is guessed where the lock says nothing."""
    with pytest.raises(LabError, match="names no sdist"):
        _sdist_in('[[package]]\nname = "other"\n')

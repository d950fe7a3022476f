"""Answers of Enterprise Gateway's launchers are read as those launchers write them."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives import padding, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from eg_distributed.launcher_key import LauncherKey

KEY = LauncherKey()


def written(info: Any, public_key: str) -> str:
    """Return what a launcher sends: AES-ECB around *info*, its key in RSA, all in JSON and base64."""
    # The launchers build the PEM out of the bare text.
    public = serialization.load_der_public_key(base64.b64decode(public_key))
    assert isinstance(public, rsa.RSAPublicKey)
    aes_key = b"0123456789abcdef"
    padder = padding.PKCS7(128).padder()
    encryptor = Cipher(algorithms.AES(aes_key), modes.ECB()).encryptor()
    padded = padder.update(json.dumps(info).encode()) + padder.finalize()
    payload = {
        "version": 1,
        "key": base64.b64encode(public.encrypt(aes_key, PKCS1v15())).decode(),
        "conn_info": base64.b64encode(encryptor.update(padded) + encryptor.finalize()).decode(),
    }
    return base64.b64encode(json.dumps(payload).encode()).decode()


def test_a_launchers_answer_is_read() -> None:
    """What was encrypted for our key comes out."""
    info = {"shell_port": 1, "key": "k", "kernel_id": "1"}
    assert KEY.read(written(info, KEY.public_key), "1") == info


def test_a_launcher_that_names_no_kernel_is_believed() -> None:
    """Older launchers send no kernel id; the answer came over that kernel's own listener."""
    assert KEY.read(written({"shell_port": 1}, KEY.public_key), "1") == {"shell_port": 1}


def test_an_answer_for_another_kernel_is_refused() -> None:
    """A launcher's answer counts for its own kernel only."""
    with pytest.raises(ValueError, match="another kernel"):
        KEY.read(written({"kernel_id": "2"}, KEY.public_key), "1")


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "no base64!",
        base64.b64encode(b"{}").decode(),
        base64.b64encode(b"[]").decode(),
        base64.b64encode(b'{"key": 1, "conn_info": 2}').decode(),
        base64.b64encode(b'{"version": 0, "conn_info": "e30="}').decode(),
    ],
)
def test_what_is_not_encrypted_for_us_is_refused(payload: str) -> None:
    """Nonsense, and the older keyless form, are a ValueError."""
    with pytest.raises(ValueError, match=r"not readable|another kernel"):
        KEY.read(payload, "1")


def test_an_answer_for_another_key_is_refused() -> None:
    """A gateway reads only what was encrypted for it."""
    with pytest.raises(ValueError, match=r"not readable|another kernel"):
        KEY.read(written({"kernel_id": "1"}, LauncherKey().public_key), "1")


@pytest.mark.parametrize("info", [[], "text", 5, None])
def test_an_answer_that_is_no_object_is_refused(info: Any) -> None:
    """Connection information is an object."""
    with pytest.raises(ValueError, match="another kernel"):
        KEY.read(written(info, KEY.public_key), "1")

"""The gateway's half of Enterprise Gateway's launcher contract: a key pair, and reading what a launcher sends with it.

The cryptography is the launchers' (RSA PKCS#1 v1.5 around AES-ECB) and weak; it stays, since they run unchanged, but little
depends on it: the answer goes to a loopback listener that hears the login user alone, and on through SSH. The older,
keyless form (version 0), which anybody who knows a kernel's id can forge, is refused.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from cryptography.hazmat.primitives import padding, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

_KEY_BITS = 2048


class LauncherKey:
    """One key pair of one gateway process; made when the first kernelspec with a launcher is started."""

    def __init__(self) -> None:
        self._private = rsa.generate_private_key(public_exponent=65537, key_size=_KEY_BITS)

    @property
    def public_key(self) -> str:
        """What takes the place of `{public_key}`: the key's PEM without header, footer and newlines."""
        der = self._private.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return base64.b64encode(der).decode("ascii")

    def read(self, payload: str, kernel_id: str) -> dict[str, Any]:
        """Return the connection information in a launcher's *payload*; raises ValueError if it is none for *kernel_id*."""
        try:
            outer = json.loads(base64.b64decode(payload, validate=True))
            key = self._private.decrypt(base64.b64decode(outer["key"]), PKCS1v15())
            decryptor = Cipher(algorithms.AES(key), modes.ECB()).decryptor()  # noqa: S305 - the launchers' own choice
            padded = decryptor.update(base64.b64decode(outer["conn_info"])) + decryptor.finalize()
            unpadder = padding.PKCS7(128).unpadder()
            info = json.loads(unpadder.update(padded) + unpadder.finalize())
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"not readable: {error!r}") from error
        if not isinstance(info, dict) or info.get("kernel_id", kernel_id) != kernel_id:
            raise ValueError("it is for another kernel")
        return info

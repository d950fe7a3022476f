"""What Spark's images are filled with: pyspark and Toree from the lock, Hadoop's jars by Maven, kept in the lab's cache.

Both are tar files whose names are the hash of what they were made from, so that a second build downloads nothing. What is in the
cache is verified each time that an image is built with it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, pkcs12
from cryptography.utils import CryptographyDeprecationWarning

from lab.drivers import checkout
from lab.errors import EnvironmentUnfit, LabError
from lab.files import SHARED, replacing
from lab.progress import Progress
from lab.state import cache_root

PACKAGES: Final = ("py4j", "pyspark", "toree")
"""What a Spark node has beside a plain node's environment; all else that these need is there already."""
BUILT_WITH: Final = "setuptools"
PYTHON: Final = "3.11"
"""The nodes' interpreter: images/node."""
JARS: Final = checkout.ROOT / "images" / "hadoop-jars"
MAVEN_GOAL: Final = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
MAVEN_SECONDS: Final = 900.0
STORE_PASSWORD: Final = "changeit"  # noqa: S105 -- what Java takes for granted, and no secret
RECIPE: Final = "1"
"""Changes when the way in which the archives are made changes."""


def folder() -> Path:
    """Return where the archives are kept."""
    return cache_root() / "spark"


# -- Python ------------------------------------------------------------------------------------------------------------


@cache
def python_requirements() -> bytes:
    """Return the locked, hashed requirements of PACKAGES and of what their sdists are built with."""
    return _selected(checkout.requirements("spark").decode(), (*PACKAGES, BUILT_WITH)).encode()


def _selected(requirements: str, names: tuple[str, ...]) -> str:
    """Return the entries of *names* in an exported file: a line each, with its hashes on those below."""
    entries = re.split(r"\n(?=\S)", requirements)
    return "".join(f"{entry.rstrip()}\n" for entry in entries if re.split(r"[=\s;]", entry, maxsplit=1)[0] in names)


def python_archive() -> Path:
    """Return where the archive of PACKAGES is, or will be."""
    return (
        folder()
        / f"python-{checkout.digest([('requirements', python_requirements()), ('recipe', RECIPE.encode())])}.tar"
    )


def python(_: Any, progress: Progress) -> Mapping[str, Path]:
    """Return `python.tar`, the content of a site-packages folder; made now unless the cache has it whole. Raises LabError."""
    kept = python_archive()
    if not intact(kept):
        progress.step("Spark from its sdist (300 MB, once)")
        keep(kept, _make_python)
    return {"python.tar": kept}


def _make_python(file: BinaryIO) -> None:
    text = python_requirements().decode()
    # Beside the archive: it has to hold a third of a gigabyte, and /tmp may be small.
    with tempfile.TemporaryDirectory(dir=folder(), prefix="python-") as place:
        target, wanted, tools = Path(place, "site"), Path(place, "requirements.txt"), Path(place, "build.txt")
        wanted.write_text(_selected(text, PACKAGES))
        tools.write_text(_selected(text, (BUILT_WITH,)))
        arguments = ["--python", sys.executable, "--python-version", PYTHON, "--target", str(target), "--no-deps"]
        arguments += ["--require-hashes", "--build-constraints", str(tools), "--no-binary", "pyspark", "--no-cache"]
        checkout.run_uv("pip", "install", "--quiet", *arguments, "-r", str(wanted))
        with tarfile.open(fileobj=file, mode="w") as archive:
            for path in sorted(target.iterdir()):
                if path.name != "bin" and not path.name.startswith("."):
                    archive.add(path, path.name, filter=_plain)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Take owner and time out, so that equal content is an equal archive, and leave out what running Python made."""
    if "__pycache__" in member.name.split("/"):
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    return member


# -- Hadoop ------------------------------------------------------------------------------------------------------------


def jar_list() -> bytes:
    """Return the committed list: a sha256 and a name for each of Hadoop's jars."""
    return (JARS / "jars.sha256").read_bytes()


def hadoop_archive() -> Path:
    """Return where the archive of Hadoop's jars is, or will be."""
    return folder() / f"hadoop-{checkout.digest([('jars', jar_list()), ('recipe', RECIPE.encode())])}.tar"


def hadoop_here(progress: Progress) -> Path:
    """Return the archive of Hadoop's jars, made now by this machine's own Maven unless the cache has it.

    Called by the local driver, which has no engine to run another Maven in. Raises EnvironmentUnfit without one.
    """
    kept = hadoop_archive()
    if not kept.exists() or wrong_jars(kept):
        maven = shutil.which("mvn")
        if maven is None:
            raise EnvironmentUnfit(
                "a local lab can't have YARN here",
                cause=f"{kept} is not there, and this machine has no Maven to make it with",
                remedy="`apt-get install maven`, or bring that file from a machine that has had `lab up --with yarn`",
            )
        progress.step("Hadoop's jars by Maven (90 MB, once)")
        keep(kept, lambda file: _make_jars_here(maven, file))
        if wrong := wrong_jars(kept):
            kept.unlink()
            raise LabError("Hadoop's jars are not what the list says", cause=", ".join(wrong[:5]))
    return kept


def _make_jars_here(maven: str, file: BinaryIO) -> None:
    """As images/hadoop-jars does it."""
    with tempfile.TemporaryDirectory(dir=folder(), prefix="hadoop-") as place:
        jars, store = Path(place, "jars"), Path(place, "cacerts.p12")
        store.write_bytes(trust_store(checkout.ca_bundle()))
        trust = f"-Djavax.net.ssl.trustStore={store} -Djavax.net.ssl.trustStorePassword={STORE_PASSWORD}"
        argv = [maven, "-B", "-q", "-ntp", "-f", str(JARS / "pom.xml"), f"-Dmaven.repo.local={place}/repository"]
        argv += [MAVEN_GOAL, "-DincludeScope=runtime", f"-DoutputDirectory={jars}"]
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=MAVEN_SECONDS,
                check=False,
                env={**os.environ, "MAVEN_OPTS": f"{os.environ.get('MAVEN_OPTS', '')} {trust}"},
            )
        except subprocess.TimeoutExpired as error:
            raise LabError(f"Maven took longer than {MAVEN_SECONDS:.0f} s") from error
        if done.returncode:
            raise LabError("Maven does not bring Hadoop's jars", cause=(done.stdout + done.stderr).strip()[-800:])
        with tarfile.open(fileobj=file, mode="w") as archive:
            archive.add(jars, ".", filter=_plain)


def wrong_jars(archive: Path) -> list[str]:
    """Return the names of jars in *archive* that are missing, too many, or not what the list says."""
    wanted = {name: digest for digest, name in map(str.split, jar_list().decode().splitlines())}
    found: dict[str, str] = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isfile() else None
                if file is not None:
                    found[member.name.removeprefix("./")] = hashlib.sha256(file.read()).hexdigest()
    except tarfile.TarError:
        return sorted(wanted)
    return sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))


# -- both --------------------------------------------------------------------------------------------------------------


def intact(archive: Path) -> bool:
    """Say whether *archive* is there and has the sha256 that was written beside it when it was made."""
    try:
        return _beside(archive).read_text().split()[:1] == [_sha256(archive)]
    except OSError:
        return False


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            found.update(chunk)
    return found.hexdigest()


def _beside(archive: Path) -> Path:
    return archive.with_name(f"{archive.name}.sha256")


def keep(path: Path, make: Callable[[BinaryIO], None]) -> None:
    """Write *path* by *make*, whole or not at all, and its sha256 beside it, in the form of `sha256sum`.

    The images' lock is held, so nobody else makes the same.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, SHARED) as file:
        make(file)
        file.flush()
        found = _sha256(Path(file.name))
    _beside(path).write_text(f"{found}  {path.name}\n")


def trust_store(bundle: bytes) -> bytes:
    """Return the certificates of a PEM *bundle* as a trust store that Java reads (PKCS #12, password `changeit`).

    Java trusts its own list alone, and the tool that would add to it takes half a second for each certificate. The password is
    Java's usual one: the list is not a secret.
    """
    found = re.findall(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", bundle, re.DOTALL)
    entries = [
        pkcs12.PKCS12Certificate(certificate, f"authority-{number}".encode())
        for number, pem in enumerate(found)
        if (certificate := _certificate(pem)) is not None
    ]
    return pkcs12.serialize_java_truststore(entries, BestAvailableEncryption(STORE_PASSWORD.encode()))


def _certificate(pem: bytes) -> x509.Certificate | None:
    """Return one certificate; None for one that breaks the standard so that nothing could check by it."""
    with warnings.catch_warnings():
        # Bundles still have authorities with a serial number of 0, which cryptography reads, but promises to refuse one day.
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        try:
            return x509.load_pem_x509_certificate(pem)
        except ValueError:
            return None

"""What Spark's images are filled with: chosen from the lock, held against hashes, fetched once."""

import hashlib
import io
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import BinaryIO

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs12

from lab.drivers import artefacts, checkout
from lab.drivers.docker.hadoop import hadoop
from lab.progress import Silent

JARS = {"a.jar": b"one", "b.jar": b"two"}


@pytest.fixture
def jars(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in JARS.items())
    monkeypatch.setattr(artefacts, "jar_list", lines.encode)


def tar(path: Path, files: dict[str, bytes]) -> Path:
    """Write *files* as Maven's image hands them out: below `./`."""
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.usefixtures("jars")
def test_every_jar_is_what_the_list_says(tmp_path: Path) -> None:
    """One that is changed, missing, or too many is named; so are all in an archive that can't be read."""
    assert artefacts.wrong_jars(tar(tmp_path / "right.tar", JARS)) == []
    assert artefacts.wrong_jars(tar(tmp_path / "changed.tar", JARS | {"b.jar": b"three"})) == ["b.jar"]
    assert artefacts.wrong_jars(tar(tmp_path / "missing.tar", {"a.jar": b"one"})) == ["b.jar"]
    assert artefacts.wrong_jars(tar(tmp_path / "more.tar", JARS | {"c.jar": b""})) == ["c.jar"]
    (tmp_path / "broken.tar").write_bytes(b"nothing of the kind")
    assert artefacts.wrong_jars(tmp_path / "broken.tar") == ["a.jar", "b.jar"]


def test_the_committed_list_is_of_one_release_of_hadoop() -> None:
    """Each line has a sha256 and a name, each name once, and Hadoop's own are all of the release that the pom asks for."""
    lines = [line.split() for line in artefacts.jar_list().decode().splitlines()]
    assert all(len(digest) == 64 and name.endswith(".jar") for digest, name in lines)
    names = [name for _, name in lines]
    assert len(set(names)) == len(names)
    own = [name for name in names if name.startswith("hadoop-") and "shaded" not in name]
    assert {name.rpartition("-")[2] for name in own} == {"3.5.0.jar"}
    assert "3.5.0</version>" in (artefacts.JARS / "pom.xml").read_text()


def write(file: BinaryIO) -> None:
    """Make an archive."""
    file.write(b"Spark")


@pytest.mark.usefixtures("jars")
def test_what_the_cache_has_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second build asks neither an index nor the engine: with no client at all the archives are there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(artefacts, "python_requirements", lambda: b"pyspark==3.5.9\n")
    artefacts.folder().mkdir(parents=True)
    artefacts.keep(artefacts.python_archive(), write)
    tar(artefacts.hadoop_archive(), JARS)
    monkeypatch.setattr(checkout, "run_uv", lambda *_: pytest.fail("uv was called"))
    assert artefacts.python(None, Silent()) == {"python.tar": artefacts.python_archive()}
    assert hadoop("eglab/base:0")(None, Silent()) == {"hadoop.tar": artefacts.hadoop_archive()}


def test_a_broken_archive_of_the_cache_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was changed since, or nothing says what it was: what goes into an image has the sha256 of its making."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(artefacts, "python_requirements", lambda: b"pyspark==3.5.9\n")
    monkeypatch.setattr(artefacts, "_make_python", write)
    kept = artefacts.python_archive()
    for damage in (lambda: kept.write_bytes(b"Spar"), lambda: artefacts._beside(kept).unlink()):
        artefacts.python(None, Silent())
        assert artefacts.intact(kept)
        damage()
        assert not artefacts.intact(kept)
    artefacts.python(None, Silent())
    assert kept.read_bytes() == b"Spark"


def test_other_requirements_are_another_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive's name is the hash of what it was made from, so a new lock fetches anew."""
    names = set()
    for version in ("3.5.9", "4.3.0", "3.5.9"):
        monkeypatch.setattr(artefacts, "python_requirements", f"pyspark=={version}\n".encode)
        names.add(artefacts.python_archive().name)
    assert len(names) == 2


def test_only_what_a_node_lacks_is_taken_from_the_lock() -> None:
    """Entries keep their hashes; what a plain node has anyway is left out."""
    spark = "pyspark==3.5.9 \\\n    --hash=sha256:2 \\\n    --hash=sha256:3\n"
    text = f"ipykernel==6.0 \\\n    --hash=sha256:1\n{spark}toree==0.5.0\n"
    assert artefacts._selected(text, ("pyspark",)) == spark


def test_an_archive_is_whole_or_not_there(tmp_path: Path) -> None:
    """Making it fails half-way: nothing stays, and the next build makes it anew."""

    def fail(file: object) -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk"):
        artefacts.keep(tmp_path / "x.tar", fail)
    assert list(tmp_path.iterdir()) == []


def test_java_reads_the_trust_store(tmp_path: Path) -> None:
    """It holds every authority of the bundle, each as a certificate that Java trusts; its own tool says so where it is."""
    bundle = checkout.ca_bundle()
    count = bundle.count(b"-----BEGIN CERTIFICATE-----")
    store = tmp_path / "cacerts.p12"
    store.write_bytes(artefacts.trust_store(bundle))
    found = pkcs12.load_pkcs12(store.read_bytes(), b"changeit").additional_certs
    given = [each.public_bytes(Encoding.DER) for each in x509.load_pem_x509_certificates(bundle)]
    assert [each.certificate.public_bytes(Encoding.DER) for each in found] == given
    assert [each.friendly_name for each in found] == [f"authority-{number}".encode() for number in range(count)]
    if shutil.which("keytool"):
        listed = subprocess.run(
            ["keytool", "-list", "-keystore", str(store), "-storepass", "changeit"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        assert f"contains {count} entries" in listed
        assert listed.count("trustedCertEntry") == count


def test_a_broken_certificate_is_left_out(tmp_path: Path) -> None:
    """One line of rubbish in a machine's bundle takes no other authority with it."""
    broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    good = checkout.ca_bundle().partition(b"-----END CERTIFICATE-----")
    found = pkcs12.load_pkcs12(artefacts.trust_store(broken + good[0] + good[1] + b"\n"), b"changeit")
    assert [each.friendly_name for each in found.additional_certs] == [b"authority-1"]

"""The wheel that a gateway installs: holds `eg_distributed` alone and fits both worlds. Needs a package index, no engine."""

from __future__ import annotations

import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from eg_distributed.launcher_files import launcher_files
from lab.drivers.checkout import build_wheel, requirements, run_uv

pytestmark = pytest.mark.timeout(600)

IMPORTED_AS_BY_GATEWAY = """
from enterprise_gateway.services.kernels.remotemanager import import_item
from enterprise_gateway.services.processproxies.processproxy import RemoteProcessProxy
proxy = import_item("eg_distributed.DistributedProcessProxy")
assert issubclass(proxy, RemoteProcessProxy) and not proxy.__abstractmethods__, proxy
from importlib.metadata import entry_points, version
assert version("jupyter_enterprise_gateway") == "3.3.0"
for entry in entry_points(group="eg_distributed.load_balancers"):
    entry.load()
import eg_distributed, sys
print(eg_distributed.__file__, "/".join(sorted(m for m in sys.modules if m.split(".")[0] in ("lab", "tests"))))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the checkout, or of the release that `nox -s release` has built."""
    if "RELEASE_FOLDER" in os.environ:
        (path,) = Path(os.environ["RELEASE_FOLDER"]).glob("eg_distributed-*.whl")
        return path
    name, content = build_wheel()
    path = tmp_path_factory.mktemp("wheel") / name
    path.write_bytes(content)
    return path


def make_environment(folder: Path) -> Path:
    """Make an empty virtual environment of a Python that Enterprise Gateway runs on; return its interpreter."""
    run_uv("venv", "--quiet", "--python", ">=3.10,<3.12", str(folder))
    return folder / "bin" / "python"


def run(python: Path, code: str) -> str:
    # From another folder and isolated: the checkout's own modules must not be found.
    argv = [str(python), "-I", "-c", code]
    done = subprocess.run(argv, cwd=python.parent, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_holds_the_product_alone(wheel: Path) -> None:
    """Nothing but `eg_distributed` and its metadata; the agent's source, every launcher file and the type marker among it."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = next(archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    assert {name.split("/")[0].split("-")[0] for name in names} == {"eg_distributed"}
    assert {"eg_distributed/py.typed", "eg_distributed/agent/server.py", "eg_distributed/protocol.py"} <= set(names)
    assert {f"eg_distributed/launchers/spark/{path}" for path in launcher_files()} <= set(names)
    required = [
        line.removeprefix("Requires-Dist: ") for line in metadata.splitlines() if line.startswith("Requires-Dist:")
    ]
    names_of = {
        each: {name.split(">")[0] for name in required if ("extra ==" in name) is each} for each in (False, True)
    }
    assert names_of == {
        False: {"asyncssh", "cryptography", "traitlets"},
        True: {"jupyter-client", "jupyter-server", "prometheus-client"},
    }


def test_it_installs_beside_enterprise_gateway(wheel: Path, tmp_path: Path) -> None:
    """In a clean environment of Enterprise Gateway 3.3.0 it installs without a conflict and imports as from a kernelspec."""
    python = make_environment(tmp_path / "gateway")
    locked = tmp_path / "requirements.txt"
    locked.write_bytes(requirements("gateway"))
    # Debian ships distutils, which Enterprise Gateway 3.3 imports, apart from its python3; setuptools brings it as well.
    has_distutils = subprocess.run([str(python), "-c", "import distutils"], capture_output=True, check=False)
    extra = [] if has_distutils.returncode == 0 else ["setuptools<81"]
    run_uv("pip", "install", "--quiet", "--python", str(python), "--require-hashes", "-r", str(locked))
    run_uv("pip", "install", "--quiet", "--python", str(python), str(wheel), *extra)
    run_uv("pip", "check", "--python", str(python))
    where, _, leaked = run(python, IMPORTED_AS_BY_GATEWAY).strip().partition(" ")
    assert Path(where).is_relative_to(tmp_path)
    assert leaked == ""


def test_it_fits_a_jupyter_server_2(wheel: Path, tmp_path: Path) -> None:
    """With its extra it brings today's, which find its kernel provisioner; without, it imports without either."""
    python = make_environment(tmp_path / "server")
    run_uv("pip", "install", "--quiet", "--python", str(python), f"{wheel}[server]")
    run_uv("pip", "check", "--python", str(python))
    found = "from jupyter_client.provisioning import KernelProvisionerFactory as F; import jupyter_server; "
    assert run(python, found + "print(F.instance()._check_availability('eg-distributed'))") == "True\n"
    load = "from importlib.metadata import entry_points as e; print(*(p.load() for p in e(name='eg-distributed')))"
    assert "DistributedProvisioner" in run(python, found + load)
    python = make_environment(tmp_path / "plain")
    run_uv("pip", "install", "--quiet", "--python", str(python), str(wheel))
    run_uv("pip", "check", "--python", str(python))
    code = "import eg_distributed, eg_distributed.cluster, sys; print([m for m in sys.modules if 'jupyter' in m])"
    assert run(python, code) == "[]\n"


@pytest.mark.skipif("RELEASE_FOLDER" not in os.environ, reason="`nox -s release` has built the lab's wheel")
def test_the_labs_wheel_has_its_command_and_its_plugin(wheel: Path, tmp_path: Path) -> None:
    """In a clean environment `lab` reads a topology, and pytest finds the fixtures. (Labs are made in a checkout alone.)"""
    (lab,) = wheel.parent.glob("eg_distributed_lab-*.whl")
    python = make_environment(tmp_path / "lab")
    run_uv("pip", "install", "--quiet", "--python", str(python), str(wheel), str(lab), "pytest")
    run_uv("pip", "check", "--python", str(python))
    topology = tmp_path / "lab.toml"
    topology.write_text("version = 1\n[nodes.node]\ncount = 2\n")
    for argv in (("lab", "validate", str(topology)), ("pytest", "--fixtures", "-p", "no:cacheprovider", str(tmp_path))):
        program = python.parent / argv[0]
        done = subprocess.run([program, *argv[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 or argv[0] == "pytest", done.stderr
    assert "gateway_with" in done.stdout

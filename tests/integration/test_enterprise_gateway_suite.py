"""Enterprise Gateway's own integration tests, as it ships them, against the lab."""

from __future__ import annotations

import re

import pytest

from lab import Gateway, Lab
from tests.integration.conftest import NODES

ITESTS = "enterprise_gateway.itests.test_python_kernel"


@pytest.mark.timeout(300)
@pytest.mark.lab(nodes=NODES, alone=True)  # it interrupts a cell one second after it has sent it
@pytest.mark.parametrize("spec", ["python_distributed", "python_distributed_eg"])
def test_its_python_kernel_tests_pass(lab: Lab, gateway: Gateway, spec: str) -> None:
    """Host name, hello world, restart, interrupt and scope pass for a plain kernelspec and for its own launcher.

    Run where Enterprise Gateway is installed as the lock has it: in the gateway's environment, by unittest, which it is made
    of, so that nothing has to be added.
    """
    settings = {
        # From inside: a container's own port, or, where the gateway is a process, the one that everybody sees.
        "GATEWAY_HOST": gateway.url.removeprefix("http://") if lab.driver == "local" else "127.0.0.1:8888",
        "ITEST_HOSTNAME_PREFIX": "node",
        "KERNEL_USERNAME": "lab",
        "KERNEL_LAUNCH_TIMEOUT": "60",
        "PYTHON_KERNEL_DISTRIBUTED_NAME": spec,
    }
    environment = [f"{name}={value}" for name, value in settings.items()]
    argv = ["env", *environment, gateway.python, "-m", "unittest", "-v", "-k", "Distributed", ITESTS]
    done = gateway.exec(argv, timeout=240)
    said = done.stderr + done.stdout
    assert done.exit_code == 0, said
    ran = re.search(r"^Ran (\d+) tests", said, re.MULTILINE)
    assert ran is not None, said
    assert int(ran[1]) == 5
    assert "skipped" not in said

"""A lab of SSH nodes with FQDN names and a Jupyter Enterprise Gateway, in containers or as processes.

The rooms, from the top; imports go downwards, and there is no circle:

    reference/                  pages made from the code: verbs, lab.toml, faults, errors
    cli/  pytest_plugin.py      the command `lab`, a file for each section of its help; the fixtures of test suites
    testcontainers.py           SSHCluster, for suites that use testcontainers
    testing/                    one session's lab: who uses it, which test has which nodes, what a test leaves
    observe/  doctor/           looking at machines: snapshots, leaks, stats, timeline, export; and at this machine
    lab.py                      Lab, the face: attach, up, plan, scale, reset, down
    converge/                   from what a lab is to what it is to be: desired, plan, run, kernel_probe
    faults/                     inject, healing, notes, guard, watchdog, plan, reach, model
    │   catalogue/                  the kinds of faults, and their index
    │   inside/                     what runs on machines; standard library only
    lifetime/  spark/           holding, keeper, removal, finding, garbage; Spark's and YARN's clusters, asked
    inventory.py                Inventory: a lab's machines and files, all that the four rooms above need of it
    drivers/                    contract (Driver), machines (Machine, Node, Gateway), capabilities, choice, checkout, artefacts
    │   docker/                     machines as containers
    │   local/                      machines as processes; init.py and supervisor.py are standard library only
    lease.py  events.py  probes.py  kernelspecs.py  keys.py
    topology/                   lab.toml: its model, reader and schema, and the specs of single machines
    process_file.py  processes.py  progress.py  state.py  files.py  units.py  names.py  ports.py  errors.py
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lab.converge.kernel_probe import Landing, start_kernel_on
    from lab.drivers.machines import ExecResult, Gateway, Node
    from lab.errors import EnvironmentUnfit, LabConflict, LabError, LabNotFound, LabNotReady, LabUsageError
    from lab.lab import Lab

__all__ = [
    "EnvironmentUnfit",
    "ExecResult",
    "Gateway",
    "Lab",
    "LabConflict",
    "LabError",
    "LabNotFound",
    "LabNotReady",
    "LabUsageError",
    "Landing",
    "Node",
    "start_kernel_on",
]

_HOMES = {
    "Lab": "lab.lab",
    "Landing": "lab.converge.kernel_probe",
    "start_kernel_on": "lab.converge.kernel_probe",
    "ExecResult": "lab.drivers.machines",
    "Gateway": "lab.drivers.machines",
    "Node": "lab.drivers.machines",
}


def __getattr__(name: str) -> Any:
    """Load what is asked for when it is: every pytest loads this package for its plugin, and few of them use a lab."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES.get(name, "lab.errors")), name)


def __dir__() -> list[str]:
    return __all__

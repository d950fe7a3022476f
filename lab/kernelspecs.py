"""The kernelspecs of the lab's gateways: our proxy on a plain spec, on EG's launcher, and EG's own as the baseline.

A JupyterLab has that plain one, and one for each node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from lab.names import short_name

PROVISIONER: Final = "eg-distributed"
OURS: Final = "eg_distributed.DistributedProcessProxy"
STOCK: Final = "enterprise_gateway.services.processproxies.distributed.DistributedProcessProxy"
LAUNCHER: Final = "/usr/local/share/jupyter/kernels/python_distributed_eg/scripts/launch_ipykernel.py"
KERNEL_PYTHON: Final = "/opt/kernel/bin/python"


def _spec(title: str, class_name: str, argv: list[str]) -> dict[str, Any]:
    return {
        "display_name": title,
        "language": "python",
        "metadata": {"process_proxy": {"class_name": class_name}, "debugger": True},
        "argv": argv,
    }


def default_kernelspecs(*, python: str = KERNEL_PYTHON, launcher: str = LAUNCHER) -> dict[str, dict[str, Any]]:
    """Return kernel.json contents by name; *python* and *launcher* are paths on the nodes."""
    plain = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    # EG's own argv, word for word but for the interpreter: nodes keep it in an environment of its own.
    launched = [python, launcher]
    for option in ("kernel-id", "response-address", "public-key", "port-range"):
        launched += [f"--RemoteProcessProxy.{option}", "{" + option.replace("-", "_") + "}"]
    launched += ["--RemoteProcessProxy.spark-context-initialization-mode", "none"]
    return {
        "python_distributed": _spec("Python 3 (distributed)", OURS, plain),
        "python_distributed_eg": _spec("Python 3 (distributed, EG's launcher)", OURS, launched),
        "python_distributed_stock": _spec("Python 3 (distributed, EG's own proxy)", STOCK, launched),
    }


def jupyterlab_kernelspecs(hosts: Iterable[str], *, python: str = KERNEL_PYTHON) -> dict[str, dict[str, Any]]:
    """Return kernel.json contents by name for a JupyterLab: of any of its hosts, and of each of *hosts* (full names)."""
    plain = default_kernelspecs(python=python)["python_distributed"]
    found = {"python_distributed": plain}
    for host in hosts:
        titled = {**plain, "display_name": f"Python 3 on {short_name(host)}"}
        found[on_node(host)] = on_nodes(titled, [host])
    return found


def on_node(host: str) -> str:
    """Return the name of a JupyterLab's kernelspec for the node *host* (its full name)."""
    return f"python_{short_name(host)}"


def for_provisioner(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a kernelspec's content with our provisioner's stanza beside our proxy's; unchanged if it has one, or no proxy."""
    metadata = spec.get("metadata", {})
    if "kernel_provisioner" in metadata or metadata.get("process_proxy", {}).get("class_name") != OURS:
        return dict(spec)
    stanza = {"provisioner_name": PROVISIONER, "config": proxy_config(spec)}
    return {**spec, "metadata": {**metadata, "kernel_provisioner": stanza}}


def proxy_config(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a kernelspec's process proxy (`remote_hosts` …); empty if it has no proxy, or none are set."""
    proxy = spec.get("metadata", {}).get("process_proxy") or {}
    return dict(proxy.get("config") or {})


def on_nodes(spec: Mapping[str, Any], nodes: Sequence[str]) -> dict[str, Any]:
    """Return a kernelspec's content with *nodes* as its process proxy's remote hosts; unchanged if it has no proxy."""
    metadata = spec.get("metadata", {})
    proxy = metadata.get("process_proxy")
    if not proxy:
        return dict(spec)
    config = {**proxy_config(spec), "remote_hosts": ",".join(nodes)}
    return {**spec, "metadata": {**metadata, "process_proxy": {**proxy, "config": config}}}

"""What Enterprise Gateway knows of a kernel, turned into a StartRequest; needs no Enterprise Gateway itself.

The argv and the `env` that Enterprise Gateway hands to a process proxy are not used. In its argv `python` has become the path of
the gateway's own interpreter, and without an `env` in the request its `env` is all of the gateway's environment, secrets
included. So the request is made of the kernelspec, of what the client sent, and of what the configuration says.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from eg_distributed import spec_request
from eg_distributed.request import StartRequest
from eg_distributed.settings import Distributed
from eg_distributed.spec_request import Asked, values_of


class KernelManager(spec_request.KernelManager, Protocol):
    """What is needed of Enterprise Gateway's RemoteKernelManager."""

    inherited_envs: Iterable[str]
    client_envs: Iterable[str]
    impersonation_enabled: bool
    remote_hosts: str | list[str]
    load_balancing_algorithm: str | None
    port_range: str | None
    _launch_args: dict[str, Any]


def requested_env(manager: KernelManager) -> dict[str, Any]:
    """Return the client's values and what the kernel inherits, over the KERNEL_* values of the kernelspec.

    Nothing is checked yet: see `request.check_env`.
    """
    sent = manager._launch_args.get("env") or {}
    wanted = {"inherited": manager.inherited_envs, "allowed": manager.client_envs}
    return {**values_of(manager.kernel_spec.env, sent, os.environ, **wanted), "KERNEL_GATEWAY": "1"}


def start_request(
    manager: KernelManager,
    config: Mapping[str, Any],
    env: Mapping[str, str],
    settings: Distributed,
    *,
    kernel_id: str,
    port_range: tuple[int, int] | None,
    launch_timeout: float,
) -> StartRequest:
    """Return the request to start *manager*'s kernel; raises RequestInvalid.

    Args:
        manager: the kernel's manager
        config: the process proxy's part of the kernelspec
        env: what `requested_env` returned, with what Enterprise Gateway has added since, such as KERNEL_ID
        settings: the cluster's
        kernel_id: the kernel's id, the same for a restart
        port_range: first and last port that the kernel may use, None for any
        launch_timeout: seconds for the whole start

    """
    asked = Asked(
        manager=manager,
        launch=manager._launch_args,
        kernel_id=kernel_id,
        config=config,
        env=env,
        hosts=manager.remote_hosts,
        balancer=manager.load_balancing_algorithm or "round-robin",
        launch_timeout=launch_timeout,
        port_range=port_range,
        named_range=manager.port_range or "0..0",
        impersonation=bool(manager.impersonation_enabled),
    )
    return spec_request.start_request(asked, settings)

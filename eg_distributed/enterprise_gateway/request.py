"""What Enterprise Gateway knows of a kernel, turned into a StartRequest; needs no Enterprise Gateway itself.

The argv and the `env` that Enterprise Gateway hands to a process proxy are not used. In its argv `python` has become the path of
the gateway's own interpreter, and without an `env` in the request its `env` is all of the gateway's environment, secrets
included. So the request is made of the kernelspec, of what the client sent, and of what the configuration says.
"""

from __future__ import annotations

import functools
import os
import secrets
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from eg_distributed.client_options import check_user, for_scripts, without_clients_options
from eg_distributed.hosts import parse_hosts
from eg_distributed.launcher_files import may_bring_folder, shipping_of
from eg_distributed.request import StartRequest, data_env, fill_argv, pin_of, waits_for_answer
from eg_distributed.settings import Distributed

from .launcher_key import LauncherKey
from .run_sh import Replacement, replacement


class KernelSpec(Protocol):
    """What is needed of a kernelspec."""

    argv: list[str]
    env: dict[str, Any] | None
    language: str | None
    resource_dir: str


class Session(Protocol):
    """What is needed of the session that signs a kernel manager's messages."""

    key: bytes
    signature_scheme: str


class KernelManager(Protocol):
    """What is needed of Enterprise Gateway's RemoteKernelManager."""

    kernel_name: str
    kernel_spec: KernelSpec
    session: Session
    inherited_envs: Iterable[str]
    client_envs: Iterable[str]
    impersonation_enabled: bool
    remote_hosts: str | list[str]
    load_balancing_algorithm: str | None
    port_range: str | None
    _launch_args: dict[str, Any]


def requested_env(manager: KernelManager) -> dict[str, Any]:
    """Return the client's values and what the kernel inherits, over the KERNEL_* values of the kernelspec.

    Enterprise Gateway reads the latter as defaults of the client's. Nothing is checked yet: see `request.check_env`.
    """
    spec_env = manager.kernel_spec.env or {}
    defaults = {name: value for name, value in spec_env.items() if name.startswith("KERNEL_") and "$" not in value}
    sent = manager._launch_args.get("env") or {}
    data = data_env(sent, os.environ, inherited=manager.inherited_envs, allowed=manager.client_envs)
    return {**defaults, **data, "KERNEL_GATEWAY": "1"}


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
    spec = manager.kernel_spec
    env = dict(env)
    spec_env = {str(name): str(value) for name, value in (spec.env or {}).items()}
    impersonates = _impersonates(manager, config)
    if impersonates:
        check_user(env.get("KERNEL_USERNAME", ""))
    else:
        env["EG_IMPERSONATION_ENABLED"] = "False"
    replaced = None if impersonates else _replacement(manager, config, settings)
    words = spec.argv
    if replaced is not None:
        words, config, spec_env = replaced.argv, replaced.config, {**spec_env, **replaced.env}
    # Not under impersonation: what is the login user's alone, another user cannot read.
    brings_folder = may_bring_folder(config, manager.kernel_name, settings.folder_limit) and not impersonates
    argv = _argv(words, manager, kernel_id, brings_folder=brings_folder)
    launcher = waits_for_answer(argv, manager.kernel_name)
    shipping = shipping_of(
        config, argv, manager.kernel_name, resource_dir=spec.resource_dir, brings_folder=brings_folder
    )
    if shipping.files:
        spec_env = without_clients_options(spec_env)
    else:
        spec_env, env = for_scripts(spec_env, env)
    return StartRequest(
        kernel_id=kernel_id,
        argv=argv,
        spec_argv=tuple(words),
        hosts=parse_hosts(config.get("remote_hosts") or manager.remote_hosts),
        spec_env=spec_env,
        env=env,
        pin=pin_of(env),
        cwd=env.get("KERNEL_WORKING_DIR"),
        key=(manager.session.key or secrets.token_hex(16).encode()).decode(),
        signature_scheme=manager.session.signature_scheme,
        kernel_name=manager.kernel_name,
        language=spec.language or "",
        transport="launcher" if launcher else config.get("transport") or settings.transport,
        port_range=port_range,
        launch_timeout=launch_timeout,
        balancer=settings.load_balancer or manager.load_balancing_algorithm or "round-robin",
        decrypt=functools.partial(_launcher_key().read, kernel_id=kernel_id) if launcher else None,
        shipping=shipping,
    )


def _impersonates(manager: KernelManager, config: Mapping[str, Any]) -> bool:
    """Return True if the kernel is to be KERNEL_USERNAME's; `"impersonation": false` leaves it the login user's."""
    return bool(manager.impersonation_enabled) and config.get("impersonation") is not False


def _replacement(manager: KernelManager, config: Mapping[str, Any], settings: Distributed) -> Replacement | None:
    """Return what is started in place of a launcher of Enterprise Gateway's, None if it is started as it is.

    Not asked under impersonation: `run.sh` runs the whole kernel as the other user, by sudo, which our launcher does not.
    """
    if not settings.replace_launchers:
        return None
    spec = manager.kernel_spec
    return replacement(spec.argv, spec.language or "", config, spec.resource_dir, manager.kernel_name)


def _argv(words: list[str], manager: KernelManager, kernel_id: str, *, brings_folder: bool) -> list[str]:
    """Return *words* and the client's further arguments, filled in as far as the gateway knows.

    With *brings_folder* the node fills `{resource_dir}` in.
    """
    arguments = manager._launch_args
    argv = [*words, *arguments.get("extra_arguments", [])]
    values = {name: value for name, value in arguments.items() if isinstance(value, str)}
    values.update(prefix=sys.prefix, kernel_id=kernel_id)
    values.pop("resource_dir", None)
    if not brings_folder:
        values["resource_dir"] = manager.kernel_spec.resource_dir
    values["port_range"] = manager.port_range or "0..0"
    if any("{public_key}" in argument for argument in argv):
        values["public_key"] = _launcher_key().public_key
    return fill_argv(argv, values)


@functools.cache
def _launcher_key() -> LauncherKey:
    """Return the gateway's one key pair, made for the first kernelspec with a launcher."""
    return LauncherKey()

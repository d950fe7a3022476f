"""A kernelspec and what a client asked of it, turned into a StartRequest; the same for every adapter.

An adapter says in an `Asked` what its gateway knows; which of the kernelspec's and the client's words reach a node, and how,
is decided here and in `request.py`, so a kernelspec means the same behind every gateway.
"""

from __future__ import annotations

import functools
import secrets
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from .client_options import check_user, for_scripts, without_clients_options
from .hosts import parse_hosts
from .kernelspecs.guard import without_guard
from .launcher_files import may_bring_folder, shipping_of
from .request import StartRequest, data_env, fill_argv, pin_of, waits_for_answer, warm_of
from .run_sh import Replacement, replacement
from .settings import Distributed

if TYPE_CHECKING:
    from .launcher_key import LauncherKey


class KernelSpec(Protocol):
    """What is needed of a kernelspec, as Jupyter reads it."""

    argv: list[str]
    env: dict[str, Any] | None
    language: str | None
    resource_dir: str
    """Its folder on this machine."""


class Session(Protocol):
    """What is needed of the session that signs a kernel manager's messages."""

    key: bytes
    signature_scheme: str


class KernelManager(Protocol):
    """What every adapter's kernel manager has, of whichever release of Jupyter."""

    kernel_name: str
    kernel_spec: KernelSpec
    session: Session


@dataclass(frozen=True)
class Asked:
    """What an adapter knows of a kernel that is to be started."""

    manager: KernelManager
    launch: Mapping[str, Any]
    """What Jupyter starts it with: `extra_arguments`, which go behind argv, and more values of placeholders in argv."""
    kernel_id: str
    """The same for a restart."""
    config: Mapping[str, Any]
    """Of the kernelspec's stanza for this adapter; the same keys mean the same in each."""
    env: Mapping[str, str]
    """What `values_of` returned, with what the gateway adds, such as KERNEL_ID."""
    hosts: str | Iterable[str]
    """The gateway's, for kernelspecs that name none."""
    balancer: str
    """The gateway's, unless `Distributed.load_balancer` names one."""
    launch_timeout: float
    """Seconds for the whole start."""
    port_range: tuple[int, int] | None = None
    """First and last port that the kernel may use; None: any."""
    named_range: str = "0..0"
    """The same as `{port_range}` in argv has it."""
    impersonation: bool = False
    """Whether the gateway runs kernels as KERNEL_USERNAME; the kernelspec may say no to that."""
    cwd: str | None = None
    """Where the kernel starts unless `env` has a KERNEL_WORKING_DIR."""


def values_of(
    spec_env: Mapping[str, Any] | None,
    sent: Mapping[str, Any],
    own: Mapping[str, str],
    *,
    inherited: Iterable[str],
    allowed: Iterable[str],
) -> dict[str, Any]:
    """Return the client's values and what the kernel inherits, over the KERNEL_* values of the kernelspec.

    The latter are defaults of the client's, as Enterprise Gateway reads them; those that refer to another variable are the
    node's to expand. Nothing is checked yet: see `request.check_env`. The other parameters are those of `request.data_env`.
    """
    defaults = {
        name: value for name, value in (spec_env or {}).items() if name.startswith("KERNEL_") and "$" not in str(value)
    }
    return {**defaults, **data_env(sent, own, inherited=inherited, allowed=allowed)}


def start_request(asked: Asked, settings: Distributed) -> StartRequest:
    """Return the request to start the kernel that is *asked* for; raises RequestInvalid."""
    env, config, kernel_name = dict(asked.env), asked.config, asked.manager.kernel_name
    spec, session = asked.manager.kernel_spec, asked.manager.session
    spec_env = {str(name): str(value) for name, value in (spec.env or {}).items()}
    impersonates = asked.impersonation and config.get("impersonation") is not False
    if impersonates:
        check_user(env.get("KERNEL_USERNAME", ""))
    else:
        env["EG_IMPERSONATION_ENABLED"] = "False"
    words: Sequence[str] = without_guard(spec.argv)
    replaced = None if impersonates else _replacement(asked, words, settings)
    if replaced is not None:
        words, config, spec_env = replaced.argv, replaced.config, {**spec_env, **replaced.env}
    # Not under impersonation: what is the login user's alone, another user cannot read.
    brings_folder = may_bring_folder(config, kernel_name, settings.folder_limit) and not impersonates
    argv = _argv(words, asked, brings_folder=brings_folder)
    launcher = waits_for_answer(argv, kernel_name)
    shipping = shipping_of(config, argv, kernel_name, resource_dir=spec.resource_dir, brings_folder=brings_folder)
    warm, preload = warm_of(config, kernel_name, by_default=settings.warm_starts)
    if shipping.files:
        spec_env = without_clients_options(spec_env)
    else:
        spec_env, env = for_scripts(spec_env, env)
    return StartRequest(
        kernel_id=asked.kernel_id,
        argv=argv,
        spec_argv=tuple(words),
        hosts=parse_hosts(config.get("remote_hosts") or asked.hosts),
        spec_env=spec_env,
        env=env,
        pin=pin_of(env),
        cwd=env.get("KERNEL_WORKING_DIR") or asked.cwd,
        key=(session.key or secrets.token_hex(16).encode()).decode(),
        signature_scheme=session.signature_scheme,
        kernel_name=kernel_name,
        language=spec.language or "",
        transport="launcher" if launcher else config.get("transport") or settings.transport,
        port_range=asked.port_range,
        launch_timeout=asked.launch_timeout,
        balancer=settings.load_balancer or asked.balancer,
        decrypt=functools.partial(_launcher_key().read, kernel_id=asked.kernel_id) if launcher else None,
        shipping=shipping,
        warm=warm and not impersonates,
        preload=preload,
    )


def _replacement(asked: Asked, argv: Sequence[str], settings: Distributed) -> Replacement | None:
    """Return what is started in place of a launcher of Enterprise Gateway's, None if it is started as it is.

    Not asked under impersonation: `run.sh` runs the whole kernel as the other user, by sudo, which our launcher does not.
    """
    if not settings.replace_launchers:
        return None
    spec = asked.manager.kernel_spec
    return replacement(argv, spec.language or "", asked.config, spec.resource_dir, asked.manager.kernel_name)


def _argv(words: Sequence[str], asked: Asked, *, brings_folder: bool) -> list[str]:
    """Return *words* and the client's further arguments, filled in as far as the gateway knows.

    With *brings_folder* the node fills `{resource_dir}` in.
    """
    argv = [*words, *(asked.launch.get("extra_arguments") or ())]
    values = {name: value for name, value in asked.launch.items() if isinstance(value, str)}
    values |= {"prefix": sys.prefix, "kernel_id": asked.kernel_id, "port_range": asked.named_range}
    values.pop("resource_dir", None)
    if not brings_folder:
        values["resource_dir"] = asked.manager.kernel_spec.resource_dir
    if any("{public_key}" in argument for argument in argv):
        values["public_key"] = _launcher_key().public_key
    return fill_argv(argv, values)


@functools.cache
def _launcher_key() -> LauncherKey:
    """Return the gateway's one key pair, made for the first kernelspec with a launcher; few need the cryptography for it."""
    from .launcher_key import LauncherKey

    return LauncherKey()

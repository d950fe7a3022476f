"""Kernel managers of jupyter_client: what each of them does with a kernel on a host."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import AsyncKernelManager, KernelManager
from jupyter_client.multikernelmanager import AsyncMultiKernelManager, MultiKernelManager
from traitlets.config import Config

from eg_distributed.cluster import Cluster
from eg_distributed.errors import HostUnresponsive, KernelStartFailed, RequestInvalid, RequestRefused
from eg_distributed.jupyter_server import process
from tests.until import until

from .cells import SECONDS, Said, said, said_async
from .conftest import end_clusters
from .site import ARGV, KERNEL, NAMES, Site

NODE = "import os; print(os.environ['NODE'])"


@asynccontextmanager
async def started(name: str = KERNEL, **options: Any) -> AsyncIterator[tuple[Any, Any]]:
    """A running kernel's manager and client; the kernel ends with the block."""
    manager: Any = AsyncKernelManager(kernel_name=name)
    await manager.start_kernel(**options)
    client = manager.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=SECONDS)
        yield manager, client
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(now=True)


@contextmanager
def variables(**values: str) -> Iterator[None]:
    """Have this process's environment say so."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        yield


# -- each kind of manager ------------------------------------------------------------------------------------------


async def test_an_async_manager(site: Site) -> None:
    """Start, execute, interrupt, restart and shutdown do what they do with a local kernel, and leave nothing."""
    manager: Any = AsyncKernelManager(kernel_name=KERNEL)
    await manager.start_kernel()
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(timeout=SECONDS)
    assert await said_async(client, f"{NODE}; x = 42") in NAMES
    info = manager.get_connection_info()
    await manager.restart_kernel()
    await client.wait_for_ready(timeout=SECONDS)
    assert await said_async(client, "print(x)") == "NameError: name 'x' is not defined"
    assert manager.get_connection_info() == info
    await manager.restart_kernel(now=True)
    await client.wait_for_ready(timeout=SECONDS)
    assert (await interrupted(manager, client)).endswith("KeyboardInterrupt:")
    assert await manager.is_alive()
    client.stop_channels()
    file = Path(manager.connection_file)
    assert file.exists()
    await manager.shutdown_kernel()
    assert not manager.has_kernel
    assert not await manager.is_alive()
    assert not file.exists()


async def interrupted(manager: Any, client: Any) -> str:
    """Return what a cell says that is interrupted while it runs: ipykernel drops one that has not begun, without a word."""
    output = Said()
    cell = asyncio.ensure_future(said_async(client, "import time; print('begun'); time.sleep(60)", output))
    await until("the cell has begun", lambda: "begun" in output.text)
    await manager.interrupt_kernel()
    return await cell


def test_a_blocking_manager(site: Site) -> None:
    """The same without a loop: each call has one of its own."""
    manager = KernelManager(kernel_name=KERNEL)
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=SECONDS)
    assert said(client, f"{NODE}; x = 1") in NAMES
    client.execute("import time; time.sleep(60)")
    manager.interrupt_kernel()
    manager.restart_kernel()
    client.wait_for_ready(timeout=SECONDS)
    assert said(client, "print(x)") == "NameError: name 'x' is not defined"
    assert manager.is_alive()
    client.stop_channels()
    manager.shutdown_kernel()
    assert not manager.is_alive()
    assert not Path(manager.connection_file).exists()


def test_a_blocking_manager_of_many(site: Site) -> None:
    """Kernels start, restart and end by their ids."""
    many = MultiKernelManager()
    ids = [many.start_kernel(kernel_name=KERNEL) for _ in range(2)]
    assert sorted(many.list_kernel_ids()) == sorted(ids)
    client = many.get_kernel(ids[0]).client()
    client.start_channels()
    client.wait_for_ready(timeout=SECONDS)
    many.restart_kernel(ids[0])
    client.wait_for_ready(timeout=SECONDS)
    assert said(client, NODE) in NAMES
    many.interrupt_kernel(ids[0])
    client.stop_channels()
    many.shutdown_all()
    assert not many.list_kernel_ids()


async def test_an_async_manager_of_many(site: Site) -> None:
    """The same, at once; a session's kernels are spread over the hosts."""
    many: Any = AsyncMultiKernelManager()
    ids = await asyncio.gather(*(many.start_kernel(kernel_name=KERNEL) for _ in range(3)))
    cluster = process._clusters.made[False]
    nodes = {kernel.node.name for kernel in cluster.kernels.values() if kernel.node is not None}
    assert nodes == set(NAMES)
    await many.restart_kernel(ids[0])
    assert await many.get_kernel(ids[0]).is_alive()
    await many.shutdown_all()
    assert not many.list_kernel_ids()


async def test_a_kernel_that_dies_is_started_again(site: Site) -> None:
    """The restarter finds it dead and starts it on its host, with the same endpoints."""
    many: Any = AsyncMultiKernelManager()
    kernel_id = await many.start_kernel(kernel_name=KERNEL)
    manager = many.get_kernel(kernel_id)
    manager._restarter.time_to_dead = 0.1
    manager._restarter.stop()
    manager._restarter.start()
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(timeout=SECONDS)
    before = await said_async(client, NODE)
    client.execute("import os; os._exit(3)")
    restarted = asyncio.Event()
    manager.add_restart_callback(restarted.set)
    await asyncio.wait_for(restarted.wait(), SECONDS)
    await until("it runs again", manager.is_alive)
    await client.wait_for_ready(timeout=SECONDS)
    assert await said_async(client, NODE) == before
    client.stop_channels()
    await many.shutdown_kernel(kernel_id)


# -- starts that fail ----------------------------------------------------------------------------------------------


async def test_a_start_that_fails_leaves_nothing(site: Site) -> None:
    """The error has host, cause and the kernel's last words; no process, file or socket stays."""
    name = site.kernelspec(
        "failing", [sys.executable, "-c", "print('no luck'); raise SystemExit(3)", "{connection_file}"]
    )
    manager: Any = AsyncKernelManager(kernel_name=name)
    before = list((site.home / "runtime").glob("kernel-*"))
    with pytest.raises(KernelStartFailed, match=r"^Host node\d: The kernel exited with code 3 .*no luck$"):
        await manager.start_kernel()
    assert not manager.has_kernel
    assert list((site.home / "runtime").glob("kernel-*")) == before
    assert not process._clusters.made[False].kernels


async def test_a_kernelspec_without_hosts(site: Site, anew: None) -> None:
    """Nothing starts anywhere, least of all here, and the error names the three places for hosts."""
    with variables(EG_REMOTE_HOSTS=""):
        manager: Any = AsyncKernelManager(kernel_name=KERNEL)
        with pytest.raises(RequestInvalid, match=r"no hosts.*EG_REMOTE_HOSTS"):
            await manager.start_kernel()


async def test_a_wrong_setting(site: Site, anew: None) -> None:
    """It is told to who starts a kernel, by its variable."""
    with variables(EG_SSH_PORT="ssh"):
        manager: Any = AsyncKernelManager(kernel_name=KERNEL)
        with pytest.raises(RequestInvalid, match="EG_SSH_PORT='ssh'"):
            await manager.start_kernel()


async def test_encryption_that_is_required_is_refused(site: Site) -> None:
    """A kernel that would not have what was asked for does not start."""
    name = site.kernelspec("plain", metadata={
        "supported_encryption": "curve", "kernel_provisioner": {"provisioner_name": "eg-distributed", "config": {}}
    })  # fmt: skip
    manager: Any = AsyncKernelManager(kernel_name=name)
    if not hasattr(manager, "transport_encryption"):
        pytest.skip("this jupyter_client has no transport_encryption")
    manager.transport_encryption = "required"
    with pytest.raises(RequestInvalid, match="goes through SSH"):
        await manager.start_kernel()


def moody(site: Site, name: str) -> tuple[str, Path]:
    """Return a kernelspec, and a file: while that is there, the kernel ends at once, with code 4."""
    note = site.folder / f"{name}-broken"
    code = f"import os, sys; os.path.exists({str(note)!r}) and sys.exit(4); os.execv(sys.executable, {ARGV[:3]!r} + sys.argv[1:])"
    return site.kernelspec(name, [sys.executable, "-c", code, "-f", "{connection_file}"]), note


async def test_a_restart_that_fails_is_tried_again(site: Site, tmp_path: Path) -> None:
    """What stood in the way is gone a moment later: the kernel is there again, and nobody did anything."""
    name, note = moody(site, "moody")
    many: Any = AsyncMultiKernelManager()
    kernel_id = await many.start_kernel(kernel_name=name)
    manager = many.get_kernel(kernel_id)
    manager._restarter.time_to_dead = 0.1
    note.write_text("")
    with pytest.raises(KernelStartFailed, match="code 4"):
        await many.restart_kernel(kernel_id)
    assert not await manager.is_alive()
    note.unlink()
    await until("it runs again", manager.is_alive)
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(timeout=SECONDS)
    assert await said_async(client, NODE) in NAMES
    client.stop_channels()
    await many.shutdown_kernel(kernel_id)


async def test_a_kernel_that_was_deleted_is_not_started_again(site: Site) -> None:
    """A restart that failed, and then a shutdown: the restarter gives up, and no connection file is left."""
    name, note = moody(site, "moody2")
    many: Any = AsyncMultiKernelManager()
    kernel_id = await many.start_kernel(kernel_name=name)
    manager = many.get_kernel(kernel_id)
    manager._restarter.time_to_dead = 0.1
    note.write_text("")
    with pytest.raises(KernelStartFailed):
        await many.restart_kernel(kernel_id)
    await many.shutdown_kernel(kernel_id)
    note.unlink()
    assert not Path(manager.connection_file).exists()
    with pytest.raises(RequestInvalid, match="has been deleted"):
        await manager.restart_kernel()
    assert manager._restarter._pcallback is None


async def test_the_restarter_keeps_out_of_a_start(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would start it after a restart that failed is called off by the next restart, and does nothing in its course."""
    name, note = moody(site, "moody3")
    many: Any = AsyncMultiKernelManager()
    kernel_id = await many.start_kernel(kernel_name=name)
    manager = many.get_kernel(kernel_id)
    provisioner = manager.provisioner
    manager._restarter.time_to_dead = 60.0
    note.write_text("")
    with pytest.raises(KernelStartFailed, match="code 4"):
        await many.restart_kernel(kernel_id)
    assert provisioner._timer is not None
    note.unlink()
    restart = asyncio.ensure_future(many.restart_kernel(kernel_id))
    await until("the start is under way", lambda: provisioner._is_launching)
    assert provisioner._timer is None
    begun: list[bool] = []
    with monkeypatch.context() as patch:
        patch.setattr(manager._restarter, "start", lambda: begun.append(True))
        provisioner._watch_again(manager._restarter)
    await restart
    assert not begun
    assert await manager.is_alive()
    await many.shutdown_kernel(kernel_id)


async def test_a_kernel_that_nobody_lists_any_more_is_let_go(site: Site) -> None:
    """It was deleted after a restart that failed, and is back with its host."""
    many: Any = AsyncMultiKernelManager()
    kernel_id = await many.start_kernel(kernel_name=KERNEL)
    manager = many.get_kernel(kernel_id)
    manager.stop_restarter()
    manager.provisioner._has_process = False
    many.remove_kernel(kernel_id)
    manager.provisioner._watch_again()
    await asyncio.to_thread(site.await_none)
    await manager.cleanup_resources()  # its sockets would hold up the end of their context


@pytest.mark.parametrize("where", ["_reconcile_connection_info", "_async_post_start_kernel"])
async def test_a_manager_that_fails_after_the_launch(site: Site, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Of a first start nothing is left: nobody has heard of the kernel, and nobody would end it."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise ValueError("no")

    manager: Any = AsyncKernelManager(kernel_name=KERNEL)
    monkeypatch.setattr(AsyncKernelManager, where, fail)
    with pytest.raises(ValueError, match="no"):
        await manager.start_kernel()
    await asyncio.to_thread(site.await_none)
    assert not manager.has_kernel
    manager.cleanup_connection_file()


async def test_a_start_that_is_cancelled_as_it_ends(site: Site, monkeypatch: pytest.MonkeyPatch, anew: None) -> None:
    """The kernel that has just started is ended."""
    run = Cluster.run

    async def late(cluster: Cluster, coroutine: Any) -> Any:
        await run(cluster, coroutine)
        raise asyncio.CancelledError

    manager: Any = AsyncKernelManager(kernel_name=KERNEL)
    with monkeypatch.context() as patch:
        patch.setattr(Cluster, "run", late)
        with pytest.raises(asyncio.CancelledError):
            await manager.start_kernel()
    await asyncio.to_thread(site.await_none)
    assert not manager.has_kernel
    manager.cleanup_connection_file()


# -- environment, folder, user -------------------------------------------------------------------------------------


async def test_no_variable_of_this_process_reaches_a_kernel(site: Site, anew: None) -> None:
    """Only what is inherited by name, KERNEL_*, and the session's name do, though a server hands all it has on."""
    with variables(SECRET="s3cr3t", HEIR="h", KERNEL_MINE="k", EG_INHERITED_ENVS="HEIR", EG_AUTH_TOKEN="t"):
        env = {**os.environ, "JPY_SESSION_NAME": str(site.work / "a.ipynb"), "OTHER": "o"}
        async with started(env=env) as (_, client):
            got = await said_async(client, "import os; print(dict(os.environ))")
    assert "s3cr3t" not in got
    assert {"'HEIR': 'h'", "'KERNEL_MINE': 'k'", f"'JPY_SESSION_NAME': '{site.work}/a.ipynb'"} <= set(
        got[1:-1].split(", ")
    )
    assert {"'OTHER': 'o'", "'EG_AUTH_TOKEN': 't'", f"'HOME': '{site.home}'"}.isdisjoint(got[1:-1].split(", "))


async def test_a_callers_variables_are_passed_on_by_name(site: Site, anew: None) -> None:
    """`client_envs` says which; with `*`, what the caller has added, but not what this process has."""
    with variables(SECRET="s3cr3t", EG_CLIENT_ENVS="*"):
        async with started(env={**os.environ, "OTHER": "o"}) as (_, client):
            assert (
                await said_async(client, "import os; print(os.environ.get('OTHER'), os.environ.get('SECRET'))")
                == "o None"
            )


async def test_kernels_start_in_the_folder_that_is_asked_for(site: Site) -> None:
    """That is the caller's, else this process's own, as with a local kernel."""
    async with started(cwd=str(site.folder)) as (_, client):
        assert await said_async(client, "import os; print(os.getcwd())") == str(site.folder)
    async with started() as (_, client):
        assert await said_async(client, "import os; print(os.getcwd())") == str(site.work)


async def test_a_folder_that_a_host_lacks(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """The kernel starts in its home there, and the user is told."""
    async with started(cwd="/Users/me/work") as (_, client):
        assert await said_async(client, "import os; print(os.getcwd() == os.path.expanduser('~'))") == "True"
    assert "working directory /Users/me/work does not exist on this node: started in" in caplog.text


async def test_a_folder_with_another_name_on_the_hosts(site: Site, anew: None) -> None:
    """`folders` says what it is called there; the longest match counts."""
    (site.folder / "deep" / "er").mkdir(parents=True)
    with variables(EG_DISTRIBUTED_FOLDERS=f"/Users/me={site.home},/Users/me/work={site.folder}/deep"):
        async with started(cwd="/Users/me/work/er") as (_, client):
            assert await said_async(client, "import os; print(os.getcwd())") == f"{site.folder}/deep/er"


async def test_a_pin(site: Site) -> None:
    """KERNEL_REMOTE_HOST of this process, or of who starts the kernel, names the host; one outside the set is refused."""
    with variables(KERNEL_REMOTE_HOST="node3"):
        async with started() as (_, client):
            assert await said_async(client, NODE) == "node3"
    async with started(env={"KERNEL_REMOTE_HOST": "node2"}) as (_, client):
        assert await said_async(client, NODE) == "node2"
    manager: Any = AsyncKernelManager(kernel_name=KERNEL)
    with pytest.raises(RequestRefused, match="is none of this kernel's hosts"):
        await manager.start_kernel(env={"KERNEL_REMOTE_HOST": "elsewhere"})


async def test_users_of_a_kernelspec(site: Site) -> None:
    """`authorized_users` and `unauthorized_users` mean what they do behind Enterprise Gateway."""
    site.kernelspec("theirs", config={"authorized_users": "alice,bob", "unauthorized_users": "bob"})
    for user in ("carol", "bob"):
        manager: Any = AsyncKernelManager(kernel_name="theirs")
        with pytest.raises(RequestRefused, match=f"KERNEL_USERNAME={user} is not authorized"):
            await manager.start_kernel(env={"KERNEL_USERNAME": user})
    async with started("theirs", env={"KERNEL_USERNAME": "alice"}) as (_, client):
        assert await said_async(client, "import os; print(os.environ['KERNEL_USERNAME'])") == "alice"


async def test_a_kernelspecs_env_and_folder(site: Site) -> None:
    """`env` is expanded on the node, and `{resource_dir}` is the node's copy of the kernelspec's folder."""
    argv = [*ARGV, "--InteractiveShellApp.exec_files={resource_dir}/first.py"]
    name = site.kernelspec("rich", argv, env={"WHERE": "on ${NODE}"})
    (site.home / "data" / "kernels" / name / "first.py").write_text("first = __file__\n")
    async with started(name) as (_, client):
        assert (await said_async(client, "import os; print(os.environ['WHERE'])")).startswith("on node")
        assert "/home/data" not in await said_async(client, "print(first)")


# -- hosts that hang or fail ---------------------------------------------------------------------------------------


async def test_a_start_moves_on_from_a_host_that_is_away(site: Site, anew: None) -> None:
    """A refused connection costs a start nothing but another host."""
    site.hosts["node1"].wire.refuse()
    try:
        for _ in range(2):
            async with started() as (_, client):
                assert await said_async(client, NODE) in ("node2", "node3")
    finally:
        site.do(site.hosts["node1"].wire.open())


@pytest.fixture
def quick(anew: None) -> Iterator[None]:
    """Hosts are given up sooner than people would have them."""
    with variables(EG_DISTRIBUTED_REQUEST_TIMEOUT="1", EG_DISTRIBUTED_KEEPALIVE_INTERVAL="1"):
        yield


@pytest.mark.parametrize("mode", ["signal", "message"])
async def test_an_interrupt_of_a_kernel_out_of_reach(site: Site, quick: None, mode: str) -> None:
    """It is refused with host, cause and remedy, and never strikes later; the kernel goes on."""
    name = site.kernelspec(f"lone-{mode}", config={"remote_hosts": ["node1"]}, interrupt_mode=mode)
    async with started(name) as (manager, client):
        cell = asyncio.ensure_future(
            said_async(client, "import time\nfor i in range(80): time.sleep(.1)\nprint('whole')")
        )
        await asyncio.wait({cell}, timeout=1.0)
        site.freeze("node1")
        try:
            with pytest.raises(
                HostUnresponsive, match=r"^Host node1: .*the interrupt was not sent; the kernel is kept"
            ):
                await manager.interrupt_kernel()
            assert await manager.is_alive()
        finally:
            site.thaw("node1")
        assert await asyncio.wait_for(cell, SECONDS) == "whole"
        assert await said_async(client, "print(1)") == "1"


@pytest.mark.parametrize("now", [False, True])
async def test_a_restart_that_could_go_nowhere(site: Site, quick: None, *, now: bool) -> None:
    """It is refused before anything is ended: when the host is back the kernel is as it was."""
    name = site.kernelspec("lone", config={"remote_hosts": ["node1"]})
    async with started(name) as (manager, client):
        await said_async(client, "x = 42")
        site.freeze("node1")
        try:
            with pytest.raises(HostUnresponsive, match=r"^Host node1: .*the restart was not begun; the kernel is kept"):
                await manager.restart_kernel(now=now)
        finally:
            site.thaw("node1")
        assert await manager.is_alive()
        assert await said_async(client, "print(x)") == "42"


def test_a_blocking_restart_that_could_go_nowhere(site: Site, quick: None) -> None:
    """A manager that blocks hears the same."""
    name = site.kernelspec("lone", config={"remote_hosts": ["node1"]})
    manager = KernelManager(kernel_name=name)
    manager.start_kernel()
    site.freeze("node1")
    try:
        with pytest.raises(HostUnresponsive, match="the restart was not begun"):
            manager.restart_kernel()
        with pytest.raises(HostUnresponsive, match="the interrupt was not sent"):
            manager.interrupt_kernel()
    finally:
        site.thaw("node1")
    manager.shutdown_kernel(now=True)


async def test_a_restart_goes_to_another_host(site: Site, quick: None) -> None:
    """Where the kernelspec has one; what is left on the host that hangs is ended when that is back."""
    with variables(KERNEL_REMOTE_HOST=""):
        site.kernelspec("pair", config={"remote_hosts": ["node1", "node2"]})
        async with started("pair") as (manager, client):
            first = await said_async(client, NODE)
            site.freeze(first)
            try:
                await manager.restart_kernel()
                await client.wait_for_ready(timeout=SECONDS)
                assert await said_async(client, NODE) == ({"node1", "node2"} - {first}).pop()
            finally:
                site.thaw(first)
            await until("the first kernel has ended, and is forgotten", lambda: len(site.left()) == 1)


async def test_a_restart_while_no_host_answers(site: Site, quick: None) -> None:
    """With several hosts as with one: it is refused before anything is ended."""
    name = site.kernelspec("pair", config={"remote_hosts": ["node1", "node2"]})
    async with started(name) as (manager, client):
        await said_async(client, "x = 42")
        for node in ("node1", "node2"):
            site.freeze(node)
        try:
            with pytest.raises(HostUnresponsive, match=r"the restart was not begun; the kernel is kept"):
                await manager.restart_kernel()
        finally:
            for node in ("node1", "node2"):
                site.thaw(node)
        assert await manager.is_alive()
        assert await said_async(client, "print(x)") == "42"


async def test_a_kernel_whose_host_hangs_is_not_idle(site: Site, quick: None) -> None:
    """A server's culler looks at when a kernel was last active, and of that nothing arrives."""
    async with started() as (manager, client):
        host = await said_async(client, NODE)
        manager.provisioner._is_servers = True
        manager.last_activity = None
        assert await manager.is_alive()
        assert manager.last_activity is None
        site.freeze(host)
        try:

            async def is_active() -> bool:
                assert await manager.is_alive()
                return manager.last_activity is not None

            await until("it counts as active", is_active)
        finally:
            site.thaw(host)


async def test_a_shutdown_does_not_wait_for_a_host(site: Site, quick: None) -> None:
    """A kernel whose host hangs is let go within seconds, and ended when the host is back."""
    async with started() as (manager, client):
        site.freeze(host := await said_async(client, NODE))
        try:
            began = time.monotonic()
            await manager.shutdown_kernel()
            assert time.monotonic() - began < 12
            assert not manager.has_kernel
        finally:
            site.thaw(host)
    site.await_none()


async def test_a_cut_loses_nothing(site: Site) -> None:
    """Connections that are lost in a printing cell come back by themselves, and all lines arrive, in order."""
    async with started() as (_, client):
        host = site.hosts[await said_async(client, NODE)]
        cell = asyncio.ensure_future(
            said_async(client, "import time\nfor i in range(40): print(i, flush=True); time.sleep(.05)")
        )
        await asyncio.wait({cell}, timeout=0.7)
        site._loop.call_soon_threadsafe(host.wire.cut)
        assert (await asyncio.wait_for(cell, SECONDS)).split() == [str(i) for i in range(40)]


async def test_a_shutdown_at_the_very_end_of_a_process(site: Site, anew: None) -> None:
    """What nbclient and others do then may come after our own end: all has ended, and nothing fails."""
    manager: Any = AsyncKernelManager(kernel_name=KERNEL)
    await manager.start_kernel()
    await asyncio.to_thread(end_clusters)
    site.await_none()
    assert not await manager.is_alive()
    await manager.shutdown_kernel()
    assert not manager.has_kernel


async def test_kernels_of_a_process_that_is_gone(site: Site, anew: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes end them soon, though those of one that is only cut off have a quarter of an hour."""
    monkeypatch.setattr(process, "GONE_TIMEOUT", 1.0)
    manager: Any = AsyncKernelManager(kernel_name=KERNEL)
    await manager.start_kernel()
    cluster = process._clusters.made.pop(False)
    assert cluster.settings.orphan_timeout == 900.0
    await asyncio.to_thread(cluster.close)  # as far as the nodes can see
    await asyncio.to_thread(site.await_none)
    await manager.cleanup_resources()


# -- names ---------------------------------------------------------------------------------------------------------


def test_a_configuration_counts(site: Site, anew: None) -> None:
    """What the application's configuration says of `Distributed` wins over the environment."""
    manager = KernelManager(kernel_name=KERNEL, config=Config({"Distributed": {"remote_hosts": ["node2"]}}))
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=SECONDS)
    assert said(client, NODE) == "node2"
    client.stop_channels()
    manager.shutdown_kernel(now=True)

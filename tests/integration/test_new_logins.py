"""What a login has today reaches kernels that start today, however long its agent has been there: as for `ssh`."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator, Sequence

import pytest

from lab import Gateway, Node
from tests.integration.client import GatewayClient, start_on

pytestmark = [pytest.mark.timeout(120), pytest.mark.lab(nodes=1)]

GROUP = "proj"
CHANGED = ("/etc/environment", "/etc/group", "/etc/group-", "/etc/gshadow", "/etc/gshadow-")
LOOK = """
import grp, json, os, resource
groups = sorted(grp.getgrgid(group).gr_name for group in os.getgroups())
print(json.dumps([groups, resource.getrlimit(resource.RLIMIT_CORE)[1], os.environ.get("SITE_MODE"), os.getppid()]))
"""


@contextlib.contextmanager
def another_login(node: Node) -> Iterator[None]:
    """Have logins to *node* get another group, limit and variable, until the end of the block."""

    def run(*argv: str) -> None:
        node.exec(argv, user="root").check()

    run("tar", "-cpf", "/root/before.tar", *CHANGED)
    run("groupadd", GROUP)
    run("gpasswd", "--add", node.user, GROUP)
    run("sh", "-c", f"echo '{node.user} hard core 8192' > /etc/security/limits.d/test.conf")
    run("sh", "-c", "echo SITE_MODE=new >> /etc/environment")
    try:
        yield
    finally:
        run("rm", "/etc/security/limits.d/test.conf")
        run("tar", "-xpf", "/root/before.tar", "-C", "/")
        run("rm", "/root/before.tar")


async def test_new_kernels_have_what_a_login_has_today(
    gateway: Gateway, client: GatewayClient, nodes: Sequence[Node]
) -> None:
    """After the next login kernels and restarts have its groups, limits and variables; what runs is not touched."""
    node = nodes[0]

    async def log_in() -> None:
        argv = [gateway.python, "-m", "eg_distributed", "kernels", "--json", "--hosts", node.name]
        await asyncio.to_thread(lambda: gateway.exec(argv).check())

    before = await start_on(client, node)
    old = json.loads((await before.execute(LOOK)).stdout)
    with another_login(node):
        await log_in()
        fresh = await start_on(client, node)
        groups, core, mode, parent = json.loads((await fresh.execute(LOOK)).stdout)
        assert (groups, core, mode) == (sorted([*old[0], GROUP]), 8192 * 1024, "new")
        assert parent != old[3]
        assert json.loads((await before.execute(LOOK)).stdout) == old
        await before.restart()
        assert json.loads((await before.execute(LOOK)).stdout)[:3] == [groups, core, mode]
        await fresh.delete()
        await before.delete()
    await log_in()
    again = await start_on(client, node)
    assert json.loads((await again.execute(LOOK)).stdout)[:3] == old[:3]

"""Kernels of other users: who may answer for them, and what is said where the node does not allow them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import socket
from pathlib import Path

import pytest

from eg_distributed.agent.impersonation import check, listeners, user_of
from eg_distributed.agent.launcher_answer import ResponseListener
from eg_distributed.agent.spawning import StartError
from eg_distributed.protocol import Start
from tests.unit.agents import DEADLINE, Refusal, Visitor, standin

RUN_SH = "/k/bin/run.sh"
OWN = pwd.getpwuid(os.getuid()).pw_name
OTHER = next(entry.pw_name for entry in pwd.getpwall() if entry.pw_uid not in (0, os.getuid()))


def asked(user: str = OTHER, *argv: str, enabled: str = "True", files: dict[str, str] | None = None) -> Start:
    """Return a start request as far as it says whose kernel it is."""
    return Start(
        kernel="k1",
        attempt="a1",
        owner="tests",
        host_set="",
        argv=[*argv] or [RUN_SH],
        spec_env={},
        env={"EG_IMPERSONATION_ENABLED": enabled, "KERNEL_USERNAME": user},
        transport="launcher",
        key="",
        signature_scheme="",
        orphan_timeout=0,
        files=files or {},
    )


def sudo(folder: Path, script: str) -> dict[bytes, bytes]:
    """Put a stand-in for sudo on the kernel's path."""
    program = folder / "sudo"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return {b"PATH": os.fsencode(f"{folder}:/usr/bin:/bin"), b"SPARK_HOME": b"/opt/spark"}


def test_whose_kernel_it_is() -> None:
    """Another's only if the gateway impersonates, the name is not the login user's own, and no launcher of ours runs it."""
    assert user_of(asked()) == OTHER
    assert user_of(asked(OWN)) == ""
    assert user_of(asked(files={"spark.py": ""})) == ""
    assert user_of(asked(enabled="False")) == ""


def test_the_environment_makes_no_other_user_of_the_login(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel for a user whose name only stands in USER is another's: it would run as the login user."""
    for name in ("LOGNAME", "USER"):
        monkeypatch.setenv(name, OTHER)
    assert (user_of(asked(OTHER)), user_of(asked(OWN))) == (OTHER, "")


def test_who_may_answer() -> None:
    """Root, the login user, and the user whose kernel it is; nobody for a name that the node does not know."""
    assert listeners("") == {0, os.getuid()}
    assert listeners(OTHER) == {0, os.getuid(), pwd.getpwnam(OTHER).pw_uid}
    assert listeners("no-such-user") == {0, os.getuid()}


@pytest.mark.parametrize(
    "script",
    [
        f'[ "$*" = "-n -u {OTHER} -H -E true" ]',
        f'[ "$*" = "-n -u {OTHER} -l /opt/spark/bin/spark-submit" ]',
    ],
)
def test_sudo_that_allows_it(tmp_path: Path, script: str) -> None:
    """It is enough if sudo lets the login user run anything as the other one, or spark-submit alone."""
    check(OTHER, asked(), sudo(tmp_path, script))


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            "echo 'sudo: a password is required' >&2; exit 1",
            r"\(sudo: a password is required\); allow it in the node's sudoers",
        ),
        ("exit 3", r"\(exit code 3\)"),
    ],
)
def test_sudo_that_does_not(tmp_path: Path, script: str, said: str) -> None:
    """The error has both names, sudo's own words and what to write where."""
    with pytest.raises(StartError, match=f"does not let {OWN} run a kernel as {OTHER} {said}"):
        check(OTHER, asked(), sudo(tmp_path, script))


def test_a_node_without_sudo_or_the_user(tmp_path: Path) -> None:
    """What is missing is named."""
    with pytest.raises(StartError, match="sudo is not installed"):
        check(OTHER, asked(), {b"PATH": os.fsencode(tmp_path)})
    with pytest.raises(StartError, match="there is no user 'no-such-user' on this node"):
        check("no-such-user", asked("no-such-user"), {})


async def test_a_plain_kernel_is_not_run_as_the_wrong_user(visitor: Visitor) -> None:
    """A kernelspec that does not become the other user is refused, instead of running with the login user's rights."""
    with pytest.raises(Refusal, match=f"would run as {OWN}, not as {OTHER}; .*impersonation.: false"):
        await visitor.start("k1", standin(), env=asked().env)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
async def test_an_answer_of_anybody_elses_is_not_heard() -> None:
    """Who read the public key from the process list can't put a kernel of his own in the place of another's."""
    heard: list[str] = []
    got = asyncio.Event()

    def hear(payload: str) -> None:
        heard.append(payload)
        got.set()

    listener = ResponseListener(hear, listeners(OTHER))
    host, _, port = (await listener.open()).partition(":")
    stranger = next(entry.pw_uid for entry in pwd.getpwall() if entry.pw_uid not in listeners(OTHER))
    for uid, word in ((stranger, b"stranger"), (pwd.getpwnam(OTHER).pw_uid, b"user")):
        os.seteuid(uid)
        try:
            connection = socket.socket()  # it is its maker's, whatever he becomes
        finally:
            os.seteuid(0)
        connection.connect((host, int(port)))
        connection.sendall(word)
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):  # which says the same: it has been dealt with
            assert await asyncio.to_thread(connection.recv, 1) == b""
        connection.close()
    await asyncio.wait_for(got.wait(), DEADLINE)
    listener.close()
    assert heard == ["user"]

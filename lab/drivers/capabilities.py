"""Capabilities: what a machine can have done to it, by name, so that no caller has to ask which driver made it.

A driver declares them for all its machines (`DriverKind` in contract.py), and a machine gives the reason for what it lacks.

    network          a network of its own: iptables, routes and queueing disciplines there meet no other machine's packets
    system           accounts, /etc, interpreters and start-up files of its own, and a root who may change them
    processes        a process table of its own: any process of it may be stopped, signalled or limited
    mounts           `privileged_exec` can mount file systems there, and reach what needs capabilities that its root lacks
    limits           `set_limits` bounds memory and processes of the machine as a whole
    freezer          `pause` is the cgroup freezer's
    stop-signals     `pause` is SIGSTOP to each process
    sshd-supervised  its SSH server is started again by a supervisor inside (images/node), and the machine outlives it
    sshd-main        its SSH server is its main process: the machine has ended when that has
"""

from __future__ import annotations

from typing import Literal

Capability = Literal[
    "network",
    "system",
    "processes",
    "mounts",
    "limits",
    "freezer",
    "stop-signals",
    "sshd-supervised",
    "sshd-main",
]

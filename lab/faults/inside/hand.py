"""Carry out a fault's steps on a node: `python -I -c SOURCE STEPS FACTS`, as root where the node has one.

SOURCE is this file behind those that it imports (`bundle`), so that nothing has to be installed on a node.

STEPS is a JSON list of argv lists. A plain one is a command that has to end with 0; one whose first word begins with @ is
a verb of this folder. All undoing verbs may be repeated and don't mind what is gone already: a restarted node has lost its
rules and processes, not its files. FACTS: `port` where the machine serves; of one with an SSH server `config`, its sshd_config,
and `sshd`, the argv that runs it on the node; where steps see other machines' processes `root`, the node's own first one.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from lab.faults.inside.files import (
    allow,
    aside,
    back,
    block,
    comment,
    deny,
    environment,
    first_key,
    login_shell,
    login_shell_back,
    public,
    unblock,
    uncomment,
    vanish,
)
from lab.faults.inside.places import fill, mount, populate, unchain, unmount
from lab.faults.inside.programs import dismiss, end, python, redirect, spawn
from lab.faults.inside.sshd import descriptors, descriptors_back, down, hup, knows, send, up
from lab.faults.inside.steps import StepFailed, need, remove, run, tolerate, write
from lab.faults.inside.victims import continue_named, kill_named, stop_named

VERBS: dict[str, Callable[..., None]] = {
    "@write": write,
    "@remove": remove,
    "@aside": aside,
    "@back": back,
    "@block": block,
    "@unblock": unblock,
    "@environment": environment,
    "@comment": comment,
    "@uncomment": uncomment,
    "@unchain": unchain,
    "@mount": mount,
    "@unmount": unmount,
    "@fill": fill,
    "@populate": populate,
    "@deny": deny,
    "@allow": allow,
    "@login-shell": login_shell,
    "@login-shell-back": login_shell_back,
    "@vanish": vanish,
    "@public": public,
    "@first-key": first_key,
    "@python": python,
    "@spawn": spawn,
    "@redirect": redirect,
    "@dismiss": dismiss,
    "@end": end,
    "@kill-named": kill_named,
    "@stop-named": stop_named,
    "@continue-named": continue_named,
    "@need": need,
    "@tolerate": tolerate,
}

OF_SSHD: dict[str, Callable[..., None]] = {
    "@hup": hup,
    "@signal": send,
    "@knows": knows,
    "@up": up,
    "@down": down,
    "@descriptors": descriptors,
    "@descriptors-back": descriptors_back,
}


def carry_out(steps: Sequence[Sequence[str]], facts: dict[str, Any], *, undoing: bool) -> str:
    """Do all steps, in order; return why it stopped, empty if it didn't.

    An undo goes on behind a failure, so that as much as possible is healed, and reports the first one.
    """
    failure = ""
    for step in steps:
        try:
            if step[0] in OF_SSHD:
                OF_SSHD[step[0]](*step[1:], facts=facts)
            elif step[0].startswith("@"):
                VERBS[step[0]](*step[1:])
            else:
                run(step)
        except (StepFailed, OSError) as error:
            failure = failure or str(error) or type(error).__name__
            if not undoing:
                break
    return failure


if __name__ == "__main__":
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"
    failed = carry_out(json.loads(sys.argv[1]), json.loads(sys.argv[2]), undoing=sys.argv[3:] == ["undo"])
    sys.stdout.write(json.dumps({"failed": failed}) + "\n")

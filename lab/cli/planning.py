"""From a file's fault plan, which knows roles and patterns, to one for the machines of a lab that runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from lab.errors import LabUsageError
from lab.machines import Node


def plan_for(
    nodes: Sequence[Node], plan: Sequence[Mapping[str, Any]], services: Sequence[Node] = ()
) -> list[dict[str, Any]]:
    """Return *plan* (of a topology) with the names of *nodes* in it, and an end for what has none; called by `lab fault run`.

    *services* are meant by their short names alone. Raises LabUsageError for an entry that means no node, or whose end
    nothing says.
    """
    ends = [step["at"] + step["for"] for step in plan if step["for"] is not None]
    found = []
    for number, step in enumerate(plan, 1):
        chosen = [node.short_name for node in nodes if not step["nodes"] or _meant(node, step["nodes"])]
        chosen += [service.short_name for service in services if service.short_name in step["nodes"]]
        if not chosen:
            raise LabUsageError(
                f"entry {number} of the fault plan ({step['fault']}) means no node of this lab",
                cause=f"it names {', '.join(step['nodes'])}, there are {', '.join(node.short_name for node in nodes)}",
                remedy="`lab up FILE` makes a lab that the plan is for",
            )
        lasts = step["for"]
        if lasts is None:
            lasts = max(ends, default=0.0) - step["at"]
            if lasts <= 0:
                raise LabUsageError(
                    f"entry {number} of the fault plan ({step['fault']}) has no end",
                    remedy="write how long: for = '15s'",
                )
        found.append({**step, "nodes": chosen, "for": lasts})
    return found


def _meant(node: Node, patterns: Sequence[str]) -> bool:
    return any(
        pattern[1:] in node.roles
        if pattern.startswith("@")
        else fnmatchcase(node.short_name, pattern) or fnmatchcase(node.name, pattern)
        for pattern in patterns
    )

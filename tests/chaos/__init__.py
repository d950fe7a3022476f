"""Chaos: random faults, starts, cells and gateway ends on a lab of containers, and a check of all that was seen.

A round is a `schedule`, drawn from a seed. `actors` carry it out and write a `history` of what clients asked and saw; `observer`
adds what gateway and nodes say of themselves. `checker` holds the history against the invariants, and knows nothing of how it
was made. `shrink` makes a schedule that fails as short as it can be. `python -m tests.chaos` runs it all (`nox -s chaos`).
"""

"""How a lab is taken away, whoever does it: `lab down`, the keeper, `lab gc`, a test session."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lab.drivers.choice import not_ours, unseen_driver, usable
from lab.drivers.contract import Driver
from lab.lifetime import holding
from lab.names import check_name
from lab.state import StateFolder, locked


def remove(name: str, *, unless: Callable[[], bool] | None = None) -> list[str]:
    """Remove the lab *name* by all drivers that this machine can run; return what was removed, in words.

    With *unless*, nothing is removed if it says so: it is asked with the lab's lock held, since an `up` may have wanted the lab
    back meanwhile. Another user's lab on a shared engine is left alone. Raises EnvironmentUnfit if the lab's engine is away,
    LabConflict if the name is another user's lab's alone.
    """
    folder = StateFolder(check_name(name))
    drivers = usable(name, folder)
    # Without its engine a docker lab can't be seen, which raises here; deleting its folder and calling it gone would be a lie.
    unseen_driver(name, folder, drivers)
    owners = {driver.kind: driver.stranger() for driver in drivers}
    if any(owners.values()) and not folder.path.exists():
        raise not_ours(name, next(filter(None, owners.values())))
    return destroy([driver for driver in drivers if not owners[driver.kind]], folder, unless=unless)


def destroy(
    drivers: Sequence[Driver],
    folder: StateFolder,
    *,
    unless: Callable[[], bool] | None = None,
    keep_folder: bool = False,
) -> list[str]:
    """Remove all that *drivers* have of a lab, and its *folder*, unless *unless* (see `remove`) says so; called by `Lab.down`.

    *keep_folder* is for another user's lab of the name that a lab of this user's has as well.
    """
    name = folder.path.name
    with locked(f"lab-{name}", what=f"the lab {name}"):
        if unless is not None and unless():
            return []
        if not keep_folder:
            # The lease itself goes with the folder: whoever fails from here on tries again by it.
            holding.end_keeper(name)
        # A gateway that is told of its nodes just now would bring its folder back.
        with locked(f"refresh-{name}", what=f"the lab {name}"):
            removed = [what for driver in drivers for what in driver.destroy()]
            if not keep_folder and folder.remove():
                removed.append(f"folder {folder.path}")
    return removed

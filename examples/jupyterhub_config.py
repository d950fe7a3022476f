"""JupyterHub with profiles: a user chooses where the kernels run, and JupyterLab itself stays on the hub's machine.

For /etc/jupyterhub/jupyterhub_config.py. The environment of `jupyterhub-singleuser` has `eg_distributed[server]`, and each user's
`ssh node1 true` works without a question.
"""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PROFILES = {
    "Small: two shared hosts": ("node1.example.org", "node2.example.org"),
    "With a GPU": ("gpu1.example.org",),
}
"""What the page of choices shows, and the hosts behind it."""


def options_form(spawner: Any) -> str:
    """Return the form that a user sees before the server starts; called by JupyterHub."""
    options = "".join(f"<option>{html.escape(name)}</option>" for name in PROFILES)
    return f'<label for="profile">Where do kernels run?</label> <select class="form-control" name="profile">{options}</select>'


def options_from_form(form: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return what was chosen; called by JupyterHub with the form's fields. A name that is not on the list is refused."""
    chosen = form.get("profile", [next(iter(PROFILES))])[0]
    if chosen not in PROFILES:
        raise ValueError(f"there is no profile {chosen!r}")
    return {"profile": chosen}


def hosts(spawner: Any) -> str:
    """Return the hosts of the profile that the user chose; called by JupyterHub at each start of a server."""
    chosen = spawner.user_options.get("profile")
    return ",".join(PROFILES[chosen] if chosen in PROFILES else next(iter(PROFILES.values())))


c = get_config()  # type: ignore[name-defined] # noqa: F821 - JupyterHub defines it
c.JupyterHub.spawner_class = "jupyterhub.spawner.LocalProcessSpawner"
c.Spawner.cmd = ["jupyterhub-singleuser"]
c.Spawner.default_url = "/lab"
c.Spawner.options_form = options_form
c.Spawner.options_from_form = options_from_form
c.Spawner.environment = {
    "EG_REMOTE_HOSTS": hosts,
    # Kernels run on when the hub stops an idle server, and the user's next server has them again.
    "EG_DISTRIBUTED_KEEP_KERNELS": "1",
}
# Where hosts are slow a server takes half a minute to end. One that is killed before leaves its kernels running.
c.LocalProcessSpawner.term_timeout = 60

"""Whom the launcher runs as."""

from __future__ import annotations

import getpass
import os
import pwd


def login_user() -> str:
    """Return the name of the user that this process belongs to.

    By its uid: LOGNAME and USER say what somebody has set. They are asked where no name is known for the uid, as in containers.
    """
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        try:
            return getpass.getuser()
        except (KeyError, OSError):  # they say nothing either
            return str(os.getuid())

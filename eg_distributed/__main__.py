"""`python -m eg_distributed`: the operator's commands, see `app.py`."""

from __future__ import annotations

import sys

from .app import main

sys.exit(main())

"""The script that kernelspecs name in `on_exit`; the agent runs it after the kernel has ended. See `end.py`."""

from __future__ import annotations

import os
import sys
import types

if __name__ == "__main__":
    _package = types.ModuleType("eg_distributed_launcher")
    _package.__path__ = [os.path.dirname(os.path.abspath(__file__))]
    sys.modules[_package.__name__] = _package
    __package__ = _package.__name__
    from .end import main

    sys.exit(main())

"""`python -m s3ws_fs.daemon`: its worker first, which then loads beside it (transfer/early); then
entry.py, where all of it is described.

Invariants
1. Nothing is imported before the worker is started but what that takes.
2. What a service manager is told, the daemon alone tells.
3. No process leaves a core file: the limit is set before there is another one.
"""

from __future__ import annotations

import os
import resource
import sys
from typing import Final

from s3ws_fs.transfer import early

NOTIFY_SOCKET: Final = "NOTIFY_SOCKET"
"""control.servicemanager.VARIABLE, which is not loaded yet."""

NO_CORE_FILE: Final = (1, 1)
"""A core file would hold the credentials. One byte is too few for a file, and the only limit that
the kernel also minds when it hands the core to a program."""

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, NO_CORE_FILE)
    early.start(sys.argv, {k: v for k, v in os.environ.items() if k != NOTIFY_SOCKET})
    from s3ws_fs.daemon.entry import main

    try:
        sys.exit(main())
    finally:
        early.end()

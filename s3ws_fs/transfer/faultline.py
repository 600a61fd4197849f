"""A fault of ours in a child of the daemon: one line of the daemon's log, with the traceback.

Invariants
1. The child's standard error is the daemon's log, so its lines look as the daemon's own do
   (core.logtext).

Called by worker and by the snapshot child, while they handle the exception.
"""

from __future__ import annotations

import os
import time
import traceback

from s3ws_fs.core import logtext


def tell(form: str, logger: str, message: str) -> None:
    """Write it. Never raises."""
    line = logtext.line(
        form,
        time_s=time.time(),
        level="error",
        logger=logger,
        message=message,
        error=traceback.format_exc(),
    )
    try:
        # In one piece: others write to the same file.
        os.write(2, line.encode("ascii", "backslashreplace") + b"\n")
    except OSError:
        return

"""s3ws-fs: a workspace that mounts, works like a local disk, and lives in S3.

Invariants
1. Importing this package imports nothing else: the daemon and the transfer worker start through
   it, and neither may pay for what only the command or the Python API needs.
2. What `__all__` lists is the whole public Python API; everything else is reached by `s3ws`.

Called by everybody.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s3ws_fs.manager import LocalStorage, S3Storage, WorkspaceManager

__version__ = "0.1.0"

__all__ = ["LocalStorage", "S3Storage", "WorkspaceManager", "__version__"]


def __getattr__(name: str) -> Any:
    # By name and not by an import statement: the import contracts would count that as one that
    # the daemon makes as well.
    if name in __all__:
        return getattr(importlib.import_module("s3ws_fs.manager"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

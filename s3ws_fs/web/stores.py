"""The stores of workspaces that are looked at, kept open: opening one takes longer than most looks.

Invariants
1. For reading only. At most STORES_MAX are kept that nobody uses; of more, the one that was asked
   for longest ago is closed.
2. A store is closed only when nobody uses it.

Blocking; thread-safe. Called by web.mounts.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.workspaces.reading import Workspace, store_errors

STORES_MAX: Final = 4


@dataclass(slots=True)
class _Kept:
    store: ScopedStore
    users: int = 0


class Stores:
    """By place and prefix."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()

    @contextmanager
    def use(self, workspace: Workspace) -> Iterator[ScopedStore]:
        """The store of a workspace. StoreError and FormatError of the block become UserError."""
        config = workspace.config
        key = (config.store.location, config.workspace.prefix)
        with store_errors(config):
            with self._lock:
                if key not in self._kept:
                    self._kept[key] = _Kept(workspace.open())
                self._kept.move_to_end(key)
                kept = self._kept[key]
                kept.users += 1
            try:
                yield kept.store
            finally:
                with self._lock:
                    kept.users -= 1
                    self._trim(STORES_MAX)

    def close(self) -> None:
        """Close those that nobody uses."""
        with self._lock:
            self._trim(0)

    def _trim(self, most: int) -> None:
        idle = [key for key, kept in self._kept.items() if not kept.users]
        for key in idle[: max(0, len(idle) - most)]:
            self._kept.pop(key).store.close()

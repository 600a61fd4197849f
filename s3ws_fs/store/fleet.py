"""All workspaces below a root prefix: their names, and a store for looking at each.

Invariants
1. Nothing is written, and no object outside of a workspace prefix is listed or read: users and
   conversations come from delimiter listings, which show the names of folders only.
2. Names that no id of ours could be (an operator's own folders, say) are left out: a workspace
   stands under the canonical spelling of its ids.

Called by the factory; used by the cli's commands for operators.
"""

from __future__ import annotations

from collections.abc import Iterator

from s3ws_fs.core.config import WorkspaceId
from s3ws_fs.core.errors import UserError
from s3ws_fs.core.ids import canonical_id
from s3ws_fs.store.base import Counters, ObjectStore
from s3ws_fs.store.scoped import ScopedStore


class Fleet:
    """One store, seen from above the workspaces. Thread-safe."""

    def __init__(self, inner: ObjectStore, root_prefix: str) -> None:
        self._inner = inner
        self._root = root_prefix
        self._top = f"{root_prefix}conversations/"

    @property
    def counters(self) -> Counters:
        """Requests on the wire, by operation and outcome."""
        return self._inner.counters

    def users(self) -> Iterator[str]:
        """Ids of the users that have something there."""
        return filter(_is_id, self._inner.folders(self._top))

    def conversations(self, user_id: str) -> Iterator[str]:
        """Ids of the conversations of a user that have something there, a workspace or not."""
        return filter(_is_id, self._inner.folders(f"{self._top}{user_id}/"))

    def workspace(self, user_id: str, conversation_id: str) -> ScopedStore:
        """The store of one workspace, read-only; it shares the connection."""
        prefix = WorkspaceId(user_id, conversation_id, self._root).prefix
        return ScopedStore(self._inner, prefix, read_only=True)

    def close(self) -> None:
        """Release connections."""
        self._inner.close()


def _is_id(name: str) -> bool:
    try:
        return canonical_id(name, what="id") == name
    except UserError:
        return False

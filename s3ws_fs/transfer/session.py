"""What a worker knows from one request to the next, and what its groups of requests have in common.

Invariants
1. Before `hello` there is no store, gate or cache: who asks for one gets PermanentError. (`warm`
   builds a store, for `hello` to find if it names the same.)
2. At most one freeze is held.

Called by worker and requests.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from s3ws_fs.cache.reader import open_reader
from s3ws_fs.core.config import StoreConfig, WorkspaceId
from s3ws_fs.core.errors import PermanentError
from s3ws_fs.core.ids import RandBits
from s3ws_fs.core.lease import Grant
from s3ws_fs.store.factory import open_store
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import wire
from s3ws_fs.transfer.ahead import Ahead
from s3ws_fs.transfer.deadline import Deadline, boot_s
from s3ws_fs.transfer.freeze import Frozen, Readable
from s3ws_fs.transfer.gate import Gate, GatedStore
from s3ws_fs.transfer.journaling import JournalState

FETCH_LANES: Final = 6
"""Threads for reads asked for: so many are under way at once."""
KEPT_FOR_FETCHES: Final = 1
"""Of the store's connections the flush leaves so many alone, so that a read always finds one."""

T = TypeVar("T")

Reply = Callable[..., None]
"""Sends a part of an answer: its JSON, and bytes."""
Handler = Callable[[dict[str, Any], Reply], dict[str, Any] | None]
"""Answers one request: what it asks, and where parts go. Raises S3wsError, OSError."""


@dataclass(frozen=True, slots=True)
class Means:
    """What a worker reaches the world by; a simulation passes its own."""

    open_store: Callable[..., ScopedStore] = open_store
    open_reader: Callable[[Path], Readable] = open_reader
    pool: Callable[[int, str], Executor] = ThreadPoolExecutor
    randbits: RandBits = secrets.randbits
    boot: Callable[[], float] = boot_s
    deadline: Callable[[], Deadline | None] = lambda: None
    lock: Callable[[], AbstractContextManager[Any]] = threading.Lock
    """The last three: see Gate."""


class Session:
    """The store, the cache's reader, and the freeze under way."""

    def __init__(self, means: Means) -> None:
        self.means = means
        self.frozen: Frozen | None = None
        self.stopped_pass = ""
        """Flush of the mirror pass that is to end early, or not to be planned to its end."""
        self.surveyed: JournalState | None = None
        """What stood in the journal when the lease was taken: for the restore that follows."""
        self.spool = Path()
        self.cache_dir = Path()
        self.workspace = ""
        self.log_format = "text"
        self.local_patterns = ""
        """What the person added to the local paths (core.policies.split_patterns)."""
        self._warm: tuple[tuple[StoreConfig, str, bool], ScopedStore] | None = None
        self._store: ScopedStore | None = None
        self._gate: Gate | None = None
        self._reader: Readable | None = None
        self._ahead: Ahead | None = None
        self._transfers: Executor | None = None

    def warm(self, ask: dict[str, Any]) -> None:
        """Build the store for `open`, from parts of a MountConfig. Raises UserError, StoreError."""
        prefix = WorkspaceId.from_json(ask["workspace"]).prefix
        self._warm = self._built(StoreConfig.from_json(ask["store"]), prefix, ask["read_only"])

    def _built(
        self, config: StoreConfig, prefix: str, read_only: bool
    ) -> tuple[tuple[StoreConfig, str, bool], ScopedStore]:
        how = {"read_only": True} if read_only else {}
        return (config, prefix, read_only), self.means.open_store(config, prefix, **how)

    def open(self, ask: dict[str, Any]) -> None:
        """Open store and cache as `hello` says; no request is made."""
        config = StoreConfig.from_json(ask["store"])
        self.cache_dir = Path(ask["cache_dir"])
        self.spool = Path(ask["spool_dir"])
        means = self.means
        self._reader = means.open_reader(self.cache_dir)
        self._ahead = Ahead(self._reader, self.cache_dir, self.spool, means.randbits)
        wanted = (config, ask["prefix"], bool(ask.get("read_only")))
        warm, self._warm = self._warm, None
        _, store = warm if warm is not None and warm[0] == wanted else self._built(*wanted)
        self._gate = Gate(
            store,
            boot=means.boot,
            deadline=means.deadline(),
            randbits=means.randbits,
            lock=means.lock,
        )
        if ask.get("lease") is not None:
            self._gate.hold(Grant.from_json(ask["lease"]))
        self._store = store if wanted[2] else GatedStore(store, self._gate)
        self._transfers = means.pool(max(1, config.max_parallel - KEPT_FOR_FETCHES), "transfer")
        self.workspace = ask.get("workspace", "")
        self.log_format = ask.get("log_format", "text")
        self.local_patterns = ask.get("local", "")

    def is_stopped(self, flush_id: str) -> bool:
        """Whether somebody waits for the end of this flush and of the pass behind it."""
        return self.stopped_pass == flush_id

    @property
    def store(self) -> ScopedStore:
        """The store."""
        return _opened(self._store)

    @property
    def gate(self) -> Gate:
        """What guards it."""
        return _opened(self._gate)

    @property
    def reader(self) -> Readable:
        """The cache."""
        return _opened(self._reader)

    @property
    def ahead(self) -> Ahead:
        """What is shipped ahead of a freeze."""
        return _opened(self._ahead)

    @property
    def transfers(self) -> Executor:
        """Threads for what a flush or a restore sends and fetches."""
        return _opened(self._transfers)

    def kept(self, ask: dict[str, Any]) -> Frozen:
        """The freeze that is asked for. Raises OwnSealError unless it is the one that is held."""
        if self.frozen is None or self.frozen.flush_id != ask["flush_id"]:
            raise wire.OwnSealError("this worker does not hold that freeze")
        return self.frozen

    def drop(self) -> None:
        """Hold no freeze any more."""
        if self.frozen is not None:
            self.frozen.close()
            self.frozen = None

    def late(self) -> dict[str, Any] | None:
        """What the store has not answered that it should have."""
        late = None if self._store is None else self._store.waits.overdue()
        return None if late is None else asdict(late)

    def told(self) -> dict[str, Any]:
        """What every answer says besides: requests so far, the newest proof of the lease."""
        told: dict[str, Any] = {}
        if self._store is not None:
            counters = self._store.counters
            told["traffic"] = {
                "requests": counters.by_code(),
                "sent_bytes": counters.sent_bytes,
                "received_bytes": counters.received_bytes,
            }
        if self._gate is not None and self._gate.grant is not None:
            told["lease"] = self._gate.grant.to_json()
        return told


def _opened(part: T | None) -> T:
    if part is None:
        raise PermanentError("worker", "", "hello comes first")
    return part


class Group:
    """Requests that belong together: `do_make_workspace` answers `make-workspace`."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def handlers(self) -> dict[str, Handler]:
        """Each request of the group by its name."""
        return {
            name.removeprefix("do_").replace("_", "-"): getattr(self, name)
            for name in dir(self)
            if name.startswith("do_")
        }

"""The cache of one workspace: opening it safely, changing it, and its bookkeeping.

On disk, below the cache directory of the workspace (0700, files 0600):
    lock            flock of the daemon that has it open; holds its pid
    identity.json   which workspace, bucket and format it belongs to
    boot.json       boot id it is open under, or closed cleanly
    sync.side       the two sync point slots
    redo-0, redo-1  what was changed since (cache/redo.py)
    data/           the LMDB environment
    spool/          transfer files of the worker
    reserve         room for deletions and the spool when the disk is full
    quarantine-*/   caches that could not be trusted, kept for a person

Invariants
1. A cache of another workspace, bucket or format is refused before anything in it is touched.
2. `generation` is that of the newest commit; it never goes back while the cache lives.
3. Nothing is ever forgotten from the dirty set unless it was sealed at or after its generation.
4. Until `restore_complete`, the cache must not be flushed: it does not hold the workspace yet.
5. With a redo log, operations may share a commit (a *batch*): each is acknowledged when its frame
   is in the log. A batch is for one turn of the loop: who lets others run, waits, or looks into the
   database in another way than `read` and `write`, calls `settle` first (`begin_batch`). An
   operation that fails leaves nothing: what its batch held before is put anew.
6. A batch that can't be committed (disk full) stands in the log. Until it can, nothing else is
   changed, and `read` shows it.

Called by fs, replica and daemon.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self, cast

import lmdb

from s3ws_fs.cache import recovery, redo, syncpoint
from s3ws_fs.cache.batch import Batch
from s3ws_fs.cache.bookkeeping import Bookkeeping, damaged_error
from s3ws_fs.cache.headroom import Headroom, engine_error, give_reserve, keep_reserve
from s3ws_fs.cache.ownership import check_identity, lock
from s3ws_fs.cache.recovery import Recovery
from s3ws_fs.cache.redo import LoggedTxn, Redo
from s3ws_fs.cache.tables import DATA_DIR, DATA_FILE, Tables, map_bytes, open_env, open_tables
from s3ws_fs.cache.tx import Tx
from s3ws_fs.cache.view import META_HEAD, View
from s3ws_fs.core import failpoints
from s3ws_fs.core.changefeed import Noted
from s3ws_fs.core.errors import CacheError, FormatError, FsError
from s3ws_fs.core.limits import FORMAT_VERSION
from s3ws_fs.core.records import Head
from s3ws_fs.core.types import ROOT_INO

COMMIT_PAGES_BYTES: Final = 12 * 4096
"""What one commit adds to the file while a sync point pins the pages before it: measured, 12 pages
for creating and writing small files (copies of the tree's path to each record it touches)."""

SHARED_PAGES_BYTES: Final = 4096
"""The same for an operation that shares a commit, beside what the commit takes."""

SPOOL_DIR: Final = "spool"
LOCK_TRIES_MAX: Final = 3
"""How often the directory may be removed by others while its lock is being taken."""
_META_RESTORED: Final = b"restored"


@dataclass(frozen=True, slots=True)
class Identity:
    """What a cache belongs to: workspace prefix, store, and format."""

    prefix: str
    store: str
    format: int = FORMAT_VERSION


class _Write:
    """One write transaction as a context manager (a class: generators cost microseconds here)."""

    __slots__ = ("_batch", "_cache", "_logged", "_tx", "_txn")

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def __enter__(self) -> Tx:
        cache = self._cache
        batch = self._batch = cache.batch
        logged: LoggedTxn | None = None
        try:
            if batch is None:
                txn = cache.env.begin(write=True)
            else:
                logged = batch.txn()
                txn = cast("lmdb.Transaction[bytes]", logged)
        except lmdb.Error as exc:
            raise cache.failed(exc) from exc
        self._txn = txn
        self._logged = logged
        tx = self._tx = cache.tx_type(txn, cache.tables, cache.head, cache.now_ns())
        if logged is not None:
            tx.log = logged.records
        return tx

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        tx, cache = self._tx, self._cache
        if exc is None and tx.changed:
            try:
                tx.finish()
                if cache.headroom.level and not cache.headroom.allows(tx, cache.head):
                    raise FsError(errno.ENOSPC, cache.headroom.reason())
                if cache.before_commit is not None:
                    cache.before_commit(tx)
                failpoints.hit(failpoints.COMMIT_BEFORE)
                if self._batch is None:
                    self._txn.commit()
                else:
                    assert self._logged is not None
                    self._batch.commit(tx, self._logged)
            except BaseException as error:
                self._abort(is_broken=isinstance(error, lmdb.Error))
                if isinstance(error, lmdb.Error):
                    raise cache.failed(error) from error
                raise
            cache.committed(tx)
            failpoints.hit(failpoints.COMMIT_AFTER)
            return
        self._abort(is_broken=isinstance(exc, lmdb.Error))
        if isinstance(exc, lmdb.Error):
            raise cache.failed(exc) from exc

    def _abort(self, *, is_broken: bool) -> None:
        if self._batch is None:
            self._txn.abort()
        else:
            self._batch.undo(self._tx, is_broken=is_broken)


class ReadContext:
    """One read transaction as a context manager."""

    __slots__ = ("_env", "_tables", "_txn")

    def __init__(self, env: lmdb.Environment, tables: Tables) -> None:
        self._env = env
        self._tables = tables

    def __enter__(self) -> View:
        self._txn = self._env.begin()
        return View(self._txn, self._tables)

    def __exit__(self, *_: object) -> None:
        self._txn.abort()


class _BatchContext(ReadContext):
    """A look at what the open batch holds."""

    __slots__ = ()

    def __init__(self, txn: LoggedTxn, tables: Tables) -> None:
        self._txn = txn.txn
        self._tables = tables

    def __enter__(self) -> View:
        return View(self._txn, self._tables)

    def __exit__(self, *_: object) -> None:
        pass


class Cache(Bookkeeping):
    """An open cache, made by `open_cache`; used from one thread, save for a sync point's write."""

    def __init__(
        self,
        directory: Path,
        env: lmdb.Environment,
        *,
        now_ns: Callable[[], int],
        boot_id: str,
        lock_fd: int,
        recovered: Recovery,
        spoilt: bool = False,
    ) -> None:
        self.directory = directory
        self.env = env
        self.tables = open_tables(env, create=True)
        self.now_ns = now_ns
        self.recovered = recovered
        """How it was opened, and what became of the one before."""
        self.on_bytes: Callable[[int], None] = lambda _: None
        self.before_commit: Callable[[Tx], None] | None = None
        """Told of each operation when all of it is written, just before its commit."""
        self.tx_type: Callable[[lmdb.Transaction[bytes], Tables, Head, int], Tx] = Tx
        """What `write` makes: another kind while somebody looks on (cache/feed.py)."""
        self.on_followed: Callable[[int, list[Noted]], None] | None = None
        """Told of what following changed, while somebody looks on."""
        self.uncovered_bytes = 0
        self.redo: Redo | None = None
        self._boot_id = boot_id
        self._lock_fd = lock_fd
        self._closed = False
        data_file = directory / DATA_DIR / DATA_FILE
        self.points = syncpoint.SyncPoints(
            env, directory, data_file, spoilt=spoilt, on_spoilt=self._note_spoilt
        )
        keep_reserve(directory)
        self.headroom = Headroom(env, self.tables, directory)
        self.freed = False
        """Pages were freed that serve again only after the next sync point."""
        self.batch: Batch | None = None
        """Where changes are committed, if there is a redo log."""
        self.head = self._load_head()
        self.traced_generation = self.head.generation
        """Of the newest change that may have made a git repository, as far as is known."""
        self.on_log_full: Callable[[], None] = lambda: None
        """A sync point is due, for the log's sake."""

    def start_log(self) -> None:
        """Keep a redo log from now on, if the disk has room for one; a sync point covers all.

        Raises lmdb.Error, OSError.
        """
        try:
            log = self.redo = Redo(self.directory)
            log.begin_point(self.points.sequence, self.generation)
        except OSError as exc:
            if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self.drop_log()
            return
        self.batch = Batch(
            self.env, self.tables, log, on_settled=self._settled, make_room=self._room_for_batch
        )

    def drop_log(self) -> None:
        """Do without a log: from now on each operation is a commit, each fsync a sync point."""
        log, self.redo = self.redo, None
        if self.batch is not None and self.settle():
            self.batch = None
        if log is not None:
            log.close()

    def _settled(self) -> None:
        self.uncovered_bytes += COMMIT_PAGES_BYTES
        self.spent(COMMIT_PAGES_BYTES)

    def _room_for_batch(self) -> bool:
        self.headroom.measure()
        return give_reserve(self.directory)

    def begin_batch(self) -> None:
        """Operations may share a commit until `settle` (invariant 5)."""
        if self.batch is not None and self.headroom.is_roomy:
            self.batch.is_sharing = True

    def settle(self) -> bool:
        """Commit what shares a commit; whether the database has all that was acknowledged."""
        return self.batch is None or self.batch.settle()

    @property
    def committed_generation(self) -> int:
        """Number of the newest change in the database."""
        return self.generation - (0 if self.batch is None else self.batch.operations)

    def _note_spoilt(self) -> None:
        syncpoint.note_boot(self.directory, self._boot_id, clean=False, spoilt=True)

    def _load_head(self) -> Head:
        with self.read() as view:
            if view.meta(META_HEAD) is not None:
                return view.head()
        head = Head(generation=0, next_ino=ROOT_INO + 1, used_bytes=0, inodes=0)
        self.set_head(head)
        return head

    @property
    def generation(self) -> int:
        """Number of the newest change."""
        return self.head.generation

    @property
    def recovery(self) -> str:
        """How it was opened: "fresh", "kept", "sync-point" (after a power cut), "quarantined"
        or "renewed".
        """
        return self.recovered.how

    def quarantines(self) -> list[str]:
        """Older caches that could not be trusted, kept for a person."""
        return sorted(str(path) for path in self.directory.glob(recovery.QUARANTINES))

    @property
    def spool_dir(self) -> Path:
        """Where the worker keeps its transfer files."""
        return self.directory / SPOOL_DIR

    def write(self) -> _Write:
        """`with cache.write() as tx:` one operation; commits on success. Raises FsError."""
        return _Write(self)

    def read(self) -> ReadContext:
        """`with cache.read() as view:` one point in time. Never across an await."""
        if self.batch is not None and self.batch.operations:
            return self._read_batch(self.batch)
        return ReadContext(self.env, self.tables)

    def _read_batch(self, batch: Batch) -> ReadContext:
        try:
            return _BatchContext(batch.opened(), self.tables)
        except lmdb.Error as exc:
            raise self.failed(exc) from exc

    def extent_bytes(self, extents: Iterable[bytes]) -> int:
        """How many bytes these extents (by key) hold in all. They are not read, nor copied."""
        self.settle()
        with self.env.begin(buffers=True) as txn:
            db = self.tables.extents
            return sum(len(txn.get(key, db=db) or b"") for key in extents)

    def committed(self, tx: Tx) -> None:
        """Take over the counters of a committed transaction."""
        self.head = tx.head_rec
        is_shared = self.batch is not None and self.batch.operations
        added_bytes = tx.put_bytes + (SHARED_PAGES_BYTES if is_shared else COMMIT_PAGES_BYTES)
        self.uncovered_bytes += added_bytes
        self.on_bytes(self.uncovered_bytes)
        if tx.is_freeing:
            self.freed = True
        if tx.is_tracing or tx.is_unlogged:
            self.traced_generation = tx.generation
        self.spent(added_bytes)
        if self.redo is not None and self.redo.is_due:
            self.on_log_full()

    def spent(self, added_bytes: int) -> None:
        """So many bytes of pages were committed: now and then, what is left is measured."""
        headroom = self.headroom
        headroom.budget_bytes -= added_bytes
        if headroom.budget_bytes < 0:
            headroom.measure()

    def failed(self, exc: lmdb.Error) -> FsError:
        """The error to raise for an engine error; what is left is measured."""
        error = engine_error(exc, self.directory)
        if error.errno == errno.ENOSPC:
            self.headroom.measure()
        return error

    def start_sync(self) -> int:
        """A sync point begins: the bytes it is going to cover."""
        self.freed = False
        covered, self.uncovered_bytes = self.uncovered_bytes, 0
        return covered

    def sync_point(self) -> None:
        """Make a sync point here and now: for opening and closing only. Raises FsError."""
        pending = self.begin_point()
        try:
            self.points.write(pending)
        except BaseException as exc:
            self.points.abandon(pending)
            if isinstance(exc, lmdb.Error):
                raise self.failed(exc) from exc
            if isinstance(exc, OSError):
                raise FsError(exc.errno or errno.EIO, f"sync point failed: {exc}") from exc
            raise
        self.finish_point(pending)

    def begin_point(self) -> syncpoint.Pending:
        """Begin a sync point of all that was acknowledged. Raises FsError, OSError."""
        if not self.settle():
            raise self.failed(self._batch_error())
        pending = self.points.begin(self.generation)
        if self.redo is not None:
            try:
                self.redo.begin_point(self.points.sequence + 1, self.generation)
            except OSError:
                self.points.abandon(pending)
                raise
        return pending

    def finish_point(self, pending: syncpoint.Pending) -> None:
        """It is written: it counts."""
        self.points.finish(pending)
        if self.redo is not None:
            self.redo.finish_point()

    def _batch_error(self) -> lmdb.Error:
        assert self.batch is not None
        assert self.batch.error is not None
        return self.batch.error

    def _begin_book(self) -> None:
        """Bookkeeping is going to be committed: behind what was acknowledged, past the log."""
        if not self.settle():
            raise self.failed(self._batch_error())
        if self.redo is not None:
            self.redo.break_off(self.generation)

    @property
    def restore_complete(self) -> bool:
        """Whether the cache holds a whole workspace (a new or a restored one)."""
        with self.read() as view:
            return view.meta(_META_RESTORED) is not None

    def set_restore_complete(self) -> None:
        """The workspace is whole: from now on it may be flushed. Durable when this returns."""
        with self._book() as txn:
            txn.put(_META_RESTORED, b"1", db=self.tables.meta)
        self.sync_point()

    def set_head(self, head: Head) -> None:
        """Restore: continue from the counters of the bucket's newest generation."""
        with self._book() as txn:
            txn.put(META_HEAD, head.encode(), db=self.tables.meta)
        self.head = head
        self.traced_generation = head.generation

    def file_bytes(self) -> int:
        """Bytes on disk of the environment."""
        return (self.directory / DATA_DIR / DATA_FILE).stat().st_blocks * 512

    def reader_check(self) -> int:
        """Clear reader slots of dead processes: to be called after a worker died."""
        return self.env.reader_check()

    def close(self) -> None:
        """Close cleanly: everything synced, the mark set, the lock released. Idempotent.

        Raises FsError when the last sync point failed: then all is closed too, without the mark. A
        cache that was spoilt before gets no mark either, and no error: that has been told.
        """
        if self._closed:
            return
        self._closed = True
        failpoints.hit(failpoints.CLOSE_BEFORE)
        failed: FsError | None = None
        was_spoilt = self.points.spoilt
        try:
            if not was_spoilt:
                self.sync_point()
        except FsError as exc:
            failed = exc
        self.let_go()
        failpoints.hit(failpoints.CLOSE_SYNCED)
        if failed is None and not was_spoilt:
            # On a full disk it can't be noted. The sync point just made vouches for everything.
            with contextlib.suppress(OSError):
                syncpoint.note_boot(self.directory, self._boot_id, clean=True)
                redo.remove_log(self.directory)
        failpoints.hit(failpoints.CLOSE_AFTER)
        os.close(self._lock_fd)
        if failed is not None:
            raise failed

    def let_go(self) -> None:
        """Close the database as the end of a killed process does: no sync point, no mark."""
        self._closed = True
        if self.batch is not None:
            self.batch.close()
        if self.redo is not None:
            self.redo.close()
            self.redo = None
        self.points.close()
        self.env.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_cache(
    directory: Path,
    identity: Identity,
    *,
    quota_bytes: int,
    now_ns: Callable[[], int],
    boot_id: str | None = None,
    may_renew: bool = True,
    with_log: bool = False,
) -> Cache:
    """Open the cache of a workspace, creating it when there is none.

    Raises CacheError: in use by another process (exit 5), of another workspace, bucket or
    format, or damaged (exit 8). A cache no sync point can vouch for after a
    power cut is moved to quarantine and a fresh one is opened (`recovered` says so): it is never
    silently used or deleted. `may_renew`: see recovery.recover. `with_log`: keep a redo log.
    """
    boot = syncpoint.current_boot_id() if boot_id is None else boot_id
    lock_fd = _locked(directory)
    try:
        check_identity(directory, asdict(identity))
        recovered = recovery.recover(directory, boot, now_ns(), may_renew=may_renew)
        data_dir = directory / DATA_DIR
        data_dir.mkdir(mode=0o700, exist_ok=True)
        (directory / SPOOL_DIR).mkdir(mode=0o700, exist_ok=True)
        try:
            if recovered.how in (recovery.SYNC_POINT, recovery.KEPT):
                recovery.replay(directory, map_bytes(quota_bytes), recovered.base)
            spoilt = syncpoint.read_spoilt(directory, boot)
            syncpoint.note_boot(directory, boot, clean=False, spoilt=spoilt)
            failpoints.hit(failpoints.OPEN_NOTED)
            env = open_env(data_dir, map_size=map_bytes(quota_bytes), readonly=False)
            with contextlib.ExitStack() as undo:
                undo.callback(env.close)
                cache = Cache(
                    directory, env, now_ns=now_ns, boot_id=boot, lock_fd=lock_fd,
                    recovered=recovered, spoilt=spoilt,
                )  # fmt: skip
                undo.callback(cache.let_go)
                if not spoilt:
                    cache.sync_point()
                    if with_log:
                        cache.start_log()
                if recovered.how in (recovery.FRESH, recovery.QUARANTINED, recovery.RENEWED):
                    recovery.make_durable(directory)
                undo.pop_all()
        except (lmdb.Error, FormatError) as exc:
            if isinstance(exc, lmdb.Error):
                error = engine_error(exc, directory)
                if error.errno == errno.ENOSPC:
                    raise error from exc
            raise damaged_error(directory, str(exc)) from exc
    except BaseException as exc:
        os.close(lock_fd)
        if isinstance(exc, OSError | FsError):
            raise disk_error(directory, exc) from exc
        raise
    failpoints.hit(failpoints.OPEN_AFTER)
    return cache


def _locked(directory: Path) -> int:
    """The lock of a directory, which is made when there is none."""
    for last in (*[False] * (LOCK_TRIES_MAX - 1), True):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            return lock(directory)
        except FileNotFoundError:
            if last:
                raise
    raise AssertionError("unreachable: the last try returns or raises")


def disk_error(directory: Path, exc: OSError | FsError) -> CacheError:
    """What a person reads when a cache can't be opened, or filled, for its disk's sake."""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return CacheError(
            f"there is no room for the cache in {directory}: {exc}",
            remedy="Make room on that disk and mount again; nothing was lost.",
        )
    return CacheError(
        f"the disk of the cache in {directory} refuses: {exc}",
        remedy="Look at that disk and at the directory's rights, then mount again. Nothing was "
        "changed in the bucket; keep the directory: what was not sealed is only there.",
    )

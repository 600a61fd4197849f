"""Failpoints: the places where a crash, or an error, is most telling; each with what must hold.

The program calls `hit` at each of them. In production nobody listens: one attribute is read and
compared with None. Tests put a hook there (tests/support/armed.py) that kills the process, stops
it, or raises what a disk or a store would.

Invariants
1. Nothing here reads the environment, or arms anything: `hook` is None unless a test set it.
2. A point stands on the way of real work, never in an error path: passing it changes nothing.
3. Every point has its sentence in POINTS, and a workload in tests/crash that passes it.

Called by every layer that changes something durable.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

hook: Callable[[str], None] | None = None
"""Called with the name of each point that is passed. Set by tests only."""

POINTS: Final[dict[str, str]] = {}
"""By name: what must hold after a crash there."""


def hit(name: str) -> None:
    """Pass a point. Raises what the hook raises; without one, nothing happens."""
    if hook is not None:
        hook(name)


def _point(name: str, holds: str) -> str:
    POINTS[name] = holds
    return name


# --- a change, in the daemon (cache/cache.py, fuse/translate.py) -----------------------------

COMMIT_BEFORE: Final = _point(
    "commit.before",
    "The operation was not answered, and nothing of it is there; all before it is.",
)
COMMIT_AFTER: Final = _point(
    "commit.after",
    "The operation is there as a whole, answered or not, with its dirty marks.",
)
BOOK_BEFORE: Final = _point(
    "book.before",
    "Nothing of this piece of bookkeeping is noted: the file tree and the generation are as they "
    "were, and whatever it was about is learned from the bucket again.",
)
BOOK_AFTER: Final = _point(
    "book.after",
    "This piece of bookkeeping is noted as a whole; the file tree and the generation are as they "
    "were.",
)

BATCH_BEFORE: Final = _point(
    "batch.before",
    "The operations of this batch were answered and are in the redo log alone: the next opening "
    "puts them into the database, each of them once.",
)
BATCH_AFTER: Final = _point(
    "batch.after",
    "The operations of this batch are in the database, and in the log, which has nothing to add.",
)

ANSWER_BEFORE: Final = _point(
    "answer.before",
    "What the request did is there as a whole, and whoever asked waits: the next daemon of this "
    "mount answers it, and does not do it again.",
)

# --- opening and closing a cache -------------------------------------------------------------

OPEN_NOTED: Final = _point(
    "open.noted",
    "The cache is noted as open under this boot: a process that dies changes nothing, and after a "
    "power cut the sync point before counts.",
)
OPEN_AFTER: Final = _point(
    "open.after",
    "The cache is as it was opened, with a sync point of its own.",
)
CLOSE_BEFORE: Final = _point(
    "close.before",
    "Head is there; the next opening finds an unclean end.",
)
CLOSE_SYNCED: Final = _point(
    "close.synced",
    "Head is on disk and a sync point vouches for it; the mark of a clean end is missing.",
)
CLOSE_AFTER: Final = _point(
    "close.after",
    "The cache is marked as closed cleanly, and all of it is on disk.",
)

REPLAY_BEFORE: Final = _point(
    "replay.before",
    "What the redo log has beyond the database is put into a transaction that is not committed: "
    "the next opening does it again.",
)
REPLAY_AFTER: Final = _point(
    "replay.after",
    "What the redo log had beyond the database is in it; the log still stands, and has nothing to "
    "add.",
)

# --- a flush of the redo log (cache/redo.py) -------------------------------------------------

LOG_FLUSHING: Final = _point(
    "log.flushing",
    "Nothing of what this fsync waits for is promised yet; a killed process costs none of it.",
)
LOG_FLUSHED: Final = _point(
    "log.flushed",
    "What this fsync waits for is on the disk, in the log; the sync point before is its base.",
)

# --- a sync point (cache/syncpoint.py) -------------------------------------------------------

SYNC_BEGUN: Final = _point(
    "sync.begun",
    "The sync point before counts; its pages are pinned still.",
)
SYNC_FLUSHED: Final = _point(
    "sync.flushed",
    "The pages of this state are on disk, the side file does not say so yet: the sync point before "
    "counts.",
)
SYNC_WRITTEN: Final = _point(
    "sync.written",
    "The slot is written and not flushed: this sync point counts or the one before does, never a "
    "mixture.",
)
SYNC_AFTER: Final = _point(
    "sync.after",
    "This sync point counts, and the one before is still valid.",
)

# --- a flush (transfer/freeze.py, sealing.py, replica/flusher.py) ----------------------------

FREEZE_BEFORE: Final = _point(
    "freeze.before",
    "Nothing of this flush exists; all dirt is marked.",
)
FREEZE_AFTER: Final = _point(
    "freeze.after",
    "The spool holds a copy that nobody needs; all dirt is marked, the bucket is as it was.",
)
SHIP_BEFORE: Final = _point(
    "ship.before",
    "Some blobs stand that no segment names: garbage, harmless; all dirt is marked.",
)
SHIP_AFTER: Final = _point(
    "ship.after",
    "This blob stands and no segment names it: garbage, harmless; all dirt is marked.",
)
SEAL_BEFORE: Final = _point(
    "seal.before",
    "A sync point covers the frozen generation; the bucket is at the seal before; all dirt is "
    "marked.",
)
SEAL_AFTER: Final = _point(
    "seal.after",
    "The bucket is at the frozen generation; the cache does not know, and finds the segment as its "
    "own.",
)
FORGET_BEFORE: Final = _point(
    "forget.before",
    "The bucket is at the frozen generation; all dirt is still marked, and is shipped again.",
)
FORGET_LOCATED: Final = _point(
    "forget.located",
    "Some extents have their places in the bucket; what is not marked any more is sealed.",
)
FORGET_BATCH: Final = _point(
    "forget.batch",
    "Some marks are gone; each of them was sealed, and its inode is on the mirror's to-do.",
)
FORGET_AFTER: Final = _point(
    "forget.after",
    "Nothing at or before the frozen generation is marked; the seal itself is not noted, and is "
    "found as our own.",
)
FLUSH_SEALED: Final = _point(
    "flush.sealed",
    "The cache knows the seal; the mirror is behind, and its to-do says how far.",
)

# --- checkpoint and garbage (transfer/sealing.py, garbage.py) --------------------------------

CHECKPOINT_BEFORE: Final = _point(
    "checkpoint.before",
    "The segment is sealed; the checkpoint before counts, and every segment above it stands.",
)
CHECKPOINT_AFTER: Final = _point(
    "checkpoint.after",
    "Old and new checkpoint stand, and both ways of restoring give the same.",
)
HISTORY_BEFORE: Final = _point(
    "history.before",
    "It is decided what of history goes, and all of it stands; history.json says so.",
)
HISTORY_AFTER: Final = _point(
    "history.after",
    "history.json says from where on every point is kept; what is before it stands still, and is "
    "no longer shown.",
)
SNAP_EXPIRED: Final = _point(
    "snap.expired",
    "Automatic snapshots that are too old or too large are gone; what only they needed stands.",
)
GARBAGE_BATCH: Final = _point(
    "garbage.batch",
    "Some garbage is gone; whatever the newest state, a kept point or a snapshot needs stands.",
)
GARBAGE_AFTER: Final = _point(
    "garbage.after",
    "All garbage is gone; whatever the newest state, a kept point or a snapshot needs stands.",
)

# --- snapshots (transfer/snaps.py) -----------------------------------------------------------

SNAP_BEFORE: Final = _point(
    "snap.before",
    "Everything up to the point is sealed; there is no snapshot of it.",
)
SNAP_AFTER: Final = _point(
    "snap.after",
    "The snapshot stands, and whoever asked for it was not told.",
)
SNAP_DROPPED: Final = _point(
    "snap.dropped",
    "The snapshot is gone; what only it needed stands until garbage is collected.",
)

# --- the mirror (transfer/mirror.py, reconcile.py, replica/flusher.py) -----------------------

MIRROR_BEFORE: Final = _point(
    "mirror.before",
    "It is noted that the mirror's rows may lag: the next cycle begins with a listing.",
)
MIRROR_PUT_BEFORE: Final = _point(
    "mirror.put.before",
    "The object is as it was; its inode is on the to-do.",
)
MIRROR_PUT_AFTER: Final = _point(
    "mirror.put.after",
    "The object is new and no row knows: it is found with our mark, and is never taken for "
    "somebody else's.",
)
MIRROR_DELETE_BEFORE: Final = _point(
    "mirror.delete.before",
    "The objects to delete stand, with their rows.",
)
MIRROR_DELETE_AFTER: Final = _point(
    "mirror.delete.after",
    "The objects are gone, their rows are left: the next listing takes these away.",
)
MIRROR_NOTED: Final = _point(
    "mirror.noted",
    "Some of the pass is noted; what is not, is found by the listing or done again.",
)
MIRROR_AFTER: Final = _point(
    "mirror.after",
    "The mirror stands and its rows are noted; the generation mirrored is not.",
)
MIRROR_HINT: Final = _point(
    "mirror.hint",
    "The mirror stands; mirrored.json is that of an earlier generation, or missing.",
)
OUTSIDE_PLACED: Final = _point(
    "outside.placed",
    "What somebody else put is in the workspace, once, with the row that lets ours be put over it "
    "after the next seal; the object is as it was.",
)
RECONCILE_AFTER: Final = _point(
    "reconcile.after",
    "The mirror was listed and its rows are noted; the next cycle may list it again.",
)

# --- restore and hydration (transfer/restoring.py, replica/restore.py, hydrate.py) -----------

IMPORT_FILE: Final = _point(
    "import.file",
    "Some of what was put by hand is in the cache; the cache is not whole, nothing was pushed, the "
    "import starts anew.",
)
IMPORT_AFTER: Final = _point(
    "import.after",
    "All of what was put by hand is in the cache; the cache is not whole, nothing was pushed, the "
    "import starts anew.",
)
WORKSPACE_MADE: Final = _point(
    "workspace.made",
    "workspace.json stands, the cache does not know: the next mount takes over what it says.",
)
RESTORE_CLEARED: Final = _point(
    "restore.cleared",
    "The cache is empty and not whole: nothing can be flushed, the restore starts anew.",
)
RESTORE_FETCHED: Final = _point(
    "restore.fetched",
    "The records are in the spool; the cache is not whole, nothing can be flushed.",
)
RESTORE_BATCH: Final = _point(
    "restore.batch",
    "Some records are loaded; the cache is not whole, nothing can be flushed, the restore starts "
    "anew.",
)
RESTORE_LOADED: Final = _point(
    "restore.loaded",
    "All records are loaded; the cache is not whole, nothing can be flushed, the restore starts "
    "anew.",
)
RESTORE_AFTER: Final = _point(
    "restore.after",
    "The cache is whole and power-loss safe; all data is cold.",
)
HYDRATE_FETCHED: Final = _point(
    "hydrate.fetched",
    "The bytes came and are not stored: these extents are cold.",
)
HYDRATE_STORED: Final = _point(
    "hydrate.stored",
    "These extents are warm, the others cold; nothing is dirty by it.",
)
HYDRATE_AFTER: Final = _point(
    "hydrate.after",
    "Nothing is cold; that this is so is not noted, and is found out again.",
)

# --- backups (snapshot/tree.py, backup.py, service.py, transfer/requests/keeping.py) ---------

SPOOL_BEFORE: Final = _point(
    "spool.before",
    "Nothing of this backup exists, here or in the bucket.",
)
SPOOL_AFTER: Final = _point(
    "spool.after",
    "The workspace's bytes are in a file without a name, whose room the kernel takes back; the "
    "cache is as it was, nothing of this backup is in the bucket.",
)
ARCHIVE_WRITTEN: Final = _point(
    "archive.written",
    "Archive and index are files of the cache's directory that the next start removes, or keeps to "
    "upload them when they are an emergency's; nothing of this backup is in the bucket.",
)
KEEP_PUT_BEFORE: Final = _point(
    "keep.put.before",
    "The object is not there. What stands of this backup is at most an archive without an index, "
    "which is no backup.",
)
KEEP_PUT_AFTER: Final = _point(
    "keep.put.after",
    "The object is there as a whole. With an index it is a good backup, though nobody was told.",
)
BACKUP_NOTED: Final = _point(
    "backup.noted",
    "The backup is good and noted; older ones that are kept no more stand still.",
)
KEEP_DROP_BEFORE: Final = _point(
    "keep.drop.before",
    "Some of what goes is gone, an index always before its archive; the newest good backup stands.",
)
KEEP_DROP_AFTER: Final = _point(
    "keep.drop.after",
    "All of what goes is gone; the newest good backup stands.",
)

# --- going back to an earlier state (fs/rewinding.py, replica/rewind.py) ------------------------

REWIND_SNAPPED: Final = _point(
    "rewind.snapped",
    "The state before is a snapshot; the tree is as it was.",
)
REWIND_BEFORE: Final = _point(
    "rewind.before",
    "The state before is a snapshot; the tree is as it was.",
)
REWIND_AFTER: Final = _point(
    "rewind.after",
    "The tree is wholly as it was then, all of it dirty; the snapshot brings back what was before.",
)

# --- bundles of git repositories (snapshot/git) ----------------------------------------------

BUNDLE_MADE: Final = _point(
    "bundle.made",
    "A bundle stands in the working directory and nobody knows of it; the one in the bucket is as "
    "it was, and the next look makes it again.",
)
BUNDLE_NOTED: Final = _point(
    "bundle.noted",
    "The bundle stands in the bucket, whole, and the next look knows of it.",
)

# --- the end of a mount (daemon/daemon.py) ---------------------------------------------------

FINAL_BEFORE: Final = _point(
    "final.before",
    "The mount is gone, all that was acknowledged is in the cache; the next mount saves it.",
)
FINAL_AFTER: Final = _point(
    "final.after",
    "Everything is sealed and mirrored; the cache is not closed, and nobody was told yet.",
)

# --- a fork (transfer/forking.py) ------------------------------------------------------------

FORK_BEGUN: Final = _point(
    "fork.begun",
    "The lease of the new conversation is held, and fork.json says that it is no workspace yet; "
    "the source is as it was, and a second try makes it whole.",
)
FORK_COPIED: Final = _point(
    "fork.copied",
    "Some objects are copied; no workspace stands there, none can be mounted, the source is as it "
    "was, and a second try makes it whole.",
)
FORK_SEALED: Final = _point(
    "fork.sealed",
    "All objects and segment 1 stand, workspace.json does not: no workspace stands there, none can "
    "be mounted, and a second try makes it whole.",
)
FORK_MADE: Final = _point(
    "fork.made",
    "The new workspace is whole; fork.json is left, and means nothing any more.",
)

# --- a deletion (transfer/deleting.py) -------------------------------------------------------

DELETE_MARKED: Final = _point(
    "delete.marked",
    "The lease is held and deleted.json stands; the workspace is whole, and can be mounted, or "
    "deleted by a second try.",
)
DELETE_BEGUN: Final = _point(
    "delete.begun",
    "workspace.json is gone: no workspace stands there, none can be mounted, and a second try "
    "deletes the rest.",
)
DELETE_BATCH: Final = _point(
    "delete.batch",
    "Some objects are gone; no workspace stands there, none can be mounted, and a second try "
    "deletes the rest.",
)
DELETE_EMPTIED: Final = _point(
    "delete.emptied",
    "Nothing is left but deleted.json and the lease; a second try removes them.",
)
DELETE_LEASE: Final = _point(
    "delete.lease",
    "Nothing is left but the lease: a new workspace can be made when it has lapsed.",
)

"""Each metric there is: its name, its type, what it means, and where a status document has it.

Invariants
1. Whatever is exposed is declared here: docs/metrics.md, the alert rules and the dashboard in
   packaging/ are held against FAMILIES.
2. Labels hold ids, mount points and short names of ours. No file's name, no text of an error,
   nothing that grows with what is in a workspace.

Called by cli.metrics.exposition.
"""

from __future__ import annotations

from s3ws_fs.cli.metrics.kinds import (
    COUNTER,
    FAMILIES,
    GAUGE,
    HISTOGRAM,
    INFO,
    READERS,
    SUMMARY,
    Document,
    Family,
    Samples,
    add,
    ago,
    at,
    buckets,
    each,
    flag,
    items,
    length,
    number,
    value,
)
from s3ws_fs.core import backups
from s3ws_fs.core.errors import FormatError

__all__ = ["DAMAGED_ENTRIES", "FAMILIES", "MOUNTS", "READERS"]

# --- the host, and the mount ---------------------------------------------------------------------

MOUNTS = Family("mounts", GAUGE, "Mounts in this user's registry, living or dead", is_of_host=True)
DAMAGED_ENTRIES = Family(
    "damaged_entries", GAUGE, "Entries of the registry that can't be read", is_of_host=True
)
for _family in (MOUNTS, DAMAGED_ENTRIES):
    FAMILIES[_family.name] = _family


def _is_up(document: Document) -> bool:
    return isinstance(document.get("generation"), dict)


def _up(document: Document, _: float) -> Samples:
    yield (), float(_is_up(document))


def _info(document: Document, _: float) -> Samples:
    is_read_only = document.get("read_only") is True
    said = [document.get("version"), document.get("state"), at(document, "store.type")]
    yield (*(str(text or "") for text in said), "true" if is_read_only else "false"), None


def _given_up(document: Document, _: float) -> Samples:
    yield (), float(document.get("state") == "dead")


add("up", GAUGE, "1 when the daemon of the mount answers, 0 when it is dead or silent", _up)
_OF_INFO = ("version", "state", "store", "read_only")
add("mount", INFO, "Always 1; what the mount is and does, in labels", _info, _OF_INFO)
add(
    "mount_given_up",
    GAUGE,
    "1 when neither daemon nor holder of a registered mount live: it was given up, or killed; its "
    "cache keeps what is not saved",
    _given_up,
)
value("start_time_seconds", "started_at_s", "When this daemon began, in Unix time")
value("daemon_restarts", "holder.restarts", "Daemons before this one, under one mount", COUNTER)
value("faults", "faults", "Requests answered with EIO by a fault of s3ws itself", COUNTER)


def _of_processes(name: str, kind: str, member: str, text: str) -> None:
    each(name, "processes", text, "process", of=member, kind=kind)


_of_processes(
    "process_resident_memory_bytes",
    GAUGE,
    "resident_bytes",
    "Resident memory of holder, daemon, and worker while there is one",
)
_of_processes(
    "process_cpu_seconds",
    COUNTER,
    "cpu_s",
    "Processor time of the same; a worker's begins anew with each one",
)

# --- what is not saved yet -----------------------------------------------------------------------

_FLOOR = "a floor beyond 20,000 changed records"


def _dirty(name: str, text: str) -> None:
    def read(document: Document, _: float) -> Samples:
        where = "dirty" if _is_up(document) else "unsaved"
        found = number(at(document, f"{where}.{name}"))
        if found is not None:
            yield (), found

    add(f"dirty_{name}", GAUGE, text, read)


def _oldest(document: Document, now_s: float) -> Samples:
    if _is_up(document):
        age_s = number(at(document, "dirty.oldest_age_s"))
        if age_s is not None or at(document, "dirty.records") == 0:
            yield (), age_s or 0.0
    elif isinstance(document.get("unsaved"), dict):
        oldest_ns = number(at(document, "unsaved.oldest_ns"))
        yield (), 0.0 if oldest_ns is None else max(0.0, round(now_s - oldest_ns / 1e9, 3))


_dirty("records", "Changed records that are not sealed")
_dirty("files", f"Files with changes that are not sealed ({_FLOOR})")
_dirty("bytes", f"Bytes of file contents that are not sealed ({_FLOOR})")
add(
    "oldest_dirty_age_seconds",
    GAUGE,
    "Age of the oldest change that is not sealed: what a lost host would cost; 0 when all is",
    _oldest,
)
value("head_generation", "generation.head", "Newest committed change")
value("sealed_generation", "generation.sealed", "Newest change that is proven in the bucket")
value("mirrored_generation", "generation.mirrored", "Newest change whose files stand in files/")
value("mirror_pending_files", "mirror.pending_files", "Files that the mirror has still to take")
length("mirror_conflicts", "mirror.conflicts", "Mirror paths where somebody else's object stands")
length("unmirrored_files", "mirror.unmirrored", "Files that are in the journal alone")
value("outside_changes", "outside.count", "Changes that others made to the mirror", COUNTER)

# --- the bucket ----------------------------------------------------------------------------------


def _is_health(name: str, text: str) -> None:
    def read(document: Document, _: float) -> Samples:
        if isinstance(document.get("health"), dict):
            yield (), float(at(document, "health.state") == name)

    add(name, GAUGE, text, read)


def _degraded_s(document: Document, _: float) -> Samples:
    if isinstance(document.get("health"), dict):
        yield (), number(at(document, "health.since_s")) or 0.0


def _lease_held(document: Document, _: float) -> Samples:
    if isinstance(document.get("lease"), dict):
        yield (), float(at(document, "lease.state") == "held")


def _last_seal(document: Document, now_s: float) -> Samples:
    yield from ago(document, "flush.last_sealed_age_s", now_s)


def _seals(document: Document, _: float) -> Samples:
    count, sum_s = (number(at(document, f"counts.seals.{name}")) for name in ("count", "sum_s"))
    if count is not None and sum_s is not None:
        yield (), (count, sum_s)


def _requests(document: Document, _: float) -> Samples:
    for name, said in items(document, "counts.store.requests"):
        op, _space, code = name.partition(" ")
        found = number(said)
        if found is not None:
            yield (op, code), found


_is_health("degraded", "1 while saving to the bucket, or reading from it, fails")
_is_health("fenced", "1 when another writer took the workspace: this mount saves nothing any more")
add("degraded_seconds", GAUGE, "For how long it is degraded or fenced; 0 when well", _degraded_s)
add("lease_held", GAUGE, "1 while the workspace's lease is proven to be ours", _lease_held)
value("lease_remaining_seconds", "lease.left_s", "How long it still lasts unless it is renewed")
add("last_seal_timestamp_seconds", GAUGE, "When this daemon last sealed, in Unix time", _last_seal)
each("flushes", "counts.flushes", "Flushes by how they ended: ok, failed", "result")
add("seal_duration_seconds", SUMMARY, "Time of sealed flushes from freeze to seal", _seals)
add(
    "s3_requests",
    COUNTER,
    "Requests of the transfer worker to the store, repeated ones too, by operation and outcome "
    "(HTTP status or the error's name)",
    _requests,
    ("op", "code"),
)
value("s3_sent_bytes", "counts.store.sent_bytes", "Bytes of objects the store took", COUNTER)
value("s3_received_bytes", "counts.store.received_bytes", "Bytes of objects it gave", COUNTER)
each("workers", "counts.workers", "Transfer workers: started, and stuck (so ended)", "event")
value(
    "follow_age_seconds",
    "follow.looked_age_s",
    "Of a read-only mount: how long ago there was nothing newer than what it shows",
)

# --- room ----------------------------------------------------------------------------------------

value("used_bytes", "quota.used_bytes", "Bytes that the workspace uses")
value("quota_bytes", "quota.max_bytes", "Bytes that it may use (WORKSPACE_MAX_SIZE_MB)")
value("used_files", "quota.used_inodes", "Files and directories in the workspace")
value("quota_files", "quota.max_inodes", "How many it may have (WORKSPACE_MAX_FILES)")
flag("quota_warning", "quota.warning", "1 from 80 % of the quota until it is below 75 % again")
value("cache_file_bytes", "cache.file_bytes", "Size of the cache's file")
value("cache_evicted_bytes", "cache.room.evicted_bytes", "Given up for want of room", COUNTER)
flag("cache_short_of_room", "cache.room.reason", "1 while the disk below the cache is short")
flag("cache_sync_failing", "cache.sync_point_error", "1 while the cache can't be made durable")
length("cache_quarantines", "cache.quarantines", "Caches kept in quarantine")
value("cold_bytes", "hydration.cold_bytes", "Bytes that are only in the bucket")
value("cold_files", "hydration.cold_files", "Files with bytes that are only in the bucket")
length("damaged_files", "hydration.damaged", "Files found damaged in the bucket")

# --- backups -------------------------------------------------------------------------------------


def _last_backup(document: Document, _: float) -> Samples:
    name = at(document, "backup.last.name")
    if isinstance(name, str):
        try:
            yield (), float(backups.time_of(name))
        except (FormatError, ValueError):
            return


add("last_backup_timestamp_seconds", GAUGE, "When it was made, in Unix time", _last_backup)
value("last_backup_size_bytes", "backup.last.bytes", "Size of its archive")
value("backup_interval_seconds", "backup.interval_s", "WORKSPACE_BACKUP_INTERVAL; 0 for none")
flag("backup_failing", "backup.error", "1 from a backup that failed until one is made")
flag("backup_kept_here", "backup.emergency", "1 while one waits here for the store to be back")
each("backups", "counts.backup", "Backups by what came of them: made, failed", "result")
value("last_git_bundle_timestamp_seconds", "git.last.time", "When git state was last looked at")
flag("git_failing", "git.error", "1 from bundles that failed until they are made")

# --- the filesystem ------------------------------------------------------------------------------


def _durations(document: Document, _: float) -> Samples:
    for op, said in items(document, "counts.fuse.ops"):
        sum_ns, bits = number(at(said, "sum_ns")), at(said, "bits")
        if sum_ns is not None and isinstance(bits, dict) and bits:
            yield (op,), (buckets(bits), sum_ns / 1e9)


each("fuse_ops", "counts.fuse.ops", "Requests of the kernel, by operation", "op", of="count")
add(
    "fuse_op_duration_seconds",
    HISTOGRAM,
    "Time the daemon took for a request, waits for the bucket included: of one in 17 of an "
    "operation; of all fsync, and of all waits for bytes that are only in the bucket (fetch)",
    _durations,
    ("op",),
)
each("fuse_errors", "counts.fuse.errors", "Requests answered with an error, by errno", "errno")
value("fuse_read_bytes", "counts.fuse.read_bytes", "Bytes that the kernel read", COUNTER)
value("fuse_written_bytes", "counts.fuse.written_bytes", "Bytes that the kernel wrote", COUNTER)
each("log_messages", "counts.log", "Events of the log, with those that it left out", "level")

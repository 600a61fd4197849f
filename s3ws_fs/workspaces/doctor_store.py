"""What the bucket has to do: answer, let us in, keep conditions, and have about our clock.

Invariants
1. Scratch objects below journal/probe/ of one workspace prefix are all that is written, and they
   are removed at once. With `write` off nothing is written.
2. No secret is shown: of credentials only where they come from.
3. A server that does not answer is given up after two attempts.

Called by the command.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import ExitCode, PermanentError, StoreError
from s3ws_fs.store.base import Conditional, Keeps
from s3ws_fs.store.factory import credentials_source, open_store
from s3ws_fs.store.scoped import PROBE_PREFIX, ScopedStore
from s3ws_fs.workspaces.diagnosis import Check, failed, ok, skipped, warning

SKEW_WARN_S: Final = 30.0
SKEW_MAX_S: Final = 600.0
"""S3 refuses requests that are dated 15 minutes off."""
UPLOAD_AGE_S: Final = 10 * 365 * 86400.0
"""No upload is so old: they are listed, and none is touched."""

_REMEDY: Final = "Check endpoint, credentials and bucket: AWS_ENDPOINT_URL_S3, WORKSPACE_BUCKET."
_NAMES: Final = ("bucket", "rights", "conditional writes", "clock", "uploads", "versioning")


def store_checks(config: MountConfig, *, write: bool) -> Iterator[Check]:
    """All of them, in an order in which one that failed has the rest skipped."""
    is_s3 = config.store.type == "s3"
    if is_s3:
        found = credentials(config)
        yield found
        if found.exit_code:
            yield from (skipped(name, "without credentials") for name in _NAMES)
            return
    elif config.store.path is None or not Path(config.store.path).is_dir():
        yield warning(
            "bucket",
            f"{config.store.location} does not exist",
            "`s3ws mount` makes the default one; a directory that WORKSPACE_STORAGE_PATH names "
            "must exist, or its parent.",
        )
        return
    store = open_store(config.store, config.workspace.prefix, read_only=not write, hasty=True)
    with contextlib.closing(store):
        reached = bucket(config, store, write=write)
        yield reached
        if reached.exit_code:
            yield from (skipped(name, "the bucket can't be used") for name in _NAMES[1:])
            return
        if write:
            yield from writing(config, store)
        else:
            yield from (skipped(name, "--no-write") for name in _NAMES[1:4])
        if is_s3:
            yield uploads(store)
        yield versioning(store)


def credentials(config: MountConfig) -> Check:
    """Where they come from."""
    try:
        source = credentials_source(config.store)
    except StoreError as exc:
        return failed(
            "credentials", exc.detail, "Correct AWS_PROFILE or its files.", ExitCode.STORE
        )
    if source is None:
        return failed(
            "credentials",
            "none found",
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the instance a "
            "role.",
            ExitCode.STORE,
        )
    return ok("credentials", f"from {source}")


def bucket(config: MountConfig, store: ScopedStore, *, write: bool) -> Check:
    """Does it answer, and may we list the prefix?"""
    try:
        if write or config.store.type == "s3":
            store.check()
        else:
            next(iter(store.list()), None)
    except StoreError as exc:
        return failed("bucket", f"{config.store.location}: {exc.detail}", _REMEDY, ExitCode.STORE)
    return ok("bucket", f"{config.store.location}, {config.workspace.prefix}")


def writing(config: MountConfig, store: ScopedStore) -> Iterator[Check]:
    """May we write, read and delete; are conditions kept; what time is it there?"""
    try:
        found = store.probe_conditional()
        skew_s = clock_skew_s(store)
    except StoreError as exc:
        yield failed(
            "rights",
            str(exc),
            "The policy needs s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket on "
            "conversations/*/*/workspace/* (docs/operations.md).",
            ExitCode.STORE,
        )
        yield skipped("conditional writes", "scratch objects can't be written")
        yield skipped("clock", "scratch objects can't be written")
        return
    yield ok("rights", "scratch objects were written, read and deleted")
    yield conditions(config, found)
    yield clock(skew_s)


def conditions(config: MountConfig, found: Conditional) -> Check:
    """What keeps two writers apart."""
    name = "conditional writes"
    if found == Conditional():
        return ok(name, "all are kept")
    if found.safe:
        return ok(name, "those of PUT are kept; others are emulated, at a request more each")
    text = "the store ignores them: two writers could overwrite each other"
    if config.store.allow_unconditional:
        return warning(
            name, text, "WORKSPACE_ALLOW_UNCONDITIONAL is set: see to it that there is one writer."
        )
    return failed(
        name,
        text,
        "Use a store that keeps If-None-Match and If-Match on PUT (AWS S3, MinIO, SeaweedFS).",
        ExitCode.STORE,
    )


def clock_skew_s(store: ScopedStore) -> float:
    """By how much this host's clock is ahead of the store's. Raises StoreError.

    Stores date objects in whole seconds, and a request takes its time: within that it is 0.
    """
    key = f"{PROBE_PREFIX}{secrets.randbits(64):016x}"
    before_s = time.time()
    store.put(key, b"what time is it?", if_none_match=True)
    after_s = time.time()
    try:
        there_s = store.head(key).modified_ns / 1e9
    finally:
        store.delete(key)
    if there_s > after_s:
        return after_s - there_s
    # Up to a second of it was cut off.
    return max(0.0, before_s - there_s - 1.0)


def clock(skew_s: float) -> Check:
    """Is it about ours? Leases go by the store's clock alone; signatures go by both."""
    way = "ahead of" if skew_s > 0 else "behind"
    text = f"this host is {abs(skew_s):.0f} s {way} the store"
    remedy = "Set the clock by NTP (chrony, systemd-timesyncd)."
    if abs(skew_s) > SKEW_MAX_S:
        return failed("clock", f"{text}: S3 refuses at 900 s", remedy, ExitCode.STORE)
    if abs(skew_s) > SKEW_WARN_S:
        return warning("clock", f"{text}: times in history and backups are off", remedy)
    return ok("clock", "this host and the store agree")


def uploads(store: ScopedStore) -> Check:
    """May we list what cut-off uploads left?"""
    try:
        store.abort_uploads(UPLOAD_AGE_S)
    except PermanentError:
        return warning(
            "uploads",
            "multipart uploads can't be listed: what a kill cuts off stays, and costs",
            "Allow s3:ListBucketMultipartUploads, or give the bucket a rule that aborts them.",
        )
    except StoreError as exc:
        return warning("uploads", exc.detail, "Try again.")
    return ok("uploads", "multipart uploads that a kill cuts off can be listed")


def versioning(store: ScopedStore) -> Check:
    """What is kept of what we delete and replace."""
    try:
        keeps = store.keeps()
    except StoreError as exc:
        return warning("versioning", exc.detail, "Try again.")
    if keeps == Keeps():
        return ok("versioning", "off: nothing is kept of what is deleted")
    if keeps.versions == "unknown":
        return ok("versioning", "not known (s3:GetBucketVersioning is not allowed)")
    lock = ", with object lock" if keeps.lock == "enabled" else ""
    return warning(
        "versioning",
        f"{keeps.versions}{lock}: replaced and deleted objects stay, and cost",
        "Give the bucket a lifecycle rule with NoncurrentVersionExpiration.",
    )

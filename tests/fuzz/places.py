"""Targets with files below them: a cache's notes, records and database, and a bucket's journal.

Each case works on a copy of a small workspace in a temporary directory of this process.

Called by tests.fuzz.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import lmdb
import trio
import xxhash

from s3ws_fs.cache import recovery
from s3ws_fs.cache.cache import Cache, Identity, open_cache
from s3ws_fs.cache.checking import Checked, check_cache, check_records
from s3ws_fs.cache.inspect import open_readonly
from s3ws_fs.cache.ownership import IDENTITY_FILE, LOCK_FILE
from s3ws_fs.cache.repair import repair_cache
from s3ws_fs.cache.syncpoint import BOOT_FILE, SIDE_FILE, SLOT_BYTES
from s3ws_fs.cache.tables import DATA_DIR, DATA_FILE, TABLES
from s3ws_fs.core import journal, layout
from s3ws_fs.core.errors import S3wsError
from s3ws_fs.core.findings import Report
from s3ws_fs.core.records import Head
from s3ws_fs.core.types import ROOT_INO
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.replica import position, restore
from s3ws_fs.store.local import LocalStore
from s3ws_fs.store.memory import MemoryStore
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import journaling, restoring
from tests.core.test_journal import make_header
from tests.fuzz.codecs import ROWS, make_frames
from tests.fuzz.mutate import any_value, json_bytes, mutated
from tests.fuzz.notes import NOTE, signed
from tests.fuzz.target import Target
from tests.support import caches
from tests.support.caches import CRED

IDENTITY: Final = Identity(prefix=caches.PREFIX, store="local:/somewhere")
QUOTA_BYTES: Final = 16 << 20
WALKED_MAX: Final = 200
"""Names that are looked at in a damaged tree: it may be endless."""


@functools.cache
def _base() -> Path:
    base = tempfile.mkdtemp(prefix="s3ws-fuzz-")
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    return Path(base)


def _open(directory: Path, boot: str = "boot-1") -> Cache:
    return open_cache(
        directory, IDENTITY, quota_bytes=QUOTA_BYTES, now_ns=lambda: 10**18, boot_id=boot
    )


@functools.cache
def template() -> Path:
    """A cache with something of everything, as a killed daemon leaves it."""
    place = _base() / "living"
    cache = _open(place)
    cache.set_restore_complete()
    caches.populate(cache)
    position.writer_id(cache, lambda bits: 5)
    cache.sync_point()
    target = _base() / "template"
    target.mkdir()
    for name in (BOOT_FILE, SIDE_FILE, IDENTITY_FILE, LOCK_FILE):
        shutil.copyfile(place / name, target / name)
    (target / DATA_DIR).mkdir()
    shutil.copyfile(place / DATA_DIR / DATA_FILE, target / DATA_DIR / DATA_FILE)
    cache.close()
    return target


@contextlib.contextmanager
def a_copy() -> Iterator[Path]:
    """A copy of the template, removed at the end."""
    with tempfile.TemporaryDirectory(dir=_base()) as base:
        yield Path(shutil.copytree(template(), Path(base) / "ws"))


def use(cache: Cache) -> None:
    """Everything a kernel might ask, over the whole tree; each may be refused."""
    fs = FileSystem(cache, quota_bytes=QUOTA_BYTES, quota_inodes=1000)
    pending, seen = [ROOT_INO], 0
    while pending and seen < WALKED_MAX:
        ino = pending.pop()
        names: list[bytes] = []
        with contextlib.suppress(S3wsError), cache.read() as view:
            for _, name, child in view.entries(ino):
                names.append(name)
                if len(pending) < WALKED_MAX:
                    pending.append(child)
        for name in [*names, b"new"]:
            seen += 1
            _try(fs.lookup, ino, name)
        _try(fs.getattr, ino)
        _try(fs.read, ino, 0, 70_000)
        _try(fs.readlink, ino)
        _try(fs.listxattr, ino)
        _try(fs.getxattr, ino, b"user.note")
        _try(fs.write, ino, 30_000, b"x" * 5000)
        _try(lambda ino=ino: fs.setattr(ino, size=10, mode=0o600))
        _try(fs.setxattr, ino, b"user.new", b"v")
        _try(fs.create, ino, b"made", 0o644, CRED)
        for name in names[:3]:
            _try(fs.rename, ino, name, ROOT_INO, b"moved", 0)
            _try(fs.unlink, ino, name)
            _try(fs.rmdir, ino, name)
    _try(fs.statfs)
    _try(fs.drop_orphans_unmounted)
    _try(lambda: cache.forget(cache.generation, 0))
    _try(cache.evict)
    for note in ("sealed", "mirrored", "hydrated", "workspace"):
        _try(cache.get_json, note)
    _try(lambda: position.Sealed.from_json(cache.get_json("sealed")))
    _try(position.writer_id, cache, lambda bits: 5)
    with contextlib.suppress(S3wsError), cache.read() as view:
        list(view.dirty())
    with contextlib.suppress(S3wsError), cache.read() as view:
        list(view.mtodo())


def _try(call: Any, *args: Any) -> None:
    with contextlib.suppress(S3wsError):
        call(*args)


# --- notes beside the database


def make_note(rng: random.Random) -> tuple[str, str, bytes]:
    """(file, boot id, what stands in it)."""
    name = rng.choice((BOOT_FILE, SIDE_FILE, SIDE_FILE, IDENTITY_FILE, LOCK_FILE))
    raw = (template() / name).read_bytes()
    if name in (BOOT_FILE, IDENTITY_FILE) and rng.random() < 0.6:
        boot = {"boot_id": "boot-1", "spoilt": rng.random() < 0.5}
        value = dataclasses.asdict(IDENTITY) if name == IDENTITY_FILE else boot
        return name, rng.choice(("boot-1", "boot-2")), json_bytes(rng, {**value, "clean": False})
    if name == SIDE_FILE and rng.random() < 0.5:
        # Within a slot, where something is.
        at = rng.choice((0, SLOT_BYTES))
        return name, "boot-2", raw[:at] + mutated(rng, raw[at : at + 9000]) + raw[at + 9000 :]
    return name, rng.choice(("boot-1", "boot-2")), mutated(rng, raw)


def run_note(case: tuple[str, str, bytes]) -> None:
    """Opened whole, or put aside, or refused."""
    name, boot, raw = case
    with a_copy() as directory:
        (directory / name).write_bytes(raw)
        check_cache(directory, lambda _: None, boot_id=boot)
        with _open(directory, boot) as cache:
            if cache.recovery in (recovery.QUARANTINED, recovery.RENEWED):
                assert len(cache.quarantines()) == 1
                return
            done = Checked(Report(), prefix=caches.PREFIX)
            check_records(cache, done, lambda _: None)
            assert done.report.ok, done.report.findings


# --- records, and the bytes of the database


def make_change(rng: random.Random) -> list[tuple[str, bytes, bytes | None]]:
    """Records to put (None: to take away), by table."""
    with lmdb.Environment(
        str(template() / DATA_DIR), readonly=True, lock=False, max_dbs=16, lib_version=0
    ) as env:
        found = []
        for name in TABLES:
            db = env.open_db(name.encode(), create=False)
            with env.begin(db=db) as txn:
                found += [(name, bytes(key), bytes(value)) for key, value in txn.cursor()]
    changes: list[tuple[str, bytes, bytes | None]] = []
    for _ in range(rng.choice((1, 1, 2, 5))):
        name, key, value = rng.choice(found)
        how = rng.randrange(5)
        if how == 0:
            changes.append((name, key, None))
        elif how == 1:
            other = rng.choice(found)
            changes.append((name, other[1], other[2]))
        elif how == 2:
            changes.append((name, mutated(rng, key)[:511] or b"x", value))
        elif name == "meta" and how == 3:
            changes.append((name, key, json_bytes(rng, any_value(rng))[:10_000]))
        else:
            changes.append((name, key, mutated(rng, value, rng.choice(found)[2])))
    return changes


def run_change(changes: list[tuple[str, bytes, bytes | None]]) -> None:
    """The checker judges it, `ls` shows it, the filesystem works on it, or says why not."""
    with a_copy() as directory:
        with lmdb.Environment(
            str(directory / DATA_DIR), map_size=1 << 30, max_dbs=16, lib_version=0, sync=False
        ) as env:
            for name, key, value in changes:
                db = env.open_db(name.encode(), create=False)
                with env.begin(write=True, db=db) as txn:
                    if value is None:
                        txn.delete(key)
                    else:
                        txn.put(key, value)
        checked = check_cache(directory, lambda _: None, boot_id="boot-1")
        with contextlib.suppress(S3wsError), open_readonly(directory, "boot-1") as look:
            for path in (b"", b"dir", b"dir/sub"):
                with contextlib.suppress(S3wsError, FileNotFoundError):
                    look.listdir(path)
            _try(look.dirty_summary)
        with contextlib.suppress(S3wsError):
            repair_cache(directory, checked, lambda _: None, now_ns=lambda: 1, boot_id="boot-1")
        with _open(directory) as cache:
            use(cache)


def make_database(rng: random.Random) -> bytes:
    """The database file, with other bytes here and there."""
    raw = (template() / DATA_DIR / DATA_FILE).read_bytes()
    for _ in range(rng.choice((1, 1, 3))):
        at = rng.randrange(0, len(raw), 4096)
        page = mutated(rng, raw[at : at + rng.choice((64, 4096))], raw[:8192])
        raw = raw[:at] + page + raw[at + len(page) :]
    return raw


def run_database(raw: bytes) -> None:
    """After a reboot: walked, and then either put aside or good enough for the engine."""
    with a_copy() as directory:
        (directory / DATA_DIR / DATA_FILE).write_bytes(raw)
        check_cache(directory, lambda _: None, boot_id="boot-2")
        with _open(directory, "boot-2") as cache:
            use(cache)


# --- the bucket


class _Objects:
    """A journal of one checkpoint and two segments, one of them changed."""

    def __init__(self, rng: random.Random) -> None:
        changed = rng.randrange(4)
        frames = b"".join(
            frame
            for table, row in ROWS.items()
            if table != journal.T_MTODO
            for _, frame in journal.encode_puts(table, [row])
        )
        self.note = signed(rng, NOTE)
        self.has_note = changed == 3
        self.objects: dict[str, bytes] = {}
        before = "0" * 32
        for number, kind in ((1, journal.KIND_CHECKPOINT), (2, "segment"), (3, "segment")):
            body = frames
            if changed == number - 1:
                # Several of one table: a checkpoint's have to rise.
                body = make_frames(rng) + frames * rng.randrange(2)
            header = dataclasses.replace(
                make_header(b"", body),
                kind=kind,
                number=number,
                prev_number=number - (kind == "segment"),
                prev_hash=before,
            )
            head = journal.encode_header(header)
            raw = head + body
            key = layout.ckpt_key(number) if number == 1 else layout.seg_key(number)
            self.objects[key] = raw + xxhash.xxh3_128_digest(raw)
            before = before if number == 1 else journal.header_hash(head)


def run_bucket(objects: _Objects) -> None:
    """Restored into a fresh cache, or refused; what was restored can be used and judged."""
    inner = MemoryStore()
    store = ScopedStore(inner, caches.PREFIX)
    if objects.has_note:
        store.put(layout.WORKSPACE_KEY, objects.note)
        store.put(layout.MIRRORED_KEY, objects.note)
        assert journaling.read_mirrored(store, "w" * 32) >= 0
    else:
        journaling.make_workspace(store, "w" * 32, 1)
    for key, raw in objects.objects.items():
        store.put(key, raw)
    with tempfile.TemporaryDirectory(dir=_base()) as base, ThreadPoolExecutor(1) as pool:
        files = restoring.restore(store, Path(base), pool, lambda *_: None).files
        with _open(Path(base) / "ws") as cache:
            orphans: set[bytes] = set()
            for file in files:
                trio.run(restore._load_file, cache, file, orphans, 0)
            cache.set_head(Head(99, 12, 4096, 3))
            done = Checked(Report(), prefix=caches.PREFIX)
            check_records(cache, done, lambda _: None)
            use(cache)


def make_attribute(rng: random.Random) -> bytes:
    """The extended attribute of an object in a directory."""
    ours = {"content_type": "text/plain", "metadata": {"mode": "5"}, "of": [0, 0]}
    return json_bytes(rng, ours)[:3000]


def run_attribute(raw: bytes) -> None:
    """Somebody else's attribute never stands in the way of the bytes."""
    place = _base() / "store"
    place.mkdir(exist_ok=True)
    (place / "object").write_bytes(b"bytes")
    os.setxattr(place / "object", "user.s3ws", raw)
    store = LocalStore(str(place))
    try:
        assert store.get("object").data == b"bytes"
        info = store.head("object")
        assert isinstance(info.content_type, str)
        assert all(isinstance(item, str) for item in info.metadata.values())
    finally:
        store.close()


# --- names


def make_names(rng: random.Random) -> list[bytes]:
    """Names, and what is none."""
    special = (b"", b".", b"..", b"/", b"a/b", b"\0", b"a\0b", b"x" * 255, b"x" * 256, b"\xff\n")
    return [
        rng.choice(special) if rng.random() < 0.4 else rng.randbytes(rng.randrange(300))
        for _ in range(6)
    ]


def run_names(names: list[bytes]) -> None:
    """A name is refused, or found again as it is."""
    with a_copy() as directory, _open(directory) as cache:
        fs = FileSystem(cache, quota_bytes=QUOTA_BYTES, quota_inodes=1000)
        made = set()
        for name in names:
            try:
                fs.create(ROOT_INO, name, 0o644, CRED)
            except S3wsError:
                continue
            assert 0 < len(name) <= 255
            assert not {b"/", b"\0"} & {name[at : at + 1] for at in range(len(name))}
            made.add(name)
        with cache.read() as view:
            assert made <= {name for _, name, _ in view.entries(ROOT_INO)}
            assert all(view.resolve(name) is not None for name in made)


TARGETS: Final = (
    Target("cache notes", make_note, run_note),
    Target("cache records", make_change, run_change),
    Target("database bytes", make_database, run_database),
    Target("bucket journal", _Objects, run_bucket),
    Target("object attributes", make_attribute, run_attribute),
    Target("file names", make_names, run_names),
)

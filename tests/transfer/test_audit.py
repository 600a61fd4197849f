"""The audit: whole buckets are clean, and whatever happens to any object is found and named."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import xxhash

from s3ws_fs.cache.checking import Checked, check_records
from s3ws_fs.core import content, journal, layout
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import FsError, UserError
from s3ws_fs.core.findings import CODES, Finding, Report
from s3ws_fs.core.types import ROOT_INO
from s3ws_fs.replica import flusher
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer.audit import Audited, LocalSide, audit
from tests.replica.conftest import (
    CRED,
    Mount,
    Mounter,
    bucket,
    config,
    mounter,
    store_config,
)

__all__ = ["bucket", "config", "mounter", "store_config"]

BIG = 1_500_000
"""Enough for a blob."""


def quiet(_: object) -> None:
    """A progress sink."""


only_local = pytest.mark.parametrize("store_config", ["local"], indirect=True)


async def work(m: Mount) -> None:
    """A life of a few segments, a checkpoint between them, blobs, links, renames, removals."""
    m.write("small", b"small file")
    m.write("dir/sub/deep", b"deep" * 1000)
    m.write("big", os.urandom(BIG))
    m.fs.setxattr(m.ino("small"), b"user.note", b"kept")
    await m.sync()
    m.fs.symlink(ROOT_INO, b"link", b"dir/sub", CRED)
    m.fs.mknod(ROOT_INO, b"fifo", 0o010644, 0, CRED)
    m.fs.link(m.ino("small"), m.ino("dir"), b"again")
    m.write("sparse", b"end", 3 << 20)
    m.write("odd \\ \udcff", b"odd")
    m.write("gone", b"gone soon")
    await m.sync()
    m.unlink("gone")
    m.rename("dir/sub", "dir/renamed")
    m.write("small", b"SMALL")
    await m.sync()
    m.write("late", os.urandom(70_000))
    await m.sync()


@pytest.fixture
def checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint every third segment."""
    monkeypatch.setattr(flusher, "CHECKPOINT_EVERY_SEGMENTS", 3)


def witness(m: Mount) -> LocalSide:
    """The cache of a mount, as checked."""
    done = Checked(Report(), prefix=m.config.workspace.prefix)
    check_records(m.cache, done, quiet)
    assert done.report.ok, done.report.findings
    assert done.tables is not None and done.values is not None
    return LocalSide(m.cache, done.tables, done.values)


def run(bucket: ScopedStore, **options: Any) -> Audited:
    with ThreadPoolExecutor(4) as pool:
        return audit(bucket, pool, quiet, **options)


def wrong(report: Report) -> list[tuple[str, str]]:
    """(code, where) of everything that is not just a note."""
    return [(f.code, f.where) for f in report.findings if f.severity != "note"]


def by_code(done: Audited, code: str) -> list[Finding]:
    return [finding for finding in done.report.findings if finding.code == code]


async def test_a_whole_bucket_is_clean(
    checkpoints: None, mounter: Mounter, bucket: ScopedStore, config: MountConfig
) -> None:
    async with mounter() as m:
        assert run(bucket).report.ok
        await work(m)
        # Beside the mount, and with its cache.
        assert wrong(run(bucket).report) == []
        assert wrong(run(bucket, local=witness(m)).report) == []
    done = run(bucket)
    assert wrong(done.report) == []
    checked = done.report.checked
    assert checked["segments"] == 4
    assert checked["checkpoints"] == 1
    assert checked["mirrored"] == 9
    assert checked["bytes"] > BIG
    assert not done.needs
    assert wrong(run(bucket, quick=True).report) == []
    async with mounter("b") as m:
        # A cache made anew from the bucket agrees with it as well.
        await m.sync()
        assert wrong(run(bucket, local=witness(m)).report) == []


@only_local
async def test_a_mirror_behind_the_seal_is_pending(
    mounter: Mounter, bucket: ScopedStore, config: MountConfig
) -> None:
    async with mounter() as m:
        await work(m)
        m.write("late", b"sealed, not mirrored")
        m.write("new", b"sealed, not mirrored")
        m.rename("dir/renamed", "dir/elsewhere")
        m.unlink("fifo")
        await m.replica._flusher.flush()
        await m.replica._flusher.drop()
        for quick in (False, True):
            report = run(bucket, quick=quick).report
            assert report.ok, report.findings
            assert {f.severity for f in report.findings if f.severity != "note"} == {"pending"}
            assert {f.where for f in report.findings if f.code == "mirror-missing"} == {
                "files/new", "files/dir/elsewhere/deep",
            }  # fmt: skip
        assert run(bucket, local=witness(m)).report.ok
        await m.sync()
        assert wrong(run(bucket).report) == []


# --- rot


Rot = Callable[[str, int], None]


def rotten(config: MountConfig, bucket: ScopedStore) -> Rot:
    """`rot(key, at)` flips a bit of an object, as a disk does: nothing else of it changes.

    On a server it is put again with the same metadata (its ETag changes, as it must).
    """

    def on_disk(key: str, at: int) -> None:
        assert config.store.path is not None
        path = Path(config.store.path) / (config.workspace.prefix + key)
        info = path.stat()
        fd = os.open(path, os.O_RDWR)
        try:
            byte = os.pread(fd, 1, at)
            os.pwrite(fd, bytes((byte[0] ^ 0x10,)), at)
        finally:
            os.close(fd)
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))

    def on_server(key: str, at: int) -> None:
        info = bucket.head(key)
        body = bytearray(bucket.get(key).data)
        body[at] ^= 0x10
        bucket.put(key, bytes(body), content_type=info.content_type, metadata=info.metadata)

    return on_disk if config.store.type == "local" else on_server


def offsets(size: int, count: int) -> list[int]:
    """Places of an object: its ends, and `count` between."""
    return sorted({0, size - 1, *(size * n // (count + 1) for n in range(1, count + 1))})


async def test_a_flipped_bit_in_any_object_is_found(
    checkpoints: None, mounter: Mounter, bucket: ScopedStore, config: MountConfig
) -> None:
    async with mounter() as m:
        await work(m)
    rot = rotten(config, bucket)
    is_local = config.store.type == "local"
    entries = [entry for entry in bucket.list() if entry.size_bytes]
    assert len(entries) >= 14
    if not is_local:
        # One of each kind will do: a server is slower.
        kinds = {entry.key.rpartition("/")[0]: entry for entry in entries}
        entries = [*kinds.values(), *(e for e in entries if e.key.endswith(".json"))]
    for entry in entries:
        for at in offsets(entry.size_bytes, 6 if is_local else 0):
            rot(entry.key, at)
            found = run(bucket).report
            named = [f for f in found.findings if f.where == entry.key]
            assert named, (entry.key, at, found.findings)
            if "nothing needs it" not in named[0].message:
                assert found.has_damage
            rot(entry.key, at)
    assert wrong(run(bucket).report) == []


@only_local
async def test_damage_names_the_files(
    checkpoints: None, mounter: Mounter, bucket: ScopedStore, config: MountConfig
) -> None:
    async with mounter() as m:
        await work(m)
        big, deep = m.ino("big"), m.ino("dir/renamed/deep")
        with m.cache.read() as view:
            places = {ino: next(view.chunks(ino))[1] for ino in (big, deep)}
    rot = rotten(config, bucket)
    for ino, path in ((deep, b"dir/renamed/deep"), (big, b"big")):
        key, at = layout.object_key(places[ino].object_id), places[ino].offset
        rot(key, at)
        [finding] = by_code(run(bucket), "extent-damaged")
        assert (finding.where, finding.paths) == (key, (path,))
        assert by_code(run(bucket, quick=True), "extent-damaged") == []
        rot(key, at)
    bucket.delete(key)
    [finding] = by_code(run(bucket, quick=True), "object-missing")
    assert (finding.where, finding.paths) == (key, (b"big",))
    newest = layout.seg_key(4)
    rot(newest, bucket.head(newest).size_bytes - 5)
    assert [f.where for f in by_code(run(bucket), "object-damaged")] == [newest]
    rot("files/late", 10)
    [finding] = by_code(run(bucket), "mirror-damaged")
    assert (finding.where, finding.paths) == ("files/late", (b"late",))


@only_local
async def test_reads_of_rot_are_errors_never_other_bytes(
    checkpoints: None, mounter: Mounter, bucket: ScopedStore, config: MountConfig
) -> None:
    async with mounter() as m:
        await work(m)
        paths = ["small", "dir/renamed/deep", "big", "sparse", "late"]
        wanted = {path: await m.read(path) for path in paths}
    for entry in list(bucket.list(layout.FILES_PREFIX)):
        # No second copy.
        bucket.delete(entry.key)
    rot = rotten(config, bucket)
    refused = failed = 0
    # The newest of each kind.
    kinds = {e.key[:12]: e for e in bucket.list("journal/") if e.key != layout.MIRRORED_KEY}
    for number, entry in enumerate(kinds.values()):
        at = entry.size_bytes // 2
        rot(entry.key, at)
        try:
            async with mounter(f"r{number}") as m:
                for path in paths:
                    try:
                        assert await m.read(path) == wanted[path]
                    except FsError as exc:
                        assert path in str(exc)
                        failed += 1
        except UserError as exc:
            assert entry.key in str(exc)
            refused += 1
        rot(entry.key, at)
    assert refused and failed


# --- missing, unknown, foreign


@only_local
async def test_a_missing_object_is_found(
    checkpoints: None, mounter: Mounter, bucket: ScopedStore
) -> None:
    async with mounter() as m:
        await work(m)
        # All that is needed: above the checkpoint, and what it names.
        needed = {layout.seg_key(4)}
        with m.cache.read() as view:
            for path in ("small", "big", "dir/renamed/deep"):
                for _, loc in view.chunks(m.ino(path)):
                    needed.add(layout.object_key(loc.object_id))
        local = witness(m)
    for key in (*sorted(needed), layout.WORKSPACE_KEY, "files/small"):
        body, info = bucket.get(key).data, bucket.head(key)
        bucket.delete(key)
        # That the newest segment was ever there, only a cache can tell.
        done = run(bucket, local=local if key == layout.seg_key(4) else None)
        assert key in {f.where for f in done.report.findings if f.severity == "damage"}
        bucket.put(key, body, content_type=info.content_type, metadata=info.metadata)
    found = run(bucket).report
    assert [f.code for f in found.findings if f.severity == "damage"] == []


@only_local
async def test_what_is_not_ours_is_told(mounter: Mounter, bucket: ScopedStore) -> None:
    async with mounter() as m:
        await work(m)
    bucket.put("unknown/thing", b"x")
    bucket.put("journal/seg/not-a-number", b"x")
    bucket.put("compressed/backup-1.tar.gz", b"a backup")
    bucket.put("files/from outside", b"x")
    bucket.put("files/small", b"edited")
    report = run(bucket).report
    assert not report.has_damage
    assert set(wrong(report)) == {
        ("unknown-object", "unknown/thing"),
        ("unknown-object", "journal/seg/not-a-number"),
        ("mirror-foreign", "files/from outside"),
        ("mirror-foreign", "files/small"),
    }
    assert not report.ok


@only_local
async def test_objects_that_show_something_else(
    mounter: Mounter, bucket: ScopedStore, config: MountConfig
) -> None:
    async with mounter() as m:
        await work(m)
    info = bucket.head("files/late")
    said = dict(info.metadata)
    body = bucket.get("files/late").data
    # Of another file; with another mode; one too many; the size alone for `quick`.
    other = {**said, content.META_HASH: bucket.head("files/big").metadata[content.META_HASH]}
    bucket.put("files/late", bucket.get("files/big").data, metadata=other)
    deep = "files/dir/renamed/deep"
    executable = {**bucket.head(deep).metadata, "mode": "33279"}
    bucket.put(deep, bucket.get(deep).data, metadata=executable)
    said[content.META_PATH] = content.path_mark("left over")
    bucket.put("files/left over", body, metadata=said)
    bucket.put("files/a copy of it", body, metadata=said)
    done = run(bucket)
    assert set(wrong(done.report)) == {
        ("mirror-differs", "files/late"),
        ("mirror-differs", "files/dir/renamed/deep"),
        ("mirror-leftover", "files/left over"),
        ("mirror-foreign", "files/a copy of it"),
    }
    assert done.needs.relist
    assert {path for _, path in done.needs.remirror} == {b"late", b"dir/renamed/deep"}
    quick = run(bucket, quick=True)
    assert ("mirror-differs", "files/late") in wrong(quick.report)
    async with mounter() as m:
        changed = by_code(run(bucket, local=witness(m)), "mirror-changed")
    assert {f.where for f in changed} == {"files/late", "files/dir/renamed/deep"}


@only_local
async def test_a_journal_that_does_not_hang_together(
    mounter: Mounter, bucket: ScopedStore, tmp_path: Path
) -> None:
    async with mounter() as m:
        await work(m)
    second = bucket.get(layout.seg_key(2)).data
    third = bucket.get(layout.seg_key(3)).data
    bucket.put(layout.seg_key(3), second)
    assert {"journal-chain"} == {c for c, w in wrong(run(bucket).report) if w == layout.seg_key(3)}
    bucket.delete(layout.seg_key(3))
    assert ("journal-gap", layout.seg_key(3)) in wrong(run(bucket).report)
    bucket.put(layout.seg_key(3), third[:-100])
    assert ("object-size", layout.seg_key(3)) in wrong(run(bucket).report)
    bucket.put(layout.seg_key(3), third)
    assert wrong(run(bucket).report) == []


@only_local
async def test_a_segment_whose_header_counts_wrongly(mounter: Mounter, bucket: ScopedStore) -> None:
    async with mounter() as m:
        await work(m)
    key = layout.seg_key(4)
    raw = bucket.get(key).data
    header = journal.decode_header(raw, key)
    made = journal.encode_header(replace(header, puts=header.puts + 1)) + raw[1024:-16]
    bucket.put(key, made + xxhash.xxh3_128_digest(made))
    assert [("journal-counts", key)] == wrong(run(bucket).report)


@only_local
async def test_the_two_small_files(mounter: Mounter, bucket: ScopedStore) -> None:
    async with mounter() as m:
        await work(m)
    for key, code in (
        (layout.WORKSPACE_KEY, "workspace-file"),
        (layout.MIRRORED_KEY, "mirrored-file"),
        (layout.LEASE_KEY, "lease-file"),
    ):
        raw = bucket.get(key).data
        bucket.put(key, b"{}")
        assert (code, key) in wrong(run(bucket).report)
        bucket.put(key, raw)
    bucket.delete(layout.WORKSPACE_KEY)
    assert ("workspace-file", layout.WORKSPACE_KEY) in wrong(run(bucket).report)


@only_local
async def test_what_nothing_names_is_a_note(mounter: Mounter, bucket: ScopedStore) -> None:
    """A blob that was shipped for a seal that never came, or is just coming."""
    async with mounter() as m:
        await work(m)
    bucket.put(layout.blob_key(1 << 63 | 5), b"shipped ahead")
    done = run(bucket)
    assert done.report.ok
    assert [f.code for f in done.report.findings] == ["garbage"]


def test_every_code_of_buckets_has_its_test() -> None:
    here = Path(__file__)
    others = ("test_audit_repair.py", "test_audit_history.py")
    text = here.read_text() + "".join(here.with_name(name).read_text() for name in others)
    for code in list(CODES)[list(CODES).index("workspace-file") :]:
        assert f'"{code}"' in text, code

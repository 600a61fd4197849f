"""The journal is the truth: points of one instant, whatever strangers or disks do meanwhile."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import threading
from pathlib import Path

import pytest

from s3ws_fs.core.errors import ExitCode
from tests.support import trees
from tests.support.buckets import Bucket, LocalBucket
from tests.support.host import NEVER_BY_ITSELF, QUICK, Host, HostMaker

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

BUSY = {**QUICK, "WORKSPACE_SYNC_DEBOUNCE_MIN": "0", "WORKSPACE_SYNC_DEBOUNCE_MAX": "0.2"}


def test_a_sealed_point_is_of_one_instant(bucket: Bucket, new_host: HostMaker) -> None:
    """A writer keeps `first` ahead of `second` by at most one; so does every sealed point."""
    host = new_host(bucket, settings=BUSY)
    host.mount()
    stop = threading.Event()
    failure: list[Exception] = []

    def write() -> None:
        number = 0
        try:
            while not stop.is_set():
                number += 1
                for name in ("first", "second"):
                    temporary = host.mountpoint / f".{name}.tmp"
                    temporary.write_text(f"{number}\n" * 3000)
                    temporary.rename(host.mountpoint / name)
        except OSError as exc:
            failure.append(exc)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for turn in range(2):
            # In the middle of its work, host and disk vanish; nobody synced.
            other = new_host(bucket, f"witness {turn}")
            wait = host.sync()
            assert wait["sealed"] > 0
            _copy_of_the_bucket_is_consistent(bucket, other)
    finally:
        stop.set()
        writer.join()
    assert not failure
    host.umount()


def _copy_of_the_bucket_is_consistent(bucket: Bucket, other: Host) -> None:
    """Mount what is sealed at this moment, from a copy, so that the writer is not fenced."""
    root = other.base / "copy"
    copy = LocalBucket(root)
    # In the order of the journal: a segment that is there has all its blobs there. Without the
    # mirror's hint, which may be of a later one by now.
    for key in sorted(bucket.listing(other.prefix + "journal/"), reverse=True):
        if not key.endswith("/mirrored.json"):
            copy.put(key, bucket.get(key).body)
    for name in [name for name in other.settings if name.startswith(("AWS_", "WORKSPACE_STOR"))]:
        del other.settings[name]
    other.settings |= copy.env
    other.mount(take_over=True)
    texts = [(other.mountpoint / name).read_text() for name in ("first", "second")]
    first, second = (int(text.split("\n")[0]) for text in texts)
    assert first - second in (0, 1), (first, second)
    for text, number in zip(texts, (first, second), strict=True):
        assert text == f"{number}\n" * 3000
    other.umount()


def test_of_two_writers_one_is_fenced(bucket: Bucket, new_host: HostMaker) -> None:
    first = new_host(bucket, "first", settings=NEVER_BY_ITSELF)
    second = new_host(bucket, "second", settings=NEVER_BY_ITSELF)
    first.mount()
    (first.mountpoint / "file").write_bytes(b"of the first")
    (first.mountpoint / "only here").write_bytes(b"kept in the cache")
    second.s3ws("mount", second.mountpoint, ok=ExitCode.HELD)
    second.mount("--take-over")
    (second.mountpoint / "file").write_bytes(b"of the second")
    second.sync()
    first.s3ws("sync", first.mountpoint, ok=ExitCode.FENCED)
    assert first.now()["health"]["state"] == "fenced"
    assert (first.mountpoint / "only here").read_bytes() == b"kept in the cache"
    done = first.s3ws("umount", first.mountpoint, ok=ExitCode.FENCED)
    assert "another" in done.stderr
    assert bucket.get(first.prefix + "files/file").body == b"of the second"
    second.umount()
    # Its unsealed changes are not silently thrown away by the next mount either.
    first.s3ws("mount", first.mountpoint, ok=ExitCode.FENCED)
    third = new_host(bucket, "third")
    third.mount()
    assert (third.mountpoint / "file").read_bytes() == b"of the second"
    third.umount()


def test_strangers_in_the_mirror(bucket: Bucket, new_host: HostMaker) -> None:
    """What others put or take away below files/ damages nothing, is kept, and is reported."""
    host = new_host(bucket, settings=NEVER_BY_ITSELF)
    host.mount()
    for name in ("edited", "deleted", "left alone"):
        (host.mountpoint / name).write_bytes(name.encode())
    host.sync()
    files = host.prefix + "files/"
    bucket.put(files + "edited", b"by a stranger")
    bucket.put(files + "not ours", b"by a stranger")
    bucket.remove(files + "deleted")
    (host.mountpoint / "edited").write_bytes(b"edited here too")
    (host.mountpoint / "not ours").write_bytes(b"the same name here")
    (host.mountpoint / "left alone").write_bytes(b"changed")
    host.sync()
    assert {event["path"] for event in host.now()["outside"]["events"]} == {"edited", "not ours"}
    copies = sorted(name for name in os.listdir(host.mountpoint) if "(outside " in name)
    assert [name.split(" (")[0] for name in copies] == ["edited", "not ours"]
    for name in copies:
        assert (host.mountpoint / name).read_bytes() == b"by a stranger"
        assert bucket.get(files + name).body == b"by a stranger"
    assert bucket.get(files + "edited").body == b"edited here too"
    assert bucket.get(files + "not ours").body == b"the same name here"
    assert bucket.get(files + "left alone").body == b"changed"
    host.umount()
    other = new_host(bucket, "other")
    other.mount()
    assert (other.mountpoint / "edited").read_bytes() == b"edited here too"
    assert (other.mountpoint / "not ours").read_bytes() == b"the same name here"
    assert (other.mountpoint / "deleted").read_bytes() == b"deleted"
    assert (other.mountpoint / copies[0]).read_bytes() == b"by a stranger"
    other.sync()
    assert bucket.get(files + "deleted").body == b"deleted", "a new host puts back what is missing"


def test_a_power_cut_keeps_what_was_fsynced_and_sealed(
    local_bucket: LocalBucket, new_host: HostMaker
) -> None:
    host = new_host(local_bucket)
    host.mount()
    trees.build_source_tree(host.mountpoint / "sealed", files=50)
    host.sync()
    sealed = trees.manifest(host.mountpoint / "sealed")
    with (host.mountpoint / "fsynced").open("wb") as out:
        out.write(os.urandom(200_000))
        out.flush()
        os.fsync(out.fileno())
    wanted = trees.sha256_of(host.mountpoint / "fsynced")
    for number in range(300):
        (host.mountpoint / f"later {number}").write_bytes(bytes([number % 256]) * 3000)
    host.kill()
    _another_boot(host.workspace_cache())
    host.mount()
    assert host.now()["cache"]["opened"] != "kept", "the sync point was not taken"
    assert trees.differences(sealed, trees.manifest(host.mountpoint / "sealed")) == []
    assert trees.sha256_of(host.mountpoint / "fsynced") == wanted
    for path in host.mountpoint.glob("later *"):
        number = int(path.name.split()[1])
        assert path.read_bytes() in (b"", bytes([number % 256]) * 3000)
    host.sync()
    before = trees.manifest(host.mountpoint)
    host.umount()
    other = new_host(local_bucket, "other")
    other.mount()
    assert trees.differences(before, trees.manifest(other.mountpoint)) == []
    other.umount()


def _another_boot(cache: Path) -> None:
    """As if the machine had been started anew since the daemon died."""
    note = cache / "boot.json"
    noted = json.loads(note.read_bytes())
    assert noted["clean"] is False
    note.write_text(json.dumps(noted | {"boot_id": "00000000-0000-4000-8000-000000000000"}))


def test_damaged_objects_never_give_wrong_bytes(
    local_bucket: LocalBucket, new_host: HostMaker, tmp_path: Path
) -> None:
    """One flipped bit anywhere in the journal: refused or EIO, never other bytes."""
    host = new_host(local_bucket, settings=NEVER_BY_ITSELF)
    host.mount()
    trees.build_source_tree(host.mountpoint / "src", files=20)
    (host.mountpoint / "large").write_bytes(random.Random(1).randbytes(20 << 20))
    before = trees.manifest(host.mountpoint)
    host.umount()
    rng = random.Random(2)
    keys = local_bucket.listing(host.prefix + "journal/")
    assert any("/blob/" in key for key in keys)
    unnoticed = []
    for turn, key in enumerate(keys):
        damaged = LocalBucket(tmp_path / f"damaged {turn}")
        shutil.copytree(local_bucket.root, damaged.root)
        # Else it would be read from there, as far as its digests allow.
        shutil.rmtree(damaged.root / host.prefix / "files")
        body = bytearray(damaged.get(key).body)
        body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
        (damaged.root / key).write_bytes(body)
        other = new_host(damaged, f"other {turn}")
        done = other.s3ws("mount", other.mountpoint, ok=None)
        if done.returncode:
            assert "Traceback" not in done.stderr
            assert Path(key).name in done.stderr, done.stderr
            continue
        try:
            assert trees.differences(before, trees.manifest(other.mountpoint)) == []
            unnoticed.append(key.removeprefix(host.prefix))
        except OSError as exc:
            assert exc.errno == errno.EIO
        other.end()
    # On a hint no byte of a file depends.
    assert set(unnoticed) <= {"journal/mirrored.json"}


def test_an_empty_workspace(local_bucket: LocalBucket, new_host: HostMaker) -> None:
    host = new_host(local_bucket)
    for _ in range(2):
        host.mount()
        assert os.listdir(host.mountpoint) == []
        host.umount()
        host.lose_cache()


def test_kill_during_hydration(local_bucket: LocalBucket, new_host: HostMaker) -> None:
    first = new_host(local_bucket, "first")
    first.mount()
    trees.build_source_tree(first.mountpoint / "src", files=100)
    (first.mountpoint / "large").write_bytes(os.urandom(30 << 20))
    before = trees.manifest(first.mountpoint)
    first.umount()
    second = new_host(local_bucket, "second")
    for _ in range(3):
        second.mount()
        (second.mountpoint / "src" / "package0").stat()
        second.kill()
    second.mount()
    assert trees.differences(before, trees.manifest(second.mountpoint)) == []
    second.umount()

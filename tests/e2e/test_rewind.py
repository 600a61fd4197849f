"""`s3ws restore` and `s3ws undo` on real mounts: the tree as it was, and as it was before that.

Trees are compared by what the kernel shows (tests/support/trees); after each restore the same is
seen by another host without a cache, and `s3ws check --bucket` finds nothing.
"""

from __future__ import annotations

import mmap
import os
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from s3ws_fs.core.errors import ExitCode
from tests.support import trees
from tests.support.buckets import Bucket, LocalBucket, S3Bucket
from tests.support.host import NEVER_BY_ITSELF, Host, HostMaker
from tests.support.inotify import Watcher
from tests.support.mounting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]


@pytest.fixture
def host(local_bucket: LocalBucket, new_host: HostMaker) -> Iterator[Host]:
    """A mounted host that flushes when asked only."""
    made = new_host(local_bucket, "host", settings=NEVER_BY_ITSELF)
    made.mount()
    yield made


def point(host: Host) -> str:
    """Seal what is there; how to refer to it."""
    return f"gen:{host.sync()['sealed']}"


def restore(host: Host, ref: str, *more: str) -> dict[str, Any]:
    result = host.json("restore", ref, host.mountpoint, *more, "--yes")
    assert isinstance(result, dict)
    return result


def undo(host: Host) -> dict[str, Any]:
    result = host.json("undo", host.mountpoint, "--yes")
    assert isinstance(result, dict)
    return result


def require_same(before: trees.Manifest, top: Path) -> None:
    found = trees.differences(before, trees.manifest(top))
    assert not found, "\n".join(found[:20])


def change_much(top: Path) -> None:
    """Delete, overwrite, move, link, chmod, and turn files into directories and back."""
    subprocess.run(["rm", "-rf", top / "rich" / "sizes", top / "rich" / "deep"], check=True)
    (top / "rich" / "links" / "a" / "first").write_text("other bytes\n")
    os.link(top / "rich" / "links" / "b" / "third", top / "rich" / "links" / "fourth")
    (top / "rich" / "links" / "a" / "second").unlink()
    (top / "rich" / "modes").rename(top / "moved")
    (top / "moved" / "file 0644").chmod(0o600)
    os.setxattr(top / "rich" / "attributes" / "bare", "user.new", b"value")
    os.removexattr(top / "rich" / "attributes" / "file", "user.origin")
    (top / "rich" / "times" / "exact").unlink()
    (top / "rich" / "times" / "exact").mkdir()
    (top / "rich" / "times" / "exact" / "inside").write_text("a directory now")
    subprocess.run(["rm", "-rf", top / "rich" / "empty"], check=True)
    (top / "rich" / "empty").write_text("a file now")
    (top / "untracked").mkdir()
    (top / "untracked" / "new").write_bytes(os.urandom(100_000))


def test_whole_tree_undo_and_redo(bucket: Bucket, new_host: HostMaker, tmp_path: Path) -> None:
    host = new_host(bucket, "host", settings=NEVER_BY_ITSELF)
    host.mount()
    top = host.mountpoint
    trees.build_rich_tree(top / "rich")
    ref = point(host)
    before = trees.manifest(top)
    change_much(top)
    between = trees.manifest(top)

    shown = host.json("restore", ref, top, "--dry-run")
    assert shown["restored"] is False and shown["added"]["count"] > 10
    require_same(between, top)

    result = restore(host, ref)
    assert result["restored"] is True and result["snapshot"]["kind"] == "before-restore"
    assert {kind: result[kind] for kind in ("added", "changed", "deleted")} == {
        kind: shown[kind] for kind in ("added", "changed", "deleted")
    }
    require_same(before, top)
    check(host)
    assert restore(host, ref)["is_nothing"] is True

    assert undo(host)["snapshot"]["kind"] == "before-undo"
    require_same(between, top)
    undo(host)
    require_same(before, top)
    check(host)
    elsewhere(host, tmp_path, before)


def check(host: Host) -> None:
    """Cache and bucket are clean, once all is mirrored."""
    host.sync()
    host.s3ws("check", host.mountpoint, "--bucket")


def elsewhere(host: Host, tmp_path: Path, before: trees.Manifest) -> None:
    """Unmount; another host without a cache shows the same."""
    host.umount()
    other = host.elsewhere(tmp_path / "elsewhere")
    other.mount()
    try:
        require_same(before, other.mountpoint)
        other.umount()
    finally:
        other.end()


def test_some_paths(host: Host) -> None:
    top = host.mountpoint
    for name in ("a/one", "a/two", "b/one", "c/d/e/deep"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(f"{name} then")
    os.link(top / "a" / "two", top / "b" / "two")
    ref = point(host)
    for name in ("a/one", "b/one"):
        (top / name).write_text("now")
    (top / "a" / "two").unlink()
    subprocess.run(["rm", "-rf", top / "c"], check=True)
    (top / "a" / "untracked").write_text("untracked")

    restore(host, ref, "a", "c/d/e", str(top / "b" / "two"))
    assert (top / "a" / "one").read_text() == "a/one then"
    assert (top / "b" / "one").read_text() == "now"
    assert (top / "c" / "d" / "e" / "deep").read_text() == "c/d/e/deep then"
    assert not (top / "a" / "untracked").exists()
    assert (top / "a" / "two").stat().st_ino == (top / "b" / "two").stat().st_ino
    check(host)

    refused = host.s3ws("restore", ref, top, "nowhere", "--yes", ok=ExitCode.USAGE)
    assert "'nowhere'" in refused.stderr
    refused = host.s3ws("restore", ref, top, "/etc", "--yes", ok=ExitCode.USAGE)
    assert "not below" in refused.stderr
    refused = host.s3ws("restore", ref, top, ok=ExitCode.USAGE)
    assert "--yes" in refused.stderr
    assert "no-such-name" in host.s3ws("restore", "no-such-name", top, "--yes", ok=17).stderr


def test_local_paths_stay(host: Host) -> None:
    top = host.mountpoint
    (top / "src").mkdir()
    (top / "src" / "main.py").write_text("then")
    ref = point(host)
    (top / "src" / "main.py").write_text("now")
    (top / "new" / "node_modules" / "left-pad").mkdir(parents=True)
    (top / "new" / "node_modules" / "left-pad" / "index.js").write_text("module.exports = 1")
    (top / "new" / "app.js").write_text("require('left-pad')")
    (top / "src" / "__pycache__").mkdir()
    (top / "src" / "__pycache__" / "main.pyc").write_bytes(b"cached")
    between = trees.manifest(top)

    result = restore(host, ref)
    assert result["kept"]["count"] == 2
    assert (top / "src" / "main.py").read_text() == "then"
    assert (top / "src" / "__pycache__" / "main.pyc").read_bytes() == b"cached"
    assert (top / "new" / "node_modules" / "left-pad" / "index.js").exists()
    assert os.listdir(top / "new") == ["node_modules"]
    undo(host)
    found = trees.differences(between, trees.manifest(top), ignore=["mtime_ns"])
    assert not found, found
    restore(host, ref, "--all")
    assert sorted(os.listdir(top)) == ["src"] and os.listdir(top / "src") == ["main.py"]
    check(host)


def test_open_files_keep_what_they_have(host: Host) -> None:
    top = host.mountpoint
    (top / "d").mkdir()
    (top / "file").write_text("then")
    (top / "d" / "same").write_text("same")
    ref = point(host)
    (top / "file").write_text("now")
    (top / "gone").write_bytes(b"m" * 8192)
    (top / "x" / "y").mkdir(parents=True)
    cwd = os.open(top / "x" / "y", os.O_RDONLY | os.O_DIRECTORY)
    with (
        (top / "file").open("r+") as file,
        (top / "gone").open("r+b") as gone,
        (top / "d" / "same").open() as same,
        mmap.mmap(gone.fileno(), 0) as mapped,
    ):
        restore(host, ref)
        assert (top / "file").read_text() == "then"
        # As if replaced by rename: the old file lives on without a name.
        assert file.read() == "now"
        assert os.fstat(file.fileno()).st_nlink == 0
        assert os.fstat(file.fileno()).st_ino != (top / "file").stat().st_ino
        file.write(" and more")
        file.flush()
        assert (top / "file").read_text() == "then"
        assert mapped[8191:8192] == b"m"
        mapped[0:1] = b"M"
        mapped.flush()
        assert os.pread(gone.fileno(), 1, 0) == b"M"
        # One that is as it was keeps its number.
        assert os.fstat(same.fileno()).st_ino == (top / "d" / "same").stat().st_ino
        assert same.read() == "same"
        # A directory in which somebody stands is removed under it, as rmdir does.
        assert os.listdir(cwd) == []
        assert os.fstat(cwd).st_nlink == 0
    os.close(cwd)
    check(host)
    # What was deleted is dropped, when nobody has it open any more.
    wait_until(lambda: host.now()["quota"]["used_inodes"] == 4, what="orphans are dropped")


def test_names_and_attributes_that_the_kernel_knew(host: Host) -> None:
    top = host.mountpoint
    (top / "d").mkdir()
    (top / "d" / "then").write_text("then")
    (top / "d" / "both").write_text("both")
    (top / "d" / "both").chmod(0o640)
    ref = point(host)
    (top / "d" / "then").unlink()
    (top / "d" / "now").write_text("now")
    (top / "d" / "both").chmod(0o600)
    # Names, absences and attributes are in the kernel's cache.
    assert not (top / "d" / "then").exists() and (top / "d" / "now").exists()
    assert (top / "d" / "both").stat().st_mode & 0o777 == 0o600
    restore(host, ref)
    assert (top / "d" / "then").read_text() == "then"
    assert not (top / "d" / "now").exists()
    assert (top / "d" / "both").stat().st_mode & 0o777 == 0o640


def test_programs_see_one_state_or_the_other(host: Host) -> None:
    """Whoever looks at many names meanwhile never sees some of then beside some of now."""
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    if release < (6, 16):
        pytest.skip("the kernel has no epoch of names: they are forgotten one by one")
    top = host.mountpoint
    for number in range(400):
        (top / f"d{number % 20}").mkdir(exist_ok=True)
        (top / f"d{number % 20}" / f"then{number}").touch()
    ref = point(host)
    for path in list(top.rglob("then*")):
        path.rename(path.with_name(path.name.replace("then", "now")))
    looked = [top / f"d{number % 20}" / f"then{number}" for number in range(0, 400, 7)]
    mixed: list[set[bool]] = []
    rounds = 0
    stop = threading.Event()

    def look() -> None:
        nonlocal rounds
        while not stop.is_set():
            first = looked[0].exists()
            seen = {path.exists() for path in looked}
            if looked[0].exists() == first and seen != {first}:
                mixed.append(seen)
            rounds += 1

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(2):
            restore(host, ref)
            undo(host)
    finally:
        stop.set()
        thread.join()
    print(f"{rounds} rounds")
    assert not mixed


def test_watchers_go_on(host: Host) -> None:
    """inotify tells what goes through the kernel, and a restore does not; a watch lives on."""
    top = host.mountpoint
    (top / "d").mkdir()
    (top / "d" / "file").write_text("then")
    ref = point(host)
    (top / "d" / "file").write_text("now")
    with Watcher() as watcher:
        watcher.watch(top / "d", "d")
        restore(host, ref)
        (top / "d" / "later").touch()
        seen = watcher.take(1)
        while seen[-1] != ("d", "create", "later"):
            print("told of the restore:", seen[-1])
            seen = watcher.take(1)


def test_git_status_is_clean_again(host: Host) -> None:
    top = host.mountpoint

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words],
            cwd=top, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout

    git("init", "-q", ".")
    trees.build_source_tree(top / "src", files=60)
    git("add", "."), git("commit", "-qm", "one")
    assert git("status", "--porcelain") == ""
    ref = point(host)
    head = git("rev-parse", "HEAD")
    git("checkout", "-qb", "other")
    subprocess.run(["rm", "-rf", top / "src" / "package1"], check=True)
    (top / "src" / "package2" / "new.py").write_text("new")
    git("add", "-A"), git("commit", "-qm", "two"), git("gc", "-q")
    restore(host, ref)
    assert git("status", "--porcelain=v2") == ""
    assert git("rev-parse", "HEAD") == head
    git("fsck", "--full", "--strict")
    undo(host)
    assert git("status", "--porcelain=v2") == ""
    assert git("log", "--format=%s").split() == ["two", "one"]


def test_a_database_in_use(host: Host) -> None:
    """An open connection keeps the file it has; a new one sees the state that came back."""
    path = host.mountpoint / "data.db"
    with sqlite3.connect(path) as db:
        db.execute("create table t (n integer)")
        db.executemany("insert into t values (?)", [(n,) for n in range(1000)])
    db.close()
    ref = point(host)
    old = sqlite3.connect(path)
    with old:
        old.execute("delete from t")
    restore(host, ref)
    fresh = sqlite3.connect(path)
    assert fresh.execute("select count(*) from t").fetchone() == (1000,)
    assert fresh.execute("pragma integrity_check").fetchone() == ("ok",)
    assert old.execute("select count(*) from t").fetchone() == (0,)
    old.close()
    fresh.close()


@contextmanager
def writers(top: Path, count: int = 2) -> Iterator[list[int]]:
    """Programs that write, rename and delete all the time; how many rounds each has done."""
    rounds = [0] * count
    stop = threading.Event()
    errors: list[Exception] = []

    def work(number: int) -> None:
        here = top / f"busy{number}"
        while not stop.is_set():
            try:
                here.mkdir(exist_ok=True)
                (here / "file.new").write_text(str(rounds[number]))
                (here / "file.new").rename(here / "file")
            except FileNotFoundError:
                # Taken away by a restore.
                pass
            except OSError as exc:
                errors.append(exc)
                return
            rounds[number] += 1

    threads = [threading.Thread(target=work, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield rounds
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors, errors


def have_gone_on(rounds: list[int], was: list[int]) -> bool:
    return all(now > before for now, before in zip(rounds, was, strict=True))


def test_under_load(host: Host, tmp_path: Path) -> None:
    """Programs write on meanwhile, and nothing of theirs is lost without a snapshot."""
    top = host.mountpoint
    trees.build_source_tree(top / "src", files=200)
    ref = point(host)
    before = trees.manifest(top / "src")
    with writers(top) as rounds:
        for _ in range(3):
            subprocess.run(["rm", "-rf", top / "src" / "package3"], check=True)
            was = list(rounds)
            result = restore(host, ref)
            assert result["restored"] is True
            require_same(before, top / "src")
            wait_until(partial(have_gone_on, rounds, was), what="writers go on")
    undo(host)
    assert not (top / "src" / "package3").exists()
    check(host)
    elsewhere(host, tmp_path, trees.manifest(top))


@pytest.mark.s3
def test_the_store_is_away(s3_bucket: S3Bucket, new_host: HostMaker) -> None:
    host = new_host(s3_bucket, settings=NEVER_BY_ITSELF)
    host.mount()
    top = host.mountpoint
    (top / "file").write_text("then")
    ref = point(host)
    (top / "file").write_text("now")
    s3_bucket.server.stop()
    try:
        refused = host.s3ws("restore", ref, top, "--yes", ok=ExitCode.STORE)
        assert "Nothing was changed" in refused.stderr, refused.stderr
        assert (top / "file").read_text() == "now"
    finally:
        s3_bucket.server.start()
    restore(host, ref)
    assert (top / "file").read_text() == "then"


def test_a_quota_that_the_tree_of_then_exceeds(
    local_bucket: LocalBucket, new_host: HostMaker
) -> None:
    host = new_host(local_bucket, "large", settings=NEVER_BY_ITSELF)
    host.mount()
    (host.mountpoint / "large").write_bytes(os.urandom(3 << 20))
    ref = point(host)
    (host.mountpoint / "large").unlink()
    host.umount()
    host.settings["WORKSPACE_MAX_SIZE_MB"] = "2"
    host.mount()
    before = trees.manifest(host.mountpoint)
    refused = host.s3ws("restore", ref, host.mountpoint, "--yes", ok=ExitCode.USAGE)
    assert "quota" in refused.stderr
    require_same(before, host.mountpoint)
    host.s3ws("undo", host.mountpoint, "--yes", ok=17)


def test_a_read_only_mount_is_not_restored(
    local_bucket: LocalBucket, new_host: HostMaker, host: Host, tmp_path: Path
) -> None:
    (host.mountpoint / "file").write_text("x")
    ref = point(host)
    other = host.elsewhere(tmp_path / "reader")
    other.mount("--read-only")
    try:
        refused = other.s3ws("restore", ref, other.mountpoint, "--yes", ok=ExitCode.USAGE)
        assert "read-only" in refused.stderr
        other.umount()
    finally:
        other.end()

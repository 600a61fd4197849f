"""What only the local store does: layout, symlinks, outside edits, races with pruning."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from s3ws_fs.core.config import StoreConfig
from s3ws_fs.core.errors import ConflictError, NotFoundError, PermanentError
from s3ws_fs.store import local
from s3ws_fs.store.base import COMPONENT_BYTES_MAX
from s3ws_fs.store.factory import open_store
from s3ws_fs.store.local import LOCK_NAME, TEMP_AGE_S, TEMP_DIR, LocalStore


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "bucket"


@pytest.fixture
def store(root: Path) -> LocalStore:
    return LocalStore(str(root))


def left_over(root: Path) -> list[str]:
    return [name for name in os.listdir(root / TEMP_DIR) if name != LOCK_NAME]


def test_layout_is_the_bucket(store: LocalStore, root: Path) -> None:
    store.put("a/b c/d", b"bytes", metadata={"mode": "33188"})
    path = root / "a" / "b c" / "d"
    assert path.read_bytes() == b"bytes"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for directory in (root, path.parent, root / TEMP_DIR):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert left_over(root) == []


def test_an_outside_edit_changes_the_etag(store: LocalStore, root: Path) -> None:
    etag = store.put("k", b"ours", metadata={"a": "b"})
    (root / "k").write_bytes(b"them")
    assert store.head("k").etag != etag
    for call in (
        lambda: store.put("k", b"stale", if_match=etag),
        lambda: store.delete("k", if_match=etag),
        lambda: store.get("k", if_match=etag),
        lambda: store.copy("k", "k2", src_if_match=etag),
    ):
        with pytest.raises(ConflictError):
            call()
    assert (root / "k").read_bytes() == b"them"


def test_files_from_outside_are_objects(store: LocalStore, root: Path) -> None:
    (root / "d").mkdir()
    (root / "d" / "plain").write_bytes(b"1")
    os.setxattr(root / "d" / "plain", local.XATTR, b"not json")
    (root / "d" / b"\xff".decode("utf-8", "surrogateescape")).write_bytes(b"")
    os.mkfifo(root / "d" / "fifo")
    (root / "d" / "link").symlink_to("plain")
    assert [entry.key for entry in store.list()] == ["d/plain"]
    assert store.head("d/plain").metadata == {}
    for key in ("d/fifo", "d/link"):
        with pytest.raises(PermanentError, match="symlink"):
            store.get(key)


def test_symlinks_lead_nowhere(store: LocalStore, root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (root / "dir").symlink_to(outside)
    (root / "file").symlink_to(outside / "secret")
    for call in (
        lambda: store.get("dir/secret"),
        lambda: store.head("file"),
        lambda: store.put("dir/new", b""),
        lambda: store.put("dir/new", b"", if_none_match=True),
        lambda: store.copy("file", "k"),
        lambda: store.delete("dir/secret"),
        lambda: store.delete("file"),
    ):
        with pytest.raises(PermanentError):
            call()
    assert list(store.list()) == []
    assert list(store.list("dir/")) == []
    store.put("file", b"ours")
    assert os.listdir(outside) == ["secret"]
    assert (outside / "secret").read_bytes() == b"secret"
    assert not (root / "file").is_symlink()


def test_empty_directories_go_with_the_last_object(store: LocalStore, root: Path) -> None:
    store.put("a/b/c/1", b"")
    store.put("a/2", b"")
    store.delete("a/b/c/1")
    assert os.listdir(root / "a") == ["2"]
    assert store.delete_many(["a/2", "a/3"]) == []
    assert os.listdir(root) == [TEMP_DIR]


@pytest.mark.parametrize("must_create", [True, False])
def test_directories_of_a_killed_process_are_in_nobodys_way(
    store: LocalStore, root: Path, must_create: bool
) -> None:
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "c").mkdir()
    store.put("a", b"file", if_none_match=must_create)
    assert store.get("a").data == b"file"


def test_puts_and_prunes_race(store: LocalStore, root: Path) -> None:
    stop = threading.Event()

    def churn(number: int) -> None:
        while not stop.is_set():
            store.put(f"d/e/f/{number}", b"", if_none_match=bool(number % 2))
            store.delete(f"d/e/f/{number}")

    with ThreadPoolExecutor(3) as pool:
        churning = [pool.submit(churn, number) for number in range(2)]
        try:
            for number in range(60):
                store.put(f"d/e/f/keep{number}", b"x", if_none_match=bool(number % 2))
                store.delete(f"d/e/f/keep{number}")
        finally:
            stop.set()
        for future in churning:
            future.result()
    assert os.listdir(root) == [TEMP_DIR]
    assert left_over(root) == []


def test_a_key_is_no_object_and_prefix_at_once(store: LocalStore) -> None:
    store.put("a/b", b"")
    for must_create in (False, True):
        with pytest.raises(PermanentError, match="prefix"):
            store.put("a", b"", if_none_match=must_create)
        with pytest.raises(PermanentError, match="directory"):
            store.put("a/b/c", b"", if_none_match=must_create)
    with pytest.raises(NotFoundError):
        store.get("a")
    store.delete("a")
    assert [entry.key for entry in store.list()] == ["a/b"]


def test_long_segments(store: LocalStore) -> None:
    store.put("é" * (COMPONENT_BYTES_MAX // 2) + "x", b"")
    with pytest.raises(PermanentError, match="longer"):
        store.put("x" * (COMPONENT_BYTES_MAX + 1), b"")


def test_the_stores_own_directory_is_no_key(store: LocalStore) -> None:
    for key in (TEMP_DIR, f"{TEMP_DIR}/{LOCK_NAME}"):
        with pytest.raises(PermanentError, match="own"):
            store.get(key)
    store.put("x", b"")
    assert [entry.key for entry in store.list("")] == ["x"]
    assert list(store.list(".")) == []


def test_a_killed_writer_leaves_no_object(store: LocalStore, root: Path) -> None:
    old, young = root / TEMP_DIR / "old", root / TEMP_DIR / "young"
    for path in (old, young):
        path.write_bytes(b"half")
    past = old.stat().st_mtime - TEMP_AGE_S - 1
    os.utime(old, (past, past))
    assert list(store.list()) == []
    LocalStore(str(root)).close()
    assert left_over(root) == ["young"]


def test_an_edit_in_place_loses_what_was_said_of_the_old_bytes(
    store: LocalStore, root: Path
) -> None:
    store.put("d/key", b"ours", content_type="text/plain", metadata={"mark": "ours"})
    assert store.head("d/key").metadata == {"mark": "ours"}
    (root / "d" / "key").write_bytes(b"theirs")
    info = store.head("d/key")
    assert (info.content_type, info.metadata) == ("application/octet-stream", {})


def test_no_user_xattrs(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "setxattr", refuse)
    with pytest.raises(PermanentError, match="extended attributes"):
        store.check()
    with pytest.raises(PermanentError, match="extended attributes"):
        store.put("k", b"", metadata={"a": "b"})
    with pytest.raises(NotFoundError):
        store.head("k")


def test_order_is_that_of_keys(store: LocalStore) -> None:
    keys = ["a b", "a.b", "a/b", "a/b/c".replace("b/c", "z/c"), "a0", "b"]
    for key in keys:
        store.put(key, b"")
    assert [entry.key for entry in store.list()] == sorted(keys)
    assert [entry.key for entry in store.list("", "a.b")] == sorted(keys)[2:]


def test_a_root_that_can_not_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "no" / "such"):
        with pytest.raises(PermanentError, match="can't use"):
            open_store(StoreConfig("local", path=str(path)), "p/")


def test_opened_for_reading_it_makes_nothing(root: Path, tmp_path: Path) -> None:
    root.mkdir()
    (root / "p").mkdir()
    (root / "p" / "k").write_bytes(b"1")
    before = [(path, path.stat().st_mtime_ns) for path in (root, *sorted(root.rglob("*")))]
    store = open_store(StoreConfig("local", path=str(root)), "p/", read_only=True)
    assert store.get("k").data == b"1"
    assert [entry.key for entry in store.list()] == ["k"]
    attempts: list[Callable[[], object]] = [
        lambda: store.put("k", b"2"),
        lambda: store.copy("k", "l"),
        lambda: store.delete("k"),
        lambda: store.delete_many(["k"]),
        store.probe_conditional,
    ]
    for attempt in attempts:
        with pytest.raises(PermanentError, match="for reading only"):
            attempt()
    store.close()
    assert before == [(path, path.stat().st_mtime_ns) for path in (root, *sorted(root.rglob("*")))]
    with pytest.raises(PermanentError, match="can't use"):
        open_store(StoreConfig("local", path=str(tmp_path / "none")), "p/", read_only=True)
    assert not (tmp_path / "none").exists()


def test_two_processes_worth_of_stores_share_one_root(root: Path) -> None:
    config = StoreConfig("local", path=str(root))
    one, two = open_store(config, "p/"), open_store(config, "p/")
    etag = one.put("k", b"1", if_none_match=True)
    with pytest.raises(ConflictError):
        two.put("k", b"2", if_none_match=True)
    two.put("k", b"2", if_match=etag)
    with pytest.raises(ConflictError):
        one.put("k", b"3", if_match=etag)

"""The contract of store/base.py, run on every store."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from s3ws_fs.core.errors import ConflictError, NotFoundError, PermanentError, StoreError
from s3ws_fs.store.base import (
    DEFAULT_CONTENT_TYPE,
    DELETE_BATCH,
    KEY_BYTES_MAX,
    METADATA_BYTES_MAX,
    Keeps,
)
from s3ws_fs.store.body import Body, FileSlice
from s3ws_fs.store.local import LocalStore
from s3ws_fs.store.memory import MemoryStore
from s3ws_fs.store.s3 import S3Store
from s3ws_fs.store.scoped import PROBE_PREFIX, ScopedStore
from tests.store.conftest import MIB, PREFIX, Subject

pytestmark = pytest.mark.s3

ODD_KEYS = [
    "files/a b",
    "files/ü€😀",
    "files/%41",
    "files/a+b",
    "files/a&b",
    "files/quote'\"<>",
    "files/#?;=@:,$!*()[]{}^`|~",
    "files/.hidden",
    "files/x..y",
    "files/e\u0301",  # decomposed: must not be normalised
    "files/\u00e9",
    "files/A",
    "files/a",
    "files/ lead and trail ",
    "files/" + "é" * 127,
]

METADATA = {"mode": "33188", "uid": "10001", "mtime": "1700000000.123456789", "s3ws-hash": "ab/+="}


def test_put_get_head_round_trip(subject: Subject) -> None:
    store = subject.store
    etag = store.put("files/a", b"hello", content_type="text/x-python", metadata=METADATA)
    fetched = store.get("files/a")
    assert (fetched.data, fetched.etag, fetched.total_bytes) == (b"hello", etag, 5)
    info = store.head("files/a")
    assert (info.key, info.size_bytes, info.etag) == ("files/a", 5, etag)
    assert (info.content_type, info.metadata) == ("text/x-python", METADATA)
    assert info.modified_ns > 0
    assert '"' not in etag and etag


def test_attributes_default_and_are_replaced_with_the_object(subject: Subject) -> None:
    store = subject.store
    store.put("a", b"1", content_type="text/x-python", metadata=METADATA)
    store.put("a", b"2")
    info = store.head("a")
    assert (info.content_type, info.metadata) == (DEFAULT_CONTENT_TYPE, {})


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 4096])
def test_bodies_of_every_kind(subject: Subject, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "body"
    path.write_bytes(b"before" + data + b"after")
    store = subject.store
    for body in (data, bytearray(data), memoryview(data)):
        store.put("k", body)
        assert store.get("k").data == data
    with path.open("rb") as file:
        store.put("k", FileSlice(file.fileno(), 6, len(data)))
        assert store.get("k").data == data
        store.put("k", file)
        assert store.get("k").data == b"before" + data + b"after"


def test_a_file_that_is_too_short_is_no_object(subject: Subject, tmp_path: Path) -> None:
    path = tmp_path / "body"
    path.write_bytes(b"12345")
    with path.open("rb") as file, pytest.raises(PermanentError, match="shorter"):
        subject.store.put("k", FileSlice(file.fileno(), 2, 4))
    with pytest.raises(NotFoundError):
        subject.store.head("k")


def test_missing_object(subject: Subject) -> None:
    store = subject.store
    for call in (
        lambda: store.get("no/such"),
        lambda: store.get("no/such", 3, 4),
        lambda: store.get("no/such", 0, 0),
        lambda: store.head("no/such"),
        lambda: store.copy("no/such", "b"),
        lambda: store.copy("no/such", "b", src_if_match="0123"),
        lambda: store.copy("no/such", "b", metadata={}),
    ):
        with pytest.raises(NotFoundError) as caught:
            call()
        assert "no/such" in caught.value.key
    store.delete("no/such")
    store.delete("no/such", if_match="0123")


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, None, b"0123456789"),
        (3, None, b"3456789"),
        (3, 4, b"3456"),
        (0, 1, b"0"),
        (9, 1, b"9"),
        (8, 100, b"89"),
        (10, 1, b""),
        (10, None, b""),
        (99, 5, b""),
        (4, 0, b""),
    ],
)
def test_ranges(subject: Subject, offset: int, length: int | None, expected: bytes) -> None:
    etag = subject.store.put("k", b"0123456789")
    fetched = subject.store.get("k", offset, length)
    assert (fetched.data, fetched.etag, fetched.total_bytes) == (expected, etag, 10)
    fetched = subject.store.get("k", offset, length, if_match=etag)
    assert fetched.data == expected
    with pytest.raises(ConflictError):
        subject.store.get("k", offset, length, if_match="0123456789abcdef")


def test_ranges_of_an_empty_object(subject: Subject) -> None:
    subject.store.put("k", b"")
    for offset, length in ((0, None), (0, 5), (3, 5)):
        fetched = subject.store.get("k", offset, length)
        assert (fetched.data, fetched.total_bytes) == (b"", 0)
    with pytest.raises(PermanentError):
        subject.store.get("k", -1)


def test_must_create(subject: Subject) -> None:
    store = subject.store
    store.put("k", b"first", if_none_match=True)
    with pytest.raises(ConflictError):
        store.put("k", b"second", if_none_match=True)
    assert store.get("k").data == b"first"
    store.delete("k")
    store.put("k", b"third", if_none_match=True)


@pytest.mark.parametrize("size", [100, 6 * MIB])
def test_must_create_race_has_one_winner(subject: Subject, size: int) -> None:
    if not subject.atomic:
        pytest.skip(f"{subject.name} checks conditions and writes in two steps")
    writers = 6
    for round_number in range(3 if size < MIB else 1):
        key, barrier = f"seg/{round_number}", threading.Barrier(writers)

        def write(number: int, key: str = key, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            try:
                subject.store.put(key, bytes([number]) * size, if_none_match=True)
            except ConflictError:
                return False
            return True

        with ThreadPoolExecutor(writers) as pool:
            won = list(pool.map(write, range(writers)))
        assert won.count(True) == 1
        assert subject.store.get(key).data == bytes([won.index(True)]) * size


def test_if_match_race_loses_no_update(subject: Subject) -> None:
    if not subject.atomic:
        pytest.skip(f"{subject.name} checks conditions and writes in two steps")
    subject.store.put("k", b"")

    def append(number: int) -> None:
        while True:
            found = subject.store.get("k")
            try:
                subject.store.put("k", found.data + bytes([number]), if_match=found.etag)
            except ConflictError:
                continue
            return

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(append, range(12)))
    assert sorted(subject.store.get("k").data) == list(range(12))


def test_if_match(subject: Subject) -> None:
    store = subject.store
    old = store.put("k", b"old")
    new = store.put("k", b"newer", if_match=old)
    assert new != old
    with pytest.raises(ConflictError):
        store.put("k", b"stale", if_match=old)
    assert store.get("k").data == b"newer"
    store.delete("k")
    with pytest.raises(ConflictError):
        store.put("k", b"gone", if_match=new)
    with pytest.raises(NotFoundError):
        store.head("k")


def test_large_body_in_parts(subject: Subject, tmp_path: Path) -> None:
    store, path = subject.store, tmp_path / "big"
    data = os.urandom(MIB) * 24 + b"tail"
    path.write_bytes(data)
    with path.open("rb") as file:
        etag = store.put("big", file, content_type="video/x", metadata=METADATA, if_none_match=True)
        with pytest.raises(ConflictError):
            store.put("big", FileSlice(file.fileno(), 0, 9 * MIB), if_none_match=True)
        with pytest.raises(ConflictError):
            store.put("big", file, if_match="0123456789abcdef")
    info = store.head("big")
    assert (info.size_bytes, info.etag, info.content_type) == (len(data), etag, "video/x")
    assert info.metadata == METADATA
    assert hashlib.sha256(store.get("big").data).digest() == hashlib.sha256(data).digest()
    assert store.get("big", 5 * MIB - 3, 6).data == data[5 * MIB - 3 : 5 * MIB + 3]
    assert store.put("big", data[: 9 * MIB], if_match=etag) != etag


def test_large_copy_in_parts(subject: Subject) -> None:
    store, data = subject.store, os.urandom(MIB) * 11
    etag = store.put("big", data, content_type="video/x", metadata=METADATA)
    store.copy("big", "kept", src_if_match=etag, if_none_match=True)
    info = store.head("kept")
    assert (info.size_bytes, info.content_type, info.metadata) == (len(data), "video/x", METADATA)
    assert store.get("kept").data == data
    store.copy("big", "other", metadata={"a": "b"})
    assert store.head("other").metadata == {"a": "b"}
    with pytest.raises(ConflictError):
        store.copy("big", "third", src_if_match="0123456789abcdef")
    with pytest.raises(ConflictError):
        store.copy("big", "kept", if_none_match=True)


def test_copy(subject: Subject) -> None:
    store = subject.store
    etag = store.put("src", b"bytes", content_type="text/x-c", metadata=METADATA)
    copied = store.copy("src", "odd dir/ü %41+&", src_if_match=etag)
    info = store.head("odd dir/ü %41+&")
    assert (info.etag, info.content_type, info.metadata) == (copied, "text/x-c", METADATA)
    store.copy("odd dir/ü %41+&", "b", metadata={"k": "v"})
    assert store.head("b").metadata == {"k": "v"}
    assert store.head("b").content_type == DEFAULT_CONTENT_TYPE
    store.copy("src", "b", content_type="text/x-d", metadata={})
    assert (store.head("b").content_type, store.head("b").metadata) == ("text/x-d", {})
    assert store.get("b").data == b"bytes"
    with pytest.raises(PermanentError):
        store.copy("src", "src")


def test_copy_conditions(subject: Subject) -> None:
    store = subject.store
    stale = store.put("src", b"old")
    etag = store.put("src", b"newer")
    with pytest.raises(ConflictError):
        store.copy("src", "dst", src_if_match=stale)
    with pytest.raises(NotFoundError):
        store.head("dst")
    first = store.copy("src", "dst", src_if_match=etag, if_none_match=True)
    with pytest.raises(ConflictError):
        store.copy("src", "dst", if_none_match=True)
    with pytest.raises(ConflictError):
        store.copy("src", "dst", if_match=stale)
    store.put("src", b"newest")
    store.copy("src", "dst", if_match=first)
    assert store.get("dst").data == b"newest"
    with pytest.raises(ConflictError):
        store.copy("src", "nowhere", if_match=first)


def test_delete(subject: Subject) -> None:
    store = subject.store
    stale = store.put("d/k", b"old")
    etag = store.put("d/k", b"newer")
    with pytest.raises(ConflictError):
        store.delete("d/k", if_match=stale)
    assert store.get("d/k").data == b"newer"
    store.delete("d/k", if_match=etag)
    with pytest.raises(NotFoundError):
        store.head("d/k")
    store.delete("d/k")


def test_delete_many(subject: Subject) -> None:
    store = subject.store
    stale = store.put("d/changed", b"old")
    etags = {key: store.put(key, key.encode()) for key in ("d/changed", *ODD_KEYS, "keep")}
    failures = store.delete_many(
        [
            *ODD_KEYS[:3],
            "missing",
            ("d/changed", stale),
            *((key, etags[key]) for key in ODD_KEYS[3:]),
            ("gone too", stale),
        ]
    )
    assert [failure.key for failure in failures] == ["d/changed"]
    assert isinstance(failures[0].error, ConflictError)
    assert sorted(entry.key for entry in store.list()) == ["d/changed", "keep"]
    assert store.delete_many([]) == []


def test_list_and_delete_more_than_a_page(subject: Subject) -> None:
    store, count = subject.store, DELETE_BATCH + 25
    keys = [f"many/{number:04}" for number in range(count)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put(key, b""), keys))
    assert [entry.key for entry in store.list("many/")] == keys
    assert [e.key for e in islice(store.list("many/", "many/0009"), 2)] == keys[10:12]
    assert [e.key for e in store.list("many/", keys[-1])] == []
    assert [e.key for e in store.list("many/10", "many/1022")] == keys[1023:]
    assert store.delete_many(keys) == []
    assert list(store.list()) == []


def test_odd_keys(subject: Subject) -> None:
    store = subject.store
    etags = {key: store.put(key, key.encode(), if_none_match=True) for key in ODD_KEYS}
    for key in ODD_KEYS:
        assert store.get(key).data == key.encode()
        assert store.head(key).key == key
    listed = list(store.list("files/"))
    assert [entry.key for entry in listed] == sorted(ODD_KEYS, key=str.encode)
    assert {entry.key: entry.etag for entry in listed} == etags
    assert {entry.size_bytes for entry in listed} == {len(key.encode()) for key in ODD_KEYS}


def test_list_by_prefix(subject: Subject) -> None:
    store = subject.store
    keys = ["a", "ab/c", "ab/d/e", "abc", "b"]
    for key in keys:
        store.put(key, b"1")
    assert sorted(entry.key for entry in store.list()) == keys
    assert sorted(entry.key for entry in store.list("ab")) == ["ab/c", "ab/d/e", "abc"]
    assert sorted(entry.key for entry in store.list("ab/")) == ["ab/c", "ab/d/e"]
    assert [entry.key for entry in store.list("ab/d")] == ["ab/d/e"]
    assert list(store.list("x/")) == []
    assert list(store.list("a/")) == []


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/a",
        "a/",
        "a//b",
        "..",
        "../events/1",
        "a/../../events/1",
        "a/..",
        "./a",
        "a/./b",
        "a\\..\\..\\b",
        "a\0b",
        "a\nb",
        "a\x7f",
        "a\udc80",
        "k" * (KEY_BYTES_MAX + 1),
    ],
)
def test_keys_that_could_leave_the_prefix_are_refused(subject: Subject, key: str) -> None:
    store = subject.store
    before = sum(subject.raw.counters.by_op().values())
    for call in (
        lambda: store.get(key),
        lambda: store.head(key),
        lambda: store.put(key, b""),
        lambda: store.copy(key, "b"),
        lambda: store.copy("b", key),
        lambda: store.delete(key),
        lambda: store.delete_many(["fine", key]),
        lambda: store.delete_many([("fine", "1"), (key, "1")]),
        lambda: list(store.list("", key)) if key else store.get(key),
        lambda: list(store.list(key)) if key and key != "a/" else store.get(key),
    ):
        with pytest.raises(PermanentError):
            call()
    assert sum(subject.raw.counters.by_op().values()) == before


def test_longest_key(subject: Subject) -> None:
    room = KEY_BYTES_MAX - len(subject.prefix)
    pieces = "/".join(["y" * 99] * 20)
    key = pieces[: room - 1].rstrip("/")
    key = key + "z" * (room - len(key))
    subject.store.put(key, b"long")
    assert [entry.key for entry in subject.store.list()] == [key]
    with pytest.raises(PermanentError, match="longer"):
        subject.store.put(key + "z", b"")


def test_siblings_are_never_touched(subject: Subject) -> None:
    raw, store = subject.raw, subject.store
    beside = subject.root + "conversations/u/c/"
    foreign = [beside + "events/1", beside + "workspace-2/x", beside + "workspace"]
    if subject.name == "local":
        foreign.pop()  # a tree can't hold a file and a directory of one name
    etags = {key: raw.put(key, b"theirs") for key in foreign}
    store.put("files/a", b"ours")
    assert [entry.key for entry in store.list()] == ["files/a"]
    store.probe_conditional()
    store.delete_many(["files/a"])
    assert {key: raw.head(key).etag for key in foreign} == etags
    assert sorted(e.key for e in raw.list(subject.root)) == sorted(foreign)


def test_attributes_that_headers_cannot_carry_are_refused(subject: Subject) -> None:
    store = subject.store
    for metadata in ({"A": "b"}, {"a b": ""}, {"a": "ü"}, {"a": "x\ny"}, {"a": " x"}, {"": "x"}):
        with pytest.raises(PermanentError):
            store.put("k", b"", metadata=metadata)
    with pytest.raises(PermanentError):
        store.put("k", b"", content_type="text/\nplain")
    with pytest.raises(PermanentError):
        store.put("k", b"", if_none_match=True, if_match="1")
    full = {"k": "v" * (METADATA_BYTES_MAX - 1)}
    store.put("k", b"", metadata=full)
    assert store.head("k").metadata == full
    with pytest.raises(PermanentError, match="limit"):
        store.put("k", b"", metadata={"kk": full["k"]})


def test_probe_finds_what_the_server_honours_and_leaves_nothing(subject: Subject) -> None:
    found = subject.store.probe_conditional()
    assert found == subject.honours
    assert found.safe
    assert list(subject.store.list(PROBE_PREFIX)) == []
    with ThreadPoolExecutor(4) as pool:
        assert subject.store.probe_conditional(pool) == found
    assert list(subject.store.list(PROBE_PREFIX)) == []


def test_a_probe_that_fails_leaves_nothing_either() -> None:
    store = ScopedStore(OneEtag(), PREFIX)
    with (
        ThreadPoolExecutor(4) as pool,
        pytest.raises(PermanentError, match="gives all objects one ETag"),
    ):
        store.probe_conditional(pool)
    assert list(store.list()) == []


class OneEtag(MemoryStore):
    """Gives all objects one ETag."""

    def put(self, key: str, body: Body, **more: Any) -> str:
        super().put(key, body, **more)
        return "0" * 32


def test_check_and_counters(subject: Subject) -> None:
    store = subject.store
    store.check()
    before = store.counters.by_op()
    store.put("k", b"1")
    store.get("k")
    store.head("k")
    list(store.list())
    store.copy("k", "k2")
    store.delete("k2")
    with pytest.raises(StoreError):
        store.get("none")
    sent, received = store.counters.sent_bytes, store.counters.received_bytes
    store.put("k", b"x" * 1000)
    assert store.get("k", 100, 50).data == b"x" * 50
    assert store.counters.sent_bytes == sent + 1000
    assert store.counters.received_bytes == received + 50
    after = store.counters.by_op()
    assert {op: after[op] - before[op] for op in after if op != "head"} == {
        "put": 2,
        "get": 3,
        "list": 1,
        "copy": 1,
        "delete": 1,
    }
    assert after["head"] - before["head"] >= 1
    assert any(code.startswith("get 2") for code in store.counters.by_code())


def test_folders_are_the_names_right_below(subject: Subject) -> None:
    raw, top = subject.raw, f"{subject.root}top/"
    for key in ("b/1", "b/2/3", "a b/x", "ü/deep/er", "c.d/1", "file"):
        raw.put(top + key, b"1")
    raw.put(f"{subject.root}topper/x", b"1")
    assert sorted(raw.folders(top)) == sorted(["a b", "b", "c.d", "ü"])
    assert list(raw.folders(f"{top}none/")) == []
    assert list(raw.folders(f"{top}b/")) == ["2"]
    raw.delete(f"{top}b/2/3")
    # SeaweedFS shows a folder for a while after the last object in it went.
    assert list(raw.folders(f"{top}b/")) == [] or subject.name == "seaweed"


def test_folders_of_more_than_a_page(subject: Subject) -> None:
    names = [f"n{number}" for number in range(8)]
    for name in names:
        for file in ("x", "y"):
            subject.raw.put(f"{subject.root}many/{name}/{file}", b"")
    with contextlib.ExitStack() as stack:
        if isinstance(subject.raw, S3Store):
            client = subject.raw._wire.client
            small = partial(client.list_objects_v2, MaxKeys=3)
            stack.enter_context(mock.patch.object(client, "list_objects_v2", small))
        assert list(subject.raw.folders(f"{subject.root}many/")) == names


def test_what_everything_shows_is_purged(subject: Subject) -> None:
    store = subject.store
    keys = ["files/a", "files/sub/b", "journal/x"]
    for key in keys:
        store.put(key, b"12")
    assert sorted(entry.key for entry in store.everything()) == keys
    assert store.purge([*keys, "files/never there"]) == []
    assert list(store.everything()) == []
    # What stores would take for another place is named to none.
    [up, back] = store.purge(["files/../../x", "files/a\\b"])
    assert (up.key, back.key) == ("files/../../x", "files/a\\b")
    assert "not a usable key" in up.error.detail
    reading = ScopedStore(subject.raw, subject.prefix, read_only=True)
    with pytest.raises(PermanentError, match="reading only"):
        reading.purge(["files/a"])


def test_directory_markers_are_purged_too(subject: Subject) -> None:
    if isinstance(subject.raw, S3Store):
        wire = subject.raw._wire.client
        wire.put_object(Bucket=subject.raw._bucket, Key=f"{subject.prefix}files/empty/", Body=b"")
    elif isinstance(subject.raw, LocalStore):
        subject.store.put("files/empty/x", b"")
        os.unlink("x", dir_fd=_directory(subject.raw, f"{subject.prefix}files/empty"))
    else:
        pytest.skip("a store in memory has no markers")
    assert [entry.key for entry in subject.store.everything()] == ["files/empty/"]
    assert list(subject.store.list()) == []
    assert subject.store.purge(["files/empty/"]) == []
    assert list(subject.store.everything()) == []


def _directory(raw: LocalStore, path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=raw._root)


def test_what_a_store_keeps(subject: Subject) -> None:
    assert subject.store.keeps() == Keeps()

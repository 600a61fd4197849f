"""Every operation of the S3 store under every fault of the way, before two servers."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import pytest

from s3ws_fs.core.config import StoreConfig
from s3ws_fs.core.errors import ConflictError, NotFoundError, PermanentError, TransientError
from s3ws_fs.store import s3_client
from s3ws_fs.store.body import FileSlice
from s3ws_fs.store.s3 import S3Store
from s3ws_fs.store.s3_client import ATTEMPTS_MAX, RetryPolicy
from s3ws_fs.store.scoped import ScopedStore
from tests.faults.conftest import LIMITS, MIB, PREFIX, RETRY, Way
from tests.support import proxy as faults
from tests.support.mounting import wait_until
from tests.support.proxy import Answer, Fault, FaultyProxy

pytestmark = pytest.mark.s3

BIG = bytes(range(256)) * (5 * MIB // 256) + b"more than one part"


@dataclass(frozen=True)
class Operation:
    """Something to do, the request of it that fails, and how it must look afterwards."""

    method: str
    containing: str
    act: Callable[[ScopedStore], object]
    check: Callable[[ScopedStore], None]


def _setup(store: ScopedStore) -> None:
    for name in ("old", "gone", "gone too"):
        store.put(name, name.encode() * 1000, metadata={"made": "before"})


def _holds(name: str, data: bytes) -> Callable[[ScopedStore], None]:
    def check(store: ScopedStore) -> None:
        assert store.get(name).data == data

    return check


def _lacks(*names: str) -> Callable[[ScopedStore], None]:
    def check(store: ScopedStore) -> None:
        for name in names:
            with pytest.raises(NotFoundError):
                store.head(name)

    return check


def _etag(store: ScopedStore, name: str) -> str:
    return store.head(name).etag


OPERATIONS = {
    "put": Operation("PUT", "", lambda s: s.put("new", b"1"), _holds("new", b"1")),
    "put must-create": Operation(
        "PUT", "", lambda s: s.put("new", b"1", if_none_match=True), _holds("new", b"1")
    ),
    "put if-match": Operation(
        "PUT", "", lambda s: s.put("old", b"2", if_match=_etag(s, "old")), _holds("old", b"2")
    ),
    "multipart create": Operation(
        "POST", "uploads", lambda s: s.put("new", BIG), _holds("new", BIG)
    ),
    "multipart part": Operation(
        "PUT", "partNumber=2", lambda s: s.put("new", BIG), _holds("new", BIG)
    ),
    "multipart complete": Operation(
        "POST", "uploadId=", lambda s: s.put("new", BIG), _holds("new", BIG)
    ),
    "conditional complete": Operation(
        "POST",
        "uploadId=",
        lambda s: s.put("new", BIG, if_none_match=True),
        _holds("new", BIG),
    ),
    "copy": Operation("PUT", "new", lambda s: s.copy("old", "new"), _holds("new", b"old" * 1000)),
    "copy must-create": Operation(
        "PUT",
        "new",
        lambda s: s.copy("old", "new", metadata={"a": "b"}, if_none_match=True),
        _holds("new", b"old" * 1000),
    ),
    "delete": Operation("DELETE", "", lambda s: s.delete("gone"), _lacks("gone")),
    "delete if-match": Operation(
        "DELETE", "", lambda s: s.delete("gone", if_match=_etag(s, "gone")), _lacks("gone")
    ),
    "delete many": Operation(
        "POST", "delete", lambda s: s.delete_many(["gone", "gone too"]), _lacks("gone", "gone too")
    ),
    "delete many if-match": Operation(
        "POST",
        "delete",
        lambda s: s.delete_many([(name, _etag(s, name)) for name in ("gone", "gone too")]),
        _lacks("gone", "gone too"),
    ),
    "get": Operation("GET", "", lambda s: _same(s.get("old").data, b"old" * 1000), lambda _: None),
    "get range": Operation(
        "GET", "", lambda s: _same(s.get("old", 3, 900).data, b"old" * 300), lambda _: None
    ),
    "head": Operation("HEAD", "", lambda s: _same(s.head("old").size_bytes, 3000), lambda _: None),
    "list": Operation(
        "GET",
        "list-type",
        lambda s: _same([e.key for e in s.list()], ["gone", "gone too", "old"]),
        lambda _: None,
    ),
}

TRANSIENT = {
    "500": faults.INTERNAL,
    "503": faults.SLOW_DOWN,
    "502 page": faults.page(502),
    "login page": faults.page(200),
    "login page with ETag": faults.page(200, headers='ETag: "abc"\r\n'),
    "garbage": faults.GARBAGE,
    "hang up": faults.HANG_UP,
    "request cut": faults.CUT_REQUEST,
    "answer lost": faults.LOST,
    "answer cut": faults.RESET_ANSWER,
    "answer short": faults.SHORT,
    "409": faults.error(409, "ConditionalRequestConflict"),
    "aborted": faults.error(409, "OperationAborted"),
    "timeout": faults.error(400, "RequestTimeout"),
}


def _same(found: object, wanted: object) -> None:
    assert found == wanted


NEEDS_NAMES = ("login page", "login page with ETag")
"""A page can be told from an answer only where the server names its requests, as moto does not."""


FOR_PARTS = ("500", "request cut", "answer lost", "answer cut", "409")
"""What large bodies go through: each costs as much as all others together."""


def faults_of(way: Way, method: str = "", *, has_parts: bool = False) -> dict[str, Fault]:
    """What this server, and an answer to this method, can tell."""
    unseen = NEEDS_NAMES if way.name == "moto" else ()
    if method == "HEAD":
        # Without a body there is no code: 400 may mean anything.
        unseen = (*unseen, "timeout")
    names = [name for name in (FOR_PARTS if has_parts else TRANSIENT) if name not in unseen]
    return {name: TRANSIENT[name] for name in names}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_one_fault_is_not_noticed(
    way: Way, store: ScopedStore, proxy: FaultyProxy, operation: str
) -> None:
    what = OPERATIONS[operation]
    if way.name == "moto" and operation == "delete many if-match":
        # Emulated there: a HEAD and a DELETE for each.
        what = replace(what, method="DELETE", containing="")
    has_parts = "multipart" in operation or "complete" in operation
    for name, fault in faults_of(way, what.method, has_parts=has_parts).items():
        place = ScopedStore(way.through, f"{store.prefix}{name.replace(' ', '-')}/")
        direct = ScopedStore(way.beside, place.prefix)
        _setup(direct)
        proxy.arm(fault, what.method, what.containing)
        result = what.act(place)
        assert proxy.armed == 0, f"{name} did not strike"
        assert result is None or result == [] or isinstance(result, str), name
        what.check(direct)


@pytest.mark.parametrize("name", TRANSIENT)
def test_attempts_are_counted_and_bounded(
    way: Way, store: ScopedStore, direct: ScopedStore, proxy: FaultyProxy, name: str
) -> None:
    """What fails for ever fails after exactly so many requests: botocore adds none of its own."""
    fault = faults_of(way).get(name)
    if fault is None:
        return
    direct.put("old", b"1")
    acts: list[Callable[[], object]] = [
        lambda: store.put("new", b"1"),
        lambda: store.get("old"),
        lambda: store.delete("old"),
        lambda: list(store.list()),
    ]
    for act in acts:
        proxy.log.clear()
        proxy.weather(fault)
        with pytest.raises(TransientError):
            act()
        proxy.heal()
        assert len(proxy.log) == RETRY.attempts_max == ATTEMPTS_MAX
        direct.put("old", b"1")


def test_the_longest_silence_of_a_request_is_what_it_says() -> None:
    policy = RetryPolicy()
    bounds_s = [policy.bound_s(n, throttled=True) for n in range(1, policy.attempts_max)]
    assert policy.silence_s == 4 * (5.0 + 30.0) + sum(bounds_s)
    assert policy.silence_s < 150.0
    for failures in range(1, 20):
        waits_s = {policy.wait_s(failures) for _ in range(50)}
        assert len(waits_s) == 50, "no jitter"
        assert 0 < min(waits_s) <= max(waits_s) <= policy.backoff_max_s
        throttled_s = policy.bound_s(failures, throttled=True)
        assert policy.bound_s(failures) <= throttled_s <= policy.backoff_max_s


def test_a_spoilt_body_is_told_by_its_range_or_passed_on(
    store: ScopedStore, direct: ScopedStore, proxy: FaultyProxy
) -> None:
    """A shifted range is seen here; a flipped bit is for the digests of the layer above."""
    direct.put("old", b"0123456789" * 100)
    proxy.arm(faults.WRONG_RANGE, "GET")
    assert store.get("old", 10, 500).data == b"0123456789" * 50
    proxy.weather(faults.WRONG_RANGE)
    with pytest.raises(TransientError, match="another range"):
        store.get("old", 10, 500)
    proxy.heal()
    proxy.arm(faults.CORRUPT, "GET")
    assert store.get("old", 10, 500).data != b"0123456789" * 50
    # To the end and beyond it a range is cut short, which is no fault.
    assert store.get("old", 990, 100).data == b"0123456789"
    assert store.get("old", 5).data == (b"0123456789" * 100)[5:]


def test_a_weak_etag_is_that_of_the_object(
    store: ScopedStore, direct: ScopedStore, proxy: FaultyProxy
) -> None:
    etag = direct.put("old", b"1")
    proxy.arm(Fault("weak", spoil=lambda answer: answer.having("etag", f'W/"{etag}"')), "HEAD")
    assert store.head("old").etag == etag
    store.put("old", b"2", if_match=etag)


def test_a_wrong_etag_in_an_answer_is_not_kept(
    store: ScopedStore, direct: ScopedStore, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.arm(faults.WRONG_ETAG, "PUT")
    etag = store.put("k", b"1")
    assert etag == direct.head("k").etag
    assert store.put("k", b"2", if_match=etag) == direct.head("k").etag
    # A server whose ETags are of another kind is believed, and looked at once.
    proxy.log.clear()
    monkeypatch.setattr("s3ws_fs.store.s3.is_md5_of", lambda *_: False)
    for name in "abc":
        assert store.put(name, b"1") == direct.head(name).etag
    assert proxy.count("HEAD") == 2
    assert proxy.count("GET") == 1


def test_a_body_that_was_changed_on_the_way_is_no_success(
    way: Way, store: ScopedStore, direct: ScopedStore, proxy: FaultyProxy
) -> None:
    """The server has other bytes and says so in its ETag."""

    def other(answer: Answer) -> Answer:
        direct.put("k", b"other bytes")
        return answer.having("etag", f'"{direct.head("k").etag}"')

    proxy.arm(Fault("other", spoil=other), "PUT")
    with pytest.raises(TransientError, match="not what was sent"):
        store.put("k", b"my bytes")
    store.put("k", b"my bytes")
    assert direct.get("k").data == b"my bytes"


def test_a_request_that_arrives_late_is_not_taken_for_another_writer(
    store: ScopedStore, direct: ScopedStore, proxy: FaultyProxy
) -> None:
    """Lost, repeated, refused since the first one got there: our own bytes stand there."""
    proxy.arm(faults.LOST, "PUT", "seg")
    etag = store.put("seg", b"mine", if_none_match=True)
    assert direct.head("seg").etag == etag
    # The repetition gets 409 first, as AWS says while the first is under way.
    proxy.arm(faults.LOST, "PUT", "seg2")
    proxy.arm(faults.error(409, "ConditionalRequestConflict"), "PUT", "seg2")
    store.put("seg2", b"mine", if_none_match=True)
    # And what somebody else put in between is not ours.
    direct.put("seg3", b"theirs")
    proxy.arm(faults.error(409, "ConditionalRequestConflict"), "PUT", "seg3")
    with pytest.raises(ConflictError):
        store.put("seg3", b"mine", if_none_match=True)


REFUSALS = {
    "InvalidAccessKeyId": (403, "does not know this access key"),
    "SignatureDoesNotMatch": (403, "secret key is wrong"),
    "AccessDenied": (403, "not allowed"),
    "ExpiredToken": (400, "session token has expired"),
    "InvalidToken": (400, "session token is not valid"),
    "RequestTimeTooSkewed": (403, "clock of this machine"),
    "NoSuchBucket": (404, "the bucket does not exist"),
    "AuthorizationHeaderMalformed": (400, "another region"),
    "KeyTooLongError": (400, "does not take a key"),
    "QuotaExceeded": (403, "QuotaExceeded"),
    "MethodNotAllowed": (405, "MethodNotAllowed"),
}


@pytest.mark.parametrize("code", REFUSALS)
def test_a_refusal_says_what_is_wrong_and_is_not_repeated(
    store: ScopedStore, direct: ScopedStore, proxy: FaultyProxy, code: str
) -> None:
    status, words = REFUSALS[code]
    direct.put("old", b"1")
    for act in (lambda: store.put("new", b"1"), lambda: store.get("old"), store.check):
        proxy.log.clear()
        proxy.weather(faults.error(status, code))
        with pytest.raises(PermanentError) as caught:
            act()
        proxy.heal()
        assert words in str(caught.value)
        assert len(proxy.log) == 1


@pytest.mark.parametrize("status", [301, 302, 307])
def test_a_redirect_is_an_error_in_words_and_not_followed(
    store: ScopedStore, proxy: FaultyProxy, status: int
) -> None:
    headers = "Location: http://127.0.0.1:1/elsewhere\r\nx-amz-bucket-region: eu-central-1\r\n"
    proxy.weather(faults.page(status, headers=headers))
    with pytest.raises((PermanentError, TransientError)) as caught:
        store.put("new", b"1")
    assert "elsewhere" not in str(caught.value)
    assert len(proxy.log) <= 2 * ATTEMPTS_MAX


def test_what_uploads_left_is_given_up_below_the_prefix_only(
    way: Way, store: ScopedStore, direct: ScopedStore, proxy: FaultyProxy
) -> None:
    other = ScopedStore(way.beside, f"t{uuid4().hex}/{PREFIX}")
    client = way.beside._wire.client
    bucket = way.beside._bucket
    kept = client.create_multipart_upload(Bucket=bucket, Key=other.prefix + "files/theirs")
    near = client.create_multipart_upload(
        Bucket=bucket, Key=store.prefix.removesuffix("workspace/") + "events/1"
    )
    # The creation's answer is lost: an upload is left that nobody knows.
    proxy.lose_answer("POST", "uploads")
    store.put("files/big", BIG)
    # The store goes away in mid-upload: it can't be aborted.
    proxy.arm(faults.HANG_UP, "PUT", "partNumber=2", times=faults.EVERY)
    proxy.arm(faults.HANG_UP, "DELETE", times=faults.EVERY)
    with pytest.raises(TransientError):
        store.put("files/other", BIG)
    assert proxy.count("DELETE") == 1, "a store that is away is asked to abort once, not for long"
    proxy.heal()
    if way.name != "moto":
        # (moto says of every upload that it was begun in 2010.)
        assert store.abort_uploads(3600.0) == 0, "these are too young"
    assert store.abort_uploads(0.0) == 2
    assert store.abort_uploads(0.0) == 0
    left = {
        item["UploadId"] for item in client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    }
    assert {kept["UploadId"], near["UploadId"]} <= left
    assert direct.get("files/big").data == BIG
    for item in (kept, near):
        client.abort_multipart_upload(Bucket=bucket, Key=item["Key"], UploadId=item["UploadId"])


@pytest.mark.parametrize("refusal", ["InvalidAccessKeyId", "ExpiredToken"])
def test_a_changed_credentials_file_is_picked_up(
    way: Way,
    proxy: FaultyProxy,
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refusal: str,
) -> None:
    path = tmp_path / "credentials"
    good, secret = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]

    def write(key: str) -> None:
        path.write_text(f"[default]\naws_access_key_id={key}\naws_secret_access_key={secret}\n")

    config = StoreConfig("s3", way.beside._bucket, endpoint_url=proxy.url)
    with monkeypatch.context() as patch:
        write("old-key")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.delenv("AWS_SECRET_ACCESS_KEY")
        patch.setattr(s3_client, "RENEW_S", 0.0)
        raw = S3Store(config, retry=RETRY, limits=LIMITS)
        store = ScopedStore(raw, place)
        proxy.weather(faults.error(403, refusal))
        with pytest.raises(PermanentError):
            store.put("k", b"1")
        assert len(proxy.log) == 1, "the same credentials are not tried again"
        proxy.heal()
        proxy.log.clear()
        proxy.arm(faults.error(403, refusal))
        write(good)
        store.put("k", b"1")
        assert [seen.fault for seen in proxy.log] == [f"403 {refusal}", ""]
        path.unlink()
        proxy.arm(faults.error(403, refusal))
        with pytest.raises(PermanentError):
            store.put("k", b"2")
        raw.close()
    assert ScopedStore(way.beside, place).get("k").data == b"1"


def test_what_waits_is_told(
    store: ScopedStore, direct: ScopedStore, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s3ws_fs.store.base.ANSWER_S", 0.0)
    direct.put("old", b"1")
    assert store.waits.overdue() is None
    gate = threading.Event()
    proxy.arm(faults.INTERNAL)
    proxy.arm(faults.held(gate))
    with ThreadPoolExecutor(1) as pool:
        got = pool.submit(store.get, "old")
        wait_until(lambda: (late := store.waits.overdue()) is not None and late.failures == 1)
        late = store.waits.overdue()
        assert late is not None
        assert late.op == "get"
        assert late.key.endswith("old")
        assert "InternalError" in late.error
        gate.set()
        assert got.result().data == b"1"
    assert store.waits.overdue() is None


@pytest.mark.parametrize("name", TRANSIENT)
def test_a_file_that_is_put_again_is_put_whole(
    way: Way, store: ScopedStore, direct: ScopedStore, proxy: FaultyProxy, tmp_path: Path, name: str
) -> None:
    """A body that is read from a file has a position, which the failed attempt moved."""
    fault = faults_of(way).get(name)
    if fault is None:
        return
    path = tmp_path / "file"
    path.write_bytes(b"before" + b"0123456789" * 30_000 + b"after")
    with path.open("rb") as file:
        body = FileSlice(file.fileno(), 6, 300_000)
        for count in (1, 2, 3):
            proxy.arm(fault, "PUT", times=count)
            store.put(f"k{count}", body, if_none_match=True)
            assert direct.get(f"k{count}").data == b"0123456789" * 30_000

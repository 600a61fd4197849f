"""What only the S3 store does: errors of a real server and a real network, retries, factory."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from s3ws_fs.core.config import StoreConfig
from s3ws_fs.core.errors import ConflictError, PermanentError, StoreError, TransientError
from s3ws_fs.store import s3_http
from s3ws_fs.store.base import Conditional, Keeps
from s3ws_fs.store.factory import open_store
from s3ws_fs.store.s3 import S3Store
from s3ws_fs.store.s3_client import RetryPolicy
from s3ws_fs.store.s3_multipart import PARTS_MAX, MultipartLimits, part_ranges
from s3ws_fs.store.scoped import ScopedStore
from tests.store.conftest import LIMITS, MIB, PREFIX, RETRY
from tests.support.proxy import FaultyProxy, faulty_proxy
from tests.support.recorder import recording
from tests.support.seaweed import START_TRIES, Seaweed, free_ports, running_seaweed

pytestmark = pytest.mark.s3

SLOW_DOWN = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\n\r\n"
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce</Message></Error>"
)
HTML = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<html>login</html>"


@pytest.fixture
def proxy(seaweed: Seaweed) -> Iterator[FaultyProxy]:
    with faulty_proxy(seaweed.endpoint_url) as found:
        yield found


@pytest.fixture
def store(seaweed_config: StoreConfig, proxy: FaultyProxy) -> Iterator[ScopedStore]:
    """A store whose requests go through the proxy."""
    config = replace(seaweed_config, endpoint_url=proxy.url)
    raw = S3Store(config, retry=RETRY, limits=LIMITS)
    yield ScopedStore(raw, f"t{uuid4().hex}/{PREFIX}")
    raw.close()


def failing(config: StoreConfig) -> StoreError:
    """The error that the mount's first look at the store gives."""
    raw = S3Store(config, retry=RetryPolicy(attempts_max=1))
    try:
        with pytest.raises(StoreError) as caught:
            ScopedStore(raw, PREFIX).check()
    finally:
        raw.close()
    assert "s3ws-test-secret" not in str(caught.value)
    return caught.value


def test_missing_bucket(seaweed_config: StoreConfig) -> None:
    error = failing(replace(seaweed_config, bucket="no-such-bucket"))
    assert isinstance(error, PermanentError)
    assert "bucket does not exist" in error.detail


@pytest.mark.parametrize(
    ("name", "expected"),
    [("AWS_ACCESS_KEY_ID", "access key"), ("AWS_SECRET_ACCESS_KEY", "secret key")],
)
def test_wrong_credentials(
    seaweed_config: StoreConfig, monkeypatch: pytest.MonkeyPatch, name: str, expected: str
) -> None:
    monkeypatch.setenv(name, "not-the-right-value")
    error = failing(seaweed_config)
    assert isinstance(error, PermanentError)
    assert expected in error.detail
    assert "not-the-right-value" not in str(error)


def test_no_credentials(seaweed_config: StoreConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    error = failing(seaweed_config)
    assert isinstance(error, PermanentError)
    assert "AWS_ACCESS_KEY_ID" in error.detail


def test_unknown_profile(seaweed_config: StoreConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(PermanentError, match="nobody"):
        S3Store(seaweed_config)


def test_nobody_listens(seaweed_config: StoreConfig) -> None:
    error = failing(replace(seaweed_config, endpoint_url=f"http://127.0.0.1:{free_ports(1)[0]}"))
    assert isinstance(error, TransientError)
    assert "reached" in error.detail


@pytest.mark.parametrize(
    ("size_bytes", "is_asked"),
    [(0, False), (s3_http.EXPECT_BYTES_MIN, False), (s3_http.EXPECT_BYTES_MIN + 1, True)],
)
def test_a_small_body_does_not_wait_for_100_continue(
    seaweed_config: StoreConfig, seaweed: Seaweed, size_bytes: int, is_asked: bool
) -> None:
    with recording(seaweed.endpoint_url) as recorder:
        raw = S3Store(replace(seaweed_config, endpoint_url=recorder.url), retry=RETRY)
        store = ScopedStore(raw, f"t{uuid4().hex}/{PREFIX}")
        try:
            store.put("a", bytes(size_bytes), if_none_match=True)
            with pytest.raises(ConflictError):
                store.put("a", bytes(size_bytes), if_none_match=True)
        finally:
            raw.close()
        assert (b"100-continue" in recorder.sent()) is is_asked
    assert seaweed_object_bytes(seaweed_config, store.prefix + "a") == size_bytes


def seaweed_object_bytes(config: StoreConfig, key: str) -> int:
    """The size of what stands there, asked of the server itself."""
    raw = S3Store(config, retry=RETRY)
    try:
        return raw.head(key).size_bytes
    finally:
        raw.close()


def test_not_an_s3_server(seaweed_config: StoreConfig, proxy: FaultyProxy) -> None:
    proxy.answer("GET", HTML)
    error = failing(replace(seaweed_config, endpoint_url=proxy.url))
    assert "endpoint" in error.detail


def test_a_server_that_hangs_ends_in_a_timeout(
    seaweed_config: StoreConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_http, "READ_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        error = failing(replace(seaweed_config, endpoint_url=url))
    assert isinstance(error, TransientError)


EMPTY_LISTING = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nConnection: close\r\n\r\n"
    b"<?xml version='1.0'?><ListBucketResult><Name>b</Name><IsTruncated>false</IsTruncated>"
    b"</ListBucketResult>"
)


@contextlib.contextmanager
def tls_server(directory: Path) -> Iterator[tuple[str, Path]]:
    """A server with a certificate of its own that answers one request. Yields URL and CA file."""
    key, cert = directory / "key.pem", directory / "cert.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(cert)]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *subject, *files],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:

        def answer() -> None:
            with contextlib.suppress(OSError):
                client, _ = listener.accept()
                with client, context.wrap_socket(client, server_side=True) as tls:
                    tls.recv(65536)
                    tls.sendall(EMPTY_LISTING)

        served = pool.submit(answer)
        yield f"https://127.0.0.1:{listener.getsockname()[1]}", cert
        listener.shutdown(socket.SHUT_RDWR)
        served.result()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl for a certificate")
@pytest.mark.parametrize("how", ["untrusted", "ca_bundle", "unverified"])
def test_tls(seaweed_config: StoreConfig, tmp_path: Path, how: str) -> None:
    with tls_server(tmp_path) as (url, cert):
        config = replace(
            seaweed_config,
            endpoint_url=url,
            verify_tls=how != "unverified",
            ca_bundle=str(cert) if how == "ca_bundle" else None,
        )
        if how == "untrusted":
            error = failing(config)
            assert isinstance(error, PermanentError)
            assert "certificate" in error.detail
            return
        raw = S3Store(config, retry=RetryPolicy(attempts_max=1))
        raw.check()
        raw.close()


def test_throttling_is_retried_and_counted(store: ScopedStore, proxy: FaultyProxy) -> None:
    proxy.answer("PUT", SLOW_DOWN)
    store.put("k", b"1")
    assert store.counters.by_code() == {"put 200": 1, "put SlowDown": 1}
    for _ in range(RETRY.attempts_max):
        proxy.answer("PUT", SLOW_DOWN)
    with pytest.raises(TransientError, match="SlowDown"):
        store.put("k", b"2")
    assert proxy.armed == 0
    assert store.get("k").data == b"1"


def test_a_lost_answer_is_not_taken_for_another_writer(
    store: ScopedStore, proxy: FaultyProxy
) -> None:
    proxy.lose_answer("PUT")
    etag = store.put("seg", b"mine", metadata={"a": "b"}, if_none_match=True)
    proxy.lose_answer("PUT")
    etag = store.put("seg", b"mine again", if_match=etag)
    assert store.head("seg").etag == etag
    assert proxy.armed == 0


def test_a_lost_answer_and_another_writer(store: ScopedStore, proxy: FaultyProxy) -> None:
    store.put("seg", b"them", metadata={"a": "b"})
    for body, metadata in ((b"mine", {"a": "b"}), (b"them", {"a": "c"}), (b"longer", {"a": "b"})):
        proxy.answer("PUT", SLOW_DOWN)
        with pytest.raises(ConflictError):
            store.put("seg", body, metadata=metadata, if_none_match=True)
    assert proxy.armed == 0


def test_a_lost_answer_to_a_completion(store: ScopedStore, proxy: FaultyProxy) -> None:
    data = os.urandom(MIB) * 9
    proxy.lose_answer("POST", "uploads")  # the creation: it is repeated
    proxy.lose_answer("PUT", "partNumber=2")
    proxy.lose_answer("POST", "uploadId=")
    etag = store.put("big", data, if_none_match=True)
    assert proxy.armed == 0
    assert store.get("big", if_match=etag).data == data
    proxy.lose_answer("POST", "uploadId=")
    new = store.put("big", data + b"x", if_match=etag)
    assert proxy.armed == 0
    assert store.get("big", if_match=new).data == data + b"x"


def test_a_lost_answer_to_a_copy(store: ScopedStore, proxy: FaultyProxy) -> None:
    etag = store.put("a", b"1", content_type="text/x-c")
    proxy.lose_answer("PUT")
    store.copy("a", "b", src_if_match=etag, if_none_match=True)
    proxy.lose_answer("PUT")
    store.copy("a", "c", metadata={"k": "v"}, if_none_match=True)
    store.put("d", b"other")
    proxy.answer("PUT", SLOW_DOWN)
    with pytest.raises(ConflictError):
        store.copy("a", "d", if_none_match=True)


def test_a_get_that_breaks_off_is_repeated(store: ScopedStore, proxy: FaultyProxy) -> None:
    store.put("k", b"0123456789")
    proxy.answer("GET", b'HTTP/1.1 200 OK\r\nContent-Length: 10\r\nETag: "x"\r\n\r\n0123')
    assert store.get("k").data == b"0123456789"
    # A server that ignores Range.
    proxy.answer("GET", b'HTTP/1.1 200 OK\r\nContent-Length: 10\r\nETag: "x"\r\n\r\n0123456789')
    assert store.get("k", 2, 3).data == b"234"


def test_conditions_are_emulated_when_the_server_ignores_them(store: ScopedStore) -> None:
    store.assume(Conditional(False, False, False, False, False, False))
    etag = store.put("k", b"1", if_none_match=True)
    with pytest.raises(ConflictError):
        store.put("k", b"2", if_none_match=True)
    with pytest.raises(ConflictError):
        store.put("k", b"2", if_match="00")
    with pytest.raises(ConflictError):
        store.copy("k", "k2", src_if_match="00")
    with pytest.raises(ConflictError):
        store.delete("k", if_match="00")
    assert [failure.key for failure in store.delete_many([("k", "00"), ("none", "00")])] == ["k"]
    store.copy("k", "k2", src_if_match=etag, if_none_match=True)
    with pytest.raises(ConflictError):
        store.copy("k", "k2", if_none_match=True)
    assert store.delete_many([("k", etag), "k2"]) == []


def test_one_put_carries_a_condition_to_its_limit(store: ScopedStore) -> None:
    store.put("k", bytes(LIMITS.conditional_bytes), if_none_match=True)
    assert store.counters.by_op()["put"] == 1
    store.put("k2", bytes(LIMITS.multipart_bytes))
    assert store.counters.by_op()["put"] == 2
    store.put("k3", bytes(LIMITS.multipart_bytes + 1))
    assert store.counters.by_op()["put"] == 2 + 4  # create, two parts, complete


def test_an_upload_that_failed_is_aborted(store: ScopedStore, seaweed: Seaweed) -> None:
    store.put("k", b"1")
    with pytest.raises(PermanentError), open(__file__, "rb") as file:
        from s3ws_fs.store.body import FileSlice

        store.put("k", FileSlice(file.fileno(), 0, 9 * MIB))
    client = seaweed.client()
    uploads = client.list_multipart_uploads(Bucket=seaweed.bucket, Prefix=store.prefix)
    client.close()
    assert uploads.get("Uploads", []) == []
    assert store.get("k").data == b"1"


def test_parallelism_is_bounded(seaweed_config: StoreConfig, proxy: FaultyProxy) -> None:
    config = replace(seaweed_config, max_parallel=2, endpoint_url=proxy.url)
    raw = S3Store(config, retry=RETRY, limits=LIMITS)
    scoped = ScopedStore(raw, f"t{uuid4().hex}/{PREFIX}")
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda n: scoped.put(f"k{n}", bytes(6 * MIB)), range(4)))
    raw.close()
    assert 1 <= proxy.accepted <= 2


@pytest.mark.parametrize("size", [1, 5 * MIB, 5 * MIB + 1, 11 * MIB, 5 << 40])
def test_part_ranges_cover_all(size: int) -> None:
    ranges = part_ranges(size, 5 * MIB)
    assert len(ranges) <= PARTS_MAX
    assert [number for number, _, _ in ranges] == list(range(1, len(ranges) + 1))
    end = 0
    for _, offset, length in ranges:
        assert offset == end and length > 0
        end += length
    assert end == size
    assert MultipartLimits().part_bytes >= 5 * MIB


def test_retry_waits_are_bounded() -> None:
    policy = RetryPolicy(9, 0.1, 2.0)
    for failures in range(1, 12):
        assert 0 < policy.wait_s(failures) <= 2.0


@pytest.mark.slow
def test_a_server_that_goes_and_comes_back(tmp_path: Path, aws_env: None) -> None:
    with running_seaweed(tmp_path) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
        patch.setenv("AWS_ENDPOINT_URL_S3", server.endpoint_url)
        # The endpoint comes from the environment, as with AWS's own tools.
        scoped = open_store(StoreConfig("s3", server.bucket), PREFIX)
        etag = scoped.put("k", b"1", metadata={"a": "b"})
        server.stop()
        with pytest.raises(TransientError):
            scoped.get("k")
        server.start()
        assert scoped.get("k", if_match=etag).data == b"1"
        assert scoped.head("k").metadata == {"a": "b"}
        scoped.close()


def test_boto3_is_loaded_for_s3_only() -> None:
    code = (
        "import sys, tempfile; from s3ws_fs.core.config import StoreConfig;"
        "from s3ws_fs.store.factory import open_store;"
        "open_store(StoreConfig('local', path=tempfile.mkdtemp()), 'a/').check();"
        "sys.exit('boto3' in sys.modules or 'botocore' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_bucket_with_versioning_says_what_it_keeps(
    seaweed: Seaweed, seaweed_config: StoreConfig
) -> None:
    client = seaweed.client()
    name = f"versions-{uuid4().hex[:8]}"
    client.create_bucket(Bucket=name)
    store = S3Store(replace(seaweed_config, bucket=name))
    try:
        assert store.keeps() == Keeps("off", "off")
        for status in ("Enabled", "Suspended"):
            client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": status})
            assert store.keeps() == Keeps(status.lower(), "off")
        client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        store.put("files/a", b"1")
        assert store.purge([entry.key for entry in store.everything()]) == []
        assert list(store.everything()) == []
        kept = client.list_object_versions(Bucket=name)
        assert [version["Key"] for version in kept["Versions"]] == ["files/a"]
    finally:
        store.close()
        client.close()


def test_a_server_whose_port_was_taken_meanwhile_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a program of another test, say: the fixture has others then."""
    tried: list[Seaweed] = []

    def start(server: Seaweed) -> None:
        (server.directory / "data").mkdir()
        tried.append(server)
        if len(tried) != START_TRIES:
            raise RuntimeError("weed ended at start:\naddress in use")

    monkeypatch.setattr(Seaweed, "start", start)
    with running_seaweed(tmp_path) as found:
        assert found is tried[-1]
    assert len({server.endpoint_url for server in tried}) == START_TRIES
    with pytest.raises(RuntimeError, match="in use"), running_seaweed():
        pass

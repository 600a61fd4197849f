"""The client without boto3's layers: each operation against boto3's, and when it is used at all."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    ReadTimeoutError,
    SSLError,
)

from s3ws_fs.core.config import StoreConfig
from s3ws_fs.core.errors import PermanentError, TransientError
from s3ws_fs.store import s3_http
from s3ws_fs.store.s3_client import open_client
from s3ws_fs.store.s3_errors import GarbledError
from s3ws_fs.store.s3_plain import PlainClient, plain_keys
from s3ws_fs.store.s3_session import make_client
from tests.support.mounting import REPOSITORY
from tests.support.recorder import recording
from tests.support.seaweed import Seaweed, free_ports

ENVIRON = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s", "HOME": "/nonexistent"}
CONFIG = StoreConfig("s3", "bucket", endpoint_url="http://store.example:9000")
META = {"mode": "33188", "two-words": "a  b"}


@pytest.fixture
def both(seaweed_config: StoreConfig) -> Iterator[tuple[PlainClient, Any]]:
    """Ours, which must not fall back on boto3's, and boto3's."""
    keys = plain_keys(seaweed_config, os.environ)
    assert keys is not None
    plain = PlainClient(seaweed_config, keys, lambda: pytest.fail("not one of ours"))
    theirs, _ = make_client(seaweed_config)
    yield plain, theirs
    plain.close()
    theirs.close()


def _shown(answer: Any) -> Any:
    """What can be compared of an answer."""
    if isinstance(answer, dict):
        left_out = ("ResponseMetadata", "AcceptRanges", "Body", "EncodingType")
        return {name: _shown(value) for name, value in answer.items() if name not in left_out}
    if isinstance(answer, list):
        return [_shown(item) for item in answer]
    return answer


def _outcome(client: Any, op: str, arguments: dict[str, Any]) -> tuple[Any, bytes, int]:
    """What an operation answers or raises, its body, and its status."""
    try:
        answer = getattr(client, op)(**arguments)
    except ClientError as exc:
        response: Any = exc.response
        code, status = response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]
        return (code, response["Error"]["Message"]), b"", status
    body = answer["Body"].read() if "Body" in answer else b""
    return answer, body, answer["ResponseMetadata"]["HTTPStatusCode"]


KEYS = ["plain", "a b+c%20", "ünï/ß", "q?x=1&y#z", "tilde~-_.", "deep/er//x"]


@pytest.mark.s3
@pytest.mark.parametrize("key", KEYS)
def test_each_operation_answers_as_boto3s(
    both: tuple[PlainClient, Any], seaweed: Seaweed, key: str
) -> None:
    plain, theirs = both
    top = uuid4().hex
    at = {"Bucket": seaweed.bucket, "Key": f"{top}/{key}"}
    put: dict[str, Any] = {
        **at,
        "Body": b"some bytes",
        "ContentType": "text/x-python",
        "Metadata": META,
    }
    etag = theirs.put_object(**put)["ETag"]
    assert plain.put_object(**put)["ETag"] == etag
    for op, more in (
        ("put_object", {**put, "IfNoneMatch": "*"}),
        ("put_object", {**put, "IfMatch": etag}),
        ("put_object", {**put, "IfMatch": '"0"'}),
        ("get_object", at),
        ("get_object", {**at, "Range": "bytes=2-4"}),
        ("get_object", {**at, "Range": "bytes=5-"}),
        ("get_object", {**at, "Range": "bytes=100-"}),
        ("get_object", {**at, "IfMatch": '"0"'}),
        ("get_object", {**at, "Key": f"{top}/absent"}),
        ("head_object", at),
        ("head_object", {**at, "Key": f"{top}/absent"}),
        ("list_objects_v2", {"Bucket": seaweed.bucket, "Prefix": f"{top}/", "MaxKeys": 1}),
        ("list_objects_v2", {"Bucket": seaweed.bucket, "Prefix": f"{top}/", "Delimiter": "/"}),
        ("list_objects_v2", {"Bucket": seaweed.bucket, "Prefix": f"{top}/absent"}),
        ("list_objects_v2", {"Bucket": "no-such-bucket", "Prefix": ""}),
        ("copy_object", {**at, "Key": f"{top}/copy", "CopySource": at}),
        ("copy_object", {**at, "CopySource": {**at, "Key": f"{top}/absent"}}),
        (
            "copy_object",
            {**at, "Key": f"{top}/copy", "CopySource": at, "CopySourceIfMatch": '"0"'},
        ),
        ("delete_object", {**at, "IfMatch": '"0"'}),
        ("delete_object", {**at, "Key": f"{top}/absent"}),
    ):
        ours, our_body, our_status = _outcome(plain, op, more)
        other, other_body, other_status = _outcome(theirs, op, more)
        assert (our_status, our_body) == (other_status, other_body), (op, more)
        if isinstance(ours, tuple):
            assert ours == other, (op, more)
            continue
        for name, value in _shown(ours).items():
            if name in ("Contents", "CommonPrefixes") and not value:
                continue
            if name == "CopyObjectResult":
                assert value["ETag"] == other[name]["ETag"]
            elif name == "Contents":
                for item, expected in zip(value, other[name], strict=True):
                    for member in ("Key", "Size", "ETag", "LastModified"):
                        assert item[member] == expected[member], (op, more)
            else:
                assert value == _shown(other)[name], (op, more, name)
    deleted: Any = {"Objects": [{"Key": at["Key"], "ETag": '"0"'}, {"Key": f"{top}/copy"}]}
    ours, _, _ = _outcome(plain, "delete_objects", {"Bucket": seaweed.bucket, "Delete": deleted})
    assert [error["Key"] for error in ours["Errors"]] == [at["Key"]]
    assert ours["Errors"][0]["Code"] == "PreconditionFailed"
    deleted = {"Objects": [{"Key": at["Key"], "ETag": etag}], "Quiet": True}
    ours, _, _ = _outcome(plain, "delete_objects", {"Bucket": seaweed.bucket, "Delete": deleted})
    assert ours["Errors"] == []
    left = theirs.list_objects_v2(Bucket=seaweed.bucket, Prefix=f"{top}/")
    assert left["KeyCount"] == 0


@pytest.mark.s3
def test_a_listing_goes_on_where_it_stopped(
    both: tuple[PlainClient, Any], seaweed: Seaweed
) -> None:
    plain, _ = both
    top = uuid4().hex
    for name in "abc":
        plain.put_object(Bucket=seaweed.bucket, Key=f"{top}/{name}", Body=b"")
    ask = {"Bucket": seaweed.bucket, "Prefix": f"{top}/", "MaxKeys": 2}
    first = plain.list_objects_v2(**ask)
    assert first["IsTruncated"] is True
    rest = plain.list_objects_v2(**ask, ContinuationToken=first["NextContinuationToken"])
    assert rest["IsTruncated"] is False
    keys = [item["Key"] for page in (first, rest) for item in page["Contents"]]
    assert keys == [f"{top}/{name}" for name in "abc"]
    after = plain.list_objects_v2(**ask, StartAfter=f"{top}/b")
    assert [item["Key"] for item in after["Contents"]] == [f"{top}/c"]


@pytest.mark.s3
def test_connections_are_kept_and_other_methods_are_boto3s(
    seaweed_config: StoreConfig, seaweed: Seaweed
) -> None:
    with recording(seaweed.endpoint_url) as recorder:
        client, _ = open_client(replace(seaweed_config, endpoint_url=recorder.url))
        assert isinstance(client, PlainClient)
        try:
            for _ in range(5):
                client.list_objects_v2(Bucket=seaweed.bucket, Prefix="none/")
            assert len(client._endpoint._idle) == 1
            upload = {"Bucket": seaweed.bucket, "Key": f"{uuid4().hex}/x"}
            made = client.create_multipart_upload(**upload)
            client.abort_multipart_upload(**upload, UploadId=made["UploadId"])
        finally:
            client.close()
        assert recorder.sent().count(b"GET /") == 5
    assert client._endpoint._idle == []


@pytest.mark.s3
def test_a_mount_needs_no_boto3(seaweed_config: StoreConfig) -> None:
    script = (
        "import sys; from s3ws_fs.core.config import StoreConfig\n"
        "from s3ws_fs.store.factory import open_store\n"
        "store = open_store(StoreConfig('s3', sys.argv[1], endpoint_url=sys.argv[2]), 'x/y/')\n"
        "store.check(); assert store.probe_conditional().safe\n"
        "print(*sys.modules)"
    )
    url = seaweed_config.endpoint_url
    assert url is not None
    done = subprocess.run(
        [sys.executable, "-c", script, seaweed_config.bucket, url],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    heavy = {"boto3", "urllib3", "botocore.session", "botocore.client", "botocore.parsers"}
    assert heavy.isdisjoint(done.stdout.split())


@pytest.mark.parametrize(
    ("config", "environ"),
    [
        ({}, {"AWS_ACCESS_KEY_ID": ""}),
        ({}, {"AWS_SECRET_ACCESS_KEY": ""}),
        ({}, {"AWS_PROFILE": "p"}),
        ({}, {"AWS_SECURITY_TOKEN": "t"}),
        ({}, {"AWS_CREDENTIAL_EXPIRATION": "2026-11-30T00:00:00Z"}),
        ({}, {"https_proxy": "http://proxy.example"}),
        ({}, {"HTTP_PROXY": "http://proxy.example"}),
        ({}, {"AWS_CONFIG_FILE": __file__}),
        ({}, {"AWS_SHARED_CREDENTIALS_FILE": __file__}),
        ({"endpoint_url": None}, {}),
        ({"endpoint_url": "https://store.example"}, {}),
        ({"addressing_style": "virtual"}, {}),
    ],
)
def test_what_boto3_may_find_elsewhere_is_left_to_it(
    config: dict[str, Any], environ: dict[str, str]
) -> None:
    assert plain_keys(replace(CONFIG, **config), {**ENVIRON, **environ}) is None


def test_a_configuration_file_at_home_is_boto3s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert plain_keys(CONFIG, ENVIRON) is not None
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").touch()
    assert plain_keys(CONFIG, ENVIRON) is None


@pytest.mark.parametrize(
    ("config", "environ"),
    [
        ({}, {"AWS_SESSION_TOKEN": "t"}),
        ({}, {"AWS_PROFILE": "", "http_proxy": ""}),
        ({"addressing_style": "path"}, {}),
        ({"endpoint_url": "https://store.example", "ca_bundle": "/ca.pem"}, {}),
        ({"endpoint_url": "https://store.example", "verify_tls": False}, {}),
    ],
)
def test_where_all_is_known_the_credentials_are_those_of_the_environment(
    config: dict[str, Any], environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/nonexistent")
    keys = plain_keys(replace(CONFIG, **config), {**ENVIRON, **environ})
    assert keys is not None
    assert (keys.access, keys.secret) == ("a", "s")
    assert keys.token == environ.get("AWS_SESSION_TOKEN", "")


def test_a_ca_bundle_that_is_none_is_a_setting_to_be_changed(aws_env: None, tmp_path: Path) -> None:
    absent = str(tmp_path / "absent.pem")
    config = replace(CONFIG, endpoint_url="https://store.example", ca_bundle=absent)
    with pytest.raises((PermanentError, TransientError)):
        open_client(config)


# --- servers that answer as they like ------------------------------------------------------


@contextmanager
def _server(*scripts: Callable[[socket.socket], None]) -> Iterator[str]:
    """One connection for each script, one after the other."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for script in scripts:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client:
                    script(client)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _head(client: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = client.recv(65536)
        if not piece:
            break
        data += piece
    return data


def _saying(*answers: bytes) -> Callable[[socket.socket], None]:
    def script(client: socket.socket) -> None:
        for answer in answers:
            _head(client)
            client.sendall(answer)

    return script


def _ok(body: bytes, *more: bytes) -> bytes:
    head = [b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(body), *more]
    return b"\r\n".join([*head, b"", body])


def _client(url: str) -> PlainClient:
    keys = plain_keys(replace(CONFIG, endpoint_url=url), ENVIRON)
    assert keys is not None
    return PlainClient(
        replace(CONFIG, endpoint_url=url), keys, lambda: pytest.fail("not one of ours")
    )


@pytest.mark.parametrize(
    ("setting", "variable", "region"),
    [("eu-x-1", "eu-y-1", "eu-x-1"), (None, "eu-y-1", "eu-y-1"), (None, None, "us-east-1")],
)
def test_the_region_is_boto3s(
    aws_env: None,
    monkeypatch: pytest.MonkeyPatch,
    setting: str | None,
    variable: str | None,
    region: str,
) -> None:
    if variable is not None:
        monkeypatch.setenv("AWS_DEFAULT_REGION", variable)
    heads: list[bytes] = []

    def script(client: socket.socket) -> None:
        heads.append(_head(client))
        client.sendall(_ok(b"", b"ETag: e"))

    with _server(script) as url:
        config = replace(CONFIG, endpoint_url=url, region=setting)
        client, _ = open_client(config)
        assert isinstance(client, PlainClient)
        client.get_object(**AT)
        client.close()
    assert f"/{region}/s3/aws4_request".encode() in heads[0]
    theirs, _ = make_client(config)
    assert theirs.meta.region_name == region
    theirs.close()


@pytest.fixture(autouse=True)
def nothing_at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))


AT = {"Bucket": "b", "Key": "k"}
ERROR = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>m</Message></Error>"


@pytest.mark.parametrize(
    ("op", "more"),
    [
        ("copy_object", {"CopySource": AT}),
        ("put_object", {"Body": b""}),
        ("list_objects_v2", {}),
        ("delete_objects", {"Delete": {"Objects": []}}),
    ],
)
def test_an_error_that_calls_itself_a_success_is_an_error(op: str, more: dict[str, Any]) -> None:
    with _server(_saying(_ok(ERROR))) as url:
        client = _client(url)
        with pytest.raises(ClientError) as caught:
            getattr(client, op)(**AT, **more)
        client.close()
    said: Any = caught.value.response
    assert said["Error"] == {"Code": "InternalError", "Message": "m"}
    assert said["ResponseMetadata"]["HTTPStatusCode"] == 500


def test_an_object_may_look_like_an_error() -> None:
    with _server(_saying(_ok(ERROR, b'ETag: "e"'))) as url:
        client = _client(url)
        answer = client.get_object(**AT)
        client.close()
    assert (answer["Body"].read(), answer["ETag"]) == (ERROR, '"e"')


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html><p>login</html>",
        b"<!DOCTYPE x [<!ENTITY a 'b'>]><ListBucketResult>&a;</ListBucketResult>",
        b"<ListBucketResult><Contents><Key>k</Key></Contents></ListBucketResult>",
        b"<ListBucketResult><Contents><Key>k</Key><Size>x</Size><LastModified>"
        b"2026-11-30T00:00:00Z</LastModified></Contents></ListBucketResult>",
        b"<ListBucketResult><Contents><Key>k</Key><Size>1</Size><LastModified>"
        b"yesterday</LastModified></Contents></ListBucketResult>",
    ],
)
def test_a_listing_that_is_none_is_told(body: bytes) -> None:
    with _server(_saying(_ok(body))) as url:
        client = _client(url)
        with pytest.raises(GarbledError):
            client.list_objects_v2(Bucket="b", Prefix="")
        client.close()


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n", "503"),
        (b"HTTP/1.1 502 Bad\r\nContent-Length: 6\r\n\r\n<html>", "502"),
        (b"HTTP/1.1 301 Moved\r\nLocation: http://other/\r\nContent-Length: 0\r\n\r\n", "301"),
        (b"HTTP/1.1 403 No\r\nContent-Length: %d\r\n\r\n%s" % (len(ERROR), ERROR), "InternalError"),
    ],
)
def test_a_refusal_has_the_servers_code_or_its_status(answer: bytes, code: str) -> None:
    with _server(_saying(answer)) as url:
        client = _client(url)
        with pytest.raises(ClientError) as caught:
            client.get_object(**AT)
        client.close()
    assert caught.value.response["Error"]["Code"] == code


def test_a_connection_that_was_closed_meanwhile_is_not_used_again() -> None:
    def first(client: socket.socket) -> None:
        _saying(_ok(b"1", b"ETag: e"))(client)

    def second(client: socket.socket) -> None:
        _saying(_ok(b"2", b"ETag: e"))(client)

    with _server(first, second) as url:
        client = _client(url)
        assert client.get_object(**AT)["Body"].read() == b"1"
        (idle,) = client._endpoint._idle
        # Until the end of the first connection has come.
        assert s3_http._is_readable(idle.sock, 60)
        assert client.get_object(**AT)["Body"].read() == b"2"
        client.close()


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", b"nonsense\r\n\r\n"],
)
def test_an_answer_that_breaks_off_is_the_connections_fault(answer: bytes) -> None:
    with _server(_saying(answer)) as url:
        client = _client(url)
        with pytest.raises(ConnectionClosedError):
            client.get_object(**AT)
        assert client._endpoint._idle == []
        client.close()


def test_silence_ends_in_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_http, "READ_TIMEOUT_S", 0.05)
    over = threading.Event()

    def script(client: socket.socket) -> None:
        _head(client)
        over.wait(60)

    with _server(script) as url:
        client = _client(url)
        with pytest.raises(ReadTimeoutError):
            client.get_object(**AT)
        over.set()
        client.close()


def test_nobody_there_and_no_tls_there() -> None:
    client = _client(f"http://127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(EndpointConnectionError):
        client.get_object(**AT)

    def script(client: socket.socket) -> None:
        # Read first: closed with something unread, the connection would be reset instead.
        client.recv(65536)
        client.sendall(b"no TLS\r\n")
        with suppress(OSError):
            client.recv(65536)

    with _server(script) as url:
        config = replace(CONFIG, endpoint_url=url.replace("http:", "https:"), verify_tls=False)
        keys = plain_keys(config, ENVIRON)
        assert keys is not None
        with pytest.raises(SSLError):
            PlainClient(config, keys, lambda: None).get_object(**AT)


LARGE = bytes(s3_http.EXPECT_BYTES_MIN + 1)
REFUSED = b"HTTP/1.1 412 Precondition Failed\r\nContent-Length: 0\r\n\r\n"


def test_a_large_body_that_is_refused_by_its_head_is_not_sent() -> None:
    rest: list[bytes] = []

    def script(client: socket.socket) -> None:
        assert b"Expect: 100-continue" in _head(client)
        client.sendall(REFUSED)
        rest.append(client.recv(65536))

    with _server(script) as url:
        client = _client(url)
        with pytest.raises(ClientError, match="412"):
            client.put_object(**AT, Body=LARGE, IfNoneMatch="*")
        # Its body was announced and not sent: the connection is of no use any more.
        assert client._endpoint._idle == []
        client.close()
    assert rest == [b""]


@pytest.mark.parametrize(
    "pieces", [[b"HTTP/1.1 100 Continue\r\n\r\n"], [b"HTT", b"P/1.1 100 C\r\n\r\n"]]
)
def test_a_large_body_is_sent_when_the_server_says_so(pieces: list[bytes]) -> None:
    received: list[int] = []

    def script(client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _head(client)
        for piece in pieces:
            client.sendall(piece)
        count = 0
        while count < len(LARGE):
            count += len(client.recv(1 << 20))
        received.append(count)
        client.sendall(_ok(b"", b"ETag: e"))

    with _server(script) as url:
        client = _client(url)
        assert client.put_object(**AT, Body=LARGE)["ETag"] == "e"
        client.close()
    assert received == [len(LARGE)]


def test_a_server_that_says_nothing_about_the_head_gets_the_body(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(s3_http, "CONTINUE_WAIT_S", 0.01)

    def script(client: socket.socket) -> None:
        count = len(_head(client).partition(b"\r\n\r\n")[2])
        while count < len(LARGE):
            count += len(client.recv(1 << 20))
        client.sendall(_ok(b"", b"ETag: e"))

    with _server(script) as url:
        client = _client(url)
        assert client.put_object(**AT, Body=LARGE)["ETag"] == "e"
        client.close()

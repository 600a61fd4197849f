"""The requests that a workspace lives by, to a server of one's own, without boto3's layers.

To load boto3, read its model of S3 and resolve endpoints takes a worker a quarter of a second of
processor time when it starts, and each request afterwards takes 1.5 ms, of which the wire needs a
fifth. So where everything that boto3 would look for is known beforehand (`plain_keys`), the methods
here answer as those of its client of the same names, as far as this package reads their answers,
and raise the same exceptions. All other methods are boto3's, which is loaded for the first of them.

Invariants
1. boto3's own chain decides wherever it could find anything else than what is used here: profiles,
   configuration files, roles, proxies, AWS itself.
2. One request a call, never a second try, no redirect followed.
3. An answer that is no XML where S3 sends XML is a GarbledError; one that says 200 and holds an
   error is that error, with status 500.

Called by s3_client.py. Each operation is held against boto3's by tests/store/test_s3_plain.py.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import os
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, BinaryIO, Final
from urllib.parse import unquote_plus
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from botocore.exceptions import ClientError

from s3ws_fs.core.config import StoreConfig
from s3ws_fs.store import s3_http
from s3ws_fs.store.s3_errors import GarbledError
from s3ws_fs.store.s3_sign import EMPTY_SHA256, Keys, Signer, quoted_path, quoted_query

REGION_DEFAULT: Final = "us-east-1"
"""Custom endpoints rarely care, but a signature needs one."""

_CREDENTIALS: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_ELSEWHERE: Final = frozenset(
    {
        "AWS_PROFILE",
        "AWS_DEFAULT_PROFILE",
        "AWS_SECURITY_TOKEN",
        "AWS_CREDENTIAL_EXPIRATION",
        "AWS_ACCOUNT_ID_ENDPOINT_MODE",
        "AWS_USE_DUALSTACK_ENDPOINT",
        "AWS_USE_FIPS_ENDPOINT",
        "AWS_DATA_PATH",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
    }
)
"""Variables that would change where boto3 goes, or as whom."""
_FILES: Final = {
    "AWS_CONFIG_FILE": "~/.aws/config",
    "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials",
}
_HEADERS: Final = {
    "ContentType": "Content-Type",
    "IfMatch": "If-Match",
    "IfNoneMatch": "If-None-Match",
    "Range": "Range",
    "CopySourceIfMatch": "x-amz-copy-source-if-match",
    "MetadataDirective": "x-amz-metadata-directive",
}
_QUERY: Final = {
    "Prefix": "prefix",
    "Delimiter": "delimiter",
    "MaxKeys": "max-keys",
    "StartAfter": "start-after",
    "ContinuationToken": "continuation-token",
}
_META: Final = "x-amz-meta-"
_ERROR: Final = b"<Error"
_DOCTYPE: Final = b"<!DOCTYPE"
_ERROR_BYTES: Final = 1024
"""How far from its beginning the root of an XML answer is looked for."""


def plain_keys(config: StoreConfig, environ: Mapping[str, str]) -> Keys | None:
    """The credentials, if boto3 would use them as they are, and nothing else it might find."""
    access, secret, token = (environ.get(name, "") for name in _CREDENTIALS)
    if config.endpoint_url is None or config.addressing_style == "virtual":
        return None
    is_tls = config.endpoint_url.lower().startswith("https:")
    if not access or not secret or (is_tls and config.verify_tls and config.ca_bundle is None):
        return None
    if any(value and name.upper() in _ELSEWHERE for name, value in environ.items()):
        return None
    places = (environ.get(name) or usual for name, usual in _FILES.items())
    if any(os.path.isfile(os.path.expanduser(place)) for place in places):  # noqa: PTH111, PTH113
        return None
    return Keys(access, secret, token)


class PlainClient:
    """Answers as a boto3 client does."""

    def __init__(self, config: StoreConfig, keys: Keys, others: Callable[[], Any]) -> None:
        """`others` makes a boto3 client, for all other methods. Makes no request.

        Raises OSError for a CA bundle that can't be read.
        """
        assert config.endpoint_url is not None
        context = None
        if config.endpoint_url.lower().startswith("https:"):
            context = ssl.create_default_context(cafile=config.ca_bundle)
            if not config.verify_tls:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
        self._endpoint = s3_http.Endpoint(config.endpoint_url, context)
        region = config.region or os.environ.get("AWS_DEFAULT_REGION") or REGION_DEFAULT
        self._signer = Signer(keys, region)
        self._make_others = others
        self._others: Any = None
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._boto(), name)

    def close(self) -> None:
        """Release the connections."""
        self._endpoint.close()
        with self._lock:
            others, self._others = self._others, None
        if others is not None:
            others.close()

    def put_object(self, Body: bytes | BinaryIO, **arguments: Any) -> dict[str, Any]:
        """See S3's PutObject."""
        if self._endpoint.is_tls and _size_of(Body) > s3_http.EXPECT_BYTES_MIN:
            # Whether the head is refused can't be seen here before the body is sent.
            sent: dict[str, Any] = self._boto().put_object(Body=Body, **arguments)
            return sent
        answer = self._ask("PutObject", "PUT", arguments, body=Body)
        return _answered(answer, ETag="etag")

    def get_object(self, **arguments: Any) -> dict[str, Any]:
        """See S3's GetObject."""
        answer = self._ask("GetObject", "GET", arguments)
        found = _answered(answer, ETag="etag", ContentRange="content-range")
        return found | {"Body": io.BytesIO(answer.data)}

    def head_object(self, **arguments: Any) -> dict[str, Any]:
        """See S3's HeadObject."""
        answer = self._ask("HeadObject", "HEAD", arguments)
        found = _answered(answer, ETag="etag", ContentType="content-type")
        headers = answer.headers
        if "content-length" in headers:
            found["ContentLength"] = _number(headers["content-length"])
        if "last-modified" in headers:
            found["LastModified"] = _when(headers["last-modified"])
        found["Metadata"] = {
            name.removeprefix(_META): value
            for name, value in headers.items()
            if name.startswith(_META)
        }
        return found

    def delete_object(self, **arguments: Any) -> dict[str, Any]:
        """See S3's DeleteObject."""
        return _answered(self._ask("DeleteObject", "DELETE", arguments))

    def copy_object(self, CopySource: dict[str, str], **arguments: Any) -> dict[str, Any]:
        """See S3's CopyObject."""
        source = quoted_path(f"{CopySource['Bucket']}/{CopySource['Key']}")
        answer = self._ask("CopyObject", "PUT", arguments, headers={"x-amz-copy-source": source})
        found = _answered(answer)
        if (etag := _text(_xml(answer.data), "ETag")) is not None:
            found["CopyObjectResult"] = {"ETag": etag}
        return found

    def delete_objects(self, Delete: dict[str, Any], **arguments: Any) -> dict[str, Any]:
        """See S3's DeleteObjects."""
        objects = "".join(
            f"<Object>{''.join(f'<{n}>{escape(v)}</{n}>' for n, v in item.items())}</Object>"
            for item in Delete["Objects"]
        )
        quiet = "<Quiet>true</Quiet>" if Delete.get("Quiet") else ""
        text = f'<Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{objects}{quiet}</Delete>'
        body = text.encode()
        digest = hashlib.md5(body, usedforsecurity=False).digest()
        headers = {
            "Content-MD5": base64.b64encode(digest).decode(),
            "Content-Type": "application/xml",
        }
        answer = self._ask(
            "DeleteObjects", "POST", arguments, headers=headers, body=body, query={"delete": ""}
        )
        root = _xml(answer.data)
        return _answered(answer) | {"Errors": [_texts(item) for item in _all(root, "Error")]}

    def list_objects_v2(self, **arguments: Any) -> dict[str, Any]:
        """See S3's ListObjectsV2."""
        query = {"list-type": "2", "encoding-type": "url"}
        query |= {_QUERY[name]: str(v) for name, v in arguments.items() if name in _QUERY}
        answer = self._ask("ListObjectsV2", "GET", arguments, query=query)
        root = _xml(answer.data)
        found = _answered(answer)
        for name in ("Name", "NextContinuationToken"):
            if (text := _text(root, name)) is not None:
                found[name] = text
        if (text := _text(root, "IsTruncated")) is not None:
            found["IsTruncated"] = text == "true"
        decoded = unquote_plus if _text(root, "EncodingType") == "url" else str
        found["Contents"] = [_item(entry, decoded) for entry in _all(root, "Contents")]
        found["CommonPrefixes"] = [
            {"Prefix": decoded(_text(entry, "Prefix") or "")}
            for entry in _all(root, "CommonPrefixes")
        ]
        return found

    def _boto(self) -> Any:
        with self._lock:
            if self._others is None:
                self._others = self._make_others()
            return self._others

    def _ask(
        self,
        op: str,
        method: str,
        arguments: Mapping[str, Any],
        *,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        body: bytes | BinaryIO = b"",
    ) -> s3_http.Answer:
        path = f"{self._endpoint.path}/{arguments['Bucket']}"
        if "Key" in arguments:
            path += f"/{arguments['Key']}"
        path, text = quoted_path(path), quoted_query(query or {})
        sent = {"host": self._endpoint.host, **(headers or {})}
        sent |= {_HEADERS[name]: value for name, value in arguments.items() if name in _HEADERS}
        for name, value in arguments.get("Metadata", {}).items():
            sent[_META + name] = value
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        sent = self._signer.signed(method, path, text, sent, _sha256(body), stamp)
        if method in ("PUT", "POST"):
            sent["Content-Length"] = str(_size_of(body))
        answer = self._endpoint.request(method, f"{path}?{text}" if text else path, sent, body)
        if answer.status >= http.client.MULTIPLE_CHOICES:
            raise _refused(op, answer, answer.status)
        if op != "GetObject" and _ERROR in answer.data[:_ERROR_BYTES]:
            root = _xml(answer.data)
            if _name(root) == "Error":
                raise _refused(op, answer, http.client.INTERNAL_SERVER_ERROR)
        return answer


def _answered(answer: s3_http.Answer, **members: str) -> dict[str, Any]:
    """What every answer of boto3's has, and these members from headers that are there."""
    found: dict[str, Any] = {
        "ResponseMetadata": {"HTTPStatusCode": answer.status, "HTTPHeaders": answer.headers}
    }
    for name, header in members.items():
        if header in answer.headers:
            found[name] = answer.headers[header]
    return found


def _refused(op: str, answer: s3_http.Answer, status: int) -> ClientError:
    code, message = str(answer.status), http.client.responses.get(answer.status, "")
    try:
        root = _xml(answer.data)
    except GarbledError:
        # Nothing, or a page of a gateway: the status has to do.
        root = None
    if root is not None and _name(root) == "Error":
        code, message = _text(root, "Code") or code, _text(root, "Message") or message
    said: Any = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return ClientError(said, op)


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError as exc:
        raise GarbledError from exc


def _item(entry: ElementTree.Element, decoded: Callable[[str], str]) -> dict[str, Any]:
    texts: dict[str, Any] = _texts(entry)
    try:
        texts["Key"] = decoded(texts["Key"])
        texts["Size"] = _number(texts["Size"])
        texts["LastModified"] = _when(texts["LastModified"])
    except KeyError as exc:
        raise GarbledError from exc
    return texts


def _xml(data: bytes) -> ElementTree.Element:
    if _DOCTYPE in data:
        # What could be dangerous in XML needs one; S3 sends none.
        raise GarbledError
    try:
        return ElementTree.fromstring(data)  # noqa: S314 - see above
    except ElementTree.ParseError as exc:
        raise GarbledError from exc


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _all(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [child for child in root if _name(child) == name]


def _text(root: ElementTree.Element, name: str) -> str | None:
    for child in _all(root, name):
        return child.text or ""
    return None


def _texts(element: ElementTree.Element) -> dict[str, str]:
    return {_name(child): child.text or "" for child in element}


def _when(text: str) -> datetime:
    """A time as XML or as a header has it."""
    try:
        found = (parsedate_to_datetime if "," in text else datetime.fromisoformat)(text)
    except ValueError as exc:
        raise GarbledError from exc
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _size_of(body: bytes | BinaryIO) -> int:
    return len(body) if isinstance(body, bytes) else body.seek(0, os.SEEK_END)


def _sha256(body: bytes | BinaryIO) -> str:
    if not body:
        return EMPTY_SHA256
    if isinstance(body, bytes):
        return hashlib.sha256(body).hexdigest()
    digest = hashlib.sha256()
    body.seek(0)
    while piece := body.read(s3_http.PIECE_BYTES):
        digest.update(piece)
    return digest.hexdigest()

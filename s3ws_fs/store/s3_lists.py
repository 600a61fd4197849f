"""Requests about many keys: listings page by page, deletions in batches.

Invariants
1. A page that is none (a gateway's HTML parses as an empty listing) is an error, never "no keys".
2. A listing that does not go on is an error, never the end.

Called by s3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from botocore.exceptions import ClientError

from s3ws_fs.core.errors import NotFoundError, PermanentError, StoreError, TransientError
from s3ws_fs.store.base import DeleteFailure, Keeps
from s3ws_fs.store.s3_client import Wire
from s3ws_fs.store.s3_errors import NOT_S3, map_error

Pairs = list[tuple[str, str | None]]
"""Keys, each with the ETag it must have, or None."""


def list_items(wire: Wire, bucket: str, prefix: str, start_after: str) -> Iterator[dict[str, Any]]:
    """Every entry of a listing, page by page."""
    arguments: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix}
    if start_after:
        arguments["StartAfter"] = start_after
    for page in _pages(wire, arguments):
        yield from page.get("Contents", [])


def _pages(wire: Wire, arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    while True:
        page = list_page(wire, arguments)
        yield page
        if not page.get("IsTruncated"):
            return
        token = page.get("NextContinuationToken")
        if not token or token == arguments.get("ContinuationToken"):
            raise TransientError("list", arguments["Prefix"], "the server's listing does not go on")
        arguments["ContinuationToken"] = token


def list_folders(wire: Wire, bucket: str, prefix: str) -> Iterator[str]:
    """The names right below a prefix that have something below them, by a delimiter listing."""
    arguments: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix, "Delimiter": "/"}
    last = None
    for page in _pages(wire, arguments):
        for item in page.get("CommonPrefixes", []):
            name = item["Prefix"][len(prefix) :].removesuffix("/")
            # Some servers say the last one of a page again on the next.
            if name and name != last:
                last = name
                yield name


def list_page(wire: Wire, arguments: dict[str, Any]) -> dict[str, Any]:
    """One page. Raises TransientError for what is no listing."""
    prefix = arguments["Prefix"]
    request = partial(wire.client.list_objects_v2, **arguments)
    try:
        page: dict[str, Any] = wire.send("list", prefix, request)
    except NotFoundError as exc:
        raise PermanentError("list", prefix, "the endpoint has no such bucket") from exc
    if "Name" not in page and "IsTruncated" not in page:
        # Any HTML page parses as an empty listing: believed, it would be an empty bucket.
        raise TransientError("list", prefix, NOT_S3)
    return page


def kept_versions(wire: Wire, bucket: str) -> Keeps:
    """What the bucket keeps; "unknown" where we may not ask, or the server does not know."""
    return Keeps(_versions(wire, bucket), _lock(wire, bucket))


def _versions(wire: Wire, bucket: str) -> str:
    request = partial(wire.client.get_bucket_versioning, Bucket=bucket)
    try:
        answer = wire.send("head", "?versioning", request)
    except (NotFoundError, PermanentError):
        return "unknown"
    status = str(answer.get("Status") or "off").lower()
    return status if status in ("enabled", "suspended") else "off"


def _lock(wire: Wire, bucket: str) -> str:
    request = partial(wire.client.get_object_lock_configuration, Bucket=bucket)
    try:
        answer = wire.send("head", "?object-lock", request)
    except NotFoundError:
        return "off"
    except PermanentError as exc:
        return "off" if "ObjectLockConfigurationNotFound" in exc.detail else "unknown"
    enabled = answer.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled")
    return "enabled" if enabled == "Enabled" else "off"


def delete_batch(wire: Wire, bucket: str, batch: Pairs) -> list[DeleteFailure]:
    """Delete up to DELETE_BATCH keys by one request; returns those that failed."""
    objects = [
        {"Key": key} if etag is None else {"Key": key, "ETag": f'"{etag}"'} for key, etag in batch
    ]
    request = partial(
        wire.client.delete_objects,
        Bucket=bucket,
        Delete={"Objects": objects, "Quiet": True},
    )
    answer = wire.send("delete", f"{batch[0][0]} … ({len(batch)} keys)", request)
    return [
        DeleteFailure(item["Key"], error)
        for item in answer.get("Errors", [])
        if not isinstance(error := _delete_error(item), NotFoundError)
    ]


def _delete_error(item: Mapping[str, str]) -> StoreError:
    answer: Any = {"Error": {"Code": item.get("Code", "?"), "Message": item.get("Message", "")}}
    return map_error("delete", item["Key"], ClientError(answer, "DeleteObjects"))

"""Multipart uploads and part-wise copies: parts in parallel, one completion, abort on failure.

Invariants
1. The object appears by the completion, which carries the condition; before it nothing is visible.
2. An upload that did not complete is aborted, whatever went wrong. What a killed process leaves, or
   a creation whose answer was lost, `abort_uploads` finds: below the prefix it is given, no other.
3. At most PART_PARALLEL parts of one object are in memory at once.

Called by s3.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, Final

from s3ws_fs.core.errors import PermanentError, StoreError, TransientError
from s3ws_fs.store.body import Source
from s3ws_fs.store.s3_client import Wire
from s3ws_fs.store.s3_errors import NOT_S3

MULTIPART_BYTES: Final = 16 << 20
"""A body larger than this goes up in parts."""
CONDITIONAL_BYTES: Final = 64 << 20
"""Up to this size a body with a condition goes up in one PUT, since completing a multipart upload
is no fence everywhere: on SeaweedFS 4.48 several racing completions with If-None-Match win."""
PART_BYTES: Final = 8 << 20
"""Usual size of a part; larger when there would be more than PARTS_MAX."""
PART_PARALLEL: Final = 4
PARTS_MAX: Final = 10_000
COPY_BYTES_MAX: Final = 5 << 30
"""CopyObject's limit on S3; larger sources are copied part by part."""
COPY_PART_BYTES: Final = 512 << 20
OBJECT_BYTES_MAX: Final = 5 << 40
UPLOAD_PAGES_MAX: Final = 100
"""Pages of a thousand unfinished uploads looked at in one go; the next go sees the rest."""


@dataclass(frozen=True, slots=True)
class MultipartLimits:
    """The limits above, which tests lower. S3 wants parts of 5 MiB or more."""

    multipart_bytes: int = MULTIPART_BYTES
    conditional_bytes: int = CONDITIONAL_BYTES
    part_bytes: int = PART_BYTES
    copy_bytes_max: int = COPY_BYTES_MAX
    copy_part_bytes: int = COPY_PART_BYTES


Part = Callable[[int, int, int], str]
"""Sends part (number from 1, offset, length); returns its ETag as the server wrote it."""


def upload_parts(
    wire: Wire,
    limits: MultipartLimits,
    target: Mapping[str, str],
    attributes: Mapping[str, Any],
    conditions: Mapping[str, str],
    source: Source,
    was_ours: Callable[[], dict[str, Any] | None],
) -> dict[str, Any]:
    """Put `source` in parts. Returns the completion's answer; raises StoreError."""

    def make(upload: Mapping[str, str]) -> Part:
        def send(number: int, offset: int, length: int) -> str:
            data = source.read_at(offset, length)
            request = partial(wire.client.upload_part, **upload, PartNumber=number, Body=data)
            answer = wire.send("put", target["Key"], request, needs=("ETag",), size_bytes=length)
            return str(answer["ETag"])

        return send

    return _run(
        wire,
        ("put", target, attributes, conditions),
        (source.size_bytes, limits.part_bytes),
        make,
        was_ours,
    )


def copy_parts(
    wire: Wire,
    limits: MultipartLimits,
    target: Mapping[str, str],
    attributes: Mapping[str, Any],
    conditions: Mapping[str, str],
    source: Mapping[str, Any],
    size_bytes: int,
) -> dict[str, Any]:
    """Copy a large object by ranges. `source` has CopySource and its condition."""

    def make(upload: Mapping[str, str]) -> Part:
        def send(number: int, offset: int, length: int) -> str:
            request = partial(
                wire.client.upload_part_copy,
                **upload,
                **source,
                PartNumber=number,
                CopySourceRange=f"bytes={offset}-{offset + length - 1}",
            )
            answer = wire.send("copy", target["Key"], request, needs=("CopyPartResult",))
            return str(answer["CopyPartResult"]["ETag"])

        return send

    return _run(
        wire,
        ("copy", target, attributes, conditions),
        (size_bytes, limits.copy_part_bytes),
        make,
        None,
    )


def part_ranges(size_bytes: int, part_bytes: int) -> list[tuple[int, int, int]]:
    """(number, offset, length) of each part; at most PARTS_MAX of them, all but the last equal."""
    step = max(part_bytes, -(-size_bytes // PARTS_MAX))
    starts = range(0, size_bytes, step)
    return [(n, start, min(step, size_bytes - start)) for n, start in enumerate(starts, 1)]


def _run(
    wire: Wire,
    what: tuple[str, Mapping[str, str], Mapping[str, Any], Mapping[str, str]],
    sizes: tuple[int, int],
    make: Callable[[Mapping[str, str]], Part],
    was_ours: Callable[[], dict[str, Any] | None] | None,
) -> dict[str, Any]:
    op, target, attributes, conditions = what
    key = target["Key"]
    if sizes[0] > OBJECT_BYTES_MAX:
        raise PermanentError(op, key, f"larger than {OBJECT_BYTES_MAX} bytes")
    create = partial(wire.client.create_multipart_upload, **target, **attributes)
    created = wire.send(op, key, create, needs=("UploadId",))
    upload = {**target, "UploadId": created["UploadId"]}
    try:
        etags = _send_parts(part_ranges(*sizes), make(upload))
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in etags]
        complete = partial(
            wire.client.complete_multipart_upload,
            **upload,
            **conditions,
            MultipartUpload={"Parts": parts},
        )
        return wire.send(op, key, complete, was_ours=was_ours, needs=("ETag",))
    except BaseException as exc:
        # A store that is away needs no more than a try: `abort_uploads` comes later.
        attempts_max = 1 if isinstance(exc, TransientError) else None
        with contextlib.suppress(StoreError):
            abort = partial(wire.client.abort_multipart_upload, **upload)
            wire.send(op, key, abort, attempts_max=attempts_max)
        raise


def abort_uploads(wire: Wire, bucket: str, prefix: str, older_s: float) -> int:
    """See ObjectStore.abort_uploads."""
    count = 0
    arguments: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix}
    for _ in range(UPLOAD_PAGES_MAX):
        page = wire.send("list", prefix, partial(wire.client.list_multipart_uploads, **arguments))
        if "Bucket" not in page and "IsTruncated" not in page:
            raise TransientError("list", prefix, NOT_S3)
        now_s = _server_time_s(page)
        for item in page.get("Uploads", []):
            if not item["Key"].startswith(prefix):
                continue
            if now_s is None or now_s - item["Initiated"].timestamp() < older_s:
                continue
            target = {"Bucket": bucket, "Key": item["Key"], "UploadId": item["UploadId"]}
            abort = partial(wire.client.abort_multipart_upload, **target)
            try:
                wire.send("delete", item["Key"], abort)
            except TransientError as exc:
                if not exc.detail.startswith("NoSuchUpload"):
                    raise
            count += 1
        if not page.get("IsTruncated"):
            break
        arguments["KeyMarker"] = page["NextKeyMarker"]
        arguments["UploadIdMarker"] = page["NextUploadIdMarker"]
    return count


def _server_time_s(answer: Mapping[str, Any]) -> float | None:
    """When the server gave this answer, by its own clock."""
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date", "")
    try:
        return parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None


def _send_parts(ranges: list[tuple[int, int, int]], send: Part) -> list[tuple[int, str]]:
    """Send all parts, at most PART_PARALLEL at once; the first error ends what has not begun."""
    with ThreadPoolExecutor(PART_PARALLEL, thread_name_prefix="part") as pool:
        futures = [pool.submit(send, *item) for item in ranges]
        try:
            return [
                (item[0], future.result()) for item, future in zip(ranges, futures, strict=True)
            ]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise

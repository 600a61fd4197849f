"""Multipart uploads and part-wise copies: parts in parallel, one completion, abort on failure.

Invariants
1. The object appears by the completion, which carries the condition; before it nothing is visible.
2. An upload that did not complete is aborted, whatever went wrong. What a killed process leaves, or
   a creation whose answer was lost, `abort_uploads` finds: below the prefix it is given, no other.
3. At most PART_PARALLEL parts of one object are in memory at once.
4. What a Composed body says stands already is copied by the server, whole parts of it, and checked
   by nobody: it is never more than a copy of what its key holds.

Called by s3.py.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, Final

from s3ws_fs.core.errors import (
    ConflictError,
    NotFoundError,
    PermanentError,
    StoreError,
    TransientError,
)
from s3ws_fs.store.body import Source, Standing
from s3ws_fs.store.s3_client import Wire
from s3ws_fs.store.s3_errors import NOT_S3

MULTIPART_BYTES: Final = 16 << 20
"""A body larger than this goes up in parts."""
CONDITIONAL_BYTES: Final = 64 << 20
"""Up to this size a body with a condition goes up in one PUT, since completing a multipart upload
is no fence everywhere: on SeaweedFS 4.48 several racing completions with If-None-Match win."""
PART_BYTES: Final = 8 << 20
"""Usual size of a part; larger when there would be more than PARTS_MAX."""
PART_BYTES_MIN: Final = 5 << 20
"""S3's limit for all parts but the last."""
PART_PARALLEL: Final = 4
PARTS_MAX: Final = 10_000
COPY_BYTES_MAX: Final = 5 << 30
"""CopyObject's limit on S3; larger sources are copied part by part."""
COPY_PART_BYTES: Final = 512 << 20
STANDING_PART_BYTES: Final = 64 << 20
"""Of a composed object: some servers read and write what they are to copy."""
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
    part_bytes_min: int = PART_BYTES_MIN
    standing_part_bytes: int = STANDING_PART_BYTES


class NotCopiedError(Exception):
    """The server did not copy a range that was said to stand: the bytes have to be sent."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a composed object; `standing` is where the server finds it (None: it is sent)."""

    number: int
    offset: int
    length: int
    standing: Standing | None = None


Send = Callable[[Piece], str]
"""Sends a part; returns its ETag as the server wrote it."""


def upload_parts(
    wire: Wire,
    limits: MultipartLimits,
    target: Mapping[str, str],
    attributes: Mapping[str, Any],
    conditions: Mapping[str, str],
    source: Source,
    was_ours: Callable[[], dict[str, Any] | None],
    standing: Sequence[Standing] = (),
) -> dict[str, Any]:
    """Put `source` in parts; what is `standing` in the bucket already is copied by the server.

    Returns the completion's answer. Raises NotCopiedError when it can't copy them, StoreError.
    """

    def make(upload: Mapping[str, str]) -> Send:
        def send(piece: Piece) -> str:
            if piece.standing is None:
                data = source.read_at(piece.offset, piece.length)
                put = partial(wire.client.upload_part, **upload, PartNumber=piece.number, Body=data)
                answer = wire.send(
                    "put", target["Key"], put, needs=("ETag",), size_bytes=piece.length
                )
                return str(answer["ETag"])
            start = piece.standing.key_bytes + piece.offset - piece.standing.offset_bytes
            source_of: dict[str, Any] = {
                "CopySource": {"Bucket": target["Bucket"], "Key": piece.standing.key}
            }
            if piece.standing.etag is not None:
                source_of["CopySourceIfMatch"] = f'"{piece.standing.etag}"'
            try:
                return _copy_part(wire, upload, source_of, piece, start)
            except (NotFoundError, PermanentError, ConflictError) as exc:
                raise NotCopiedError(str(exc)) from exc

        return send

    pieces = composed_pieces(source.size_bytes, standing, limits)
    return _run(wire, ("put", target, attributes, conditions), pieces, make, was_ours)


def composed_pieces(
    size_bytes: int, standing: Sequence[Standing], limits: MultipartLimits
) -> list[Piece]:
    """Cut an object into parts: all but the last of `part_bytes_min` at least, and as many bytes as
    that allows from where they stand (to the last byte). `standing` rises and does not overlap.
    """
    least = max(limits.part_bytes_min, -(-2 * size_bytes // PARTS_MAX))
    sent_bytes = max(least, limits.part_bytes)
    copied_bytes = max(least, limits.standing_part_bytes)
    found: list[tuple[int, int, Standing | None]] = []
    at = 0
    for item in standing:
        start, end = item.offset_bytes, item.offset_bytes + item.length_bytes
        if start > at:
            # What is sent before it must be a whole part.
            start = max(start, at + least)
        if end - start < (1 if end == size_bytes else least):
            continue
        found += [(at + n, length, None) for n, length in _even(start - at, sent_bytes)]
        found += [(start + n, length, item) for n, length in _even(end - start, copied_bytes)]
        at = end
    rest = part_ranges(size_bytes - at, sent_bytes)
    found += [(at + offset, length, None) for _, offset, length in rest]
    return [Piece(number, *cut) for number, cut in enumerate(found, 1)]


def _even(length: int, step: int) -> list[tuple[int, int]]:
    """(offset, length) of pieces of about `step` bytes: none is shorter, but where all is."""
    if not length:
        return []
    count = max(1, length // step)
    ends = [length * n // count for n in range(count + 1)]
    return [(start, end - start) for start, end in itertools.pairwise(ends)]


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

    def make(upload: Mapping[str, str]) -> Send:
        return lambda piece: _copy_part(wire, upload, source, piece, piece.offset)

    pieces = [Piece(*cut) for cut in part_ranges(size_bytes, limits.copy_part_bytes)]
    return _run(wire, ("copy", target, attributes, conditions), pieces, make, None)


def _copy_part(
    wire: Wire,
    upload: Mapping[str, str],
    source: Mapping[str, Any],
    piece: Piece,
    start: int,
) -> str:
    """Have the server copy a part from `start` of the source; returns the part's ETag."""
    copy = partial(
        wire.client.upload_part_copy,
        **upload,
        **source,
        PartNumber=piece.number,
        CopySourceRange=f"bytes={start}-{start + piece.length - 1}",
    )
    answer = wire.send("copy", upload["Key"], copy, needs=("CopyPartResult",))
    return str(answer["CopyPartResult"]["ETag"])


def part_ranges(size_bytes: int, part_bytes: int) -> list[tuple[int, int, int]]:
    """(number, offset, length) of each part; at most PARTS_MAX of them, all but the last equal."""
    step = max(part_bytes, -(-size_bytes // PARTS_MAX))
    starts = range(0, size_bytes, step)
    return [(n, start, min(step, size_bytes - start)) for n, start in enumerate(starts, 1)]


def _run(
    wire: Wire,
    what: tuple[str, Mapping[str, str], Mapping[str, Any], Mapping[str, str]],
    pieces: Sequence[Piece],
    make: Callable[[Mapping[str, str]], Send],
    was_ours: Callable[[], dict[str, Any] | None] | None,
) -> dict[str, Any]:
    op, target, attributes, conditions = what
    key = target["Key"]
    if sum(piece.length for piece in pieces) > OBJECT_BYTES_MAX:
        raise PermanentError(op, key, f"larger than {OBJECT_BYTES_MAX} bytes")
    create = partial(wire.client.create_multipart_upload, **target, **attributes)
    created = wire.send(op, key, create, needs=("UploadId",))
    upload = {**target, "UploadId": created["UploadId"]}
    try:
        etags = _send_parts(pieces, make(upload))
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


def _send_parts(pieces: Sequence[Piece], send: Send) -> list[tuple[int, str]]:
    """Send all parts, at most PART_PARALLEL at once; the first error ends what has not begun."""
    with ThreadPoolExecutor(PART_PARALLEL, thread_name_prefix="part") as pool:
        futures = [pool.submit(send, piece) for piece in pieces]
        try:
            return [
                (piece.number, future.result())
                for piece, future in zip(pieces, futures, strict=True)
            ]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise

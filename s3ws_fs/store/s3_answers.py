"""What an answer of S3 says, checked: ETags, ranges.

Called by s3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from s3ws_fs.core.errors import ConflictError, TransientError
from s3ws_fs.store.base import Fetched
from s3ws_fs.store.s3_errors import NOT_S3

_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})", re.ASCII)


def fetched(answer: dict[str, Any], offset: int, length: int | None) -> Fetched:
    """What a GET brought, cut to what was asked for."""
    data: bytes = answer["Body"]
    content_range = str(answer.get("ContentRange", ""))
    if content_range:
        return Fetched(data, etag_of(answer), int(content_range.rpartition("/")[2]))
    # A server that ignores Range sends everything.
    end = None if length is None else offset + length
    return Fetched(data[offset:end], etag_of(answer), len(data))


def require_range(key: str, answer: Mapping[str, Any], offset: int, length: int | None) -> None:
    """Raise TransientError unless the bytes are those that were asked for, as far as it shows."""
    said = str(answer.get("ContentRange", ""))
    if not said:
        return
    matched = _CONTENT_RANGE.fullmatch(said)
    if matched is not None:
        start, end, total = (int(text) for text in matched.groups())
        last = total - 1 if length is None else min(offset + length, total) - 1
        if (start, end) == (offset, last) and len(answer["Body"]) == end - start + 1:
            return
    raise TransientError("get", key, f"the answer is another range than asked for: {said[:100]}")


def etag_of(answer: Mapping[str, Any]) -> str:
    """The ETag. Raises TransientError when there is none."""
    # A gateway that compresses makes the ETag weak; the object behind it has the same one.
    etag = str(answer.get("ETag", "")).removeprefix("W/").strip('"')
    if not etag:
        raise TransientError("read", "answer", NOT_S3)
    return etag


def if_match_of(etag: str | None) -> dict[str, str]:
    """The condition as an argument."""
    return {} if etag is None else {"IfMatch": f'"{etag}"'}


def require_etag(op: str, key: str, found: str, wanted: str) -> None:
    """Raise ConflictError for another ETag."""
    if found != wanted:
        raise ConflictError(op, key, "the object has changed")

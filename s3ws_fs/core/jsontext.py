"""JSON that somebody else may have written: into the bucket, a cache, a socket.

Invariants
1. `value_of` returns a value or raises FormatError, whatever the bytes: no JSON, another encoding,
   nested so deep that a parser gives up, numbers beyond what Python reads.
2. Nothing here checks a shape: `json.loads` alone must not be called on such bytes.

Called by every layer.
"""

from __future__ import annotations

import json
from typing import Any

from s3ws_fs.core.errors import FormatError


def value_of(data: bytes | str, where: str) -> Any:
    """The JSON value of `data`. Raises FormatError naming `where`."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise FormatError(where, f"not JSON ({type(exc).__name__})") from exc


def object_of(data: bytes | str, where: str) -> dict[str, Any]:
    """The JSON object of `data`. Raises FormatError naming `where`."""
    value = value_of(data, where)
    if not isinstance(value, dict):
        raise FormatError(where, "not a JSON object")
    return value

"""Frames between the daemon and its transfer worker, over a socketpair.

A frame: total u32 (bytes that follow), json length u32, JSON, payload.
Requests     {"id": n, "cmd": …}            Answers  {"id": n, "part": {…}}  any number, then one of
                                                     {"id": n, "ok": {…}}, {"id": n, "error": {…}}

Invariants
1. A frame is at most FRAME_BYTES_MAX; a longer one is a FormatError, before it is read.
2. Errors cross as themselves: `error_json` and `error_from` are inverse for our own kinds.

Called by worker and client.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from typing import Any, Final

from s3ws_fs.core import jsontext
from s3ws_fs.core.errors import (
    CacheError,
    ConflictError,
    ExitCode,
    FormatError,
    NotFoundError,
    PermanentError,
    S3wsError,
    StoreError,
    TransientError,
    UserError,
)
from s3ws_fs.core.records import MirrorRow

FRAME_BYTES_MAX: Final = 32 << 20
HEAD_BYTES: Final = 8
_HEAD: Final = struct.Struct(">II")

_STORE_KINDS: Final[dict[str, type[StoreError]]] = {
    "transient": TransientError,
    "permanent": PermanentError,
    "notfound": NotFoundError,
    "conflict": ConflictError,
}
_MEMBERS: Final[dict[str, type]] = {"part": dict, "ok": dict, "error": dict, "traffic": dict}
_KIND_OF: Final = {cls: kind for kind, cls in _STORE_KINDS.items()}


class FencedError(S3wsError):
    """Another writer has the lease, or sealed in our place. `holder` says who, for a person."""

    def __init__(self, holder: str) -> None:
        self.holder = holder
        super().__init__(holder)

    def __str__(self) -> str:
        return f"another writer has taken over this workspace: {self.holder}"


class OwnSealError(S3wsError):
    """The journal number is taken by an earlier seal of our own whose answer was lost."""


def encode(message: dict[str, Any], payload: bytes | memoryview = b"") -> bytes:
    """A frame. Raises ValueError when it is too long."""
    body = json.dumps(message, separators=(",", ":")).encode("ascii")
    total = 4 + len(body) + len(payload)
    if total > FRAME_BYTES_MAX:
        raise ValueError(f"frame of {total} bytes; {FRAME_BYTES_MAX} fit")
    return b"".join((_HEAD.pack(total, len(body)), body, payload))


def rest_bytes(head: bytes) -> int:
    """How many bytes follow the HEAD_BYTES of a frame. Raises FormatError."""
    total, body = _HEAD.unpack(head)
    if total > FRAME_BYTES_MAX or body + 4 > total:
        raise FormatError("worker frame", f"lengths {total} and {body}")
    return int(total - 4)


def decode(head: bytes, rest: bytes) -> tuple[dict[str, Any], memoryview]:
    """JSON and payload of a frame. Raises FormatError."""
    _, body = _HEAD.unpack(head)
    message = jsontext.object_of(rest[:body], "worker frame")
    if type(message.get("id")) is not int:
        raise FormatError("worker frame", "no id")
    for name, kind in _MEMBERS.items():
        if not isinstance(message.get(name, kind()), kind):
            raise FormatError("worker frame", f"{name} is of another type")
    return message, memoryview(rest)[body:]


def error_json(exc: BaseException) -> dict[str, Any]:
    """An exception as JSON."""
    if isinstance(exc, StoreError):
        kind = _KIND_OF.get(type(exc), "permanent")
        return {"kind": kind, "op": exc.op, "key": exc.key, "detail": exc.detail}
    if isinstance(exc, FormatError):
        return {"kind": "format", "where": exc.where, "why": exc.why}
    if isinstance(exc, FencedError):
        return {"kind": "fenced", "holder": exc.holder}
    if isinstance(exc, OwnSealError):
        return {"kind": "own-seal", "detail": str(exc)}
    if isinstance(exc, UserError):
        return {
            "kind": "cache" if isinstance(exc, CacheError) else "user",
            "message": exc.message,
            "remedy": exc.remedy,
            "exit_code": int(exc.exit_code),
        }
    return {"kind": "internal", "detail": f"{type(exc).__name__}: {exc}"}


def error_from(value: dict[str, Any]) -> Exception:
    """The exception behind an answer's error; of another shape, a PermanentError that shows it."""
    try:
        return _error_from(value)
    except (KeyError, TypeError, ValueError):
        return PermanentError("worker", "", f"an error that is none of ours: {value!r:.200}")


def _error_from(value: dict[str, Any]) -> Exception:
    kind = value.get("kind")
    if kind in _STORE_KINDS:
        return _STORE_KINDS[kind](value["op"], value["key"], value["detail"])
    if kind == "format":
        return FormatError(value["where"], value["why"])
    if kind == "fenced":
        return FencedError(value["holder"])
    if kind == "own-seal":
        return OwnSealError(value["detail"])
    if kind in ("user", "cache"):
        cls = CacheError if kind == "cache" else UserError
        return cls(value["message"], remedy=value["remedy"], exit_code=ExitCode(value["exit_code"]))
    return PermanentError("worker", "", str(value.get("detail", "unknown error")))


def paths_json(paths: Iterable[bytes]) -> list[str]:
    """Mirror paths as JSON text (any bytes survive)."""
    return [path.decode("latin-1") for path in paths]


def paths_from(value: Iterable[str]) -> list[bytes]:
    """The inverse of `paths_json`."""
    try:
        return [path.encode("latin-1") for path in value]
    except (AttributeError, TypeError, UnicodeEncodeError) as exc:
        raise FormatError("worker frame", "not paths") from exc


def rows_json(rows: Iterable[MirrorRow]) -> list[list[Any]]:
    """Mirror rows as JSON."""
    return [
        [
            row.path.decode("latin-1"),
            row.ino,
            row.generation,
            row.data_gen,
            row.etag,
            row.hash.hex(),
        ]
        for row in rows
    ]


def rows_from(value: Iterable[list[Any]]) -> list[MirrorRow]:
    """The inverse of `rows_json`."""
    try:
        return [
            MirrorRow(
                path.encode("latin-1"), ino, generation, data_gen, etag, bytes.fromhex(digest)
            )
            for path, ino, generation, data_gen, etag, digest in value
        ]
    except (AttributeError, TypeError, ValueError) as exc:
        raise FormatError("worker frame", "not rows") from exc

"""What is noted of a fork: where it came from. Pure.

`journal/fork.json` stands while a fork is made: what else stands there is no workspace yet. The
finished workspace's `workspace.json` keeps the origin as its member `forked_from`.

Invariants
1. decode(encode(x)) == x; bytes that are no such mark raise FormatError, nothing else.

Called by transfer.forking.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from s3ws_fs.core import jsontext, layout
from s3ws_fs.core.errors import FormatError
from s3ws_fs.core.journal import json_digest
from s3ws_fs.core.limits import FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class Origin:
    """What is forked: a point of another workspace. `prefix` is its whole prefix in the store."""

    prefix: str
    workspace: str
    number: int
    generation: int


@dataclass(frozen=True, slots=True)
class Mark:
    """What journal/fork.json says; `workspace` is the new one."""

    origin: Origin
    workspace: str
    created_ns: int

    def encode(self) -> bytes:
        """The object's bytes."""
        body = asdict(self) | {"format": FORMAT_VERSION}
        return json.dumps(body | {"digest": json_digest(body)}, indent=1).encode()


def decode_mark(raw: bytes) -> Mark:
    """The inverse of `Mark.encode`. Raises FormatError."""
    where = layout.FORK_KEY
    found = jsontext.object_of(raw, where)
    if found.get("format") != FORMAT_VERSION or found.get("digest") != json_digest(found):
        raise FormatError(where, "its format is another, or its digest does not match")
    origin = found.get("origin")
    if not isinstance(origin, dict):
        raise FormatError(where, "it does not say what was forked")
    return Mark(
        Origin(
            _member(origin, "prefix", str),
            _member(origin, "workspace", str),
            _member(origin, "number", int),
            _member(origin, "generation", int),
        ),
        _member(found, "workspace", str),
        _member(found, "created_ns", int),
    )


def _member(found: dict[str, Any], name: str, kind: type) -> Any:
    value = found.get(name)
    if type(value) is not kind:
        raise FormatError(layout.FORK_KEY, f"its {name} is {value!r:.200}")
    return value

"""What is noted of a deletion: who deletes which workspace, since when. Pure.

`journal/deleted.json` stands while a workspace is deleted: where it stands without workspace.json,
what else stands there is no workspace any more.

Invariants
1. decode(encode(x)) == x; bytes that are no such mark raise FormatError, nothing else.

Called by transfer.deleting.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields

from s3ws_fs.core import jsontext, layout
from s3ws_fs.core.errors import FormatError
from s3ws_fs.core.journal import json_digest
from s3ws_fs.core.limits import FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class Tombstone:
    """`workspace` is its uuid, "" when it had none that can be read; `host` is for people."""

    workspace: str
    host: str
    created_ns: int

    def encode(self) -> bytes:
        """The object's bytes."""
        body = asdict(self) | {"format": FORMAT_VERSION}
        return json.dumps(body | {"digest": json_digest(body)}, indent=1).encode()


def decode_tombstone(raw: bytes) -> Tombstone:
    """The inverse of `Tombstone.encode`. Raises FormatError."""
    where = layout.DELETED_KEY
    found = jsontext.object_of(raw, where)
    if found.get("format") != FORMAT_VERSION or found.get("digest") != json_digest(found):
        raise FormatError(where, "its format is another, or its digest does not match")
    values = {field.name: found.get(field.name) for field in fields(Tombstone)}
    created_ns = values["created_ns"]
    if type(created_ns) is not int or not all(
        type(values[name]) is str for name in ("workspace", "host")
    ):
        raise FormatError(where, "a member of it is missing or of another kind")
    return Tombstone(**values)  # type: ignore[arg-type]

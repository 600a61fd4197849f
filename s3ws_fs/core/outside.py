"""What somebody else did to the mirror: policies, what was found, how a copy of it is called.

Policies
    keep-both       the outside version becomes a file beside ours (a conflict copy)
    bucket-wins     the outside version becomes the file; ours is kept if the bucket never had it
    workspace-wins  ours is put over it

Invariants
1. A conflict copy's name says which file it is of, whose version, and when that was put there (or
   ours gave way); `original_name` is the inverse, unless the name had to be cut.
2. A path comes out of `workspace_path` only if every piece is a name that a directory can hold.

Called by transfer, replica, settings (the policies' names, through config).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

from s3ws_fs.core.content import Wishes
from s3ws_fs.core.layout import unescape_path
from s3ws_fs.core.limits import NAME_BYTES_MAX

OUTSIDE: Final = "outside"
WORKSPACE: Final = "workspace"
"""Whose version a copy is, as its name says."""

NO_WISHES: Final = Wishes()

COPY_NAMES_MAX: Final = 100
"""Names tried for one copy; then it can't be made."""
_TIME_S_MAX: Final = 253_402_300_799
_COPY: Final = re.compile(
    rb"(.*) \((?:outside|workspace) \d{4}-\d\d-\d\dT\d\d-\d\d-\d\dZ(?: \d{1,3})?\)(\.[^.]*)?",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Found:
    """What stands at a mirror path and is not ours; nothing at all when `etag` is empty.

    `path` is the text below files/, which may be no path of ours. `ours`: the object says that we
    put it here with bytes of this digest (hex), and other bytes came: changed in place, or spoilt
    on their way, which a later look may tell apart.
    """

    path: str
    etag: str = ""
    size_bytes: int = 0
    modified_ns: int = 0
    wishes: Wishes = NO_WISHES
    ours: str = ""

    def to_json(self) -> dict[str, Any]:
        """As part of a worker's answer."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Found:
        """The inverse of `to_json`."""
        return cls(**(value | {"wishes": Wishes(**value["wishes"])}))


def workspace_path(text: str) -> bytes | None:
    """The path in the workspace that a mirror path stands for; None when there is none."""
    try:
        path = unescape_path(text)
    except UnicodeEncodeError:
        return None
    if path is None:
        return None
    names = path.split(b"/")
    if any(b"\0" in name or len(name) > NAME_BYTES_MAX for name in names):
        return None
    return path


def copy_names(name: bytes, time_ns: int, whose: str = OUTSIDE) -> Iterator[bytes]:
    """Names for a copy of `name`, best first: the outside version of that time, or the workspace's
    own that gave way then."""
    seconds = min(max(time_ns // 1_000_000_000, 0), _TIME_S_MAX)
    when = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
    dot = name.rfind(b".")
    stem, ending = (name[:dot], name[dot:]) if dot > 0 else (name, b"")
    for number in range(1, COPY_NAMES_MAX + 1):
        mark = f" ({whose} {when}{f' {number}' if number > 1 else ''})".encode()
        room = NAME_BYTES_MAX - len(mark) - len(ending)
        if room < 1:
            # An ending of that length is no ending.
            stem, ending = name, b""
            room = NAME_BYTES_MAX - len(mark)
        yield _cut(stem, room) + mark + ending


def _cut(stem: bytes, room: int) -> bytes:
    """At most `room` bytes, without half a character at the end."""
    if len(stem) <= room:
        return stem
    while room > 1 and stem[room] & 0xC0 == 0x80:
        room -= 1
    return stem[:room]


def original_name(copy: bytes) -> bytes | None:
    """Whose copy this name is of; None when it is no name of a copy."""
    match = _COPY.fullmatch(copy)
    return None if match is None else match[1] + (match[2] or b"")

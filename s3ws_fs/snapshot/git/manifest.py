"""What a bundle says of a repository beside its refs: the manifest in its state commit.

`refs/s3ws/state` names a commit without a time, whose tree holds

    manifest.json   this
    git/            files of git's own directory, as blobs named by their object name
    index/          blobs that only the index names, the same way
    worktree/       the work tree: tracked and untracked files, not the ignored ones

and whose parents are the commits of all refs, of HEAD, and whatever git's own files name.

Invariants
1. Nothing here is trusted when it is read: names are checked, unknown members ignored, and what
   does not have the right shape raises FormatError.
2. The same state gives the same bytes.

Called by snapshot.git (writes, reads) and cli (shows).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final

from s3ws_fs.core import jsontext
from s3ws_fs.core.errors import FormatError
from s3ws_fs.snapshot.git.find import KINDS
from s3ws_fs.snapshot.git.objects import OBJECT_FORMATS

FORMAT: Final = 1
STATE_REF: Final = "refs/s3ws/state"
WORKTREE_REF: Final = "refs/s3ws/worktree"
KEEP_PREFIX: Final = "refs/s3ws/keep/"
OUR_REFS: Final = "refs/s3ws/"

MANIFEST_BYTES_MAX: Final = 256 << 20
LEFT_OUT_MAX: Final = 1000
"""So many of what is left out are named; the count says how many there are."""


@dataclass(slots=True)
class Manifest:
    """See above. Paths are relative: `git` to the git directory, the others to the work tree.

    `git`: permissions and blob of each of git's own files. `where`: the repository's place, that of
    its git directory, and of the one it shares, in the workspace.
    """

    kind: str
    where: tuple[bytes, bytes, bytes]
    object_format: str
    git: dict[bytes, tuple[int, str]] = field(default_factory=dict)
    modes: dict[bytes, int] = field(default_factory=dict)
    empty_dirs: list[bytes] = field(default_factory=list)
    left_out: list[tuple[bytes, str]] = field(default_factory=list)
    left_out_count: int = 0
    is_partial: bool = False
    counts: dict[str, int] = field(default_factory=dict)

    def encode(self) -> bytes:
        """As a JSON object."""
        document = {
            "format": FORMAT,
            "kind": self.kind,
            "where": [_text(path) for path in self.where],
            "object_format": self.object_format,
            "git": {_text(path): [mode, oid] for path, (mode, oid) in self.git.items()},
            "modes": {_text(path): mode for path, mode in self.modes.items()},
            "empty_dirs": sorted(_text(path) for path in self.empty_dirs),
            "left_out": sorted([_text(path), why] for path, why in self.left_out),
            "left_out_count": self.left_out_count,
            "is_partial": self.is_partial,
            "counts": self.counts,
        }
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii")


def decode(raw: bytes, where: str) -> Manifest:
    """The inverse. Raises FormatError."""
    document = jsontext.value_of(raw, where)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise FormatError(where, "its manifest is of a format that is not known here")
    try:
        place = [safe_path(path) if path != "" else b"" for path in _list(document["where"])]
        found = Manifest(
            kind=_one_of(KINDS, document["kind"]),
            where=(place[0], place[1], place[2]),
            object_format=_one_of(OBJECT_FORMATS, document["object_format"]),
            git={
                safe_path(path): (_int(mode), _str(oid))
                for path, (mode, oid) in document["git"].items()
            },
            modes={safe_path(path): _int(mode) for path, mode in document["modes"].items()},
            empty_dirs=[safe_path(path) for path in _list(document["empty_dirs"])],
            left_out=[
                (_bytes(path), _str(why)) for path, why in map(_list, _list(document["left_out"]))
            ],
            left_out_count=_int(document["left_out_count"]),
            is_partial=document["is_partial"] is True,
            counts={_str(name): _int(n) for name, n in document["counts"].items()},
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as exc:
        raise FormatError(where, "its manifest does not have the right shape") from exc
    return found


def safe_path(text: str) -> bytes:
    """A relative path that leads nowhere else. Raises ValueError."""
    path = _bytes(text)
    if any(part in (b"", b".", b"..") for part in path.split(b"/")) or b"\0" in path:
        raise ValueError(path)
    return path


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def _bytes(text: Any) -> bytes:
    if not isinstance(text, str):
        raise TypeError(text)
    return text.encode("utf-8", "surrogateescape")


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(value)
    return value


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _one_of(known: tuple[str, ...], value: Any) -> str:
    if value not in known:
        raise ValueError(value)
    return _str(value)


def _int(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(value)
    return value

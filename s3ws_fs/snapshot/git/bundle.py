"""Bundle files: a header that names refs, then a pack. Written and read here, not by `git bundle`,
which knows refs of the repository only.

Invariants
1. What is written is a bundle as git reads it (version 2, or 3 where the objects are SHA-256).
2. The state's ref stands first, so that the first bytes of an object in the bucket tell it.
3. A header that is read is checked; its names and object names have the right form.

Called by snapshot.git and cli.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from s3ws_fs.core.errors import FormatError
from s3ws_fs.snapshot.git.manifest import STATE_REF
from s3ws_fs.snapshot.git.objects import SHA1, SHA256
from s3ws_fs.snapshot.git.running import Git, lines_of

HEADER_BYTES_MAX: Final = 64 << 20
HEAD_PIECE_BYTES: Final = 4096
"""So many bytes of an object tell its state (invariant 2)."""

_SIGNATURES: Final = {b"# v2 git bundle": 2, b"# v3 git bundle": 3}
_NAME: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(slots=True)
class Header:
    """What stands before the pack, which begins at `pack_offset`."""

    object_format: str = SHA1
    prerequisites: list[str] = field(default_factory=list)
    refs: list[tuple[str, str]] = field(default_factory=list)
    """(name, object)"""
    pack_offset: int = 0

    @property
    def state(self) -> str | None:
        """The state commit; None in a bundle that is not ours."""
        return dict(self.refs).get(STATE_REF)


def write(
    path: Path,
    git: Git,
    refs: list[tuple[str, str]],
    object_format: str,
    *,
    base: str | None = None,
    is_partial: bool = False,
) -> int:
    """Write a bundle of these refs; with `base`, of what that commit does not lead to. Its size.

    `is_partial`: objects may be missing, on purpose.
    """
    lines = ["# v2 git bundle" if object_format == SHA1 else "# v3 git bundle"]
    if object_format != SHA1:
        lines.append(f"@object-format={object_format}")
    if base is not None:
        lines.append(f"-{base} the bundle that this one adds to")
    lines += [f"{oid} {name}" for name, oid in refs]
    with path.open("xb") as file:
        file.write("\n".join([*lines, "", ""]).encode(errors="surrogateescape"))
        file.flush()
        tips = list(dict.fromkeys(oid for _, oid in refs))
        words = ["pack-objects", "--stdout", "--revs", "--delta-base-offset", "-q"]
        if is_partial:
            words.append("--missing=allow-any")
        if base is not None:
            words.append("--thin")
            # Its tree by name, too: nothing new leads to that commit.
            tips += [f"^{base}", f"^{base}^{{tree}}"]
        git.run(*words, stdin=lines_of(tips), stdout=file)
        return file.seek(0, 2)


def read_header(file: IO[bytes]) -> Header:
    """The header of a bundle that `file` begins with. Raises FormatError."""
    first = file.readline(100).rstrip(b"\n")
    version = _SIGNATURES.get(first)
    if version is None:
        raise FormatError("bundle", "this is no bundle of git")
    header = Header()
    done = len(first) + 1
    while True:
        raw = file.readline(1 << 16)
        done += len(raw)
        if not raw.endswith(b"\n") or done > HEADER_BYTES_MAX:
            raise FormatError("bundle", "its header is cut off, or too long")
        line = raw[:-1].decode(errors="surrogateescape")
        if not line:
            header.pack_offset = done
            return header
        _take(header, line, version)


def _take(header: Header, line: str, version: int) -> None:
    if version == 3 and line.startswith("@"):
        name, _, value = line[1:].partition("=")
        if name != "object-format" or value not in (SHA1, SHA256):
            raise FormatError("bundle", f"it needs what is not known here: {line[:80]!a}")
        header.object_format = value
        return
    oid, _, name = line.removeprefix("-").partition(" ")
    if not _NAME.fullmatch(oid):
        raise FormatError("bundle", "its header does not have the right form")
    if line.startswith("-"):
        header.prerequisites.append(oid)
    else:
        header.refs.append((name, oid))


def first_state(head: bytes) -> str | None:
    """The state commit by the first bytes of a bundle; None when they do not tell."""
    for line in head.split(b"\n")[:4]:
        oid, _, name = line.partition(b" ")
        text = oid.decode(errors="replace")
        if name.decode(errors="replace") == STATE_REF and _NAME.fullmatch(text):
            return text
    return None

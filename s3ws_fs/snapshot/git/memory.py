"""What earlier looks learned of files: which hold what the index says, and which are ignored.

    {state_dir}/{digest of the path}/seen.json, beside the shadow's copied.json

Invariants
1. It only spares work: a file is taken as known by inode and version of its bytes; whatever is
   missing or damaged here is looked at anew.

Called by snapshot.git.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

SEEN_FILE: Final = "seen.json"
COPIED_FILE: Final = "copied.json"
UPLOADED_FILE: Final = "uploaded"


def place_of(state_dir: Path, path: bytes) -> Path:
    """Where it is kept what is known of the repository at `path`."""
    return state_dir / hashlib.sha256(path).hexdigest()[:24]


def note_uploaded(state_dir: Path, path: bytes, state: str) -> None:
    """The bundle of this state stands in the bucket. Raises OSError."""
    place = place_of(state_dir, path) / UPLOADED_FILE
    temporary = place.with_suffix(".new")
    temporary.touch(mode=0o600)
    temporary.write_text(state)
    temporary.replace(place)


@dataclass(slots=True)
class Seen:
    """Of one work tree. `clean`: version and blob of tracked files, by inode; the rest by path."""

    clean: dict[int, tuple[int, str]] = field(default_factory=dict)
    ignored: set[bytes] = field(default_factory=set)
    ignored_dirs: set[bytes] = field(default_factory=set)

    def save(self, directory: Path) -> None:
        """Keep it for the next look."""
        document = {
            "clean": {str(ino): list(item) for ino, item in self.clean.items()},
            "ignored": [path.decode("latin-1") for path in self.ignored],
            "ignored_dirs": [path.decode("latin-1") for path in self.ignored_dirs],
        }
        temporary = directory / f"{SEEN_FILE}.new"
        temporary.write_text(json.dumps(document))
        temporary.replace(directory / SEEN_FILE)


def load(directory: Path) -> Seen:
    """What is kept there; nothing, when that is missing or damaged."""
    try:
        document = json.loads((directory / SEEN_FILE).read_bytes())
        return Seen(
            {int(ino): (int(item[0]), str(item[1])) for ino, item in document["clean"].items()},
            {path.encode("latin-1") for path in document["ignored"]},
            {path.encode("latin-1") for path in document["ignored_dirs"]},
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return Seen()


class Memory:
    """Of all repositories of a workspace: what need not be copied out of the cache."""

    def __init__(self, state_dir: Path | None) -> None:
        self._objects: set[tuple[int, int, int]] = set()
        self._clean: set[tuple[int, int]] = set()
        self._ignored: set[bytes] = set()
        self._ignored_dirs: set[bytes] = set()
        if state_dir is not None and state_dir.is_dir():
            for directory in state_dir.iterdir():
                self._add(directory)

    def _add(self, directory: Path) -> None:
        try:
            copied = json.loads((directory / COPIED_FILE).read_bytes())
            self._objects.update((int(a), int(b), int(c)) for a, b, c in copied.values())
        except (OSError, ValueError, TypeError, AttributeError):
            # Then these objects are wanted.
            self._objects.update(())
        seen = load(directory)
        self._clean.update((ino, version) for ino, (version, _) in seen.clean.items())
        self._ignored |= seen.ignored
        self._ignored_dirs |= seen.ignored_dirs

    def is_object(self, ino: int, version: int, size: int) -> bool:
        """Whether a shadow has these bytes."""
        return (ino, version, size) in self._objects

    def is_known(self, path: bytes, ino: int, version: int) -> bool:
        """Whether a work tree's file is as its index says, or ignored."""
        return (ino, version) in self._clean or path in self._ignored

    def is_ignored_dir(self, path: bytes) -> bool:
        """Whether git ignores what is below it."""
        return path in self._ignored_dirs

"""Where the bucket stands, as the cache remembers it, and whether the two belong together.

Meta values kept in the cache
    workspace     uuid of the workspace (journal/workspace.json)
    writer        our name in segment headers; it belongs to this cache file, not to a copy of it
    sealed        number, hash and generation of the newest segment known to be ours and sealed
    mirrored      generation up to which the mirror is known complete
    mirror_known  whether the mirror's rows are complete (false after a restore and during
                  a mirror pass, until reconciled)
    hydrated      whether no extent is cold any more
    checkpoint_due  whether the next flush makes a checkpoint: an object can't be read any more
    done_without    a checkpoint that was damaged, and why: the restore used the one before it

Invariants
1. A bucket that went on without us is never written to from this cache: with no unsealed change the
   cache is rebuilt, else it is refused (exit 9).
2. A segment of ours that we do not remember (a lost answer, a power cut) is adopted only if the
   cache is not older than it. A fence (an empty segment of ours) says nothing of what is below it:
   it is adopted only on top of the segment we remember.
3. A cache that is older than a seal of its own can be made anew at the mount after the power cut:
   all it holds is in that seal. (A sync point covers what is sealed, unless the disk failed.)

Called by replica.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any, Final

from s3ws_fs.cache.cache import Cache
from s3ws_fs.cache.recovery import SYNC_POINT
from s3ws_fs.cache.tables import DATA_DIR, DATA_FILE
from s3ws_fs.core.errors import CacheError, ExitCode, UserError
from s3ws_fs.core.ids import RandBits, new_id
from s3ws_fs.transfer.wire import FencedError

CHECKPOINT_DUE: Final = "checkpoint_due"
DONE_WITHOUT: Final = "done_without"
NEWER: Final = "newer"
SAME: Final = "same"


@dataclass(frozen=True, slots=True)
class Sealed:
    """The newest sealed segment: number 0 before the first."""

    number: int = 0
    hash: str = ""
    generation: int = 0

    def to_json(self) -> dict[str, Any]:
        """As a meta value."""
        return {"number": self.number, "hash": self.hash, "generation": self.generation}

    @classmethod
    def from_json(cls, value: dict[str, Any] | None) -> Sealed:
        """The inverse of `to_json`; None is number 0. Raises CacheError."""
        if value is None:
            return cls()
        try:
            number, digest, generation = value["number"], value["hash"], value["generation"]
        except (KeyError, TypeError) as exc:
            raise _bad_note("sealed", value) from exc
        if type(number) is not int or type(generation) is not int or not isinstance(digest, str):
            raise _bad_note("sealed", value)
        return cls(number, digest, generation)


def _bad_note(name: str, value: object) -> CacheError:
    return CacheError(
        f"the cache is damaged: its note {name!r} is {value!r:.200}",
        remedy="Run `s3ws check`. Moved away, the workspace is rebuilt from the bucket; keep it.",
    )


def writer_id(cache: Cache, randbits: RandBits) -> str:
    """Our name as a writer; a copied cache gets another one, a moved one at worst too."""
    inode = (cache.directory / DATA_DIR / DATA_FILE).stat().st_ino
    known = cache.get_json("writer")
    if known is not None:
        try:
            name, noted = known["name"], known["inode"]
        except (KeyError, TypeError) as exc:
            raise _bad_note("writer", known) from exc
        if not isinstance(name, str):
            raise _bad_note("writer", known)
        if noted == inode:
            return name
    name = new_id(randbits)
    cache.put_json("writer", {"name": name, "inode": inode})
    return name


def host_name() -> str:
    """What a person would call this machine."""
    return socket.gethostname()


def fenced_error(exc: FencedError) -> UserError:
    """What a person reads when another writer was first."""
    return UserError(
        f"{exc}",
        remedy="This mount no longer writes to the bucket; its cache keeps what was not sealed "
        "(`s3ws rescue` exports it). Unmount it here, and go on where the other mount is.",
        exit_code=ExitCode.FENCED,
    )


def compare(cache: Cache, state: dict[str, Any], writer: str) -> str:
    """SAME or NEWER: how the bucket stands to this (complete) cache.

    Raises CacheError when they do not belong together. `state` is the worker's survey; a segment
    of ours with a lost answer is adopted here.
    """
    known = cache.get_json("workspace")
    if state["workspace"] != known:
        found = state["workspace"] or "none at all"
        raise CacheError(
            f"the cache in {cache.directory} is of workspace {known}, the bucket holds {found}",
            remedy="Check bucket, endpoint and ids. If the bucket was emptied on purpose, move the "
            "cache directory away; what it holds is nowhere else.",
        )
    sealed = Sealed.from_json(cache.get_json("sealed"))
    newest = state["newest"]
    if newest < sealed.number:
        raise CacheError(
            f"the bucket ends at segment {newest}, but this cache sealed {sealed.number}",
            remedy="The bucket is older than the cache: check that it is the right one, and was "
            "not put back from a backup. Nothing was changed.",
        )
    if newest == sealed.number:
        if state["header_hash"] != sealed.hash:
            return NEWER
        return SAME
    header = state["header"]
    is_fence = not header["puts"] and not header["tombs"]
    if is_fence and (newest != sealed.number + 1 or header["prev_hash"] != sealed.hash):
        return NEWER
    if header["writer"] == writer and header["generation"] <= cache.generation:
        remember(cache, Sealed(newest, state["header_hash"], header["generation"]))
        return SAME
    return NEWER


def is_own_past(cache: Cache, state: dict[str, Any], writer: str) -> bool:
    """Whether a power cut put the cache back to before what it sealed itself (invariant 3)."""
    header = state["header"]
    return bool(
        cache.recovery == SYNC_POINT
        and header is not None
        and header["writer"] == writer
        and header["generation"] > cache.generation
    )


def remember(cache: Cache, sealed: Sealed) -> None:
    """Note what is sealed."""
    cache.put_json("sealed", sealed.to_json())

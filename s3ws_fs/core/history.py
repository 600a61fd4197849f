"""Points in a workspace's history: the objects that name them, and what a person calls them. Pure.

A *point* is a sealed segment's number with everything that rebuilds the tree of that moment. A
*snapshot* is a point that somebody named, or that an operation made: `journal/snap/{number}-{id}`
(docs/format.md has the MUST rules). `journal/history.json` says from which number on every point is
kept.

References a person may write
    NAME                    a snapshot's name
    #N                      segment number N
    gen:N                   the newest point whose generation is at most N
    2026-11-29T21:40[Z]     the newest point sealed then or before (without a zone: UTC)
    15m, 2h, 3d, 40s, 1w    so long ago, as a time
    turn:NAME[:begin|:end]  a turn's mark; its end when not said
    head                    the newest point
    undo                    the newest point taken before a restore or an undo

Invariants
1. A snapshot's key tells its number, kind and (as a digest) its name: whoever looks for one reads a
   listing, and one object. What is read is held against its key: the other way round it counts for
   nothing.
2. One kind and name is one id: a second snapshot of that name has the same id, and of the same
   number the same key.
3. No name can be taken for another form of reference: `check_name` refuses those.

Called by transfer (points, snaps), replica and the commands.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any, Final

import xxhash

from s3ws_fs.core import jsontext, layout
from s3ws_fs.core.errors import ExitCode, FormatError, UserError
from s3ws_fs.core.journal import json_digest
from s3ws_fs.core.limits import FORMAT_VERSION

NAMED: Final = "named"
TURN_BEGIN: Final = "turn-begin"
TURN_END: Final = "turn-end"
BEFORE_RESTORE: Final = "before-restore"
BEFORE_UNDO: Final = "before-undo"
KINDS: Final = (NAMED, TURN_BEGIN, TURN_END, BEFORE_RESTORE, BEFORE_UNDO)
"""By the first hex digit of an id."""
UNDOABLE: Final = (BEFORE_RESTORE, BEFORE_UNDO)

NAME_CHARS_MAX: Final = 64
SNAPSHOTS_MAX: Final = 4096
"""Snapshots of one workspace: a further one is refused, or takes the oldest automatic one's place.
"""
SNAP_BYTES_MAX: Final = 4096
SNAP_PATHS_BYTES_MAX: Final = 2048
"""Paths of a restore that its snapshot of before names; of one with more, undo is of everything."""
NEAR_NAMES_MAX: Final = 3
"""Names that an error offers instead of one that is unknown."""

HEAD: Final = "head"
UNDO: Final = "undo"
NUMBER: Final = "number"
GENERATION: Final = "generation"
TIME: Final = "time"
NAME: Final = "name"
TURN: Final = "turn"
"""Forms of a reference."""

_ID: Final = re.compile(r"[0-4][0-9a-f]{7}")
_NAME: Final = re.compile(rf"[A-Za-z0-9._-]{{1,{NAME_CHARS_MAX}}}")
_AGO: Final = re.compile(r"([0-9]{1,9})([smhdw])")
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_NUMBER: Final = re.compile(r"[0-9]{1,19}")
_HASH: Final = re.compile(r"[0-9a-f]{32}")
_U63_MAX: Final = (1 << 63) - 1
_NAME_RULE: Final = (
    f"Use 1 to {NAME_CHARS_MAX} letters, digits and . _ - that are neither a time nor "
    f"{HEAD!r} or {UNDO!r}."
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a snapshot's object says. `created_ns` is the clock of who took it."""

    workspace: str
    number: int
    header_hash: str
    generation: int
    id: str
    name: str
    kind: str
    created_ns: int
    paths: tuple[str, ...] = ()
    """Of one before a restore (or undo) of some paths: these (bytes as Latin-1). An undo is of them
    alone: what was done elsewhere since is not its business."""
    everything: bool = False
    """Whether kept names went back as well; an undo takes them back."""

    @property
    def key(self) -> str:
        """Its key below the workspace prefix."""
        return snap_key(self.number, self.id)

    @property
    def ref(self) -> str:
        """What a person may call it."""
        if self.kind == NAMED:
            return self.name
        if self.kind in (TURN_BEGIN, TURN_END):
            return f"turn:{self.name}:{self.kind.removeprefix('turn-')}"
        return f"#{self.number}"

    def encode(self) -> bytes:
        """The object's bytes."""
        body = self.to_json() | {"format": FORMAT_VERSION}
        return json.dumps(body | {"digest": json_digest(body)}, indent=1).encode()

    def to_json(self) -> dict[str, Any]:
        """As an answer's JSON: what is not the rule is left out."""
        body = asdict(self) | {"paths": list(self.paths)}
        for name, absent in _ABSENT.items():
            if body[name] == absent:
                del body[name]
        return body

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Snapshot:
        """The inverse of `to_json`."""
        return cls(**value | {"paths": tuple(value.get("paths", ()))})


_ABSENT: Final[dict[str, Any]] = {"paths": [], "everything": False}
"""Members that may be missing."""
_INTS: Final = tuple(f.name for f in fields(Snapshot) if f.type in (int, "int"))


def snap_id(kind: str, name: str, created_ns: int) -> str:
    """The id of a snapshot: its kind, and a digest of its name (of its date, when it has none)."""
    text = name or str(created_ns)
    return f"{KINDS.index(kind)}{xxhash.xxh3_64_intdigest(text.encode()) >> 36:07x}"


def snap_key(number: int, ident: str) -> str:
    """The key of a snapshot's object."""
    return f"{layout.SNAP_PREFIX}{number:016x}-{ident}"


def split_snap_key(key: str) -> tuple[int, str] | None:
    """Number and id in a snapshot's key; None when it is not one that we would have made."""
    number, dash, ident = key.removeprefix(layout.SNAP_PREFIX).partition("-")
    if not key.startswith(layout.SNAP_PREFIX) or not dash or not _ID.fullmatch(ident):
        return None
    at = layout.key_number(layout.SEG_PREFIX + number, layout.SEG_PREFIX)
    return None if not at else (at, ident)


def kind_of(ident: str) -> str:
    """The kind that an id says."""
    return KINDS[int(ident[0], 16)]


def decode_snapshot(raw: bytes, where: str) -> Snapshot:
    """The inverse of `Snapshot.encode`; `where` is its key. Raises FormatError."""
    if len(raw) > SNAP_BYTES_MAX:
        raise FormatError(where, "it is too long for a snapshot")
    found = jsontext.object_of(raw, where)
    if found.get("format") != FORMAT_VERSION:
        raise FormatError(where, f"it has format {found.get('format')!r}")
    if found.get("digest") != json_digest(found):
        raise FormatError(where, "its digest does not match")
    values: dict[str, Any] = {}
    for field in fields(Snapshot):
        value = found.get(field.name, _ABSENT.get(field.name))
        if field.name in _INTS:
            is_good = type(value) is int and 0 <= value <= _U63_MAX
        elif field.name in _ABSENT:
            is_good = type(value) is type(_ABSENT[field.name])
        else:
            is_good = type(value) is str
        if not is_good:
            raise FormatError(where, f"its {field.name} is {value!r:.200}")
        values[field.name] = value
    if not all(type(path) is str and max(path, default="") < "\u0100" for path in values["paths"]):
        raise FormatError(where, "its paths are no bytes")
    values["paths"] = tuple(values["paths"])
    return _consistent(Snapshot(**values), where)


def _consistent(snap: Snapshot, where: str) -> Snapshot:
    """Invariant 1. Raises FormatError."""
    is_named = snap.kind in (NAMED, TURN_BEGIN, TURN_END)
    if snap.kind not in KINDS or not _HASH.fullmatch(snap.header_hash):
        raise FormatError(where, "its kind or its header_hash can't be")
    if is_named != bool(snap.name) or (snap.name and not _is_name(snap.name)):
        raise FormatError(where, f"its name can't be {snap.name!r:.200}")
    if snap.id != snap_id(snap.kind, snap.name, snap.created_ns) or snap.key != where:
        raise FormatError(where, "its name, kind and number are not those of its key")
    return snap


# --- from where on all points are kept


def encode_kept_from(workspace: str, number: int) -> bytes:
    """The bytes of `journal/history.json`."""
    body = {"format": FORMAT_VERSION, "workspace": workspace, "from": number}
    return json.dumps(body | {"digest": json_digest(body)}, indent=1).encode()


def decode_kept_from(raw: bytes, workspace: str | None) -> int:
    """The inverse: the number from which on every point is kept. Raises FormatError."""
    where = layout.HISTORY_KEY
    found = jsontext.object_of(raw[: SNAP_BYTES_MAX + 1], where)
    if found.get("format") != FORMAT_VERSION or found.get("digest") != json_digest(found):
        raise FormatError(where, "its format is another, or its digest does not match")
    number = found.get("from")
    if type(number) is not int or not 0 < number <= _U63_MAX:
        raise FormatError(where, f"its number is {number!r:.200}")
    if found.get("workspace") != workspace:
        raise FormatError(where, f"belongs to workspace {found.get('workspace')!r:.200}")
    return number


# --- references


@dataclass(frozen=True, slots=True)
class Ref:
    """A reference, taken apart. `text` is what was written; `number` a number, or a time in ns."""

    text: str
    form: str
    name: str = ""
    number: int = 0
    kind: str = ""


def _usage(message: str, remedy: str) -> UserError:
    return UserError(message, remedy=remedy, exit_code=ExitCode.USAGE)


def parse_ref(text: str, now_ns: int) -> Ref:
    """Take a reference apart; `now_ns` is for "15m". Raises UserError (exit 2)."""
    if text in (HEAD, UNDO):
        return Ref(text, text)
    if text.startswith("#"):
        return Ref(text, NUMBER, number=_number(text, text[1:]))
    if text.startswith("gen:"):
        return Ref(text, GENERATION, number=_number(text, text[4:]))
    if text.startswith("turn:"):
        return _turn_ref(text)
    at_ns = _time_ns(text, now_ns)
    if at_ns is not None:
        return Ref(text, TIME, number=at_ns)
    if _NAME.fullmatch(text):
        return Ref(text, NAME, name=text, kind=NAMED)
    raise _usage(
        f"{text!a} names no point in history.",
        "Write a snapshot's name, #N (a segment), gen:N, a time like 2026-11-29T21:40Z or 15m, "
        "turn:NAME, head or undo. `s3ws snapshots` lists what there is.",
    )


def _number(text: str, digits: str) -> int:
    if not _NUMBER.fullmatch(digits) or int(digits) > _U63_MAX:
        raise _usage(f"{text!a} names no point in history.", "After it stands a number, as in #12.")
    return int(digits)


def _turn_ref(text: str) -> Ref:
    name, _, side = text.removeprefix("turn:").partition(":")
    if side not in ("", "begin", "end"):
        raise _usage(f"{text!a} names no mark of a turn.", "Write turn:NAME, or turn:NAME:begin.")
    check_name(name, what="turn")
    return Ref(text, TURN, name=name, kind=TURN_BEGIN if side == "begin" else TURN_END)


def _time_ns(text: str, now_ns: int) -> int | None:
    """The time that a text means; None when it is none."""
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return max(0, now_ns - int(ago[1]) * _UNIT_S[ago[2]] * 1_000_000_000)
    try:
        when = datetime.fromisoformat(text)
        when = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
        whole_s = int(when.replace(microsecond=0).timestamp())
    except (ValueError, OverflowError):
        return None
    return max(0, whole_s * 1_000_000_000 + when.microsecond * 1000)


def _is_name(name: str) -> bool:
    if not _NAME.fullmatch(name) or name in (HEAD, UNDO):
        return False
    return _time_ns(name, 0) is None


def check_name(name: str, *, what: str = "snapshot") -> str:
    """The name, when it can be one of a snapshot or turn. Raises UserError (exit 2)."""
    if not _is_name(name):
        raise _usage(f"{name!a} can't be the name of a {what}.", _NAME_RULE)
    return name


def near_names(name: str, known: Iterable[str]) -> str:
    """A remedy that offers names like `name`, or says where they are listed."""
    import difflib  # not for the daemon

    near = difflib.get_close_matches(name, sorted(set(known)), n=NEAR_NAMES_MAX, cutoff=0.5)
    if near:
        return f"There is {', '.join(near)}. `s3ws snapshots` lists all."
    return "`s3ws snapshots` lists what there is."

"""The object store contract: what every store does, exactly, and what its callers may rely on.

Invariants
1. Every operation is synchronous and thread-safe; a store may be shared by a pool of threads.
2. An operation that raised TransientError may or may not have been applied. One that raised any
   other StoreError was not applied.
3. A condition is checked and the change made in one step, so that of several writers exactly one
   wins; where a server can't do that for an operation, `Conditional` says so after
   `probe_conditional`, and the store emulates by a HEAD before (a race remains, of one round trip).
   A fence must fit one PUT (s3_multipart.CONDITIONAL_BYTES): completing a multipart upload is not
   atomic on every server.
4. Within one call, ConflictError on a conditional put is never the echo of our own attempt: when an
   answer was lost, the store reads the object back, and one that holds exactly our bytes and
   metadata counts as ours. So two writers must never put equal bytes under one must-create key.
   Across calls (TransientError, then put again) that comparison is the caller's.
5. An object becomes visible whole or not at all. An ETag is opaque, without quotes, and differs
   whenever the bytes differ.
6. A key or a metadata value that some store could not carry is refused by all of them.

Called by transfer (through ScopedStore), the factory and tests.
"""

from __future__ import annotations

import abc
import itertools
import re
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from s3ws_fs.core.errors import PermanentError, StoreError
from s3ws_fs.store.body import Body

KEY_BYTES_MAX: Final = 1024
"""S3's limit for a whole key in UTF-8 bytes, prefix included."""
COMPONENT_BYTES_MAX: Final = 255
"""Limit for a piece between slashes on stores that keep a tree (local, SeaweedFS); S3 has none."""
METADATA_BYTES_MAX: Final = 2048
"""S3's limit for all user metadata of an object: bytes of names and values."""
DELETE_BATCH: Final = 1000
"""Keys in one batch delete request (S3's limit)."""
ANSWER_S: Final = 10.0
"""A request not answered by then is told, although it may be tried further."""
SLOW_LINE_BYTES_PER_S: Final = 100_000
"""The slowest line on which a request's bytes count as moving."""
DEFAULT_CONTENT_TYPE: Final = "application/octet-stream"
OPS: Final = ("put", "get", "list", "copy", "delete", "head")
OUTCOMES_MAX: Final = 200
"""Pairs of operation and outcome told apart; the server chooses the names of its errors."""
CODE_CHARS_MAX: Final = 64
OTHER_CODE: Final = "other"

_CODE = re.compile(rf"[A-Za-z0-9._-]{{1,{CODE_CHARS_MAX}}}", re.ASCII)
_METADATA_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*", re.ASCII)
_METADATA_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?|", re.ASCII)
_CONTENT_TYPE = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,253}[\x21-\x7e])?", re.ASCII)
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What `head` knows. `modified_ns` is the server's clock (whole seconds on S3)."""

    key: str
    size_bytes: int
    etag: str
    modified_ns: int
    content_type: str
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ListEntry:
    """What `list` knows of one object."""

    key: str
    size_bytes: int
    etag: str
    modified_ns: int


@dataclass(frozen=True, slots=True)
class Fetched:
    """Bytes of (a range of) an object; `total_bytes` is the size of the whole object."""

    data: bytes
    etag: str
    total_bytes: int


@dataclass(frozen=True, slots=True)
class DeleteFailure:
    """One key that `delete_many` did not delete, and why."""

    key: str
    error: StoreError


@dataclass(frozen=True, slots=True)
class Conditional:
    """Which conditions the server honours (True) or ignores (False: emulated by a HEAD before)."""

    put_must_create: bool = True
    put_if_match: bool = True
    copy_src_if_match: bool = True
    copy_must_create: bool = True
    delete_if_match: bool = True
    delete_many_if_match: bool = True

    @property
    def safe(self) -> bool:
        """True when the store can fence writers: must-create and If-Match on put."""
        return self.put_must_create and self.put_if_match


@dataclass(frozen=True, slots=True)
class Keeps:
    """What a store keeps of an object that was deleted or replaced.

    `versions`: "off", "enabled", "suspended" (older versions stay), or "unknown" (we may not ask).
    `lock`: the same of object lock, as "off", "enabled" or "unknown".
    """

    versions: str = "off"
    lock: str = "off"


@dataclass
class Counters:
    """Thread-safe counts of requests on the wire (retries count) by operation and outcome, and of
    the bytes of objects that went each way.
    """

    sent_bytes: int = 0
    received_bytes: int = 0
    _counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, op: str, code: str) -> None:
        """Count one request. `code` is an HTTP status or an error's name; a name that is none of
        ours, or one too many, counts as OTHER_CODE.
        """
        if not _CODE.fullmatch(code):
            code = OTHER_CODE
        with self._lock:
            if len(self._counts) >= OUTCOMES_MAX and (op, code) not in self._counts:
                code = OTHER_CODE
            self._counts[op, code] += 1

    def carried(self, *, sent_bytes: int = 0, received_bytes: int = 0) -> None:
        """Count the bytes of (a part of) an object that arrived."""
        with self._lock:
            self.sent_bytes += sent_bytes
            self.received_bytes += received_bytes

    def by_op(self) -> dict[str, int]:
        """Requests by operation; every name of OPS is there."""
        with self._lock:
            totals = dict.fromkeys(OPS, 0)
            for (op, _), count in self._counts.items():
                totals[op] = totals.get(op, 0) + count
            return totals

    def by_code(self) -> dict[str, int]:
        """Requests by "op code", e.g. {"put 200": 3, "put SlowDown": 1}."""
        with self._lock:
            return {f"{op} {code}": count for (op, code), count in sorted(self._counts.items())}


@dataclass(frozen=True, slots=True)
class Wait:
    """A request that waits longer than it should: how long, how often it failed, and why."""

    op: str
    key: str
    waited_s: float
    failures: int = 0
    error: str = ""


@dataclass
class Waits:
    """Thread-safe: the requests under way. A store that never waits has none."""

    _begun: dict[int, tuple[str, str, float, float]] = field(default_factory=dict)
    _failed: dict[int, tuple[int, str]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _serial: Iterator[int] = field(default_factory=itertools.count)

    def begin(self, op: str, key: str, size_bytes: int = 0) -> int:
        """A request with so much to carry begins; returns its number for the calls below."""
        now_s = time.monotonic()
        due_s = now_s + ANSWER_S + size_bytes / SLOW_LINE_BYTES_PER_S
        with self._lock:
            number = next(self._serial)
            self._begun[number] = (op, key, now_s, due_s)
        return number

    def failed(self, number: int, error: str) -> None:
        """An attempt failed, and another one will be made."""
        with self._lock:
            failures, _ = self._failed.get(number, (0, ""))
            self._failed[number] = (failures + 1, error)

    def end(self, number: int) -> None:
        """It was answered or given up."""
        with self._lock:
            self._begun.pop(number, None)
            self._failed.pop(number, None)

    def overdue(self) -> Wait | None:
        """Of the requests that should have been answered by now, the one begun first."""
        now_s = time.monotonic()
        with self._lock:
            late = [number for number, begun in self._begun.items() if begun[3] <= now_s]
            if not late:
                return None
            op, key, begun_s, _ = self._begun[min(late)]
            return Wait(op, key, now_s - begun_s, *self._failed.get(min(late), (0, "")))


class ObjectStore(abc.ABC):
    """The contract. Keys are whole keys of the bucket; callers outside `store` use ScopedStore.

    Every method may raise TransientError and PermanentError besides what it names.
    """

    def __init__(self) -> None:
        self.counters = Counters()
        self.waits = Waits()

    @abc.abstractmethod
    def get(
        self, key: str, offset: int = 0, length: int | None = None, *, if_match: str | None = None
    ) -> Fetched:
        """Bytes [offset, offset + length) of the object, or to its end when `length` is None.

        A range beyond the end is cut short: at or beyond the end it is empty, never an error.
        Raises NotFoundError; ConflictError when the ETag is not `if_match`.
        """

    @abc.abstractmethod
    def head(self, key: str) -> ObjectInfo:
        """Size, ETag, metadata. Raises NotFoundError."""

    @abc.abstractmethod
    def put(
        self,
        key: str,
        body: Body,
        *,
        content_type: str = DEFAULT_CONTENT_TYPE,
        metadata: Mapping[str, str] | None = None,
        if_none_match: bool = False,
        if_match: str | None = None,
    ) -> str:
        """Create or replace the object; returns the new ETag. Large bodies go up in parts, and of a
        Composed one the store may copy what stands there already.

        `if_none_match`: must create, ConflictError when the key exists.
        `if_match`: replace only that ETag, else (also when the key is gone) ConflictError.
        """

    @abc.abstractmethod
    def copy(
        self,
        src: str,
        dst: str,
        *,
        src_if_match: str | None = None,
        content_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
        if_none_match: bool = False,
        if_match: str | None = None,
    ) -> str:
        """Copy inside the store; returns the new ETag.

        An object may be copied onto itself to replace its metadata (only then); on S3 its ETag
        stays, and nobody who reads it meanwhile sees anything but the one or the other.
        `content_type` and `metadata`: both None keeps the source's; else both are replaced, what is
        None by the default and by nothing. Conditions on `dst` as in `put`. Raises NotFoundError
        when there is no `src`, ConflictError when a condition does not hold.
        """

    @abc.abstractmethod
    def delete(self, key: str, *, if_match: str | None = None) -> None:
        """Delete; a missing key is no error. Raises ConflictError when the ETag is another one."""

    @abc.abstractmethod
    def delete_many(self, keys: Iterable[str | tuple[str, str]]) -> list[DeleteFailure]:
        """Delete keys, or (key, ETag) pairs as with `if_match`; returns those that failed.

        Missing keys count as deleted. Raises only when a whole request failed; then keys of earlier
        batches are gone and the call may be repeated.
        """

    def purge(self, keys: Iterable[str]) -> list[DeleteFailure]:
        """As `delete_many`, for keys as `everything` gives them. Those that no store could carry
        are not deleted, and are among the failures.
        """
        good, failures = usable_keys(keys)
        return failures + self.delete_many(good)

    @abc.abstractmethod
    def list(self, prefix: str = "", start_after: str = "") -> Iterator[ListEntry]:
        """Every object whose key starts with `prefix`, once, a page at a time.

        Keys that have the same piece up to the last slash come in byte order of UTF-8; the order
        among others is the server's (SeaweedFS lists "a/b" before "a b"). So `start_after` (a whole
        key, exclusive) is exact only where no slash follows the prefix. Directory markers (keys
        that end in a slash) are left out. Objects that come or go meanwhile may or may not appear.
        """

    def folders(self, prefix: str = "") -> Iterator[str]:
        """The names between `prefix` (empty, or ending in a slash) and the next slash of the keys
        below it, each once. Stores with delimiter listings do not look at what stands below them;
        some servers show folders too that are empty since a moment.
        """
        last = None
        for entry in self.list(prefix):
            name, slash, _ = entry.key[len(prefix) :].partition("/")
            if slash and name != last:
                last = name
                yield name

    def everything(self, prefix: str = "") -> Iterator[ListEntry]:
        """As `list`, and what that leaves out: directory markers (keys that end in a slash)."""
        return self.list(prefix)

    def keeps(self) -> Keeps:
        """What the store keeps of what is deleted."""
        return Keeps()

    def markers(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Directory markers whose key starts with `prefix`: empty objects whose key, as given here
        too, ends in a slash, as other tools put them for (empty) directories. A request each.
        """
        _ = prefix
        return iter(())

    @abc.abstractmethod
    def check(self, prefix: str = "") -> None:
        """One cheap request that proves endpoint, credentials and bucket, else raises."""

    def abort_uploads(self, prefix: str, older_s: float) -> int:
        """Give up multipart uploads below `prefix` that were begun so long ago (server's clock).

        They are what a killed process or a lost answer left: nobody sees them, but they cost.
        Returns how many. A store without multipart uploads has none; one that does not let us list
        them raises PermanentError.
        """
        _ = prefix, older_s
        return 0

    def assume(self, conditional: Conditional) -> None:
        """Take over what an earlier `probe_conditional` found."""
        _ = conditional

    def close(self) -> None:
        """Release connections. The store must not be used afterwards."""
        return


def check_key(op: str, key: str, *, component_bytes_max: int | None = None) -> None:
    """Raise PermanentError unless `key` can stand in every store and names one object only.

    Refused: empty, longer than KEY_BYTES_MAX, absolute, empty segments, "." and "..", control
    characters, what is not UTF-8, and the backslash, which SeaweedFS turns into a slash.
    """
    reason = _key_fault(key, component_bytes_max)
    if reason:
        raise PermanentError(op, ascii(key[:200]), f"not a usable key: {reason}")


def usable_keys(keys: Iterable[str]) -> tuple[list[str], list[DeleteFailure]]:
    """Keys, also of directory markers, that stores take; and a failure for each other one."""
    good: list[str] = []
    failures: list[DeleteFailure] = []
    for key in keys:
        reason = _key_fault(key.removesuffix("/"), None)
        if reason is None:
            good.append(key)
        else:
            detail = f"not a usable key: {reason}"
            failures.append(DeleteFailure(key, PermanentError("delete", ascii(key[:200]), detail)))
    return good, failures


def _key_fault(key: str, component_bytes_max: int | None) -> str | None:
    if not key:
        return "it is empty"
    if _UNSAFE.search(key):
        return "it holds a control character, a backslash or bytes that are not UTF-8"
    if len(key.encode()) > KEY_BYTES_MAX:
        return f"it is longer than {KEY_BYTES_MAX} bytes"
    pieces = key.split("/")
    if any(piece in ("", ".", "..") for piece in pieces):
        return "it is absolute, or has an empty, '.' or '..' segment"
    if component_bytes_max and any(len(p.encode()) > component_bytes_max for p in pieces):
        return f"a segment is longer than {component_bytes_max} bytes"
    return None


def check_attributes(
    op: str, key: str, content_type: str | None, metadata: Mapping[str, str] | None
) -> None:
    """Raise PermanentError unless HTTP headers carry this content type and metadata unchanged."""
    if content_type is not None and not _CONTENT_TYPE.fullmatch(content_type):
        raise PermanentError(op, key, f"not a usable content type: {content_type[:100]!a}")
    total = 0
    for name, value in (metadata or {}).items():
        if not _METADATA_NAME.fullmatch(name) or not _METADATA_VALUE.fullmatch(value):
            raise PermanentError(op, key, f"not usable as metadata: {name[:100]!a}")
        total += len(name) + len(value)
    if total > METADATA_BYTES_MAX:
        raise PermanentError(
            op, key, f"the metadata has {total} bytes, the limit is {METADATA_BYTES_MAX}"
        )


def check_conditions(op: str, key: str, *, if_none_match: bool, if_match: str | None) -> None:
    """Raise PermanentError when both conditions are asked for, or an ETag could not be one."""
    if if_none_match and if_match is not None:
        raise PermanentError(op, key, "must-create and if_match exclude each other")
    if if_match is not None and (not if_match or not if_match.isascii() or '"' in if_match):
        raise PermanentError(op, key, "not an ETag")


def check_self_copy(
    src: str, dst: str, content_type: str | None, metadata: Mapping[str, str] | None
) -> None:
    """Raise PermanentError for a copy of an object onto itself that changes nothing."""
    if src == dst and content_type is None and metadata is None:
        raise PermanentError("copy", dst, "source and destination are the same")


def check_range(key: str, offset: int, length: int | None) -> None:
    """Raise PermanentError for a negative offset or length."""
    if offset < 0 or (length is not None and length < 0):
        raise PermanentError("get", key, f"not a range: {offset}, {length}")

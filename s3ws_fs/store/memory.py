"""A store in memory for tests of the layers above, with faults on demand.

Invariants
1. It keeps the contract of base.py to the letter; the contract suite runs on it.
2. A fault hook is asked once before each operation on each key, outside of the lock, so it may
   block (a slow server) or change the store (a concurrent writer).

Called by tests only.
"""

from __future__ import annotations

import enum
import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from s3ws_fs.core.errors import (
    ConflictError,
    NotFoundError,
    PermanentError,
    StoreError,
    TransientError,
)
from s3ws_fs.store.base import (
    DEFAULT_CONTENT_TYPE,
    DeleteFailure,
    Fetched,
    ListEntry,
    ObjectInfo,
    ObjectStore,
    check_attributes,
    check_conditions,
    check_key,
    check_range,
    check_self_copy,
)
from s3ws_fs.store.body import Body, Source

T = TypeVar("T")


class Fault(enum.Enum):
    """What happens to one operation."""

    NONE = "none"
    TRANSIENT = "transient"  # not applied, TransientError
    LOST = "lost"  # applied, then TransientError
    CONFLICT = "conflict"  # not applied, ConflictError
    PERMANENT = "permanent"  # not applied, PermanentError


FaultHook = Callable[[str, str], Fault]
"""Called with the operation (a name of base.OPS) and the key."""


@dataclass(frozen=True, slots=True)
class _Object:
    data: bytes
    info: ObjectInfo


class MemoryStore(ObjectStore):
    """Objects in a dict. `fault` may be replaced at any time."""

    def __init__(
        self,
        fault: FaultHook | None = None,
        now_ns: Callable[[], int] | None = None,
        *,
        etags_by_content: bool = False,
    ) -> None:
        """`now_ns`: the server's clock; without it a counter stands for it, one second a change.
        `etags_by_content`: equal bytes have equal ETags, as on S3; else each write has its own."""
        super().__init__()
        self._now_ns = now_ns
        self._etags_by_content = etags_by_content
        self.fault = fault
        self._objects: dict[str, _Object] = {}
        self._lock = threading.RLock()
        self._version = 0

    @property
    def version(self) -> int:
        """Raised by every change."""
        return self._version

    def fork(self) -> MemoryStore:
        """Another store with the same objects, ETags and times; from here on they are two."""
        with self._lock:
            made = MemoryStore(now_ns=self._now_ns, etags_by_content=self._etags_by_content)
            made._objects = dict(self._objects)
            made._version = self._version
        return made

    def get(
        self, key: str, offset: int = 0, length: int | None = None, *, if_match: str | None = None
    ) -> Fetched:
        """See ObjectStore.get."""
        check_key("get", key)
        check_range(key, offset, length)
        check_conditions("get", key, if_none_match=False, if_match=if_match)

        def apply() -> Fetched:
            found = self._find("get", key, if_match)
            end = None if length is None else offset + length
            return Fetched(found.data[offset:end], found.info.etag, len(found.data))

        found = self._run("get", key, apply)
        self.counters.carried(received_bytes=len(found.data))
        return found

    def head(self, key: str) -> ObjectInfo:
        """See ObjectStore.head."""
        check_key("head", key)
        return self._run("head", key, lambda: self._find("head", key, None).info)

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
        """See ObjectStore.put."""
        check_key("put", key)
        check_attributes("put", key, content_type, metadata)
        check_conditions("put", key, if_none_match=if_none_match, if_match=if_match)
        data = Source("put", key, body).read_all()

        def apply() -> str:
            self._require("put", key, if_none_match, if_match)
            return self._store(key, data, content_type, metadata or {})

        etag = self._run("put", key, apply)
        self.counters.carried(sent_bytes=len(data))
        return etag

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
        """See ObjectStore.copy."""
        check_key("copy", src)
        check_key("copy", dst)
        check_attributes("copy", dst, content_type, metadata)
        check_conditions("copy", src, if_none_match=False, if_match=src_if_match)
        check_conditions("copy", dst, if_none_match=if_none_match, if_match=if_match)
        check_self_copy(src, dst, content_type, metadata)

        def apply() -> str:
            found = self._find("copy", src, src_if_match)
            self._require("copy", dst, if_none_match, if_match)
            if content_type is None and metadata is None:
                return self._store(dst, found.data, found.info.content_type, found.info.metadata)
            return self._store(
                dst, found.data, content_type or DEFAULT_CONTENT_TYPE, metadata or {}
            )

        return self._run("copy", dst, apply)

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        """See ObjectStore.delete."""
        check_key("delete", key)
        check_conditions("delete", key, if_none_match=False, if_match=if_match)

        def apply() -> None:
            if key in self._objects:
                self._find("delete", key, if_match)
                del self._objects[key]
                self._version += 1

        self._run("delete", key, apply)

    def delete_many(self, keys: Iterable[str | tuple[str, str]]) -> list[DeleteFailure]:
        """See ObjectStore.delete_many."""
        pairs = [(item, None) if isinstance(item, str) else item for item in keys]
        for key, etag in pairs:
            check_key("delete", key)
            check_conditions("delete", key, if_none_match=False, if_match=etag)
        failures = []
        for key, etag in pairs:
            try:
                self.delete(key, if_match=etag)
            except StoreError as exc:
                failures.append(DeleteFailure(key, exc))
        return failures

    def list(self, prefix: str = "", start_after: str = "") -> Iterator[ListEntry]:
        """See ObjectStore.list. Byte order throughout; a snapshot of the moment it began."""

        def apply() -> list[ListEntry]:
            keys = sorted(k for k in self._objects if k.startswith(prefix) and k > start_after)
            infos = [self._objects[k].info for k in keys]
            return [ListEntry(i.key, i.size_bytes, i.etag, i.modified_ns) for i in infos]

        yield from self._run("list", prefix, apply)

    def check(self, prefix: str = "") -> None:
        """See ObjectStore.check."""
        self._run("list", prefix, lambda: None)

    def _run(self, op: str, key: str, apply: Callable[[], T]) -> T:
        fault = self.fault(op, key) if self.fault else Fault.NONE
        errors: dict[Fault, type[StoreError]] = {
            Fault.TRANSIENT: TransientError,
            Fault.CONFLICT: ConflictError,
            Fault.PERMANENT: PermanentError,
        }
        if fault in errors:
            self.counters.add(op, fault.value)
            raise errors[fault](op, key, f"injected: {fault.value}")
        try:
            with self._lock:
                result = apply()
        except StoreError as exc:
            self.counters.add(op, type(exc).__name__)
            raise
        if fault is Fault.LOST:
            self.counters.add(op, fault.value)
            raise TransientError(op, key, "injected: applied, but the answer was lost")
        self.counters.add(op, "200")
        return result

    def _find(self, op: str, key: str, etag: str | None) -> _Object:
        found = self._objects.get(key)
        if found is None:
            raise NotFoundError(op, key, "there is no such object")
        if etag is not None and found.info.etag != etag:
            raise ConflictError(op, key, "the object has changed")
        return found

    def _require(self, op: str, key: str, if_none_match: bool, if_match: str | None) -> None:
        found = self._objects.get(key)
        if if_none_match and found is not None:
            raise ConflictError(op, key, "the object exists already")
        if if_match is not None and (found is None or found.info.etag != if_match):
            raise ConflictError(op, key, "the object to replace has changed or is gone")

    def _store(self, key: str, data: bytes, content_type: str, metadata: Mapping[str, str]) -> str:
        self._version = version = self._version + 1
        etag = f"memory-{version}"
        if self._etags_by_content:
            etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
        now_ns = version * 10**9 if self._now_ns is None else self._now_ns()
        info = ObjectInfo(key, len(data), etag, now_ns, content_type, dict(metadata))
        self._objects[key] = _Object(data, info)
        return etag

"""A store seen through one workspace prefix: the only way the rest of the program sees a store.

Invariants
1. Every key that reaches the inner store starts with the prefix, and names nothing outside of it
   (check_key: no "..", no empty segment, no backslash, no absolute key).
2. A listing never asks for, and never returns, a key outside of the prefix.
3. Read-only, it refuses whatever would write or delete, before the inner store sees it.

Called by transfer, replica's worker side, the CLI's checks, and tests.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from typing import Final, TypeVar

from s3ws_fs.core.errors import ConflictError, PermanentError, StoreError
from s3ws_fs.core.ids import RandBits
from s3ws_fs.store.base import (
    DEFAULT_CONTENT_TYPE,
    Conditional,
    Counters,
    DeleteFailure,
    Fetched,
    Keeps,
    ListEntry,
    ObjectInfo,
    ObjectStore,
    Waits,
    check_key,
)
from s3ws_fs.store.body import Body, Composed

T = TypeVar("T")

PROBE_PREFIX: Final = "journal/probe/"
"""Where `probe_conditional` keeps its scratch objects for a moment."""

COPY_END: Final = ".copy"
NOBODYS_ETAG: Final = "0123456789abcdef" * 2
"""As an MD5 of something else."""
_WRITES: Final = frozenset({"put", "copy", "delete"})


class ScopedStore:
    """The contract of ObjectStore with keys relative to `prefix` (which ends in a slash)."""

    def __init__(
        self,
        inner: ObjectStore,
        prefix: str,
        *,
        randbits: RandBits = secrets.randbits,
        read_only: bool = False,
    ) -> None:
        if not prefix.endswith("/"):
            raise PermanentError("open", ascii(prefix[:200]), "the prefix must end in a slash")
        check_key("open", prefix[:-1])
        self._inner = inner
        self._randbits = randbits
        self.prefix = prefix
        self._read_only = read_only

    @property
    def counters(self) -> Counters:
        """Requests on the wire, by operation and outcome."""
        return self._inner.counters

    def get(
        self, key: str, offset: int = 0, length: int | None = None, *, if_match: str | None = None
    ) -> Fetched:
        """See ObjectStore.get."""
        return self._inner.get(self._full("get", key), offset, length, if_match=if_match)

    def head(self, key: str) -> ObjectInfo:
        """See ObjectStore.head. The key in the answer is relative."""
        return replace(self._inner.head(self._full("head", key)), key=key)

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
        """See ObjectStore.put. The keys of a Composed body are relative too."""
        if isinstance(body, Composed):
            body = body.with_keys(lambda name: self._full("copy", name))
        return self._inner.put(
            self._full("put", key),
            body,
            content_type=content_type,
            metadata=metadata,
            if_none_match=if_none_match,
            if_match=if_match,
        )

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
        return self._inner.copy(
            self._full("copy", src),
            self._full("copy", dst),
            src_if_match=src_if_match,
            content_type=content_type,
            metadata=metadata,
            if_none_match=if_none_match,
            if_match=if_match,
        )

    def copy_from(self, source: ScopedStore, src: str, dst: str) -> str:
        """Copy an object of another prefix of the same store into this one; returns the ETag.

        Content type and metadata are the source's. Raises as ObjectStore.copy.
        """
        if source._inner is not self._inner:
            raise PermanentError("copy", dst, "the source is another store")
        return self._inner.copy(source._full("get", src), self._full("copy", dst))

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        """See ObjectStore.delete."""
        self._inner.delete(self._full("delete", key), if_match=if_match)

    def delete_many(self, keys: Iterable[str | tuple[str, str]]) -> list[DeleteFailure]:
        """See ObjectStore.delete_many. Nothing is deleted when one key is refused."""
        full: list[str | tuple[str, str]] = [
            self._full("delete", item)
            if isinstance(item, str)
            else (self._full("delete", item[0]), item[1])
            for item in keys
        ]
        failures = self._inner.delete_many(full)
        return [replace(failure, key=self._relative(failure.key)) for failure in failures]

    def purge(self, keys: Iterable[str]) -> list[DeleteFailure]:
        """See ObjectStore.purge: keys as `everything` gives them."""
        if self._read_only:
            raise PermanentError("delete", self.prefix, "the store was opened for reading only")
        failures = self._inner.purge([self.prefix + key for key in keys])
        return [replace(failure, key=self._relative(failure.key)) for failure in failures]

    def list(self, prefix: str = "", start_after: str = "") -> Iterator[ListEntry]:
        """See ObjectStore.list. `prefix` and `start_after` are relative, as are the answers."""
        if prefix:
            # A prefix may end anywhere, so also in a slash or in what is not yet a whole segment.
            check_key("list", self.prefix + prefix.removesuffix("/"))
        after = self._full("list", start_after) if start_after else ""
        for entry in self._inner.list(self.prefix + prefix, after):
            yield replace(entry, key=self._relative(entry.key))

    def everything(self) -> Iterator[ListEntry]:
        """See ObjectStore.everything; of the whole prefix. The keys of the answers are relative."""
        for entry in self._inner.everything(self.prefix):
            yield replace(entry, key=self._relative(entry.key))

    def keeps(self) -> Keeps:
        """See ObjectStore.keeps."""
        return self._inner.keeps()

    def markers(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See ObjectStore.markers. `prefix` and the keys of the answers are relative."""
        if prefix:
            check_key("list", self.prefix + prefix.removesuffix("/"))
        for info in self._inner.markers(self.prefix + prefix):
            yield replace(info, key=self._relative(info.key))

    def check(self) -> None:
        """See ObjectStore.check."""
        self._inner.check(self.prefix)

    @property
    def waits(self) -> Waits:
        """Requests under way."""
        return self._inner.waits

    def abort_uploads(self, older_s: float) -> int:
        """See ObjectStore.abort_uploads; of the whole prefix."""
        return self._inner.abort_uploads(self.prefix, older_s)

    def assume(self, conditional: Conditional) -> None:
        """See ObjectStore.assume."""
        self._inner.assume(conditional)

    def probe_conditional(self, pool: Executor | None = None) -> Conditional:
        """Try each condition for real on scratch objects, remove these, and return what holds.

        The result is assumed from then on. `safe` is False on a store on which two writers could
        overwrite each other; refusing it is the caller's decision. About twenty requests, with a
        `pool` three and more at once: a mount waits for them.
        """
        key = f"{PROBE_PREFIX}{self._randbits(64):016x}"
        self.assume(Conditional())
        probes = (self._probe_create, self._probe_replace, self._probe_onto)
        names = [f"{key}.{number}" for number in range(len(probes))]
        try:
            created, replaced, onto = _all(pool, *map(partial, probes, names))
        finally:
            scratch = [*names, names[0] + COPY_END, names[2] + COPY_END]
            full = [self._full("delete", name) for name in scratch]
            _all(pool, *(partial(self._inner.delete, name) for name in full))
        found = Conditional(
            put_must_create=created[0],
            copy_src_if_match=created[1],
            delete_if_match=created[2],
            put_if_match=replaced[0],
            copy_must_create=onto[0],
            delete_many_if_match=onto[1],
        )
        self.assume(found)
        return found

    def close(self) -> None:
        """See ObjectStore.close."""
        self._inner.close()

    def _probe_create(self, key: str) -> tuple[bool, ...]:
        stale = self.put(key, b"probe 1", if_none_match=True)
        must_create = _refused(lambda: self.put(key, b"probe 2", if_none_match=True))
        self.put(key, b"probe three")
        source = _refused(lambda: self.copy(key, key + COPY_END, src_if_match=stale))
        delete = _refused(lambda: self.delete(key, if_match=stale))
        return must_create, source, delete

    def _probe_replace(self, key: str) -> tuple[bool, ...]:
        stale = self.put(key, b"probe 1")
        if self.put(key, b"probe three") == stale:
            raise PermanentError("probe", self.prefix, "the store gives all objects one ETag")
        if_match = _refused(lambda: self.put(key, b"probe 4", if_match=stale))
        current = self.head(key).etag
        self.put(key, b"probe 5..", if_match=current)
        return (if_match,)

    def _probe_onto(self, key: str) -> tuple[bool, ...]:
        self.put(key, b"probe three")
        self.put(key + COPY_END, b"probe 6")
        must_create = _refused(lambda: self.copy(key, key + COPY_END, if_none_match=True))
        return must_create, bool(self.delete_many([(key + COPY_END, NOBODYS_ETAG)]))

    def _full(self, op: str, key: str) -> str:
        if self._read_only and op in _WRITES:
            raise PermanentError(op, key, "the store was opened for reading only")
        if key.startswith("/"):
            raise PermanentError(op, ascii(key[:200]), "not a usable key: it is absolute")
        check_key(op, self.prefix + key)
        return self.prefix + key

    def _relative(self, key: str) -> str:
        if not key.startswith(self.prefix):
            raise PermanentError("list", ascii(key[:200]), "the store answered with a foreign key")
        return key[len(self.prefix) :]


def _all(pool: Executor | None, *jobs: Callable[[], T]) -> list[T]:
    """What the jobs return; all have come to their end when the first error is raised."""
    if pool is None:
        return [job() for job in jobs]
    futures = [pool.submit(job) for job in jobs]
    for future in futures:
        future.exception()
    return [future.result() for future in futures]


def _refused(attempt: object) -> bool:
    assert callable(attempt)
    try:
        attempt()
    except ConflictError:
        return True
    except PermanentError as exc:
        if _not_implemented(exc):
            return False
        raise
    return False


def _not_implemented(exc: StoreError) -> bool:
    return "NotImplemented" in exc.detail

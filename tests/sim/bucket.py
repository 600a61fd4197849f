"""The store of a run, and a process's way to it.

`Bucket` holds the objects and watches what is sealed. `Link` is how one process reaches it: by way
of the weather, taking time, and no longer once the process is dead.

Invariants
1. A segment is seen at the moment it stands: its number follows the newest, nobody overwrites it,
   and what it holds is what the model said when it was frozen.
2. A request that was under way when its process died may still be applied, some time later.

Called by the modules of sim only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, TypeVar

from s3ws_fs.core import journal, layout
from s3ws_fs.core.lease import decode_lease
from s3ws_fs.store.base import (
    DEFAULT_CONTENT_TYPE,
    DeleteFailure,
    Fetched,
    ListEntry,
    ObjectInfo,
    ObjectStore,
)
from s3ws_fs.store.body import Body, Source
from s3ws_fs.store.memory import MemoryStore
from tests.sim import strands
from tests.sim.tree import Wrong

if TYPE_CHECKING:
    from tests.sim.hosts import Process
    from tests.sim.outsiders import Outsiders

T = TypeVar("T")

LATE_CHANCE: Final = 0.3
"""Of requests under way when their process dies, so many are applied all the same."""


class Bucket(MemoryStore):
    """The objects. `on_segment` is told of each that is put, with its header; `on_put` of every key
    below the prefix."""

    def __init__(
        self,
        now_ns: Callable[[], int],
        prefix: str,
        on_segment: Callable[[journal.Header], None],
        on_put: Callable[[str], None],
    ) -> None:
        super().__init__(now_ns=now_ns, etags_by_content=True)
        self._prefix = prefix
        self._on_segment = on_segment
        self._on_put = on_put
        self.lease_host: str | None = None
        """Who put the lease last."""
        self.ignores_conditions = False
        """The bug of some stores, to see that it is found."""
        self.outsiders: Outsiders | None = None
        """Who is told of every object of the mirror."""

    def _require(self, op: str, key: str, if_none_match: bool, if_match: str | None) -> None:
        if not self.ignores_conditions:
            super()._require(op, key, if_none_match, if_match)

    def _store(self, key: str, data: bytes, content_type: str, metadata: Mapping[str, str]) -> str:
        relative = key.removeprefix(self._prefix)
        if layout.key_number(relative, layout.SEG_PREFIX) is not None:
            if key in self._objects:
                raise Wrong(f"{relative} was overwritten")
            self._on_segment(journal.decode_header(data[: journal.HEADER_BYTES], relative))
        elif relative == layout.LEASE_KEY:
            self.lease_host = decode_lease(data, relative).host
        self._on_put(relative)
        etag = super()._store(key, data, content_type, metadata)
        if self.outsiders is not None:
            self.outsiders.was_put(key, data)
        return etag

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        was_there = key in self._objects
        super().delete(key, if_match=if_match)
        if self.outsiders is not None and was_there:
            self.outsiders.was_removed(key)


class Link(ObjectStore):
    """A store as one process sees it. Used from strands only."""

    def __init__(self, inner: ObjectStore, process: Process) -> None:
        super().__init__()
        self._inner = inner
        self._process = process

    def get(
        self, key: str, offset: int = 0, length: int | None = None, *, if_match: str | None = None
    ) -> Fetched:
        return self._ask(
            "get", key, lambda: self._inner.get(key, offset, length, if_match=if_match)
        )

    def head(self, key: str) -> ObjectInfo:
        return self._ask("head", key, lambda: self._inner.head(key))

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
        data = Source("put", key, body).read_all()
        return self._ask(
            "put",
            key,
            lambda: self._inner.put(
                key,
                data,
                content_type=content_type,
                metadata=metadata,
                if_none_match=if_none_match,
                if_match=if_match,
            ),
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
        return self._ask(
            "copy",
            dst,
            lambda: self._inner.copy(
                src,
                dst,
                src_if_match=src_if_match,
                content_type=content_type,
                metadata=metadata,
                if_none_match=if_none_match,
                if_match=if_match,
            ),
        )

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        self._ask("delete", key, lambda: self._inner.delete(key, if_match=if_match))

    def delete_many(self, keys: Iterable[str | tuple[str, str]]) -> list[DeleteFailure]:
        items = list(keys)
        if not items:
            return []
        name = items[0] if isinstance(items[0], str) else items[0][0]
        return self._ask("delete", name, lambda: self._inner.delete_many(items))

    def list(self, prefix: str = "", start_after: str = "") -> Iterator[ListEntry]:
        yield from self._ask("list", prefix, lambda: list(self._inner.list(prefix, start_after)))

    def check(self, prefix: str = "") -> None:
        self._ask("list", prefix, lambda: self._inner.check(prefix))

    def _ask(self, op: str, key: str, apply: Callable[[], T]) -> T:
        process = self._process
        world = process.host.world
        changes = op in ("put", "copy", "delete")
        process.sends(op, key)
        try:
            strands.sleep(world.weather.before_s())
            while (left_s := process.host.out_of_touch_until_s - world.now_s()) > 0:
                world.weather.trouble()
                strands.sleep(left_s)
                world.weather.trouble()
        except strands.Died:
            if changes and world.rng.random() < LATE_CHANCE:
                world.apply_late(apply)
            raise
        self.counters.add(op, "sent")
        try:
            result = apply()
        except Exception as exc:
            world.note("request", process.host.name, op, key, type(exc).__name__)
            raise
        world.note("request", process.host.name, op, key, "ok")
        after_s = world.weather.after_s()
        if after_s:
            strands.sleep(after_s)
        return result

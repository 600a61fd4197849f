"""A store before another store, whose n-th request goes wrong in a chosen way.

    store = FaultyStore(MemoryStore())
    store.choose = nth(7, Fault.LOST)

Invariants
1. A request is one call of a method; `delete_many` is one for each batch of DELETE_BATCH keys, and
   a listing one for each LIST_PAGE entries. They are numbered from 1 in the order they come.
2. A fault keeps the contract of store/base.py: TransientError may or may not have been applied, any
   other StoreError was not. SHORT, FLIPPED and KILL_* are what no contract can promise.
3. What was sent LATE is applied before the LATE_BY-th request after it, whatever came between.

Called by tests. For faults on the wire of an S3 store see proxy.py and faulty_wire.py.
"""

from __future__ import annotations

import enum
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypeVar

from s3ws_fs.core.errors import (
    ConflictError,
    PermanentError,
    StoreError,
    TransientError,
)
from s3ws_fs.store.base import (
    DEFAULT_CONTENT_TYPE,
    DELETE_BATCH,
    Conditional,
    DeleteFailure,
    Fetched,
    ListEntry,
    ObjectInfo,
    ObjectStore,
)
from s3ws_fs.store.body import Body, Source

T = TypeVar("T")

LATE_BY: Final = 3
LIST_PAGE: Final = 1000


class Fault(enum.Enum):
    """What happens to one request."""

    ERROR = "error"  # 500: not applied, TransientError
    SLOW_DOWN = "slow down"  # 503: not applied, TransientError
    RESET = "reset"  # the connection broke before it got there: not applied, TransientError
    LOST = "lost"  # applied, but the answer was lost: TransientError
    LATE = "late"  # TransientError; applied a few requests later
    DENIED = "denied"  # not applied, PermanentError
    CONFLICT = "conflict"  # not applied, ConflictError, whatever stands there
    PARTIAL = "partial"  # delete_many: every other key is not deleted; a listing breaks off
    SHORT = "short"  # a GET brings fewer bytes than it says
    FLIPPED = "flipped"  # a GET brings a wrong byte
    KILL_BEFORE = "kill before"  # this process dies, the request was not sent
    KILL_AFTER = "kill after"  # this process dies, the request was applied


CHANGING: Final = (Fault.ERROR, Fault.RESET, Fault.LOST, Fault.LATE)
"""Faults from which everything must recover by itself, for requests that change something."""
READING: Final = (Fault.ERROR, Fault.RESET)
"""The same, for requests that read."""
CHANGES: Final = ("put", "copy", "delete", "delete_many")


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `condition` is "", "must-create" or "if-match"."""

    number: int
    op: str
    key: str
    condition: str = ""


Choose = Callable[[Request], Fault | None]


def nothing(_: Request) -> Fault | None:
    """No fault."""
    return None


def nth(number: int, fault: Fault) -> Choose:
    """The request of that number goes wrong, no other."""
    return lambda request: fault if request.number == number else None


class FaultyStore(ObjectStore):
    """See the module. `choose` may be replaced at any time; `requests` are all that came."""

    def __init__(self, inner: ObjectStore, choose: Choose = nothing) -> None:
        super().__init__()
        self.counters = inner.counters
        self.inner = inner
        self.choose = choose
        self.requests: list[Request] = []
        self._late: list[tuple[int, Callable[[], object]]] = []
        self._lock = threading.RLock()

    def reset(self, choose: Choose = nothing) -> None:
        """Number the requests anew. What is late comes now."""
        self.settle()
        with self._lock:
            self.requests.clear()
            self.choose = choose

    def settle(self) -> None:
        """Everything that is late comes now."""
        with self._lock:
            late, self._late = self._late, []
        for _, apply in late:
            _ignoring(apply)

    def get(
        self, key: str, offset: int = 0, length: int | None = None, *, if_match: str | None = None
    ) -> Fetched:
        """See ObjectStore.get."""
        request = self._number("get", key, "" if if_match is None else "if-match")
        fault = self.choose(request)
        found = self._run(
            request, fault, lambda: self.inner.get(key, offset, length, if_match=if_match)
        )
        if fault is Fault.SHORT and found.data:
            return Fetched(found.data[:-1], found.etag, found.total_bytes)
        if fault is Fault.FLIPPED and found.data:
            middle = len(found.data) // 2
            wrong = bytes([found.data[middle] ^ 0x40])
            data = found.data[:middle] + wrong + found.data[middle + 1 :]
            return Fetched(data, found.etag, found.total_bytes)
        return found

    def head(self, key: str) -> ObjectInfo:
        """See ObjectStore.head."""
        return self._ask("head", key, "", lambda: self.inner.head(key))

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
        # Read now: what is applied late must not need the file any more.
        data = Source("put", key, body).read_all()

        def apply() -> str:
            return self.inner.put(
                key,
                data,
                content_type=content_type,
                metadata=metadata,
                if_none_match=if_none_match,
                if_match=if_match,
            )

        return self._ask("put", key, _condition(if_none_match, if_match), apply)

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

        def apply() -> str:
            return self.inner.copy(
                src,
                dst,
                src_if_match=src_if_match,
                content_type=content_type,
                metadata=metadata,
                if_none_match=if_none_match,
                if_match=if_match,
            )

        return self._ask("copy", dst, _condition(if_none_match, if_match), apply)

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        """See ObjectStore.delete."""
        condition = _condition(False, if_match)
        self._ask("delete", key, condition, lambda: self.inner.delete(key, if_match=if_match))

    def delete_many(self, keys: Iterable[str | tuple[str, str]]) -> list[DeleteFailure]:
        """See ObjectStore.delete_many."""
        remaining = iter(list(keys))
        failures: list[DeleteFailure] = []
        while batch := list(islice(remaining, DELETE_BATCH)):
            failures += self._delete_batch(batch)
        return failures

    def _delete_batch(self, batch: list[str | tuple[str, str]]) -> list[DeleteFailure]:
        names = [item if isinstance(item, str) else item[0] for item in batch]
        request = self._number("delete_many", names[0], "")
        fault = self.choose(request)
        if fault is Fault.PARTIAL:
            kept = [
                DeleteFailure(name, TransientError("delete", name, "injected: not deleted"))
                for name in names[::2]
            ]
            return kept + self.inner.delete_many(batch[1::2])
        return self._run(request, fault, lambda: self.inner.delete_many(batch))

    def list(self, prefix: str = "", start_after: str = "") -> Iterator[ListEntry]:
        """See ObjectStore.list."""
        entries = self.inner.list(prefix, start_after)
        while True:
            request = self._number("list", prefix, "")
            fault = self.choose(request)
            page = self._run(request, fault, lambda: list(islice(entries, LIST_PAGE)))
            if fault is Fault.PARTIAL:
                yield from page[: len(page) // 2]
                raise TransientError("list", prefix, "injected: broke off")
            yield from page
            if len(page) < LIST_PAGE:
                return

    def check(self, prefix: str = "") -> None:
        """See ObjectStore.check."""
        self._ask("list", prefix, "", lambda: self.inner.check(prefix))

    def assume(self, conditional: Conditional) -> None:
        """See ObjectStore.assume."""
        self.inner.assume(conditional)

    def close(self) -> None:
        """See ObjectStore.close."""
        self.inner.close()

    def _number(self, op: str, key: str, condition: str) -> Request:
        with self._lock:
            request = Request(len(self.requests) + 1, op, key, condition)
            self.requests.append(request)
            due = [apply for number, apply in self._late if number <= request.number]
            self._late = [item for item in self._late if item[0] > request.number]
        for apply in due:
            _ignoring(apply)
        return request

    def _ask(self, op: str, key: str, condition: str, apply: Callable[[], T]) -> T:
        request = self._number(op, key, condition)
        return self._run(request, self.choose(request), apply)

    def _run(self, request: Request, fault: Fault | None, apply: Callable[[], T]) -> T:
        op, key = request.op, request.key
        if fault in (Fault.ERROR, Fault.SLOW_DOWN, Fault.RESET):
            raise TransientError(op, key, f"injected: {fault.value}")
        if fault is Fault.DENIED:
            raise PermanentError(op, key, "injected: denied")
        if fault is Fault.CONFLICT:
            raise ConflictError(op, key, "injected: conflict")
        if fault is Fault.LATE:
            with self._lock:
                self._late.append((request.number + LATE_BY, apply))
            raise TransientError(op, key, "injected: it is on its way still")
        if fault is Fault.KILL_BEFORE:
            os.kill(os.getpid(), signal.SIGKILL)
        result = apply()
        if fault is Fault.KILL_AFTER:
            os.kill(os.getpid(), signal.SIGKILL)
        if fault is Fault.LOST:
            raise TransientError(op, key, "injected: applied, but the answer was lost")
        return result


def _condition(if_none_match: bool, if_match: str | None) -> str:
    if if_none_match:
        return "must-create"
    return "" if if_match is None else "if-match"


def _ignoring(apply: Callable[[], object]) -> None:
    """The server applies what came late, or refuses it: nobody hears."""
    try:
        apply()
    except StoreError:
        return

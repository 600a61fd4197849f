"""The handlers without a kernel: fetching, deadlines, refusal, and what faults become."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pyfuse3
import pytest
import trio
import trio.testing

from s3ws_fs.core.errors import FsError, GoneError, PermanentError, TransientError
from s3ws_fs.core.types import Attr, Location, NeedExtents
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.fuse import operations as operations_module
from s3ws_fs.fuse.operations import Operations
from s3ws_fs.fuse.waiting import FETCH_DEADLINE_S, FETCH_ROUNDS_MAX

NEED = NeedExtents(7, ((0, Location(1, 0, 5, b"\0" * 16)),))
ATTR = Attr(7, 0o100644, 0, 0, 1, 0, 5, 8, 1, 2, 3)
CTX = cast(pyfuse3.RequestContext, None)


class ColdFs:
    """Says for `cold` calls that it needs extents, then answers."""

    def __init__(self, cold: int) -> None:
        self.cold = cold
        self.calls = 0

    def _result(self, result: Any) -> Any:
        self.calls += 1
        return NEED if self.calls <= self.cold else result

    def finish_batch(self) -> None:
        pass

    def read(self, ino: int, offset: int, length: int) -> bytes | NeedExtents:
        return cast(bytes, self._result(b"bytes"))

    def write(self, ino: int, offset: int, data: bytes) -> int | NeedExtents:
        return cast(int, self._result(len(data)))

    def setattr(self, ino: int, **_: object) -> Attr | NeedExtents:
        return cast(Attr, self._result(ATTR))


def _operations(
    fs: object,
    fetch: Callable[[NeedExtents], Awaitable[None]] | None = None,
    *,
    is_following: bool = False,
) -> Operations:
    async def nothing() -> None:
        return None

    async def fetched(need: NeedExtents) -> None:
        assert need is NEED
        await trio.lowlevel.checkpoint()

    return Operations(
        cast(FileSystem, fs),
        fetch=fetch or fetched,
        wait_durable=nothing,
        is_following=is_following,
    )


def _setattr(ops: Operations) -> Awaitable[pyfuse3.EntryAttributes]:
    return ops.setattr(7, pyfuse3.EntryAttributes(), pyfuse3.SetattrFields(), None, CTX)


async def test_cold_bytes_are_fetched_and_the_call_made_again() -> None:
    assert await _operations(ColdFs(2)).read(7, 0, 5) == b"bytes"
    assert await _operations(ColdFs(1)).write(7, 0, b"xyz") == 3
    assert (await _setattr(_operations(ColdFs(1)))).st_size == 5


async def test_each_wait_for_cold_bytes_is_timed_and_all_bytes_are_counted() -> None:
    ops = _operations(ColdFs(2))
    await ops.read(7, 0, 5)
    await ops.write(7, 0, b"xyz")
    said = ops.tally.to_json()
    assert {kind: of["count"] for kind, of in said["ops"].items()} == {
        "fetch": 2,
        "read": 1,
        "write": 1,
    }
    assert sum(said["ops"]["fetch"]["bits"].values()) == 2
    assert (said["read_bytes"], said["written_bytes"]) == (5, 3)


async def test_fetching_ends_after_the_limit() -> None:
    assert await _operations(ColdFs(FETCH_ROUNDS_MAX)).read(7, 0, 5) == b"bytes"
    for call in (
        lambda ops: ops.read(7, 0, 5),
        lambda ops: ops.write(7, 0, b"x"),
        _setattr,
    ):
        fs = ColdFs(FETCH_ROUNDS_MAX + 1)
        with pytest.raises(pyfuse3.FUSEError) as caught:
            await call(_operations(fs))
        assert caught.value.errno == errno.EIO
        assert fs.calls == FETCH_ROUNDS_MAX + 1


async def test_a_fetch_that_hangs_ends_in_eio(autojump_clock: trio.testing.MockClock) -> None:
    async def hang(_: NeedExtents) -> None:
        await trio.sleep_forever()

    start = trio.current_time()
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await _operations(ColdFs(1), hang).read(7, 0, 5)
    assert caught.value.errno == errno.EIO
    assert trio.current_time() - start == FETCH_DEADLINE_S


@pytest.mark.parametrize(
    "error",
    [TransientError("get", "k", "down"), PermanentError("get", "k", "no"), RuntimeError("bug")],
)
async def test_a_fetch_that_fails_ends_in_eio(error: Exception) -> None:
    async def fail(_: NeedExtents) -> None:
        raise error

    ops = _operations(ColdFs(1), fail)
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await ops.read(7, 0, 5)
    assert caught.value.errno == errno.EIO
    assert ops.faults.count == (1 if isinstance(error, RuntimeError) else 0)
    assert ops.tally.kinds["fetch"].count == 1, "a wait in vain is one, too"


async def test_other_requests_are_served_while_one_fetches() -> None:
    fetching, go_on = trio.Event(), trio.Event()

    async def fetch(_: NeedExtents) -> None:
        fetching.set()
        await go_on.wait()

    fs = ColdFs(1)
    ops = _operations(fs, fetch)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ops.read, 7, 0, 5)
        await fetching.wait()
        assert await ops.write(7, 0, b"now") == 3
        go_on.set()


async def test_changes_are_refused_after_the_end_has_begun() -> None:
    ops = _operations(ColdFs(0))
    assert await ops.write(7, 0, b"x") == 1
    ops.refuse_changes()
    changes: list[Callable[[], Awaitable[object]]] = [
        lambda: ops.write(7, 0, b"x"),
        lambda: _setattr(ops),
        lambda: ops.create(1, b"n", 0o644, 0, CTX),
        lambda: ops.mknod(1, b"n", 0o644, 0, CTX),
        lambda: ops.mkdir(1, b"n", 0o755, CTX),
        lambda: ops.symlink(1, b"n", b"t", CTX),
        lambda: ops.link(7, 1, b"n", CTX),
        lambda: ops.unlink(1, b"n", CTX),
        lambda: ops.rmdir(1, b"n", CTX),
        lambda: ops.rename(1, b"n", 1, b"m", 0, CTX),
        lambda: ops.setxattr(7, b"user.a", b"", CTX),
        lambda: ops.removexattr(7, b"user.a", CTX),
        lambda: ops.open(7, 0o1000, CTX),
    ]
    for change in changes:
        with pytest.raises(pyfuse3.FUSEError) as caught:
            await change()
        assert caught.value.errno == errno.EIO
    assert ops.faults.count == 0
    assert await ops.read(7, 0, 5) == b"bytes"


async def test_flush_and_access_are_asked_once_only() -> None:
    ops = _operations(ColdFs(0))
    for call in (ops.flush(7), ops.access(7, 4, CTX)):
        with pytest.raises(pyfuse3.FUSEError) as caught:
            await call
        assert caught.value.errno == errno.ENOSYS


async def test_errors_of_the_filesystem_keep_their_errno() -> None:
    class Full:
        def mkdir(self, *_: object) -> Attr:
            raise FsError(errno.EDQUOT)

        def lookup(self, *_: object) -> Attr:
            raise FsError(errno.ENAMETOOLONG)

    ctx = CTX
    ops = _operations(Full())
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await ops.lookup(1, b"x", ctx)
    assert caught.value.errno == errno.ENAMETOOLONG


async def test_a_missing_name_is_answered_so_that_the_kernel_remembers() -> None:
    class Empty:
        def lookup(self, *_: object) -> Attr:
            raise FsError(errno.ENOENT)

    entry = await _operations(Empty()).lookup(1, b"x", CTX)
    assert entry.st_ino == 0
    assert entry.entry_timeout > 3600


class Following:
    """A filesystem whose inode 7 went, and 8 is there."""

    def __init__(self) -> None:
        self.opened: list[int] = []

    def getattr(self, ino: int) -> Attr:
        if ino == 7:
            raise GoneError(ino)
        return ATTR

    def lookup(self, parent: int, name: bytes) -> Attr:
        if parent == 7:
            raise GoneError(parent)
        raise FsError(errno.ENOENT)

    def open(self, ino: int) -> None:
        self.opened.append(ino)

    def mkdir(self, *_: object) -> Attr:
        raise AssertionError("reached the filesystem")


async def _code(call: Awaitable[object]) -> int:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await call
    return int(caught.value.errno)


async def test_while_following_what_went_is_stale_and_nothing_is_kept() -> None:
    fs = Following()
    ops = _operations(fs, is_following=True)
    assert await _code(ops.getattr(7, CTX)) == errno.ESTALE
    assert await _code(ops.lookup(7, b"x", CTX)) == errno.ESTALE
    assert await _code(ops.open(7, 0, CTX)) == errno.ESTALE
    assert await _code(ops.opendir(7, CTX)) == errno.ESTALE
    assert fs.opened == []
    assert (await ops.lookup(8, b"x", CTX)).entry_timeout == 0
    entry = await ops.getattr(8, CTX)
    assert (entry.attr_timeout, entry.entry_timeout) == (0, 0)
    assert await _code(ops.mkdir(8, b"x", 0o700, CTX)) == errno.EROFS
    assert await _code(_operations(fs).getattr(7, CTX)) == errno.ENOENT  # a mount that writes


async def test_pages_of_files_that_changed_are_dropped_at_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ops = _operations(Following(), is_following=True)
    assert (await ops.open(8, 0, CTX)).keep_cache
    ops.note_rewritten([8, 9])
    assert not (await ops.open(8, 0, CTX)).keep_cache
    assert (await ops.open(10, 0, CTX)).keep_cache
    monkeypatch.setattr(operations_module, "REWRITTEN_MAX", 2)
    ops.note_rewritten([11])
    assert not (await ops.open(10, 0, CTX)).keep_cache
    ops.note_rewritten([12])
    assert not (await ops.open(13, 0, CTX)).keep_cache


async def test_cancellation_passes_through() -> None:
    async def fetch(_: NeedExtents) -> None:
        await trio.sleep_forever()

    ops = _operations(ColdFs(1), fetch)
    with trio.move_on_after(0.01) as scope:
        await ops.read(7, 0, 5)
    assert scope.cancelled_caught
    assert ops.faults.count == 0

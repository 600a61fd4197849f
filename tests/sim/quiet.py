"""When everything is in step: cache, bucket and mirror against the model, and the audit.

Invariants
1. Nothing is written here; whatever is pending is a fault, since it had all the time it wanted.

Called by world.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any, Final

import trio

from s3ws_fs.cache.checking import Checked, check_records
from s3ws_fs.core.content import time_text
from s3ws_fs.core.errors import UserError
from s3ws_fs.core.findings import Report
from s3ws_fs.core.layout import FILES_PREFIX, mirror_path
from s3ws_fs.replica.cold import scan_cold
from s3ws_fs.replica.places import mirror_rows
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer.audit import audit
from s3ws_fs.transfer.audit_places import LocalSide
from tests.sim.tree import Nodes, Wrong, paths

if TYPE_CHECKING:
    from tests.sim.life import Life
    from tests.sim.world import World

TRIES_MAX: Final = 20
HYDRATION_S_MAX: Final = 900.0
NOTED: Final = frozenset({"garbage"})
"""Findings that are no fault: it goes with a later checkpoint."""


class _Inline(Executor):
    """Does it at once."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as exc:
            future.set_exception(exc)
        return future


async def settle(world: World, life: Life) -> None:
    """Wait until all is in step, and look. Raises Wrong."""
    await _sync(world, life)
    with trio.move_on_after(HYDRATION_S_MAX) as scope:
        await life.hydrated()
    if scope.cancelled_caught:
        raise Wrong(f"hydration does not end: {life.replica.status()['hydration']}")
    # What was dropped meanwhile.
    await _sync(world, life)
    if not world.may_be_fenced(life.host):
        check(world, life)


async def _sync(world: World, life: Life) -> None:
    """Until it succeeds, or the host is fenced: the worker may still be killed at a failpoint."""
    for _ in range(TRIES_MAX):
        try:
            await life.replica.sync(lambda _: None, outside=world.outsiders is not None)
        except UserError as exc:
            if world.may_be_fenced(life.host):
                return
            life.excuse(f"sync failed: {exc}", trio.current_time() - 300)
            await trio.sleep(30)
        else:
            return
    raise Wrong("sync fails and fails in fair weather")


def check(world: World, life: Life) -> None:
    """Everything against everything."""
    cache, nodes = life.cache, life.branch.nodes
    newest = world.newest
    if newest is None or newest.generation != cache.generation:
        raise Wrong(f"head is {cache.generation}, sealed {newest and newest.generation}")
    with cache.read() as view:
        if view.dirty_count():
            raise Wrong(f"dirt after a sync: {list(view.dirty())[:3]}")
        behind = list(view.mtodo())
    _check_cold(life)
    left = _left(world, life)
    hindered = {ino for path, ino in paths(nodes) if _key(world, path) in left}
    with cache.read() as view:
        # Also by what stands where it was before.
        rows = [view.mirror_at(key.split(FILES_PREFIX, 1)[1].encode()) for key in left]
    hindered.update(row.ino for row in rows if row is not None)
    if any(ino not in hindered for ino, _ in behind):
        raise Wrong(f"the mirror is behind after a sync: {behind[:3]}")
    # One that can't be put at all its names keeps its old objects.
    files = world.prefix + FILES_PREFIX
    with cache.read() as view:
        old = {
            files + row.path.decode()
            for row in mirror_rows(view)
            # A directory has no object, and its row the bytes of its name.
            if row.ino in hindered and not row.path.endswith(b"/")
        }
    left |= old - {_key(world, path) for path, _ in paths(nodes)}
    _check_mirror(world, nodes, left)
    _check_audit(world, life, left)
    world.history.check(_Inline())


def _left(world: World, life: Life) -> set[str]:
    """Keys of what somebody else put and what is left alone, which status says."""
    files = world.prefix + FILES_PREFIX
    left = {files + item["path"] for item in life.replica.status()["outside"]["left"]}
    standing = set() if world.outsiders is None else world.outsiders.standing.keys()
    if not left <= standing:
        raise Wrong(f"left alone, but nobody put it: {sorted(left - standing)[:3]}")
    return left


def _key(world: World, path: bytes) -> str:
    return f"{world.prefix}{FILES_PREFIX}{mirror_path(path, len(world.prefix))[0]}"


def _check_cold(life: Life) -> None:
    hydration = life.replica.status()["hydration"]
    if life.cache.has_evicted or hydration["damaged"]:
        return
    resume: bytes | None = b""
    while resume is not None:
        found, resume = scan_cold(life.cache, resume, 1000)
        if found:
            raise Wrong(f"hydrated, but {found[0]} is cold: {hydration}")


def _check_mirror(world: World, nodes: Nodes, left: set[str]) -> None:
    prefix = world.prefix
    objects = world.bucket._objects
    standing = {key for key in objects if key.startswith(prefix + FILES_PREFIX)} - left
    for path, ino in paths(nodes):
        node = nodes[ino]
        text, _ = mirror_path(path, len(prefix))
        if node.is_dir or not text:
            continue
        key = f"{prefix}{FILES_PREFIX}{text}"
        if key in left:
            continue
        found = objects.get(key)
        if found is None:
            raise Wrong(f"{path!r} is not in the mirror")
        standing.discard(key)
        if found.data != (b"" if node.is_special else node.data):
            raise Wrong(f"{path!r} has other bytes in the mirror")
        said = {name: found.info.metadata.get(name) for name in ("mode", "mtime")}
        if said != {"mode": str(node.mode), "mtime": time_text(node.mtime_ns)}:
            raise Wrong(f"{path!r} has {said} in the mirror, not {node.mode} {node.mtime_ns}")
    if standing:
        raise Wrong(f"the mirror shows what is not there: {sorted(standing)[:5]}")


def _check_audit(world: World, life: Life, left: set[str]) -> None:
    done = Checked(Report(), prefix=world.prefix)
    check_records(life.cache, done, lambda _: None)
    _no_findings("the cache", done.report)
    assert done.tables is not None and done.values is not None
    local = LocalSide(life.cache, done.tables, done.values)
    store = ScopedStore(world.bucket, world.prefix)
    _no_findings("the bucket", audit(store, _Inline(), lambda _: None, local=local).report, left)


def check_bucket(world: World) -> None:
    """At any moment, whatever was cut off: nothing in the bucket is damaged."""
    store = ScopedStore(world.bucket, world.prefix)
    world.history.check(_Inline())
    report = audit(store, _Inline(), lambda _: None).report
    found = [
        f"{f.severity} {f.code} {f.where}: {f.message}"
        for f in report.findings
        # What came when nobody waited for it any more is found by a later listing.
        if not (world.awaits_late and f.code.startswith("mirror-"))
        # What somebody else did is looked at now and then.
        and not (world.outsiders is not None and f.code.startswith("mirror-"))
        and f.code not in NOTED
    ]
    if not report.ok and found:
        raise Wrong("the bucket is not clean: " + "; ".join(found[:5]))


def _no_findings(what: str, report: Report, left: Iterable[str] = ()) -> None:
    found = [
        f"{f.code} {f.where}: {f.message}"
        for f in report.findings
        if f.code not in NOTED
        and not (f.code.startswith("mirror-") and any(key.endswith(f.where) for key in left))
    ]
    if found:
        raise Wrong(f"{what} is not clean: " + "; ".join(found[:5]))

"""A workspace that is killed, ended and mounted again while the twins work on it.

Invariants
1. Every event ends with a mount; what was acknowledged before it is there after it: every
   attribute, time, inode number, extended attribute and byte.
2. Handles and mappings do not outlive a mount: they are closed before an end, and lost by a kill;
   but they go on when only the daemon is replaced.
3. `end` leaves nothing behind, whatever happened.

Called by machine and by the tests of tests.model.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from s3ws_fs.core.config import StoreConfig, WorkspaceId
from tests.model.differences import Native, probe
from tests.model.look import DIFFERENCES_SHOWN, Difference, Tree, differences, tree
from tests.model.twins import Twins
from tests.support import trees
from tests.support.buckets import Bucket, LocalBucket, S3Bucket, mirror_differences
from tests.support.mounting import (
    Workspace,
    clear_mountpoint,
    mounted_workspace,
    wait_until,
    workspace_config,
)
from tests.support.pair import let_others_pass
from tests.support.seaweed import Seaweed

EVENTS: Final = (
    *("sync", "kill_worker", "replace", "kill", "remount", "fresh", "fresh_cold", "host_lost"),
)
"""What may happen to a workspace; each is a method of World (`do_` before its name)."""

END_S_MAX: Final = 120.0
REAP_S_MAX: Final = 20.0


class World:
    """One workspace on one host, a plain directory beside it, and a bucket."""

    def __init__(
        self, base: Path, server: Seaweed | None = None, *, conversation: str = "two-trees"
    ) -> None:
        self.base = base
        plain = base / "plain"
        plain.mkdir(mode=0o755)
        let_others_pass(base)
        values: dict[str, Any] = {
            "workspace": WorkspaceId("user-1", conversation),
            "debounce_min_s": 0.05,
            "debounce_max_s": 0.5,
            "max_size_bytes": 2 << 30,
            "sync_point_interval_s": 0.5,
        }
        self.env: dict[str, str] = {}
        self.bucket: Bucket = LocalBucket(base / "store")
        self._stack = contextlib.ExitStack()
        if server is not None:
            self.env = server.env
            bucket = S3Bucket(server)
            self._stack.callback(bucket.close)
            self.bucket = bucket
            values["store"] = StoreConfig(
                type="s3", bucket=server.bucket, endpoint_url=server.endpoint_url
            )
        self.config = workspace_config(base, **values)
        self.native: Native = probe(plain)
        self.events: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()
        self._daemon: Workspace | None = None
        self._mounted = contextlib.ExitStack()
        self._given = 0

    @property
    def daemon(self) -> Workspace:
        """The daemon of the mount that stands."""
        assert self._daemon is not None, "not mounted"
        return self._daemon

    def mount(self, *, take_over: bool = False) -> None:
        """Mount on whatever cache there is."""
        config = replace(self.config, take_over=take_over)
        mounted = mounted_workspace(config, env=self.env, held=True)
        self._daemon = self._mounted.enter_context(mounted)

    def end(self) -> None:
        """Invariant 3."""
        self._mounted.close()
        self._daemon = None
        self._stack.close()

    @contextlib.contextmanager
    def twins(self) -> Iterator[Twins]:
        """New twins in a new directory, which is removed afterwards."""
        self._given += 1
        tops = [Path(top) / f"t{self._given}" for top in (self.config.mountpoint, self.plain)]
        # One level deeper, so that what a symlink's ".." makes is removed as well.
        roots = [top / "in" for top in tops]
        for root in roots:
            root.mkdir(mode=0o755, parents=True)
        twins = Twins(roots[0], roots[1], self.native)
        twins.on_event = self.event
        try:
            yield twins
        finally:
            self.operations += twins.counts
            twins.close_all()
        for top in tops:
            shutil.rmtree(top)

    @property
    def plain(self) -> Path:
        """The plain directory."""
        return self.base / "plain"

    # --- events --------------------------------------------------------------------------------

    def event(self, name: str, twins: Twins) -> None:
        """Something happens to the workspace; afterwards all is as it was. Raises Difference."""
        self.events[name] += 1
        getattr(self, "do_" + name)(twins)

    def do_sync(self, twins: Twins) -> None:
        """`s3ws sync`: all is sealed and mirrored."""
        self.daemon.control("sync")

    def do_kill_worker(self, twins: Twins) -> None:
        """SIGKILL the transfer worker, whatever it is doing."""
        pid = self.daemon.status()["worker_pid"]
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def do_replace(self, twins: Twins) -> None:
        """SIGKILL the daemon alone: the next one goes on with this mount, and with open files."""
        before = self._tree()
        self.daemon.kill_daemon()
        self._same(before)

    def do_kill(self, twins: Twins) -> None:
        """SIGKILL daemon and holder with files open, and mount on their cache."""
        before = self._tree()
        self._killed(twins)
        self.mount()
        self._same(before)

    def do_remount(self, twins: Twins) -> None:
        """Unmount and mount on the same cache."""
        before = self._ended(twins)
        self.mount()
        self._same(before)

    def do_fresh(self, twins: Twins) -> None:
        """Unmount, lose the cache, mount from the bucket alone, and read everything."""
        before = self._ended(twins)
        self._lose_cache()
        self.mount()
        self._same(before)

    def do_fresh_cold(self, twins: Twins) -> None:
        """The same, and go on while the bytes are cold."""
        before = self._ended(twins)
        self._lose_cache()
        self.mount()
        self._same(before, with_bytes=False)

    def do_host_lost(self, twins: Twins) -> None:
        """`s3ws sync`, then the host is gone with its disk; another one takes over."""
        before = self._tree()
        self.daemon.control("sync")
        self._killed(twins)
        self._lose_cache()
        self.mount(take_over=True)
        self._same(before)

    def _killed(self, twins: Twins) -> None:
        self.daemon.kill()
        twins.close_all()
        clear_mountpoint(Path(self.config.mountpoint))
        self._mounted.close()

    def _lose_cache(self) -> None:
        shutil.rmtree(self.config.cache_dir)
        os.mkdir(self.config.cache_dir, 0o700)

    def _tree(self) -> Tree:
        """Everything on the mount, by what the kernel holds."""
        return tree(self.config.mountpoint, dropped=False)

    def _same(self, before: Tree, *, with_bytes: bool = True) -> None:
        """Invariant 1."""
        after = tree(self.config.mountpoint, dropped=True, with_bytes=with_bytes)
        found = differences(before, after, ignore=() if with_bytes else ("sha256",))
        if found:
            raise Difference("\n".join(["after a mount:", *found[:DIFFERENCES_SHOWN]]))

    def _ended(self, twins: Twins) -> Tree:
        """Unmount: all is saved, the mirror is the tree, the quota counts what is held."""
        twins.close_all()
        self._check_counters()
        before = self._tree()
        manifest = trees.manifest(self.config.mountpoint)
        # What status says of names that no key can carry is another test's matter.
        any_path = set(map(os.fsdecode, manifest))
        self.daemon.signal(signal.SIGTERM)
        code = self.daemon.wait(END_S_MAX)
        if code != 0:
            raise Difference(f"the daemon ended with {code}:\n{self.daemon.log()[-4000:]}")
        found = mirror_differences(self.bucket, self.config.workspace.prefix, manifest, any_path)
        if found:
            raise Difference("\n".join(["mirror:", *found[:DIFFERENCES_SHOWN]]))
        self._mounted.close()
        return before

    def _check_counters(self) -> None:
        """What the quota counts is what the files hold (orphans go soon after their handles)."""
        top = os.fsencode(self.config.mountpoint)
        held: dict[int, int] = {}
        for path in (b".", *trees.walk(top)):
            info = os.lstat(os.path.join(top, path))
            held[info.st_ino] = 0 if stat.S_ISDIR(info.st_mode) else info.st_blocks * 512
        wanted = (sum(held.values()), len(held))

        def counted() -> tuple[int, int]:
            quota = self.daemon.status()["quota"]
            return quota["used_bytes"], quota["used_inodes"]

        with contextlib.suppress(AssertionError):
            wait_until(lambda: counted() == wanted, timeout_s=REAP_S_MAX)
        if counted() != wanted:
            raise Difference(f"the quota counts {counted()}, the files hold {wanted}")


class Home:
    """Where the examples work: a world, made when it is needed and left when an example failed."""

    def __init__(self, base: Path, server: Seaweed | None = None) -> None:
        self.base = base
        self.examples = 0
        self.first_failure = ""
        """As it came: what shrinking starts from, and all there is when it does not come again."""
        self.operations: Counter[str] = Counter()
        self.events: Counter[str] = Counter()
        self._server = server
        self._world: World | None = None
        self._given = 0

    def world(self) -> World:
        """The world that stands, or a new one."""
        if self._world is None:
            self._given += 1
            base = self.base / f"w{self._given}"
            base.mkdir(mode=0o755)
            world = World(base, self._server, conversation=f"two-trees-{self._given}")
            world.operations, world.events = self.operations, self.events
            world.mount()
            self._world = world
        return self._world

    def leave(self) -> None:
        """End the world, and remove what it left."""
        world, self._world = self._world, None
        if world is not None:
            world.end()
            shutil.rmtree(world.base)

    def __str__(self) -> str:
        return (
            f"{self.examples} examples, {self.operations.total()} operations, "
            f"{self.events.total()} events {dict(sorted(self.events.items()))}"
        )

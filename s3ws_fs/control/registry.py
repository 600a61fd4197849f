"""Which mounts this host has: one small JSON file a mount, beside its control socket.

Invariants
1. `<xxh3-64 of the canonical mount point>.json` is written whole (temporary file and rename), 0600.
2. It outlives a daemon that died, so that `status` and `umount` can speak of it. The daemon removes
   it at its end only when everything is saved: no file means nothing is missing.
3. A mount goes on as long as its daemon or its holder lives. A process is the recorded one only
   if pid, start time and boot agree (pids are reused).
4. Nothing here touches a mounted filesystem, which may hang.

Called by the daemon (write, remove), launch, cli and the manager (read).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import xxhash

from s3ws_fs.control.paths import ensure_private_dir
from s3ws_fs.core import jsontext
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import FormatError

INFO_BYTES_MAX: Final = 64 * 1024
TIME_S_MAX: Final = 1 << 53
PID_MAX: Final = 1 << 22
"""The kernel's own limit."""
_INFO_SUFFIX: Final = ".json"
_SOCKET_SUFFIX: Final = ".sock"
_OPTIONAL: Final = ("log_path", "holder_pid", "holder_start_ticks")


@dataclass(frozen=True, slots=True)
class MountInfo:
    """What is known of a mount without asking its daemon. Times are seconds since the epoch."""

    mountpoint: str
    pid: int
    pid_start_ticks: int
    boot_id: str
    user_id: str
    conversation_id: str
    prefix: str
    store_type: str
    store_location: str
    cache_path: str
    log_path: str | None
    started_at_s: float
    version: str
    holder_pid: int | None = None
    holder_start_ticks: int | None = None

    @classmethod
    def for_this_process(
        cls,
        config: MountConfig,
        *,
        log_path: str | None,
        version: str,
        holder_pid: int | None = None,
    ) -> MountInfo:
        """The entry that the daemon writes about itself."""
        pid = os.getpid()
        return cls(
            mountpoint=config.mountpoint,
            pid=pid,
            pid_start_ticks=start_ticks(pid) or 0,
            boot_id=boot_id(),
            user_id=config.workspace.user_id,
            conversation_id=config.workspace.conversation_id,
            prefix=config.workspace.prefix,
            store_type=config.store.type,
            store_location=config.store.location,
            cache_path=config.workspace_cache_dir,
            log_path=log_path,
            started_at_s=time.time(),
            version=version,
            holder_pid=holder_pid,
            holder_start_ticks=None if holder_pid is None else start_ticks(holder_pid),
        )

    def is_alive(self) -> bool:
        """Whether the mount goes on: the daemon that wrote this runs, or its holder does."""
        return self.daemon_is_alive() or self.holder_is_alive()

    def daemon_is_alive(self) -> bool:
        """Whether the daemon that wrote this still runs."""
        return self.boot_id == boot_id() and start_ticks(self.pid) == self.pid_start_ticks

    def holder_is_alive(self) -> bool:
        """Whether a holder runs that starts another daemon when this one dies."""
        pid, ticks = self.holder_pid, self.holder_start_ticks
        if pid is None or ticks is None:
            return False
        return self.boot_id == boot_id() and start_ticks(pid) == ticks

    def processes(self) -> list[int]:
        """Process ids of those of both that are alive, the holder first."""
        alive = [self.holder_pid] if self.holder_pid and self.holder_is_alive() else []
        return [*alive, self.pid] if self.daemon_is_alive() else alive


def default_runtime_dir(environ: Mapping[str, str], uid: int) -> str:
    """Where sockets and entries are: WORKSPACE_RUNTIME_DIR or a place of this user's own."""
    if configured := environ.get("WORKSPACE_RUNTIME_DIR"):
        return configured
    if uid == 0:
        return "/run/s3ws"
    if session := environ.get("XDG_RUNTIME_DIR"):
        return f"{session.rstrip('/')}/s3ws"
    return f"/tmp/s3ws-{uid}"  # noqa: S108 - ensure_private_dir refuses one that is not ours


def mount_key(mountpoint: str) -> str:
    """The name that stands for a canonical mount point: 16 hexadecimal digits."""
    return xxhash.xxh3_64_hexdigest(os.fsencode(mountpoint))


def socket_path(runtime_dir: str, mountpoint: str) -> str:
    """Where the daemon of this mount point listens."""
    return str(Path(runtime_dir) / (mount_key(mountpoint) + _SOCKET_SUFFIX))


def info_path(runtime_dir: str, mountpoint: str) -> str:
    """Where the entry of this mount point stands."""
    return str(Path(runtime_dir) / (mount_key(mountpoint) + _INFO_SUFFIX))


def write(runtime_dir: str, info: MountInfo) -> None:
    """Put the entry in place, replacing an older one. Raises OSError, UserError."""
    ensure_private_dir(runtime_dir)
    path = Path(info_path(runtime_dir, info.mountpoint))
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as out:
        out.write(json.dumps({"v": 1, **asdict(info)}, indent=1).encode("ascii"))
    temporary.replace(path)


def read(runtime_dir: str, mountpoint: str) -> MountInfo | None:
    """The entry of a canonical mount point, or None. Raises FormatError when it is damaged."""
    return _read(Path(info_path(runtime_dir, mountpoint)))


def remove(runtime_dir: str, mountpoint: str, *, pid: int | None = None) -> None:
    """Take the entry away; with `pid`, only if it is still that process's own."""
    if pid is not None:
        info = read(runtime_dir, mountpoint)
        if info is None or info.pid != pid:
            return
    Path(info_path(runtime_dir, mountpoint)).unlink(missing_ok=True)


def list_mounts(runtime_dir: str) -> tuple[list[MountInfo], list[str]]:
    """All entries, ordered by mount point, and the paths of those that are damaged."""
    infos: list[MountInfo] = []
    damaged: list[str] = []
    try:
        names = sorted(os.listdir(runtime_dir))  # noqa: PTH208 - names as str, surrogates and all
    except (FileNotFoundError, NotADirectoryError):
        return [], []
    for name in names:
        if not name.endswith(_INFO_SUFFIX):
            continue
        path = Path(runtime_dir) / name
        try:
            info = _read(path)
        except FormatError:
            damaged.append(str(path))
            continue
        if info is not None:
            infos.append(info)
    return sorted(infos, key=lambda info: info.mountpoint), damaged


def _read(path: Path) -> MountInfo | None:
    try:
        with path.open("rb") as source:
            data = source.read(INFO_BYTES_MAX + 1)
    except FileNotFoundError:
        return None
    return decode(str(path), data)


def decode(where: str, data: bytes) -> MountInfo:
    """The entry in these bytes. Raises FormatError."""
    if len(data) > INFO_BYTES_MAX:
        raise FormatError(where, "too long")
    value = jsontext.object_of(data, where)
    if value.get("v") != 1:
        raise FormatError(where, "not a mount entry of this version")
    arguments: dict[str, Any] = {}
    for field in fields(MountInfo):
        item = value.get(field.name)
        kind = str(field.type).removesuffix(" | None")
        wanted = {"int": int, "float": (int, float)}.get(kind, str)
        if item is None and field.name in _OPTIONAL:
            arguments[field.name] = None
        elif isinstance(item, bool) or not isinstance(item, wanted):  # type: ignore[arg-type]
            raise FormatError(where, f"{field.name} is missing or of the wrong type")
        else:
            arguments[field.name] = item
    info = MountInfo(**arguments)
    paths = (info.mountpoint, info.cache_path, info.log_path or "/")
    if not all(path.startswith("/") and "\0" not in path for path in paths):
        raise FormatError(where, "a path in it is none")
    if not 0 < info.pid <= PID_MAX or not abs(info.started_at_s) < TIME_S_MAX:
        raise FormatError(where, "a number in it is out of range")
    return info


def boot_id() -> str:
    """This boot of the kernel, "" where it does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when it is gone or a zombie."""
    if pid <= 0:
        return None
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name is in parentheses and may hold anything, parentheses too.
    after = stat[stat.rindex(b")") + 2 :].split()
    return None if after[0] in (b"Z", b"X") else int(after[19])

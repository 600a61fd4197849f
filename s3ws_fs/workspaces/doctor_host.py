"""What this host has to have: programs and libraries, FUSE and the right to mount, room for caches.

Invariants
1. Nothing stays changed: the trial mount is taken away, and nothing is written to a disk but the
   directories that `s3ws mount` would make.
2. No mounted workspace is touched; daemons are asked by their sockets.

Called by the command.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from s3ws_fs import __version__
from s3ws_fs.control import registry
from s3ws_fs.control.paths import ensure_private_dir
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.launch import preflight
from s3ws_fs.workspaces.diagnosis import Check, failed, ok, skipped, warning
from s3ws_fs.workspaces.mounts import runtime_dir, status_documents

LIBRARIES: Final = ("pyfuse3", "lmdb", "trio", "boto3", "pydantic", "xxhash", "isal")
PYTHON_MIN: Final = (3, 11)
RESEND_SINCE: Final = (6, 9)
"""Linux that sends again what a daemon read and did not answer."""
CAP_SYS_ADMIN: Final = 21
FUSERMOUNT_TIMEOUT_S: Final = 10.0
FREE_BYTES_MIN: Final = 64 << 20
"""With less than this a cache can hardly begin."""

_NETWORK: Final = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "lustre", "afs")
)
_MEMORY: Final = frozenset(("tmpfs", "ramfs"))
_FUSE_REMEDY: Final = (
    "Install fuse3 and load the module (modprobe fuse); a container needs --device /dev/fuse "
    "--cap-add SYS_ADMIN."
)


def versions() -> Check:
    """Python, and the libraries that it all stands on."""
    found, missing = [], []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    text = f"s3ws {__version__}, Python {platform.python_version()}"
    if missing or sys.version_info < PYTHON_MIN:
        return failed(
            "versions",
            f"{text}; missing: {', '.join(missing) or 'nothing'}",
            f"Python {PYTHON_MIN[0]}.{PYTHON_MIN[1]} or later, and the packages of "
            "requirements/runtime.txt.",
            ExitCode.INTERNAL,
        )
    return ok("versions", f"{text}, {', '.join(found)}")


def kernel(release: str | None = None) -> Check:
    """Linux, and whether it lets a daemon be replaced under a mount."""
    release = platform.release() if release is None else release
    match = re.match(r"(\d+)\.(\d+)", release)
    if match is None or (int(match[1]), int(match[2])) < RESEND_SINCE:
        return warning(
            "kernel",
            f"Linux {release}: when a daemon dies, its mount ends",
            "With Linux 6.9 or later the mount goes on, and `s3ws restart` works. Nothing is lost "
            "either way.",
        )
    return ok("kernel", f"Linux {release}: a mount outlives its daemon")


def fuse_device() -> Check:
    """Whether /dev/fuse is there, and ours to open."""
    path = preflight.FUSE_DEVICE
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as exc:
        remedy = _FUSE_REMEDY
        if exc.errno in (errno.EACCES, errno.EPERM):
            remedy = f"chmod 0666 {path} (fuse3's udev rule does), or give a container the device."
        return failed("fuse device", f"{path}: {exc.strerror}", remedy, ExitCode.NO_FUSE)
    return ok("fuse device", f"{path} can be opened")


def fusermount() -> Check:
    """The helper for users who may not mount themselves."""
    program = shutil.which("fusermount3")
    if program is None:
        text = "fusermount3 is not installed"
        if os.geteuid() == 0:
            return warning("fusermount3", text, "Install fuse3: other users of this host need it.")
        return failed("fusermount3", text, "Install fuse3.", ExitCode.NO_FUSE)
    version = _output([program, "--version"]) or "of an unknown version"
    info = Path(program).stat()
    if not (info.st_mode & stat.S_ISUID and info.st_uid == 0) and os.geteuid() != 0:
        return failed(
            "fusermount3",
            f"{program} is not setuid root: users can't mount",
            f"chown root:root {program} && chmod u+s {program} (or reinstall fuse3).",
            ExitCode.NO_FUSE,
        )
    return ok("fusermount3", f"{program}, {version}")


def allow_other(config: MountConfig | None) -> Check:
    """Whether mounts may let other users in, where that is asked for."""
    allowed = os.geteuid() == 0 or preflight.user_allow_other()
    wanted = config is not None and config.allow_other
    if allowed:
        who = "root may" if os.geteuid() == 0 else "user_allow_other is set in /etc/fuse.conf"
        return ok("allow_other", f"{who}; WORKSPACE_ALLOW_OTHER is {'on' if wanted else 'off'}")
    if not wanted:
        return ok("allow_other", "not allowed for users of this host, and not asked for")
    return failed(
        "allow_other",
        "WORKSPACE_ALLOW_OTHER is set, but this host does not let users do that",
        "Put the line user_allow_other into /etc/fuse.conf, or unset it.",
        ExitCode.NO_FUSE,
    )


def trial_mount() -> Check:
    """Mount for a moment, as `s3ws mount` does: what the device and the rights come to."""
    with tempfile.TemporaryDirectory(prefix="s3ws-doctor-") as directory:
        try:
            why = _try_mount(directory) if os.geteuid() == 0 else _try_fusermount(directory)
        except OSError as exc:
            why = exc.strerror or str(exc)
    if not why:
        return ok("mounting", "a trial mount was made, and taken away")
    remedy = _FUSE_REMEDY
    if os.geteuid() == 0 and not has_capability(CAP_SYS_ADMIN):
        remedy = "This is root without CAP_SYS_ADMIN: a container needs --cap-add SYS_ADMIN."
    elif os.geteuid() == 0:
        remedy = (
            "AppArmor or seccomp may forbid it: a container needs --security-opt "
            "apparmor=unconfined where its profile denies mount."
        )
    return failed("mounting", f"a trial mount failed: {why}", remedy, ExitCode.NO_FUSE)


def has_capability(number: int) -> bool:
    """Whether this process has a capability."""
    with contextlib.suppress(OSError):
        match = re.search(r"^CapEff:\s*([0-9a-f]+)$", Path("/proc/self/status").read_text(), re.M)
        return match is not None and bool(int(match[1], 16) >> number & 1)
    return False


def _try_mount(directory: str) -> str:
    """mount(2) and umount2(2); why not, or ""."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(preflight.FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        options = f"fd={fd},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()}"
        place = os.fsencode(directory)
        if libc.mount(b"s3ws-doctor", place, b"fuse.s3ws", 6, options.encode()) != 0:
            return os.strerror(ctypes.get_errno())
        if libc.umount2(place, 2) != 0:
            return f"it can't be taken away: {os.strerror(ctypes.get_errno())}"
        return ""
    finally:
        os.close(fd)


def _try_fusermount(directory: str) -> str:
    """The same by fusermount3, which hands over the descriptor; why not, or ""."""
    ours, theirs = socket.socketpair()
    fds: list[int] = []
    with ours, theirs:
        env = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
        done = subprocess.run(
            ["fusermount3", "-o", "fsname=s3ws-doctor,subtype=s3ws", "--", directory],
            env=env | {"_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=FUSERMOUNT_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            return done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"
        ours.settimeout(FUSERMOUNT_TIMEOUT_S)
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
        ended = subprocess.run(
            ["fusermount3", "-u", "-z", "--", directory],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=FUSERMOUNT_TIMEOUT_S,
            check=False,
        )
    for fd in fds:
        os.close(fd)
    if ended.returncode != 0:
        return f"it can't be taken away: {ended.stderr.decode(errors='replace').strip()}"
    return ""


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=FUSERMOUNT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace").strip().splitlines()[0] if done.stdout else ""


# --- places


def directory(name: str, path: str, variable: str) -> Check:
    """Whether a directory of ours is there, or can be made, and is private."""
    try:
        ensure_private_dir(path)
    except UserError as exc:
        return failed(name, exc.message, exc.remedy, exc.exit_code)
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        return failed(
            name,
            f"{path} can't be written",
            f"Choose another by {variable}.",
            ExitCode.BAD_SETTINGS,
        )
    return ok(name, path)


def cache_disk(config: MountConfig | None) -> Check:
    """What the caches stand on, and how much room there is."""
    if config is None:
        return skipped("cache disk", "the settings are not good")
    path = _existing(config.cache_dir)
    kind, room = filesystem_of(path), os.statvfs(path)
    free_bytes = room.f_bavail * room.f_frsize
    text = f"{kind}, {_mib(free_bytes)} MiB free of {_mib(room.f_blocks * room.f_frsize)}"
    if kind in _NETWORK or kind.startswith("fuse."):
        return failed(
            "cache disk",
            f"{text}: a network filesystem keeps neither locks nor memory maps as a cache needs",
            "Put WORKSPACE_CACHE_DIR on a local disk.",
            ExitCode.BAD_SETTINGS,
        )
    if free_bytes < FREE_BYTES_MIN or room.f_favail == 0 < room.f_files:
        return failed("cache disk", f"{text}: it is full", "Make room there.", ExitCode.BAD_CACHE)
    if kind in _MEMORY:
        return warning(
            "cache disk",
            f"{text}: it does not survive a restart, so what is not sealed then is lost",
            "Put WORKSPACE_CACHE_DIR on a disk.",
        )
    if kind == "overlay":
        return warning(
            "cache disk",
            f"{text}: it goes with the container, and what is not sealed then with it",
            "Give WORKSPACE_CACHE_DIR a volume.",
        )
    if free_bytes < config.max_size_bytes:
        return warning(
            "cache disk",
            f"{text}, less than one workspace's quota ({_mib(config.max_size_bytes)} MiB)",
            "Make room, or lower WORKSPACE_MAX_SIZE_MB. When it is full, writers get ENOSPC.",
        )
    return ok("cache disk", text)


def filesystem_of(path: str) -> str:
    """The type of the filesystem that a path stands on, as the kernel calls it."""
    best, found = "", "unknown"
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        place = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields[4]).rstrip("/")
        # Of several on one place the last one is on top.
        if (path + "/").startswith(place + "/") and len(place) >= len(best):
            best, found = place, after.split(" ")[0]
    return found


def _existing(path: str) -> str:
    place = Path(os.path.realpath(path))
    while not place.exists():
        place = place.parent
    return str(place)


def _mib(count: int) -> str:
    return f"{count >> 20:,}"


# --- what is mounted


def mounts() -> Check:
    """The mounts of this host: do their daemons live, answer, and have this version?"""
    infos, damaged = registry.list_mounts(runtime_dir())
    documents = status_documents(infos)
    states = {info.mountpoint: doc for info, doc in zip(infos, documents, strict=True)}
    dead = [place for place, doc in states.items() if doc.get("state") == "dead"]
    silent = [place for place, doc in states.items() if doc.get("state") == "silent"]
    if dead:
        return warning(
            "mounts",
            f"the daemon of {_listed(dead)} is gone",
            "Mount again with the same settings: it goes on saving what is in the cache.",
        )
    if silent or damaged:
        what = f"the daemon of {_listed(silent)}" if silent else f"the entry {_listed(damaged)}"
        return warning("mounts", f"{what} does not answer", "Its log may say why: `s3ws status`.")
    troubled = [place for place, doc in states.items() if _health(doc) not in ("ok", None)]
    if troubled:
        return warning("mounts", f"{_listed(troubled)} is not well", "`s3ws status` says why.")
    old = [p for p, doc in states.items() if doc.get("version", __version__) != __version__]
    if old:
        return warning(
            "mounts",
            f"{_listed(old)} is served by another version than this ({__version__})",
            "`s3ws restart` puts the installed version under it.",
        )
    return ok("mounts", f"{len(infos)} on this host, all well" if infos else "none on this host")


def _health(document: dict[str, Any]) -> Any:
    health = document.get("health")
    return health.get("state") if isinstance(health, dict) else None


def _listed(places: list[str]) -> str:
    more = f" and {len(places) - 1} more" if len(places) > 1 else ""
    return f"{places[0]!a}{more}"

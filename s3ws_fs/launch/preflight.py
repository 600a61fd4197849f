"""Before a daemon starts: what can be checked, and cleared, from outside.

Invariants
1. A live mount is never stat'ed from here: a stuck daemon must not make the command hang.
2. Only a mount that answers ENOTCONN is taken away; nothing in a directory is ever removed.

Called by launch.start and launch.end.
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from pathlib import Path
from typing import Final

from s3ws_fs.control import registry
from s3ws_fs.control.paths import ensure_private_dir
from s3ws_fs.control.registry import MountInfo
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import ExitCode, FormatError, UserError
from s3ws_fs.fuse import table

FUSE_DEVICE: Final = "/dev/fuse"

_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8
_FUSERMOUNT_TIMEOUT_S: Final = 30.0


def canonical_mountpoint(path: str) -> str:
    """The absolute path without symlinks by which a mount point is known everywhere.

    A path that is mounted under that very name is not looked into: its daemon may hang.
    """
    absolute = os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 - stays a str
    parent, name = os.path.split(absolute)
    candidate = os.path.join(os.path.realpath(parent), name)  # noqa: PTH118
    return candidate if table.is_mounted(candidate) else os.path.realpath(absolute)


def prepare(config: MountConfig, *, nonempty: bool) -> None:
    """Everything that can be checked before a daemon starts. Raises UserError."""
    ensure_private_dir(config.runtime_dir)
    ensure_private_dir(config.cache_dir)
    refuse_if_mounted(config)
    _check_fuse(config)
    clear_if_dead(config.mountpoint)
    _check_directory(config.mountpoint, nonempty=nonempty)


def refuse_if_mounted(config: MountConfig) -> None:
    """Raise UserError (exit code 5) when the mount point has a living daemon or another mount."""
    mountpoint = config.mountpoint
    info = read_info(config.runtime_dir, mountpoint)
    mounted = table.is_mounted(mountpoint)
    if info is not None and info.is_alive():
        if mounted:
            raise UserError(
                f"{mountpoint!a} is already mounted (daemon {info.pid}).",
                remedy=f"Use it, or end it with `s3ws umount {mountpoint!a}`.",
                exit_code=ExitCode.ALREADY_MOUNTED,
            )
        raise UserError(
            f"The daemon {info.pid} is still saving what was mounted on {mountpoint!a}.",
            remedy=f"Wait for it with `s3ws umount {mountpoint!a}`, then mount again.",
            exit_code=ExitCode.ALREADY_MOUNTED,
        )
    if mounted and not table.is_dead(mountpoint):
        raise UserError(
            f"Another FUSE filesystem is already mounted on {mountpoint!a}.",
            remedy="Unmount it (`fusermount3 -u`), or choose another mount point. If it is a "
            "workspace, check that WORKSPACE_RUNTIME_DIR is what it was mounted with.",
            exit_code=ExitCode.ALREADY_MOUNTED,
        )


def clear_if_dead(mountpoint: str) -> bool:
    """Take away the mount that a dead daemon left (ENOTCONN); True when there was one.

    Raises UserError (exit code 11) when this user may not.
    """
    if not (table.is_mounted(mountpoint) and table.is_dead(mountpoint)):
        return False
    reason = _detach(mountpoint)
    if reason and table.is_mounted(mountpoint):
        raise UserError(
            f"The mount that a dead daemon left on {mountpoint!a} can't be cleared: {reason}.",
            remedy=f"Clear it as the user who mounted it: fusermount3 -u -z {mountpoint!a}",
            exit_code=ExitCode.BUSY,
        )
    return True


def _detach(mountpoint: str) -> str:
    """umount2(2) with MNT_DETACH, or fusermount3 for who may not; returns why it failed, or ""."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(mountpoint), _MNT_DETACH | _UMOUNT_NOFOLLOW) == 0:
        return ""
    code = ctypes.get_errno()
    if code != errno.EPERM:
        return os.strerror(code)
    try:
        done = subprocess.run(
            ["fusermount3", "-u", "-z", "--", mountpoint],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            timeout=_FUSERMOUNT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        return str(exc)
    return "" if done.returncode == 0 else done.stderr.decode(errors="replace").strip()


def read_info(runtime_dir: str, mountpoint: str) -> MountInfo | None:
    try:
        return registry.read(runtime_dir, mountpoint)
    except FormatError as exc:
        raise UserError(
            f"The entry of {mountpoint!a} is damaged: {exc}.",
            remedy=f"Look for its daemon with ps; then remove {exc.where!a}.",
        ) from exc


def _check_fuse(config: MountConfig) -> None:
    if not os.access(FUSE_DEVICE, os.R_OK | os.W_OK):
        raise UserError(
            "/dev/fuse is missing or not accessible.",
            remedy="Install fuse3 and load the module; a container needs --device /dev/fuse "
            "--cap-add SYS_ADMIN.",
            exit_code=ExitCode.NO_FUSE,
        )
    if config.allow_other and os.geteuid() != 0 and not user_allow_other():
        raise UserError(
            "allow_other is set, but this host does not let users do that.",
            remedy="Put the line user_allow_other into /etc/fuse.conf, or unset "
            "WORKSPACE_ALLOW_OTHER.",
            exit_code=ExitCode.NO_FUSE,
        )


def user_allow_other() -> bool:
    """Whether /etc/fuse.conf lets users use allow_other."""
    try:
        lines = Path("/etc/fuse.conf").read_text(errors="replace").splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)


def _check_directory(mountpoint: str, *, nonempty: bool) -> None:
    path = Path(mountpoint)
    try:
        if not path.exists():
            path.mkdir(mode=0o755)
            return
        empty = path.is_dir() and not any(path.iterdir())
    except OSError as exc:
        raise UserError(
            f"{mountpoint!a} can't be used as a mount point: {exc.strerror}.",
            remedy="Name a directory of yours whose parent exists.",
            exit_code=ExitCode.BAD_SETTINGS,
        ) from exc
    if not path.is_dir():
        raise UserError(
            f"{mountpoint!a} is not a directory.",
            remedy="Name a directory, or one that does not exist yet.",
            exit_code=ExitCode.BAD_SETTINGS,
        )
    if not empty and not nonempty:
        raise UserError(
            f"{mountpoint!a} is not empty; the mount would hide what is in it.",
            remedy="Use an empty directory, or give --nonempty.",
            exit_code=ExitCode.BUSY,
        )

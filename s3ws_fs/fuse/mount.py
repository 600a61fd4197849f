"""Mounting, serving and unmounting: everything that touches the kernel's mount table.

Invariants
1. Order: `mounted` (pyfuse3.init) → `serve` until the mount is gone → pyfuse3.close, which closes
   the connection. What then still stands there (aborted, or serving failed) is detached: else every
   program that touches it would get an error for ever. Where a holder keeps the connection for the
   next daemon, neither is done.
2. umount(2) runs in a helper thread, for it may wait until we have written back dirty pages of
   mmaps. It never detaches, but for `detach`, which a caller uses as a last resort, when all is
   saved.
3. Only our own mount is ever taken away: it is known by the number of its connection.
4. A mount point that a killed daemon left behind (ENOTCONN) is recognised and cleared before
   mounting.
5. Mounted by mount(2), we are given the mode a program asked for and its umask apart: which of both
   counts depends on the directory's default access list. Only the flag MS_POSIXACL makes the kernel
   do so (pyfuse3 does not ask for FUSE_CAP_DONT_MASK), and neither libfuse nor fusermount3 passes
   it on: where only fusermount3 may mount, the umask has been applied already.

Called by the daemon.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import socket
import stat
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyfuse3
import trio

from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.fuse import table
from s3ws_fs.fuse.device import Device
from s3ws_fs.fuse.once import Once
from s3ws_fs.fuse.operations import Operations
from s3ws_fs.fuse.wait import AdaptiveWait, Turn, installed
from s3ws_fs.holder.memory import Memory

log = logging.getLogger(__name__)

FSNAME: Final = "s3ws"

HANDLERS_MAX: Final = 256
"""Requests handled at the same time; more are waiting for bytes only when the store is slow."""

UMOUNT_RETRY_S: Final = 0.1

STDERR_BYTES_MAX: Final = 4096
"""How much of what libfuse says while mounting is kept for the error."""

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_POSIXACL: Final = 1 << 16
MNT_FORCE: Final = 1
"""Ends the connection, whoever else holds it."""
MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8
FUSERMOUNT: Final = "fusermount3"
FUSERMOUNT_TIMEOUT_S: Final = 30.0

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount of ours: where, and the kernel's number of the connection, to know it again."""

    mountpoint: str
    connection: int | None
    device: Device | None = None
    """What `serve` reads from, with a holder."""
    kernel_fd: int = -1
    """The connection."""

    def stands(self) -> bool:
        """Whether it is (still) what is mounted there."""
        return self.connection is not None and (
            table.connection_id(self.mountpoint) == self.connection
        )


class MountBusyError(Exception):
    """Somebody has a file open on the mount, or stands in it."""


def mount_options(*, allow_other: bool, subtype: str = FSNAME, read_only: bool = False) -> set[str]:
    """The options of fuse_session_new. Permissions: by the kernel, from our attributes."""
    options = {"default_permissions", f"fsname={FSNAME}", f"subtype={subtype}"}
    if allow_other:
        options.add("allow_other")
    if read_only:
        options.add("ro")
    return options


def check_mountpoint(mountpoint: str) -> None:
    """Clear a dead mount, then see that there is a directory to mount on. Raises UserError."""
    number = table.connection_id(mountpoint)
    if number is not None and table.is_dead(mountpoint):
        log.warning("%s: clearing the mount of a daemon that is gone", mountpoint)
        _umount(Mount(mountpoint, number), MNT_DETACH)
    if table.is_mounted(mountpoint):
        raise UserError(
            f"{mountpoint} is mounted already",
            remedy="unmount it first: s3ws umount " + mountpoint,
            exit_code=ExitCode.ALREADY_MOUNTED,
        )
    if not Path(mountpoint).is_dir():
        raise UserError(
            f"{mountpoint} is not a directory",
            remedy="create it, or name another one",
            exit_code=ExitCode.BAD_SETTINGS,
        )
    _check_device()


def _check_device() -> None:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as exc:
        if exc.errno == errno.ENOENT:
            remedy = "load the fuse module; in a container: --device /dev/fuse --cap-add SYS_ADMIN"
        else:
            remedy = (
                "allow this user to read and write /dev/fuse; in a container: --device /dev/fuse"
            )
        raise UserError(
            f"/dev/fuse can't be opened: {exc.strerror}",
            remedy=remedy,
            exit_code=ExitCode.NO_FUSE,
        ) from None


@contextlib.contextmanager
def _captured_stderr() -> Iterator[Callable[[], str]]:
    """libfuse and fusermount3 say what is wrong on file descriptor 2 only: gives what they said.

    It is passed on to the real one at the end.
    """
    before = os.dup(2)
    captured = os.memfd_create("stderr", os.MFD_CLOEXEC)

    def said() -> str:
        return os.pread(captured, STDERR_BYTES_MAX, 0).decode(errors="replace").strip()

    try:
        os.dup2(captured, 2)
        yield said
    finally:
        os.dup2(before, 2)
        os.write(2, os.pread(captured, STDERR_BYTES_MAX, 0))
        os.close(captured)
        os.close(before)


def _mount_error(mountpoint: str, reason: str, allow_other: bool) -> UserError:
    remedy = "FUSE needs the right to mount: root, or fusermount3 and a user known to this system"
    if allow_other and os.geteuid() != 0:
        remedy += "; allow_other of a user needs user_allow_other in /etc/fuse.conf"
    return UserError(
        f"{mountpoint} can't be mounted: {reason}", remedy=remedy, exit_code=ExitCode.NO_FUSE
    )


def _mount_directly(mountpoint: str, allow_other: bool, read_only: bool) -> int | None:
    """mount(2) as libfuse does it, with one flag more (invariant 5): the descriptor to serve.

    None where that can't be done here: fusermount3 may be allowed to.
    """
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    data = f"fd={device},rootmode={stat.S_IFDIR:o},user_id={os.getuid()},group_id={os.getgid()}"
    data += ",default_permissions" + (",allow_other" if allow_other else "")
    done = _libc.mount(
        FSNAME.encode(),
        os.fsencode(mountpoint),
        f"fuse.{FSNAME}".encode(),
        ctypes.c_ulong(MS_NOSUID | MS_NODEV | MS_POSIXACL | (MS_RDONLY if read_only else 0)),
        data.encode(),
    )
    if done == 0:
        return device
    os.close(device)
    return None


def _mount_by_helper(mountpoint: str, allow_other: bool, read_only: bool) -> int:
    """Have fusermount3 mount it, which hands over the descriptor to serve. Raises UserError."""
    options = ",".join(sorted(mount_options(allow_other=allow_other, read_only=read_only)))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        try:
            done = subprocess.run(
                [FUSERMOUNT, "-o", options, "--", mountpoint],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=FUSERMOUNT_TIMEOUT_S,
                check=False,
                pass_fds=(theirs.fileno(),),
                env={**os.environ, "LC_ALL": "C", "_FUSE_COMMFD": str(theirs.fileno())},
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise _mount_error(mountpoint, str(exc), allow_other) from None
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip()
            raise _mount_error(mountpoint, said or "fusermount3 failed", allow_other)
        ours.settimeout(FUSERMOUNT_TIMEOUT_S)
        _, fds, _, _ = socket.recv_fds(ours, 1, 1, socket.MSG_CMSG_CLOEXEC)
    if not fds:
        raise _mount_error(mountpoint, "fusermount3 handed over no descriptor", allow_other)
    return fds[0]


@dataclass(frozen=True, slots=True)
class Held:
    """What a holder means for the mount of this daemon.

    memory: the holder's. once: over it. kernel_fd: the connection of the daemon before; None for
    the first, which hands over its own by `keep`. through: called when all that the kernel had to
    send again has come.
    """

    memory: Memory
    once: Once
    kernel_fd: int | None
    keep: Callable[[int], None]
    through: Callable[[], None]


def _held_device(held: Held, kernel_fd: int, number: int | None, *, keeps_pages: bool) -> Device:
    if held.kernel_fd is None:
        held.memory.set_connection(number)
        held.keep(kernel_fd)
    return Device(
        kernel_fd,
        held.memory,
        held.once,
        adopted=held.kernel_fd is not None,
        through=held.through,
        keeps_pages=keeps_pages,
    )


@contextlib.contextmanager
def mounted(
    operations: Operations,
    mountpoint: str,
    *,
    allow_other: bool,
    read_only: bool = False,
    held: Held | None = None,
    leave: Callable[[], bool] = lambda: False,
) -> Iterator[Mount]:
    """Mount; at the end of the block close the session. Raises UserError.

    The block must not end normally before the mount is gone; when it ends by an exception and the
    mount still stands, it is taken away, so that no program waits for answers that nobody gives.
    With `held` the mount of the daemon before may be taken over instead; when `leave` says so at
    the end, it is left as it is, for the next one.
    """
    if held is not None and held.kernel_fd is not None:
        kernel_fd, number = held.kernel_fd, held.memory.connection
    else:
        check_mountpoint(mountpoint)
        direct = _mount_directly(mountpoint, allow_other, read_only)
        kernel_fd = (
            _mount_by_helper(mountpoint, allow_other, read_only) if direct is None else direct
        )
        number = table.connection_id(mountpoint)
    device = None
    if held is not None:
        # What a read-only mount shows changes by itself, also while a program has it open.
        device = _held_device(held, kernel_fd, number, keeps_pages=not read_only)
    mount = Mount(mountpoint, number, device, kernel_fd)
    with _captured_stderr() as said:
        try:
            where = f"/dev/fd/{kernel_fd if device is None else device.number}"
            options = mount_options(allow_other=allow_other, read_only=read_only)
            pyfuse3.init(operations, where, options)
        except RuntimeError as exc:
            if held is None or held.kernel_fd is None:
                _umount(mount, MNT_DETACH)
                os.close(kernel_fd)
            raise _mount_error(mountpoint, said() or str(exc), allow_other) from None
    try:
        yield mount
    finally:
        if not leave():
            pyfuse3.close(unmount=False)
            if mount.stands():
                # The connection was aborted, or serving failed: nobody answers there any more.
                with contextlib.suppress(OSError):
                    _umount(mount, MNT_FORCE | MNT_DETACH)


async def serve(
    *,
    adaptive_wait_us: int,
    hold: Callable[[], Awaitable[None]] | None = None,
    device: Device | None = None,
    turn: Turn | None = None,
) -> None:
    """Answer requests until the mount is gone. Cancel to stop before that.

    `turn`: see fuse.wait.
    """
    wait = None
    if adaptive_wait_us > 0 or device is not None:
        wait = AdaptiveWait(adaptive_wait_us, hold, device=device, turn=turn)
    with installed(wait):
        await pyfuse3.main(min_tasks=1, max_tasks=HANDLERS_MAX)


async def show_root(mount: Mount) -> None:
    """Make the kernel ask for the root's attributes. `serve` must be running.

    Until somebody does, it takes the root for uid 0's, and refuses its owner chmod(2) and setfacl.
    """
    with contextlib.suppress(OSError):
        await trio.to_thread.run_sync(os.stat, mount.mountpoint, abandon_on_cancel=True)


def _umount(mount: Mount, flags: int) -> None:
    """umount2(2), or fusermount3 for who may not. Raises MountBusyError, OSError."""
    mountpoint = mount.mountpoint
    if not mount.stands():
        return
    if _libc.umount2(os.fsencode(mountpoint), flags | UMOUNT_NOFOLLOW) == 0:
        return
    code = ctypes.get_errno()
    if code == errno.EBUSY:
        raise MountBusyError(mountpoint)
    if code == errno.EINVAL and not mount.stands():
        return
    if code != errno.EPERM:
        raise OSError(code, os.strerror(code), mountpoint)
    lazily = ["-z"] if flags & MNT_DETACH else []
    done = subprocess.run(
        [FUSERMOUNT, "-u", *lazily, mountpoint],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=FUSERMOUNT_TIMEOUT_S,
        check=False,
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
    )
    if done.returncode == 0 or not mount.stands():
        return
    message = done.stderr.decode(errors="replace").strip()
    if "busy" in message:
        raise MountBusyError(mountpoint)
    raise OSError(errno.EPERM, message or "fusermount3 failed", mountpoint)


async def unmount(mount: Mount, *, grace_s: float) -> None:
    """Unmount; while somebody uses the mount, try again until `grace_s` is over.

    `serve` must be running. Raises MountBusyError (still mounted), OSError.
    """
    deadline = trio.current_time() + grace_s
    while True:
        try:
            await trio.to_thread.run_sync(_umount, mount, 0)
            return
        except MountBusyError:
            if trio.current_time() + UMOUNT_RETRY_S > deadline:
                raise
        await trio.sleep(UMOUNT_RETRY_S)


async def detach(mount: Mount) -> None:
    """Take the mount out of the tree although it is in use. Raises OSError."""
    await trio.to_thread.run_sync(_umount, mount, MNT_DETACH)


async def write_back(mount: Mount) -> None:
    """Make the kernel send us what programs changed through mmap (syncfs(2)). Raises OSError."""
    await trio.to_thread.run_sync(pyfuse3.syncfs, mount.mountpoint)

"""Private directories and unix socket addresses of any length.

Invariants
1. A directory that `ensure_private_dir` made has mode 0700; one that it accepts belongs to this
   user, is no symlink and is not writable by others. It never changes a directory it did not make.
2. `socket_address` works for paths longer than the 107 bytes that the kernel takes.

Called by control.server, control.client, control.registry and launch.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from s3ws_fs.core.errors import ExitCode, UserError

SUN_PATH_BYTES_MAX: Final = 107


def make_private(path: Path) -> None:
    """Make a directory and its missing parents, each of them 0700 whatever the umask is."""
    for place in (*reversed(path.parents), path):
        with suppress(FileExistsError):
            place.mkdir(mode=0o700)


def ensure_private_dir(path: str) -> None:
    """Make `path` (and missing parents) a directory only this user can change.

    Raises UserError (exit code 3) when it is no directory, another user's, or writable by others.
    """
    try:
        make_private(Path(path))
        info = Path(path).lstat()
    except OSError as exc:
        raise UserError(
            f"The directory {path!a} can't be made: {exc.strerror}.",
            remedy="Choose another place by WORKSPACE_RUNTIME_DIR or WORKSPACE_CACHE_DIR.",
            exit_code=ExitCode.BAD_SETTINGS,
        ) from exc
    if not stat.S_ISDIR(info.st_mode):
        raise UserError(
            f"{path!a} is not a directory of its own (a symlink or a file).",
            remedy="Give the directory itself.",
            exit_code=ExitCode.BAD_SETTINGS,
        )
    if info.st_uid != os.geteuid() or info.st_mode & 0o022:
        raise UserError(
            f"The directory {path!a} could be changed by another user.",
            remedy="It must belong to you and have mode 0700; or choose another place by "
            "WORKSPACE_RUNTIME_DIR or WORKSPACE_CACHE_DIR.",
            exit_code=ExitCode.BAD_SETTINGS,
        )


@contextmanager
def socket_address(path: str) -> Iterator[str]:
    """An address for bind or connect that stands for `path` while the context lasts."""
    if len(os.fsencode(path)) <= SUN_PATH_BYTES_MAX:
        yield path
        return
    directory, name = os.path.split(path)
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)


def is_listening(path: str) -> bool:
    """Whether a process listens on the unix socket `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            with socket_address(path) as address:
                code = probe.connect_ex(address)
        except FileNotFoundError:
            return False
    # EAGAIN: its backlog is full, so it listens.
    return code in (0, errno.EAGAIN, errno.EINPROGRESS)

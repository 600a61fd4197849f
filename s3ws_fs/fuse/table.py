"""What the kernel says is mounted where. Reads only.

Invariants
1. A path is compared as bytes, unescaped, exactly as given: callers pass the canonical path.
2. Nothing here touches the mounted filesystem but `is_dead`, by one statfs; `users` reads links of
   /proc only.

Called by `fuse.mount`, the daemon, and by what starts and finds daemons (it imports no pyfuse3).
"""

from __future__ import annotations

import errno
import os


def is_mounted(mountpoint: str) -> bool:
    """True when a FUSE filesystem is mounted exactly there, living or dead."""
    return connection_id(mountpoint) is not None


def connection_id(mountpoint: str) -> int | None:
    """Minor device number of the topmost FUSE mount there: its name in /sys/fs/fuse/connections."""
    wanted = os.fsencode(mountpoint)
    found: int | None = None
    with open("/proc/self/mountinfo", "rb") as lines:
        for line in lines:
            before, _, after = line.partition(b" - ")
            fields = before.split(b" ")
            if after.startswith((b"fuse ", b"fuse.")) and _unescape(fields[4]) == wanted:
                found = int(fields[2].partition(b":")[2])
    return found


def _unescape(field: bytes) -> bytes:
    """mountinfo writes space, tab, newline and backslash in octal (proc_pid_mountinfo(5))."""
    first, *rest = field.split(b"\\")
    return first + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest)


def is_dead(mountpoint: str) -> bool:
    """True when a mount stands there whose daemon is gone.

    Asks by statfs(2), which the kernel never answers from its cache as it does stat(2); so it waits
    for a daemon that lives but is stuck.
    """
    try:
        os.statvfs(mountpoint)
    except OSError as exc:
        return exc.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def users(mountpoint: str, limit: int) -> list[tuple[int, str]]:
    """(pid, name) of up to `limit` programs that keep the mount busy, as far as /proc shows."""
    below = os.fsencode(mountpoint)
    found: list[tuple[int, str]] = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid() and _uses(name, below):
            found.append((int(name), _program(name)))
            if len(found) == limit:
                break
    return found


def _uses(pid: str, below: bytes) -> bool:
    """Whether a process has its directory, root, program or an open file there. Links only."""
    proc = os.fsencode(f"/proc/{pid}")
    links = [proc + b"/cwd", proc + b"/root", proc + b"/exe"]
    try:
        links += [proc + b"/fd/" + fd for fd in os.listdir(proc + b"/fd")]
    except OSError:
        return False
    for link in links:
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target == below or target.startswith(below + b"/"):
            return True
    return False


def _program(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as comm:
            return comm.read().strip()
    except OSError:
        return "?"

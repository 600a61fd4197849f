"""What of a caller the kernel's request does not say: supplementary groups and capabilities.

libfuse 3.14 does not ask for the flag that tells a filesystem to clear setgid with a new access
list (FUSE_SETXATTR_EXT, FUSE_SETXATTR_ACL_KILL_SGID), so the question is answered here.

Invariants
1. The caller waits in its system call, so what /proc says of it is true now.
2. Where /proc can't say (another pid namespace, hidepid), only root and who is in the group by its
   own gid keep setgid: the bit is lost rather than given.

Called by `fuse.operations` alone.
"""

from __future__ import annotations

from typing import Final

_CAP_FSETID: Final = 1 << 4


def keeps_setgid(pid: int, uid: int, gid: int, group: int) -> bool:
    """Whether a caller may leave setgid on a file of `group`, as posix_acl_update_mode asks.

    pid: of its thread, 0 when it can't be seen from here. uid, gid: those of the request.
    """
    if gid == group:
        return True
    try:
        with open(f"/proc/{pid}/status", "rb") as lines:
            fields = dict(line.split(b":", 1) for line in lines if b":" in line)
        groups = [int(word) for word in fields[b"Groups"].split()]
        return group in groups or bool(int(fields[b"CapEff"], 16) & _CAP_FSETID)
    except (OSError, KeyError, ValueError):
        return uid == 0

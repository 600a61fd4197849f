"""May this container mount? One sentence when it may not.

Invariants
1. Nothing is changed, and nothing is mounted to find out.
2. The sentence names what is missing, and the options that bring it.

Called by container.entrypoint only.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

FUSE_DEVICE: Final = "/dev/fuse"
PROCESS_STATUS: Final = "/proc/self/status"
CAP_SYS_ADMIN: Final = 1 << 21
_NEEDS: Final = "start it with --device /dev/fuse --cap-add SYS_ADMIN"


class MountRefusedError(Exception):
    """This container may not mount; the text is one sentence that says what it needs."""


def check_container() -> None:
    """Raise MountRefusedError when this container lacks what mounting takes."""
    try:
        os.close(os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        raise MountRefusedError(
            f"there is no {FUSE_DEVICE} in this container, so no workspace can be mounted: {_NEEDS}"
        ) from None
    except OSError as exc:
        raise MountRefusedError(
            f"{FUSE_DEVICE} can't be opened here ({exc.strerror}), so no workspace can be mounted:"
            f" {_NEEDS}"
        ) from None
    text = Path(PROCESS_STATUS).read_text(encoding="ascii", errors="replace")
    check_rights(text, is_root=os.geteuid() == 0)


def check_rights(process_status: str, *, is_root: bool) -> None:
    """The same of the rights that proc_pid_status(5) shows."""
    facts = dict(line.split(":\t", 1) for line in process_status.splitlines() if ":\t" in line)
    # fusermount3, which mounts for a plain user, has what the bounding set leaves it.
    held = int(facts["CapEff" if is_root else "CapBnd"], 16)
    if not held & CAP_SYS_ADMIN:
        raise MountRefusedError(
            "this container lacks the capability SYS_ADMIN, so no workspace can be mounted:"
            f" {_NEEDS}"
        )
    if not is_root and facts.get("NoNewPrivs", "0").strip() == "1":
        raise MountRefusedError(
            "this container runs as a plain user with no-new-privileges, so fusermount3 can't mount"
            " the workspace: leave that option out, or run it as root with WORKSPACE_RUN_AS"
        )

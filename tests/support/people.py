"""Who acts in the tests of access control, as arguments of `actors.as_user`.

Called by the tests of e2e.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

OWNER: Final = 10_001
OTHER: Final = 10_002
GROUP: Final = 20_001
FURTHER: Final = 20_002
NOBODYS: Final = 20_003

WHO: Final[dict[str, tuple[int, int, tuple[int, ...]]]] = {
    "owner": (OWNER, NOBODYS, ()),
    "owner in the group": (OWNER, GROUP, ()),
    "group": (OTHER, GROUP, ()),
    "supplementary group": (OTHER, NOBODYS, (FURTHER, GROUP)),
    "other": (OTHER, NOBODYS, (FURTHER,)),
    "root": (0, 0, ()),
    "root without groups": (0, NOBODYS, ()),
}


def owned(path: Path, mode: int, uid: int = OWNER, gid: int = GROUP) -> Path:
    """Give the file this owner, group and mode."""
    os.chown(path, uid, gid)
    path.chmod(mode)
    return path

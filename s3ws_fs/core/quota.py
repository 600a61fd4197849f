"""When a workspace is so full that somebody should know: a warning with hysteresis.

Invariants
1. It begins when bytes or files reach WARN_PART of their limit, and ends when both are below
   CLEAR_PART: a workspace at the border is told once, not with every file.

Called by daemon.quota.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

WARN_PART: Final = 0.80
CLEAR_PART: Final = 0.75


@dataclass(slots=True)
class QuotaWarning:
    """Of one workspace."""

    max_bytes: int
    max_inodes: int
    is_on: bool = False

    def look(self, used_bytes: int, used_inodes: int) -> bool:
        """Judge what is used by now; True when the warning began or ended by it."""
        part = max(used_bytes / self.max_bytes, used_inodes / self.max_inodes)
        before = self.is_on
        self.is_on = part >= (CLEAR_PART if before else WARN_PART)
        return self.is_on != before

"""What a mount's settings may be, where the modules that go by them are larger than the bounds: who
only checks settings (a command that mounts) loads nothing else.

Called by core, settings, cli, transfer and tests.
"""

from __future__ import annotations

from typing import Final

LEASE_S: Final = 60.0
LEASE_S_MIN: Final = 3.0
LEASE_S_MAX: Final = 3600.0

HISTORY_HOURS: Final = 24.0
HISTORY_MAX_BYTES: Final = 2048 << 20
SNAPSHOT_DAYS: Final = 30.0
"""Defaults of what is kept of history."""

KEEP_MAX: Final = 1000
"""Backups of one kind that may be kept."""

KEEP_BOTH: Final = "keep-both"
BUCKET_WINS: Final = "bucket-wins"
WORKSPACE_WINS: Final = "workspace-wins"
POLICIES: Final = (KEEP_BOTH, BUCKET_WINS, WORKSPACE_WINS)
"""What becomes of an object that others changed."""

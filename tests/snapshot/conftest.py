"""A cache with a filesystem on it, and a store in memory."""

from __future__ import annotations

from tests.transfer.conftest import cache, fs, memory, pool, store

__all__ = ["cache", "fs", "memory", "pool", "store"]

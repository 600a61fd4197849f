"""A cache for what the fuzzing found."""

from __future__ import annotations

from tests.cache.conftest import cache, clock, opener

__all__ = ["cache", "clock", "opener"]

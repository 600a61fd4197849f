"""Buckets of both kinds, and hosts that end for sure."""

from __future__ import annotations

from tests.support.e2e_fixtures import (
    bucket,
    local_bucket,
    new_host,
    s3_bucket,
    seaweed,
    user,
)

__all__ = ["bucket", "local_bucket", "new_host", "s3_bucket", "seaweed", "user"]

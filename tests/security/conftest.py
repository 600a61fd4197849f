"""Buckets and hosts as in the end-to-end tests."""

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

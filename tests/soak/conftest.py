"""A server for the soak."""

from __future__ import annotations

from tests.support.e2e_fixtures import s3_bucket, seaweed

__all__ = ["s3_bucket", "seaweed"]

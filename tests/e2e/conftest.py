"""Buckets of both kinds, and hosts that end for sure."""

from __future__ import annotations

from tests.support.e2e_fixtures import (
    bucket,
    elsewhere,
    here,
    local_bucket,
    native,
    new_host,
    s3_bucket,
    seaweed,
    shared,
    user,
)
from tests.support.pair import pair

__all__ = [
    "bucket",
    "elsewhere",
    "here",
    "local_bucket",
    "native",
    "new_host",
    "pair",
    "s3_bucket",
    "seaweed",
    "shared",
    "user",
]

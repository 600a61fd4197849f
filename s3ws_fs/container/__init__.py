"""The first process of a container: `s3ws-entrypoint` (docs/containers.md)."""

from __future__ import annotations

from s3ws_fs.container.entrypoint import main

__all__ = ["main"]

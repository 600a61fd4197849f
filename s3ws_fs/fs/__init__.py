"""Filesystem semantics over the cache: synchronous, no kernel types, testable without a mount."""

"""Keeps the bucket in step with the cache: restore, flush, mirror, fetch, hydrate."""

"""Opens the store that a configuration names, scoped to one workspace.

Invariants
1. boto3 is imported only when an S3 store is opened.
2. Nothing outside this package gets a store that is not scoped (a fleet gives scoped ones, and
   names).

Called by the transfer worker and the CLI's checks.
"""

from __future__ import annotations

from s3ws_fs.core.config import StoreConfig
from s3ws_fs.store.base import ObjectStore
from s3ws_fs.store.fleet import Fleet
from s3ws_fs.store.scoped import ScopedStore


def open_store(
    config: StoreConfig, prefix: str, *, read_only: bool = False, hasty: bool = False
) -> ScopedStore:
    """The store, seen through `prefix` (WorkspaceId.prefix). Makes no request.

    Call `check` to learn whether it answers, and `probe_conditional` (or `assume` what an earlier
    probe found) before the first conditional operation. Of a read-only one every write is
    refused; nothing is made by opening it. A hasty one gives up at the second failure. Raises
    PermanentError.
    """
    return ScopedStore(_open(config, read_only, hasty), prefix, read_only=read_only)


def credentials_source(config: StoreConfig) -> str | None:
    """Where the credentials for a bucket come from; None when there are none. Makes no request but
    where a role has to be asked for. Raises StoreError.
    """
    from s3ws_fs.store.s3_session import source_of_credentials

    return source_of_credentials(config)


def open_two(config: StoreConfig, source: str, target: str) -> tuple[ScopedStore, ScopedStore]:
    """One store seen through two prefixes: `source` for reading only, and `target`."""
    inner = _open(config, False)
    return ScopedStore(inner, source, read_only=True), ScopedStore(inner, target)


def open_fleet(config: StoreConfig, root_prefix: str) -> Fleet:
    """All workspaces below a root prefix, for looking. Raises PermanentError."""
    return Fleet(_open(config, True), root_prefix)


def _open(config: StoreConfig, read_only: bool, hasty: bool = False) -> ObjectStore:
    if config.type == "s3":
        from s3ws_fs.store.s3 import S3Store
        from s3ws_fs.store.s3_client import RetryPolicy

        return S3Store(config, retry=RetryPolicy(attempts_max=2) if hasty else None)
    from s3ws_fs.store.local import LocalStore

    assert config.path is not None
    return LocalStore(config.path, read_only=read_only)

"""Caches of `mount --at`: they hold nothing that is not in the bucket, and go with their mount.

Invariants
1. The cache of a mount that ended, or never came to be, is removed; that of a daemon that died
   stays, for its holder starts another one.
2. What a mount left that was killed whole goes with the next mount of a point of that workspace:
   unless a mount that lives is registered with it, or somebody has its lock. Between two daemons of
   a mount that is registered elsewhere neither tells: then that mount fails, and nothing is lost.
3. What can't be removed is told, and holds up nothing.

Called by daemon.
"""

from __future__ import annotations

import logging
from pathlib import Path

from s3ws_fs.cache.removing import other_points, remove_cache
from s3ws_fs.control import registry
from s3ws_fs.core.config import MountConfig

log = logging.getLogger(__name__)


def remove_own(config: MountConfig) -> None:
    """The mount is over: remove its cache, if it is one of a point."""
    if config.at_number:
        _remove(Path(config.workspace_cache_dir), config)


def remove_left(config: MountConfig) -> None:
    """Before the mount of a point: remove what others of its workspace left."""
    if not config.at_number:
        return
    infos, _ = registry.list_mounts(config.runtime_dir)
    living = {info.cache_path for info in infos if info.is_alive()}
    for path in other_points(Path(config.workspace_cache_dir)):
        if str(path) not in living:
            _remove(path, config)


def _remove(directory: Path, config: MountConfig) -> None:
    why = remove_cache(directory, config.workspace.prefix)
    if why:
        log.warning("the cache %s stays: %s", directory, why)
    else:
        log.info("removed the cache %s", directory)

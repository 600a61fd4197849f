"""Caches that are not needed any more (of a workspace that was deleted, of a point that nobody
looks at): found, and removed when nobody has them open.

Invariants
1. Only directories that say themselves that they are a cache of that workspace go, and only under
   their lock.
2. No symlink is followed.

Called by the cli and the daemon.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Final

from s3ws_fs.cache.ownership import IDENTITY_FILE, lock
from s3ws_fs.core import jsontext
from s3ws_fs.core.errors import CacheError, FormatError

LOG_SUFFIXES: Final = (".log", ".log.1")
"""Of the daemon's log, which stands beside its cache (control.logfile)."""

_POINT: Final = re.compile(r"-ro-[0-9]+-[0-9a-f]{8}$")
"""Ends the name of a point's cache (MountConfig.workspace_cache_dir)."""


def caches_of(directory: Path) -> list[Path]:
    """The writer's cache `directory`, and beside it those of read-only mounts, as far as they are
    there. (Those have the same name and something behind it.)"""
    try:
        names = sorted(os.listdir(directory.parent))
    except OSError:
        return []
    own = directory.name
    found = [directory.parent / name for name in names if name == own or name.startswith(own + "-")]
    return [path for path in found if path.is_dir() and not path.is_symlink()]


def other_points(directory: Path) -> list[Path]:
    """The caches of other points of its workspace, beside that of one."""
    base = _POINT.sub("", directory.name)
    found = caches_of(directory.with_name(base))
    return [path for path in found if path != directory and _POINT.search(path.name)]


def remove_cache(directory: Path, prefix: str) -> str:
    """Remove the cache of the workspace `prefix`, and its log; returns why not, or ""."""
    try:
        identity = jsontext.object_of((directory / IDENTITY_FILE).read_bytes(), IDENTITY_FILE)
        if identity.get("prefix") != prefix:
            return "it belongs to another workspace"
        held = lock(directory)
    except CacheError as exc:
        return exc.message
    except FormatError as exc:
        return f"it does not say which workspace it belongs to ({exc.why})"
    except OSError as exc:
        return f"it can't be read: {exc.strerror}"
    try:
        shutil.rmtree(directory)
        for suffix in LOG_SUFFIXES:
            directory.with_name(directory.name + suffix).unlink(missing_ok=True)
    except OSError as exc:
        return f"not all of it could be removed: {exc.strerror}"
    finally:
        os.close(held)
    return ""

"""The changes of one mount, as they come: what `s3ws watch` shows.

The daemon notes what changes and hands it over when asked; which paths that are is read here, in
this process, from the cache beside the daemon.

Invariants
1. Memory is bounded: one answer, and the paths of core/changefeed.DIRS_MAX directories.
2. What was missed is told: marks that did not fit, and generations between two daemons.
3. It ends when the mount does; a daemon that is replaced is waited for.

Called by the command.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from s3ws_fs.cache import inspect
from s3ws_fs.control import client, registry
from s3ws_fs.control.registry import MountInfo
from s3ws_fs.core.changefeed import Change, Mark, Teller, mark_from
from s3ws_fs.core.errors import FormatError, UserError
from s3ws_fs.workspaces.mounts import runtime_dir

ANSWER_S: Final = 60.0
"""The daemon answers every 20 s, with changes or without."""
AGAIN_S: Final = 0.2
"""Pause before a daemon that is gone is asked again: its holder starts another."""


@dataclass(slots=True)
class Batch:
    """What one answer brought. `lost`: how many changes are not in it; `since`: after which
    generation that was, when a whole daemon was missed.
    """

    generation: int
    changes: list[Change] = field(default_factory=list)
    lost: int = 0
    since: int | None = None


@dataclass(slots=True)
class Watch:
    """Asks one mount again and again."""

    info: MountInfo
    pause: Callable[[float], None] = time.sleep
    _watcher: str | None = None
    _generation: int | None = None
    _teller: Teller = field(default_factory=lambda: Teller(lambda _: None, lambda _: []))

    def run(self) -> Iterator[Batch]:
        """Batches as they come; the first, without changes, says from where on. It ends with the
        mount. Raises UserError.
        """
        with inspect.open_readonly(Path(self.info.cache_path)) as cache:
            while True:
                answer = self._ask()
                if answer is None:
                    return
                yield from self._told(answer, cache)

    def _ask(self) -> dict[str, Any] | None:
        path = registry.socket_path(runtime_dir(), self.info.mountpoint)
        while True:
            try:
                return client.request(
                    path, "changes", {"watcher": self._watcher}, timeout_s=ANSWER_S
                )
            except client.DaemonGoneError:
                info = registry.read(runtime_dir(), self.info.mountpoint)
                if info is None or not info.is_alive():
                    return None
                self.pause(AGAIN_S)

    def _told(self, answer: dict[str, Any], cache: inspect.Inspector) -> Iterator[Batch]:
        try:
            start, generation = int(answer["from"]), int(answer["generation"])
            marks = [mark_from(value) for value in answer["marks"]]
            lost = int(answer["lost"])
        except (KeyError, TypeError, ValueError) as exc:
            raise _not_understood(exc) from exc
        except FormatError as exc:
            raise _not_understood(exc) from exc
        is_first = self._generation is None
        missed = self._generation if self._generation not in (None, start) else None
        self._watcher, self._generation = answer.get("watcher"), generation
        changes = self._changes(marks, cache) if marks else []
        if is_first or changes or lost or missed is not None:
            yield Batch(generation, changes, lost, missed)

    def _changes(self, marks: list[tuple[int, Mark]], cache: inspect.Inspector) -> list[Change]:
        with cache.names() as (dir_path, paths_of):
            self._teller.dir_path, self._teller.paths_of = dir_path, paths_of
            return list(self._teller.changes(marks))


def _not_understood(exc: Exception) -> UserError:
    return UserError(
        f"The daemon's answer to `changes` was not understood ({exc}).",
        remedy="Use the version of s3ws that mounted it, or `s3ws restart` the mount.",
    )

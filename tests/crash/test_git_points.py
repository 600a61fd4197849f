"""A death at each point of a bundle's way: the bucket has the one before or this one, whole, and
the next look puts right what is missing.

In one process, at once (tests/snapshot/test_git_service.py); real daemons are killed in
tests/e2e/test_git_state.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from s3ws_fs.core import failpoints
from s3ws_fs.snapshot.git import making
from s3ws_fs.snapshot.git.getting import download
from s3ws_fs.snapshot.git.restoring import Options, restore
from tests.crash.workloads import OF_GIT
from tests.snapshot.test_git_service import GitBench, bench, ignore
from tests.support import git_states
from tests.support.armed import listening
from tests.transfer.conftest import cache, fs, memory, store

__all__ = ["bench", "cache", "fs", "memory", "store"]


class _DiedError(BaseException):
    """The process is gone."""


def _dying_at(point: str, passed: list[str]) -> Callable[[str], None]:
    def hook(name: str) -> None:
        passed.append(name)
        if name == point:
            raise _DiedError

    return hook


def _picture(top: Path) -> Any:
    return git_states.picture(top), git_states.files(top)


def _bucket_shows(bench: GitBench, number: int) -> Any:
    """What the bucket's bundle gives; None when there is none."""
    if not list(bench.store.list("git/")):
        return None
    downloads = bench.top / f"crash downloads {number}"
    downloads.mkdir()
    target = bench.top / f"crash restored {number}"
    restore(download(bench.store, b"", downloads), target, Options())
    return _picture(target)


@pytest.mark.parametrize("increments", [False, True], ids=["whole", "added"])
@pytest.mark.parametrize("point", OF_GIT)
async def test_dying_at_each_point(
    bench: GitBench, point: str, increments: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if increments:
        monkeypatch.setattr(making, "INCREMENT_MIN_BYTES", 0)
        monkeypatch.setattr(making, "INCREMENT_SHARE_MAX", 0.9)
    shown: list[Any] = [None]
    bench.change(git_states.BASE + "head -c 100000 /dev/urandom >large; git add large")
    for number, script in enumerate(
        ("echo 1 >>file", "echo 2 >>file; git stash -q", "rm file; git tag x"), 1
    ):
        bench.change(script)
        wanted = _picture(bench.workspace)
        passed: list[str] = []
        with listening(_dying_at(point, passed)), pytest.raises(_DiedError):
            await bench.git._save()
        assert point in passed
        found = _bucket_shows(bench, 10 * number)
        is_put = point in (failpoints.KEEP_PUT_AFTER, failpoints.BUNDLE_NOTED)
        assert found == (wanted if is_put else shown[-1])
        # The next daemon.
        bench.git = bench.another()
        bench.git._clean_work()
        assert bench.git.is_due()
        assert (await bench.git.final(ignore))["error"] is None
        assert _bucket_shows(bench, 10 * number + 1) == wanted
        assert not bench.leavings()
        shown.append(wanted)

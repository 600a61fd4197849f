"""Which segments of the bucket a cache goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from s3ws_fs.cache.cache import Cache, Identity, open_cache
from s3ws_fs.core.types import ROOT_INO, Cred
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.replica import position
from s3ws_fs.replica.position import Sealed

OURS = "a" * 32


@pytest.fixture
def cache(tmp_path: Path) -> Any:
    identity = Identity(prefix="conversations/u/c/workspace/", store="memory:")
    with open_cache(tmp_path / "ws", identity, quota_bytes=1 << 24, now_ns=lambda: 1) as opened:
        fs = FileSystem(opened, quota_bytes=1 << 24, quota_inodes=100, on_change=lambda: None)
        fs.make_root(uid=0, gid=0, mode=0o755)
        for number in range(10):
            fs.create(ROOT_INO, b"%d" % number, 0o644, Cred(uid=0, gid=0))
        opened.put_json("workspace", "w" * 32)
        position.remember(opened, Sealed(3, "hash 3", 5))
        yield opened


def state(newest: int, **header: Any) -> dict[str, Any]:
    said = {"writer": OURS, "generation": 7, "prev_hash": "", "puts": 1, "tombs": 0}
    return {
        "workspace": "w" * 32,
        "newest": newest,
        "header_hash": f"hash {newest}",
        "header": said | header,
    }


def test_own_segments_that_a_power_cut_made_unknown_are_adopted(cache: Cache) -> None:
    assert position.compare(cache, state(5), OURS) == position.SAME
    assert Sealed.from_json(cache.get_json("sealed")) == Sealed(5, "hash 5", 7)


def test_segments_of_others_are_not(cache: Cache) -> None:
    assert position.compare(cache, state(4, writer="b" * 32), OURS) == position.NEWER


def test_own_segments_newer_than_the_cache_are_not(cache: Cache) -> None:
    assert position.compare(cache, state(4, generation=10**6), OURS) == position.NEWER


def test_a_fence_of_ours_is_adopted_on_top_of_what_we_know_only(cache: Cache) -> None:
    """Below it may be what somebody else sealed before we took over."""
    over_others = state(5, puts=0, prev_hash="hash 4")
    assert position.compare(cache, over_others, OURS) == position.NEWER
    other_history = state(4, puts=0, prev_hash="another hash 3")
    assert position.compare(cache, other_history, OURS) == position.NEWER
    assert position.compare(cache, state(4, puts=0, prev_hash="hash 3"), OURS) == position.SAME

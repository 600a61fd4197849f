"""Caches of a deleted workspace: only its own, only when nobody has them open."""

from __future__ import annotations

import time
from pathlib import Path

from s3ws_fs.cache.cache import Identity, open_cache
from s3ws_fs.cache.removing import caches_of, remove_cache

PREFIX = "conversations/u/c/workspace/"


def make(directory: Path, prefix: str = PREFIX) -> None:
    identity = Identity(prefix=prefix, store="memory:")
    open_cache(directory, identity, quota_bytes=1 << 20, now_ns=time.time_ns).close()


def test_the_writers_and_those_of_read_only_mounts_are_found(tmp_path: Path) -> None:
    own = tmp_path / "c-0123"
    for name in ("c-0123", "c-0123-ro", "c-0123-ro-7-abcd", "c-01234", "other"):
        make(tmp_path / name)
    (tmp_path / "c-0123-file").write_text("no directory")
    (tmp_path / "c-0123-link").symlink_to(own)
    assert [path.name for path in caches_of(own)] == ["c-0123", "c-0123-ro", "c-0123-ro-7-abcd"]
    assert caches_of(tmp_path / "none" / "c") == []


def test_it_goes_with_its_log(tmp_path: Path) -> None:
    own = tmp_path / "c"
    make(own)
    log = tmp_path / "c.log"
    log.write_text("paths")
    assert remove_cache(own, PREFIX) == ""
    assert not own.exists() and not log.exists()


def test_what_is_not_its_own_stays(tmp_path: Path) -> None:
    make(tmp_path / "other", "conversations/u/d/workspace/")
    assert "another workspace" in remove_cache(tmp_path / "other", PREFIX)
    (tmp_path / "bare").mkdir()
    assert "can't be read" in remove_cache(tmp_path / "bare", PREFIX)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "identity.json").write_text("?")
    assert "does not say" in remove_cache(tmp_path / "odd", PREFIX)
    assert {path.name for path in tmp_path.iterdir()} == {"other", "bare", "odd"}


def test_one_in_use_stays(tmp_path: Path) -> None:
    own = tmp_path / "c"
    identity = Identity(prefix=PREFIX, store="memory:")
    with open_cache(own, identity, quota_bytes=1 << 20, now_ns=time.time_ns):
        assert "in use by the daemon" in remove_cache(own, PREFIX)
        assert (own / "data" / "data.mdb").exists()
    assert remove_cache(own, PREFIX) == ""

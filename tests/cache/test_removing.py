"""Caches that nobody needs: only those of their workspace, only when nobody has them open."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from pathlib import Path

import pytest

from s3ws_fs.cache import cache as caching
from s3ws_fs.cache.cache import Identity, open_cache
from s3ws_fs.cache.removing import caches_of, other_points, remove_cache
from s3ws_fs.core.config import MountConfig, StoreConfig, WorkspaceId

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
    for name in ("c.log", "c.log.1"):
        (tmp_path / name).write_text("paths")
    assert remove_cache(own, PREFIX) == ""
    assert not list(tmp_path.iterdir())


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


def test_the_caches_of_other_points(tmp_path: Path) -> None:
    config = MountConfig(
        mountpoint="/m",
        workspace=WorkspaceId("u", "c-ro-1-abcdef01", "conversations/"),
        store=StoreConfig(type="local", path="/s"),
        cache_dir=str(tmp_path),
        runtime_dir="/r",
        read_only=True,
        at_number=12,
        at_hash="0123456789abcdef" * 2,
        at_ref="#12",
    )
    own = Path(config.workspace_cache_dir)
    base = own.name.removesuffix("-ro-12-01234567")
    assert base != own.name
    others = [f"{base}-ro-12-76543210", f"{base}-ro-7-01234567"]
    for name in (
        own.name,
        base,
        f"{base}-ro",
        f"{base}-ro-7-abcd",
        f"x{base}-ro-7-01234567",
        *others,
    ):
        make(tmp_path / name)
    assert [path.name for path in other_points(own)] == others


def test_a_cache_that_is_removed_while_it_is_opened_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "c"
    make(own)
    take = fcntl.flock
    gone: list[int] = []

    def flock(fd: int, how: int) -> None:
        if not gone:
            gone.append(fd)
            shutil.rmtree(own)
        take(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    make(own)
    assert gone and (own / "data" / "data.mdb").exists()


def test_one_that_is_removed_again_and_again_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, tries, before = tmp_path / "c", [], set(os.listdir("/proc/self/fd"))

    def flock(fd: int, how: int) -> None:
        tries.append(fd)
        shutil.rmtree(own)

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(FileNotFoundError, match="removed just now"):
        make(own)
    assert len(tries) == caching.LOCK_TRIES_MAX
    assert set(os.listdir("/proc/self/fd")) == before

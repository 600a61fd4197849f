"""The child's job: bundles of what is in a cache, with as little copied out of it as is needed."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core.config import StoreConfig
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.snapshot.git import job
from s3ws_fs.snapshot.git.cached import CachedTree, LeanTree, take
from s3ws_fs.snapshot.git.making import MADE, UNCHANGED
from s3ws_fs.snapshot.git.memory import Memory, note_uploaded
from s3ws_fs.snapshot.git.restoring import Options, restore
from s3ws_fs.snapshot.git.tree import DirectoryTree, Places
from s3ws_fs.store.scoped import ScopedStore
from tests.snapshot.test_tree import make_cold
from tests.support import git_states
from tests.support.caches import populate
from tests.support.into_cache import bring_in


class Jobs:
    """A workspace that changes natively, its cache, and the job over that."""

    def __init__(self, cache: Cache, fs: FileSystem, store: ScopedStore, top: Path) -> None:
        self.cache, self.fs, self.store = cache, fs, store
        self.workspace = top / "workspace"
        self.top = top
        self.state = top / "state"
        self.copied_bytes = 0

    def change(self, script: str) -> None:
        """A script in the workspace; the cache follows."""
        self.workspace.mkdir(exist_ok=True)
        git_states.run_script(script, self.workspace)
        bring_in(self.fs, self.workspace)

    def run(self, *, put: bool = True) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """One job: its result, and what became of each repository."""
        out = self.top / "work"
        out.mkdir(exist_ok=True)
        made: dict[str, dict[str, Any]] = {}

        def say(line: dict[str, Any]) -> None:
            if "made" in line:
                made[line["made"]["path"]] = line["made"]

        asked = {
            "cache_dir": str(self.cache.directory),
            "directory": str(out),
            "state_dir": str(self.state),
            "limit_bytes": 1 << 30,
            "mountpoint": str(self.workspace),
            "store": StoreConfig("local", path="/nonexistent").to_json(),
            "prefix": "p/",
        }
        done = job.run(asked, say)
        for path, item in made.items():
            if put and item["outcome"] == MADE:
                note_uploaded(self.state, path.encode("utf-8", "surrogateescape"), item["state"])
        return done, made


@pytest.fixture
def jobs(
    cache: Cache,
    fs: FileSystem,
    store: ScopedStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Jobs:
    """See there."""
    found = Jobs(cache, fs, store, tmp_path)

    def counted(*args: Any, **more: Any) -> LeanTree:
        held = take(*args, **more)
        found.copied_bytes = held._end
        return held

    # One process can't open a cache twice.
    monkeypatch.setattr(job, "open_reader", lambda _: contextlib.nullcontext(cache))
    monkeypatch.setattr(job, "open_store", lambda *_, **__: store)
    monkeypatch.setattr(job, "take", counted)
    return found


@pytest.mark.parametrize("story", ["merge with a conflict", "stashes", "line ends"])
def test_a_repository_in_the_cache(story: str, jobs: Jobs, tmp_path: Path) -> None:
    jobs.change(git_states.STORIES[story])
    done, made = jobs.run()
    assert done["repositories"] == 1
    assert done["generation"] == jobs.cache.generation
    restore([Path(made[""]["file"])], tmp_path / "restored", Options())
    assert git_states.picture(tmp_path / "restored") == git_states.picture(jobs.workspace)
    assert git_states.files(tmp_path / "restored") == git_states.files(jobs.workspace)
    assert jobs.run()[1][""]["outcome"] == UNCHANGED


def test_no_repository_no_copy(jobs: Jobs) -> None:
    populate(jobs.cache)
    done, made = jobs.run()
    assert (done["repositories"], made, jobs.copied_bytes) == (0, {}, 0)


def test_only_what_is_new_is_copied(jobs: Jobs, tmp_path: Path) -> None:
    jobs.change(
        git_states.BASE
        + """
            head -c 300000 /dev/urandom >large; git add large; git commit -qm large; git repack -adq
            mkdir build; head -c 200000 /dev/urandom >build/out; head -c 100000 /dev/urandom >x.log
            mkdir -p outside build/nested; cd build/nested; git init -q .; echo x >x
        """
    )
    jobs.run()
    assert jobs.copied_bytes > 900_000
    jobs.change("echo more >>notes; echo grown >>x.log")
    done, made = jobs.run()
    assert done["copies"] == 1
    assert made[""]["outcome"] == MADE
    assert made["build/nested"]["outcome"] == UNCHANGED
    assert jobs.copied_bytes < 100_000
    restore([Path(made[""]["file"])], tmp_path / "one", Options())
    assert git_states.files(tmp_path / "one") == git_states.files(jobs.workspace)
    # What was ignored is not any more: it has to be copied after all.
    jobs.change("echo >.gitignore")
    done, made = jobs.run()
    assert done["copies"] == 2
    assert made[""]["outcome"] == MADE
    restore([Path(made[""]["file"])], tmp_path / "two", Options())
    assert git_states.files(tmp_path / "two") == git_states.files(jobs.workspace)
    # A copy of objects that is gone.
    jobs.run()
    for pack in jobs.state.rglob("*.pack"):
        pack.unlink()
    jobs.change("echo more >>notes")
    done, made = jobs.run()
    assert (done["copies"], made[""]["outcome"]) == (2, MADE)


def test_cold_bytes_come_from_the_bucket(jobs: Jobs, tmp_path: Path) -> None:
    jobs.change(git_states.STORIES["staged, modified, deleted, untracked, ignored"])
    with jobs.cache.read() as view:
        inos = [
            int.from_bytes(key, "big") for key, _ in view.txn.cursor(db=jobs.cache.tables.inodes)
        ]
        warm = [ino for ino in inos if next(view.extents(ino), None) is not None]
    make_cold(jobs.cache, jobs.store, warm)
    _, made = jobs.run()
    assert made[""]["outcome"] == MADE, made[""]["why"]
    restore([Path(made[""]["file"])], tmp_path / "restored", Options())
    assert git_states.files(tmp_path / "restored") == git_states.files(jobs.workspace)


def test_the_tree_of_a_cache_is_that_of_the_directory(jobs: Jobs) -> None:
    jobs.change(git_states.STORIES["odd names"] + "truncate -s 200000 hole; echo x >>hole")
    with jobs.cache.read() as _:
        held = take(
            jobs.cache, jobs.top, lambda: jobs.store, Memory(None), limit_bytes=1 << 30, whole=True
        )
    native, cached = Places(DirectoryTree(jobs.workspace)), Places(CachedTree(held))
    paths = [path for path, _ in native.walk(b"")]
    assert [path for path, _ in cached.walk(b"")] == paths
    for path in paths:
        one, other = native.node(path), cached.node(path)
        assert one is not None
        assert other is not None
        assert (one.mode, one.target) == (other.mode, other.target)
        if one.is_file:
            assert one.size == other.size
            assert b"".join(native.read(path)) == b"".join(cached.read(path))
    held.close()

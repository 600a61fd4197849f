"""Real programs on the mount, each with its own check, and then all of it on another host."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from pathlib import Path

import pytest

from tests.support import programs, trees
from tests.support.buckets import LocalBucket
from tests.support.e2e_fixtures import Elsewhere
from tests.support.host import NEVER_BY_ITSELF, Host

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

SOURCE_FILES = 200
TRANSACTIONS = 40


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository on the native filesystem."""
    tree = tmp_path_factory.mktemp("native") / "project"
    trees.build_source_tree(tree, files=SOURCE_FILES)
    assert programs.make_repository(tree) == SOURCE_FILES
    return tree


def test_git_clone_is_clean_and_sound(here: Path, repository: Path) -> None:
    programs.check_clone(repository, programs.git_clone(repository, here))


def test_git_commit_merge_and_gc(here: Path, repository: Path) -> None:
    programs.git_commit(programs.git_clone(repository, here))


def test_pip_install_and_import(here: Path, tmp_path: Path) -> None:
    if not programs.have_pip():
        pytest.skip("this environment has no pip")
    names = programs.make_wheels(tmp_path / "wheels")
    target = programs.pip_install(tmp_path / "wheels", names, here)
    programs.check_imports(target, ["alpha_e2e", "alpha_e2e.m7", "beta_e2e.m39"])


def test_tar_extracts_as_on_a_native_filesystem(here: Path, tmp_path: Path) -> None:
    trees.build_rich_tree(tmp_path / "rich")
    programs.make_tar(tmp_path / "rich", tmp_path / "rich.tar")
    native = programs.untar(tmp_path / "rich.tar", tmp_path / "native")
    ours = programs.untar(tmp_path / "rich.tar", here)
    assert programs.diff(native, ours) == ""
    found = trees.differences(
        trees.manifest(native), trees.manifest(ours), ignore=trees.OTHER_FILESYSTEM
    )
    assert found == []


def test_cp_keeps_everything(here: Path, tmp_path: Path) -> None:
    trees.build_rich_tree(tmp_path / "rich")
    copy = programs.copy_tree(tmp_path / "rich", here)
    assert programs.diff(tmp_path / "rich", copy) == ""
    assert trees.manifest(copy)[b"sizes/sparse.img"].holes, "the sparse file lost its holes"


@pytest.mark.parametrize("journal_mode", ["delete", "wal"])
def test_sqlite(here: Path, journal_mode: str) -> None:
    database = programs.sqlite_work(here, journal_mode, transactions=TRANSACTIONS)
    programs.check_sqlite(database, transactions=TRANSACTIONS)


def test_sqlite_wal_with_a_reader_beside_the_writer(here: Path) -> None:
    database = programs.sqlite_work(here, "wal", transactions=10)
    with (
        contextlib.closing(sqlite3.connect(database)) as writer,
        contextlib.closing(sqlite3.connect(database)) as reader,
    ):
        reader.execute("begin")
        before = reader.execute("select count(*) from t").fetchone()
        with writer:
            writer.execute("insert into t values (1000, x'00', 0)")
        assert reader.execute("select count(*) from t").fetchone() == before
        reader.execute("commit")
        assert reader.execute("select count(*) from t").fetchone() == (before[0] + 1,)


def test_compile_and_run(here: Path) -> None:
    if programs.c_compiler() is None:
        pytest.skip("there is no C compiler")
    programs.compile_and_run(here)


def test_many_small_files(here: Path) -> None:
    programs.many_small_files(here / "many", count=300)
    assert len(os.listdir(here / "many")) == 300


def test_everything_is_the_same_on_another_host(elsewhere: Elsewhere) -> None:
    """Last of those that share a mount: what all the programs left."""
    elsewhere()


def test_quota_stops_the_writer_and_nothing_else(
    local_bucket: LocalBucket, tmp_path: Path, user: str
) -> None:
    settings = {**NEVER_BY_ITSELF, "WORKSPACE_MAX_SIZE_MB": "4"}
    host = Host(tmp_path / "host", local_bucket.env, user=user, settings=settings)
    try:
        host.mount()
        info = os.statvfs(host.mountpoint)
        assert info.f_blocks * info.f_frsize == 4 << 20
        (host.mountpoint / "first").write_bytes(os.urandom(1 << 20))
        with pytest.raises(OSError) as caught:
            (host.mountpoint / "too much").write_bytes(os.urandom(8 << 20))
        assert caught.value.errno in (errno.ENOSPC, errno.EDQUOT)
        assert len((host.mountpoint / "first").read_bytes()) == 1 << 20
        host.sync()
        (host.mountpoint / "too much").unlink()
        (host.mountpoint / "second").write_bytes(os.urandom(1 << 20))
        host.umount()
        assert f"{host.prefix}files/second" in local_bucket.listing()
    finally:
        host.end()

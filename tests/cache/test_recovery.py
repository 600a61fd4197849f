"""What becomes of a cache after an unclean end, where test_syncpoint does not look."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from s3ws_fs.cache import recovery, syncpoint
from s3ws_fs.cache.cache import Cache
from tests.cache.test_syncpoint import busy

Opener = Callable[..., Cache]


def died(opener: Opener, tmp_path: Path, seed: int) -> Path:
    """The cache as a killed process leaves it."""
    cache = opener()
    busy(cache, random.Random(seed), 60)
    shutil.copytree(tmp_path / "ws", tmp_path / "copy")
    cache.close()
    shutil.rmtree(tmp_path / "ws")
    return (tmp_path / "copy").rename(tmp_path / "ws")


def test_an_older_side_file_is_never_put_into_a_new_database(
    opener: Opener, tmp_path: Path
) -> None:
    """The data was moved away by hand, and before the new one's first sync point the power goes."""
    directory = died(opener, tmp_path, 1)
    shutil.rmtree(directory / "data")
    with opener() as cache:
        assert cache.recovery == "fresh"
        slots = [slot for slot in syncpoint.read_slots(directory) if slot]
        assert {slot.generation for slot in slots} == {0}, "slots of the database before"


def test_a_long_note_is_replaced(opener: Opener, tmp_path: Path) -> None:
    """A note longer than ours must not make every later end look like a power cut."""
    directory = died(opener, tmp_path, 2)
    (directory / syncpoint.BOOT_FILE).write_bytes(os.urandom(2000))
    with opener() as cache:
        assert cache.recovery == "sync-point"
        busy(cache, random.Random(3), 5)
        assert syncpoint.read_boot(directory) == ("boot-1", False)
    with opener(boot_id="boot-2") as cache:
        assert cache.recovery == "kept"


@pytest.mark.parametrize(
    "noted",
    [
        [],
        {},
        "x",
        {"boot_id": 3, "clean": True},
        {"boot_id": "b", "clean": "false"},
        {"boot_id": "b", "clean": 1},
        {"clean": True},
    ],
)
def test_a_note_of_another_shape_vouches_for_nothing(tmp_path: Path, noted: object) -> None:
    (tmp_path / syncpoint.BOOT_FILE).write_text(json.dumps(noted))
    assert syncpoint.read_boot(tmp_path) is None
    assert recovery.is_due(tmp_path, "b")


def test_a_database_that_is_shorter_than_its_sync_point(opener: Opener, tmp_path: Path) -> None:
    """The engine would map it and die by SIGBUS: the walk sees it before."""
    directory = died(opener, tmp_path, 4)
    data = directory / "data" / "data.mdb"
    data.write_bytes(data.read_bytes()[: 5 * 4096])
    with opener(boot_id="boot-2") as cache:
        assert cache.recovery == "quarantined"
        assert "damaged in spite of its sync point" in cache.recovered.told()
        assert [str(cache.recovered.aside)] == cache.quarantines()


@pytest.mark.parametrize("boot_id", ["boot-1", "boot-2"])
def test_nothing_is_told_of_an_ordinary_end(opener: Opener, tmp_path: Path, boot_id: str) -> None:
    with opener():
        pass
    with opener(boot_id=boot_id) as cache:
        assert cache.recovered.told() == ""
        assert cache.quarantines() == []


def test_names_of_a_new_cache_are_flushed(
    opener: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsync of the files alone does not promise that they are found again."""
    flushed: list[Path] = []
    sync = syncpoint.sync_directory

    def noting(directory: Path) -> None:
        flushed.append(directory)
        sync(directory)

    monkeypatch.setattr(syncpoint, "sync_directory", noting)
    with opener():
        assert {tmp_path, tmp_path / "ws", tmp_path / "ws" / "data"} <= set(flushed)
    flushed.clear()
    with opener():
        assert flushed == [], "an existing cache is opened without"


def test_a_death_right_after_the_recovery_does_not_hide_it(opener: Opener) -> None:
    """Found by the simulation: rows of the mirror went back with the cache, the first daemon after
    the power cut died before it could say so, and the next one believed them."""
    cache = opener()
    cache.put_json("mirror_known", True)
    cache.sync_point()
    cache.let_go()
    os.close(cache._lock_fd)
    cache = opener(boot_id="boot-2")
    assert cache.recovery == "sync-point"
    cache.let_go()
    os.close(cache._lock_fd)
    with opener(boot_id="boot-2") as cache:
        assert cache.recovery == "kept"
        assert cache.get_json("mirror_known") is False

"""What points name: read from the journal, remembered, and not believed of another history."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core import keys, layout
from s3ws_fs.core.errors import FormatError, NotFoundError
from s3ws_fs.core.journal import Frame
from s3ws_fs.core.records import encode_location
from s3ws_fs.core.types import Location
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.store.memory import MemoryStore
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import points, spans
from s3ws_fs.transfer.spans import History, Names, TooMuchError
from tests.support.history import WORKSPACE, Life
from tests.support.inline import at_once

FOLDS = [0, 3, 6]


@pytest.fixture
def life(cache: Cache, fs: FileSystem, store: ScopedStore, tmp_path: Path) -> Iterator[Life]:
    """Seven points, checkpoints at 3 and 6; each segment's bytes are named by its point alone."""
    made = Life(cache, fs, store, tmp_path)
    made.begin()
    for number in range(1, 8):
        made.write(b"f", b"%d" % number * 100)
        frozen = made.seal(at_once(), checkpoint=number in (3, 6))
        assert frozen is not None
        frozen.close()
    yield made


def over(life: Life, directory: Path) -> History:
    standing = points.survey_points(life.store).segments.keys()
    return History(life.store, WORKSPACE, standing, directory / "history", at_once())


def lost(history: History, life: Life) -> dict[int, int]:
    found: dict[int, int] = {}
    for span in history.spans(FOLDS, life.hashes[6], {2: "etag"}):
        found.update(span.lost)
    return found


def test_names_are_counted_by_extent() -> None:
    names = Names()

    def place(item: int) -> bytes:
        return encode_location(Location(item, 0, 1, bytes(16)))

    one, two, other = keys.chunk_key(5, 0), keys.chunk_key(5, 1), keys.chunk_key(6, 0)
    names.apply(Frame(keys.T_CHUNKS, False, [one, two], [place(8), place(8)]), 9)
    names.apply(Frame(keys.T_CHUNKS, False, [other], [place(0)]), 9)
    assert names.named == {8, 9}
    names.apply(Frame(keys.T_CHUNKS, True, [one], []), 10)
    assert 8 in names and not names.touched
    names.apply(Frame(keys.T_CHUNKS, False, [two], [place(0)]), 10)
    assert names.named == {9, 10} and names.touched == {8}
    names.apply(Frame(keys.T_INODES, True, [keys.pack_u64(5), keys.pack_u64(77)], []), 11)
    assert names.named == {9} and names.touched == {8, 10}
    names.apply(Frame(keys.T_XATTRS, True, [one], []), 11)
    assert names.named == {9}


def test_what_was_lost_is_read_once(life: Life, memory: MemoryStore, tmp_path: Path) -> None:
    first = over(life, tmp_path)
    wanted = {number: number for number in range(1, 6)}
    assert lost(first, life) == wanted
    assert (first.segments_read, first.checkpoints_read) == (6, 1)
    again = over(life, tmp_path)
    before = memory.counters.by_op()["get"]
    assert lost(again, life) == wanted
    assert again.names_at(0, 2, "etag") == {2}
    assert memory.counters.by_op()["get"] == before
    # Of another segment 2 than the one that was read.
    assert again.names_at(0, 2, "another etag") == {2}
    assert again.segments_read == 2
    assert (tmp_path / "history").stat().st_mode & 0o777 == 0o700
    for path in (tmp_path / "history").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600


def test_what_may_be_of_another_history_is_read_anew(life: Life, tmp_path: Path) -> None:
    lost(over(life, tmp_path), life)
    for path in sorted((tmp_path / "history").iterdir()):
        whole = path.read_bytes()
        for raw in (whole[:-1], b"", bytes((whole[0] ^ 1,)) + whole[1:], whole[:20] + b"x"):
            path.write_bytes(raw)
            history = over(life, tmp_path)
            assert len(lost(history, life)) == 5
            if path.name.startswith("span-"):
                assert history.segments_read > 0
        path.write_bytes(whole)
    other = over(life, tmp_path)
    other.workspace = "x" * 32
    with pytest.raises(FormatError, match="belongs to workspace"):
        lost(other, life)
    # The end is not the one that is known: nobody believes what is remembered, or what stands.
    with pytest.raises(FormatError, match="another segment"):
        over(life, tmp_path).spans(FOLDS, "0" * 32)


def test_a_segment_that_a_checkpoint_folds_may_be_gone(life: Life, tmp_path: Path) -> None:
    life.store.delete(layout.seg_key(6))
    life.store.delete(layout.seg_key(3))
    assert lost(over(life, tmp_path), life) == {number: number for number in range(1, 6)}
    life.store.delete(layout.seg_key(2))
    with pytest.raises(NotFoundError):
        lost(over(life, tmp_path / "other"), life)


def test_one_look_reads_so_much_and_the_next_goes_on(life: Life, tmp_path: Path) -> None:
    with mock.patch.object(spans, "SEGMENTS_READ_MAX", 3):
        with pytest.raises(TooMuchError):
            lost(over(life, tmp_path), life)
        # The newer span is known by now; one more look comes to an end.
        assert len(lost(over(life, tmp_path), life)) == 5
    with mock.patch.object(spans, "SEGMENTS_READ_MAX", 2), pytest.raises(TooMuchError):
        lost(over(life, tmp_path / "other"), life)


def test_files_that_are_not_used_go(life: Life, tmp_path: Path) -> None:
    history = over(life, tmp_path)
    lost(history, life)
    directory = tmp_path / "history"
    (directory / "span-of-old").write_bytes(b"")
    again = over(life, tmp_path)
    again.spans([3, 6], life.hashes[6])
    again.keep([2])
    again.forget_others()
    assert sorted(path.name for path in directory.iterdir()) == [
        f"point-{2:016x}", f"span-{3:016x}-{6:016x}",
    ]  # fmt: skip


def test_remembering_is_no_duty(life: Life, tmp_path: Path) -> None:
    """No room, no directory: it is read again the next time."""
    (tmp_path / "history").write_bytes(b"in the way")
    for _ in range(2):
        assert len(lost(over(life, tmp_path), life)) == 5


def test_a_file_that_is_too_long_is_none(life: Life, tmp_path: Path) -> None:
    lost(over(life, tmp_path), life)
    with mock.patch.object(spans, "FILE_BYTES_MAX", 10):
        history = over(life, tmp_path)
        lost(history, life)
        assert history.segments_read == 6

"""The redo log's files: what is read back of them, whatever they hold, and their limits."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3ws_fs.cache import redo
from s3ws_fs.cache.redo import LogFile, Record, Redo, beyond, decode_log, read_log
from s3ws_fs.cache.tables import TABLES

ROW: Record = (0, b"key", b"value", -1)

records = st.lists(
    st.one_of(
        st.tuples(st.integers(0, len(TABLES) - 1), st.binary(max_size=30), st.none(), st.just(-1)),
        st.tuples(
            st.integers(0, len(TABLES) - 1),
            st.binary(max_size=30),
            st.binary(max_size=200),
            st.integers(-1, 40_000),
        ),
    ),
    min_size=1,
    max_size=8,
)


@pytest.fixture
def log(tmp_path: Path) -> Redo:
    made = Redo(tmp_path)
    made.begin_point(7, 10)
    return made


def bodies(directory: Path, head: int, base: int | None = None) -> list[list[Record]]:
    return [list(redo.decode_records(body)) for body in beyond(read_log(directory), head, base)]


@given(records)
def test_records_come_back(rows: list[Record]) -> None:
    assert list(redo.decode_records(redo.encode_records(rows))) == rows


def test_frames_come_back_in_order(tmp_path: Path, log: Redo) -> None:
    rows = [[(0, b"k%d" % n, b"v" * n, -1)] for n in range(11, 20)]
    for generation, each in enumerate(rows, 11):
        assert log.append(generation, each)  # type: ignore[arg-type]
    assert bodies(tmp_path, 10) == rows
    assert bodies(tmp_path, 15) == rows[5:]
    assert bodies(tmp_path, 19) == []
    # Not what follows from generation 8.
    assert bodies(tmp_path, 8) == []


def test_files_are_private(tmp_path: Path, log: Redo) -> None:
    for name in redo.LOG_FILES:
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


@given(cut=st.integers(0, 4000), flip=st.integers(0, 4000), data=st.binary(max_size=300))
def test_whatever_a_file_holds_only_whole_frames_count(cut: int, flip: int, data: bytes) -> None:
    whole = _a_file()
    logs = decode_log(whole)
    assert logs is not None and len(logs.frames) == 20
    for raw in (
        whole[:cut],
        whole[:flip] + bytes([whole[flip % len(whole)] ^ 1]) + whole[flip + 1 :],
        whole[:cut] + data,
        data,
    ):
        found = decode_log(raw)
        if found is not None:
            assert found.frames == logs.frames[: len(found.frames)]


def _a_file() -> bytes:
    raw = redo._encode_header(3, 99, linked=True)
    for generation in range(1, 21):
        body = redo.encode_records([(1, b"key", bytes([generation]) * 150, -1)])
        head = redo._FRAME.pack(len(body), generation)
        raw += head + redo._sum(99, head, body) + body
    return raw + bytes(5000)


def test_what_an_older_use_left_does_not_count(tmp_path: Path, log: Redo) -> None:
    """A file that is begun anew is shorter than before: what stands behind is of another epoch."""
    for generation in range(11, 21):
        log.append(generation, [ROW])
    log.begin_point(8, 20)
    log.append(21, [ROW])
    log.finish_point()
    log.begin_point(9, 21)
    assert log.append(22, [ROW])
    assert [len(each.frames) for each in read_log(tmp_path)] == [1, 1]
    assert len(bodies(tmp_path, 21)) == 1
    assert bodies(tmp_path, 15) == []


def test_a_new_log_has_nothing_of_the_one_before(tmp_path: Path, log: Redo) -> None:
    log.append(11, [ROW])
    assert bodies(tmp_path, 10) != []
    again = Redo(tmp_path)
    assert read_log(tmp_path) == []
    again.begin_point(8, 11)
    assert bodies(tmp_path, 10) == []


# --- what counts after a power cut -----------------------------------------------------------


def frames(*generations: int) -> list[tuple[int, bytes]]:
    return [(generation, b"%d" % generation) for generation in generations]


def test_after_a_kill_breaks_do_not_count() -> None:
    log = LogFile(7, True, [*frames(11), (11, b""), *frames(12, 13)])
    assert beyond([log], 11, None) == [b"12", b"13"]


def test_after_a_power_cut_a_break_is_the_end() -> None:
    log = LogFile(7, True, [*frames(11), (11, b""), *frames(12, 13)])
    assert beyond([log], 10, 7) == [b"11"]
    assert beyond([log], 11, 7) == []


def test_a_gap_is_the_end() -> None:
    log = LogFile(7, True, frames(11, 13))
    assert beyond([log], 10, 7) == [b"11"]
    assert beyond([log], 10, None) == [b"11"]


@pytest.mark.parametrize(
    ("linked", "base", "expected"),
    [
        # The sync point under way was not finished: the newer file goes on where the older ends.
        (True, 7, [b"11", b"12"]),
        # But for what was committed past the log before it began.
        (False, 7, [b"11"]),
    ],
)
def test_two_files(linked: bool, base: int, expected: list[bytes]) -> None:
    logs = [LogFile(7, True, frames(11)), LogFile(8, linked, frames(12))]
    assert beyond(logs, 10, base) == expected


def test_the_newer_file_alone_is_based_on_its_sync_point() -> None:
    logs = [LogFile(7, True, [*frames(11), (11, b"")]), LogFile(8, False, frames(12))]
    assert beyond(logs, 11, 8) == [b"12"]


def test_a_file_of_a_later_sync_point_than_the_next_does_not_follow() -> None:
    assert beyond([LogFile(9, True, frames(11))], 10, 7) == []


# --- writing ---------------------------------------------------------------------------------


def intact(log: Redo) -> bool:
    return log.is_intact


def test_a_break_needs_a_sync_point(log: Redo) -> None:
    log.append(11, [ROW])
    log.break_off(11)
    assert not intact(log)
    assert log.begin_flush() is None
    log.begin_point(8, 11)
    # Not before it is finished: until then the sync point before is the base.
    assert not intact(log)
    log.append(12, [ROW])
    log.finish_point()
    assert intact(log)
    assert log.begin_flush() is not None


def test_a_flush_covers_both_files_while_a_sync_point_is_under_way(log: Redo) -> None:
    log.append(11, [ROW])
    log.begin_point(8, 11)
    log.append(12, [ROW])
    begun = log.begin_flush()
    assert begun is not None
    generation, descriptors = begun
    assert generation == 12
    assert len(descriptors) == 2
    log.finish_flush(generation)
    assert log.durable_generation == 12
    again = log.begin_flush()
    assert again is not None
    assert again[1] == []


def test_after_a_failed_sync_point_no_file_is_begun_anew(tmp_path: Path, log: Redo) -> None:
    log.append(11, [ROW])
    log.begin_point(8, 11)
    log.append(12, [ROW])
    # It failed; the next try.
    log.begin_point(8, 12)
    log.append(13, [ROW])
    assert len(bodies(tmp_path, 10, 7)) == 3
    log.finish_point()
    log.append(14, [ROW])
    assert len(bodies(tmp_path, 12, 8)) == 2
    log.begin_point(9, 14)
    assert len(bodies(tmp_path, 12, 8)) == 2


def test_a_full_file_takes_no_more_but_a_break(tmp_path: Path, log: Redo) -> None:
    big: Record = (2, b"key", bytes(redo.FRAME_BYTES_MAX - 100), -1)
    generation = 10
    while log.append(generation + 1, [big]):
        generation += 1
    assert log.is_due
    size_bytes = (tmp_path / redo.LOG_FILES[1]).stat().st_size
    assert redo.LOG_BYTES_MAX - 2 * redo.FRAME_BYTES_MAX < size_bytes <= redo.LOG_BYTES_MAX
    log.break_off(generation)
    (found,) = read_log(tmp_path)
    assert found.frames[-1] == (generation, b"")
    assert (tmp_path / redo.LOG_FILES[1]).stat().st_size <= redo.LOG_BYTES_MAX


def test_a_large_change_is_refused(log: Redo) -> None:
    assert not log.append(11, [(2, b"key", bytes(redo.FRAME_BYTES_MAX), -1)])
    assert log.append(11, [ROW])


def test_a_full_disk_refuses_and_leaves_what_was(tmp_path: Path, log: Redo) -> None:
    log.append(11, [ROW])
    with mock.patch.object(os, "pwrite", side_effect=OSError(errno.ENOSPC, "full")):
        assert not log.append(12, [ROW])
        log.break_off(12)
    assert not log.is_intact
    assert len(bodies(tmp_path, 10)) == 1


def test_what_is_noted_comes_before_what_follows(tmp_path: Path, log: Redo) -> None:
    log.note(11, [ROW], 5)
    log.note(12, [ROW], 5)
    assert read_log(tmp_path)[0].frames == []
    log.append(13, [ROW])
    assert [generation for generation, _ in read_log(tmp_path)[0].frames] == [11, 12, 13]


def test_what_is_noted_is_there_when_it_is_flushed(tmp_path: Path, log: Redo) -> None:
    log.note(11, [ROW], 5)
    begun = log.begin_flush()
    assert begun is not None and begun[0] == 11
    assert len(bodies(tmp_path, 10, 7)) == 1


def test_a_sync_point_makes_what_was_noted_before_it_superfluous(tmp_path: Path, log: Redo) -> None:
    log.note(11, [ROW], 5)
    log.begin_point(8, 11)
    log.note(12, [ROW], 5)
    log.finish_point()
    log.begin_flush()
    assert [each.frames for each in read_log(tmp_path)][-1][0][0] == 12


@pytest.mark.parametrize("many", [True, False])
def test_too_much_noted_is_a_break(log: Redo, many: bool) -> None:
    if many:
        for generation in range(11, 11 + redo.PENDING_BYTES_MAX // 10_000 + 1):
            log.note(generation, [ROW], 10_000)
    else:
        log.note(11, [ROW], redo.FRAME_BYTES_MAX)
    assert not log.is_intact
    # And nothing is held any more.
    assert log._pending == []


def test_closed_files_are_never_written(tmp_path: Path, log: Redo) -> None:
    log.close()
    assert not log.append(11, [ROW])
    log.break_off(11)
    assert log.begin_flush() is None


def test_has_frames(tmp_path: Path, log: Redo) -> None:
    assert not redo.has_frames(tmp_path)
    log.append(11, [ROW])
    assert redo.has_frames(tmp_path)
    redo.remove_log(tmp_path)
    assert not redo.has_frames(tmp_path)

"""Backups' names, retention and schedule: their bounds hold for every set of times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3ws_fs.core import backups
from s3ws_fs.core.backups import Backup, Keep, Schedule, gather, kept, plan_prune
from s3ws_fs.core.errors import ExitCode, UserError

HOUR_S = 3600
DAY_S = 24 * HOUR_S
TIMES = st.lists(st.integers(1_700_000_000, 1_700_000_000 + 60 * DAY_S), min_size=1, max_size=60)
COUNTS = st.integers(0, 12)
KEEPS = st.builds(Keep, COUNTS, COUNTS, COUNTS, COUNTS)


def made(
    time_s: int,
    *,
    good: bool = True,
    index: bool = True,
    archive: bool = True,
    missing: int = 0,
) -> Backup:
    size = 1000 + time_s % 7
    return Backup(
        backups.name_of(time_s),
        size if archive else None,
        50 if index else None,
        {
            backups.META_BYTES: str(size if good else size + 1),
            backups.META_MISSING: str(missing),
        }
        if index
        else {},
    )


@given(TIMES, KEEPS)
def test_the_newest_stays_and_so_many_of_each_period(times: list[int], keep: Keep) -> None:
    staying = kept(times, keep)
    assert staying <= set(times)
    assert max(times) in staying
    newest = sorted(set(times), reverse=True)
    assert set(newest[: keep.last]) <= staying
    assert len(staying) <= max(1, keep.last) + keep.hourly + keep.daily + keep.weekly
    for count, length_s in ((keep.hourly, HOUR_S), (keep.daily, DAY_S)):
        periods = sorted({time_s // length_s for time_s in times}, reverse=True)[:count]
        for period in periods:
            assert max(t for t in times if t // length_s == period) in staying


@given(TIMES, KEEPS)
def test_keeping_is_stable_and_grows_with_what_is_asked(times: list[int], keep: Keep) -> None:
    staying = kept(times, keep)
    assert kept(staying, keep) == staying
    more = Keep(keep.last + 1, keep.hourly + 1, keep.daily + 1, keep.weekly + 1)
    assert staying <= kept(times, more)


@given(
    st.lists(st.tuples(st.integers(0, 40 * DAY_S), st.sampled_from("gbiam")), max_size=40), KEEPS
)
def test_pruning_never_drops_the_newest_good_one(
    described: list[tuple[int, str]], keep: Keep
) -> None:
    base = 1_700_000_000
    found = {
        at: made(
            base + at,
            good=kind in "gm",
            index=kind != "a",
            archive=kind != "i",
            missing=int(kind == "m"),
        )
        for at, kind in described
    }
    now_s = base + 40 * DAY_S
    dropped = plan_prune(found.values(), keep, now_s)
    whole = [backup for backup in found.values() if backup.whole]
    if not whole:
        assert dropped == []
        return
    newest = max(whole, key=lambda backup: backup.time_s)
    assert newest not in dropped
    for backup in dropped:
        assert backup.time_s < newest.time_s
        is_half = None in (backup.archive_bytes, backup.index_bytes)
        assert backup.whole or is_half or now_s - backup.time_s > backups.INCOMPLETE_S
        assert all(backups.parse_key(key) is not None for key in backup.keys)
    left = [backup for backup in found.values() if backup not in dropped]
    assert plan_prune(left, keep, now_s) == []
    for backup in left:
        is_half = None in (backup.archive_bytes, backup.index_bytes)
        assert not is_half or backup.time_s >= newest.time_s


def test_an_upload_that_was_cut_off_goes_with_the_next_backup() -> None:
    half, other = made(1_700_000_000, index=False), made(1_700_000_001, archive=False)
    assert plan_prune([half, other], Keep(), 1_700_000_100) == []
    newer = made(1_700_000_050)
    assert plan_prune([newer, half, other], Keep(), 1_700_000_100) == [half, other]
    under_way = made(1_700_000_090, index=False)
    assert under_way not in plan_prune([newer, half, under_way], Keep(), 1_700_000_100)


def test_weeks_are_those_of_iso() -> None:
    sunday = 1_798_934_400  # 2027-01-03T00:00:00Z, in week 53 of 2026
    keep = Keep(0, 0, 0, 2)
    assert kept([sunday, sunday - DAY_S, sunday - 7 * DAY_S], keep) == {sunday, sunday - 7 * DAY_S}


@given(st.integers(0, 4_000_000_000))
def test_names_are_times(time_s: int) -> None:
    name = backups.name_of(time_s)
    assert backups.time_of(name) == time_s
    assert backups.parse_key(backups.archive_key(name)) == (name, False)
    assert backups.parse_key(backups.index_key(name)) == (name, True)


@pytest.mark.parametrize(
    "key",
    [
        "compressed/backup-20260131T120000Z.tar.gz.part",
        "compressed/backup-20261331T120000Z.tar.gz",
        "compressed/x/backup-20260131T120000Z.tar.gz",
        "backup-20260131T120000Z.tar.gz",
        "compressed/mine.tar.gz",
        "files/backup-20260131T120000Z.tar.gz",
    ],
)
def test_other_keys_are_left_alone(key: str) -> None:
    assert backups.parse_key(key) is None
    assert gather([(key, 5, {})]) == []


def test_a_listing() -> None:
    one, two = (made(1_700_000_000 + at) for at in (0, 5))
    listed = gather(
        [(backups.archive_key(b.name), 5, {}) for b in (one, two)]
        + [(backups.index_key(two.name), 3, {})]
    )
    assert [(b.name, b.archive_bytes, b.index_bytes) for b in listed] == [
        (two.name, 5, 3),
        (one.name, 5, None),
    ]
    assert not listed[0].good
    assert listed[0].keys == [backups.index_key(two.name), backups.archive_key(two.name)]


@pytest.mark.parametrize("said", ["", "-1", "1e3", "x", "٣", "9" * 25])
def test_metadata_that_is_no_number(said: str) -> None:
    assert Backup("backup-20260131T120000Z", 1, 1, {backups.META_BYTES: said}).good is False


def test_choosing() -> None:
    whole, newest = made(1_700_000_000), made(1_700_000_100, good=False)
    both = [newest, whole]
    assert backups.choose(both, "latest") is whole
    time = backups.iso(whole.time_s)
    for wanted in (whole.name, whole.name[7:], time, "compressed/" + whole.name + ".tar.gz"):
        assert backups.choose(both, wanted) is whole
    for listed, wanted, code in (
        (both, newest.name, ExitCode.DAMAGED),
        ([newest], "latest", ExitCode.DAMAGED),
        (both, "backup-1", ExitCode.BAD_SETTINGS),
        ([], "latest", ExitCode.BAD_SETTINGS),
    ):
        with pytest.raises(UserError) as caught:
            backups.choose(listed, wanted)
        assert caught.value.exit_code == code


def test_due_while_something_changed() -> None:
    schedule = Schedule(300.0, 1000.0)
    assert schedule.due_s(5) == 1300.0
    schedule.done(1300.0, 5)
    assert schedule.due_s(5) is None
    assert schedule.due_s(6) == 1600.0
    assert Schedule(0.0, 0.0).due_s(5) is None


@given(st.integers(1, 10_000), st.integers(1, 60))
def test_a_failed_one_is_tried_again_sooner_never_later(interval_s: int, failures: int) -> None:
    schedule = Schedule(float(interval_s), 0.0)
    for count in range(failures):
        schedule.failed(float(count))
    due_s = schedule.due_s(1)
    assert due_s is not None
    wait_s = due_s - schedule.last_s
    assert min(interval_s, backups.RETRY_MIN_S) <= wait_s <= interval_s

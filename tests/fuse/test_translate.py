"""Ids, attributes and faults on their way to the kernel."""

from __future__ import annotations

import logging

import pytest

from s3ws_fs.core.types import Attr, StatFs
from s3ws_fs.fuse.translate import (
    FAULT_KINDS_MAX,
    FAULT_LOG_INTERVAL_S,
    Faults,
    IdMap,
    Translator,
)


def test_ids_are_mapped_both_ways_and_others_stay() -> None:
    ids = IdMap([(0, 10001), (5, 6)])
    assert [ids.shown(number) for number in (0, 5, 7)] == [10001, 6, 7]
    assert [ids.stored(number) for number in (10001, 6, 7)] == [0, 5, 7]


def test_attributes_reach_the_kernel_whole() -> None:
    attr = Attr(9, 0o120777, 1, 2, 3, 77, 1 << 40, 5, -1, 10**18 + 1, 2_000_000_003)
    entry = Translator(IdMap([(1, 11)]), IdMap([(2, 12)])).entry(attr)
    assert (entry.st_ino, entry.st_mode, entry.st_uid, entry.st_gid) == (9, 0o120777, 11, 12)
    assert (entry.st_nlink, entry.st_rdev, entry.st_size, entry.st_blocks) == (3, 77, 1 << 40, 5)
    times = (entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns)
    assert times == (-1, 10**18 + 1, 2_000_000_003)


def test_statvfs() -> None:
    data = Translator(IdMap(), IdMap()).statvfs(StatFs(4096, 100, 40, 50, 20, 255))
    assert (data.f_bsize, data.f_frsize, data.f_blocks) == (4096, 4096, 100)
    assert (data.f_bfree, data.f_bavail, data.f_files) == (40, 40, 50)
    assert (data.f_ffree, data.f_favail, data.f_namemax) == (20, 20, 255)


def test_a_fault_is_logged_once_in_its_time(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    faults = Faults(lambda: now)
    caplog.set_level(logging.ERROR)
    for _ in range(100):
        faults.note("read", ValueError("x"))
    assert len(caplog.records) == 1
    faults.note("write", ValueError("x"))
    faults.note("read", KeyError("x"))
    assert len(caplog.records) == 3
    now = FAULT_LOG_INTERVAL_S
    faults.note("read", ValueError("x"))
    assert len(caplog.records) == 4
    assert faults.count == 103


def test_kinds_of_faults_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    faults = Faults(lambda: 0.0)
    for number in range(FAULT_KINDS_MAX + 10):
        faults.note(f"handler-{number}", ValueError())
    assert len(caplog.records) == FAULT_KINDS_MAX
    assert faults.count == FAULT_KINDS_MAX + 10

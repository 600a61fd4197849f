"""The audit knows history: what a kept point needs is damage when it is gone, else garbage."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import trio
from trio.testing import MockClock

from s3ws_fs.core import history, journal, layout
from s3ws_fs.core.findings import Report
from s3ws_fs.core.history import NAMED
from s3ws_fs.replica import flusher
from s3ws_fs.store.memory import MemoryStore
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import points
from s3ws_fs.transfer.audit import audit
from tests.replica.conftest import Mount
from tests.support.inline import Ticks, at_once, inline_config, inline_mount

Harm = Callable[[ScopedStore], object]


def lived(tmp_path: Path, *, hours: float = 24.0) -> tuple[ScopedStore, dict[str, int]]:
    """A bucket with eight points, checkpoints at 3 and 6, a snapshot at 2, and what stands where:
    `blob` is named by point 4 alone, `inline` is a segment with bytes of point 5 alone."""
    memory = MemoryStore()
    config = replace(inline_config(tmp_path), history_hours=hours)
    store = ScopedStore(memory, config.workspace.prefix)
    known: dict[str, int] = {}

    async def life(m: Mount) -> None:
        big = os.urandom(1_200_000)
        for number in range(1, 9):
            m.write("small", b"%d" % number * 500)
            if number == 4:
                m.write("big", big)
            if number == 5:
                m.unlink("big")
            if number == 2:
                await m.replica.snapshot(NAMED, "two")
            await m.sync()
            if number == 4:
                (entry,) = store.list(layout.BLOB_PREFIX)
                known["blob"] = layout.key_number(entry.key, layout.BLOB_PREFIX) or 0

    async def main() -> None:
        with mock.patch.object(flusher, "CHECKPOINT_EVERY_SEGMENTS", 3):
            async with inline_mount(config, memory, now_ns=Ticks()) as m:
                await life(m)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    survey = points.survey_points(store)
    assert sorted(survey.checkpoints) == [3, 6]
    assert survey.newest == 8
    return store, known


def look(store: ScopedStore, **more: Any) -> Report:
    return audit(store, at_once(), lambda _: None, **more).report


def wrong(report: Report) -> set[tuple[str, str]]:
    return {(f.code, f.where) for f in report.findings if f.severity == "damage"}


def flip(store: ScopedStore, key: str, at: int) -> None:
    raw = bytearray(store.get(key).data)
    raw[at] ^= 1
    store.put(key, bytes(raw))


@pytest.fixture
def bucket(tmp_path: Path) -> tuple[ScopedStore, dict[str, int]]:
    return lived(tmp_path)


def test_a_whole_history_is_clean(bucket: tuple[ScopedStore, dict[str, int]]) -> None:
    store, _ = bucket
    for quick in (False, True):
        report = look(store, quick=quick)
        assert report.ok, report.findings
        assert report.checked["points"] == 8
        assert not report.findings, report.findings


def test_what_a_point_needs(bucket: tuple[ScopedStore, dict[str, int]]) -> None:
    store, known = bucket
    blob = layout.blob_key(known["blob"])
    whole = {entry.key: store.get(entry.key).data for entry in store.list("journal/")}
    header = journal.decode_header(whole[layout.seg_key(5)], "seg")
    harms: list[tuple[Harm, set[tuple[str, str]]]] = [
        (lambda s: s.delete(blob), {("object-missing", blob)}),
        (lambda s: s.put(blob, whole[blob][:-1]), {("object-size", blob)}),
        (lambda s: flip(s, blob, 9), {("extent-damaged", blob)}),
        (lambda s: s.delete(layout.seg_key(1)), {("history-gap", layout.seg_key(1))}),
        (
            lambda s: flip(s, layout.seg_key(5), header.records_offset + 1),
            {("object-damaged", layout.seg_key(5))},
        ),
        (lambda s: flip(s, layout.ckpt_key(3), 20), {("object-damaged", layout.ckpt_key(3))}),
    ]
    for harm, wanted in harms:
        harm(store)
        report = look(store)
        assert wrong(report) >= wanted, (wanted, report.findings)
        named = {where for _, where in wrong(report)}
        assert named == {where for _, where in wanted}, report.findings
        for key, data in whole.items():
            store.put(key, data)
    assert not wrong(look(store))


def test_snapshots_that_say_what_can_not_be(bucket: tuple[ScopedStore, dict[str, int]]) -> None:
    store, _ = bucket
    (snap,) = points.survey_points(store).snapshots(store, at_once())
    assert isinstance(snap, history.Snapshot)
    flip(store, snap.key, 30)
    assert wrong(look(store)) == {("snapshot", snap.key)}
    for other in (replace(snap, number=44), replace(snap, header_hash="0" * 32)):
        store.delete(snap.key)
        store.put(other.key, other.encode())
        assert wrong(look(store)) == {("snapshot", other.key)}
        store.delete(other.key)
    store.put(layout.SNAP_PREFIX + "0-odd", b"")
    report = look(store)
    assert [(f.code, f.severity) for f in report.findings] == [("unknown-object", "foreign")]


def test_a_damaged_history_file(bucket: tuple[ScopedStore, dict[str, int]]) -> None:
    store, _ = bucket
    for raw in (b"", b"{}", history.encode_kept_from("f" * 32, 3)):
        store.put(layout.HISTORY_KEY, raw)
        assert wrong(look(store)) == {("history-file", layout.HISTORY_KEY)}


def test_what_no_point_needs_is_garbage_and_no_damage(tmp_path: Path) -> None:
    """Without a window only the snapshot and the newest point count; the rest is young garbage."""
    store, known = lived(tmp_path)
    workspace = points.survey_points(store).workspace
    store.put(layout.HISTORY_KEY, history.encode_kept_from(workspace, 8))
    report = look(store)
    assert not wrong(report)
    assert report.checked["points"] == 2
    (note,) = report.findings
    # Segments 3 to 5, and the blob: 1 and 2 are the snapshot's.
    assert (note.code, note.severity) == ("garbage", "note")
    assert note.message.startswith("4 objects")
    store.delete(layout.blob_key(known["blob"]))
    flip(store, layout.seg_key(4), -40)
    assert not wrong(look(store))
    store.delete(layout.seg_key(1))
    (gap,) = (f for f in look(store).findings if f.severity == "damage")
    assert (gap.code, gap.where) == ("history-gap", layout.seg_key(1))
    assert "snapshot two needs it" in gap.message
    assert wrong(look(store, quick=True)) == {(gap.code, gap.where)}

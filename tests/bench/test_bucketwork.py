"""What is measured at the bucket is counted at the proxy and checked in the bucket.

No assertion here is about time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench import bucketwork, pieces, runner
from bench.bucketwork import SPECIALS
from bench.ground import Backing, ScenarioError
from bench.proxy import Counts
from bench.results import Options
from bench.workloads import MIB, TINY, Job
from tests.support.mounting import require_fuse

JOB = Job("burst", "/nowhere/burst-0", "/nowhere", 7, TINY)


class Bucket(Backing):
    """A bucket with an imagined listing."""

    def __init__(self, objects: dict[str, bytes], *, readable: bool = True) -> None:
        super().__init__(None, "b", None, {}, "r", readable=readable)  # type: ignore[arg-type]
        self.objects = objects

    def sizes(self, path: str) -> dict[str, int]:
        return {name: len(body) for name, body in self.objects.items()}

    def body(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        return self.objects[path.partition("/")[2]]


def test_a_burst_in_the_bucket_is_compared() -> None:
    whole = dict(pieces.burst_files(JOB))
    assert len(whole) == TINY.small_files
    bucketwork._check_burst(Bucket(whole), "burst-0", JOB)
    bucketwork._check_burst(Bucket({}, readable=False), "burst-0", JOB)
    first = next(iter(whole))
    changed = whole[first][:-1] + b"?"
    for wrong in ({}, whole | {"more": b""}, whole | {first: b""}, whole | {first: changed}):
        with pytest.raises(ScenarioError):
            bucketwork._check_burst(Bucket(wrong), "burst-0", JOB)


def test_a_peer_that_says_done_too_early_is_not_believed() -> None:
    whole = dict(pieces.burst_files(JOB))
    bucket, asked = Bucket({}), []

    def pending() -> int:
        asked.append(len(bucket.objects))
        if len(asked) == 3:
            bucket.objects.update(whole)
        return 0

    bucket.pending = pending
    seconds = bucketwork._peer_saved(bucket, "burst-0", JOB, Counts())
    assert asked == [0, 0, 0]
    assert seconds >= 0


def test_waiting_for_a_peer_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.ground.FLUSH_TIMEOUT_S", 0.0)
    monkeypatch.setattr(bucketwork, "SAVED_TIMEOUT_S", 0.0)
    bucket = Bucket({})
    with pytest.raises(ScenarioError, match="is not in the bucket"):
        bucketwork._peer_saved(bucket, "burst-0", JOB, Counts())
    bucket.pending = lambda: 3
    with pytest.raises(ScenarioError, match="3 still pending"):
        bucket.wait_saved()


@pytest.mark.fuse
@pytest.mark.s3
@pytest.mark.slow
def test_our_mount_is_measured_at_its_bucket(tmp_path: Path) -> None:
    require_fuse()
    said: list[str] = []
    options = Options(TINY, 1, 7, ["ours-s3"], [*SPECIALS], tmp_path)

    results = runner.run(options, said.append)

    assert (results.failed, results.left_out) == ({}, {}), said
    # Growth is not for a store behind a proxy; the others are.
    assert [turn.scenario for turn in results.turns] == [s for s in SPECIALS if s != "growth"]
    for lag, files in zip(results.lags, (TINY.small_files, TINY.late_files), strict=True):
        assert (lag.files, lag.again) == (files, 0)
        # Each file is an object; all of them were in one segment before.
        assert sum(lag.requests.values()) >= files
        assert sum(lag.sealed_requests.values()) >= 1
    wires: dict[str, Any] = {wire.what: wire for wire in results.wires}
    assert wires["large_fill"].up_bytes >= TINY.large_mib * MIB
    assert wires["large_change"].up_bytes >= pieces.BLOCK_BYTES
    assert wires["large_append"].up_bytes >= pieces.APPEND_BYTES
    assert 0 < wires["large_rename"].up_bytes < MIB
    # Counted as slowed down only if the upload was still under way.
    steps = {step.name for turn in results.turns for step in turn.steps}
    assert "alone" in steps
    assert ("during" in steps) == (sum(wires["burst during"].requests.values()) > 0)
    cold = sum(wires[f"cold {what}"].down_bytes for what in ("find", "read", "large_read"))
    assert cold >= TINY.large_mib * MIB
    assert results.peak_mib["ours-s3"] > 5
    assert list(tmp_path.iterdir()) == []

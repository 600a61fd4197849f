"""Files put into a cache by hand are files like others: listed, read, worked beside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench import growth, runner
from bench.bucketwork import Stage
from bench.results import Growth, Options
from bench.workloads import TINY
from tests.support.mounting import require_fuse

pytestmark = [pytest.mark.fuse, pytest.mark.slow]


def test_growth_goes_on_beside_files_made_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_fuse()
    monkeypatch.setattr(growth, "FILES_BY_HAND", 20)
    monkeypatch.setattr(growth, "REPEATS", 1)
    beside = growth._beside

    def looked_at(stage: Stage, files: int) -> Growth:
        flat = f"{stage.job.directory}/flat"
        paths = [f"{flat}/f{number}" for number in range(files)]
        bodies = {Path(path).read_bytes() for path in paths}
        assert len(bodies) == 1
        assert len(bodies.pop()) == 100
        assert len({os.stat(path).st_ino for path in paths}) == files
        found = beside(stage, files)
        if files == 30:
            # Changed and removed, they are changed and removed in the bucket.
            Path(paths[25]).write_bytes(b"changed")
            Path(paths[26]).unlink()
            stage.target.flush()
            store = next(tmp_path.glob("*/ours-local/store/conversations/*/*/workspace/files"))
            objects = {path.name: path for path in store.rglob("f2?") if path.parent.name == "flat"}
            assert objects["f25"].read_bytes() == b"changed"
            assert "f26" not in objects
        return found

    monkeypatch.setattr(growth, "_beside", looked_at)
    options = Options(TINY, 1, 7, ["ours-local"], ["growth"], tmp_path)
    said: list[str] = []
    results = runner.run(options, said.append)
    assert (results.failed, results.left_out) == ({}, {}), said
    assert [each.files for each in results.growths] == [10, 30]
    assert all(each.change_cpu_s is not None and each.cpu_us for each in results.growths)

"""The run with many mounts: it measures each thing, finds what is mixed up, and leaves nothing."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from bench import many
from tests.support.mounting import require_fuse

pytestmark = [pytest.mark.fuse, pytest.mark.s3, pytest.mark.slow]


def test_a_small_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    require_fuse()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(many, "SETTLE_S_MAX", 0.5)
    # Somebody mixes up two files: the run has to say so.
    compare = many.Many.compare

    def mixed_up(self: many.Many) -> None:
        (self.hosts[1].mountpoint / "first0").write_bytes(many.content(0, "first0"))
        compare(self)

    monkeypatch.setattr(many.Many, "compare", mixed_up)
    words = ["--mounts", "3", "--busy", "2", "--files", "20", "--idle-seconds", "1", "--json"]
    with pytest.raises(SystemExit, match="not written into it"):
        many.main(words)
    figures = json.loads(capsys.readouterr().out)
    (wrong,) = figures["mixed_up"]
    assert wrong.endswith("1/workspace/first0")
    assert 5 < figures["daemon_private_mib"] < 200
    assert 0 < figures["holder_private_mib"] < 12
    for name in ("mount_all_s", "busy_written_s", "busy_saved_s", "alone_saved_s", "umount_all_s"):
        assert figures[name] > 0, name
    assert not list(tmp_path.glob("s3ws-many-*"))

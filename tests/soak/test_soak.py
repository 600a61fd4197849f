"""The soak's short form, and proofs that its judges can say no."""

from __future__ import annotations

import json
import os
import random
import sqlite3
from pathlib import Path

import pytest

from tests.soak import verify
from tests.soak.actors import make_archive
from tests.soak.model import Tree, bytes_of, carry_out, choose, tree_differences
from tests.soak.soak import Soak
from tests.support.buckets import S3Bucket
from tests.support.extractor import unpack_and_witness
from tests.support.mounting import require_fuse

SHORT_KILLS = 8


@pytest.mark.e2e
@pytest.mark.fuse
@pytest.mark.s3
@pytest.mark.slow
def test_a_short_soak(tmp_path: Path, s3_bucket: S3Bucket) -> None:
    require_fuse()
    seed = 1 if os.environ.get("CI") else random.SystemRandom().randrange(1 << 30)
    print(f"seed {seed}")
    soak = Soak(tmp_path, s3_bucket, seed, ["steps", "sqlite", "git", "tar"])
    soak.run(SHORT_KILLS, 120)
    assert soak.kills.total() > 1
    assert soak.lines["steps"] > 0


def test_the_model_is_a_plain_directory(tmp_path: Path) -> None:
    """Step by step: what the judge expects is what a filesystem does."""
    rng = random.Random(5)
    tree = Tree()
    for _ in range(400):
        step = choose(tree, rng)
        carry_out(step, str(tmp_path))
        tree.apply(step)
    assert tree_differences(tree, str(tmp_path)) == []


def test_a_lost_step_is_seen(tmp_path: Path) -> None:
    witness, directory = tmp_path / "witness", tmp_path / "steps"
    (directory / "000001").mkdir(parents=True)
    said: list[dict[str, object]] = [{"tree": "000001"}]
    tree, rng = Tree(), random.Random(6)
    for _ in range(50):
        step = choose(tree, rng)
        carry_out(step, str(directory / "000001"))
        tree.apply(step)
        said += [{"step": step}, {"done": True}]
    witness.write_text("".join(json.dumps(line) + "\n" for line in said))
    assert verify.lost("steps", directory, witness) == []
    said += [{"step": ["create", "lost"]}]
    witness.write_text("".join(json.dumps(line) + "\n" for line in said))
    assert verify.lost("steps", directory, witness) == [], "begun, and not acknowledged"
    said += [{"done": True}]
    witness.write_text("".join(json.dumps(line) + "\n" for line in said))
    assert verify.lost("steps", directory, witness) != []


def test_a_write_may_end_at_a_page_and_nowhere_else(tmp_path: Path) -> None:
    witness, directory = tmp_path / "witness", tmp_path / "steps"
    (directory / "000001").mkdir(parents=True)
    step = ["write", "f", 1000, 7, 9000]
    said = [{"tree": "000001"}, {"step": ["create", "f"]}, {"done": True}, {"step": step}]
    witness.write_text("".join(json.dumps(line) + "\n" for line in said))
    for kept, is_fine in ((0, True), (3096, True), (3097, False), (7192, True), (9000, True)):
        data = bytes(1000 if kept else 0) + bytes_of(7, 9000)[:kept]
        (directory / "000001" / "f").write_bytes(data)
        (directory / "000001" / "f").chmod(0o644)
        assert (verify.lost("steps", directory, witness) == []) is is_fine, kept
    said += [{"step": [*step, 3096]}, {"done": True}]
    witness.write_text("".join(json.dumps(line) + "\n" for line in said))
    assert verify.lost("steps", directory, witness) != []
    (directory / "000001" / "f").write_bytes(bytes(1000) + bytes_of(7, 9000)[:3096])
    assert verify.lost("steps", directory, witness) == []


def test_a_lost_row_is_seen(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "rows.db") as db:
        db.execute("create table row (number integer primary key, body blob)")
        db.execute("insert into row values (1, ''), (2, '')")
    db.close()
    witness = tmp_path / "witness"
    for last, is_fine in (("1", True), ("2", True), ("3", False)):
        witness.write_text(f"{last}\n")
        assert (verify.lost("sqlite", tmp_path, witness) == []) is is_fine


def test_a_lost_member_is_seen(tmp_path: Path) -> None:
    base = tmp_path / "mount"
    place = base / "tar" / "000001"
    place.mkdir(parents=True)
    make_archive(tmp_path / "archive.tar", 3)
    names, status = unpack_and_witness(tmp_path / "archive.tar", place, lambda _: None)
    assert status == 0
    witness = tmp_path / "witness"
    said = [json.dumps({"place": "000001", "seed": 3})]
    said += [json.dumps({"member": name}) for name in names]
    witness.write_text("".join(f"{line}\n" for line in said))
    assert verify.lost("tar", base / "tar", witness) == []
    (place / names[7]).write_bytes(b"other")
    assert len(verify.lost("tar", base / "tar", witness)) == 1

"""What a real mount tells a Prometheus, and what its log looks like."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from s3ws_fs.cli.metrics.families import FAMILIES
from tests.support.buckets import LocalBucket, S3Bucket
from tests.support.host import NEVER_BY_ITSELF, Host, HostMaker
from tests.support.mounting import wait_until
from tests.support.seaweed import ACCESS_KEY, SECRET_KEY

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

Sample = tuple[str, frozenset[tuple[str, str]]]
_IN_COMMON = ("user", "conversation", "mountpoint")


def told(host: Host, *words: str) -> tuple[dict[Sample, float], set[str]]:
    """Samples by name and labels but for those of the mount; names of the families."""
    found: dict[Sample, float] = {}
    names = set()
    for family in text_string_to_metric_families(host.s3ws("metrics", *words).stdout):
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k not in _IN_COMMON}
            found[sample.name, frozenset(labels.items())] = sample.value
            names.add(sample.name)
    return found, names


def one(found: dict[Sample, float], name: str, **labels: str) -> float:
    return found[f"s3ws_{name}", frozenset(labels.items())]


def declared(*left_out: str) -> set[str]:
    """Names of the families' samples as they are exposed."""
    names = set()
    for name, family in FAMILIES.items():
        if name not in left_out:
            ends = {"histogram": ("_bucket", "_count", "_sum"), "summary": ("_count", "_sum")}
            names |= {family.exposed + end for end in ends.get(family.type, ("",))}
    return names


def _work(top: Path) -> None:
    """Something of everything that is counted."""
    (top / "file").write_bytes(b"x" * 100_000)
    assert (top / "file").read_bytes() == b"x" * 100_000
    os.rename(top / "file", top / "renamed")
    with pytest.raises(OSError):
        os.listxattr(top / "none")
    with pytest.raises(OSError):
        os.rmdir(top / "renamed" / "x")
    (top / "dir" / "inner").mkdir(parents=True)
    with pytest.raises(OSError):
        os.rmdir(top / "dir")
    subprocess.run(["git", "init", "-q", top / "repo"], check=True)


@pytest.mark.s3
def test_every_metric_is_there_and_says_what_was_done(
    s3_bucket: S3Bucket, new_host: HostMaker, tmp_path: Path
) -> None:
    """The dashboard and the rules rely on these names; the paths in families.py on the status."""
    host = new_host(s3_bucket, settings=NEVER_BY_ITSELF)
    host.mount()
    _work(host.mountpoint)
    before, _ = told(host)
    assert one(before, "dirty_bytes") >= 100_000
    assert one(before, "oldest_dirty_age_seconds") > 0
    assert one(before, "fuse_written_bytes_total") >= 100_000
    assert one(before, "fuse_errors_total", errno="ENOTEMPTY") == 1
    host.sync()
    host.s3ws("backup", host.mountpoint)
    found, names = told(host)
    assert names == declared("follow_age_seconds")
    assert one(found, "mounts") == 1
    assert one(found, "start_time_seconds") == one(before, "start_time_seconds") > 1e9
    assert one(found, "dirty_bytes") == one(found, "oldest_dirty_age_seconds") == 0
    assert one(found, "sealed_generation") == one(found, "head_generation") > 0
    assert one(found, "fuse_ops_total", op="rename") >= 1
    assert one(found, "fuse_op_duration_seconds_count", op="rename") == 1
    assert one(found, "fuse_ops_total", op="lookup") > 17
    assert one(found, "fuse_op_duration_seconds_count", op="lookup") >= 2
    assert 0 < one(found, "fuse_op_duration_seconds_sum", op="write") < 600
    assert one(found, "flushes_total", result="ok") >= 1
    assert one(found, "seal_duration_seconds_count") >= 1
    assert one(found, "backups_total", result="made") == 1
    assert one(found, "s3_requests_total", op="put", code="200") >= 3
    assert one(found, "s3_sent_bytes_total") >= 100_000
    status = host.now()
    by_op: dict[str, float] = {}
    for (name, labels), value in found.items():
        if name == "s3ws_s3_requests_total":
            op = dict(labels)["op"]
            by_op[op] = by_op.get(op, 0) + value
    assert {op: status["requests"][op] for op in by_op} == by_op
    assert "counts" not in status, "only who asks for them gets them"
    reader = host.elsewhere(tmp_path / "reader")
    reader.settings["WORKSPACE_READ_ONLY"] = "true"
    try:
        reader.mount()
        found, names = told(reader, str(reader.mountpoint))
        assert one(found, "follow_age_seconds") >= 0
        assert names <= declared("mounts", "damaged_entries", "lease_held")
        reader.umount()
    finally:
        reader.end()


def test_a_killed_mount_is_told_with_what_it_did_not_save(
    local_bucket: LocalBucket, new_host: HostMaker
) -> None:
    host = new_host(local_bucket, settings=NEVER_BY_ITSELF)
    host.mount()
    (host.mountpoint / "file").write_bytes(b"x")
    host.kill_daemon()
    found, _ = told(host)
    assert one(found, "up") == one(found, "daemon_restarts_total") == 1
    host.kill()
    found, names = told(host)
    assert one(found, "up") == 0
    assert one(found, "mount_given_up") == 1
    assert one(found, "dirty_files") >= 1
    assert "s3ws_degraded" not in names
    host.end()
    host.mount()
    host.umount()
    assert told(host) == ({("s3ws_mounts", frozenset()): 0, _NO_DAMAGE: 0}, _HOST_NAMES)


_NO_DAMAGE: Sample = ("s3ws_damaged_entries", frozenset())
_HOST_NAMES = {"s3ws_mounts", "s3ws_damaged_entries"}


def test_a_workspace_that_is_nearly_full_says_so(
    local_bucket: LocalBucket, new_host: HostMaker
) -> None:
    host = new_host(local_bucket)
    host.settings |= {"WORKSPACE_MAX_SIZE_MB": "4", "WORKSPACE_SYNC_POINT_INTERVAL": "0.1"}
    host.mount()
    big = host.mountpoint / "big"
    big.write_bytes(b"x" * (2 << 20))
    assert one(told(host)[0], "quota_warning") == 0
    assert "NEARLY FULL" not in host.s3ws("status", host.mountpoint).stdout
    with big.open("ab") as out:
        out.write(b"x" * (3 << 19))
    # By itself, with the next sync point: nobody has asked yet.
    wait_until(
        lambda: host.log_tail().count("the workspace is nearly full") == 1,
        timeout_s=30,
        what=host.log_tail(),
    )
    assert "NEARLY FULL" in host.s3ws("status", host.mountpoint).stdout
    assert one(told(host)[0], "quota_warning") == 1
    big.unlink()
    wait_until(
        lambda: "the workspace has room again" in host.log_tail(),
        timeout_s=30,
        what=host.log_tail(),
    )
    assert one(told(host)[0], "quota_warning") == 0
    host.umount()


@pytest.mark.s3
def test_the_log_is_json_lines_without_secrets(s3_bucket: S3Bucket, new_host: HostMaker) -> None:
    """Through an outage that is a refusal, which names what was refused."""
    host = new_host(s3_bucket)
    host.settings |= {"WORKSPACE_LOG_FORMAT": "json", "WORKSPACE_LOG_LEVEL": "debug"}
    host.mount()
    (host.mountpoint / "file").write_bytes(b"x" * 1000)
    host.sync()
    host.kill_daemon()
    (host.mountpoint / "file").write_bytes(b"y" * 1000)
    said = host.s3ws("metrics").stdout
    host.umount()
    [log] = host.cache.glob("*.log")
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(entries) > 5
    for entry in entries:
        assert {"time", "level", "logger", "message"} <= entry.keys()
    assert all(entry["workspace"] == host.prefix for entry in entries)
    assert {entry["level"] for entry in entries} >= {"info", "warning"}
    for secret in (SECRET_KEY, ACCESS_KEY):
        assert secret not in log.read_text()
        assert secret not in said

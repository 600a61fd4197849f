"""What the command prints: JSON that parses, a status that is sane, no secret anywhere."""

from __future__ import annotations

import base64
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from s3ws_fs.core.errors import ExitCode
from tests.support.buckets import Bucket, LocalBucket, S3Bucket
from tests.support.host import NEVER_BY_ITSELF, HostMaker
from tests.support.mounting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]


def check_shape(document: dict[str, Any]) -> None:
    """Every documented member is there, with a sane value."""
    generation = document["generation"]
    assert generation["head"] >= generation["sealed"] >= generation["mirrored"] >= 0
    dirty = document["dirty"]
    assert (dirty["records"] == 0) == (dirty["oldest_age_s"] is None)
    assert 0 <= dirty["files"] <= max(dirty["records"], 0)
    assert dirty["bytes"] >= 0
    assert document["flush"]["state"] in {
        "idle", "waiting", "freezing", "shipping", "sealing", "mirroring", "backing_off",
    }  # fmt: skip
    assert document["health"]["state"] in {"ok", "degraded", "fenced"}
    assert document["hydration"]["state"] in {"complete", "running", "none"}
    quota = document["quota"]
    assert 0 <= quota["used_bytes"] <= quota["max_bytes"]
    assert 1 <= quota["used_inodes"] <= quota["max_inodes"]
    assert {"put", "get", "list", "copy", "delete", "head"} <= document["requests"].keys()
    assert document["mirror"]["conflicts"] == []
    assert document["uptime_s"] >= 0
    assert document["cache"]["file_bytes"] > 0


def test_a_life_in_json(bucket: Bucket, new_host: HostMaker, user: str) -> None:
    host = new_host(bucket, settings=NEVER_BY_ITSELF)
    mounted = host.mount()
    assert mounted["pid"] == host.pid()
    assert mounted["mountpoint"] == str(host.mountpoint)
    assert mounted["workspace"]["prefix"] == host.prefix

    fresh = host.status()
    check_shape(fresh)
    assert fresh["state"] == "ready"
    assert fresh["workspace"] == {
        "user_id": user, "conversation_id": "test-123", "prefix": host.prefix,
    }  # fmt: skip

    (host.mountpoint / "file").write_bytes(b"x" * 5000)
    (host.mountpoint / "directory").mkdir()
    dirty = host.status()
    check_shape(dirty)
    assert dirty["generation"]["head"] > dirty["generation"]["sealed"]
    assert dirty["dirty"]["files"] >= 1
    assert dirty["dirty"]["bytes"] >= 5000
    assert dirty["dirty"]["oldest_age_s"] >= 0
    assert dirty["flush"]["state"] == "waiting"
    assert dirty["quota"]["used_bytes"] >= 5000
    assert {row["name"]: row["state"] for row in host.json("ls", host.mountpoint)} == {
        "directory": "dirty", "file": "dirty",
    }  # fmt: skip

    result = host.sync()
    assert result["sealed"] >= dirty["generation"]["head"]
    clean = host.status()
    check_shape(clean)
    assert clean["dirty"]["records"] == 0
    assert clean["generation"]["sealed"] == clean["generation"]["mirrored"]
    assert clean["mirror"]["pending_files"] == 0
    assert clean["flush"]["last_sealed_age_s"] >= 0
    assert clean["requests"]["put"] >= 2
    assert clean["worker_pid"] is None or Path(f"/proc/{clean['worker_pid']}").exists()
    (row,) = [row for row in host.json("ls", host.mountpoint) if row["name"] == "file"]
    assert (row["state"], row["warmth"], row["size"]) == ("mirrored", "warm", 5000)

    (listed,) = host.json("status")
    assert listed["pid"] == mounted["pid"]
    (ended,) = json.loads(host.s3ws("umount", host.mountpoint, "--json").stdout)
    assert ended["saved"] is True
    assert host.json("status") == []


def test_texts_for_people(local_bucket: LocalBucket, new_host: HostMaker) -> None:
    host = new_host(local_bucket)
    assert "mounted" in host.s3ws("mount", host.mountpoint).stdout
    (host.mountpoint / "a\x1b[31mred").write_bytes(b"")
    shown = host.s3ws("ls", "-l", host.mountpoint).stdout
    assert "\x1b" not in shown
    assert "red" in shown
    for word in ("ready", host.prefix, "saved", "dirty", "quota"):
        assert word in host.s3ws("status", host.mountpoint).stdout
    assert "everything is saved" in host.s3ws("sync", host.mountpoint).stdout
    assert "everything is saved" in host.s3ws("umount", host.mountpoint).stdout


def test_names_that_are_not_text_survive_json(
    local_bucket: LocalBucket, new_host: HostMaker
) -> None:
    host = new_host(local_bucket)
    host.mount()
    name = b"\xff\n\xe9"
    with open(os.path.join(os.fsencode(host.mountpoint), name), "wb"):
        pass
    (row,) = host.json("ls", host.mountpoint)
    assert base64.b64decode(row["name_b64"]) == name
    host.umount()


def test_ls_works_beside_a_dead_daemon(local_bucket: LocalBucket, new_host: HostMaker) -> None:
    host = new_host(local_bucket, settings=NEVER_BY_ITSELF)
    host.mount()
    (host.mountpoint / "directory").mkdir()
    (host.mountpoint / "directory" / "file").write_bytes(b"123")
    host.kill()
    rows = host.json("ls", "-R", host.mountpoint)
    assert [(row["name"], row["size"], row["state"]) for row in rows if row["type"] == "file"] == [
        ("directory/file", 3, "dirty")
    ]


def test_df_shows_the_quota(local_bucket: LocalBucket, new_host: HostMaker) -> None:
    host = new_host(local_bucket)
    host.settings |= {"WORKSPACE_MAX_SIZE_MB": "64", "WORKSPACE_MAX_FILES": "1000"}
    host.mount()
    (host.mountpoint / "file").write_bytes(bytes(8 << 20))
    info = os.statvfs(host.mountpoint)
    assert info.f_blocks * info.f_frsize == 64 << 20
    assert info.f_bfree * info.f_frsize <= 56 << 20
    assert info.f_files == 1000
    assert info.f_ffree == 998
    host.umount()


def test_help_and_version(local_bucket: LocalBucket, new_host: HostMaker) -> None:
    host = new_host(local_bucket)
    for command in ("mount", "umount", "status", "sync", "ls", "version"):
        assert "Usage:" in host.s3ws(command, "--help").stdout
    document = host.json("version")
    assert document["version"] in host.s3ws("version").stdout
    host.s3ws("mount", ok=ExitCode.USAGE)


@pytest.mark.s3
def test_the_secret_is_nowhere(s3_bucket: S3Bucket, new_host: HostMaker, tmp_path: Path) -> None:
    host = new_host(s3_bucket)
    host.settings["WORKSPACE_LOG_LEVEL"] = "debug"
    host.mount()
    (host.mountpoint / "file").write_bytes(b"x")
    host.sync()
    secret = s3_bucket.server.secret_key.encode()
    status = host.status()
    assert secret not in json.dumps(status).encode()
    for pid in filter(None, (status["pid"], status["worker_pid"])):
        assert secret not in Path(f"/proc/{pid}/cmdline").read_bytes()
    host.umount()
    for directory in (host.cache, host.runtime):
        for path in directory.rglob("*"):
            assert stat.S_IMODE(path.lstat().st_mode) & 0o077 == 0, path
            assert not path.is_file() or secret not in path.read_bytes(), path
    for key in s3_bucket.listing(host.prefix):
        seen = s3_bucket.get(key)
        assert secret not in seen.body + repr(seen.metadata).encode(), key


def test_a_change_is_flushed_by_itself(bucket: Bucket, new_host: HostMaker) -> None:
    host = new_host(bucket)
    host.mount()

    def flushed_by_itself(name: str) -> None:
        (host.mountpoint / name).write_bytes(b"x")
        wait_until(
            lambda: f"{host.prefix}files/{name}" in bucket.listing(host.prefix),
            timeout_s=20,
            what=f"the flush of {name}",
        )

    flushed_by_itself("first")
    # A sync that finds nothing to do must not put the flusher to sleep.
    host.sync()
    host.sync()
    flushed_by_itself("second")
    host.umount()

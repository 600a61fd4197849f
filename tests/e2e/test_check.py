"""`s3ws check` beside real daemons: busy, killed, gone; and of a bucket that rotted."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from s3ws_fs.core.errors import ExitCode
from tests.support.buckets import Bucket, LocalBucket
from tests.support.host import NEVER_BY_ITSELF, QUICK, HostMaker

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

BUSY = {**QUICK, "WORKSPACE_SYNC_DEBOUNCE_MIN": "0", "WORKSPACE_SYNC_DEBOUNCE_MAX": "0.3"}


class Busy:
    """A program that writes, renames and removes until the block ends."""

    def __init__(self, top: Path) -> None:
        self._top = top
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.rounds = 0
        self.errors: list[OSError] = []

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self.rounds += 1
                directory = self._top / f"d{self.rounds % 5}"
                directory.mkdir(exist_ok=True)
                for name in range(5):
                    (directory / f"new {name}").write_bytes(os.urandom(3000 * name))
                    (directory / f"new {name}").replace(directory / f"file {name}")
                (directory / "large").write_bytes(os.urandom(200_000))
                os.link(directory / "large", directory / "linked")
                (directory / "linked").unlink()
                directory.rename(self._top / "moving")
                (self._top / "moving").rename(directory)
        except OSError as exc:
            self.errors.append(exc)

    def __enter__(self) -> Busy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def test_beside_a_busy_daemon_and_after_its_death(bucket: Bucket, new_host: HostMaker) -> None:
    host = new_host(bucket, settings=BUSY)
    host.mount()
    with Busy(host.mountpoint) as busy:
        done = host.json("check", host.mountpoint)
        assert done["ok"] and done["findings"] == []
        done = host.json("check", "--bucket", host.mountpoint)
        assert done["counts"]["damage"] == done["counts"]["foreign"] == 0
        assert busy.rounds > 1
        assert not busy.errors
        host.kill()
    assert busy.errors, "it wrote on without a daemon"
    done = host.json("check", host.mountpoint)
    assert done["ok"] and done["findings"] == []
    assert done["checked"][0]["inodes"] > 5
    assert host.json("check", "--bucket", host.mountpoint)["ok"]
    host.mount()
    host.umount()
    # Named by the ids alone, with everything sealed and mirrored.
    done = host.json("check", "--bucket")
    assert done["ok"] and done["counts"]["pending"] == 0
    assert [part["kind"] for part in done["checked"]] == ["cache", "bucket"]
    assert host.json("check", "--bucket", "--quick")["ok"]


def test_rot_is_named_by_the_check_and_an_error_to_the_reader(
    bucket: Bucket, new_host: HostMaker
) -> None:
    host = new_host(bucket, settings=NEVER_BY_ITSELF)
    host.mount()
    (host.mountpoint / "directory").mkdir()
    wanted = os.urandom(2_000_000)
    (host.mountpoint / "directory" / "rotten").write_bytes(wanted)
    (host.mountpoint / "sound").write_bytes(b"sound")
    host.umount()
    [blob] = bucket.listing(host.prefix + "journal/blob/")
    body = bytearray(bucket.get(blob).body)
    body[1_500_000] ^= 1
    bucket.put(blob, bytes(body))
    host.lose_cache()
    done = host.json("check", "--bucket", ok=ExitCode.DAMAGED)
    [finding] = [each for each in done["findings"] if each["severity"] == "damage"]
    assert finding["code"] == "extent-damaged"
    assert host.prefix + finding["where"] == blob
    assert finding["paths"] == [{"name": "directory/rotten"}]
    text = host.s3ws("check", "--bucket", ok=ExitCode.DAMAGED).stdout
    assert "directory/rotten" in text and "journal/blob/" in text
    # The mirror has the same bytes: they are used, and it is said.
    host.mount()
    assert (host.mountpoint / "directory" / "rotten").read_bytes() == wanted
    assert [each["path"] for each in host.status()["hydration"]["second_copies"]] == [
        "directory/rotten"
    ]
    assert "another copy was used" in host.s3ws("status", host.mountpoint).stdout
    host.umount()
    host.lose_cache()
    bucket.remove(host.prefix + "files/directory/rotten")
    host.mount()
    assert (host.mountpoint / "sound").read_bytes() == b"sound"
    with pytest.raises(OSError) as caught:
        (host.mountpoint / "directory" / "rotten").read_bytes()
    assert caught.value.errno == errno.EIO


def test_changes_from_outside_have_a_code_of_their_own(
    local_bucket: LocalBucket, new_host: HostMaker
) -> None:
    host = new_host(local_bucket)
    host.mount()
    (host.mountpoint / "file").write_bytes(b"mine")
    host.sync()
    assert host.json("check", "--bucket", host.mountpoint)["counts"]["pending"] == 0
    local_bucket.put(host.prefix + "files/file", b"edited by a stranger")
    done = host.json("check", "--bucket", host.mountpoint, ok=ExitCode.CHANGED_OUTSIDE)
    assert [each["code"] for each in done["findings"]] == ["mirror-foreign"]
    host.umount()

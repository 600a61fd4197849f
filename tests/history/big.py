"""What a snapshot takes on a large workspace: a real mount over SeaweedFS.

    python -m tests.history.big --files 50000

Files are made, and sealed by a first snapshot; then snapshots are taken with nothing dirty and with
a little, by the control socket and by the command; then flushes until a checkpoint was made and
garbage was looked for, to say what that takes beside an ordinary flush.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from s3ws_fs.control import client
from s3ws_fs.replica.flusher import CHECKPOINT_EVERY_SEGMENTS
from tests.support.buckets import S3Bucket
from tests.support.host import NEVER_BY_ITSELF, Host
from tests.support.seaweed import running_seaweed

TIMES = 7
FILES_IN_DIRECTORY = 100


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    began = time.monotonic()
    work()
    return time.monotonic() - began


def told(what: str, seconds: list[float]) -> None:
    shown = f"median {statistics.median(seconds) * 1e3:.0f} ms, most {max(seconds) * 1e3:.0f} ms"
    print(f"{what}: {shown} of {len(seconds)}", flush=True)


def fill(top: Path, files: int, size_bytes: int) -> None:
    """So many files, a hundred in a directory."""
    data = os.urandom(size_bytes)
    for number in range(files):
        directory = top / f"d{number // FILES_IN_DIRECTORY}"
        if number % FILES_IN_DIRECTORY == 0:
            directory.mkdir()
        (directory / f"f{number}").write_bytes(data[: number % size_bytes + 1])


def measure(host: Host, files: int, size_bytes: int) -> None:
    top = host.mountpoint
    print(f"{files} files: {timed(lambda: fill(top, files, size_bytes)):.1f} s to make", flush=True)

    def snapshot() -> None:
        client.request(host.socket_path, "snapshot", timeout_s=None)

    print(f"first snapshot, which seals all of it: {timed(snapshot):.1f} s", flush=True)
    told("snapshot, nothing dirty, by the socket", [timed(snapshot) for _ in range(TIMES)])
    of_dirty = []
    for number in range(TIMES):
        for name in range(10):
            (top / f"little-{name}").write_bytes(b"%d" % number * 100)
        of_dirty.append(timed(snapshot))
    told("snapshot, 10 files dirty, by the socket", of_dirty)
    of_command = [timed(lambda: host.s3ws("snapshot", top)) for _ in range(TIMES)]
    told("snapshot, nothing dirty, by the command", of_command)
    told("s3ws version, for comparison", [timed(lambda: host.s3ws("version")) for _ in range(3)])

    flushes = []
    requests = []
    for number in range(2 * CHECKPOINT_EVERY_SEGMENTS):
        (top / "churn").write_bytes(b"%d" % number * 1000)
        before = sum(host.now()["requests"].values())
        flushes.append(timed(lambda: client.request(host.socket_path, "seal", timeout_s=None)))
        requests.append(sum(host.now()["requests"].values()) - before)
    flush = host.now()["flush"]
    assert flush["garbage_error"] is None and flush["checkpoint_error"] is None, flush
    order = sorted(range(len(flushes)), key=lambda n: flushes[n])
    told("a seal", [flushes[n] for n in order[:-2]])
    for at in order[-2:]:
        print(f"a seal with checkpoint and garbage: {flushes[at]:.2f} s, {requests[at]} requests")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--size", type=int, default=20_000, help="of the largest, in bytes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as base, running_seaweed() as server:
        bucket = S3Bucket(server)
        settings = {
            **NEVER_BY_ITSELF,
            "WORKSPACE_MAX_SIZE_MB": "4000",
            "WORKSPACE_HISTORY_HOURS": "24",
        }
        host = Host(Path(base) / "host", bucket.env, settings=settings)
        try:
            host.mount()
            measure(host, args.files, args.size)
        finally:
            host.end()
            bucket.close()


if __name__ == "__main__":
    main()

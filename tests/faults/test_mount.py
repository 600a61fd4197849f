"""A real mount whose store fails in every way: work goes on, nothing is lost, it heals."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from s3ws_fs.core import layout
from s3ws_fs.core.errors import ExitCode
from tests.faults.outages import HEALED_S_MAX, OUTAGES, Front, Outage, Outages
from tests.support import proxy as faults
from tests.support import trees
from tests.support.host import QUICK, Host, HostMaker
from tests.support.mounting import wait_until
from tests.support.proxy import EVERY, FaultyProxy, faulty_proxy
from tests.support.seaweed import SECOND_KEY, SECOND_SECRET, Seaweed

pytestmark = [pytest.mark.e2e, pytest.mark.fuse, pytest.mark.s3]


ROUNDS_MAX = 30
QUICK_ONES = (
    "refused",
    "black hole",
    "throttled",
    "answers cut",
    "writes unanswered",
)
"""Those that differ most; `python -m tests.faults.long` goes through all.

Refused keys and a missing bucket have tests of their own below.
"""


@pytest.fixture
def front(seaweed: Seaweed) -> Iterator[Front]:
    """For hosts of this test."""
    with faulty_proxy(seaweed.endpoint_url) as proxy:
        bucket = Front(seaweed, proxy)
        yield bucket
        bucket.close()


@pytest.fixture(scope="module")
def outages(seaweed: Seaweed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outages]:
    """One mount that goes through all outages of this module."""
    with faulty_proxy(seaweed.endpoint_url) as proxy:
        bucket = Front(seaweed, proxy)
        host = Host(tmp_path_factory.mktemp("outages"), bucket.env, user="outages")
        try:
            host.mount()
            yield Outages(host, proxy, bucket)
        finally:
            proxy.heal()
            host.end()
            bucket.close()


@pytest.mark.parametrize("name", QUICK_ONES)
def test_work_goes_on_and_all_is_saved_afterwards(outages: Outages, name: str) -> None:
    outage = OUTAGES[name]
    host, proxy = outages.host, outages.proxy
    outages.work(f"{name} before", files=2)
    outages.settled()
    newest, passed_on = outages.newest(), proxy.passed_on
    outage.begin(proxy)
    outages.work(name)
    assert host.now()["state"] == "ready"
    outages.degraded(outage)
    before = trees.manifest(host.mountpoint)
    if outage.total:
        # All that was done and read since then was done without one answer of the store.
        assert proxy.passed_on == passed_on
        assert outages.newest() == newest
    assert host.now()["dirty"]["records"] > 0 or not outage.total
    heal(proxy)
    outages.settled()
    assert trees.differences(before, trees.manifest(host.mountpoint)) == []
    assert outages.newest() > newest


def heal(proxy: FaultyProxy) -> None:
    """All is well, and connections that a black hole swallowed are told so."""
    proxy.heal()
    proxy.reset_all()


def test_after_all_that_another_host_has_everything(outages: Outages, tmp_path: Path) -> None:
    host = outages.host
    host.s3ws("check", host.mountpoint, "--bucket")
    before = trees.manifest(host.mountpoint)
    host.umount()
    other = host.elsewhere(tmp_path / "another")
    try:
        other.mount()
        assert trees.differences(before, trees.manifest(other.mountpoint)) == []
        other.umount()
    finally:
        other.end()


def test_no_call_waits_while_every_request_is_held(front: Front, new_host: HostMaker) -> None:
    host = new_host(front)
    host.mount()
    front.proxy.log.clear()
    gate = threading.Event()
    front.proxy.weather(faults.held(gate))
    told = Outages(host, front.proxy, front)
    told.work("first")
    wait_until(lambda: len(front.proxy.log) > 0)
    passed_on = front.proxy.passed_on
    told.work("second")
    fd = os.open(host.mountpoint / "synced", os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"fsync waits for the disk, not for the bucket")
    os.fsync(fd)
    os.close(fd)
    tree = trees.manifest(host.mountpoint)
    assert not gate.is_set()
    assert front.proxy.passed_on == passed_on
    front.proxy.heal()
    gate.set()
    told.settled()
    assert trees.differences(tree, trees.manifest(host.mountpoint)) == []
    host.umount()


def test_a_seal_that_arrives_after_its_worker_died(front: Front, new_host: HostMaker) -> None:
    """The PUT of the segment is on its way when the worker dies; it is applied, late."""
    host = new_host(front)
    host.mount()
    told = Outages(host, front.proxy, front)
    told.work("before", files=2)
    told.settled()
    newest = told.newest()
    gate = threading.Event()
    front.proxy.arm(faults.held(gate), "PUT", layout.SEG_PREFIX)
    (host.mountpoint / "sealed late").write_bytes(b"1")
    wait_until(lambda: front.proxy.struck["held"] == 1)
    os.kill(host.now()["worker_pid"], signal.SIGKILL)
    (host.mountpoint / "more").write_bytes(b"2")
    gate.set()
    wait_until(lambda: told.newest() > newest)
    told.settled()
    assert told.newest() >= newest + 2
    host.umount()


def test_workers_that_die_all_the_time(front: Front, new_host: HostMaker) -> None:
    host = new_host(front)
    host.mount()
    told = Outages(host, front.proxy, front)
    front.proxy.weather(faults.late(0.05))
    for number in range(6):
        told.work(f"round {number}", files=3)
        front.proxy.log.clear()
        wait_until(lambda: len(front.proxy.log) > 0, timeout_s=HEALED_S_MAX)
        pid = host.now()["worker_pid"]
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
    front.proxy.heal()
    told.settled()
    host.umount()


def test_half_of_all_requests_fail_in_some_way(front: Front, new_host: HostMaker) -> None:
    host = new_host(front)
    host.mount()
    told = Outages(host, front.proxy, front)
    front.proxy.weather(
        faults.INTERNAL,
        faults.SLOW_DOWN,
        faults.CUT_REQUEST,
        faults.LOST,
        faults.RESET_ANSWER,
        faults.SHORT,
        faults.error(409, "ConditionalRequestConflict"),
        share=0.4,
        seed=4711,
    )
    (host.mountpoint / "big").write_bytes(os.urandom(18 << 20))
    for number in range(ROUNDS_MAX):
        front.proxy.log.clear()
        told.work(f"round {number}", files=5)
        wait_until(lambda: len(front.proxy.log) >= 10, timeout_s=HEALED_S_MAX)
        struck = {name for name in front.proxy.struck if name}
        if len(struck) == 7 and number >= 3:
            break
    front.proxy.heal()
    told.settled()
    assert len(struck) == 7
    host.s3ws("check", host.mountpoint, "--bucket")
    host.umount()


@dataclass(frozen=True)
class Moto:
    """Another implementation of S3, behind a proxy."""

    proxy: FaultyProxy

    @property
    def env(self) -> dict[str, str]:
        return {
            "WORKSPACE_STORAGE_TYPE": "s3",
            "WORKSPACE_BUCKET": "moto-test",
            "AWS_ENDPOINT_URL_S3": self.proxy.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }


def test_another_implementation_of_s3(moto: str, new_host: HostMaker) -> None:
    with faulty_proxy(moto) as proxy:
        host = new_host(Moto(proxy))
        host.mount()
        top = host.mountpoint / "src"
        trees.build_source_tree(top, files=10)
        host.sync()
        for fault in (faults.LOST, faults.error(409, "OperationAborted"), faults.SLOW_DOWN):
            for method in ("PUT", "POST", "DELETE"):
                proxy.arm(fault, method, nth=2)
        top.rename(host.mountpoint / "renamed")
        (host.mountpoint / "renamed" / "new").write_bytes(b"1" * 100_000)
        os.unlink(next(path for path in (host.mountpoint / "renamed").rglob("*.py")))
        host.sync()
        (host.mountpoint / "more").write_bytes(b"2")
        host.sync()
        assert set(proxy.struck) >= {"lost", "409 OperationAborted", "503 SlowDown"}
        proxy.heal()
        host.s3ws("check", host.mountpoint, "--bucket")
        before = trees.manifest(host.mountpoint)
        host.umount()
        other = new_host(Moto(proxy), "other")
        other.mount()
        assert trees.differences(before, trees.manifest(other.mountpoint)) == []
        other.umount()


def test_cold_bytes_are_eio_by_the_deadline_and_there_after_healing(
    front: Front, new_host: HostMaker
) -> None:
    first = new_host(front, "first")
    first.mount()
    body = os.urandom(3 << 20)
    (first.mountpoint / "large").write_bytes(body)
    first.umount()
    # A blob of its own holds it, which a mount does not read.
    front.proxy.arm(faults.BLACK_HOLE, "GET", layout.BLOB_PREFIX, times=EVERY)
    second = new_host(front, "second", settings={**QUICK, "WORKSPACE_READ_TIMEOUT": "2"})
    second.mount()
    with pytest.raises(OSError) as failed:
        (second.mountpoint / "large").read_bytes()
    assert failed.value.errno == errno.EIO
    (second.mountpoint / "still writable").write_bytes(b"x")
    heal(front.proxy)
    # Nobody asks for it: the hydrator brings it, and status is well again.
    wait_until(
        lambda: (
            second.now()["hydration"]["cold_bytes"] == 0 and second.now()["health"]["state"] == "ok"
        ),
        timeout_s=HEALED_S_MAX,
    )
    assert (second.mountpoint / "large").read_bytes() == body
    assert second.now()["hydration"]["damaged"] == []
    second.umount()


def test_bytes_spoilt_on_the_way_are_fetched_again(front: Front, new_host: HostMaker) -> None:
    first = new_host(front, "first")
    first.mount()
    body = os.urandom(3 << 20)
    (first.mountpoint / "large").write_bytes(body)
    (first.mountpoint / "small").write_bytes(b"small" * 1000)
    first.umount()
    front.proxy.arm(faults.CORRUPT, "GET", layout.SEG_PREFIX)
    front.proxy.arm(faults.CORRUPT, "GET", layout.BLOB_PREFIX)
    front.proxy.arm(faults.WRONG_RANGE, "GET", layout.BLOB_PREFIX)
    front.proxy.arm(faults.SHORT, "GET", layout.BLOB_PREFIX)
    second = new_host(front, "second")
    second.mount()
    assert (second.mountpoint / "large").read_bytes() == body
    assert (second.mountpoint / "small").read_bytes() == b"small" * 1000
    wait_until(lambda: second.now()["hydration"]["state"] == "complete")
    assert second.now()["hydration"]["damaged"] == []
    assert front.proxy.armed == 0
    second.umount()


def test_changed_keys_are_taken_up_without_a_remount(
    front: Front, new_host: HostMaker, tmp_path: Path
) -> None:
    path = tmp_path / "credentials"
    path.write_text(
        f"[default]\naws_access_key_id={front.server.access_key}\n"
        f"aws_secret_access_key={front.server.secret_key}\n"
    )
    host = new_host(front)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        host.settings.pop(name)
    host.settings["AWS_SHARED_CREDENTIALS_FILE"] = str(path)
    host.mount()
    told = Outages(host, front.proxy, front)
    told.work("before", files=2)
    told.settled()
    # The first pair is revoked.
    front.proxy.arm(
        faults.error(403, "InvalidAccessKeyId"), times=EVERY, header=front.server.access_key + "/"
    )
    told.work("during", files=2)
    told.degraded(OUTAGES["keys refused"])
    assert front.server.secret_key not in json.dumps(host.now())
    path.write_text(
        f"[default]\naws_access_key_id={SECOND_KEY}\naws_secret_access_key={SECOND_SECRET}\n"
    )
    told.settled()
    host.umount()


def test_an_emptied_bucket_is_not_a_fresh_workspace(front: Front, new_host: HostMaker) -> None:
    client = front.server.client()
    name = "emptied-under-way"
    client.create_bucket(Bucket=name)
    host = new_host(front)
    host.settings["WORKSPACE_BUCKET"] = name
    host.mount()
    (host.mountpoint / "a").write_bytes(b"only copy")
    host.sync()
    saved = take_all(client, name)
    client.delete_bucket(Bucket=name)
    try:
        (host.mountpoint / "b").write_bytes(b"during")
        Outages(host, front.proxy, front).degraded(OUTAGES["no bucket"])
        client.create_bucket(Bucket=name)
        emptied = Outage(FaultyProxy.heal, ("the bucket holds none at all", "is gone"))
        (host.mountpoint / "c").write_bytes(b"into the empty one?")
        Outages(host, front.proxy, front).degraded(emptied)
        assert only_lease(client, name)
        done = host.s3ws("umount", host.mountpoint, ok=ExitCode.NOT_SAVED)
        assert "bucket" in done.stdout + done.stderr
        done = host.s3ws("mount", host.mountpoint, ok=ExitCode.BAD_CACHE)
        assert only_lease(client, name)
        for key, (body, metadata) in saved.items():
            client.put_object(Bucket=name, Key=key, Body=body, Metadata=metadata)
        host.mount()
        assert (host.mountpoint / "a").read_bytes() == b"only copy"
        assert (host.mountpoint / "c").read_bytes() == b"into the empty one?"
        host.umount()
    finally:
        take_all(client, name)
        client.delete_bucket(Bucket=name)
        client.close()


def test_a_bucket_emptied_while_nothing_failed(front: Front, new_host: HostMaker) -> None:
    """No error came between: the next seal must not go into the empty bucket all the same."""
    client = front.server.client()
    name = "emptied-unseen"
    client.create_bucket(Bucket=name)
    host = new_host(front)
    host.settings["WORKSPACE_BUCKET"] = name
    host.mount()
    try:
        (host.mountpoint / "a").write_bytes(b"1")
        host.sync()
        saved = take_all(client, name)
        (host.mountpoint / "b").write_bytes(b"2")
        emptied = Outage(FaultyProxy.heal, ("the bucket holds none at all", "is gone"))
        Outages(host, front.proxy, front).degraded(emptied)
        assert not [key for key in listing(client, name) if "/journal/seg/" in key]
        for key, (body, metadata) in saved.items():
            client.put_object(Bucket=name, Key=key, Body=body, Metadata=metadata)
        host.sync()
        host.umount()
    finally:
        take_all(client, name)
        client.delete_bucket(Bucket=name)
        client.close()


def only_lease(client: object, name: str) -> bool:
    """Who writes may have said so; nothing else may be there."""
    return all(key.endswith("/journal/lease.json") for key in listing(client, name))


def listing(client: object, name: str) -> list[str]:
    return [item["Key"] for item in client.list_objects_v2(Bucket=name).get("Contents", ())]  # type: ignore[attr-defined]


def take_all(client: object, name: str) -> dict[str, tuple[bytes, dict[str, str]]]:
    """All objects of a bucket, which are deleted."""
    found = {}
    for key in listing(client, name):
        answer = client.get_object(Bucket=name, Key=key)  # type: ignore[attr-defined]
        found[key] = (answer["Body"].read(), answer["Metadata"])
        client.delete_object(Bucket=name, Key=key)  # type: ignore[attr-defined]
    return found


def test_unmounting_during_an_outage_lists_keeps_and_goes_on(
    front: Front, new_host: HostMaker
) -> None:
    host = new_host(front)
    host.mount()
    told = Outages(host, front.proxy, front)
    told.work("saved", files=2)
    host.sync()
    front.proxy.refuse()
    told.work("unsaved", files=2)
    before = trees.manifest(host.mountpoint)
    done = host.s3ws("umount", host.mountpoint, "--json", ok=ExitCode.NOT_SAVED)
    (answer,) = json.loads(done.stdout)
    assert any(path.startswith("unsaved/") for path in answer["error"]["unsaved"])
    assert "can't be reached" in answer["error"]["message"]
    front.proxy.heal()
    host.mount()
    assert trees.differences(before, trees.manifest(host.mountpoint)) == []
    told.settled()
    host.umount()

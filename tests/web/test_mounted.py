"""The page over real mounts, asked by an HTTP client: cold bytes, history, limits, and secrets."""

from __future__ import annotations

import http.client
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from s3ws_fs.cache.cache import open_cache
from s3ws_fs.control import registry
from s3ws_fs.core.types import ROOT_INO
from s3ws_fs.daemon.parts import identity
from s3ws_fs.settings import Settings
from s3ws_fs.transfer import looking
from s3ws_fs.web import looks
from tests.support.buckets import LocalBucket, S3Bucket
from tests.support.caches import evict
from tests.support.host import NEVER_BY_ITSELF, QUICK, Host
from tests.support.webclient import Client, Running, serving
from tests.support.webpage import running_page

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]


def beside(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process serves is beside the mounts of a host."""
    for name in list(os.environ):
        if name.startswith(("WORKSPACE_", "AWS_", "FILE_STORE", "S3WS_")):
            monkeypatch.delenv(name)
    for name, value in host.settings.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    (tmp_path / "store").mkdir()
    settings = QUICK | NEVER_BY_ITSELF | {"WORKSPACE_BACKUP_INTERVAL": "0"}
    made = Host(tmp_path / "one", LocalBucket(tmp_path / "store").env, settings=settings)
    beside(made, monkeypatch)
    try:
        made.mount()
        yield made
    finally:
        made.end()


@pytest.fixture
def page(host: Host) -> Iterator[Running]:
    with serving() as running:
        yield running


def address(host: Host, what: str) -> str:
    return f"/api/mounts/{registry.mount_key(str(host.mountpoint))}/{what}"


def test_bytes_that_are_only_in_the_bucket_are_fetched_and_verified(
    host: Host, client: Client, tmp_path: Path
) -> None:
    data = os.urandom(5_000_000)
    (host.mountpoint / "big").write_bytes(data)
    (host.mountpoint / "small").write_text("only there\n")
    host.sync()
    host.kill()
    config = Settings.load(host.settings).mount_config(str(host.mountpoint))
    with open_cache(
        Path(config.workspace_cache_dir), identity(config), quota_bytes=1 << 30, now_ns=time.time_ns
    ) as cache:
        with cache.read() as view:
            inos = {name: ino for _, name, ino in view.entries(ROOT_INO)}
            extents = [(ino, index) for ino in inos.values() for index in view.extent_indexes(ino)]
        for ino, index in extents:
            # Here and there one stays.
            if index % 7 != 3:
                evict(cache, ino, index)
    rows = {each["shown"]: each for each in client.get(address(host, "tree"))["entries"]}
    assert (rows["big"]["warmth"], rows["small"]["warmth"]) == ("partial", "cold")
    assert client.get(address(host, "file?path=small"))["text"] == "only there\n"
    ticket = client.post(address(host, "ticket"), {"path": "big"})["address"]
    assert client.ask("GET", ticket).body == data
    # Damaged in the journal and in the mirror: the answer ends, and never has those bytes.
    for path in (tmp_path / "store").rglob("*"):
        if path.is_file() and path.stat().st_size > 1 << 20:
            with path.open("r+b") as file:
                file.seek(200_000)
                file.write(b"damage" * 1000)
    ticket = client.post(address(host, "ticket"), {"path": "big"})["address"]
    with pytest.raises(http.client.IncompleteRead) as caught:
        client.ask("GET", ticket)
    assert data.startswith(caught.value.partial)
    client.get("/api/mounts")


def test_history_is_told_in_pages(
    host: Host, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        (host.mountpoint / f"f{number}").write_text("x")
        host.sync()
    monkeypatch.setattr(looks, "LOG_MAX", 2)
    first = client.get(address(host, "log"))
    numbers = [each["number"] for each in first["seals"]]
    assert len(numbers) == 2 and first["more"]
    assert [each["shown"] for each in first["seals"][0]["changes"]] == ["f3"]
    rest = client.get(address(host, f"log?before={numbers[-1]}"))
    assert [each["number"] for each in rest["seals"]] == [numbers[-1] - 1, numbers[-1] - 2]
    last = client.get(address(host, "log?before=2"))
    assert [each["number"] for each in last["seals"]] == [1] and not last["more"]


def test_a_difference_and_its_patches_have_limits(
    host: Host, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.s3ws("snapshot", "--name", "before", host.mountpoint)
    for number in range(5):
        (host.mountpoint / f"f{number}").write_text("line <b>\x1b[31m\u202e\n" * 50)
    (host.mountpoint / "latin").write_bytes(b"caf\xe9\n")
    host.s3ws("snapshot", "--name", "after", host.mountpoint)
    monkeypatch.setattr(looks, "CHANGES_MAX", 3)
    found = client.get(address(host, "diff?old=before&new=after"))
    assert (len(found["changes"]), found["more"], found["counts"]["added"]) == (3, 3, 6)
    ends = f"old={found['from']['number']}&new={found['to']['number']}"
    patch = client.get(address(host, f"patch?{ends}&path=f0"))
    assert "+line <b>\\x1b[31m\\u202e\n" in patch["patch"] and not patch["is_cut"]
    assert "+caf\\xe9" in client.get(address(host, f"patch?{ends}&path=latin"))["patch"]
    assert client.get(address(host, f"patch?{ends}&path=nothing"))["patch"] == ""
    monkeypatch.setattr(looks, "PATCH_BYTES_MAX", 200)
    cut = client.get(address(host, f"patch?{ends}&path=f0"))
    assert cut["is_cut"] and len(cut["patch"]) < 400
    for ends in ("old=9&new=1", "old=1&new=99999"):
        client.get(address(host, f"patch?{ends}&path=f0"), 404)


def test_a_few_differences_are_kept(
    host: Host, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.sync()
    for number in range(3):
        (host.mountpoint / f"f{number}").write_text("x")
        host.sync()
    made: list[tuple[int, int]] = []
    real = looking.difference

    def difference(store: Any, survey: Any, old: int, new: int, pool: Any) -> Any:
        made.append((old, new))
        return real(store, survey, old, new, pool)

    monkeypatch.setattr(looking, "difference", difference)
    for ends in ((1, 2), (1, 3), (1, 2), (2, 3), (1, 3)):
        client.get(address(host, "diff?old=%23{}&new=%23{}".format(*ends)))
    assert made == [(1, 2), (1, 3), (2, 3), (1, 3)]


def test_a_look_seals_nothing(host: Host, client: Client) -> None:
    (host.mountpoint / "dirty").write_text("x")
    sealed = host.now()["generation"]["sealed"]
    for what in ("diff?old=1h&new=head", "log", "snapshots", "backups", "tree", "file?path=dirty"):
        answer = client.ask("GET", address(host, what))
        assert answer.status in (200, 404), answer.body
    assert host.now()["generation"]["sealed"] == sealed


@pytest.mark.s3
def test_no_secret_is_on_the_page(tmp_path: Path, seaweed: Any) -> None:
    bucket = S3Bucket(seaweed)
    host = Host(tmp_path / "one", bucket.env, user="web-secrets", settings=QUICK)
    secret = bucket.env["AWS_SECRET_ACCESS_KEY"]
    try:
        host.mount()
        (host.mountpoint / "f").write_text("x\n")
        host.s3ws("turn", "begin", "t", host.mountpoint)
        (host.mountpoint / "f").write_text("y\n")
        host.s3ws("turn", "end", "t", host.mountpoint)
        with running_page(host.env, tmp_path / "page") as page:
            client = Client(page.port)
            client.enter(page.token)
            said = [client.ask("GET", "/api/mounts").body]
            for what in ("", "tree", "file?path=f", "snapshots", "backups", "log"):
                said.append(client.ask("GET", address(host, what).rstrip("/")).body)
            found = client.get(address(host, "diff?old=turn:t:begin&new=turn:t:end"))
            assert [each["shown"] for each in found["changes"]] == ["f"]
        assert secret.encode() not in b"".join(said) and secret not in page.said
    finally:
        host.end()
        bucket.close()

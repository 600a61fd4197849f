"""What the bucket has to do, against a real server, a directory, and stores that do it not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import ExitCode, PermanentError, TransientError
from s3ws_fs.settings import Settings
from s3ws_fs.store.base import Conditional, Keeps
from s3ws_fs.store.memory import Fault, MemoryStore
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.workspaces import doctor_store
from s3ws_fs.workspaces.diagnosis import FAILED, OK, SKIPPED, WARNING, Check, exit_code
from s3ws_fs.workspaces.doctor_store import SKEW_MAX_S, SKEW_WARN_S, store_checks
from tests.store.conftest import isolate
from tests.support.seaweed import Seaweed

S = 10**9


def config(tmp_path: Path, **more: Any) -> MountConfig:
    values = {
        "storage_type": "local",
        "storage_path": str(tmp_path / "store"),
        "cache_dir": str(tmp_path / "cache"),
        "runtime_dir": str(tmp_path / "run"),
        "user_id": "u",
        "conversation_id": "c",
        **more,
    }
    return Settings.load({}, values).mount_config("/proc/self/nowhere")


def by_name(checks: Any) -> dict[str, Check]:
    return {check.name: check for check in checks}


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MemoryStore:
    """What is opened in the place of the directory."""
    made = MemoryStore()
    (tmp_path / "store").mkdir()

    def open_it(_: object, prefix: str, *, read_only: bool, hasty: bool) -> ScopedStore:
        assert hasty
        return ScopedStore(made, prefix, read_only=read_only)

    monkeypatch.setattr(doctor_store, "open_store", open_it)
    return made


@pytest.mark.s3
def test_a_good_bucket(seaweed: Seaweed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(monkeypatch)
    for name, value in seaweed.env.items():
        monkeypatch.setenv(name, value)
    here = config(
        tmp_path, storage_type="s3", bucket=seaweed.bucket, endpoint_url=seaweed.endpoint_url
    )
    found = by_name(store_checks(here, write=True))
    assert {check.state for check in found.values()} == {OK}, found
    assert "AWS_ACCESS_KEY_ID" in found["credentials"].detail
    assert seaweed.secret_key not in str(found)
    client = seaweed.client()
    listed = client.list_objects_v2(Bucket=seaweed.bucket, Prefix=here.workspace.prefix)
    client.close()
    assert listed["KeyCount"] == 0
    missing = config(
        tmp_path, storage_type="s3", bucket="not-there", endpoint_url=seaweed.endpoint_url
    )
    found = by_name(store_checks(missing, write=True))
    assert found["bucket"].state == FAILED and found["clock"].state == SKIPPED
    assert exit_code(found.values()) is ExitCode.STORE
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    found = by_name(store_checks(here, write=True))
    assert found["bucket"].state == FAILED and "wrong-secret" not in str(found)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    found = by_name(store_checks(here, write=True))
    assert found["credentials"].state == FAILED and found["bucket"].state == SKIPPED


def test_a_directory(tmp_path: Path) -> None:
    here = config(tmp_path)
    found = by_name(store_checks(here, write=True))
    assert found["bucket"].state == WARNING and not (tmp_path / "store").exists()
    (tmp_path / "store").mkdir()
    found = by_name(store_checks(here, write=True))
    assert {check.state for check in found.values()} == {OK}
    assert not (tmp_path / "store" / "conversations").exists()


def test_without_writing(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    found = by_name(store_checks(config(tmp_path), write=False))
    assert found["bucket"].state == OK and found["rights"].state == SKIPPED
    assert os.listdir(tmp_path / "store") == []


@pytest.mark.parametrize("op", ["put", "get", "head", "delete"])
def test_rights_that_are_missing(memory: MemoryStore, tmp_path: Path, op: str) -> None:
    def refuse(asked: str, _: str) -> Fault:
        return Fault.PERMANENT if asked == op else Fault.NONE

    memory.fault = refuse
    found = by_name(store_checks(config(tmp_path), write=True))
    if op == "get":
        assert found["rights"].state == OK
        return
    assert found["rights"].state == FAILED and "s3:PutObject" in found["rights"].remedy
    assert found["conditional writes"].state == SKIPPED


def test_a_store_that_ignores_conditions(memory: MemoryStore, tmp_path: Path) -> None:
    bad = Conditional(put_must_create=False)
    assert doctor_store.conditions(config(tmp_path), bad).exit_code is ExitCode.STORE
    allowed = config(tmp_path, allow_unconditional=True)
    assert doctor_store.conditions(allowed, bad).state == WARNING
    emulated = Conditional(copy_must_create=False)
    assert doctor_store.conditions(config(tmp_path), emulated).state == OK


@pytest.mark.parametrize(
    ("ahead_s", "state"),
    [
        (0, OK),
        (SKEW_WARN_S - 2, OK),
        (SKEW_WARN_S + 3, WARNING),
        (-SKEW_WARN_S - 3, WARNING),
        (SKEW_MAX_S + 3, FAILED),
        (-SKEW_MAX_S - 3, FAILED),
    ],
)
def test_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead_s: float, state: str
) -> None:
    now_s = 1_800_000_000.7
    monkeypatch.setattr("time.time", lambda: now_s)
    memory = MemoryStore(now_ns=lambda: int(now_s - ahead_s) * S)
    store = ScopedStore(memory, "conversations/u/c/workspace/")
    skew_s = doctor_store.clock_skew_s(store)
    assert abs(skew_s - ahead_s) <= 1.0
    assert doctor_store.clock(skew_s).state == state
    assert list(store.list()) == []


def test_what_only_costs_is_a_warning(
    memory: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(error: Exception) -> Callable[..., int]:
        def raise_it(*_: object) -> int:
            raise error

        return raise_it

    store = ScopedStore(memory, "conversations/u/c/workspace/")
    assert doctor_store.uploads(store).state == OK
    for error in (PermanentError("list", "?", "denied"), TransientError("list", "?", "slow")):
        monkeypatch.setattr(ScopedStore, "abort_uploads", refuse(error))
        assert doctor_store.uploads(store).state == WARNING
    for keeps, state in (
        (Keeps(), OK),
        (Keeps("unknown", "unknown"), OK),
        (Keeps("enabled"), WARNING),
        (Keeps("enabled", "enabled"), WARNING),
    ):
        monkeypatch.setattr(ScopedStore, "keeps", lambda _, keeps=keeps: keeps)
        assert doctor_store.versioning(store).state == state
    monkeypatch.setattr(ScopedStore, "keeps", refuse(TransientError("head", "?", "slow")))
    assert doctor_store.versioning(store).state == WARNING

"""What a host has to have, and each way in which it has it not."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from s3ws_fs import __version__
from s3ws_fs.control import registry
from s3ws_fs.core.errors import ExitCode
from s3ws_fs.fuse import table
from s3ws_fs.launch import preflight
from s3ws_fs.workspaces import doctor_host as host
from s3ws_fs.workspaces.diagnosis import FAILED, OK, SKIPPED, WARNING, Check, exit_code
from tests.support.fake_mounts import Place, faked
from tests.support.mounting import require_fuse


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with faked(tmp_path, monkeypatch) as made:
        yield made


def failed(check: Check, code: ExitCode) -> None:
    assert (check.state, check.exit_code) == (FAILED, code), check
    assert check.remedy and exit_code([check]) is code


def warned(check: Check) -> None:
    assert check.state == WARNING and check.remedy and not exit_code([check]), check


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert host.versions().state == OK and __version__ in host.versions().detail

    def missing(name: str) -> str:
        if name == "lmdb":
            raise metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(metadata, "version", missing)
    failed(host.versions(), ExitCode.INTERNAL)
    assert "missing: lmdb" in host.versions().detail


@pytest.mark.parametrize(
    ("release", "state"),
    [("6.9.0", OK), ("6.18.4-x", OK), ("7.0", OK), ("6.8.12", WARNING), ("5.15", WARNING),
     ("odd", WARNING)],
)  # fmt: skip
def test_kernel(release: str, state: str) -> None:
    assert host.kernel(release).state == state


def test_fuse_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "FUSE_DEVICE", os.devnull)
    assert host.fuse_device().state == OK
    monkeypatch.setattr(preflight, "FUSE_DEVICE", str(tmp_path / "none"))
    failed(host.fuse_device(), ExitCode.NO_FUSE)
    assert "modprobe" in host.fuse_device().remedy

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    failed(host.fuse_device(), ExitCode.NO_FUSE)
    assert "chmod" in host.fuse_device().remedy


def test_fusermount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "fusermount3"
    program.write_text("#!/bin/sh\necho fusermount3 version: 9\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.defpath}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert host.fusermount().state == OK and "version: 9" in host.fusermount().detail
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    failed(host.fusermount(), ExitCode.NO_FUSE)
    assert "setuid" in host.fusermount().detail
    program.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    failed(host.fusermount(), ExitCode.NO_FUSE)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    warned(host.fusermount())


def test_allow_other(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = replace(place.config(), allow_other=True)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(preflight, "user_allow_other", lambda: False)
    assert host.allow_other(None).state == OK
    failed(host.allow_other(wanted), ExitCode.NO_FUSE)
    monkeypatch.setattr(preflight, "user_allow_other", lambda: True)
    assert host.allow_other(wanted).state == OK
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "root may" in host.allow_other(wanted).detail


@pytest.mark.fuse
def test_a_trial_mount_leaves_nothing() -> None:
    require_fuse()
    before = Path("/proc/self/mountinfo").read_text()
    assert host.trial_mount().state == OK
    assert Path("/proc/self/mountinfo").read_text() == before


def test_a_trial_mount_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "FUSE_DEVICE", os.devnull)
    monkeypatch.setattr(host, "has_capability", lambda _: False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(host, "_try_mount", lambda _: "Operation not permitted")
    failed(host.trial_mount(), ExitCode.NO_FUSE)
    assert "SYS_ADMIN" in host.trial_mount().remedy
    monkeypatch.setattr(host, "has_capability", lambda _: True)
    assert "AppArmor" in host.trial_mount().remedy
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", "/nowhere")
    failed(host.trial_mount(), ExitCode.NO_FUSE)


def test_places(tmp_path: Path) -> None:
    private = tmp_path / "private"
    assert host.directory("x", str(private), "V").state == OK
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    private.chmod(0o777)
    failed(host.directory("x", str(private), "V"), ExitCode.BAD_SETTINGS)


@pytest.mark.parametrize(
    ("kind", "free", "state"),
    [
        ("ext4", 1 << 40, OK),
        ("ext4", 100 << 20, WARNING),
        ("ext4", host.FREE_BYTES_MIN, WARNING),
        ("ext4", host.FREE_BYTES_MIN - 4096, FAILED),
        ("tmpfs", 1 << 40, WARNING),
        ("overlay", 1 << 40, WARNING),
        ("nfs4", 1 << 40, FAILED),
        ("fuse.sshfs", 1 << 40, FAILED),
    ],
)
def test_cache_disk(
    place: Place, monkeypatch: pytest.MonkeyPatch, kind: str, free: int, state: str
) -> None:
    room = SimpleNamespace(
        f_bavail=free // 4096, f_frsize=4096, f_blocks=1 << 30, f_favail=9, f_files=9
    )
    monkeypatch.setattr(os, "statvfs", lambda _: room)
    monkeypatch.setattr(host, "filesystem_of", lambda _: kind)
    found = host.cache_disk(place.config())
    assert found.state == state, found
    assert state == OK or found.remedy
    room.f_favail = 0
    failed(host.cache_disk(place.config()), found.exit_code or ExitCode.BAD_CACHE)
    assert host.cache_disk(None).state == SKIPPED


def test_the_type_of_a_filesystem() -> None:
    assert host.filesystem_of("/proc/self") == "proc"
    assert host.filesystem_of("/proc") == "proc"
    assert host.filesystem_of("/") not in ("proc", "unknown")


def test_mounts(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "none" in host.mounts().detail
    info = registry.MountInfo.for_this_process(place.config(), log_path=None, version="0")
    documents: list[dict[str, Any]] = [{"state": "ready", "version": __version__}]
    damaged: list[str] = []
    # Undone before the fixture ends the mounts that it sees.
    with monkeypatch.context() as patch:
        patch.setattr(registry, "list_mounts", lambda _: ([info], damaged))
        patch.setattr(host, "status_documents", lambda _: documents)
        assert host.mounts().state == OK
        for worse in (
            {"state": "dead"},
            {"state": "silent"},
            {"health": {"state": "degraded"}},
            {"version": "0.0.1"},
        ):
            documents[0] = {"state": "ready", "version": __version__, **worse}
            warned(host.mounts())
        documents[0] = {"state": "ready", "version": __version__}
        damaged.append("/run/bad.json")
        warned(host.mounts())
    assert not table.is_mounted(place.mountpoint)

"""The Python API as another program uses it, from asyncio and from trio."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.fuse import table
from s3ws_fs.manager import LocalStorage, S3Storage, WorkspaceManager
from tests.support.buckets import LocalBucket, S3Bucket
from tests.support.mounting import clear_mountpoint, require_fuse

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

CODE = "print('hello from the workspace')\n"


class Example:
    """The example of the README, whoever runs the loop."""

    def __init__(self, base: Path, storage: LocalStorage | S3Storage, user: str) -> None:
        require_fuse()
        self.path = base / "workspace"
        self.path.mkdir()
        self.user = user
        self.manager = WorkspaceManager(
            storage,
            "test-123",
            user,
            self.path,
            cache_dir=str(base / "cache"),
            runtime_dir=str(base / "run"),
            unmount_grace_s=1.0,
        )

    async def run(self, bucket: LocalBucket | S3Bucket) -> None:
        await self.manager.initialize()
        try:
            (self.path / "test.py").write_text(CODE)
            result = await self.manager.manual_sync()
            assert result["sealed"] >= 1
            key = f"conversations/{self.user}/test-123/workspace/files/test.py"
            assert bucket.get(key).body == CODE.encode()
            status = await self.manager.status()
            assert status["dirty"]["records"] == 0
            (self.path / "later.py").write_text(CODE)
        finally:
            await self.manager.cleanup()
        assert not table.is_mounted(str(self.path))
        assert bucket.get(key.replace("test.py", "later.py")).body == CODE.encode()


def test_from_asyncio(local_bucket: LocalBucket, tmp_path: Path, user: str) -> None:
    example = Example(tmp_path, LocalStorage(local_bucket.root), user)
    try:
        asyncio.run(example.run(local_bucket))
    finally:
        clear_mountpoint(example.path)


async def test_from_trio(local_bucket: LocalBucket, tmp_path: Path, user: str) -> None:
    example = Example(tmp_path, LocalStorage(local_bucket.root), user)
    try:
        await example.run(local_bucket)
    finally:
        clear_mountpoint(example.path)


@pytest.mark.s3
def test_with_a_bucket_and_keys(s3_bucket: S3Bucket, tmp_path: Path, user: str) -> None:
    server = s3_bucket.server
    storage = S3Storage(
        bucket=server.bucket,
        endpoint_url=server.endpoint_url,
        region=server.region,
        access_key=server.access_key,
        secret_key=server.secret_key,
    )
    assert server.secret_key not in repr(storage)
    example = Example(tmp_path, storage, user)
    try:
        asyncio.run(example.run(s3_bucket))
    finally:
        clear_mountpoint(example.path)
    assert "AWS_SECRET_ACCESS_KEY" not in os.environ


async def test_as_a_context_and_again(local_bucket: LocalBucket, tmp_path: Path, user: str) -> None:
    example = Example(tmp_path, LocalStorage(local_bucket.root), user)
    try:
        async with example.manager:
            (example.path / "test.py").write_text(CODE)
        async with example.manager:
            assert (example.path / "test.py").read_text() == CODE
        await example.manager.cleanup()
        with pytest.raises(UserError) as caught:
            await example.manager.manual_sync()
        assert caught.value.exit_code == ExitCode.NOT_MOUNTED
    finally:
        clear_mountpoint(example.path)


def test_bad_ids_are_refused_by_the_constructor(local_bucket: LocalBucket, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        WorkspaceManager(LocalStorage(local_bucket.root), "../x", "user", tmp_path / "workspace")
    assert caught.value.exit_code == ExitCode.BAD_SETTINGS
    assert local_bucket.listing() == []

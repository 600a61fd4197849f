"""The stores that the contract suite runs on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import pytest
from moto.server import ThreadedMotoServer

from s3ws_fs.core.config import StoreConfig
from s3ws_fs.store.base import Conditional, ObjectStore
from s3ws_fs.store.local import LocalStore
from s3ws_fs.store.memory import MemoryStore
from s3ws_fs.store.s3 import S3Store
from s3ws_fs.store.s3_client import RetryPolicy
from s3ws_fs.store.s3_multipart import MultipartLimits
from s3ws_fs.store.scoped import ScopedStore
from tests.support.faulty_store import FaultyStore
from tests.support.seaweed import Seaweed

MIB = 1 << 20
LIMITS = MultipartLimits(5 * MIB, 8 * MIB, 5 * MIB, 6 * MIB, 5 * MIB)
RETRY = RetryPolicy(attempts_max=3, backoff_first_s=0.001, backoff_max_s=0.01)
PREFIX = "conversations/u/c/workspace/"

MOTO_LACKS = Conditional(
    copy_src_if_match=False, copy_must_create=False, delete_many_if_match=False
)
"""What moto ignores (5.2): the store emulates it there, and the suite runs the same tests."""


@dataclass
class Subject:
    """A store under test: `store` is scoped, `raw` sees everything below `root`."""

    name: str
    raw: ObjectStore
    root: str = ""
    honours: Conditional = field(default_factory=Conditional)
    atomic: bool = True

    @property
    def prefix(self) -> str:
        return self.root + PREFIX

    @property
    def store(self) -> ScopedStore:
        return ScopedStore(self.raw, self.prefix)


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """Endpoint of a moto server with the bucket `moto-test`."""
    import boto3

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        client.create_bucket(Bucket="moto-test")
        client.close()
        yield endpoint
    finally:
        server.stop()


@pytest.fixture
def aws_env(monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials or settings of the machine reach the test."""
    isolate(monkeypatch)


def isolate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials and settings of the machine play no part."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")


@pytest.fixture
def seaweed_config(seaweed: Seaweed, aws_env: None, monkeypatch: pytest.MonkeyPatch) -> StoreConfig:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", seaweed.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", seaweed.secret_key)
    return StoreConfig("s3", seaweed.bucket, endpoint_url=seaweed.endpoint_url)


@pytest.fixture(params=["memory", "content", "faulty", "local", "seaweed", "moto"])
def subject(request: pytest.FixtureRequest, tmp_path: Path, aws_env: None) -> Iterator[Subject]:
    """Each store in turn, empty below `root`."""
    make: dict[str, Callable[[], Subject]] = {
        "memory": lambda: Subject("memory", MemoryStore()),
        "content": lambda: Subject("content", MemoryStore(etags_by_content=True)),
        "faulty": lambda: Subject("faulty", FaultyStore(MemoryStore())),
        "local": lambda: Subject("local", LocalStore(str(tmp_path / "bucket"))),
        "seaweed": lambda: Subject(
            "seaweed",
            S3Store(request.getfixturevalue("seaweed_config"), retry=RETRY, limits=LIMITS),
            f"t{uuid4().hex}/",
        ),
        "moto": lambda: Subject(
            "moto",
            S3Store(
                StoreConfig("s3", "moto-test", endpoint_url=request.getfixturevalue("moto")),
                retry=RETRY,
                limits=LIMITS,
            ),
            f"t{uuid4().hex}/",
            MOTO_LACKS,
            atomic=False,
        ),
    }
    found = make[request.param]()
    found.raw.assume(found.honours)
    yield found
    found.raw.close()

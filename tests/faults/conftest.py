"""A real server behind a proxy that fails on demand, and hosts that use it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from uuid import uuid4

import pytest

from s3ws_fs.core.config import StoreConfig
from s3ws_fs.store.base import Conditional
from s3ws_fs.store.s3 import S3Store
from s3ws_fs.store.s3_client import RetryPolicy
from s3ws_fs.store.s3_multipart import MultipartLimits
from s3ws_fs.store.scoped import ScopedStore
from tests.store.conftest import MOTO_LACKS, isolate, moto
from tests.support.e2e_fixtures import new_host, s3_bucket, seaweed, user
from tests.support.proxy import FaultyProxy, faulty_proxy
from tests.support.seaweed import Seaweed

__all__ = ["moto", "new_host", "s3_bucket", "seaweed", "user"]

MIB = 1 << 20
LIMITS = MultipartLimits(5 * MIB, 5 * MIB, 5 * MIB, 6 * MIB, 5 * MIB)
RETRY = RetryPolicy(
    attempts_max=4, backoff_first_s=0.001, backoff_max_s=0.01, throttled_first_s=0.001
)
PREFIX = "conversations/u/c/workspace/"


@dataclass(frozen=True)
class Way:
    """A server, the proxy before it, and a client on either side (they are costly to make)."""

    name: str
    proxy: FaultyProxy
    through: S3Store
    beside: S3Store


@pytest.fixture(scope="module", params=["seaweed", "moto"])
def way(request: pytest.FixtureRequest) -> Iterator[Way]:
    """Two implementations of S3: their answers differ where the standard leaves room."""
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        config = _config(request, patch)
        assert config.endpoint_url is not None
        proxy = stack.enter_context(faulty_proxy(config.endpoint_url))
        through = S3Store(replace(config, endpoint_url=proxy.url), retry=RETRY, limits=LIMITS)
        stack.callback(through.close)
        beside = S3Store(config, retry=RETRY, limits=LIMITS)
        stack.callback(beside.close)
        # Now the client knows that this server names its requests.
        through.check()
        yield Way(request.param, proxy, through, beside)


def _config(request: pytest.FixtureRequest, patch: pytest.MonkeyPatch) -> StoreConfig:
    isolate(patch)
    if request.param == "moto":
        return StoreConfig("s3", "moto-test", endpoint_url=request.getfixturevalue("moto"))
    server: Seaweed = request.getfixturevalue("seaweed")
    patch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
    patch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
    return StoreConfig("s3", server.bucket, endpoint_url=server.endpoint_url)


@pytest.fixture
def proxy(way: Way) -> Iterator[FaultyProxy]:
    """Healed before and after the test."""
    way.proxy.heal()
    way.proxy.log.clear()
    way.proxy.struck.clear()
    yield way.proxy
    way.proxy.heal()


@pytest.fixture
def place() -> str:
    """A workspace prefix of this test's own."""
    return f"t{uuid4().hex}/{PREFIX}"


@pytest.fixture
def store(way: Way, proxy: FaultyProxy, place: str) -> Iterator[ScopedStore]:
    """A store whose requests go through the proxy."""
    way.through.assume(Conditional() if way.name == "seaweed" else MOTO_LACKS)
    way.through._md5_etags = True
    yield ScopedStore(way.through, place)


@pytest.fixture
def direct(way: Way, place: str) -> ScopedStore:
    """The same place without the proxy: what really stands there."""
    return ScopedStore(way.beside, place)

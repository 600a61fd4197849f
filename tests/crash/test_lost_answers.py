"""An answer that is lost after a real S3 server has applied the request: for each kind of object.

The workload runs in one thread over SeaweedFS; the answer of the first matching request is thrown
away as it comes off the wire. Either the store tries again by itself, and the second attempt comes
back as 412 (404 for an upload that is complete); or it does not, and the next flush comes upon
what stands there. Both times it must be known as our own, by its bytes, its hash or its flush id.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import ConnectionClosedError
from botocore.httpsession import URLLib3Session

from s3ws_fs.core.config import StoreConfig, WorkspaceId
from s3ws_fs.store.s3 import S3Store
from s3ws_fs.store.s3_client import RetryPolicy
from s3ws_fs.store.s3_http import Answer, Endpoint
from s3ws_fs.store.s3_multipart import MultipartLimits
from tests.crash.rig import FINAL, Rig, fast_directory
from tests.crash.workloads import FIRST
from tests.support.seaweed import Seaweed

pytestmark = pytest.mark.s3

Match = Callable[[str, str, Any], bool]


def put(where: str) -> Match:
    return lambda method, url, headers: (
        method == "PUT" and where in url and "x-amz-copy-source" not in headers
    )


def copied(where: str) -> Match:
    return lambda method, url, headers: (
        method == "PUT" and where in url and "x-amz-copy-source" in headers
    )


def posted(where: str) -> Match:
    return lambda method, url, headers: method == "POST" and where in url


KINDS: dict[str, Match] = {
    "workspace.json": put("journal/workspace.json"),
    "lease": put("journal/lease"),
    "segment": put("journal/seg/"),
    "checkpoint": put("journal/ckpt/"),
    "blob": put("journal/blob/"),
    "multipart completion": posted("uploadId="),
    "mirror object": put("files/"),
    "mirror copy": copied("files/"),
    "mirror delete": posted("?delete"),
    "mirrored.json": put("journal/mirrored.json"),
}

UNTOLD = ("checkpoint",)
"""Nothing depends on it: a later flush makes one."""


@dataclass
class Losing:
    """Loses the answer of the first request that matches."""

    match: Match
    lost: int = 0

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Below both ways to the server: boto3's, and our own."""
        send, request = URLLib3Session.send, Endpoint.request

        def by_boto3(session: URLLib3Session, asked: Any) -> Any:
            answer = send(session, asked)
            parts = urlsplit(asked.url)
            where = f"{parts.path}?{parts.query}"
            self._perhaps(asked.method, where, asked.headers, answer.status_code)
            return answer

        def plainly(
            endpoint: Endpoint, method: str, where: str, headers: Any, body: Any = b""
        ) -> Answer:
            answer = request(endpoint, method, where, headers, body)
            self._perhaps(method, where, headers, answer.status)
            return answer

        patch.setattr(URLLib3Session, "send", by_boto3)
        patch.setattr(Endpoint, "request", plainly)

    def _perhaps(self, method: str, where: str, headers: Any, status: int) -> None:
        if not self.lost and self.match(method, where, headers):
            assert status < 300, "it was not applied"
            self.lost += 1
            raise ConnectionClosedError(endpoint_url=where)


@pytest.mark.parametrize("attempts", [3, 1], ids=["tried again", "told"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_our_own(
    seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch, kind: str, attempts: int
) -> None:
    for name, value in seaweed.env.items():
        monkeypatch.setenv(name, value)
    config = StoreConfig(
        "s3", seaweed.bucket, endpoint_url=seaweed.endpoint_url, addressing_style="path"
    )
    in_parts = 50_000 if kind == "multipart completion" else 1 << 20
    store = S3Store(
        config,
        retry=RetryPolicy(attempts_max=attempts, backoff_first_s=0.001, backoff_max_s=0.01),
        limits=MultipartLimits(multipart_bytes=in_parts),
    )
    losing = Losing(KINDS[kind])
    with fast_directory("s3ws-lost-") as base, monkeypatch.context() as patch:
        rig = Rig(Path(base) / "w", store, is_watching=False)
        workspace = WorkspaceId("u", f"c-{secrets.token_hex(6)}")
        rig.config = replace(rig.config, workspace=workspace)
        losing.install(patch)
        rig.run((*FIRST[:15], FINAL))
        rig.remount()
    store.close()
    assert losing.lost == 1
    if attempts == 1:
        assert rig.refused or kind in UNTOLD
    else:
        assert not rig.refused, rig.refused

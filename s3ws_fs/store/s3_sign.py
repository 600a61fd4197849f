"""AWS Signature Version 4 for requests to S3. Pure: the time and the keys are given.

Invariants
1. What is signed is what is sent: method, path and query as they stand in the request line, every
   header that it gets, and the digest of the body.

Called by s3_plain.py. (tests/store/test_s3_sign.py holds it against botocore's.)
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote

EMPTY_SHA256: Final = hashlib.sha256(b"").hexdigest()
_ALGORITHM: Final = "AWS4-HMAC-SHA256"


@dataclass(frozen=True, slots=True)
class Keys:
    """Credentials."""

    access: str
    secret: str = field(repr=False)
    token: str = field(default="", repr=False)


def quoted_path(path: str) -> str:
    """A path as it stands in the request line; slashes stay."""
    return quote(path, safe="/")


def quoted_query(query: Mapping[str, str]) -> str:
    """A query as it stands in the request line, and is signed: by name."""
    pairs = ((quote(name, safe=""), quote(value, safe="")) for name, value in query.items())
    return "&".join(f"{name}={value}" for name, value in sorted(pairs))


class Signer:
    """Signs for one region."""

    def __init__(self, keys: Keys, region: str) -> None:
        self._keys = keys
        self._region = region
        self._of_day: tuple[str, bytes] = ("", b"")

    def signed(
        self,
        method: str,
        path: str,
        query: str,
        headers: Mapping[str, str],
        body_sha256: str,
        stamp: str,
    ) -> dict[str, str]:
        """The headers, which name the host, and those of the signature.

        `path` and `query` are quoted. `stamp`: the time as YYYYMMDDTHHMMSSZ.
        """
        sent = {**headers, "x-amz-content-sha256": body_sha256, "x-amz-date": stamp}
        if self._keys.token:
            sent["x-amz-security-token"] = self._keys.token
        lines = sorted((name.lower(), " ".join(value.split())) for name, value in sent.items())
        names = ";".join(name for name, _ in lines)
        head = "".join(f"{name}:{value}\n" for name, value in lines)
        request = f"{method}\n{path}\n{query}\n{head}\n{names}\n{body_sha256}"
        scope = f"{stamp[:8]}/{self._region}/s3/aws4_request"
        digest = hashlib.sha256(request.encode()).hexdigest()
        text = f"{_ALGORITHM}\n{stamp}\n{scope}\n{digest}"
        signature = hmac.new(self._key(stamp[:8]), text.encode(), hashlib.sha256).hexdigest()
        sent["Authorization"] = (
            f"{_ALGORITHM} Credential={self._keys.access}/{scope}, SignedHeaders={names}, "
            f"Signature={signature}"
        )
        return sent

    def _key(self, day: str) -> bytes:
        known, key = self._of_day
        if known != day:
            key = f"AWS4{self._keys.secret}".encode()
            for part in (day, self._region, "s3", "aws4_request"):
                key = hmac.new(key, part.encode(), hashlib.sha256).digest()
            self._of_day = (day, key)
        return key

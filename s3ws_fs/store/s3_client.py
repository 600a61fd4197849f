"""Sends single requests to S3: slots, retries with jitter, counters, and fresh credentials.

Invariants
1. At most `max_parallel` requests are on the wire at once, whoever calls and however many threads
   a multipart upload uses; the connection pool has that size.
2. Only this loop retries (botocore's own retries are off), so that counters are true and a caller
   can learn whether an earlier attempt may have been applied.
3. A request comes to an end: ATTEMPTS_MAX attempts, each at most CONNECT_TIMEOUT_S and
   READ_TIMEOUT_S of silence, with bounded random waits between (RetryPolicy.silence_s is the sum).
4. Credentials come from AWS's own chain (environment, profiles, roles), never through us. When the
   server refuses them they are looked up anew: a changed file counts without a restart.
5. An answer is believed only when it has what S3's answer to that request has.

Called by s3.py and s3_multipart.py. Which client: s3_plain.py, s3_session.py.
"""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from s3ws_fs.core.config import StoreConfig
from s3ws_fs.core.errors import ConflictError, PermanentError, StoreError, TransientError
from s3ws_fs.store.base import Counters, Waits
from s3ws_fs.store.s3_errors import (
    NOT_S3,
    error_code,
    is_refused_credential,
    is_throttled,
    map_error,
    without_secrets,
)
from s3ws_fs.store.s3_http import CONNECT_TIMEOUT_S, READ_TIMEOUT_S
from s3ws_fs.store.s3_plain import PlainClient, plain_keys

ATTEMPTS_MAX: Final = 4
"""Attempts of one request, the first included."""
BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MAX_S: Final = 5.0
THROTTLED_FIRST_S: Final = 0.5
"""The first wait when the server asked to slow down; it doubles like the other."""
RENEW_S: Final = 5.0
"""Credentials that were refused are looked up anew no more often than this."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Attempts and the waits between them (random below a doubling bound)."""

    attempts_max: int = ATTEMPTS_MAX
    backoff_first_s: float = BACKOFF_FIRST_S
    backoff_max_s: float = BACKOFF_MAX_S
    throttled_first_s: float = THROTTLED_FIRST_S

    def bound_s(self, failures: int, *, throttled: bool = False) -> float:
        """The longest wait after that many failed attempts (at least 1)."""
        first_s = self.throttled_first_s if throttled else self.backoff_first_s
        return float(min(self.backoff_max_s, first_s * 2.0 ** (failures - 1)))

    def wait_s(self, failures: int, *, throttled: bool = False) -> float:
        """How long to wait after that many failed attempts."""
        bound_s = self.bound_s(failures, throttled=throttled)
        return random.uniform(bound_s / 10, bound_s)  # noqa: S311

    @property
    def silence_s(self) -> float:
        """The longest that one request to a silent server takes before it fails."""
        waits_s = sum(self.bound_s(n, throttled=True) for n in range(1, self.attempts_max))
        return self.attempts_max * (CONNECT_TIMEOUT_S + READ_TIMEOUT_S) + waits_s


class Wire:
    """A client, as boto3 has it, with our way of sending. It stays, whatever credentials come."""

    def __init__(
        self, config: StoreConfig, counters: Counters, waits: Waits, retry: RetryPolicy
    ) -> None:
        self._config = config
        self._counters = counters
        self._waits = waits
        self._retry = retry
        self._slots = threading.BoundedSemaphore(config.max_parallel)
        self._renewing = threading.Lock()
        self._renewed_s = float("-inf")
        self._names_requests = False
        self._current, self._credentials = open_client(config)
        self.client = _Current(lambda: self._current)

    def send(
        self,
        op: str,
        key: str,
        request: Callable[[], T],
        *,
        was_ours: Callable[[], T | None] | None = None,
        needs: Sequence[str] = (),
        size_bytes: int = 0,
        attempts_max: int | None = None,
    ) -> T:
        """Run `request` (one call of the client) until it answers, within the policy.

        `was_ours` is asked when a condition fails (or an upload is gone) after an attempt whose
        answer was lost: it returns the result when the object there is what that attempt wrote.
        `needs`: members without which the answer is not S3's. `size_bytes`: how much is carried.
        Raises StoreError.
        """
        number = self._waits.begin(op, key, size_bytes)
        try:
            result = self._send(
                (op, key, request, needs),
                number,
                was_ours,
                attempts_max or self._retry.attempts_max,
            )
        finally:
            self._waits.end(number)
        if op == "put":
            self._counters.carried(sent_bytes=size_bytes)
        return result

    def _send(
        self,
        what: tuple[str, str, Callable[[], T], Sequence[str]],
        number: int,
        was_ours: Callable[[], T | None] | None,
        attempts_max: int,
    ) -> T:
        failures = 0
        while True:
            try:
                return self._once(*what)
            except (ConflictError, TransientError, PermanentError) as exc:
                if failures and was_ours is not None and _may_be_ours(exc):
                    result = was_ours()
                    if result is not None:
                        return result
                failures += 1
                again = isinstance(exc, TransientError) or self._has_fresh_credentials(exc)
                if not again or failures >= attempts_max:
                    raise
                self._waits.failed(number, exc.detail)
                wait_s = self._retry.wait_s(failures, throttled=is_throttled(exc))
            time.sleep(wait_s)

    def _once(self, op: str, key: str, request: Callable[[], T], needs: Sequence[str]) -> T:
        with self._slots:
            try:
                result = request()
            except Exception as exc:
                body_error = _from_body(exc)
                if body_error is not None:
                    raise body_error from None
                self._counters.add(op, error_code(exc))
                raise map_error(op, key, exc) from without_secrets(exc)
        if not isinstance(result, dict):
            self._counters.add(op, "200")
            return result
        said = result["ResponseMetadata"]
        self._counters.add(op, str(said["HTTPStatusCode"]))
        if not self._is_from_s3(said) or not result.keys() >= set(needs):
            raise TransientError(op, key, NOT_S3)
        return result

    def _is_from_s3(self, said: dict[str, Any]) -> bool:
        """False for a web page from a server whose answers else name their request.

        A login page or a load balancer would be taken for a deletion that worked, or an object.
        """
        headers = said.get("HTTPHeaders", {})
        if "x-amz-request-id" in headers:
            self._names_requests = True
            return True
        is_page = str(headers.get("content-type", "")).startswith("text/html")
        return not (is_page and self._names_requests)

    def _has_fresh_credentials(self, exc: StoreError) -> bool:
        """After a refusal: whether there are other credentials by now, which are used then."""
        if not isinstance(exc, PermanentError) or not is_refused_credential(exc):
            return False
        with self._renewing:
            now_s = time.monotonic()
            if now_s - self._renewed_s < RENEW_S:
                return False
            self._renewed_s = now_s
            try:
                client, credentials = open_client(self._config)
            except StoreError:
                # A file that is being written this moment: the next refusal looks again.
                return False
            if credentials == self._credentials:
                client.close()
                return False
            # The old one is not closed: other threads may be using it.
            self._current, self._credentials = client, credentials
            return True

    def close(self) -> None:
        """Release the connections."""
        self._current.close()


def open_client(config: StoreConfig) -> tuple[Any, bytes]:
    """A client, and a digest of its credentials. Raises PermanentError (bad profile…)."""
    keys = plain_keys(config, os.environ)
    if keys is None:
        return _boto3_client(config)
    try:
        client = PlainClient(config, keys, lambda: _boto3_client(config)[0])
    except OSError as exc:
        raise map_error("open", config.location, exc) from exc
    known = "\0".join((keys.access, keys.secret, keys.token))
    return client, hashlib.sha256(known.encode("utf-8", "surrogateescape")).digest()


def _boto3_client(config: StoreConfig) -> tuple[Any, bytes]:
    # Loaded where it is needed only: see s3_plain.
    from s3ws_fs.store.s3_session import make_client

    return make_client(config)


class _Current:
    """Methods of the client that counts when they are called, not when they are bound."""

    def __init__(self, current: Callable[[], Any]) -> None:
        self._current = current

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(**arguments: Any) -> Any:
            return getattr(self._current(), name)(**arguments)

        return call


def _may_be_ours(exc: StoreError) -> bool:
    return isinstance(exc, ConflictError) or exc.detail.startswith("NoSuchUpload")


def _from_body(exc: Exception) -> StoreError | None:
    """The error that reading the body raised, which botocore may have wrapped."""
    inner = getattr(exc, "kwargs", {}).get("error", exc)
    return inner if isinstance(inner, StoreError) else None

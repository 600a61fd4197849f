"""Builds the boto3 client and sends single requests: slots, retries with jitter, counters.

Invariants
1. At most `max_parallel` requests are on the wire at once, whoever calls and however many threads
   a multipart upload uses; the connection pool has that size.
2. Only this loop retries (botocore's own retries are off), so that counters are true and a caller
   can learn whether an earlier attempt may have been applied.
3. Credentials come from AWS's own chain (environment, profiles, roles), never through us.

Called by s3.py.
"""

from __future__ import annotations

import random
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError
from urllib3.exceptions import InsecureRequestWarning

from s3ws_fs.core.config import StoreConfig
from s3ws_fs.core.errors import ConflictError, StoreError, TransientError
from s3ws_fs.store.base import Counters
from s3ws_fs.store.s3_errors import error_code, map_error

CONNECT_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 30.0
ATTEMPTS_MAX: Final = 4
"""Attempts of one request, the first included."""
BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MAX_S: Final = 5.0
REGION_DEFAULT: Final = "us-east-1"
"""Custom endpoints rarely care, but a signature needs one."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Attempts and the waits between them (full jitter below a doubling bound)."""

    attempts_max: int = ATTEMPTS_MAX
    backoff_first_s: float = BACKOFF_FIRST_S
    backoff_max_s: float = BACKOFF_MAX_S

    def wait_s(self, failures: int) -> float:
        """How long to wait after that many failed attempts (at least 1)."""
        bound = min(self.backoff_max_s, self.backoff_first_s * 2.0 ** (failures - 1))
        return random.uniform(bound / 10, bound)  # noqa: S311


class Wire:
    """A boto3 client with our way of sending."""

    def __init__(self, config: StoreConfig, counters: Counters, retry: RetryPolicy) -> None:
        self.client = make_client(config)
        self._counters = counters
        self._retry = retry
        self._slots = threading.BoundedSemaphore(config.max_parallel)

    def send(
        self,
        op: str,
        key: str,
        request: Callable[[], T],
        *,
        was_ours: Callable[[], T | None] | None = None,
    ) -> T:
        """Run `request` (one call of the client) until it answers, within the policy.

        `was_ours` is asked when a condition fails (or an upload is gone) after an attempt whose
        answer was lost: it returns the result when the object there is what that attempt wrote.
        Raises StoreError.
        """
        failures = 0
        while True:
            try:
                return self._once(op, key, request)
            except ConflictError:
                if failures and was_ours is not None:
                    result = was_ours()
                    if result is not None:
                        return result
                raise
            except TransientError as exc:
                if failures and was_ours is not None and exc.detail.startswith("NoSuchUpload"):
                    result = was_ours()
                    if result is not None:
                        return result
                failures += 1
                if failures >= self._retry.attempts_max:
                    raise
            time.sleep(self._retry.wait_s(failures))

    def _once(self, op: str, key: str, request: Callable[[], T]) -> T:
        with self._slots:
            try:
                result = request()
            except Exception as exc:
                body_error = _from_body(exc)
                if body_error is not None:
                    raise body_error from None
                self._counters.add(op, error_code(exc))
                raise map_error(op, key, exc) from _without_secrets(exc)
        status = result["ResponseMetadata"]["HTTPStatusCode"] if isinstance(result, dict) else 200
        self._counters.add(op, str(status))
        return result


def make_client(config: StoreConfig) -> Any:
    """A boto3 S3 client for `config`. Raises PermanentError (bad profile, bad endpoint)."""
    custom = config.endpoint_url
    if not config.verify_tls:
        # The setting asks for it; a warning for each request would drown everything else.
        warnings.simplefilter("ignore", InsecureRequestWarning)
    try:
        session = boto3.session.Session()
        if custom is None:
            custom = _configured_endpoint(session)
        region = config.region or session.region_name or (REGION_DEFAULT if custom else None)
        verify: bool | str = config.ca_bundle or True if config.verify_tls else False
        client = cast(Any, session).client(
            "s3",
            endpoint_url=config.endpoint_url,
            region_name=region,
            # None lets AWS_CA_BUNDLE count, True would override it.
            verify=None if verify is True else verify,
            config=_client_config(config, custom=custom is not None),
        )
    except (BotoCoreError, ValueError) as exc:
        raise map_error("open", config.location, exc) from _without_secrets(exc)
    return client


def _client_config(config: StoreConfig, *, custom: bool) -> Config:
    style = config.addressing_style
    options: dict[str, Any] = {}
    if custom:
        # Many servers reject or mis-handle the newer default checksums.
        options = {
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        }
    return Config(
        signature_version="s3v4",
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=config.max_parallel,
        tcp_keepalive=True,
        s3={"addressing_style": "path" if custom and style == "auto" else style},
        **options,
    )


def _configured_endpoint(session: Any) -> str | None:
    """An endpoint that the environment or the profile names (AWS_ENDPOINT_URL_S3 and kin)."""
    probe = session.client("s3", region_name=REGION_DEFAULT)
    try:
        url: str = probe.meta.endpoint_url
    finally:
        probe.close()
    return None if ".amazonaws.com" in url else url


def _from_body(exc: Exception) -> StoreError | None:
    """The error that reading the body raised, which botocore may have wrapped."""
    inner = getattr(exc, "kwargs", {}).get("error", exc)
    return inner if isinstance(inner, StoreError) else None


def _without_secrets(exc: Exception) -> Exception | None:
    # A ClientError's response may hold the string that was signed: it is not chained.
    return None if hasattr(exc, "response") else exc

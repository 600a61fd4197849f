"""One place that turns what botocore raises into the four kinds of StoreError.

Invariants
1. No detail holds a secret: of a server's answer only the code and the message are repeated, never
   headers, signatures or the string that was signed.
2. What may work when tried again is transient, also when in doubt about an answer that came broken.

Called by the s3 modules.
"""

from __future__ import annotations

from typing import Any, Final

from botocore import exceptions as boto

from s3ws_fs.core.errors import (
    ConflictError,
    NotFoundError,
    PermanentError,
    StoreError,
    TransientError,
)

DETAIL_CHARS_MAX: Final = 300
NOT_S3: Final = "the answer is not S3's; is the endpoint right?"
NO_CREDENTIALS: Final = "no credentials"

_NOT_FOUND: Final = frozenset({"NoSuchKey", "NotFound", "404", "NoSuchVersion"})
_CONFLICT: Final = frozenset({"PreconditionFailed", "412"})
_TRANSIENT: Final = frozenset(
    {
        "ConditionalRequestConflict",
        "OperationAborted",
        "NoSuchUpload",
        "RequestTimeout",
        "IncompleteBody",
        "BadDigest",
        "XAmzContentSHA256Mismatch",
        "InternalError",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "RequestThrottled",
        "TooManyRequests",
        "RequestLimitExceeded",
        "408",
        "409",
        "503",
    }
)
_THROTTLED: Final = (
    "SlowDown",
    "Throttling",
    "RequestThrottled",
    "TooManyRequests",
    "RequestLimitExceeded",
    "ServiceUnavailable",
    "429",
    "503",
)
_CREDENTIAL: Final = (
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "AccessDenied",
    "Forbidden",
    "403",
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
)
_REMEDIES: Final = {
    "NoSuchBucket": "the bucket does not exist",
    "InvalidAccessKeyId": "the server does not know this access key",
    "SignatureDoesNotMatch": "the secret key is wrong",
    "AccessDenied": "these credentials are not allowed to do this",
    "Forbidden": "wrong credentials, or they are not allowed to do this",
    "403": "wrong credentials, or they are not allowed to do this",
    "ExpiredToken": "the session token has expired",
    "TokenRefreshRequired": "the session token has expired",
    "InvalidToken": "the session token is not valid",
    "RequestTimeTooSkewed": "the clock of this machine is too far from the server's",
    "PermanentRedirect": "the bucket is in another region",
    "TemporaryRedirect": "the bucket is in another region",
    "AuthorizationHeaderMalformed": "the bucket is in another region",
    "IllegalLocationConstraintException": "the bucket is in another region",
    "301": "the bucket is in another region or the endpoint is wrong",
    "KeyTooLongError": "the server does not take a key (or a segment of it) as long as this",
}


class GarbledError(Exception):
    """An answer that is not of the shape that S3's has."""


def map_error(op: str, key: str, exc: Exception) -> StoreError:
    """The StoreError that stands for `exc`, raised by a botocore client."""
    if isinstance(exc, boto.ClientError):
        return _client_error(op, key, exc)
    if isinstance(exc, boto.SSLError):
        certificate = "CERTIFICATE_VERIFY_FAILED" in str(exc)
        kind: type[StoreError] = PermanentError if certificate else TransientError
        hint = "the server's certificate is not trusted" if certificate else "TLS failed"
        return kind(op, key, f"{hint} ({_short(exc)})")
    # By name: to load botocore's parsers takes longer than all of this.
    if isinstance(exc, GarbledError) or type(exc).__name__ == "ResponseParserError":
        return TransientError(op, key, NOT_S3)
    if isinstance(exc, boto.EndpointConnectionError | boto.ConnectTimeoutError):
        return TransientError(op, key, f"the server can't be reached ({_short(exc)})")
    if isinstance(
        exc,
        boto.HTTPClientError
        | boto.ConnectionError
        | boto.ReadTimeoutError
        | boto.IncompleteReadError
        | boto.ResponseStreamingError
        | boto.CredentialRetrievalError
        | boto.MetadataRetrievalError
        | OSError,
    ):
        return TransientError(op, key, f"the connection failed ({_short(exc)})")
    if isinstance(exc, boto.NoCredentialsError | boto.PartialCredentialsError):
        return PermanentError(op, key, f"{NO_CREDENTIALS}: set AWS_ACCESS_KEY_ID or AWS_PROFILE")
    if isinstance(exc, boto.BotoCoreError):
        return PermanentError(op, key, _short(exc))
    return PermanentError(op, key, f"unexpected {type(exc).__name__}")


def without_secrets(exc: Exception) -> Exception | None:
    """What may be chained: a ClientError's response may hold the string that was signed."""
    return None if hasattr(exc, "response") else exc


def is_throttled(exc: StoreError) -> bool:
    """Did the server ask us to slow down?"""
    return isinstance(exc, TransientError) and _named(exc, _THROTTLED)


def is_refused_credential(exc: StoreError) -> bool:
    """Was it refused for who asked, so that other credentials may help?"""
    return exc.detail.startswith(NO_CREDENTIALS) or _named(exc, _CREDENTIAL)


def _named(exc: StoreError, codes: tuple[str, ...]) -> bool:
    """A detail of ours has the server's code at its end in brackets, or begins with it."""
    return exc.detail.startswith(codes) or exc.detail.endswith(tuple(f"({c})" for c in codes))


def error_code(exc: Exception) -> str:
    """A short name for counters: the server's code, or the exception's class."""
    if isinstance(exc, boto.ClientError):
        return str(_part(exc, "Error").get("Code", "?"))
    return type(exc).__name__


def _client_error(op: str, key: str, exc: boto.ClientError) -> StoreError:
    code = error_code(exc)
    status = int(_part(exc, "ResponseMetadata").get("HTTPStatusCode", 0) or 0)
    message = str(_part(exc, "Error").get("Message", ""))[:DETAIL_CHARS_MAX]
    hint = _REMEDIES.get(code)
    detail = f"{hint} ({code})" if hint else f"{code} {message}".strip()
    if code in _NOT_FOUND:
        return NotFoundError(op, key, "there is no such object")
    if code in _CONFLICT:
        return ConflictError(op, key, "the object exists already or has changed")
    if code in _TRANSIENT or status == 429 or (status >= 500 and status != 501):
        return TransientError(op, key, detail)
    return PermanentError(op, key, detail)


def _part(exc: boto.ClientError, name: str) -> dict[str, Any]:
    response: Any = exc.response
    return dict(response.get(name) or {})


def _short(exc: Exception) -> str:
    return str(exc)[:DETAIL_CHARS_MAX]

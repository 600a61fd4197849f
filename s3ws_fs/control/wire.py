"""The control protocol: one request and its answer as JSON lines over a unix socket.

    request   {"v":1,"cmd":"status","args":{}}
    events    {"event":"progress",...}                      zero or more; any may be left out
    answer    {"ok":true,"result":{}}                       exactly one, then the connection ends
              {"ok":false,"error":{"message","remedy","exit_code",...details}}

Invariants
1. Lines are ASCII: file names that are not UTF-8 travel as escaped lone surrogates and survive.
2. A request has at most REQUEST_BYTES_MAX bytes, any other line at most LINE_BYTES_MAX.
3. Whatever bytes come in, the parsers return a value or raise ProtocolError, nothing else.

Called by control.server, control.client and launch (whose ready pipe speaks the same lines).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from s3ws_fs.core import jsontext
from s3ws_fs.core.errors import ExitCode, FormatError, S3wsError, UserError

VERSION: Final = 1
REQUEST_BYTES_MAX: Final = 64 * 1024
LINE_BYTES_MAX: Final = 16 * 1024 * 1024
COMMAND_CHARS_MAX: Final = 64


class ProtocolError(S3wsError):
    """Bytes on the control socket that are not a message of this protocol."""


class ReplyError(UserError):
    """A failure that crosses the socket. `details` are further members of the error object.

    `unsaved` (a list of paths) is the one that `unmount` fills in.
    """

    def __init__(
        self,
        message: str,
        *,
        remedy: str = "",
        exit_code: ExitCode = ExitCode.INTERNAL,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        self.details = dict(details or {})
        super().__init__(message, remedy=remedy, exit_code=exit_code)


@dataclass(frozen=True, slots=True)
class Request:
    """One decoded request."""

    cmd: str
    args: dict[str, Any]


def encode(message: Mapping[str, Any]) -> bytes:
    """One message as a line, with its line end."""
    return json.dumps(message, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def encode_request(cmd: str, args: Mapping[str, Any]) -> bytes:
    """A request line. Raises ProtocolError when it is over REQUEST_BYTES_MAX."""
    line = encode({"v": VERSION, "cmd": cmd, "args": dict(args)})
    if len(line) > REQUEST_BYTES_MAX:
        raise ProtocolError("the request is too long")
    return line


def decode(line: bytes) -> dict[str, Any]:
    """One line as a JSON object. Raises ProtocolError for anything else."""
    try:
        return jsontext.object_of(line, "line")
    except FormatError as exc:
        raise ProtocolError(exc.why) from exc


def decode_request(line: bytes) -> Request:
    """A request line. Raises ProtocolError when it is none, or of another version."""
    value = decode(line)
    if value.get("v") != VERSION:
        raise ProtocolError(f"protocol version {VERSION} is spoken here")
    cmd, args = value.get("cmd"), value.get("args", {})
    if not isinstance(cmd, str) or not 0 < len(cmd) <= COMMAND_CHARS_MAX:
        raise ProtocolError("cmd is missing or too long")
    if not isinstance(args, dict):
        raise ProtocolError("args is not an object")
    return Request(cmd, args)


def error_object(exc: UserError) -> dict[str, Any]:
    """The error member of an answer."""
    details = exc.details if isinstance(exc, ReplyError) else {}
    return {
        **details,
        "message": exc.message,
        "remedy": exc.remedy,
        "exit_code": int(exc.exit_code),
    }


def error_from(value: object) -> ReplyError:
    """The exception for the error member of an answer; tolerant, since it reports a failure."""
    if not isinstance(value, dict):
        return ReplyError("The daemon reported an error without saying which.")
    details = dict(value)
    message, remedy = details.pop("message", None), details.pop("remedy", None)
    number = details.pop("exit_code", None)
    try:
        code = ExitCode(number) if isinstance(number, int) else ExitCode.INTERNAL
    except ValueError:
        code = ExitCode.INTERNAL
    if code is ExitCode.OK:
        code = ExitCode.INTERNAL
    return ReplyError(
        message if isinstance(message, str) and message else "The daemon reported an error.",
        remedy=remedy if isinstance(remedy, str) else "",
        exit_code=code,
        details=details,
    )

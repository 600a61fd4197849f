"""Ids of users and conversations, and the prefix above them: checked once, then trusted; new ids.

Invariants
1. What `canonical_id` returns holds no `/`, no control character, nothing that a shell, an S3
   key or a directory name treats specially, and never starts with `.` or `-`.
2. A UUID with or without dashes, in any letter case, gives the same 32 lowercase hexadecimal
   digits. Every other accepted id is returned as given, so two different ones never become one.
3. `canonical_id(canonical_id(x)) == canonical_id(x)`; the same holds for `canonical_root_prefix`.

4. `new_id` draws from its argument only: the same bits give the same id.

Pure. Called by core.config, settings, the manager and replica (new ids).
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from typing import Final

from s3ws_fs.core.errors import ExitCode, UserError

ID_CHARS_MAX: Final = 128
ROOT_PREFIX_CHARS_MAX: Final = 256

_UUID: Final = re.compile(
    r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[0-9a-fA-F]{32}", re.ASCII
)
_SAFE_ID: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@+=-]*", re.ASCII)
_ALLOWED: Final = "letters, digits and . _ - @ + =, starting with a letter, a digit or _"


RandBits = Callable[[int], int]
"""So many random bits as a number: `secrets.randbits`, or what a simulation draws from its seed."""


def new_id(randbits: RandBits) -> str:
    """A name that nobody else has: a UUID (version 4) without dashes."""
    return uuid.UUID(int=randbits(128), version=4).hex


def canonical_id(value: str, *, what: str) -> str:
    """The one spelling of an id. `what` names it in the error, e.g. "conversation id".

    Raises UserError (exit code 3) for an empty, too long (over 128 characters) or unsafe id.
    """
    if not value:
        raise _bad(f"The {what} is empty.", f"Give a {what} of {_ALLOWED}.")
    if len(value) > ID_CHARS_MAX:
        raise _bad(
            f"The {what} has {len(value)} characters; at most {ID_CHARS_MAX} are allowed.",
            f"Use a shorter {what}.",
        )
    if _UUID.fullmatch(value):
        return value.replace("-", "").lower()
    if not _SAFE_ID.fullmatch(value):
        raise _bad(f"The {what} {value!a} is not usable in a bucket key.", f"Use {_ALLOWED}.")
    return value


def canonical_root_prefix(value: str) -> str:
    """The prefix above `conversations/`: empty, or segments of safe characters ending in one `/`.

    Raises UserError (exit code 3) when it is too long, absolute, or has an empty or unsafe segment.
    """
    if not value:
        return ""
    if len(value) > ROOT_PREFIX_CHARS_MAX:
        raise _bad(
            f"The bucket prefix has {len(value)} characters; "
            f"at most {ROOT_PREFIX_CHARS_MAX} are allowed.",
            "Use a shorter prefix.",
        )
    bare = value.removesuffix("/")
    if not all(_SAFE_ID.fullmatch(segment) for segment in bare.split("/")):
        raise _bad(
            f"The bucket prefix {value!a} is not usable.",
            f"Use segments separated by single slashes, without a leading one; each of {_ALLOWED}.",
        )
    prefix = f"{bare}/"
    if len(prefix) > ROOT_PREFIX_CHARS_MAX:
        return canonical_root_prefix(prefix)
    return prefix


def _bad(message: str, remedy: str) -> UserError:
    return UserError(message, remedy=remedy, exit_code=ExitCode.BAD_SETTINGS)

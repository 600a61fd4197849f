"""What an operation of the twins is made of: noted in a trace, done by a user, with bytes by seed.

Invariants
1. A trace's line is the call as Python is written, and its result as a comment: pasted
   into a test, the lines do the same again.

Called by the modules that Twins is made of.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import inspect
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Concatenate, Final, Literal, ParamSpec, Protocol, TypeVar

from tests.model.differences import Native
from tests.model.look import Difference

P = ParamSpec("P")


class Noting(Protocol):
    """What a class with operations provides."""

    native: Native
    trace: list[str]
    counts: Counter[str]
    failure: str

    def snippet(self) -> str:
        """What was done, as the body of a test."""


S = TypeVar("S", bound=Noting)
Fill = tuple[int, int]
"""Bytes by seed and length."""
When = int | Literal["now", "omit"]

LONG: Final = "n" * 255
TOO_LONG: Final = "m" * 256
LONG_TARGET: Final = "x" * 4000
AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2
NOREPLACE: Final = 1
EXCHANGE: Final = 2
TRACE_SHOWN_CHARS: Final = 100

libc = ctypes.CDLL(None, use_errno=True)


@functools.lru_cache(maxsize=256)
def fill(data: Fill) -> bytes:
    """Bytes that are all different from others (seed 0: zeros)."""
    seed, length = data
    return random.Random(seed).randbytes(length) if seed else bytes(length)


def _repr(value: Any) -> str:
    """As Python is written, with the long names by their names."""
    text = repr(value)
    if isinstance(value, str):
        for name, long in (("LONG", LONG), ("TOO_LONG", TOO_LONG), ("LONG_TARGET", LONG_TARGET)):
            if long in value:
                text = "f" + text.replace(long, f"{{{name}}}").removeprefix("f")
    return text


def operation(method: Callable[Concatenate[S, P], Any]) -> Callable[Concatenate[S, P], Any]:
    """Note the call in the trace, with its result, and what it stumbled on."""
    signature = inspect.signature(method)

    @functools.wraps(method)
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> Any:
        bound = signature.bind(self, *args, **kwargs)
        shown = [
            f"0o{value:o}" if name == "mode" else _repr(value)
            for name, value in list(bound.arguments.items())[1:]
        ]
        self.trace.append(f"t.{method.__name__}({', '.join(shown)})")
        self.counts[method.__name__] += 1
        self.native.tick()
        try:
            result = method(self, *args, **kwargs)
        except Exception as exc:
            self.failure = f"{exc}\n\n{self.snippet()}"
            raise Difference(self.failure) from exc
        self.trace[-1] += f"  # {str(result)[:TRACE_SHOWN_CHARS]}"
        return result

    return call


@contextlib.contextmanager
def acting_as(uid: int) -> Iterator[None]:
    """Be another user (with the group of the same number alone) within the block. Root only."""
    if uid == os.geteuid():
        yield
        return
    groups = os.getgroups()
    os.setgroups([uid])
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def times_set(info: os.stat_result, atime: When, mtime: When) -> list[int]:
    """The times of `info` that were set to a value."""
    asked = ((atime, info.st_atime_ns), (mtime, info.st_mtime_ns))
    return [got for wanted, got in asked if not isinstance(wanted, str)]


def timespecs(*times: When) -> Any:
    """struct timespec[2] for utimensat(2)."""
    words: list[int] = []
    for when in times:
        if isinstance(when, str):
            words += (0, UTIME_NOW if when == "now" else UTIME_OMIT)
        else:
            words += divmod(when, 1_000_000_000)
    return (ctypes.c_long * 4)(*words)


def checked(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def unlike(mount: bytes, plain: bytes) -> tuple[str, str]:
    """Where two byte strings part, in words."""
    at = next(
        (i for i, (a, b) in enumerate(zip(mount, plain, strict=False)) if a != b),
        min(len(mount), len(plain)),
    )
    said = [f"{len(body)} bytes, at {at}: {body[at : at + 12].hex()}" for body in (mount, plain)]
    return said[0], said[1]

"""Inputs for decoders: valid ones changed a little, and values of any shape.

Invariants
1. The same `random.Random` gives the same input.

Called by the modules of tests.fuzz.
"""

from __future__ import annotations

import json
import random
import struct
from typing import Any, Final

NUMBERS: Final = (
    0, 1, -1, 2, 7, 127, 128, 255, 256, 4095, 4096, 32_768, 65_535, 65_536, 2**31 - 1, 2**31,
    2**32 - 1, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), 10**30, 10**400,
)  # fmt: skip
FLOATS: Final = (0.0, -0.0, 0.5, 1e-9, 1e308, float("inf"), float("-inf"), float("nan"))
TEXTS: Final = (
    "", " ", ".", "..", "/", "//", "../../etc/passwd", "/etc/passwd", "a/../b", "\\", "a\nb",
    "\x1b[31m", "\x00", "\udcff", "\ud800", "\u202e", "\ufffe", "%2e%2e", "%00", "%", "%zz",
    "nan", "-1", "1e9", "0x10", "true", "~root", "~nobody-here", "http://", "https://a:b@c/",
    "٣", "a" * 255, "a" * 256, "é" * 200, "a" * 5000, "format", "\r\n", "{}", "[]",
)  # fmt: skip


def any_text(rng: random.Random) -> str:
    """A text that somebody did not think of."""
    if rng.random() < 0.6:
        return rng.choice(TEXTS)
    high = rng.choice((0x7F, 0xFF, 0xD7FF, 0x10FFFF))
    return "".join(chr(rng.randrange(high + 1)) for _ in range(rng.randrange(40)))


def any_value(rng: random.Random, depth: int = 3) -> Any:
    """A JSON value of any shape."""
    kind = rng.randrange(9 if depth else 6)
    if kind == 0:
        return rng.choice((None, True, False))
    if kind == 1:
        return rng.choice(NUMBERS)
    if kind == 2:
        return rng.choice(FLOATS)
    if kind < 6:
        return any_text(rng)
    if kind < 8:
        return [any_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    return {any_text(rng): any_value(rng, depth - 1) for _ in range(rng.randrange(4))}


def changed_value(rng: random.Random, value: Any) -> Any:
    """A JSON value with one thing in it changed."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        name = rng.choice(sorted(value))
        how = rng.randrange(5)
        if how == 0:
            return {key: item for key, item in value.items() if key != name}
        if how == 1:
            return {**value, any_text(rng): any_value(rng)}
        return {**value, name: changed_value(rng, value[name])}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        how = rng.randrange(4)
        if how == 0:
            return value[:at] + value[at + 1 :]
        if how == 1:
            return value * rng.choice((2, 100))
        return [*value[:at], changed_value(rng, value[at]), *value[at + 1 :]]
    if isinstance(value, str) and rng.random() < 0.5:
        text = any_text(rng)
        at = rng.randrange(len(value) + 1)
        return value[:at] + text + value[at:] if rng.random() < 0.5 else text
    if isinstance(value, int) and rng.random() < 0.6:
        return rng.choice((value + 1, value - 1, -value, float(value % 2**53), *NUMBERS))
    return any_value(rng)


def json_bytes(rng: random.Random, value: Any) -> bytes:
    """A JSON text: of the value changed, of something else, or broken."""
    how = rng.randrange(10)
    if how == 0:
        return b"[" * rng.choice((1, 500, 990, 100_000))
    if how == 1:
        deep = rng.choice((50, 900, 3000))
        return b'{"a":' * deep + b"1" + b"}" * deep
    if how == 2:
        return b"9" * rng.choice((20, 4300, 5000))
    for _ in range(rng.randrange(1, 4)):
        value = changed_value(rng, value)
    raw = json.dumps(value).encode()
    if how == 3:
        raw = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    elif how == 4:
        raw = raw.decode().encode(rng.choice(("utf-16", "utf-32", "utf-8-sig")))
    return mutated(rng, raw) if how < 6 else raw


def mutated(rng: random.Random, raw: bytes, partner: bytes = b"") -> bytes:
    """Bytes with some of them flipped, cut, doubled, filled or spliced."""
    data = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 1, 2, 4, 8, 64, 1000)))
        how = rng.randrange(9)
        if how == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif how == 1:
            data[at:end] = rng.randbytes(end - at)
        elif how == 2:
            del data[at:end]
        elif how == 3:
            data[at:at] = rng.randbytes(rng.randrange(1, 20))
        elif how == 4:
            data[at:at] = data[at:end]
        elif how == 5:
            del data[at:]
        elif how == 6:
            width, code = rng.choice(((1, ">B"), (2, ">H"), (4, ">I"), (8, ">Q"), (8, "<Q")))
            number = rng.choice([n for n in NUMBERS if 0 <= n < 1 << 8 * width])
            data[at : at + width] = struct.pack(code, number)
        elif how == 7:
            data[at:end] = bytes((rng.choice((0, 0xFF)),)) * (end - at)
        elif partner:
            start = rng.randrange(len(partner))
            data[at:end] = partner[start : start + rng.choice((1, 8, 100, 1000))]
    return bytes(data)

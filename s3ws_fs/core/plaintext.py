"""Foreign text and file names, made fit for a terminal, a page, or JSON. Pure.

Invariants
1. `safe` leaves nothing that a terminal interprets or that changes the order of what is read, and
   shows bytes that are not UTF-8 as \\xNN.

Called by the commands and the status page.
"""

from __future__ import annotations

import base64
import os


def safe(text: str) -> str:
    """Text for a terminal: unprintable characters as escapes, undecodable bytes as \\xNN."""
    return "".join(_safe_char(char) for char in text)


def _safe_char(char: str) -> str:
    if char.isprintable():
        return char
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")


def safe_name(name: bytes) -> str:
    """A file name for a terminal; a backslash in it is doubled, so that escapes are unambiguous."""
    return safe(os.fsdecode(name).replace("\\", "\\\\"))


def json_name(name: bytes) -> dict[str, str]:
    """A file name for JSON: {"name"}, and {"name_b64"} with the true bytes if it is not UTF-8."""
    try:
        return {"name": name.decode("utf-8")}
    except UnicodeDecodeError:
        return {
            "name": name.decode("utf-8", "replace"),
            "name_b64": base64.b64encode(name).decode("ascii"),
        }

"""What hypothesis draws from, and which path or handle a drawn number stands for.

Invariants
1. What a drawn value stands for depends on the trees alone, which depend on what was drawn before:
   so examples replay and shrink.

Called by machine.
"""

from __future__ import annotations

import os
import stat
from typing import Final

from hypothesis import strategies as st

from s3ws_fs.core.limits import EXTENT_BYTES
from tests.model.differences import MODES_LEFT_OUT
from tests.model.doing import LONG, LONG_TARGET, TOO_LONG
from tests.model.look import PLAIN
from tests.model.twins import Twins

IS_ROOT: Final = os.geteuid() == 0
OFFSET_MAX: Final = 300_000
OTHERS: Final = 15
"""As number of a directory: below something that is none."""

ANY_KIND: Final = 56
"""Numbers of places and handles from here on take whatever is there."""
COMMON: Final = ("a", "b", "c", "d", "e", "f", "g")
NAMES: Final = COMMON * 6 + ("x y", "%41", "ü\\", LONG, TOO_LONG)
TAILS: Final = ("",) * 30 + ("/", "/.", "/..")
TARGETS: Final = ("a", "b", "a/b", "../a", ".", "b/", "nowhere", LONG_TARGET)
OPENS: Final = (
    "rdwr creat", "rdwr creat excl", "rdwr", "rdonly", "wronly", "rdwr append",
    "wronly append creat", "rdwr trunc", "rdonly trunc", "wronly creat trunc", "rdonly directory",
    "rdonly nofollow",
    "rdwr creat nofollow", "path", "path nofollow", "rdonly creat directory", "rdwr sync creat",
)  # fmt: skip
_FILE_MODES: Final = (0o644, 0o600, 0o755, 0o666, 0o4755, 0o2755, 0o6711, 0o444, 0o000)
_DIR_MODES: Final = (0o755, 0o777, 0o1777, 0o2775, 0o2777, 0o700, 0o555)
XATTRS: Final = (
    *("user.a", "user.b") * 3,
    "trusted.t",
    "user.",
    "none",
    "user." + "l" * 250,
)

edges = st.builds(
    lambda index, unit, by: max(0, index * unit + by),
    st.integers(0, 8),
    st.sampled_from((4096, EXTENT_BYTES)),
    st.sampled_from((0, -1, 1, 100, -100)),
)
offsets = st.one_of(edges, st.integers(0, OFFSET_MAX))
sizes = st.one_of(st.integers(0, 20), edges, st.integers(0, 100_000))
fills = st.tuples(st.integers(0, 9), sizes)
numbers = st.integers(0, 63)
spots = st.tuples(st.one_of(st.integers(0, 3), st.integers(0, OTHERS)), st.sampled_from(NAMES))
places = st.tuples(st.one_of(numbers, numbers, numbers, spots), st.sampled_from(TAILS))
"""A path: one that is known, by number, or a name in a known directory; and what hangs on it."""
new_places = st.tuples(st.one_of(spots, spots, spots, numbers), st.sampled_from(TAILS))
ids = st.sampled_from((-1, 0, 1000, 10001))
whens = st.one_of(
    st.sampled_from(("now", "omit", 0, 1, -1, 10**18 + 1)), st.integers(-(2**60), 2**62)
)
Place = tuple[int | tuple[int, str], str]

assert not MODES_LEFT_OUT.keys() & {*_FILE_MODES, *_DIR_MODES}
# Who is not root must be able to look at what he made.
FILE_MODES: Final = tuple(mode | (0 if IS_ROOT else 0o600) for mode in _FILE_MODES)
DIR_MODES: Final = tuple(mode | (0 if IS_ROOT else 0o700) for mode in _DIR_MODES)


def path_of(t: Twins, place: Place, kind: str = "") -> str:
    """Where a place is. `kind`: "file" or "dir" where there is one, "new" what is not there."""
    where, tail = place
    known = t.known
    dirs = [path for path in known if stat.S_ISDIR(os.lstat(t.at(PLAIN, path)).st_mode)]
    others = [path for path in known if path not in set(dirs)]
    if isinstance(where, int):
        of_kind = {"file": others, "dir": dirs}.get(kind, known) if where < ANY_KIND else known
        choice = of_kind or known or ["a"]
        return choice[where % len(choice)] + tail
    number, name = where
    aboves = others if number == OTHERS and others else ["", *dirs]
    above = aboves[number % len(aboves)]
    names = [name, *COMMON] if kind == "new" and name in COMMON else [name]
    paths = [os.path.join(above, name) for name in names]
    return next((path for path in paths if path not in known), paths[0]) + tail


def xattr_of(t: Twins, number: int, otherwise: tuple[str, str]) -> tuple[str, str]:
    """A path and the name of an extended attribute that it has, if there is one."""
    there = [
        (path, name)
        for path in t.known
        for name in sorted(os.listxattr(t.at(PLAIN, path), follow_symlinks=False))
    ]
    return there[number % len(there)] if there and number < ANY_KIND else otherwise


def handle_of(t: Twins, number: int, is_dir: bool) -> int:
    """The number of an open handle, of a directory if it should be and there is one."""
    dirs = [key for key, handle in t.handles.items() if stat.S_ISDIR(handle.mode)]
    others = [key for key in t.handles if key not in dirs]
    keys = (dirs if is_dir else others) if number < ANY_KIND else []
    keys = keys or [*t.handles]
    return keys[number % len(keys)]

"""Path policies: which paths stay local, are packed, or are left out of backups. Pure.

The patterns are those of gitignore, matched as git matches them (tests compare with git itself):
bytes, the last pattern that matches decides, `!` takes back, and nothing below a directory that
matched can be taken back.

Invariants
1. `is_local(p)` implies `is_local` of everything below p.
2. What is below a `.git` directory is never local by the default list: a branch may be named
   `x.tmp`, and a repository without one of its files is a broken one.
3. A pattern that makes no sense (an open bracket, a backslash at the end) matches nothing.

Called by snapshot (what a backup leaves out), replica and fs (what a restore leaves alone), and
settings (checks). The daemon imports it only when it is needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from pathspec.patterns.gitignore.base import GitIgnorePatternError
from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

from s3ws_fs.core.errors import ExitCode, UserError

PATTERNS_MAX: Final = 1000
"""Patterns of one list at most."""
PATTERN_BYTES_MAX: Final = 4096
_KNOWN_DIRS_MAX: Final = 1 << 16
"""Directories whose answer is remembered; beyond it they are forgotten and asked again."""

DEFAULT_LOCAL: Final = (
    # What package managers and tools make again.
    "node_modules/",
    "__pycache__/",
    "*.py[co]",
    ".cache/",
    ".mypy_cache/",
    ".pytest_cache/",
    ".ruff_cache/",
    ".parcel-cache/",
    # Temporary files, and those of editors and of file systems.
    "*.tmp",
    "*.temp",
    ".*.sw[a-p]",
    "*~",
    "\\#*#",
    ".#*",
    ".nfs*",
    ".fuse_hidden*",
    ".DS_Store",
    "Thumbs.db",
    "!**/.git/**",
)
"""What a restore leaves alone and a backup leaves out, unless a setting says otherwise."""

_DIR_MARK: Final = b"(?P<ps_d>/)"
"""How the library's expressions mark the slash behind a directory that fits."""


@dataclass(frozen=True, slots=True)
class _Run:
    """Neighbouring patterns of one sign, as one expression."""

    negated: bool
    regex: re.Pattern[bytes]


class Patterns:
    """A list of patterns in gitignore syntax. Raises UserError (exit 3) when over a limit."""

    def __init__(self, patterns: Iterable[str]) -> None:
        lines = [pattern.encode("utf-8", "surrogateescape") for pattern in patterns]
        _check(lines)
        self._runs = _runs(lines)
        self._dirs: dict[bytes, bool] = {}

    def match(self, path: bytes, is_dir: bool) -> bool:
        """Whether the path (relative to the root, b"" for it) or a directory above it matches."""
        if not self._runs or not path:
            return False
        if is_dir:
            return self._match_dir(path)
        above = path.rpartition(b"/")[0]
        return bool(above and self._match_dir(above)) or self._decide(path)

    def _match_dir(self, path: bytes) -> bool:
        known = self._dirs.get(path)
        if known is None:
            above = path.rpartition(b"/")[0]
            known = bool(above and self._match_dir(above)) or self._decide(path + b"/")
            if len(self._dirs) >= _KNOWN_DIRS_MAX:
                self._dirs.clear()
            self._dirs[path] = known
        return known

    def _decide(self, path: bytes) -> bool:
        for run in self._runs:
            if run.regex.search(path):
                return not run.negated
        return False


class Policies:
    """The policies of one workspace. Lists are added to the defaults; `!pattern` takes one back.

    `local`: stays in this cache, a restore leaves it alone, a backup leaves it out.
    `pack`: durable in the journal, not mirrored. `backup_exclude`: left out of backups too.
    """

    def __init__(
        self,
        *,
        local: Iterable[str] = (),
        pack: Iterable[str] = (),
        backup_exclude: Iterable[str] = (),
    ) -> None:
        self._local = Patterns((*DEFAULT_LOCAL, *local))
        self._pack = Patterns(pack)
        self._left_out = Patterns(backup_exclude)

    def is_local(self, path: bytes, is_dir: bool) -> bool:
        """Whether a path (relative to the root) stays in this cache."""
        return self._local.match(path, is_dir)

    def is_packed(self, path: bytes, is_dir: bool) -> bool:
        """Whether a path is for the journal alone."""
        return self._pack.match(path, is_dir)

    def is_left_out(self, path: bytes, is_dir: bool) -> bool:
        """Whether a backup leaves a path out."""
        return self._local.match(path, is_dir) or self._left_out.match(path, is_dir)


def split_patterns(text: str) -> tuple[str, ...]:
    """Patterns of a setting: one a line, or several on a line between `;`."""
    return tuple(
        part for line in text.splitlines() for part in line.split(";") if part.strip() != ""
    )


def _check(lines: list[bytes]) -> None:
    if len(lines) > PATTERNS_MAX or any(len(line) > PATTERN_BYTES_MAX for line in lines):
        raise UserError(
            f"A list of path patterns has more than {PATTERNS_MAX} patterns, or one of more than "
            f"{PATTERN_BYTES_MAX} bytes.",
            remedy="Say the same with fewer: a pattern may hold *, ? and **.",
            exit_code=ExitCode.BAD_SETTINGS,
        )


def _runs(lines: Iterable[bytes]) -> tuple[_Run, ...]:
    """The patterns in the order in which they are asked: the last first."""
    found: list[tuple[bool, list[bytes]]] = []
    for line in reversed(list(lines)):
        regex, included = _translate(line)
        if regex is None:
            continue
        if not found or found[-1][0] == included:
            found.append((not included, []))
        found[-1][1].append(regex)
    return tuple(_Run(sign, re.compile(b"|".join(regexes), re.DOTALL)) for sign, regexes in found)


def _translate(line: bytes) -> tuple[bytes | None, bool]:
    """(expression that fits exactly what the pattern names, whether it ignores that)."""
    try:
        regex, included = GitIgnoreSpecPattern.pattern_to_regex(line.removesuffix(b"\r"))
    except GitIgnorePatternError:
        return None, True
    if regex is None:
        return None, True
    # The library's expression also fits what is below a directory that fits. Then a pattern that
    # takes a directory back would take back what another one names below it: git does not.
    # And its negated sets would fit a slash.
    if regex not in (_DIR_MARK, b".") and line.endswith((b"/**", b"/**/")):
        regex += b".+/" if line.endswith(b"/") else b".+"
    regex = regex.replace(_DIR_MARK, b"/").replace(b"[^", b"[^/")
    return regex + b"\\Z", included is not False

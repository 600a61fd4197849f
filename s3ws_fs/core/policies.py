"""Path policies: which paths stay local, are packed, or are left out of backups. Pure.

The patterns are those of gitignore, matched as git matches them (tests compare with git itself):
bytes, the last pattern that matches decides, `!` takes back, and nothing below a directory that
matched can be taken back.

Invariants
1. `is_local(p)` implies `is_local` of everything below p.
2. What is below a `.git` directory is never local by the default list: a branch may be named
   `x.tmp`, and a repository without one of its files is a broken one.
3. A pattern that git would ignore or could never match (an open bracket, a backslash at the end)
   matches nothing.

Called by snapshot (what a backup leaves out), replica and fs (what a restore leaves alone), and
settings (checks). The daemon imports it only when it is needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

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

_CLASSES: Final[dict[bytes, bytes]] = {
    b"alnum": b"0-9A-Za-z",
    b"alpha": b"A-Za-z",
    b"blank": b" \t",
    b"cntrl": b"\x00-\x1f\x7f",
    b"digit": b"0-9",
    b"graph": b"!-~",
    b"lower": b"a-z",
    b"print": b" -~",
    b"punct": b"!-/:-@\\[-`{-~",
    b"space": b" \t-\r",
    b"upper": b"A-Z",
    b"xdigit": b"0-9A-Fa-f",
}
_NEVER: Final = b"(?!)"
_SLASH, _STAR, _BACKSLASH = b"/*\\"


@dataclass(frozen=True, slots=True)
class _Rule:
    """One pattern. `by_name`: it is held against the last name of a path, not all of it."""

    regex: bytes
    negated: bool
    dirs_only: bool
    by_name: bool


@dataclass(frozen=True, slots=True)
class _Run:
    """Neighbouring patterns of one sign, as one expression for each way they are matched."""

    negated: bool
    name: re.Pattern[bytes] | None
    name_dir: re.Pattern[bytes] | None
    path: re.Pattern[bytes] | None
    path_dir: re.Pattern[bytes] | None

    def matches(self, path: bytes, name: bytes, is_dir: bool) -> bool:
        """Whether one of them matches exactly this path."""
        return bool(
            (self.name is not None and self.name.fullmatch(name))
            or (self.path is not None and self.path.fullmatch(path))
            or (is_dir and self.name_dir is not None and self.name_dir.fullmatch(name))
            or (is_dir and self.path_dir is not None and self.path_dir.fullmatch(path))
        )


class Patterns:
    """A list of patterns in gitignore syntax. Raises UserError (exit 3) when over a limit."""

    def __init__(self, patterns: Iterable[str]) -> None:
        lines = [pattern.encode("utf-8", "surrogateescape") for pattern in patterns]
        _check(lines)
        rules = [rule for line in lines if (rule := _parse(line)) is not None]
        self._runs = _runs(rules)
        self._dirs: dict[bytes, bool] = {}

    def match(self, path: bytes, is_dir: bool) -> bool:
        """Whether the path (relative to the root, b"" for it) or a directory above it matches."""
        if not self._runs or not path:
            return False
        above, _, name = path.rpartition(b"/")
        if above and self._match_dir(above):
            return True
        if is_dir:
            return self._match_dir(path)
        return self._decide(path, name, False)

    def _match_dir(self, path: bytes) -> bool:
        known = self._dirs.get(path)
        if known is None:
            above, _, name = path.rpartition(b"/")
            known = bool(above and self._match_dir(above)) or self._decide(path, name, True)
            if len(self._dirs) >= _KNOWN_DIRS_MAX:
                self._dirs.clear()
            self._dirs[path] = known
        return known

    def _decide(self, path: bytes, name: bytes, is_dir: bool) -> bool:
        for run in self._runs:
            if run.matches(path, name, is_dir):
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


def _runs(rules: list[_Rule]) -> tuple[_Run, ...]:
    """The rules in the order in which they are asked: the last first."""
    runs: list[list[_Rule]] = []
    for rule in reversed(rules):
        if runs and runs[-1][0].negated == rule.negated:
            runs[-1].append(rule)
        else:
            runs.append([rule])
    return tuple(
        _Run(
            run[0].negated,
            *(
                _joined([r.regex for r in run if (r.by_name, r.dirs_only) == kind])
                for kind in ((True, False), (True, True), (False, False), (False, True))
            ),
        )
        for run in runs
    )


def _joined(regexes: list[bytes]) -> re.Pattern[bytes] | None:
    return re.compile(b"|".join(regexes), re.DOTALL) if regexes else None


def _parse(line: bytes) -> _Rule | None:
    """A line of gitignore; None for a comment, an empty line, or what can't match."""
    line = _without_trailing_spaces(line.removesuffix(b"\r"))
    if not line or line.startswith(b"#"):
        return None
    negated = line.startswith(b"!")
    if negated:
        line = line[1:]
    dirs_only = line.endswith(b"/")
    if dirs_only:
        line = line[:-1]
    by_name = b"/" not in line
    line = line.removeprefix(b"/")
    regex = _translate(line)
    if not line or regex is None:
        return None
    return _Rule(regex, negated, dirs_only, by_name)


def _without_trailing_spaces(line: bytes) -> bytes:
    end = at = 0
    while at < len(line):
        if line[at] == _BACKSLASH:
            at += 2
            if at > len(line):
                return line
            end = at
        else:
            at += 1
            if line[at - 1 : at] != b" ":
                end = at
    return line[:end]


def _translate(pattern: bytes) -> bytes | None:
    """A pattern as a regular expression; None when it can match nothing."""
    made = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if char == _STAR:
            piece, at = _stars(pattern, at)
        elif char == ord("?"):
            piece, at = b"[^/]", at + 1
        elif char == ord("["):
            found = _bracket(pattern, at)
            if found is None:
                return None
            piece, at = found
        elif char == _BACKSLASH:
            if at + 1 == len(pattern):
                return None
            piece, at = re.escape(pattern[at + 1 : at + 2]), at + 2
        else:
            piece, at = re.escape(pattern[at : at + 1]), at + 1
        made.append(piece)
    return b"(?:" + b"".join(made) + b")"


def _stars(pattern: bytes, at: int) -> tuple[bytes, int]:
    end = at
    while end < len(pattern) and pattern[end] == _STAR:
        end += 1
    rest = pattern[end:]
    begins = at == 0 or pattern[at - 1] == _SLASH
    ends = not rest or rest.startswith((b"/", b"\\/"))
    if end - at == 1 or not (begins and ends):
        return b"[^/]*", end
    if rest.startswith(b"/"):
        return b"(?:.*/)?", end + 1
    return b".*", end


def _bracket(pattern: bytes, at: int) -> tuple[bytes, int] | None:
    """A bracket that begins at `at`, and where the pattern goes on; None when it is not closed."""
    at += 1
    negated = pattern[at : at + 1] in (b"!", b"^")
    at += negated
    chars: set[int] = set()
    before: int | None = None
    is_first = True
    while is_first or pattern[at : at + 1] != b"]":
        is_first = False
        char = pattern[at : at + 1]
        if not char:
            return None
        following = pattern[at + 1 : at + 2]
        if char == b"\\":
            if not following:
                return None
            before = following[0]
            chars.add(before)
            at += 2
        elif char == b"-" and before and following not in (b"", b"]"):
            at += 2 if following == b"\\" else 1
            if at >= len(pattern):
                return None
            chars.update(range(before, pattern[at] + 1))
            before = None
            at += 1
        elif char == b"[" and following == b":":
            end = pattern.find(b"]", at + 2)
            if end < 0:
                return None
            if end == at + 2 or pattern[end - 1] != ord(":"):
                before = char[0]
                chars.add(before)
                at += 1
                continue
            members = _CLASSES.get(pattern[at + 2 : end - 1])
            if members is None:
                return None
            chars.update(_members(members))
            before = None
            at = end + 1
        else:
            before = char[0]
            chars.add(before)
            at += 1
    if negated:
        chars = set(range(256)) - chars
    chars.discard(_SLASH)
    listed = b"".join(b"\\x%02x" % char for char in sorted(chars))
    return (b"[" + listed + b"]" if listed else _NEVER), at + 1


def _members(described: bytes) -> list[int]:
    return [byte for byte in range(128) if re.fullmatch(b"[" + described + b"]", bytes((byte,)))]

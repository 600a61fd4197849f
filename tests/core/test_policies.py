"""Path policies match as git matches: compared with git itself, on trees and random patterns."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.core.policies import (
    PATTERN_BYTES_MAX,
    PATTERNS_MAX,
    Patterns,
    Policies,
    split_patterns,
)

NAMES = (b"a", b"b", b"ab", b"a.b", b"-", b"]", b"a b", b"A", b"*", b"a\\", b"a\nb", b"\xe9", b"!a")
DIRS = (b"a", b"a/b", b"a/b/c", b"b", b"b/a", b"a.d", b"a.d/b.d", b"\xe9d")


GIT = ("git", "-c", "core.excludesFile=/dev/null", "-c", "core.ignoreCase=false")


class Git:
    """A repository whose info/exclude is the list to try, over a tree of odd names."""

    def __init__(self, root: Path) -> None:
        self.root = root
        run = {"cwd": root, "check": True, "stdout": subprocess.DEVNULL}
        subprocess.run(["git", "-c", "init.defaultBranch=main", "init", "-q"], **run)  # type: ignore[call-overload]
        self.paths: list[tuple[bytes, bool]] = []
        for above in (b"", *DIRS):
            place = os.path.join(os.fsencode(root), above)
            os.makedirs(place, exist_ok=True)
            if above:
                self.paths.append((above, True))
            for name in NAMES:
                path = above + b"/" + name if above else name
                if path not in DIRS:
                    with open(os.path.join(place, name), "wb"):
                        self.paths.append((path, False))

    def ignored(self, patterns: list[bytes]) -> set[bytes]:
        """The paths that git ignores."""
        (self.root / ".git/info").mkdir(exist_ok=True)
        (self.root / ".git/info/exclude").write_bytes(b"\n".join(patterns) + b"\n")
        done = subprocess.run(
            [*GIT, "check-ignore", "--no-index", "-z", "--stdin"],
            cwd=self.root,
            input=b"\0".join(path for path, _ in self.paths),
            stdout=subprocess.PIPE,
            env={**os.environ, "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null"},
        )
        assert done.returncode in (0, 1)
        return set(done.stdout.split(b"\0")) - {b""}


@pytest.fixture(scope="module")
def git(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Git]:
    yield Git(tmp_path_factory.mktemp("ignored"))


# Patterns as people write them: what git makes of `a**/b` or `!/` nobody relies on.
_PIECES = st.sampled_from(b"a b c .d .b * ? [a-b] [!a] [ab] [^b] \\* \\! \xe9 A -".split())
_NAMES = st.lists(_PIECES, min_size=1, max_size=3).map(b"".join).filter(lambda n: b"**" not in n)
_LINES = (
    st.lists(st.one_of(_NAMES, _NAMES, st.just(b"**")), min_size=1, max_size=3)
    .map(b"/".join)
    .filter(lambda line: line.count(b"**") <= 1)
)
_NEGATED = st.tuples(st.sampled_from([b"", b"", b"!", b"/"]), _LINES, st.sampled_from([b"", b"/"]))


@settings(max_examples=150)
@given(st.lists(_NEGATED.map(b"".join), min_size=1, max_size=6))
@example([b"a/", b"!a/b"])
@example([b"a/*", b"!a/b"])
@example([b"a/**", b"!a/b/"])
@example([b"**/b", b"a/**/c/"])
@example([b"!a", b"a/b"])
@example([b"a/b", b"!a"])
@example([b"a b\\ ", b"a\\\\"])
@example([b"*.d/", b"!b.d/"])
@example([b"**", b"!**/.git/**"])
def test_git_ignores_the_same(git: Git, patterns: list[bytes]) -> None:
    tried = Patterns(os.fsdecode(pattern) for pattern in patterns)
    ours = {path for path, is_dir in git.paths if tried.match(path, is_dir)}
    assert ours == git.ignored(patterns)


@pytest.mark.parametrize(
    ("path", "is_dir"),
    [
        (b"node_modules", True),
        (b"x/node_modules/y/z.js", False),
        (b"x/__pycache__/m.cpython-311.pyc", False),
        (b"x/.a.py.swp", False),
        (b"notes.txt~", False),
        (b"#notes#", False),
        (b".cache/pip/x", False),
        (b"deep/a.tmp", False),
    ],
)
def test_local_by_default(path: bytes, is_dir: bool) -> None:
    assert Policies().is_local(path, is_dir)
    assert Policies().is_left_out(path, is_dir)


@pytest.mark.parametrize(
    ("path", "is_dir"),
    [
        (b"", True),
        (b"node_modules", False),
        (b"src/main.py", False),
        (b"tmp", True),
        (b".git/refs/heads/x.tmp", False),
        (b"sub/.git/refs/heads/node_modules/x", False),
        (b".gitignore", False),
    ],
)
def test_not_local_by_default(path: bytes, is_dir: bool) -> None:
    assert not Policies().is_local(path, is_dir)
    assert not Policies().is_left_out(path, is_dir)


def test_a_setting_adds_and_takes_back() -> None:
    policies = Policies(local=["!*.tmp", "/scratch/"], pack=["*.bin"], backup_exclude=["*.iso"])
    assert not policies.is_local(b"a.tmp", False)
    assert policies.is_local(b"scratch/x", False)
    assert not policies.is_local(b"a/scratch/x", False)
    assert policies.is_packed(b"a/b.bin", False)
    assert policies.is_left_out(b"a.iso", False)
    assert policies.is_left_out(b"scratch", True)
    assert not policies.is_local(b"a.iso", False)


def test_many_directories_are_forgotten_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3ws_fs.core.policies._KNOWN_DIRS_MAX", 4)
    patterns = Patterns(["d3/"])
    for _ in range(2):
        for number in range(10):
            assert patterns.match(b"d%d/x" % number, False) == (number == 3)
    assert len(patterns._dirs) <= 4


def test_limits() -> None:
    Patterns(["a"] * PATTERNS_MAX)
    Patterns(["a" * PATTERN_BYTES_MAX])
    for over in (["a"] * (PATTERNS_MAX + 1), ["a" * (PATTERN_BYTES_MAX + 1)]):
        with pytest.raises(UserError) as caught:
            Patterns(over)
        assert caught.value.exit_code == ExitCode.BAD_SETTINGS


def test_patterns_of_a_setting() -> None:
    assert split_patterns("a;b/\n!c d\n\n ; ;#e") == ("a", "b/", "!c d", "#e")
    assert split_patterns("") == ()

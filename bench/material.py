"""What the workloads work on: file contents, a source tree, a git repository and a tar archive.

1. All of it follows from the seed: two runs with one seed work on the same bytes.
2. Text is words, not random bytes: git and tar meet what they meet in real trees.
3. The tree, repository and archive are made once a run, outside of every target and every timing.

Called by bench.runner and bench.workloads.
"""

from __future__ import annotations

import os
import random
import subprocess
import tarfile
from pathlib import Path
from typing import Final

_SYLLABLES: Final = (
    *("ka", "lo", "mi", "ren", "tu", "sa", "vo", "ne", "pra", "dis"),
    *("cor", "el", "un", "fa", "gi", "to", "be", "ze", "qui", "ox"),
)
_SUFFIXES: Final = (".py", ".py", ".py", ".txt", ".html", ".po", ".json", ".md")
FILES_PER_DIRECTORY: Final = 12
SYMLINK_EVERY: Final = 80
GIT_TIMEOUT_S: Final = 300.0


def words(rng: random.Random, length_bytes: int) -> bytes:
    """Text of exactly `length_bytes`, in lines."""
    vocabulary = ["".join(rng.choices(_SYLLABLES, k=rng.randint(1, 4))) for _ in range(200)]
    parts: list[str] = []
    size = 0
    while size < length_bytes:
        line = " ".join(rng.choices(vocabulary, k=9)) + "\n"
        parts.append(line)
        size += len(line)
    return "".join(parts).encode("ascii")[:length_bytes]


def small_bodies(seed: int, count: int) -> list[bytes]:
    """`count` contents of 1 to 8 KiB."""
    rng = random.Random(seed)
    pool = words(rng, 256 * 1024)
    bodies = []
    for _ in range(count):
        size = rng.randint(1024, 8192)
        start = rng.randrange(len(pool) - size)
        bodies.append(pool[start : start + size])
    return bodies


def source_tree(root: Path, seed: int, files: int) -> None:
    """A tree like a source distribution: `files` files, most below 8 KiB, a few symlinks."""
    rng = random.Random(seed)
    directories = [root]
    for _ in range(max(1, files // FILES_PER_DIRECTORY)):
        directory = rng.choice(directories) / rng.choice(_SYLLABLES)
        directory.mkdir(parents=True, exist_ok=True)
        directories.append(directory)
    for number in range(files):
        path = rng.choice(directories) / f"file{number}{rng.choice(_SUFFIXES)}"
        if number % SYMLINK_EVERY == SYMLINK_EVERY - 1:
            path.symlink_to(f"file{number - 1}.py")
            continue
        path.write_bytes(words(rng, min(256 * 1024, int(rng.lognormvariate(7.8, 1.2)) + 1)))


def git_environment() -> dict[str, str]:
    """The environment without anybody's git settings; author and dates are fixed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return {
        **kept,
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_AUTHOR_NAME": "bench",
        "GIT_AUTHOR_EMAIL": "bench@localhost",
        "GIT_COMMITTER_NAME": "bench",
        "GIT_COMMITTER_EMAIL": "bench@localhost",
        "GIT_AUTHOR_DATE": "2024-01-01T00:00:00Z",
        "GIT_COMMITTER_DATE": "2024-01-01T00:00:00Z",
        "LC_ALL": "C",
    }


def run_quietly(command: list[str], cwd: Path) -> bytes:
    """Run a program and return its output. Raises RuntimeError with what it said."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=git_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=GIT_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        # The first one says what began it, the last one what came of it.
        said = " … ".join(dict.fromkeys((lines or [""])[:: max(1, len(lines) - 1)]))
        name = f"{Path(command[0]).name} {command[1]}"
        raise RuntimeError(f"{name} ended with {done.returncode}: {said}")
    return done.stdout


def make(base: Path, seed: int, repo_files: int, tar_files: int) -> None:
    """`base`/repo (a packed repository with one commit) and `base`/tree.tar."""
    repo = base / "repo"
    repo.mkdir(parents=True)
    source_tree(repo, seed, repo_files)
    for command in (
        ["git", "-c", "init.defaultBranch=main", "init", "-q"],
        ["git", "add", "-A"],
        ["git", "commit", "-q", "-m", "the tree"],
        ["git", "gc", "-q"],
    ):
        run_quietly(command, repo)
    tree = base / "tree"
    tree.mkdir()
    source_tree(tree, seed + 1, tar_files)
    with tarfile.open(base / "tree.tar", "w") as archive:
        archive.add(tree, "tree")

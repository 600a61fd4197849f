"""Real programs at work in a directory, each with its own check that it worked.

Invariants
1. Every function works in a new directory below `top`, which may be any filesystem, and raises
   AssertionError with what the program said when something is not as it must be.
2. No network, no global configuration of git or pip.

Called by tests/e2e and scripts/acceptance.py.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

from tests.support import trees

COMMAND_S_MAX: Final = 900.0

GIT_ENV: Final = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "Test",
    "GIT_AUTHOR_EMAIL": "test@example.invalid",
    "GIT_COMMITTER_NAME": "Test",
    "GIT_COMMITTER_EMAIL": "test@example.invalid",
    "GIT_TERMINAL_PROMPT": "0",
}

C_HEADER: Final = '#define GREETING "compiled on the mount"\nint twice(int);\n'
C_TWICE: Final = '#include "greeting.h"\nint twice(int n) { return 2 * n; }\n'
C_MAIN: Final = """\
#include <stdio.h>
#include "greeting.h"
int main(void) { printf("%s %d\\n", GREETING, twice(21)); return 0; }
"""


def run(
    *command: str | os.PathLike[str],
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    ok: tuple[int, ...] = (0,),
) -> str:
    """Run a program to its end; its output (both streams). AssertionError for another status."""
    done = subprocess.run(
        [os.fspath(word) for word in command],
        cwd=cwd,
        env={**os.environ, **GIT_ENV, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=COMMAND_S_MAX,
        check=False,
    )
    text = done.stdout.decode(errors="replace")
    assert done.returncode in ok, f"{command}: exit status {done.returncode}\n{text[-4000:]}"
    return text


# --- git -----------------------------------------------------------------------------------------


def make_repository(tree: Path) -> int:
    """Commit `tree` into a packed git repository in place; returns the number of files."""
    run("git", "init", "-q", "-b", "main", ".", cwd=tree)
    # -f: a project's own .gitignore must not make the repository smaller than the tree.
    run("git", "add", "-A", "-f", ".", cwd=tree)
    run("git", "commit", "-q", "-m", "everything", cwd=tree)
    run("git", "repack", "-adq", cwd=tree)
    return len(run("git", "ls-files", "-z", cwd=tree).split("\0")) - 1


def git_clone(repository: Path, top: Path) -> Path:
    """Clone onto the directory under test."""
    clone = top / "clone"
    run("git", "clone", "-q", repository, clone)
    return clone


def check_clone(repository: Path, clone: Path) -> None:
    """The clone is clean, sound, and equal to its origin."""
    status = run("git", "status", "--porcelain", "--ignored", cwd=clone)
    assert status == "", f"git status is not clean:\n{status[:2000]}"
    fsck = run("git", "fsck", "--full", "--no-progress", cwd=clone)
    assert fsck.strip() == "", f"git fsck is not clean:\n{fsck[:2000]}"
    heads = [run("git", "rev-parse", "HEAD^{tree}", cwd=path) for path in (repository, clone)]
    assert heads[0] == heads[1]
    assert diff(repository, clone, "-x", ".git") == ""


def git_commit(clone: Path) -> None:
    """A change, a branch, a commit, a merge: what an agent does in a repository."""
    run("git", "switch", "-q", "-c", "work", cwd=clone)
    (clone / "made here.txt").write_text("a new file\n")
    victim = next(path for path in sorted(clone.rglob("*.py")) if ".git" not in path.parts)
    victim.write_text(victim.read_text(errors="surrogateescape") + "# changed\n")
    run("git", "add", "-A", cwd=clone)
    run("git", "commit", "-q", "-m", "a change", cwd=clone)
    run("git", "switch", "-q", "main", cwd=clone)
    run("git", "merge", "-q", "--no-ff", "-m", "merge", "work", cwd=clone)
    run("git", "gc", "-q", cwd=clone)
    assert run("git", "status", "--porcelain", cwd=clone) == ""
    assert run("git", "fsck", "--full", "--no-progress", cwd=clone).strip() == ""
    assert (clone / "made here.txt").read_text() == "a new file\n"


# --- comparison ----------------------------------------------------------------------------------

_SAME_SPECIAL: Final = re.compile(
    rb"File .* is a (fifo|socket|character special file|block special file)"
    rb" while file .* is a \1\n?",
    re.DOTALL,
)


def diff(one: Path, other: Path, *options: str) -> str:
    """What `diff -r --no-dereference` says; "" for no difference.

    diff calls any two fifos (and sockets) different; such lines are left out, their type and mode
    are the manifest's business.
    """
    done = subprocess.run(
        ["diff", "-r", "--no-dereference", *options, one, other],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=COMMAND_S_MAX,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    assert done.returncode in (0, 1), done.stderr.decode(errors="replace")
    lines = re.split(rb"\n(?=File |Only in |diff |Binary |Symbolic )", done.stdout)
    kept = [line for line in lines if line and not _SAME_SPECIAL.fullmatch(line)]
    return b"\n".join(kept).decode(errors="replace")


# --- tar -----------------------------------------------------------------------------------------


def make_tar(tree: Path, archive: Path) -> None:
    """A pax archive of `tree` with everything that tar can carry."""
    run(
        "tar", "--format=posix", "--xattrs", "--xattrs-include=*", "--sparse", "--numeric-owner",
        "-cf", archive, "-C", tree.parent, tree.name, ok=(0, 1),
    )  # fmt: skip  # status 1: a socket was left out


def untar(archive: Path, top: Path) -> Path:
    """Unpack with tar; returns the one directory that is in the archive."""
    top.mkdir(parents=True, exist_ok=True)
    before = set(os.listdir(top))
    run("tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", archive, "-C", top)
    (name,) = set(os.listdir(top)) - before
    return top / name


# --- pip -----------------------------------------------------------------------------------------


def make_wheels(directory: Path, *, modules: int = 40) -> list[str]:
    """Two pure wheels, the first needing the second; returns their distribution names."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, needs in (("alpha_e2e", "Requires-Dist: beta-e2e\n"), ("beta_e2e", "")):
        info = f"{name}-1.0.dist-info"
        members = {f"{name}/m{n}.py": f"VALUE = {n}\n" for n in range(modules)}
        members[f"{name}/__init__.py"] = f"NAME = {name!r}\n"
        members[f"{info}/METADATA"] = (
            f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n{needs}"
        )
        members[f"{info}/WHEEL"] = (
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        members[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*members, f"{info}/RECORD"])
        with zipfile.ZipFile(directory / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            for path, text in members.items():
                wheel.writestr(path, text)
    return ["alpha-e2e"]


def have_pip() -> bool:
    """Whether this interpreter can run pip."""
    return importlib.util.find_spec("pip") is not None


def pip_install(wheels: Path, names: list[str], top: Path) -> Path:
    """`pip install --target` from a directory of wheels alone."""
    target = top / "site"
    run(
        sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "install",
        "--quiet", "--no-index", "--no-cache-dir", "--root-user-action=ignore",
        "--find-links", wheels, "--target", target, *names,
    )  # fmt: skip
    return target


def check_imports(target: Path, modules: list[str]) -> None:
    """Import from the mount, in a process that sees nothing else of that name."""
    program = (
        "import importlib, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "for name in sys.argv[2:]:\n"
        "    module = importlib.import_module(name)\n"
        "    assert module.__file__.startswith(sys.argv[1]), module.__file__\n"
        "    print(name, 'ok')\n"
    )
    output = run(sys.executable, "-I", "-c", program, target, *modules)
    assert output.split("\n")[:-1] == [f"{name} ok" for name in modules], output


# --- sqlite --------------------------------------------------------------------------------------


def sqlite_work(top: Path, journal_mode: str, *, transactions: int) -> Path:
    """So many separate transactions of insert, update and delete; returns the database."""
    database = top / f"{journal_mode}.db"
    connection = sqlite3.connect(database, isolation_level=None)
    try:
        (mode,) = connection.execute(f"pragma journal_mode = {journal_mode}").fetchone()
        assert mode == journal_mode, mode
        connection.execute("create table t (id integer primary key, body blob, n integer)")
        for number in range(transactions):
            connection.execute("begin immediate")
            body = bytes([number % 256]) * (50 + number % 700)
            connection.execute("insert into t values (?, ?, 0)", (number, body))
            connection.execute("update t set n = n + 1 where id = ?", (number // 2,))
            if number % 10 == 9:
                connection.execute("delete from t where id = ?", (number - 5,))
            connection.execute("commit")
    finally:
        connection.close()
    return database


def check_sqlite(database: Path, *, transactions: int) -> None:
    """Sound, with the rows that the transactions left."""
    connection = sqlite3.connect(f"file:{database}?mode=rw", uri=True)
    try:
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
        (rows,) = connection.execute("select count(*) from t").fetchone()
        assert rows == transactions - transactions // 10, rows
        (last,) = connection.execute("select max(id) from t").fetchone()
        assert last == transactions - 1
    finally:
        connection.close()


# --- C -------------------------------------------------------------------------------------------


def c_compiler() -> str | None:
    """A C compiler, if there is one."""
    return shutil.which("cc") or shutil.which("gcc")


def compile_and_run(top: Path) -> str:
    """Two sources, an object each, linked and run where they stand; returns what it printed."""
    compiler = c_compiler()
    assert compiler is not None
    project = top / "c project"
    project.mkdir()
    for name, text in (("greeting.h", C_HEADER), ("twice.c", C_TWICE), ("main.c", C_MAIN)):
        (project / name).write_text(text)
    for source in ("twice", "main"):
        run(compiler, "-Wall", "-O1", "-c", f"{source}.c", "-o", f"{source}.o", cwd=project)
    run(compiler, "main.o", "twice.o", "-o", "program", cwd=project)
    output = run(project / "program")
    assert output == "compiled on the mount 42\n", output
    return output


# --- copies --------------------------------------------------------------------------------------


def copy_tree(source: Path, top: Path) -> Path:
    """`cp -a` and proof that the copy is the tree."""
    run("cp", "-a", source, top / source.name)
    copy = top / source.name
    found = trees.differences(
        trees.manifest(source), trees.manifest(copy), ignore=trees.OTHER_FILESYSTEM
    )
    assert not found, "\n".join(found[:30])
    return copy


def many_small_files(top: Path, *, count: int) -> int:
    """`count` files of 1 to 8 KiB in one directory; returns their bytes in all."""
    top.mkdir()
    total = 0
    for number in range(count):
        size = 1024 + (number * 2654435761) % (7 * 1024 + 1)
        (top / f"small {number:05d}").write_bytes(number.to_bytes(4, "big") * (size // 4))
        total += size // 4 * 4
    return total

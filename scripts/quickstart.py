"""The demonstration: a workspace that survives the loss of its host, shown with real programs.

1. Everything it makes stands in .demo/ of the clone and is gone afterwards, also after a failure
   (--keep keeps it; --play leaves a mounted workspace in .demo/play).
2. The comparison is its own: a manifest of type, mode, owner, size, modification time in ns, links,
   extended attributes, symlink target and SHA-256, taken before and after; not a message of s3ws.
3. The user's own settings play no part: WORKSPACE_*, AWS_* and FILE_STORE* are taken out first.

Called by ./quickstart, which has installed what it needs. Exit code 0: no difference.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import FrameType

CLONE = Path(__file__).resolve().parent.parent
S3WS = Path(sys.executable).parent / "s3ws"
COMMAND_S_MAX = 300
LISTED_MAX = 40
BIG_FILE_BYTES = 5 << 20

PROGRAM = '''\
"""Counts the words of its own source and writes the answer as JSON."""
import collections, json, pathlib

words = collections.Counter(pathlib.Path(__file__).read_text().split())
pathlib.Path("words.json").write_text(json.dumps(words, sort_keys=True, indent=1))
print(len(words), "different words")
'''

SQL = """
pragma journal_mode = wal;
create table notes (id integer primary key, text text not null);
with recursive n(i) as (select 1 union all select i + 1 from n where i < 1000)
    insert into notes select i, 'note number ' || i from n;
select count(*) || ' rows' from notes;
"""


class DemoError(Exception):
    """The demonstration can't go on, or has found a difference."""


class Demo:
    """One workspace below `base`: a store, a cache and a mount point."""

    def __init__(self, base: Path, conversation_id: str) -> None:
        self.base = base
        self.store = base / "store"
        self.cache = base / "cache"
        self.mount_dir = base / "workspace"
        self.settings = {
            "WORKSPACE_STORAGE_TYPE": "local",
            "WORKSPACE_STORAGE_PATH": str(self.store),
            "WORKSPACE_CACHE_DIR": str(self.cache),
            "WORKSPACE_USER_ID": "demo",
            "WORKSPACE_CONVERSATION_ID": conversation_id,
        }
        others = ("WORKSPACE_", "AWS_", "FILE_STORE")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(others)}
        self.env = {**kept, **self.settings}
        for place in (self.store, self.cache, self.mount_dir):
            place.mkdir(parents=True, exist_ok=True)

    def run(self, *command: str | Path, cwd: Path | None = None, stdin: str | None = None) -> str:
        """Show a command and its output (of s3ws without its progress); DemoError if it fails."""
        words = [str(word) for word in command]
        shown = ["s3ws" if word == str(S3WS) else word for word in words]
        print(f"   $ {shlex.join(shown).replace(f'{CLONE}/', '')}", flush=True)
        try:
            done = subprocess.run(
                words,
                cwd=cwd or CLONE,
                env=self.env,
                input=stdin,
                stdin=subprocess.DEVNULL if stdin is None else None,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE if command[0] == S3WS else subprocess.STDOUT,
                text=True,
                timeout=COMMAND_S_MAX,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise DemoError(f"{shown[0]}: {exc}") from exc
        for line in done.stdout.splitlines():
            print(f"     {line}")
        if done.returncode:
            print(textwrap.indent(done.stderr or "", "     "), end="")
            raise DemoError(f"{shown[0]} ended with exit code {done.returncode}")
        return done.stdout

    def mount(self) -> None:
        began = time.monotonic()
        self.run(S3WS, "mount", self.mount_dir)
        if not is_mounted(self.mount_dir):
            raise DemoError(f"s3ws mount returned, but nothing is mounted at {self.mount_dir}")
        print(f"     mounted and ready after {time.monotonic() - began:.2f} s")

    def umount(self) -> None:
        self.run(S3WS, "umount", self.mount_dir)
        if is_mounted(self.mount_dir):
            raise DemoError("s3ws umount returned, but the workspace is still mounted")

    def end(self, *, keep: bool) -> None:
        """Leave nothing behind, whatever happened."""
        if is_mounted(self.mount_dir):
            subprocess.run(
                [S3WS, "umount", self.mount_dir], env=self.env, check=False, timeout=COMMAND_S_MAX
            )
        if is_mounted(self.mount_dir):
            lazily = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-uz"]
            subprocess.run([*lazily, str(self.mount_dir)], check=False)
        if keep:
            print(f"kept: {self.base}")
        elif is_mounted(self.mount_dir):
            print(f"still mounted, so not deleted: {self.mount_dir}", file=sys.stderr)
        else:
            shutil.rmtree(self.base, ignore_errors=True)
            with contextlib.suppress(OSError):  # a workspace to play in stays there
                self.base.parent.rmdir()


def is_mounted(path: Path) -> bool:
    """Also true for a mount whose daemon is dead, where stat fails."""
    text = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    wanted = str(path).replace("\\", "\\134").replace(" ", "\\040")
    return any(line.split()[4] == wanted for line in text.splitlines())


def manifest(top: Path) -> dict[str, dict[str, object]]:
    """What makes a file the same file, for every entry of a tree by its relative path."""
    entries: dict[str, dict[str, object]] = {}
    for directory, names, files in os.walk(top):
        for name in [".", *names, *files]:
            if name == "." and directory != str(top):
                continue
            path = os.path.join(directory, name)
            entries[os.path.relpath(path, top)] = describe(path)
    return entries


def describe(path: str) -> dict[str, object]:
    st = os.lstat(path)
    entry: dict[str, object] = {
        "mode": stat.filemode(st.st_mode),
        "owner": (st.st_uid, st.st_gid),
        "mtime_ns": st.st_mtime_ns,
        "links": st.st_nlink if stat.S_ISREG(st.st_mode) else None,
        "xattrs": {
            name: os.getxattr(path, name, follow_symlinks=False).hex()
            for name in sorted(os.listxattr(path, follow_symlinks=False))
        },
    }
    if stat.S_ISREG(st.st_mode):
        with open(path, "rb") as file:
            entry["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
        entry["size"] = st.st_size
    elif stat.S_ISLNK(st.st_mode):
        entry["target"] = os.readlink(path)
    return entry


def differences(
    before: dict[str, dict[str, object]], after: dict[str, dict[str, object]]
) -> list[str]:
    found = []
    for path in sorted(before.keys() | after.keys()):
        old, new = before.get(path), after.get(path)
        if old is None or new is None:
            found.append(f"{path!r}: {'appeared' if old is None else 'is missing'}")
            continue
        found += [
            f"{path!r}: {what} was {old.get(what)}, is {new.get(what)}"
            for what in sorted(old.keys() | new.keys())
            if old.get(what) != new.get(what)
        ]
    return found


def work(demo: Demo) -> None:
    """What an agent does in a workspace, and a few things only a real filesystem can do."""
    top = demo.mount_dir
    project = top / "project"
    (project / "src").mkdir(parents=True)
    (project / "src" / "count.py").write_text(PROGRAM)
    (project / "README").write_text("A project in a workspace.\n")
    demo.run("git", "init", "-q", "-b", "main", ".", cwd=project)
    demo.run("git", "add", "-A", cwd=project)
    me = ("-c", "user.name=Demo", "-c", "user.email=demo@example.invalid")
    demo.run("git", *me, "commit", "-q", "-m", "first commit", cwd=project)
    demo.run("git", "log", "--oneline", "--stat", cwd=project)
    demo.run(sys.executable, "src/count.py", cwd=project)
    demo.run("sqlite3", "notes.db", cwd=top, stdin=SQL)

    print("   and: a 5 MiB file, a sparse file, links, odd modes, an odd name, an xattr")
    (top / "big.bin").write_bytes(os.urandom(BIG_FILE_BYTES))
    with (top / "sparse.img").open("wb") as file:
        file.truncate(16 << 20)
        file.seek(9 << 20)
        file.write(b"an island in a sea of nothing")
    (top / "run.sh").write_text("#!/bin/sh\necho it runs\n")
    (top / "run.sh").chmod(0o750)
    demo.run(top / "run.sh")
    os.link(top / "run.sh", top / "run-too.sh")
    (top / "latest").symlink_to("project/README")
    (top / "empty" / "directory").mkdir(parents=True)
    Path(os.fsdecode(os.fsencode(top) + b"/not utf-8 \xff")).write_text("names are bytes\n")
    os.setxattr(top / "big.bin", "user.origin", b"quickstart")
    os.utime(project / "README", ns=(946684800_000000001, 946684800_123456789))


def show_store(demo: Demo) -> None:
    """The bucket: what a person sees in it."""
    paths = sorted(path for path in demo.store.glob("conversations/**/*") if path.is_file())
    shown = [path for path in paths if "/.git/" not in str(path)]
    workspace = demo.store / "conversations/demo/demo-1/workspace"
    print(f"     {workspace.relative_to(demo.store)}/")
    for path in shown[:LISTED_MAX]:
        print(f"     {path.stat().st_size:>9}  {path.relative_to(workspace)}")
    print(f"     … {len(paths)} objects in all, of which {len(paths) - len(shown)} below .git/")
    original = (demo.mount_dir / "project/src/count.py").read_bytes()
    mirrored = [path for path in paths if path.as_posix().endswith("/files/project/src/count.py")]
    if len(mirrored) != 1 or mirrored[0].read_bytes() != original:
        raise DemoError("files/project/src/count.py in the store is not the file")


def check_alive(demo: Demo) -> None:
    demo.run("git", "status", "--short", "--branch", cwd=demo.mount_dir / "project")
    demo.run("git", "fsck", "--strict", cwd=demo.mount_dir / "project")
    answer = demo.run(
        "sqlite3", "notes.db", "pragma integrity_check; select count(*) from notes;",
        cwd=demo.mount_dir,
    )  # fmt: skip
    if answer.split() != ["ok", "1000"]:
        raise DemoError("the database did not come back")


def demonstrate(demo: Demo) -> None:
    print("1. Mount a new workspace; its bucket is the directory .demo/run/store.")
    demo.mount()
    print("\n2. Work in it.")
    work(demo)
    print("\n3. Sync: everything into the bucket, now.")
    demo.run(S3WS, "sync", demo.mount_dir)
    print("\n   What stands in the bucket:")
    show_store(demo)
    demo.run(S3WS, "status", demo.mount_dir)
    print("\n4. One more change that nobody syncs, then unmount: the final flush takes it along.")
    (demo.mount_dir / "last words").write_text("written just before the end\n")
    before = manifest(demo.mount_dir)
    demo.umount()
    print("\n5. The host is lost: delete the local cache.")
    shutil.rmtree(demo.cache)
    demo.cache.mkdir()
    print("\n6. Mount again, on what could be another host, and compare.")
    demo.mount()
    found = differences(before, manifest(demo.mount_dir))
    check_alive(demo)
    demo.umount()
    if found:
        for line in found[:LISTED_MAX]:
            print(f"   DIFFERENT {line}")
        raise DemoError(f"{len(found)} differences after the restore")
    print(
        f"\nVERDICT: all {len(before)} files, directories and links came back byte for byte,"
        "\n         with their modes, owners, times, links and extended attributes."
    )


def play(demo: Demo) -> None:
    place = demo.mount_dir.relative_to(CLONE)
    if not is_mounted(demo.mount_dir):
        demo.mount()
    command = S3WS.relative_to(CLONE) if S3WS.is_relative_to(CLONE) else S3WS
    print(f"""
Your workspace is mounted:    cd {place}
What is saved, what is not:   {command} status {place}
Everything into the bucket:   {command} sync {place}
The bucket, for any tool:     {demo.store.relative_to(CLONE)}
Unmount, with a final flush:  {command} umount {place}

`./quickstart --play` mounts it again, with what you left in it.""")


def stop(signum: int, _frame: FrameType | None) -> None:
    raise DemoError(f"ended by {signal.Signals(signum).name}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="quickstart", description="the demonstration of s3ws-fs")
    parser.add_argument("--play", action="store_true", help="leave a workspace mounted")
    parser.add_argument("--keep", action="store_true", help="keep .demo/run for a look at it")
    parser.add_argument("word", nargs="?", choices=["play"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not os.path.exists("/dev/fuse"):
        print(
            "quickstart: there is no /dev/fuse here, so nothing can be mounted.\n"
            "On a host: modprobe fuse. In a container: start it with\n"
            "--device /dev/fuse --cap-add SYS_ADMIN.",
            file=sys.stderr,
        )
        return 10
    if args.play or args.word:
        try:
            play(Demo(CLONE / ".demo/play", "play"))
        except (DemoError, OSError) as exc:
            print(f"quickstart: {exc}", file=sys.stderr)
            return 1
        return 0
    if is_mounted(CLONE / ".demo/run/workspace"):
        print("quickstart: another demonstration is mounted at .demo/run", file=sys.stderr)
        return 5
    shutil.rmtree(CLONE / ".demo/run", ignore_errors=True)
    demo = Demo(CLONE / ".demo/run", "demo-1")
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    began = time.monotonic()
    try:
        demonstrate(demo)
    except (DemoError, OSError) as exc:
        print(f"\nVERDICT: FAILED: {exc}", flush=True)
        return 1
    finally:
        demo.end(keep=args.keep)
    print(f"         {time.monotonic() - began:.1f} s in all. Now try ./quickstart --play")
    return 0


if __name__ == "__main__":
    sys.exit(main())

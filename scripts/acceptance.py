"""The acceptance run: real programs on a real mount over a real S3 server, with figures.

    python -m scripts.acceptance            everything (some minutes), SeaweedFS on loopback
    python -m scripts.acceptance --only kill --rounds 100 --seed 7

1. Every part has a check of its own that knows nothing of s3ws (tests/support); the table at the
   end says what was run, how long it took, and what failed. Exit code 0: nothing failed.
2. Everything stands below one scratch directory, which goes afterwards (--keep keeps it).
3. The repository is made from a Django sdist that pip fetches; where it can't, from a generated
   tree, and the reason is printed.

Called by a person, or by `make acceptance`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from s3ws_fs.control import client
from s3ws_fs.core.errors import UserError
from tests.support import extractor, programs, trees
from tests.support.buckets import Bucket, LocalBucket, S3Bucket, mirror_differences
from tests.support.host import NEVER_BY_ITSELF, Host
from tests.support.seaweed import running_seaweed

BIG_BYTES: Final = 200 << 20
TRANSACTIONS: Final = 1000
SMALL_FILES: Final = 2000
SOURCE_FILES_MIN: Final = 1500
FALLBACK_FILES: Final = 1600
KILL_TAR_FILES_MAX: Final = 2000
PURE_WHEELS: Final = ("rich", "click", "requests", "attrs")
IMPORTS: Final = ("rich.table", "click", "requests", "attr", "idna")
QUOTA_MB: Final = 4096
FETCH_S_MAX: Final = 300.0
POLL_S: Final = 0.02
SHOWN_DIFFERENCES: Final = 20

SETTINGS: Final = {"WORKSPACE_MAX_SIZE_MB": str(QUOTA_MB)}
OFTEN: Final = {"WORKSPACE_SYNC_DEBOUNCE_MIN": "0.2", "WORKSPACE_SYNC_DEBOUNCE_MAX": "2"}


class _PartEndedError(Exception):
    """A vital step failed; its row says why."""


@dataclass
class Run:
    """What the parts share: scratch directory, bucket, options, and the table they fill."""

    base: Path
    bucket: Bucket
    rounds: int
    seed: int
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    failed: int = 0

    def row(self, what: str, figure: str, verdict: str = "ok") -> None:
        """One line of the table, shown at once too."""
        self.rows.append((what, figure, verdict))
        self.failed += verdict != "ok"
        print(f"  {verdict:<6} {what}: {figure}", flush=True)

    @contextlib.contextmanager
    def step(self, what: str, note: str = "", *, vital: bool = False) -> Iterator[list[str]]:
        """Time a step; a failed check is a row, not the end. The list takes further figures.

        When a `vital` one fails, the part ends: nothing after it would mean anything.
        """
        began = time.monotonic()
        figures = [note] if note else []
        try:
            yield figures
        except (AssertionError, OSError, UserError, subprocess.SubprocessError) as exc:
            lines = str(exc).splitlines() or [type(exc).__name__]
            print("".join(traceback.format_exception(exc)), file=sys.stderr)
            self.row(what, lines[0][:160], "FAILED")
            if vital:
                raise _PartEndedError(what) from exc
        else:
            taken = f"{time.monotonic() - began:.2f} s"
            self.row(what, ", ".join([taken, *figures]))

    @contextlib.contextmanager
    def host(self, name: str, **options: Any) -> Iterator[Host]:
        """A host whose name is also its conversation's, unless said otherwise; ended for sure."""
        settings = SETTINGS | options.pop("settings", {})
        conversation = options.pop("conversation", name)
        host = Host(
            self.base / "hosts" / name,
            self.bucket.env,
            conversation=conversation,
            settings=settings,
            **options,
        )
        try:
            yield host
        finally:
            host.end()


# --- what the parts work on ----------------------------------------------------------------------


def source_tree(base: Path) -> tuple[Path, str]:
    """A project's tree of at least SOURCE_FILES_MIN files, and what it is."""
    downloads = base / "downloads"
    try:
        subprocess.run(
            [
                sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet",
                "--no-binary", ":all:", "--no-deps", "--dest", downloads, "django",
            ],
            check=True, capture_output=True, timeout=FETCH_S_MAX, text=True,
        )  # fmt: skip
        (sdist,) = downloads.glob("*.tar.gz")
        # git refuses a tree that belongs to somebody else, and root's tar would keep the owner.
        programs.run("tar", "--no-same-owner", "-xzf", sdist, "-C", base)
        name = sdist.name.removesuffix(".tar.gz")
        return base / name, f"the sdist {name}"
    except (subprocess.SubprocessError, OSError, ValueError, AssertionError) as exc:
        said = (getattr(exc, "stderr", "") or str(exc)).strip().splitlines()
        reason = said[-1] if said else type(exc).__name__
        print(f"no Django sdist ({reason}); a generated tree takes its place", flush=True)
        trees.build_source_tree(base / "project", files=FALLBACK_FILES)
        return base / "project", f"a generated tree of {FALLBACK_FILES} files"


def wheels(base: Path) -> tuple[Path, list[str], tuple[str, ...], str]:
    """A directory of wheels, what to install, what to import, and what it is."""
    directory = base / "wheels"
    try:
        subprocess.run(
            [
                sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet",
                "--only-binary", ":all:", "--dest", directory, *PURE_WHEELS,
            ],
            check=True, capture_output=True, timeout=FETCH_S_MAX, text=True,
        )  # fmt: skip
        count = len(list(directory.glob("*.whl")))
        return directory, list(PURE_WHEELS), IMPORTS, f"{count} wheels: {' '.join(PURE_WHEELS)}"
    except (subprocess.SubprocessError, OSError) as exc:
        said = (getattr(exc, "stderr", "") or str(exc)).strip().splitlines()
        print(f"no wheels ({said[-1] if said else exc}); made ones take their place", flush=True)
        names = programs.make_wheels(directory)
        return directory, names, ("alpha_e2e", "beta_e2e.m7"), "2 made wheels"


def timed(action: Callable[[], object]) -> float:
    """Seconds that `action` took."""
    began = time.monotonic()
    action()
    return time.monotonic() - began


# --- programs, and the way to another host and back ----------------------------------------------


def work(run: Run) -> None:
    """All programs on one mount, then sync, unmount, delete the cache, mount, compare."""
    native = run.base / "native"
    native.mkdir()
    tree, what = source_tree(run.base)
    programs.run("tar", "-cf", run.base / "project.tar", "-C", tree.parent, tree.name)
    files = programs.make_repository(tree)
    assert files >= SOURCE_FILES_MIN, files
    with run.host("work", settings=NEVER_BY_ITSELF) as host:
        top = host.mountpoint
        with run.step("mount, new workspace", vital=True):
            host.mount()
        git(run, tree, top, native, f"{files} files of {what}")
        pip(run, top)
        tar(run, top, native)
        for mode in ("delete", "wal"):
            with run.step(f"sqlite3 {mode.upper()}, {TRANSACTIONS} transactions") as figures:
                taken = timed(lambda: programs.sqlite_work(native, mode, transactions=TRANSACTIONS))  # noqa: B023
                figures.append(f"native {taken:.2f} s")
                database = programs.sqlite_work(top, mode, transactions=TRANSACTIONS)
                programs.check_sqlite(database, transactions=TRANSACTIONS)
        with run.step("C program compiled and run on the mount"):
            programs.compile_and_run(top)
        rich = run.base / "rich"
        left_out = trees.build_rich_tree(rich, big_bytes=BIG_BYTES)
        with run.step("cp -a of the rich tree with a 200 MiB file") as figures:
            programs.copy_tree(rich, top)
            figures.append("left out: " + (", ".join(left_out) or "nothing"))
        there_and_back(run, host, {"clone": tree, "rich": rich})


def git(run: Run, tree: Path, top: Path, native: Path, note: str) -> None:
    """Clone, status, fsck."""
    taken = timed(lambda: programs.git_clone(tree, native))
    with run.step("git clone", f"{note}, native {taken:.2f} s"):
        clone = programs.git_clone(tree, top)
    with run.step("git status and fsck clean, diff -r equal"):
        programs.check_clone(tree, clone)


def pip(run: Run, top: Path) -> None:
    """Install and import."""
    if not programs.have_pip():
        run.row("pip install --target", "this environment has no pip", "SKIPPED")
        return
    directory, names, modules, what = wheels(run.base)
    taken = timed(lambda: programs.pip_install(directory, names, run.base / "native"))
    with run.step("pip install --target", f"{what}, native {taken:.2f} s"):
        target = programs.pip_install(directory, names, top)
    with run.step("import of what was installed"):
        programs.check_imports(target, list(modules))


def tar(run: Run, top: Path, native: Path) -> None:
    """Unpack on both sides and compare."""
    archive = run.base / "project.tar"
    taken = timed(lambda: programs.untar(archive, native / "untarred"))
    with run.step("tar xf", f"native {taken:.2f} s"):
        ours = programs.untar(archive, top / "untarred")
    with run.step("tar: diff -r and metadata equal to the native copy"):
        (theirs,) = (native / "untarred").iterdir()
        assert programs.diff(theirs, ours) == ""
        found = trees.differences(
            trees.manifest(theirs), trees.manifest(ours), ignore=trees.OTHER_FILESYSTEM
        )
        assert not found, "\n".join(found[:SHOWN_DIFFERENCES])


def there_and_back(run: Run, host: Host, originals: dict[str, Path]) -> None:
    """Sync; the mirror; unmount; lose the cache; mount; compare with before and with natives."""
    top = host.mountpoint
    with run.step("sync of all that") as figures:
        figures += watched_sync(host)
        figures.append(f"daemon holds {private_memory_mib(host.pid())} MiB of its own")
    before = trees.manifest(top)
    names = f"{len(before)} names, {sum(node.size for node in before.values()) >> 20} MiB"
    with run.step("mirror objects equal the files (plain client)") as figures:
        unmirrored = host.unmirrored()
        found = mirror_differences(run.bucket, host.prefix, before, unmirrored)
        assert not found, "\n".join(found[:SHOWN_DIFFERENCES])
        figures.append(f"{names}, {len(unmirrored)} without a key, as status says")
    with run.step("umount", vital=True):
        host.umount()
    host.lose_cache()
    with run.step("mount with the cache deleted", vital=True):
        host.mount()
    with run.step("metadata and bytes equal after the loss", names):
        found = trees.differences(before, trees.manifest(top))
        assert not found, "\n".join(found[:SHOWN_DIFFERENCES])
    with run.step("diff -r --no-dereference with the originals"):
        for name, original in originals.items():
            found_by_diff = programs.diff(original, top / name, "-x", ".git")
            assert not found_by_diff, found_by_diff[:2000]
    with run.step("git, sqlite and the C program still work there"):
        programs.check_clone(originals["clone"], top / "clone")
        for mode in ("delete", "wal"):
            programs.check_sqlite(top / f"{mode}.db", transactions=TRANSACTIONS)
        assert "42" in programs.run(top / "c project" / "program")
    with run.step("umount again"):
        host.umount()


# --- many small files ----------------------------------------------------------------------------


def small(run: Run) -> None:
    """2,000 files of 1 to 8 KiB: requests and seconds to sealed, and to mirrored."""
    with run.host("small", settings=NEVER_BY_ITSELF) as host:
        host.mount()
        with run.step(f"create {SMALL_FILES} files of 1 to 8 KiB") as figures:
            total = programs.many_small_files(host.mountpoint / "many", count=SMALL_FILES)
            figures.append(f"{total / (1 << 20):.1f} MiB")
        objects = len(run.bucket.listing(host.prefix + "journal/"))
        with run.step("their sync") as figures:
            figures += watched_sync(host)
            added = len(run.bucket.listing(host.prefix + "journal/")) - objects
            figures.append(f"{added} objects in the journal")
        with run.step("their mirror equals the files"):
            found = mirror_differences(
                run.bucket, host.prefix, trees.manifest(host.mountpoint), set()
            )
            assert not found, "\n".join(found[:SHOWN_DIFFERENCES])
        host.umount()


def watched_sync(host: Host) -> list[str]:
    """Sync, and look on: when all was sealed, when mirrored, and the requests of each part."""
    before = host.status()
    head = before["generation"]["head"]
    began = time.monotonic()
    failure: list[Exception] = []

    def sync() -> None:
        try:
            client.request(host.socket_path, "sync", timeout_s=None)
        except Exception as exc:
            failure.append(exc)

    thread = threading.Thread(target=sync)
    thread.start()
    sealed: tuple[float, dict[str, int]] | None = None
    while True:
        ended = not thread.is_alive()
        status = client.request(host.socket_path, "status")
        if sealed is None and status["generation"]["sealed"] >= head:
            sealed = (time.monotonic() - began, status["requests"])
        if ended:
            break
        time.sleep(POLL_S)
    thread.join()
    if failure:
        raise failure[0]
    mirrored_s = time.monotonic() - began
    assert sealed is not None, "sync returned, but it is not sealed"
    assert status["generation"]["mirrored"] >= head
    return [
        f"sealed after {sealed[0]:.2f} s, {_requests(before['requests'], sealed[1])}",
        f"mirrored after {mirrored_s:.2f} s, {_requests(before['requests'], status['requests'])}",
    ]


def private_memory_mib(pid: int) -> int:
    """Resident memory of a process without the pages of files, which the cache's are."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("RssAnon:"))


def _requests(before: dict[str, int], after: dict[str, int]) -> str:
    """Requests made between two status documents, by kind."""
    made = {name: after[name] - before.get(name, 0) for name in after}
    kinds = " ".join(f"{name} {count}" for name, count in made.items() if count)
    return f"{sum(made.values())} requests ({kinds or 'none'})"


# --- SIGKILL -------------------------------------------------------------------------------------


def kill(run: Run) -> None:
    """SIGKILL the daemon during tar extractions; nothing acknowledged is lost."""
    rng = random.Random(run.seed)
    archive = run.base / "kill.tar"
    members = _kill_tar(run, archive)
    print(f"seed {run.seed}", flush=True)
    with run.host("kill", settings=OFTEN) as host:
        host.mount()
        witnessed = struck = 0
        with run.step(f"SIGKILL during extraction, {run.rounds} times", f"seed {run.seed}") as fig:
            for number in range(run.rounds):
                finished, in_time = _round(host, archive, number, rng, members)
                witnessed += finished
                struck += in_time
            fig.append(
                f"{struck} struck during the extraction, {witnessed} members witnessed, 0 damaged"
            )
            assert struck == run.rounds
        with run.step("the flush of what they left completes"):
            host.sync()
        before = trees.manifest(host.mountpoint)
        with run.step("mirror equals the files", f"{len(before)} names"):
            found = mirror_differences(run.bucket, host.prefix, before, host.unmirrored())
            assert not found, "\n".join(found[:SHOWN_DIFFERENCES])
        host.umount()
        with (
            run.step("a new cache hydrated from the bucket equals the local one"),
            run.host("kill-other", conversation="kill") as other,
        ):
            other.mount()
            found = trees.differences(before, trees.manifest(other.mountpoint))
            assert not found, "\n".join(found[:SHOWN_DIFFERENCES])
            other.umount()


def _kill_tar(run: Run, archive: Path) -> int:
    """A tar for the extractions; returns how many members it has."""
    tree = run.base / "for kill"
    trees.build_source_tree(tree, files=KILL_TAR_FILES_MAX)
    rng = random.Random(run.seed)
    for number in range(20):
        (tree / f"large {number}").write_bytes(rng.randbytes(rng.randrange(1 << 20)))
    programs.run("tar", "-cf", archive, "-C", run.base, tree.name)
    return sum(1 for _ in trees.walk(os.fsencode(tree))) + 1


def _round(
    host: Host, archive: Path, number: int, rng: random.Random, members: int
) -> tuple[int, bool]:
    """One extraction, struck at a random moment: (members witnessed, struck before its end)."""
    directory = host.mountpoint / f"round {number}"
    directory.mkdir()
    fatal = rng.randrange(1, members - 50)
    pause_s = rng.random() * 0.02

    def strike(finished: int) -> None:
        if finished == fatal:
            # Not for synchronisation: it makes the moment a random one within a file.
            time.sleep(pause_s)
            host.kill()

    names, status = extractor.unpack_and_witness(archive, directory, strike)
    host.mount()
    found = extractor.damaged(archive, directory, names)
    assert not found, f"round {number}: " + "\n".join(found[:SHOWN_DIFFERENCES])
    if number >= 2:
        shutil.rmtree(host.mountpoint / f"round {number - 2}")
    if number % 2:
        host.sync()
    print(f"    round {number}: struck after {fatal}, witnessed {len(names)}", flush=True)
    return len(names), status == extractor.FAILED


# --- the run -------------------------------------------------------------------------------------

PARTS: Final[dict[str, Callable[[Run], None]]] = {"work": work, "small": small, "kill": kill}


@contextlib.contextmanager
def _bucket(kind: str, base: Path) -> Iterator[Bucket]:
    if kind == "local":
        (base / "store").mkdir()
        yield LocalBucket(base / "store")
        return
    with running_seaweed(base / "weed") as server:
        bucket = S3Bucket(server)
        try:
            yield bucket
        finally:
            bucket.close()


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m scripts.acceptance", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", choices=sorted(PARTS), action="append")
    parser.add_argument("--store", choices=["seaweed", "local"], default="seaweed")
    parser.add_argument("--rounds", type=int, default=20, help="how often to SIGKILL")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--dir", type=Path, help="scratch directory (default: a temporary one)")
    parser.add_argument("--keep", action="store_true", help="leave the scratch directory")
    options = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="s3ws-acceptance-", dir=options.dir)).resolve()
    (base / "weed").mkdir()
    try:
        with _bucket(options.store, base) as bucket:
            run = Run(base, bucket, options.rounds, options.seed)
            for name in options.only or PARTS:
                print(f"\n{name}", flush=True)
                with contextlib.suppress(_PartEndedError), run.step(f"({name} as a whole)"):
                    PARTS[name](run)
    finally:
        if options.keep:
            print(f"kept: {base}")
        else:
            shutil.rmtree(base, ignore_errors=True)
    print(f"\nstore: {options.store}, {os.cpu_count()} CPUs\n")
    print("| what | figure | |\n|---|---|---|")
    for what, figure, verdict in run.rows:
        print(f"| {what} | {figure} | {verdict} |")
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())

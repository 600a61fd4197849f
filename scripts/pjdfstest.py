"""The POSIX suite pjdfstest on a mount and on a native directory, side by side.

    python -m scripts.pjdfstest --suite DIR                  everything (a few minutes), as root
    python -m scripts.pjdfstest --suite DIR --only chmod,rename --json

DIR is a checkout of the C version of the suite, which this program neither fetches nor changes.

1. A copy of the suite is built (autoconf, automake, a C compiler) and used for both sides. They run
   at the same time, each with the directory of its side as the working directory.
2. The suite leaves tests out by the type of the filesystem, and knows nothing of ours. So its
   `tests/conf` gets the type of a local disk ("define it here"), and both sides run the same tests.
3. A test is a file and a number. What passes natively must pass on the mount: a failure, a skip or
   an absence there is a difference, and the exit code is then 1. 2: it could not be run.
4. Everything stands below one scratch directory, which goes afterwards (--keep keeps it).

Called by a person.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from tests.support.buckets import Bucket, LocalBucket, S3Bucket
from tests.support.host import Host
from tests.support.seaweed import running_seaweed

BUILD: Final = (["autoreconf", "-ifs"], ["./configure"], ["make", "pjdfstest"])
TOOLS: Final = {"autoreconf": "autoconf", "automake": "automake", "gcc": "gcc", "make": "make",
                "openssl": "openssl"}  # fmt: skip
"""Programs that building and running need, and the Debian packages they come in."""

SIDES: Final = ("native", "mount")
FILE_S_MAX: Final = 900.0
OUTPUT_TAIL_CHARS: Final = 2000
QUOTA_MB: Final = 4096
EVERYBODY: Final = 0o777

_RESULT: Final = re.compile(r"(not )?ok\b *(\d+)?(?: *-? *([^#]*))?(?:# *(\w+))?")
_PLAN: Final = re.compile(r"1\.\.(\d+)")


class CannotRunError(Exception):
    """The suite can't be run here; the text says why and what helps."""


@dataclass
class FileResult:
    """What one file of tests said. Numbers of tests by what became of them."""

    name: str
    seconds: float = 0.0
    passed: set[int] = field(default_factory=set)
    skipped: set[int] = field(default_factory=set)
    todo: set[int] = field(default_factory=set)
    failed: dict[int, str] = field(default_factory=dict)

    @property
    def tests(self) -> int:
        return len(self.passed) + len(self.skipped) + len(self.todo) + len(self.failed)

    def verdict(self, number: int) -> str:
        """What became of a test, in words."""
        if number in self.failed:
            return self.failed[number] or "failed"
        for word in ("passed", "skipped", "todo"):
            if number in getattr(self, word):
                return word
        return "not run"


@dataclass(frozen=True)
class Difference:
    """A test that passes natively and not on the mount."""

    file: str
    number: int
    verdict: str


def read_tap(name: str, text: str, status: int) -> FileResult:
    """The results of a file from what it printed (TAP) and its exit code."""
    result = FileResult(name)
    planned: int | None = None
    number = 0
    for line in text.splitlines():
        if plan := _PLAN.match(line):
            planned = int(plan[1])
        if not (found := _RESULT.match(line)):
            continue
        negated, given, said, directive = found.groups()
        number = int(given) if given else number + 1
        directive = (directive or "").lower()
        if directive == "skip":
            result.skipped.add(number)
        elif not negated:
            result.passed.add(number)
        elif directive == "todo":
            result.todo.add(number)
        else:
            result.failed[number] = (said or "").strip()
    for missing in range(1, (planned or 0) + 1):
        if result.verdict(missing) == "not run":
            result.failed[missing] = "not run"
    if planned is None or status != 0 or result.tests != planned:
        result.failed[0] = (
            f"exit code {status}, {planned} planned, {result.tests} run: {text[-200:]}"
        )
    return result


def differences(native: list[FileResult], mount: list[FileResult]) -> list[Difference]:
    """Every test that passes natively and not on the mount, in the order of the suite."""
    ours = {result.name: result for result in mount}
    found = []
    for result in native:
        there = ours.get(result.name, FileResult(result.name))
        for number in sorted(result.passed - there.passed):
            found.append(Difference(result.name, number, there.verdict(number)))
        if 0 in there.failed and 0 not in result.failed:
            found.append(Difference(result.name, 0, there.failed[0]))
    return found


# --- the suite -----------------------------------------------------------------------------------


def prepare(suite: Path, base: Path, filesystem: str) -> Path:
    """A built copy of the suite below `base`. Raises CannotRunError."""
    if not (suite / "tests" / "misc.sh").is_file():
        raise CannotRunError(f"{suite} is no checkout of pjdfstest: it has no tests/misc.sh")
    copy = base / "suite"
    shutil.copytree(suite, copy, symlinks=True, ignore=shutil.ignore_patterns(".git"))
    if missing := sorted({package for tool, package in TOOLS.items() if not shutil.which(tool)}):
        raise CannotRunError("missing: apt-get install " + " ".join(missing))
    # What stands in the checkout may have been built elsewhere.
    for command in BUILD:
        _build(command, copy)
    if filesystem:
        with (copy / "tests" / "conf").open("a") as conf:
            conf.write(f'\nfs="{filesystem}"\n')
    return copy


def _build(command: list[str], copy: Path) -> None:
    done = subprocess.run(
        command, cwd=copy, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        tail = (done.stdout + done.stderr)[-OUTPUT_TAIL_CHARS:]
        raise CannotRunError(f"{' '.join(command)} failed:\n{tail}")


def test_files(suite: Path, only: list[str]) -> list[str]:
    """The files of tests, relative to the suite, sorted; `only` names directories. Raises it."""
    tests = suite / "tests"
    known = sorted(path.name for path in tests.iterdir() if path.is_dir())
    if unknown := sorted(set(only) - set(known)):
        raise CannotRunError(f"no such tests: {' '.join(unknown)}; there are: {' '.join(known)}")
    return [
        str(path.relative_to(tests))
        for name in (only or known)
        for path in sorted((tests / name).glob("**/*.t"))
    ]


def run_file(suite: Path, name: str, directory: Path) -> FileResult:
    """Run one file of tests in `directory`."""
    began = time.monotonic()
    with subprocess.Popen(
        ["sh", suite / "tests" / name],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as shell:
        try:
            said, _ = shell.communicate(timeout=FILE_S_MAX)
            result = read_tap(name, said, shell.returncode)
        except subprocess.TimeoutExpired:
            # Its programs too: they hold the pipe.
            os.killpg(shell.pid, signal.SIGKILL)
            result = FileResult(name, failed={0: f"not done within {FILE_S_MAX:g} s"})
    result.seconds = time.monotonic() - began
    return result


def run_side(
    suite: Path, names: list[str], directory: Path, jobs: int, done: Callable[[], None]
) -> list[FileResult]:
    """Run the files on one side, `jobs` at a time, each job in a directory of its own."""
    directory.mkdir(exist_ok=True)

    def one(name: str) -> FileResult:
        here = Path(tempfile.mkdtemp(dir=directory))
        here.chmod(EVERYBODY)
        result = run_file(suite, name, here)
        left = sorted(os.listdir(here))
        if left and not result.failed:
            result.failed[0] = f"left behind: {left}"
        shutil.rmtree(here)
        done()
        return result

    directory.chmod(EVERYBODY)
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, names))


# --- the report ----------------------------------------------------------------------------------


def table(results: dict[str, list[FileResult]]) -> Table:
    """A row for each directory of tests, and the sum."""
    shown = Table(title="pjdfstest: native/mount")
    shown.add_column("tests of", no_wrap=True)
    for column in ("files", "tests", "failed", "todo", "skipped", "seconds"):
        shown.add_column(column, justify="right", no_wrap=True)
    groups = list(dict.fromkeys(_group(result) for result in results["native"]))
    for group in (*groups, None):
        cells = []
        sides = [
            [result for result in results[side] if group in (None, _group(result))]
            for side in SIDES
        ]
        for figure in (
            len,
            lambda side: sum(result.tests for result in side),
            lambda side: sum(len(result.failed) for result in side),
            lambda side: sum(len(result.todo) for result in side),
            lambda side: sum(len(result.skipped) for result in side),
            lambda side: round(sum(result.seconds for result in side)),
        ):
            cells.append("/".join(str(figure(side)) for side in sides))
        if group is None:
            shown.add_section()
        shown.add_row(group or "all", *cells)
    return shown


def _group(result: FileResult) -> str:
    return result.name.split("/")[0]


def document(results: dict[str, list[FileResult]], found: list[Difference]) -> dict[str, object]:
    """The same for programs."""
    sides = {
        side: {
            "files": len(results[side]),
            "tests": sum(result.tests for result in results[side]),
            "passed": sum(len(result.passed) for result in results[side]),
            "failed": [
                {"file": result.name, "number": number, "said": said}
                for result in results[side]
                for number, said in sorted(result.failed.items())
            ],
            "todo": sum(len(result.todo) for result in results[side]),
            "skipped": sum(len(result.skipped) for result in results[side]),
            "seconds": round(sum(result.seconds for result in results[side]), 1),
        }
        for side in SIDES
    }
    return {**sides, "differences": [asdict(difference) for difference in found]}


# --- the run -------------------------------------------------------------------------------------


@contextlib.contextmanager
def _bucket(kind: str, base: Path) -> Iterator[Bucket]:
    if kind == "local":
        (base / "store").mkdir()
        yield LocalBucket(base / "store")
        return
    (base / "weed").mkdir()
    with running_seaweed(base / "weed") as server:
        bucket = S3Bucket(server)
        try:
            yield bucket
        finally:
            bucket.close()


def run(options: argparse.Namespace, base: Path, console: Console) -> dict[str, list[FileResult]]:
    """Both sides at the same time. Raises CannotRunError."""
    console.print("building the suite")
    suite = prepare(options.suite.resolve(), base, options.fs)
    names = test_files(suite, options.only)
    settings = {"WORKSPACE_MAX_SIZE_MB": str(QUOTA_MB)}
    with contextlib.ExitStack() as stack:
        bucket = stack.enter_context(_bucket(options.store, base))
        host = Host(base / "host", bucket.env, conversation="pjdfstest", settings=settings)
        stack.callback(host.end)
        host.mount()
        directories = {"native": base / "native", "mount": host.mountpoint / "here"}
        progress = stack.enter_context(Progress(console=console))
        bars = {side: progress.add_task(side, total=len(names)) for side in SIDES}

        def advance(bar: TaskID) -> Callable[[], None]:
            return lambda: progress.advance(bar)

        with ThreadPoolExecutor(len(SIDES)) as pool:
            running = {
                side: pool.submit(
                    run_side, suite, names, directories[side], options.jobs, advance(bars[side])
                )
                for side in SIDES
            }
            results = {side: future.result() for side, future in running.items()}
        host.umount()
        return results


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m scripts.pjdfstest", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--suite", type=Path, required=True, help="a checkout of pjdfstest")
    parser.add_argument(
        "--only", type=lambda text: text.split(","), default=[], help="directories: chmod,rename"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON document")
    parser.add_argument("--store", choices=["local", "seaweed"], default="local")
    parser.add_argument("--jobs", type=int, default=2, help="files at a time on each side")
    parser.add_argument(
        "--fs", default="EXT4", help="filesystem type told to the suite (empty: as it finds)"
    )
    parser.add_argument("--dir", type=Path, help="scratch directory: the native side is there")
    parser.add_argument("--keep", action="store_true", help="leave the scratch directory")
    options = parser.parse_args()
    console = Console(stderr=True)
    if os.geteuid() != 0:
        console.print("pjdfstest acts as several users: run this as root")
        return 2
    base = Path(tempfile.mkdtemp(prefix="s3ws-pjdfstest-", dir=options.dir)).resolve()
    # The tests act as other users, who have to get there.
    base.chmod(0o755)
    try:
        results = run(options, base, console)
    except CannotRunError as exc:
        console.print(str(exc), markup=False)
        return 2
    finally:
        if options.keep:
            console.print(f"kept: {base}")
        else:
            shutil.rmtree(base, ignore_errors=True)
    found = differences(results["native"], results["mount"])
    if options.json:
        print(json.dumps(document(results, found), indent=2))
    else:
        out = Console()
        out.print(table(results))
        for difference in found:
            line = f"{difference.file}:{difference.number}: {difference.verdict}"
            out.print(line, markup=False, highlight=False, soft_wrap=True)
        out.print(f"{len(found)} tests pass natively and not on the mount")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

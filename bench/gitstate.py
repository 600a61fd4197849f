"""`python -m bench.gitstate`: what git state costs at a sync, in processor time.

A repository of --files files and --commits commits on a mount of ours. Each sync is asked for after
one kind of change; the processor time is that of the daemon and of the children that ended by then
(the snapshot child, and every git that it ran), taken from /proc. The transfer worker is not in it.

1. The mount, its server and everything on disk are gone at the end, whatever happened.
2. A sync of the same change without a repository stands beside it: what is above that is git
   state's.

Called by a person.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench.backup import bucket_of
from tests.support import git_states
from tests.support.host import NEVER_BY_ITSELF, Host
from tests.support.mounting import wait_until

SETTINGS: Final = NEVER_BY_ITSELF | {"WORKSPACE_MAX_SIZE_MB": "4096"}
TICKS: Final = os.sysconf("SC_CLK_TCK")
WORDS: Final = [
    "def",
    "return",
    "self",
    "import",
    "from",
    "class",
    "None",
    "True",
    "if",
    "else",
    "for",
    "while",
]
MADE_WITHIN_S: Final = 300.0


def spent_s(pid: int) -> float:
    """Processor time of a process and of its children that ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(ticks) for ticks in fields[11:15]) / TICKS


def make(top: Path, files: int, commits: int) -> None:
    """A repository, made beside the mount and copied into it as a clone would come."""
    rng = random.Random(1)
    git_states.run_script("git init -q -b main .; git config gc.auto 0", top)
    for number in range(files):
        above = top / f"d{number // 100:03}"
        above.mkdir(exist_ok=True)
        lines = (" ".join(rng.choices(WORDS, k=8)) for _ in range(rng.randrange(10, 200)))
        (above / f"f{number}.py").write_text("\n".join(lines) + f"\n# {number}\n")
    git_states.run_script("git add -A; git commit -qm first", top)
    directories = files // 100 or 1
    for number in range(commits - 1):
        at = number % directories
        path = top / f"d{at:03}" / f"f{at * 100}.py"
        with path.open("a") as file:
            file.write(f"# {number}\n")
        git_states.run_script(f"git commit -qam c{number}", top)
    git_states.run_script("git gc -q", top)


def measure(host: Host, name: str, change: Callable[[], object]) -> dict[str, Any]:
    """One sync after a change, until its bundles stand."""
    change()
    status = host.now()
    before_s, begun_s = spent_s(status["pid"]), time.monotonic()
    host.sync()
    wait_until(lambda: not (host.now().get("git") or {}).get("running"), timeout_s=MADE_WITHIN_S)
    last = (host.now().get("git") or {}).get("last") or {}
    found = {
        "change": name,
        "cpu_s": round(spent_s(status["pid"]) - before_s, 2),
        "took_s": round(time.monotonic() - begun_s, 2),
        "bundles": last.get("bundles", []),
        "broken": last.get("broken", []),
    }
    print(json.dumps(found), flush=True)
    return found


def run(base: Path, kind: str, files: int, commits: int) -> None:
    """The whole measurement."""
    source = base / "source"
    source.mkdir()
    make(source, files, commits)
    with bucket_of(kind, base) as bucket:
        host = Host(base / "host", bucket.env, settings=SETTINGS)
        try:
            host.mount()
            top = host.mountpoint
            (top / "plain").write_text("x")
            host.sync()
            measure(host, "without a repository: one file", lambda: (top / "plain").write_text("y"))
            subprocess.run(["cp", "-a", source, top / "repo"], check=True)
            measure(host, "a repository came", lambda: None)
            changed = top / "repo" / "d000" / "f1.py"
            for text in ("1\n", "2\n", "3\n"):
                measure(host, "one file changed", partial(changed.write_text, text))
            git = "git -c core.fsmonitor=false"
            script = f"{git} commit -qam changed"
            measure(host, "committed", lambda: git_states.run_script(script, top / "repo"))
            measure(host, "a file elsewhere", lambda: (top / "plain").write_text("z"))
            host.umount()
        finally:
            host.end()


def main(argv: list[str] | None = None) -> int:
    """Run; prints a JSON object a line."""
    parser = argparse.ArgumentParser(prog="python -m bench.gitstate")
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--commits", type=int, default=30)
    parser.add_argument("--store", choices=["seaweed", "local"], default="seaweed")
    parser.add_argument("--dir", type=Path, help="the disk to measure on: a directory on it")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="s3ws-bench-", dir=given.dir) as name:
        run(Path(name), given.store, given.files, given.commits)
    return 0


if __name__ == "__main__":
    sys.exit(main())

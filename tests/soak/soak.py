"""SIGKILL at random moments while real programs work: nothing acknowledged is lost.

    python -m tests.soak.soak --kills 300 --seed 7

Programs (tests.soak.actors) work on one mount whose bucket is a SeaweedFS server. At random moments
one of these is killed:

    container   everything: the programs' mount is dead, as after `docker kill`
    daemon      the process behind the mount; its holder brings it back, the programs go on
    worker      the process that talks to the bucket
    child       the process that makes a backup, or git state, of one instant

After each death of the container the cache is checked, mounted again, and judged by the witnesses
(tests.soak.verify). In the end everything is flushed, the bucket audited and compared, and the
workspace mounted on another host without a cache.

Invariants
1. Between two deaths of the container no program may end: a killed daemon is a pause.
2. All is drawn from the seed, but for what the machine's timing decides.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

from s3ws_fs.cache.checking import check_cache
from tests.soak import verify
from tests.soak.actors import FAILED, KINDS
from tests.support import trees
from tests.support.buckets import S3Bucket, mirror_differences
from tests.support.host import QUICK, Host, child_pids
from tests.support.mounting import REPOSITORY
from tests.support.seaweed import running_seaweed

WAIT_S: Final = (0.2, 3.0)
"""Between two strikes, at least and at most."""
PROGRAM_END_S: Final = 60.0
CHILD_S_MAX: Final = 10.0
"""How long a child is waited for that could be killed."""
VICTIMS: Final = {"container": 3, "daemon": 4, "worker": 3, "child": 2}
SETTINGS: Final = {
    **QUICK,
    "WORKSPACE_MAX_SIZE_MB": "4096",
    "WORKSPACE_BACKUP_INTERVAL": "2",
    "WORKSPACE_BACKUP_KEEP_LAST": "2",
}


class Failed(AssertionError):
    """Something acknowledged is lost, or something broke that must not."""


class Soak:
    """One run."""

    def __init__(self, base: Path, bucket: S3Bucket, seed: int, kinds: list[str]) -> None:
        self._base = base
        self._bucket = bucket
        self._rng = random.Random(seed)
        self._kinds = kinds
        self._host = Host(base / "one", bucket.env, user=f"soak-{seed}", settings=SETTINGS)
        self._programs: dict[str, subprocess.Popen[bytes]] = {}
        self._witnesses = base / "witness"
        self._witnesses.mkdir()
        self.kills: Counter[str] = Counter()
        self.lines: Counter[str] = Counter()
        """What was acknowledged, and judged."""
        self._judged: Counter[str] = Counter()
        """Of the witness as it stands, so many lines were counted before."""

    # --- the programs ----------------------------------------------------------------------

    def _witness(self, kind: str) -> Path:
        return self._witnesses / f"{kind}.log"

    def _start(self) -> None:
        for kind in self._kinds:
            directory = self._host.mountpoint / kind
            directory.mkdir(exist_ok=True)
            errors = self._witness(kind).with_suffix(".err")
            words = [kind, directory, self._witness(kind), str(self._rng.randrange(1 << 30))]
            with errors.open("wb") as out:
                self._programs[kind] = subprocess.Popen(
                    [sys.executable, "-m", "tests.soak.actors", *map(str, words)],
                    cwd=REPOSITORY,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )

    def _assert_working(self) -> None:
        """Invariant 1."""
        for kind, program in self._programs.items():
            if program.poll() is not None:
                said = self._witness(kind).with_suffix(".err").read_text(errors="replace")
                raise Failed(f"{kind} ended with {program.returncode}: {said[-2000:]}")

    def _await_programs(self) -> None:
        """After the death of their mount they end by themselves.

        Some by SIGBUS: sqlite maps its index of the write-ahead log, and a page of a dead mount
        can't be read any more.
        """
        for kind, program in self._programs.items():
            try:
                code = program.wait(PROGRAM_END_S)
            except subprocess.TimeoutExpired:
                raise Failed(f"{kind} hangs on a dead mount") from None
            if code not in (FAILED, -signal.SIGBUS):
                said = self._witness(kind).with_suffix(".err").read_text(errors="replace")
                raise Failed(f"{kind} ended with {code}: {said[-2000:]}")
        self._programs.clear()

    def _end_programs(self) -> None:
        for program in self._programs.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
            program.wait()
        self._programs.clear()

    # --- the strikes -----------------------------------------------------------------------

    def run(self, kills: int, seconds: float) -> None:
        """Until so many kills, or seconds. Raises Failed."""
        host = self._host
        deadline_s = time.monotonic() + seconds
        try:
            host.mount()
            self._start()
            while self.kills.total() < kills and time.monotonic() < deadline_s:
                self._pass_time()
                self._strike(self._rng.choices([*VICTIMS], [*VICTIMS.values()])[0])
                print(f"\r{self.kills.total()} kills {dict(self.kills)}", end="", file=sys.stderr)
            self._assert_working()
            self._strike("container")
            self._end_programs()
            self._finish()
        finally:
            self._end_programs()
            host.end()

    def _pass_time(self) -> None:
        """Not a wait for anything: the moment of the strike is what is random."""
        time.sleep(self._rng.uniform(*WAIT_S))

    def _strike(self, victim: str) -> None:
        self._assert_working()
        if victim == "worker":
            pid = self._host.now()["worker_pid"]
            if pid is None:
                return
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        elif victim == "child":
            if not self._kill_child():
                return
        elif victim == "daemon":
            self._host.kill_daemon()
        else:
            self._host.kill()
            self._recover()
        self.kills[victim] += 1

    def _kill_child(self) -> bool:
        """Kill one as soon as there is one; whether there was."""
        daemon = self._host.now()["pid"]
        deadline_s = time.monotonic() + CHILD_S_MAX
        while time.monotonic() < deadline_s:
            for pid in child_pids(daemon):
                with contextlib.suppress(OSError):
                    if b"s3ws_fs.snapshot" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        os.kill(pid, signal.SIGKILL)
                        return True
            time.sleep(0.01)
        return False

    def _recover(self) -> None:
        host = self._host
        self._await_programs()
        left = check_cache(host.workspace_cache(), lambda _: None).report
        if not left.ok:
            raise Failed(f"the cache after a kill: {left.findings}")
        host.mount()
        self._judge(host)
        self._start()

    def _judge(self, host: Host) -> None:
        found = []
        for kind in self._kinds:
            witness = self._witness(kind)
            self.lines[kind] += len(verify.acknowledged(witness)) - self._judged[kind]
            found += verify.lost(kind, host.mountpoint / kind, witness)
            verify.trim(kind, host.mountpoint / kind, witness)
            self._judged[kind] = len(verify.acknowledged(witness))
        if found:
            raise Failed("\n".join(found))

    # --- the end ---------------------------------------------------------------------------

    def _finish(self) -> None:
        host = self._host
        host.sync()
        before = trees.manifest(host.mountpoint)
        found = mirror_differences(self._bucket, host.prefix, before, host.unmirrored())
        host.umount()
        audit: dict[str, Any] = host.json("check", "--bucket", ok=None)
        if not audit["ok"]:
            found.append(f"check --bucket: {audit['findings']}")
        other = host.elsewhere(self._base / "other")
        try:
            other.mount()
            found += trees.differences(before, trees.manifest(other.mountpoint))
            other.umount()
        finally:
            other.end()
        if found:
            raise Failed("\n".join(found))


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.soak.soak")
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=7200.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    parser.add_argument("--programs", nargs="+", choices=[*KINDS], default=[*KINDS])
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    started_s = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="s3ws-soak-") as directory,
        running_seaweed() as server,
        contextlib.closing(S3Bucket(server)) as bucket,
    ):
        soak = Soak(Path(directory), bucket, arguments.seed, arguments.programs)
        try:
            soak.run(arguments.kills, arguments.seconds)
        except AssertionError as exc:
            print(f"\nFAILED after {dict(soak.kills)}: {exc}")
            return 1
    print(
        f"\nnothing lost: {soak.kills.total()} kills {dict(soak.kills)} in "
        f"{time.monotonic() - started_s:.0f} s; witnessed lines {dict(soak.lines)}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

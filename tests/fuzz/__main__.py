"""The long form: `python -m tests.fuzz --seconds 1800`.

All targets in turn, each round in a process of its own: one that dies by a signal, hangs, or wants
more than MEMORY_BYTES_MAX is a finding like any other. `--target T --case N` does one case again.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from collections import Counter
from typing import Any, Final

from tests.fuzz import backups, bundles, codecs, notes, places
from tests.fuzz.target import CASE_S_MAX, Target
from tests.support.mounting import REPOSITORY

TARGETS: Final[tuple[Target, ...]] = (
    *codecs.TARGETS,
    *notes.TARGETS,
    *backups.TARGETS,
    *bundles.TARGETS,
    *bundles.PLACES,
    *places.TARGETS,
)
ROUND_S: Final = 5.0
MEMORY_BYTES_MAX: Final = 68 << 30
"""Of addresses: a reader maps 64 GiB of them, whatever the size of the file."""
RESIDENT_BYTES_MAX: Final = 600 << 20


def a_round(target: Target, first: int, seconds: float) -> dict[str, Any]:
    """Cases from `first` on until the time is up. Raises FindingError."""
    began, case, refused = time.monotonic(), first, 0
    while time.monotonic() - began < seconds:
        refused += target.case(case)
        case += 1
    resident = peak_bytes()
    return {"cases": case - first, "refused": refused, "resident": resident}


def peak_bytes() -> int:
    """Most memory this process had resident. (ru_maxrss counts who forked it as well.)"""
    with open("/proc/self/status", encoding="ascii", errors="replace") as lines:
        (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


def in_a_process(target: Target, first: int, seconds: float) -> tuple[dict[str, Any] | None, str]:
    """A round in a child: its figures, or None and what happened."""
    command = [sys.executable, "-W", "error", "-X", "faulthandler", "-m", "tests.fuzz"]
    command += ["--target", target.name, "--first", str(first), "--seconds", str(seconds)]
    try:
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds + 4 * CASE_S_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        return None, f"hangs: {exc.stderr!r:.2000}"
    if done.returncode != 0:
        return None, f"exit status {done.returncode}: {done.stderr[-3000:]}"
    found: dict[str, Any] = json.loads(done.stdout)
    if found["resident"] > RESIDENT_BYTES_MAX:
        return None, f"{found['resident'] >> 20} MiB"
    return found, ""


def run(seconds: float, number: int) -> int:
    """All targets, again and again; how many findings."""
    began = time.monotonic()
    first = number << 32
    cases: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    resident: Counter[str] = Counter()
    findings = 0
    while time.monotonic() - began < seconds:
        for target in TARGETS:
            found, wrong = in_a_process(
                target, first + cases[target.name] + skipped[target.name], ROUND_S
            )
            if found is None:
                findings += 1
                print(f"FINDING {target.name}: {wrong}", flush=True)
                skipped[target.name] += random.Random(findings).randrange(10**6)
                continue
            cases[target.name] += found["cases"]
            refused[target.name] += found["refused"]
            resident[target.name] = max(resident[target.name], found["resident"])
            if time.monotonic() - began >= seconds:
                break
    for target in TARGETS:
        name = target.name
        print(f"{name:22} {cases[name]:9} cases, {refused[name]:9} refused, ", end="")
        print(f"{resident[name] >> 20:4} MiB at most")
    print(f"{sum(cases.values())} cases, {findings} findings in {time.monotonic() - began:.0f} s")
    return findings


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**20))
    parser.add_argument("--target", choices=[target.name for target in TARGETS])
    parser.add_argument("--first", type=int)
    parser.add_argument("--case", type=int)
    args = parser.parse_args()
    if args.target is None:
        print(f"seed {args.seed}", flush=True)
        return min(run(args.seconds, args.seed), 1)
    (target,) = (target for target in TARGETS if target.name == args.target)
    if args.case is not None:
        print("refused" if target.case(args.case) else "accepted")
        return 0
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    print(json.dumps(a_round(target, args.first or 0, args.seconds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

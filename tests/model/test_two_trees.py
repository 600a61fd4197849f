"""The same work on a real mount and on a plain directory: they never differ.

A hypothesis machine (machine) does the same operations on both (twins) and compares
results, errors, attributes and bytes after each (look, differences); in between the daemon is
killed, its worker is killed, the workspace is unmounted, and mounted again on its cache or from the
bucket alone (world), while flushes follow each other without a pause.

A longer run, with a seed of its own:  python -m tests.model.test_two_trees --seed 7 --seconds 600
`--s3` keeps the bucket on a SeaweedFS server instead of a directory. A failure is printed as the
body of a regression test (test_regressions).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.machine import TwoTrees
from tests.model.world import EVENTS, Home
from tests.support.mounting import require_fuse
from tests.support.seaweed import running_seaweed

pytestmark = [pytest.mark.e2e, pytest.mark.fuse, pytest.mark.slow]

SHORT_EXAMPLES: Final = 3
SHORT_STEPS: Final = 40
SHRINK_S_MAX: Final = 600.0
"""A run takes half a minute; a failure is shrunk for minutes."""
LONG_EXAMPLES: Final = 10
LONG_STEPS: Final = 100


def a_round(
    home: Home, number: int, ending: str, *, examples: int, steps: int, shrink: bool = True
) -> None:
    """Examples that all end with one event. Raises Difference, shrunk if wanted."""
    machine = type("TwoTrees", (TwoTrees,), {"home": home, "ending": ending})
    seed(number)(machine)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            derandomize=False,
            phases=(Phase.generate, *((Phase.shrink,) if shrink else ())),
            report_multiple_bugs=False,
            suppress_health_check=[*HealthCheck],
        ),
    )


@pytest.mark.timeout(SHRINK_S_MAX)
def test_two_trees(tmp_path: Path) -> None:
    require_fuse()
    number = 1 if os.environ.get("CI") else random.SystemRandom().randrange(2**32)
    print(f"seed {number}")
    home = Home(tmp_path)
    try:
        for index, ending in enumerate(EVENTS):
            a_round(home, number + index, ending, examples=SHORT_EXAMPLES, steps=SHORT_STEPS)
            if not home.events[ending]:
                # All its examples were empty, as the first one always is.
                with home.world().twins() as twins:
                    twins.open("a", "rdwr creat")
                    twins.write(1, (1, 100_000))
                    twins.event(ending)
                    twins.compare()
    finally:
        home.leave()
        print(home, home.first_failure)
    assert all(home.events[name] for name in EVENTS)


def main() -> int:
    """The long form."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--base", type=Path, default=None, help="where to make the directories")
    parser.add_argument("--s3", action="store_true", help="the bucket on a SeaweedFS server")
    parser.add_argument("--no-shrink", action="store_true", help="show a failure as it came")
    args = parser.parse_args()
    # What ends the run ends the mount too: a shell may have made us deaf to ctrl-C.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupted)
    with contextlib.ExitStack() as stack:
        base = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(dir=args.base, prefix=f"two-trees-{args.seed}-")
            )
        )
        server = stack.enter_context(running_seaweed()) if args.s3 else None
        home = Home(base, server)
        stack.callback(home.leave)
        print(f"seed {args.seed}, {args.seconds:g} s, bucket {'s3' if server else 'local'}")
        return _long(home, args.seed, args.seconds, shrink=not args.no_shrink)


def _interrupted(*_: object) -> None:
    # Not SystemExit, which hypothesis would take for a failure of the example.
    raise KeyboardInterrupt


def _long(home: Home, number: int, seconds: float, *, shrink: bool) -> int:
    began = time.monotonic()
    endings = ("", *EVENTS)
    rounds = 0
    # A round's seed is its number: none is repeated within a run.
    while time.monotonic() - began < seconds:
        ending = endings[rounds % len(endings)]
        try:
            a_round(
                home,
                (number << 20) + rounds,
                ending,
                examples=LONG_EXAMPLES,
                steps=LONG_STEPS,
                shrink=shrink,
            )
        except BaseException:
            print(f"FIRST SEEN AS\n{home.first_failure}\n\nSHRUNK TO", flush=True)
            traceback.print_exc()
            print(f"FAILED in round {rounds} of seed {number}: {home}", flush=True)
            return 1
        rounds += 1
        print(f"{time.monotonic() - began:6.0f} s, {rounds} rounds: {home}", flush=True)
    print(f"no difference in {time.monotonic() - began:.0f} s, seed {number}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m bench`: measure, show the table, keep the figures.

Exit code 0 when every target that can be had here came to its end, else 1.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
from pathlib import Path

from rich.console import Console

from bench import report, runner
from bench.targets import TARGETS, USUAL
from bench.workloads import FULL, QUICK, SCENARIOS, TINY

SCALES = {"full": FULL, "quick": QUICK, "tiny": TINY}
ROUNDS = {"full": 5, "quick": 2, "tiny": 1}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m bench",
        description="Our mount beside a native directory and a null filesystem, in one run.",
    )
    made.add_argument("--quick", action="store_true", help="the short form: less of everything")
    made.add_argument("--scale", choices=SCALES, help="full (default), quick, or tiny (a trial)")
    made.add_argument("--rounds", type=int, metavar="N", help="how often each scenario runs")
    made.add_argument("--seed", type=int, help="for the same bytes again (default: a new one)")
    made.add_argument(
        "--only",
        action="append",
        metavar="SCENARIO",
        choices=[*SCENARIOS, runner.LAG],
        help=f"one of {', '.join([*SCENARIOS, runner.LAG])}; may be repeated",
    )
    made.add_argument(
        "--target",
        action="append",
        metavar="TARGET",
        choices=TARGETS,
        help=f"one of {', '.join(TARGETS)}; may be repeated (default: {', '.join(USUAL)})",
    )
    made.add_argument("--dir", type=Path, help="the disk to measure on: a directory on it")
    made.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    made.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there")
    return made


def main(argv: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    given = parser().parse_args(argv)
    name = given.scale or ("quick" if given.quick else "full")
    options = runner.Options(
        scale=SCALES[name],
        rounds=given.rounds or ROUNDS[name],
        seed=random.randrange(1 << 31) if given.seed is None else given.seed,
        targets=[t for t in TARGETS if t in (given.target or USUAL)],
        scenarios=[s for s in (*SCENARIOS, runner.LAG) if not given.only or s in given.only],
        base=given.dir,
    )
    print(f"seed {options.seed}", file=sys.stderr)
    results = runner.run(options, lambda text: print(text, file=sys.stderr, flush=True))
    if given.json is not None:
        given.json.write_text(json.dumps(results.to_json(), indent=1) + "\n")
    if given.markdown is not None:
        given.markdown.write_text(report.markdown(results))
    report.show(results, Console())
    measured = {turn.target for turn in results.turns}
    return 1 if set(results.left_out) & measured else 0


if __name__ == "__main__":
    # So that a terminated run unmounts and removes what it made, as an interrupted one does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main())

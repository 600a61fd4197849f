"""`python -m bench`: measure, show the table, keep the figures.

Exit code 0 when all of ours and of the floors that can be had here came to its end, else 1.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
from pathlib import Path

from rich.console import Console

from bench import plots, report, runner
from bench.bucketwork import SPECIALS
from bench.peers import PEERS
from bench.programs import PROGRAMS
from bench.results import Options, Results
from bench.targets import TARGETS, USUAL
from bench.workloads import BRIEF, FULL, HUGE, MEDIUM, QUICK, SCENARIOS, TINY

SCALES = {
    "huge": HUGE,
    "full": FULL,
    "medium": MEDIUM,
    "quick": QUICK,
    "brief": BRIEF,
    "tiny": TINY,
}
ROUNDS = {"huge": 1, "full": 5, "medium": 3, "quick": 2, "brief": 9, "tiny": 1}
ALL = (*SCENARIOS, *PROGRAMS, *SPECIALS)
SHORT = (*SCENARIOS, "lag")
"""Without peers, what a minute is enough for. `--peers` is for all."""
IDLE_S = 20.0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m bench",
        description="Our mount beside a native directory, a null filesystem and, on request, "
        "other filesystems on S3, in one run.",
    )
    made.add_argument("--quick", action="store_true", help="the short form: less of everything")
    made.add_argument(
        "--scale",
        choices=SCALES,
        help="full (default), medium, quick, brief (many short rounds), tiny (a trial), or huge "
        "(1,000,000 files, 10 GB: with --only growth, --only sizes)",
    )
    made.add_argument("--rounds", type=int, metavar="N", help="how often each scenario runs")
    made.add_argument("--seed", type=int, help="for the same bytes again (default: a new one)")
    made.add_argument(
        "--only",
        action="append",
        metavar="SCENARIO",
        choices=ALL,
        help=f"one of {', '.join(ALL)}; may be repeated (default: {', '.join(SHORT)}; "
        "with --peers: all)",
    )
    made.add_argument(
        "--target",
        action="append",
        metavar="TARGET",
        choices=TARGETS,
        help=f"one of {', '.join(TARGETS)}; may be repeated (default: {', '.join(USUAL)})",
    )
    made.add_argument(
        "--peers",
        action="store_true",
        help=f"the long form: {', '.join(PEERS)} as well, and every scenario",
    )
    made.add_argument(
        "--peers-dir", type=Path, metavar="DIR", help="where scripts/peers put their programs"
    )
    made.add_argument("--dir", type=Path, help="the disk to measure on: a directory on it")
    made.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write all figures there (also those of a run that is ended)",
    )
    made.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there")
    made.add_argument("--plots", type=Path, metavar="DIR", help="write plots (SVG) there")
    made.add_argument(
        "--from-json", type=Path, metavar="FILE", help="measure nothing: show these figures"
    )
    return made


def measure(given: argparse.Namespace) -> Results:
    """Run as the command line says."""
    name = given.scale or ("quick" if given.quick else "full")
    wanted = given.target or (*USUAL, *(PEERS if given.peers else ()))
    scenarios = given.only or (ALL if given.peers else SHORT)
    options = Options(
        scale=SCALES[name],
        rounds=given.rounds or ROUNDS[name],
        seed=random.randrange(1 << 31) if given.seed is None else given.seed,
        targets=[t for t in TARGETS if t in wanted],
        scenarios=[s for s in ALL if s in scenarios],
        base=given.dir,
        peers=given.peers_dir,
        idle_s=IDLE_S if given.peers and not given.only else 0.0,
    )
    print(f"seed {options.seed}", file=sys.stderr)
    keep = (lambda results: write_json(results, given.json)) if given.json else (lambda _: None)
    return runner.run(options, lambda text: print(text, file=sys.stderr, flush=True), keep)


def write_json(results: Results, path: Path) -> None:
    """Whole or not at all: it is written again after each turn."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(results.to_json(), indent=1) + "\n")
    new.replace(path)


def failures(results: Results) -> list[str]:
    """What went wrong with ours or a floor: a peer's trouble is a figure like others."""
    measured = {turn.target for turn in results.turns} - set(PEERS)
    failed = [name for name in results.failed if name.split()[0] not in PEERS]
    return [name for name in results.left_out if name in measured] + failed


def main(argv: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    given = parser().parse_args(argv)
    if given.from_json is not None:
        results = Results.from_json(json.loads(given.from_json.read_text()))
    else:
        results = measure(given)
    if given.json is not None:
        write_json(results, given.json)
    if given.markdown is not None:
        given.markdown.write_text(report.markdown(results))
    if given.plots is not None:
        given.plots.mkdir(parents=True, exist_ok=True)
        for stem, svg in plots.plots(results).items():
            (given.plots / f"{stem}.svg").write_text(svg)
    report.show(results, Console())
    return 1 if failures(results) else 0


if __name__ == "__main__":
    # So that a terminated run unmounts and removes what it made, as an interrupted one does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main())

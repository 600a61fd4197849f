"""The simulation as a command: `python -m tests.sim --seed 7 --ops 2000`, or `--seeds 0..500`.

A run that finds something prints the seed and the number of operations that show it again; with
`--shrink` it looks for the smallest such number.

Called by people, and at night.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import traceback
from collections import Counter
from typing import Final

from tests.sim.tree import Wrong
from tests.sim.world import World, simulate

TRACEBACK_LINES: Final = 14


def attempt(seed: int, operations: int, trace: bool = False) -> tuple[World | None, str]:
    """The run, and what it found ("" for nothing)."""
    seen: list[World] = []

    def keep(world: World) -> None:
        seen.append(world)
        if trace:
            world.trace = []

    try:
        simulate(seed, operations, keep)
    except Wrong as exc:
        return seen[0], str(exc)
    except BaseException as exc:
        if isinstance(exc, KeyboardInterrupt):
            raise
        lines = traceback.format_exception(exc)[-TRACEBACK_LINES:]
        return seen[0] if seen else None, "".join(lines)
    return seen[0], ""


def shrink(seed: int, operations: int) -> int:
    """The smallest number of operations, by halving, that still finds something."""
    low, high = 0, operations
    while low + 1 < high:
        middle = (low + high) // 2
        if attempt(seed, middle)[1]:
            high = middle
        else:
            low = middle
    return high


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--seeds", help="from..to")
    parser.add_argument("--ops", type=int, default=1000, help="operations of one run")
    parser.add_argument("--total", type=int, help="seed after seed up to so many operations")
    parser.add_argument("--shrink", action="store_true")
    parser.add_argument("--trace", action="store_true", help="print every event of a failed run")
    args = parser.parse_args()
    first, last = args.seed or 0, args.seed or 0
    if args.seeds:
        first, last = map(int, args.seeds.split(".."))
    elif args.total:
        first, last = args.seed or 0, 1 << 40
    if not args.trace:
        # Outages are what is simulated: nobody wants to read of each.
        logging.disable(logging.CRITICAL)
    totals: Counter[str] = Counter()
    failed = 0
    began_s = time.monotonic()
    oldest_s = 0.0
    most_tries = 0
    for seed in range(first, last + 1):
        world, found = attempt(seed, args.ops, args.trace)
        if world is not None:
            totals.update(world.counts)
            totals.update(world.weather.seen)
            totals["lives"] += world.lives
            oldest_s = max(oldest_s, world.oldest_s)
            most_tries = max(most_tries, world.weather.most_tries)
        if found:
            failed += 1
            operations = shrink(seed, args.ops) if args.shrink else args.ops
            if args.trace and world is not None and world.trace is not None:
                print("\n".join(world.trace))
            print(f"seed {seed}, {operations} operations: {found}", flush=True)
        if args.total and totals["operations"] >= args.total:
            break
    for name, number in sorted(totals.items()):
        print(f"{number:10d}  {name}")
    print(f"{oldest_s:10.1f}  seconds: the oldest dirt in fair weather")
    print(f"{most_tries:10d}  requests within a minute, at most, while nothing worked")
    print(f"{time.monotonic() - began_s:10.1f}  seconds, {failed} runs that found something")
    if first == last and not failed and world is not None:
        print(f"seed {first}, {args.ops} operations: digest {world.digest}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

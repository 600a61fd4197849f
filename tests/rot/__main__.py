"""`python -m tests.rot [--trials N] [--cache-trials N] [--seed S]`: the long form, with figures."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import trio

from tests.rot import bucket, cache

SAY_EVERY = 100


async def _run(seed: int, trials: int, cache_trials: int) -> int:
    counts: Counter[str] = Counter()
    wrong = 0
    started = time.monotonic()
    async with bucket.made() as place:
        with ThreadPoolExecutor(2) as pool:
            for trial, number, run in (
                *(("bucket", n, bucket.run_trial) for n in range(trials)),
                *(("cache", n, cache.run_trial) for n in range(cache_trials)),
            ):
                try:
                    counts += await run(place, pool, seed, number)
                    counts[f"{trial} trials"] += 1
                except bucket.Wrong as exc:
                    wrong += 1
                    print(f"WRONG: {trial} trial {number} of seed {seed}: {exc}", flush=True)
                if number % SAY_EVERY == SAY_EVERY - 1:
                    print(f"{trial} {number + 1}, {time.monotonic() - started:.0f} s", flush=True)
    for what, count in sorted(counts.items()):
        print(f"{count:6} {what}")
    print(f"{wrong} wrong, seed {seed}, {time.monotonic() - started:.0f} s")
    return 1 if wrong else 0


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--cache-trials", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    return trio.run(_run, args.seed, args.trials, args.cache_trials)


if __name__ == "__main__":
    sys.exit(main())

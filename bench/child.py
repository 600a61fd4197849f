"""`python -m bench.child`: one scenario in one directory, in a process of its own.

Reads a Job as JSON from standard input and prints the steps as JSON. A filesystem that hangs hangs
this process and nobody else.

Run by bench.runner.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from bench.pieces import PIECES
from bench.programs import PROGRAMS
from bench.workloads import SCENARIOS, Job, Stopwatch


def main() -> None:
    """Run the job."""
    job = Job.loads(sys.stdin.read())
    watch = Stopwatch()
    {**SCENARIOS, **PROGRAMS, **PIECES}[job.scenario](job, watch)
    print(json.dumps([asdict(step) for step in watch.steps]))


if __name__ == "__main__":
    main()

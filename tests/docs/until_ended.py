"""Run a command that goes on until it is ended: until it prints something, then ctrl-C.

Exit code 0 when it was still at work then, and ended as a command ends that is interrupted; else
its own, or 124 when it printed nothing or did not end. Called by tests/docs/sandbox.py.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from typing import Final

FIRST_WORD_S_MAX: Final = 60.0
END_S_MAX: Final = 60.0


def main(command: str) -> int:
    process = subprocess.Popen(
        ["bash", "--noprofile", "--norc", "-c", command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    fd = process.stdout.fileno()
    ready, _, _ = select.select([fd], [], [], FIRST_WORD_S_MAX)
    said = os.read(fd, 1 << 16) if ready else b""
    is_at_work = process.poll() is None and bool(said)
    try:
        os.killpg(process.pid, signal.SIGINT)
        rest, _ = process.communicate(timeout=END_S_MAX)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        rest = b""
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        is_at_work = False
    sys.stdout.buffer.write(said + rest)
    interrupted = {0, 2, -signal.SIGINT, 128 + signal.SIGINT}
    if is_at_work and process.returncode in interrupted:
        return 0
    return process.returncode if process.returncode > 0 else 124


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

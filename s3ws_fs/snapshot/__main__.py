"""The snapshot child: one job, then it ends. Run as `python -m s3ws_fs.snapshot` by child.py.

A line of JSON on the standard input says what to do; JSON lines on the standard output tell how it
goes, the last one has `ok` or `error` (as transfer.wire has them).

Invariants
1. It runs niced: the mount goes first.
2. It ends when its parent does: the standard input stays open until then, and is watched.
3. It writes below the job's directory alone, for this user alone, and sends nothing to the bucket.

Started by snapshot.child; called by nobody.
"""

from __future__ import annotations

import importlib
import json
import os
import threading
from typing import Any, Final

from s3ws_fs.core import jsontext
from s3ws_fs.core.errors import FormatError, S3wsError
from s3ws_fs.transfer import faultline, wire

NICENESS: Final = 10

JOBS: Final = {"backup": "s3ws_fs.snapshot.backup", "git": "s3ws_fs.snapshot.git.job"}
"""Modules whose `run(job, say)` does a kind of job; loaded when it is wanted."""


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


def _say(line: dict[str, Any]) -> None:
    os.write(1, json.dumps(line, separators=(",", ":")).encode("ascii") + b"\n")


def _first_line() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(0, 1 << 16)
        if not part:
            raise FormatError("job", "it is cut off")
        line += part
    return line


def main() -> None:
    """Do the job that is said, and end."""
    os.nice(NICENESS)
    os.umask(0o077)
    form, kind = "text", "the job"
    try:
        job = jsontext.object_of(_first_line(), "job")
        form, kind = job.get("log_format", form), job["kind"]
        threading.Thread(target=_end_with_parent, daemon=True).start()
        module = importlib.import_module(JOBS[kind])
        _say({"ok": module.run(job, _say)})
    except BrokenPipeError:
        os._exit(1)
    except Exception as exc:
        if not isinstance(exc, S3wsError | OSError):
            faultline.tell(form, "snapshot", f"{kind} failed")
        _say({"error": wire.error_json(exc)})
    # Threads may hang in the network: nothing of theirs is needed.
    os._exit(0)


if __name__ == "__main__":
    main()

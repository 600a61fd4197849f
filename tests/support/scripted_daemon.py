"""A daemon without a mount, for the holder's tests: it does what the next line of a script says.

`python -m tests.support.scripted_daemon SCRIPT ...flags of a daemon`; SCRIPT is a file with a line
for each start. A line is words: `mount` hands a descriptor over and notes an INIT of a kernel that
sends again (`mount`) or does not (`mount-old`); `serve` says that it serves; `wait NUMBER` waits
for a signal; `kill` and `exit CODE` end it. What it was given is appended to SCRIPT.seen, a JSON
line for each start.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
from pathlib import Path

from s3ws_fs.holder import memory


def init_request(*, can_resend: bool) -> bytes:
    """An INIT as the kernel sends it."""
    raw = bytearray(104)
    raw[memory.FLAGS_AT : memory.FLAGS_AT + 4] = memory.INIT_EXT.to_bytes(4, sys.byteorder)
    if can_resend:
        flags2 = memory.HAS_RESEND.to_bytes(4, sys.byteorder)
        raw[memory.FLAGS2_AT : memory.FLAGS2_AT + 4] = flags2
    return bytes(raw)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("script", type=Path)
    for flag in ("--config-fd", "--holder-fd", "--memory-fd"):
        parser.add_argument(flag, type=int, required=True)
    for flag in ("--device-fd", "--ready-fd", "--restarts"):
        parser.add_argument(flag, type=int)
    parser.add_argument("--restarted-by")
    given = parser.parse_args()
    lines = given.script.read_text().splitlines()
    seen_path = given.script.with_suffix(".seen")
    number = len(seen_path.read_text().splitlines()) if seen_path.exists() else 0
    device = None if given.device_fd is None else os.readlink(f"/proc/self/fd/{given.device_fd}")
    with seen_path.open("a") as seen:
        record = {
            "config": os.read(given.config_fd, 100).decode(),
            "device": device,
            "restarts": given.restarts,
            "by": given.restarted_by,
            "ready": given.ready_fd is not None,
            "secret": os.environ.get("S3WS_SECRET"),
            "group": os.getpgid(0) == os.getpid(),
        }
        seen.write(json.dumps(record) + "\n")
    line = socket.socket(fileno=given.holder_fd)
    held = memory.Memory(given.memory_fd)
    words = iter(lines[min(number, len(lines) - 1)].split())
    for word in words:
        if word in ("mount", "mount-old"):
            held.set_init(init_request(can_resend=word == "mount"), bytes(80))
            with open("/dev/null") as kept:
                socket.send_fds(line, [b"mounted"], [kept.fileno()])
        elif word == "serve":
            line.send(b"serving")
        elif word == "wait":
            signals = {int(next(words))}
            signal.pthread_sigmask(signal.SIG_BLOCK, signals)
            given.script.with_suffix(".waiting").touch()
            signal.sigwait(signals)
        elif word == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif word == "exit":
            sys.exit(int(next(words)))


if __name__ == "__main__":
    main()

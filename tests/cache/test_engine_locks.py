"""The engine knows by file locks which process is alive, and the kernel drops them easily.

Closing any descriptor of `lock.mdb` drops all the locks that the process has on it. The next reader
then takes the environment for abandoned and resets its table of readers under a living daemon: its
pins, and with them the sync points, are void.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from s3ws_fs.cache import tables
from s3ws_fs.cache.cache import Cache, Identity, open_cache
from tests.support.mounting import REPOSITORY

READ_IT: str = """
import sys, pathlib
from s3ws_fs.cache.reader import open_reader
with open_reader(pathlib.Path(sys.argv[1])) as reader, reader.read() as view:
    print(view.head().generation)
"""


def engine_locks(cache: Cache) -> list[str]:
    """The kinds of lock that this process has on the engine's lock file."""
    inode = (cache.directory / tables.DATA_DIR / "lock.mdb").stat().st_ino
    lines = (line.split() for line in Path("/proc/locks").read_text().splitlines())
    return sorted(
        words[3]
        for words in lines
        if words[1] == "POSIX" and words[4] == str(os.getpid()) and words[5].endswith(f":{inode}")
    )


def test_an_open_cache_keeps_the_engines_locks(tmp_path: Path) -> None:
    for opened in ("new", "again"):
        with open_cache(
            tmp_path / "cache", Identity("p/", "s"), quota_bytes=1 << 20, now_ns=lambda: 1
        ) as cache:
            cache.put_json("key", {"opened": opened})
            cache.sync_point()
            before = engine_locks(cache)
            assert "READ" in before, before
            # Others come and go, as the worker and `s3ws ls` do.
            for _ in range(2):
                subprocess.run(
                    [sys.executable, "-c", READ_IT, cache.directory],
                    env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                    check=True,
                    capture_output=True,
                )
                cache.reader_check()
            cache.put_json("key", {"opened": "still"})
            cache.sync_point()
            assert cache.file_bytes() > 0
            assert engine_locks(cache) == before

"""A closed cache of which one byte of the database file rots.

The file's structure, its records and its bytes have no checksum of the engine's. So: either a check
finds it (the local one, or the one that compares with the bucket), or nothing that a mount of that
cache shows is other than it was.

Invariants
1. Everything in the cache is sealed: what is only there, nothing else can vouch for.
2. A cache that was found damaged is not opened: its structure may lead the engine anywhere.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from concurrent.futures import Executor
from pathlib import Path

from s3ws_fs.cache.checking import check_cache
from s3ws_fs.cache.reader import open_reader
from s3ws_fs.cache.tables import DATA_DIR, DATA_FILE
from s3ws_fs.transfer.audit import LocalSide, audit
from tests.rot.bucket import Place, Wrong


async def run_trial(place: Place, pool: Executor, seed: int, number: int) -> Counter[str]:
    """One flipped bit. Raises Wrong."""
    rng = random.Random(f"cache {seed} {number}")
    name = f"rotten {number}"
    source = Path(place.config("writer").cache_dir)
    target = Path(place.config(name).cache_dir)
    shutil.copytree(source, target)
    try:
        return await _look(place, pool, rng, name)
    finally:
        shutil.rmtree(target)


async def _look(place: Place, pool: Executor, rng: random.Random, name: str) -> Counter[str]:
    directory = Path(place.config(name).workspace_cache_dir)
    said = _flip(directory / DATA_DIR / DATA_FILE, rng)
    checked = check_cache(directory, lambda _: None)
    if not checked.report.ok:
        return Counter({"cache: found by check": 1})
    assert checked.tables is not None
    with open_reader(directory) as reader:
        local = LocalSide(reader, checked.tables, checked.values or {})
        done = audit(place.scoped(place.store), pool, lambda _: None, local=local)
    if not done.report.ok:
        return Counter({"cache: found by check --bucket": 1})
    async with place.mounted(place.store.fork(), name) as m:
        if m.tree() != place.tree:
            raise Wrong(f"{said}: nothing is found, and another tree is shown")
        for path, wanted in place.bytes.items():
            if await m.read(path) != wanted:
                raise Wrong(f"{said}: nothing is found, and {path} has other bytes")
    return Counter({"cache: nothing was wrong": 1})


def _flip(path: Path, rng: random.Random) -> str:
    data = bytearray(path.read_bytes())
    at = rng.randrange(len(data))
    data[at] ^= 1 << rng.randrange(8)
    # In place: a cache knows its file by its inode.
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data[at : at + 1])
    return f"byte {at} of {len(data)}"

"""A short form of the fuzzing: some cases of every target, and what earlier ones found.

The long form: `python -m tests.fuzz --seconds 1800`.
"""

from __future__ import annotations

import json
import math
import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3ws_fs.cache.cache import Cache, Identity, open_cache
from s3ws_fs.cli import render
from s3ws_fs.control import registry
from s3ws_fs.core import content, gitkeys, journal, jsontext, keys, layout
from s3ws_fs.core.errors import CacheError, FormatError
from s3ws_fs.core.records import InodeRec
from s3ws_fs.replica import position
from s3ws_fs.snapshot.git import bundle, manifest
from s3ws_fs.transfer import wire
from tests.core.test_journal import make_header
from tests.fuzz import backups, bundles, codecs, notes, places
from tests.fuzz.__main__ import in_a_process
from tests.fuzz.target import FindingError, Target
from tests.support import caches
from tests.support.mounting import REPOSITORY

CASES = 150
PLACE_S = 1.0
DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    "target",
    (*codecs.TARGETS, *notes.TARGETS, *backups.TARGETS, *bundles.TARGETS),
    ids=lambda target: target.name,
)
def test_codecs(target: Target) -> None:
    @settings(max_examples=CASES)
    @given(st.integers(0, 2**32))
    def some(number: int) -> None:
        target.case(number)

    some()


def test_the_tar_that_is_changed_is_whole() -> None:
    backups.check_the_material()


def test_the_repository_that_is_changed_is_whole() -> None:
    bundles.check_the_material()


def test_a_head_of_an_archive_that_says_less_than_nothing_follows() -> None:
    (target,) = (target for target in backups.TARGETS if target.name == "backup archives")
    assert target.case(39815474), "a tar whose size is negative was taken"


@pytest.mark.parametrize(
    "target", (*places.TARGETS, *bundles.PLACES), ids=lambda target: target.name
)
def test_places(target: Target) -> None:
    """In a process of its own, which a database that is wrong may end."""
    first = 1 if os.environ.get("CI") else random.SystemRandom().randrange(2**32)
    print(f"first case {first}")
    found, wrong = in_a_process(target, first, PLACE_S)
    assert found is not None, wrong
    assert found["cases"]


def test_memory_counts_for_who_uses_it() -> None:
    """However large the process was that started it."""
    large = bytearray(os.urandom(1 << 20)) * 400
    code = "from tests.fuzz.__main__ import peak_bytes; print(peak_bytes())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert 1 << 20 < int(done.stdout) < len(large)


def test_negative_control_a_decoder_that_lets_anything_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is found is told, with its case."""

    def careless(key: bytes) -> int:
        return int(struct.unpack_from(">Q", key)[0])

    monkeypatch.setattr(keys, "unpack_u64", careless)
    monkeypatch.setattr(journal, "_fits", lambda *_: True)
    with pytest.raises(FindingError, match=r"case \d+: error"):
        for number in range(3000):
            codecs.TARGETS[0].case(number)


# --- what was found


def test_nested_without_end_is_an_error_everywhere(tmp_path: Path) -> None:
    for parse in (
        lambda: jsontext.value_of(DEEP, "x"),
        lambda: registry.decode("x", DEEP[: registry.INFO_BYTES_MAX]),
        lambda: wire.decode(struct.pack(">II", len(DEEP) + 4, len(DEEP)), DEEP),
    ):
        with pytest.raises(FormatError, match="RecursionError"):
            parse()


def test_a_header_of_brackets() -> None:
    body = b"[" * 950
    raw = (journal.MAGIC + struct.pack(">I", len(body)) + body).ljust(1008, b"\0")
    with pytest.raises(FormatError, match="JSON"):
        journal.decode_header(raw + journal._digest(raw), "journal/seg/1")


def test_a_deep_identity_is_a_damaged_cache(tmp_path: Path) -> None:
    (tmp_path / "identity.json").write_bytes(DEEP)
    with pytest.raises(CacheError, match="not readable"):
        open_cache(tmp_path, Identity("p/", "local:/s"), quota_bytes=1 << 20, now_ns=lambda: 1)


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        (keys.T_INODES, b"short", codecs.INODE),
        (keys.T_INODES, keys.pack_u64(1), codecs.INODE[:70]),
        (keys.T_DENTRIES, bytes(16), bytes(8)),
        (keys.T_DENTRIES, keys.dentry_key(1, b"n" * 256), bytes(8)),
        (keys.T_DENTRIES, keys.dentry_key(1, b"n"), bytes(7)),
        (keys.T_CHUNKS, bytes(11), codecs.CHUNK),
        (keys.T_CHUNKS, bytes(12), codecs.CHUNK + b"x"),
        (keys.T_XATTRS, bytes(8), b"v"),
        (keys.T_XATTRS, bytes(9), bytes(65537)),
        (keys.T_LINKS, bytes(17), b"x"),
        (journal.T_MTODO, bytes(8), b""),
    ],
)
def test_records_of_another_shape_never_come_out_of_a_journal(
    table: int, key: bytes, value: bytes
) -> None:
    """They were struct.error in the middle of a restore, and an internal error of the mount."""
    frame = b"".join(raw for _, raw in journal.encode_puts(table, [(key, value)]))
    with pytest.raises(FormatError, match="shape"):
        list(journal.decode_frames(frame, "journal/seg/1"))


def test_a_checkpoint_out_of_order_is_refused(cache: Cache) -> None:
    """Its records were left out silently."""
    items = [(keys.pack_u64(number), codecs.INODE) for number in (5, 7, 6)]
    with pytest.raises(FormatError, match="not in order"):
        cache.load_records(keys.T_INODES, items, append=True)


@pytest.mark.parametrize("raw", [b"", b"{", DEEP, b"\xff"])
def test_a_damaged_note_in_the_cache_says_so(cache: Cache, raw: bytes) -> None:
    with cache.env.begin(write=True) as txn:
        txn.put(b"sealed", raw, db=cache.tables.meta)
    with pytest.raises(CacheError, match="damaged"):
        cache.get_json("sealed")


@pytest.mark.parametrize("value", [3, [], {}, {"number": 1}, {"number": "1", "hash": ""}])
def test_a_position_of_another_shape(value: object) -> None:
    with pytest.raises(CacheError, match="sealed"):
        position.Sealed.from_json(value)  # type: ignore[arg-type]


def test_a_writer_of_another_shape(cache: Cache) -> None:
    for value in (3, {"name": 4, "inode": 1}, {"inode": 1}):
        cache.put_json("writer", value)
        with pytest.raises(CacheError, match="writer"):
            position.writer_id(cache, lambda bits: 1)


@pytest.mark.parametrize("key", [b"mirror", bytes(7)])
def test_an_orphan_whose_number_is_none(cache: Cache, key: bytes) -> None:
    """Its key was taken for a number of any size."""
    fs = caches.filesystem(cache)
    with cache.env.begin(write=True) as txn:
        txn.put(key, b"", db=cache.tables.orphans)
    with pytest.raises(FormatError, match="no key"):
        fs.drop_orphans_unmounted()


def test_a_record_that_does_not_add_up() -> None:
    rec = InodeRec(7, 0, 0, 0, 0, 0, 1 << 64, 0, 0, 0, 0, 0, 0, b"", b"")
    with pytest.raises(FormatError, match="add up"):
        rec.encode()


@pytest.mark.parametrize("text", ["\ud800", "a/\udcff", "%ff\udc80"])
def test_keys_that_are_no_unicode_stand_for_no_path(text: str) -> None:
    assert layout.unescape_path(text) is None


@pytest.mark.parametrize("generation", ["-1", str(1 << 64), "9" * 5000])
def test_a_mark_out_of_range_is_not_ours(generation: str) -> None:
    metadata = {
        content.META_HASH: "00" * 16,
        content.META_GENERATION: generation,
        content.META_WORKSPACE: "w",
    }
    assert content.our_mark(metadata, "w", "a/b") is None


@pytest.mark.parametrize("number", [10**400, -(10**400), math.inf, math.nan])
def test_numbers_beyond_all_bounds_are_shown_as_none(number: float) -> None:
    document = {
        "state": "ready", "uptime_s": number, "generation": {},
        "quota": {"used_bytes": number}, "dirty": {"oldest_age_s": number, "files": number},
    }  # fmt: skip
    assert render.status_lines(document)


@pytest.mark.parametrize(
    "change",
    [
        {"pid": 10**300},
        {"pid": 0},
        {"mountpoint": "relative"},
        {"cache_path": "/a\0b"},
        {"log_path": "x"},
        {"started_at_s": math.nan},
        {"started_at_s": math.inf},
        {"started_at_s": 10**400},
    ],
)
def test_registry_entries_that_nothing_can_be_done_with(change: dict[str, object]) -> None:
    with pytest.raises(FormatError):
        registry.decode("entry", json.dumps({**codecs.INFO, **change}).encode())


@pytest.mark.parametrize(
    "message", [{}, {"id": "1"}, {"id": True}, {"id": 1, "part": 3}, {"id": 1, "error": []}]
)
def test_worker_frames_of_another_shape(message: dict[str, object]) -> None:
    """A missing id ended the daemon's listener by a KeyError."""
    frame = wire.encode(message)
    with pytest.raises(FormatError):
        wire.decode(frame[: wire.HEAD_BYTES], frame[wire.HEAD_BYTES :])


@pytest.mark.parametrize(
    "error",
    [{}, {"kind": "transient"}, {"kind": []}, {"kind": "user", "message": 1, "exit_code": 99}],
)
def test_worker_errors_of_another_shape(error: dict[str, object]) -> None:
    assert isinstance(wire.error_from(error), Exception)


def test_a_key_with_a_nul_is_no_repositorys() -> None:
    """`git restore --all` ended by a ValueError of the system's."""
    assert gitkeys.repository_of("git/a%00.bundle") is None


def test_a_remotes_name_with_a_tab_stays_what_it_is() -> None:
    """It came back with a `t` in it."""
    bundles.run_config(b'[remote "a\tb"]\n\turl = "https://example.org/\tx"\n')


@pytest.mark.parametrize("name", ["", "x", "0" * 39, "\u0660" * 40, "G" * 40])
def test_a_state_is_the_name_of_an_object(name: str) -> None:
    head = f"# v2 git bundle\n{name} refs/s3ws/state\n\n".encode()
    assert bundle.first_state(head) is None


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "\x1b[31m"},
        {"object_format": "md5"},
        {"where": ["", "../x", ".git"]},
        {"where": ["", "a\0b", ".git"]},
        {"where": "abc"},
        {"empty_dirs": "abc"},
        {"left_out": ["ab"]},
    ],
)
def test_manifests_of_another_shape(change: dict[str, object]) -> None:
    """A kind went to the terminal as it was."""
    manifest.decode(json.dumps(bundles.MANIFEST).encode(), "bundle")
    with pytest.raises(FormatError, match="shape"):
        manifest.decode(json.dumps({**bundles.MANIFEST, **change}).encode(), "bundle")


def test_header_of_the_sample_is_one() -> None:
    """The seeds are valid: the cases start from what is accepted."""
    frames = codecs._frames(random.Random(1))
    header = journal.encode_header(make_header(b"", frames))
    assert journal.decode_header(header, "x").records_bytes == len(frames)
    runs: list[Callable[[], object]] = [
        lambda: codecs.run_frames(frames),
        lambda: codecs.run_acl(codecs.ACL),
        lambda: codecs.run_config(json.dumps(codecs.CONFIG).encode()),
        lambda: registry.decode("x", json.dumps(codecs.INFO).encode()),
        lambda: codecs.run_request(json.dumps(codecs.REQUEST).encode()),
        lambda: codecs.run_status(codecs.STATUS),
        lambda: notes.run_lease(json.dumps(notes.LEASE).encode()),
        lambda: notes.run_snapshot(notes.SNAPSHOT.encode()),
        lambda: notes.run_outdated(json.dumps(notes.OUTDATED).encode()),
    ]
    for run in runs:
        run()

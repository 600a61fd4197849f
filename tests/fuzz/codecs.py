"""Targets: what the core decodes (journal, records, lists, ids, paths, configuration) and sockets.

Called by tests.fuzz.
"""

from __future__ import annotations

import dataclasses
import json
import random
import struct
import zlib
from typing import Any, Final

import xxhash

from s3ws_fs.cli import render
from s3ws_fs.control import registry, wire
from s3ws_fs.core import acl, content, ids, journal, keys, layout, records
from s3ws_fs.core.config import MountConfig, StoreConfig, WorkspaceId
from s3ws_fs.core.errors import UserError
from s3ws_fs.core.types import Location
from s3ws_fs.settings import OPTIONS, Settings
from s3ws_fs.store.base import check_key
from s3ws_fs.transfer import wire as worker_wire
from tests.core.test_journal import make_header
from tests.fuzz.mutate import any_text, any_value, changed_value, json_bytes, mutated
from tests.fuzz.target import Target

PREFIX: Final = "conversations/u/c/workspace/"
DIGEST: Final = bytes(range(16))
INODE: Final = records.InodeRec(
    7, 0o100644, 1, 2, 1, 0, 5, 4096, 1, 2, 3, 9, 1, b"name", b""
).encode()
CHUNK: Final = records.encode_location(Location(3, 1024, 32768, DIGEST))
ROWS: Final = {
    keys.T_INODES: (keys.pack_u64(7), INODE),
    keys.T_DENTRIES: (keys.dentry_key(1, b"name"), keys.pack_u64(7)),
    keys.T_CHUNKS: (keys.chunk_key(7, 0), CHUNK),
    keys.T_XATTRS: (keys.xattr_key(7, b"user.a"), b"value"),
    keys.T_LINKS: (keys.link_key(7, 1, b"name"), b""),
    journal.T_MTODO: (keys.pack_u64(7), keys.pack_u64(9)),
}


BOMBS: Final = tuple(zlib.compress(bytes(size)) for size in (1 << 20, 8 << 20))


# --- the journal


def _frame(raw: bytes, said_raw: int | None = None) -> bytes:
    packed = zlib.compress(raw)
    return struct.pack(">II", len(packed), len(raw) if said_raw is None else said_raw) + packed


def _frames(rng: random.Random) -> bytes:
    frames = b""
    for table, row in ROWS.items():
        for _, frame in journal.encode_puts(table, [row] * rng.randrange(3)):
            frames += frame
    for _, frame in journal.encode_tombs(keys.T_INODES, [keys.pack_u64(5)]):
        frames += frame
    return frames


def make_frames(rng: random.Random) -> bytes:
    """Frames: changed inside their packing, changed outside, or bombs."""
    how = rng.randrange(4)
    if how == 0:
        return mutated(rng, _frames(rng))
    if how == 1:
        bomb, said = rng.choice(BOMBS), rng.choice((8 << 20, 100, 1 << 20, 2**32 - 1))
        return struct.pack(">II", len(bomb), said) + bomb
    table = rng.choice([*ROWS, 0, 9, 255])
    parts = list(ROWS.get(table, (b"k", b"v")))
    if rng.random() < 0.7:
        at = rng.randrange(2)
        parts[at] = mutated(rng, parts[at])
    key, value = parts
    count = rng.choice((0, 1, 1, 1, 2, 2**32 - 1))
    raw = struct.pack(">BBHI", table, rng.choice((0, 0, 0, 1, 2)), 0, count)
    raw += struct.pack(">H", len(key) & 0xFFFF) + struct.pack(">I", len(value)) + key + value
    return _frame(mutated(rng, raw) if how == 2 else raw) + _frames(rng) * rng.randrange(2)


def run_frames(raw: bytes) -> None:
    """What comes out can be taken apart as its table says."""
    for frame in journal.decode_frames(raw, "journal/seg/1"):
        assert frame.tombs or len(frame.keys) == len(frame.values)
        for key in frame.keys:
            keys.unpack_u64(key)
            if frame.table == keys.T_CHUNKS:
                keys.split_chunk_key(key)
            elif frame.table == keys.T_DENTRIES:
                assert keys.split_dentry_key(key)[2]
            elif frame.table == keys.T_LINKS:
                assert keys.split_link_key(key)[2]
        for value in frame.values:
            if frame.table == keys.T_CHUNKS:
                records.decode_location(value)
            elif frame.table in (keys.T_DENTRIES, journal.T_MTODO):
                keys.unpack_u64(value)


def make_object(rng: random.Random) -> bytes:
    """A journal object, changed: below its digests (made anew), or as a disk would."""
    frames = make_frames(rng)
    data = rng.randbytes(rng.randrange(100))
    header = dataclasses.asdict(make_header(data, frames))
    how = rng.randrange(4)
    if how == 0:
        body = json_bytes(rng, header)[:900]
    else:
        header = header if how == 1 else changed_value(rng, header)
        body = json.dumps(header).encode()[:900]
    raw = journal.MAGIC + struct.pack(">I", rng.choice((len(body), len(body), 5, 2**32 - 1))) + body
    raw = raw.ljust(journal.HEADER_BYTES - 16, b"\0")
    raw += xxhash.xxh3_128_digest(raw) + data + frames
    raw += xxhash.xxh3_128_digest(raw)
    return mutated(rng, raw) if how == 3 else raw


def run_object(raw: bytes) -> None:
    """A whole object; and its header alone, whose bytes may be right where the rest is not."""
    header = journal.decode_header(raw, "journal/seg/1")
    assert header.total_bytes >= 0
    _, block = journal.open_object(raw, "journal/seg/1")
    run_frames(bytes(block))


# --- records


def make_record(rng: random.Random) -> tuple[int, bytes]:
    """Any record's bytes, changed."""
    mirror = records.MirrorRow(b"a/b", 7, 1, 2, "etag", DIGEST).encode()
    known = (INODE, CHUNK, records.encode_dirty(3, -4), bytes(32), mirror)
    which = rng.randrange(len(known))
    raw = known[which]
    return which, mutated(rng, raw) if rng.random() < 0.9 else rng.randbytes(rng.randrange(200))


def run_record(case: tuple[int, bytes]) -> None:
    """Decoded, it encodes to the very same bytes."""
    which, raw = case
    again: Any
    if which == 0:
        rec = records.decode_inode(7, raw)
        rec.attr()
        again = rec.encode()
    elif which == 1:
        again = records.encode_location(records.decode_location(raw))
    elif which == 2:
        again = records.encode_dirty(*records.decode_dirty(raw))
    elif which == 3:
        again = records.decode_head(raw).encode()
    else:
        again = records.decode_mirror(raw).encode()
    assert again == raw


ACL: Final = acl.encode(
    (
        acl.Entry(acl.USER_OBJ, 7),
        acl.Entry(acl.USER, 6, 1000),
        acl.Entry(acl.GROUP_OBJ, 5),
        acl.Entry(acl.GROUP, 4, 1000),
        acl.Entry(acl.MASK, 7),
        acl.Entry(acl.OTHER, 0),
    )
)


def run_acl(raw: bytes) -> None:
    """A list is valid, and stays what it is."""
    found = acl.decode(raw)
    assert acl.decode(acl.encode(found)) == found
    if found:
        assert 0 <= acl.mode_bits(found) <= 0o777
        assert acl.decode(acl.encode(acl.chmod(found, 0o750)))


# --- paths


def make_path(rng: random.Random) -> bytes:
    """A path of names as a filesystem may have them, or of anything."""
    names = [
        rng.choice((any_text(rng).encode("utf-8", "surrogatepass"), rng.randbytes(5), b"%41", b"a"))
        for _ in range(rng.randrange(1, 5))
    ]
    if rng.random() < 0.7:
        names = [name.replace(b"/", b"").replace(b"\0", b"")[:255] or b"x" for name in names]
    return b"/".join(names)


def run_path(path: bytes) -> None:
    """A path's key leads back to it, and stays below the prefix; whatever it is, no escape."""
    text, reason = layout.mirror_path(path, len(PREFIX))
    if reason:
        assert not text
        return
    assert layout.unescape_path(text) == path
    key = PREFIX + layout.FILES_PREFIX + text
    pieces = text.split("/")
    assert not any(piece in ("", ".", "..") for piece in pieces), text
    assert len(pieces) == path.count(b"/") + 1
    assert text.isprintable() or not any(ord(char) < 32 for char in text)
    if not any(len(piece.encode()) > 255 for piece in pieces):
        check_key("put", key)


def run_text(text: str) -> None:
    """A key that somebody else put: no path, or one whose key it is."""
    path = layout.unescape_path(text)
    if path is not None:
        assert layout.escape_path(path) == text
        assert not any(name in (b"", b".", b"..") for name in path.split(b"/"))
    for prefix in (layout.SEG_PREFIX, layout.CKPT_PREFIX, layout.BLOB_PREFIX):
        number = layout.key_number(prefix + text, prefix)
        assert number is None or f"{number:016x}" == text


def run_key(key: str) -> None:
    """What passes as a key leads nowhere else when it is a path."""
    check_key("put", key)
    assert not key.startswith("/")
    assert not {"", ".", ".."} & set(key.split("/"))
    assert not any(ord(char) < 32 or char == "\\" for char in key)


def run_id(text: str) -> None:
    """An id or a prefix that is accepted is one piece of a key."""
    found = ids.canonical_id(text, what="id")
    assert "/" not in found
    assert found.isascii()
    assert found.isprintable()
    assert ids.canonical_id(found, what="id") == found
    prefix = ids.canonical_root_prefix(text)
    assert ".." not in prefix.split("/")


def run_metadata(metadata: dict[str, str]) -> None:
    """Somebody else's object is no object of ours, whatever it says."""
    content.wishes(metadata)
    found = content.our_mark(metadata, "w" * 32, "a/b")
    if found is not None:
        generation, digest = found
        assert 0 <= generation < 1 << 64
        assert len(digest) == 16


def make_metadata(rng: random.Random) -> dict[str, str]:
    """User metadata like ours."""
    ours = {
        content.META_HASH: DIGEST.hex(),
        content.META_GENERATION: "5",
        content.META_WORKSPACE: "w" * 32,
    }
    value = changed_value(rng, ours) if rng.random() < 0.9 else {}
    return {str(k): str(v) for k, v in value.items()} if isinstance(value, dict) else {}


# --- configuration and sockets

CONFIG: Final = json.loads(
    MountConfig(
        mountpoint="/mnt/w",
        workspace=WorkspaceId("u", "c", "root/"),
        store=StoreConfig(type="s3", bucket="bucket", endpoint_url="http://localhost:1"),
        cache_dir="/var/cache/s3ws",
        runtime_dir="/run/s3ws",
        uid_map=((1, 2),),
    ).dumps()
)
INFO: Final = {
    "v": 1, "mountpoint": "/mnt/w", "pid": 5, "pid_start_ticks": 3, "boot_id": "b", "user_id": "u",
    "conversation_id": "c", "prefix": PREFIX, "store_type": "s3", "store_location": "s3://bucket",
    "cache_path": "/c", "log_path": None, "started_at_s": 1.5, "version": "1",
}  # fmt: skip
REQUEST: Final = {"v": 1, "cmd": "unmount", "args": {"grace_s": 1.0}}
ANSWER: Final = {
    "id": 3,
    "error": {"kind": "transient", "op": "put", "key": "k", "detail": "d"},
    "part": {"rows": [["a", 1, 2, 3, "etag", DIGEST.hex()]], "removed": ["b"]},
    "ok": {},
    "traffic": {"requests": {"put 200": 1}, "sent_bytes": 2, "received_bytes": 3},
}
STATUS: Final = {
    "mountpoint": "/m", "pid": 1, "state": "ready", "uptime_s": 5.0,
    "workspace": {"prefix": "p"}, "store": {"location": "l"},
    "cache": {"room": {"reason": "full"}, "recovered": "back", "quarantines": ["q"],
        "sync_point_error": "e",
    },
    "generation": {"head": 5, "sealed": 4, "mirrored": 3},
    "dirty": {"files": 1, "bytes": 10, "oldest_age_s": 1.0, "records": 2},
    "flush": {"state": "idle", "next_due_s": 1.0, "last_sealed_age_s": 3},
    "health": {"state": "degraded", "since_s": 4, "error": "e"},
    "quota": {"used_bytes": 1, "max_bytes": 2, "used_inodes": 3, "max_inodes": 4},
    "mirror": {"unmirrored": [{"path": "p", "reason": "r"}], "conflicts": ["c"]},
    "hydration": {"cold_files": 1, "cold_bytes": 2, "damaged": [], "second_copies": ["s"]},
}  # fmt: skip


def run_config(raw: bytes) -> None:
    """A configuration that is accepted survives its own round trip."""
    config = MountConfig.loads(raw)
    assert MountConfig.loads(config.dumps()) == config
    assert config.workspace.prefix.endswith("/workspace/")
    assert config.workspace_cache_dir.startswith(config.cache_dir.rstrip("/") + "/")


def make_environment(rng: random.Random) -> dict[str, str]:
    """Variables as a person may set them: what no environment can hold is left out."""
    names = [name for option in OPTIONS.values() for name in option.variables]
    chosen = {
        "WORKSPACE_USER_ID": "u",
        "WORKSPACE_CONVERSATION_ID": "c",
        "WORKSPACE_CACHE_DIR": "/c",
    }
    for name in rng.sample(names, rng.randrange(1, 4)):
        value = str(any_value(rng, 0)) if rng.random() < 0.5 else any_text(rng)
        chosen[name] = value.replace("\0", "")
    return chosen


def run_environment(environ: dict[str, str]) -> None:
    """Settings, or an error that names where they came from; they make a configuration or not."""
    config = Settings.load(environ).mount_config("/mnt/w")
    assert MountConfig.loads(config.dumps()) == config


def run_request(raw: bytes) -> None:
    """A request is a command and an object."""
    found = wire.decode_request(raw)
    assert isinstance(found.args, dict)
    assert found.cmd


def run_answer(raw: bytes) -> None:
    """An error in an answer is always an exception that can be shown."""
    message = wire.decode(raw)
    error = wire.error_from(message.get("error"))
    assert error.message
    assert int(error.exit_code)


def run_worker_frame(raw: bytes) -> None:
    """A frame between daemon and worker, and what is taken out of it."""
    if len(raw) < worker_wire.HEAD_BYTES:
        return
    head, rest = raw[: worker_wire.HEAD_BYTES], raw[worker_wire.HEAD_BYTES :]
    size = worker_wire.rest_bytes(head)
    assert size <= worker_wire.FRAME_BYTES_MAX
    message, _ = worker_wire.decode(head, rest[:size])
    assert isinstance(worker_wire.error_from(message.get("error", {})), Exception)
    part = message.get("part", {})
    worker_wire.paths_from(part.get("removed", []))
    worker_wire.rows_from(part.get("rows", []))


def make_worker_frame(rng: random.Random) -> bytes:
    """A frame, changed inside its JSON or outside."""
    body = json_bytes(rng, ANSWER)
    raw = struct.pack(">II", 4 + len(body) + 3, len(body)) + body + b"pay"
    return mutated(rng, raw) if rng.random() < 0.3 else raw


def run_status(document: Any) -> None:
    """A person's terminal sees printable text, whatever a daemon says."""
    if not isinstance(document, dict):
        return
    for line in render.status_lines(document):
        assert line.isprintable(), line


TARGETS: Final = (
    Target("journal frames", make_frames, run_frames),
    Target("journal objects", make_object, run_object),
    Target("records", make_record, run_record),
    Target("access control lists", lambda rng: mutated(rng, ACL), run_acl),
    Target("mirror paths", make_path, run_path, errors=(ValueError,)),
    Target("mirror keys", lambda rng: "/".join((any_text(rng), any_text(rng))), run_text),
    Target("store keys", lambda rng: PREFIX + any_text(rng), run_key),
    Target("ids", any_text, run_id),
    Target("object metadata", make_metadata, run_metadata),
    Target("mount configuration", lambda rng: json_bytes(rng, CONFIG), run_config, (UserError,)),
    Target("settings", make_environment, run_environment, (UserError,)),
    Target(
        "registry entries",
        lambda rng: json_bytes(rng, INFO),
        lambda raw: registry.decode("entry", raw).is_alive(),
    ),
    Target("control requests", lambda rng: json_bytes(rng, REQUEST) + b"\n", run_request),
    Target(
        "control answers", lambda rng: json_bytes(rng, {"ok": False, "error": ANSWER}), run_answer
    ),
    Target("worker frames", make_worker_frame, run_worker_frame),
    Target("status documents", lambda rng: changed_value(rng, STATUS), run_status),
)

"""The bucket as somebody else sees it: without a line of s3ws_fs's stores.

Invariants
1. A `Bucket` reads with plain os calls or a plain boto3 client. It is how a test knows what really
   stands there.
2. Only `put` and `remove` change it, and only what a test names.

Called by the tests of e2e and crash, and by scripts/acceptance.py.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Protocol

from s3ws_fs.core.layout import FILES_PREFIX, mirror_path
from tests.support.seaweed import Seaweed
from tests.support.trees import Manifest, Node

PARALLEL: Final = 8
_LOCAL_XATTR: Final = "user.s3ws"
_LOCAL_HIDDEN: Final = ".s3ws-tmp"
_TYPE_BITS: Final = {
    "file": stat.S_IFREG,
    "symlink": stat.S_IFLNK,
    "fifo": stat.S_IFIFO,
    "socket": stat.S_IFSOCK,
    "character device": stat.S_IFCHR,
    "block device": stat.S_IFBLK,
}


@dataclass(frozen=True, slots=True)
class Seen:
    """One object: its bytes and what is said about them."""

    body: bytes
    content_type: str
    metadata: Mapping[str, str]


class Bucket(Protocol):
    """What tests ask of a bucket. Keys are whole keys."""

    @property
    def env(self) -> dict[str, str]:
        """The variables by which s3ws finds it."""

    def listing(self, prefix: str = "") -> list[str]:
        """All keys that start with `prefix`, sorted."""

    def get(self, key: str) -> Seen:
        """One object. Raises KeyError."""

    def put(self, key: str, body: bytes) -> None:
        """Put an object there, as a stranger would."""

    def remove(self, key: str) -> None:
        """Take an object away, as a stranger would."""


class LocalBucket:
    """The directory of the storage type `local`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def env(self) -> dict[str, str]:
        return {"WORKSPACE_STORAGE_TYPE": "local", "WORKSPACE_STORAGE_PATH": str(self.root)}

    def listing(self, prefix: str = "") -> list[str]:
        found = []
        for directory, names, files in os.walk(self.root):
            if directory == str(self.root) and _LOCAL_HIDDEN in names:
                names.remove(_LOCAL_HIDDEN)
            base = os.path.relpath(directory, self.root)
            found += [name if base == "." else f"{base}/{name}" for name in files]
        return sorted(key for key in found if key.startswith(prefix))

    def get(self, key: str) -> Seen:
        path = self.root / key
        try:
            body = path.read_bytes()
        except FileNotFoundError:
            raise KeyError(key) from None
        try:
            said = json.loads(os.getxattr(path, _LOCAL_XATTR))
        except OSError:
            said = {}
        return Seen(body, said.get("content_type", ""), said.get("metadata", {}))

    def put(self, key: str, body: bytes) -> None:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)

    def remove(self, key: str) -> None:
        (self.root / key).unlink()


class S3Bucket:
    """A bucket of a running SeaweedFS, by a plain boto3 client."""

    def __init__(self, server: Seaweed) -> None:
        self.server = server
        self._client: Any = server.client()

    @property
    def env(self) -> dict[str, str]:
        return {
            **self.server.env,
            "WORKSPACE_STORAGE_TYPE": "s3",
            "WORKSPACE_BUCKET": self.server.bucket,
        }

    def listing(self, prefix: str = "") -> list[str]:
        found: list[str] = []
        pages = self._client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=self.server.bucket, Prefix=prefix):
            found += [item["Key"] for item in page.get("Contents", ())]
        return sorted(found)

    def get(self, key: str) -> Seen:
        try:
            answer = self._client.get_object(Bucket=self.server.bucket, Key=key)
        except self._client.exceptions.NoSuchKey:
            raise KeyError(key) from None
        with answer["Body"] as body:
            return Seen(body.read(), answer["ContentType"], answer["Metadata"])

    def put(self, key: str, body: bytes) -> None:
        self._client.put_object(Bucket=self.server.bucket, Key=key, Body=body)

    def remove(self, key: str) -> None:
        self._client.delete_object(Bucket=self.server.bucket, Key=key)

    def close(self) -> None:
        """End the client's connections."""
        self._client.close()


def mirror_differences(
    bucket: Bucket, workspace_prefix: str, tree: Manifest, unmirrored: set[str]
) -> list[str]:
    """Where `files/` is not the tree, in words; empty when it is.

    Each name but directories has one object of its bytes, content type and s3fs metadata; what no
    key can carry is in `unmirrored` (paths that status names); and there is no other object.
    """
    prefix = workspace_prefix + FILES_PREFIX
    wanted: dict[str, Node] = {}
    found = []
    for path, node in tree.items():
        if node.kind == "directory":
            continue
        where, reason = mirror_path(path, len(workspace_prefix))
        if not reason:
            wanted[prefix + where] = node
        elif os.fsdecode(path) not in unmirrored:
            found.append(f"{path!r} can't be mirrored ({reason}), but status does not say so")
    standing = set(bucket.listing(prefix))
    found += [f"{key}: no file has this object" for key in sorted(standing - wanted.keys())]
    found += [f"{key}: missing" for key in sorted(wanted.keys() - standing)]
    both = sorted(standing & wanted.keys())
    with ThreadPoolExecutor(PARALLEL) as pool:
        for differences in pool.map(lambda key: _compare(key, bucket.get(key), wanted[key]), both):
            found += differences
    return found


def _compare(key: str, seen: Seen, node: Node) -> list[str]:
    if node.kind == "file":
        same = sha256(seen.body).hexdigest() == node.sha256 and len(seen.body) == node.size
    else:
        same = seen.body == (node.target if node.kind == "symlink" else b"")
    found = [] if same else [f"{key}: its {len(seen.body)} bytes are not the {node.kind}'s"]
    seconds, rest_ns = divmod(node.mtime_ns, 1_000_000_000)
    said = {
        "mode": str(_TYPE_BITS[node.kind] | node.mode),
        "uid": str(node.uid),
        "gid": str(node.gid),
        "mtime": f"{seconds}.{rest_ns:09d}" if rest_ns else str(seconds),
    }
    found += [
        f"{key}: metadata {name} is {seen.metadata.get(name)!r}, wanted {value!r}"
        for name, value in said.items()
        if seen.metadata.get(name) != value
    ]
    return found if seen.content_type else [*found, f"{key}: no content type"]

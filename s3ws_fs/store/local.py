"""A directory laid out exactly as the bucket, as an ObjectStore: the embedded default.

Layout: `{root}/{key}` is the object's bytes, readable by any tool. Content type and user metadata
stand in the extended attribute `user.s3ws` (JSON), which is missing when both are the default; it
also names the size and mtime it was made for: after an edit in place it speaks of other bytes, and
does not count.
`{root}/.s3ws-tmp/` holds what is being written, and the lock; it is no part of the bucket.

Invariants
1. A file appears at its key complete, with its attribute, and synced: temporary file, fsync, then
   link (must-create: the kernel picks the one winner) or rename, then fsync of the directory.
2. The ETag is made of inode number, mtime and size: an edit in place by another program changes it.
3. If-Match and delete hold the lock file (flock) from the comparison to the change, so that they
   are atomic among all processes that use this class; an editor takes no lock, and an edit in the
   microseconds between is lost.
4. No symlink below the root is followed (local_tree). Files are 0600, directories 0700.
5. Empty directories are removed with the last object in them, as in a bucket; those that a killed
   process left stand in nobody's way.
6. A key can't be both an object and a prefix of others: PermanentError (S3 allows it).

Called by the factory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, TypeVar

from s3ws_fs.core import jsontext
from s3ws_fs.core.errors import (
    ConflictError,
    FormatError,
    NotFoundError,
    PermanentError,
    StoreError,
    TransientError,
)
from s3ws_fs.store import local_tree as tree
from s3ws_fs.store.base import (
    COMPONENT_BYTES_MAX,
    DEFAULT_CONTENT_TYPE,
    DeleteFailure,
    Fetched,
    ListEntry,
    ObjectInfo,
    ObjectStore,
    check_attributes,
    check_conditions,
    check_key,
    check_range,
    check_self_copy,
    usable_keys,
)
from s3ws_fs.store.body import Body, FileSlice, Source

TEMP_DIR: Final = ".s3ws-tmp"
LOCK_NAME: Final = "lock"
XATTR: Final = "user.s3ws"
TEMP_AGE_S: Final = 24 * 3600.0
"""Older temporary files were left by a killed process and are removed on open."""
PUBLISH_TRIES_MAX: Final = 100
"""How often a put makes its directory again that concurrent deletes prune."""
COPY_CHUNK_BYTES: Final = 4 << 20

T = TypeVar("T")
_Attributes = tuple[str, Mapping[str, str]]


class LocalStore(ObjectStore):
    """One directory. Any number of processes may use it at once."""

    def __init__(self, root: str, *, read_only: bool = False) -> None:
        """`root` must exist or its parent must. Raises PermanentError.

        Read-only, it must exist, and nothing is made or removed in it.
        """
        super().__init__()
        self._temp = -1
        try:
            if read_only:
                self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                return
            with contextlib.suppress(FileExistsError):
                os.mkdir(root, 0o700)
            # The root itself may be a symlink: that is the administrator's choice.
            self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            with contextlib.suppress(FileExistsError):
                os.mkdir(TEMP_DIR, 0o700, dir_fd=self._root)
            self._temp = os.open(TEMP_DIR, tree.DIR_FLAGS, dir_fd=self._root)
            self._remove_stale()
        except OSError as exc:
            detail = f"can't use this directory as a store: {exc.strerror}"
            raise PermanentError("open", root, detail) from exc

    def get(
        self, key: str, offset: int = 0, length: int | None = None, *, if_match: str | None = None
    ) -> Fetched:
        """See ObjectStore.get."""
        self._check("get", key)
        check_range(key, offset, length)
        check_conditions("get", key, if_none_match=False, if_match=if_match)

        def run() -> Fetched:
            with self._open("get", key, if_match) as (fd, info):
                end = info.st_size if length is None else min(offset + length, info.st_size)
                size = max(0, end - offset)
                data = Source("get", key, FileSlice(fd, offset, size)).read_all()
                if _etag(os.fstat(fd)) != _etag(info):
                    raise ConflictError("get", key, "the object was edited while it was read")
                return Fetched(data, _etag(info), info.st_size)

        found = self._counted("get", key, run)
        self.counters.carried(received_bytes=len(found.data))
        return found

    def head(self, key: str) -> ObjectInfo:
        """See ObjectStore.head."""
        self._check("head", key)

        def run() -> ObjectInfo:
            with self._open("head", key, None) as (fd, info):
                kind, metadata = _read_attributes(fd)
                etag = _etag(info)
                return ObjectInfo(key, info.st_size, etag, info.st_mtime_ns, kind, metadata)

        return self._counted("head", key, run)

    def put(
        self,
        key: str,
        body: Body,
        *,
        content_type: str = DEFAULT_CONTENT_TYPE,
        metadata: Mapping[str, str] | None = None,
        if_none_match: bool = False,
        if_match: str | None = None,
    ) -> str:
        """See ObjectStore.put."""
        self._check("put", key)
        check_attributes("put", key, content_type, metadata)
        check_conditions("put", key, if_none_match=if_none_match, if_match=if_match)
        source = Source("put", key, body)

        def fill(fd: int) -> _Attributes:
            for offset in range(0, source.size_bytes, COPY_CHUNK_BYTES):
                length = min(COPY_CHUNK_BYTES, source.size_bytes - offset)
                _write_all(fd, source.read_at(offset, length))
            return content_type, metadata or {}

        etag = self._counted("put", key, lambda: self._write(key, fill, if_none_match, if_match))
        self.counters.carried(sent_bytes=source.size_bytes)
        return etag

    def copy(
        self,
        src: str,
        dst: str,
        *,
        src_if_match: str | None = None,
        content_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
        if_none_match: bool = False,
        if_match: str | None = None,
    ) -> str:
        """See ObjectStore.copy."""
        self._check("copy", src)
        self._check("copy", dst)
        check_attributes("copy", dst, content_type, metadata)
        check_conditions("copy", src, if_none_match=False, if_match=src_if_match)
        check_conditions("copy", dst, if_none_match=if_none_match, if_match=if_match)
        check_self_copy(src, dst, content_type, metadata)

        def fill(fd: int) -> _Attributes:
            with self._source(src, src_if_match) as (src_fd, info):
                _copy_bytes(src_fd, fd)
                if _etag(os.fstat(src_fd)) != _etag(info):
                    raise ConflictError("copy", src, "the object was edited while it was copied")
                if content_type is None and metadata is None:
                    return _read_attributes(src_fd)
                return content_type or DEFAULT_CONTENT_TYPE, metadata or {}

        return self._counted("copy", dst, lambda: self._write(dst, fill, if_none_match, if_match))

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        """See ObjectStore.delete."""
        self._check("delete", key)
        check_conditions("delete", key, if_none_match=False, if_match=if_match)
        with contextlib.suppress(NotFoundError):
            self._counted("delete", key, lambda: self._delete(key, if_match))

    def delete_many(self, keys: Iterable[str | tuple[str, str]]) -> list[DeleteFailure]:
        """See ObjectStore.delete_many."""
        pairs = [(item, None) if isinstance(item, str) else item for item in keys]
        for key, etag in pairs:
            self._check("delete", key)
            check_conditions("delete", key, if_none_match=False, if_match=etag)
        failures = []
        for key, etag in pairs:
            try:
                self.delete(key, if_match=etag)
            except StoreError as exc:
                failures.append(DeleteFailure(key, exc))
        return failures

    def purge(self, keys: Iterable[str]) -> list[DeleteFailure]:
        """See ObjectStore.purge."""
        good, failures = usable_keys(keys)
        failures += self.delete_many(key for key in good if not key.endswith("/"))
        for key in good:
            if key.endswith("/"):
                try:
                    tree.prune(self._root, key)
                except OSError as exc:
                    failures.append(DeleteFailure(key, tree.map_os_error("delete", key, exc)))
        return failures

    def list(self, prefix: str = "", start_after: str = "") -> Iterator[ListEntry]:
        """See ObjectStore.list. Byte order throughout."""
        self.counters.add("list", "200")
        after = start_after.encode()
        try:
            for key, info in tree.walk(self._root, prefix, TEMP_DIR):
                if key.encode() > after:
                    yield ListEntry(key, info.st_size, _etag(info), info.st_mtime_ns)
        except OSError as exc:
            raise tree.map_os_error("list", prefix, exc) from exc

    def markers(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See ObjectStore.markers: here these are the directories without a file below."""
        self.counters.add("list", "200")
        try:
            for key, info in tree.hollow(self._root, prefix, TEMP_DIR):
                yield ObjectInfo(key, 0, "directory", info.st_mtime_ns, DEFAULT_CONTENT_TYPE, {})
        except OSError as exc:
            raise tree.map_os_error("list", prefix, exc) from exc

    def folders(self, prefix: str = "") -> Iterator[str]:
        """See ObjectStore.folders. A directory without a file below is no folder of a bucket."""
        self.counters.add("list", "200")
        try:
            for name in tree.directories(self._root, prefix, TEMP_DIR):
                if next(tree.walk(self._root, f"{prefix}{name}/", TEMP_DIR), None) is not None:
                    yield name
        except OSError as exc:
            raise tree.map_os_error("list", prefix, exc) from exc

    def everything(self, prefix: str = "") -> Iterator[ListEntry]:
        """See ObjectStore.everything."""
        yield from self.list(prefix)
        for marker in self.markers(prefix):
            yield ListEntry(marker.key, 0, marker.etag, marker.modified_ns)

    def check(self, prefix: str = "") -> None:
        """See ObjectStore.check: also proves that the filesystem has user extended attributes."""

        def run() -> None:
            with self._temporary() as (fd, _):
                os.setxattr(fd, XATTR, b"{}")

        self._counted("head", prefix, run)

    def close(self) -> None:
        """See ObjectStore.close."""
        for fd in (self._temp, self._root):
            if fd >= 0:
                os.close(fd)
        self._temp = self._root = -1

    def _check(self, op: str, key: str) -> None:
        check_key(op, key, component_bytes_max=COMPONENT_BYTES_MAX)
        if key.split("/", 1)[0] == TEMP_DIR:
            raise PermanentError(op, key, f"{TEMP_DIR} is the store's own")

    def _counted(self, op: str, key: str, run: Callable[[], T]) -> T:
        try:
            result = run()
        except OSError as exc:
            self.counters.add(op, errno.errorcode.get(exc.errno or 0, "OSError"))
            raise tree.map_os_error(op, key, exc) from exc
        except StoreError as exc:
            self.counters.add(op, type(exc).__name__)
            raise
        self.counters.add(op, "200")
        return result

    @contextlib.contextmanager
    def _open(self, op: str, key: str, etag: str | None) -> Iterator[tuple[int, os.stat_result]]:
        with tree.parent_of(self._root, key) as (parent, name):
            fd, info = tree.open_file(parent, name)
        try:
            if etag is not None and _etag(info) != etag:
                raise ConflictError(op, key, "the object has changed")
            yield fd, info
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _source(self, src: str, etag: str | None) -> Iterator[tuple[int, os.stat_result]]:
        try:
            with self._open("copy", src, etag) as found:
                yield found
        except FileNotFoundError as exc:
            raise NotFoundError("copy", src, "there is no such object") from exc

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[tuple[int, str]]:
        name = secrets.token_hex(16)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=self._temp)
        try:
            yield fd, name
        finally:
            os.close(fd)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._temp)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        # A descriptor of its own for each holder: flock then excludes threads too.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(LOCK_NAME, flags, 0o600, dir_fd=self._temp)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _write(
        self,
        key: str,
        fill: Callable[[int], _Attributes],
        if_none_match: bool,
        if_match: str | None,
    ) -> str:
        """Fill a temporary file, publish it at `key`; returns its ETag."""
        with self._temporary() as (fd, temp):
            kind, metadata = fill(fd)
            if kind != DEFAULT_CONTENT_TYPE or metadata:
                value = {
                    "content_type": kind,
                    "metadata": dict(metadata),
                    "of": _stamp(os.fstat(fd)),
                }
                os.setxattr(fd, XATTR, json.dumps(value).encode())
            os.fsync(fd)
            for tries in range(1, PUBLISH_TRIES_MAX + 1):
                try:
                    self._publish(temp, key, if_none_match, if_match)
                    break
                except (FileExistsError, IsADirectoryError):
                    with tree.parent_of(self._root, key) as (parent, name):
                        if tries == PUBLISH_TRIES_MAX or not tree.remove_hollow(parent, name):
                            raise
                except FileNotFoundError as exc:
                    if tries == PUBLISH_TRIES_MAX:
                        detail = "its directory is removed again and again"
                        raise TransientError("put", key, detail) from exc
            return _etag(os.fstat(fd))

    def _publish(self, temp: str, key: str, if_none_match: bool, if_match: str | None) -> None:
        with tree.parent_of(self._root, key, create=True) as (parent, name):
            if if_none_match:
                try:
                    os.link(temp, name, src_dir_fd=self._temp, dst_dir_fd=parent)
                except FileExistsError as exc:
                    if tree.is_dir(parent, name):
                        raise
                    raise ConflictError("put", key, "the object exists already") from exc
            else:
                with self._locked():
                    if if_match is not None:
                        self._require(key, if_match)
                    os.rename(temp, name, src_dir_fd=self._temp, dst_dir_fd=parent)
            os.fsync(parent)

    def _require(self, key: str, etag: str) -> None:
        try:
            with self._open("put", key, etag):
                return
        except FileNotFoundError as exc:
            raise ConflictError("put", key, "the object to replace is gone") from exc

    def _delete(self, key: str, if_match: str | None) -> None:
        with tree.parent_of(self._root, key) as (parent, name):
            with self._locked():
                fd, info = tree.open_file(parent, name)
                os.close(fd)
                if if_match is not None and _etag(info) != if_match:
                    raise ConflictError("delete", key, "the object has changed")
                os.unlink(name, dir_fd=parent)
            os.fsync(parent)
        tree.prune(self._root, key)

    def _remove_stale(self) -> None:
        before = time.time() - TEMP_AGE_S
        for name in os.listdir(self._temp):
            with contextlib.suppress(FileNotFoundError):
                if name != LOCK_NAME and os.stat(name, dir_fd=self._temp).st_mtime < before:
                    os.unlink(name, dir_fd=self._temp)


def _etag(info: os.stat_result) -> str:
    return f"{info.st_ino:x}-{info.st_mtime_ns:x}-{info.st_size:x}"


def _stamp(info: os.stat_result) -> list[int]:
    # Not the inode number: a copy of the whole store (cp -a, rsync -X) stays what it is.
    return [info.st_size, info.st_mtime_ns]


def _read_attributes(fd: int) -> _Attributes:
    try:
        value = jsontext.object_of(os.getxattr(fd, XATTR), XATTR)
        if value.get("of") != _stamp(os.fstat(fd)):
            return DEFAULT_CONTENT_TYPE, {}
        metadata = {str(name): str(item) for name, item in value.get("metadata", {}).items()}
        return str(value.get("content_type", DEFAULT_CONTENT_TYPE)), metadata
    except OSError as exc:
        if exc.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise
        return DEFAULT_CONTENT_TYPE, {}
    except (FormatError, AttributeError):
        # Somebody else's attribute: the bytes still stand.
        return DEFAULT_CONTENT_TYPE, {}


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _copy_bytes(src_fd: int, dst_fd: int) -> None:
    try:
        while os.copy_file_range(src_fd, dst_fd, 1 << 30):
            pass
    except OSError as exc:
        if exc.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        while os.sendfile(dst_fd, src_fd, None, COPY_CHUNK_BYTES):
            pass

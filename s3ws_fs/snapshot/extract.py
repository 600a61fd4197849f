"""Restores a backup, or some paths of it, into a directory.

Invariants
1. Nothing outside of the directory is touched: every step is made from a directory's descriptor,
   follows no symlink, and takes single names only. Names and targets come from an untrusted
   workspace, by way of a bucket.
2. Nothing that stands there is overwritten; what is in the way is told.
3. Unless the person trusts it: no setuid or setgid bit, no device, no attribute but user's and
   access control lists. A restore as root must give nobody else's file the rights of root.
4. A directory gets its mode, owner and times when all below it is done.

Called by cli.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import BinaryIO, Final, cast

from s3ws_fs.core import backups
from s3ws_fs.core.errors import ExitCode, FormatError, UserError
from s3ws_fs.snapshot import tarformat
from s3ws_fs.snapshot.reading import BackupReader, Entry, Range

COPY_BYTES: Final = 1 << 20
TAIL_BYTES: Final = 1024
DEPTH_MAX: Final = 4096
FAILED_MAX: Final = 10_000
"""Paths that the report names; of more it says how many."""

_DIR_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SET_ID: Final = stat.S_ISUID | stat.S_ISGID
_PLAIN_XATTRS: Final = (b"user.", b"system.posix_acl_")

Progress = Callable[[int, int], None]
"""Bytes of the tar read so far, and all of them."""


@dataclass(slots=True)
class Restored:
    """The report. Paths are those in the workspace."""

    entries: int = 0
    data_bytes: int = 0
    failed: dict[bytes, str] = field(default_factory=dict)
    """Not restored, and why."""
    notes: dict[bytes, str] = field(default_factory=dict)
    """Restored, but for something."""


class _RefusedError(Exception):
    """A name that is none, or a kind of file that is not restored."""


# --- what ----------------------------------------------------------------------------------


@dataclass(slots=True)
class Selection:
    """Which parts of the tar are read, and as what their entries are restored."""

    ranges: list[Range]
    renamed: dict[bytes, list[bytes]]
    """Entries that are read for the links that were asked for: restored at these paths instead."""
    is_all: bool


def select(reader: BackupReader, paths: list[bytes]) -> Selection:
    """Everything, or what is at and below these paths. Raises UserError where nothing is."""
    entries = reader.index.entries
    wanted = [_clean(path) for path in paths]
    if not wanted or b"" in wanted:
        return Selection([(0, reader.index.tar_bytes)], {}, is_all=True)
    seen: set[bytes] = set()
    chosen: list[Entry] = []
    for entry in entries:
        at = next((w for w in wanted if entry.path == w or entry.path.startswith(w + b"/")), None)
        if at is not None:
            seen.add(at)
            chosen.append(entry)
    missing = [path for path in wanted if path not in seen]
    if missing:
        raise UserError(
            f"There is no {os.fsdecode(missing[0])!a} in {reader.name}.",
            remedy="`s3ws restore-backup --list` shows what is in it.",
            exit_code=ExitCode.BAD_SETTINGS,
        )
    inside = {entry.path for entry in chosen}
    renamed: dict[bytes, list[bytes]] = {}
    for entry in chosen:
        if entry.type == "link" and entry.target not in inside:
            renamed.setdefault(entry.target, []).append(entry.path)
    chosen = [e for e in chosen if e.type != "link" or e.target in inside]
    chosen += [entry for entry in entries if entry.path in renamed]
    chosen.sort(key=lambda entry: entry.at)
    return Selection([(entry.at, entry.length) for entry in chosen], renamed, is_all=False)


def _clean(path: bytes) -> bytes:
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    return b"/".join(parts)


# --- reading the tar -----------------------------------------------------------------------


class _Stream(io.RawIOBase):
    """Pieces of bytes as a file that is read forwards, with the end of an archive behind them.

    tarfile looks back by one byte; TAIL_BYTES are kept for it.
    """

    def __init__(self, pieces: Iterator[bytes], on_read: Callable[[int], None]) -> None:
        super().__init__()
        self._pieces = pieces
        self._on_read = on_read
        self._held = b""
        self._start = 0
        """Where `_held` begins."""
        self._at = 0
        self._is_ended = False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence != os.SEEK_SET or offset < self._start:
            raise io.UnsupportedOperation("it is read forwards")
        while offset > self._start + len(self._held) and self._more():
            pass
        self._at = offset
        return offset

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            # A head may say that what follows it is so long.
            raise ValueError(f"{size} bytes to read")
        parts = []
        while size:
            first = self._at - self._start
            part = self._held[first : first + size]
            if not part:
                if not self._more():
                    break
                continue
            parts.append(part)
            self._at += len(part)
            size -= len(part)
        return b"".join(parts)

    def _more(self) -> bool:
        """Go on to the next piece; False at the end."""
        if self._is_ended:
            return False
        try:
            piece = next(self._pieces)
        except StopIteration:
            piece, self._is_ended = tarformat.END, True
        else:
            self._on_read(len(piece))
        tail = self._held[-TAIL_BYTES:]
        self._start += len(self._held) - len(tail)
        self._held = tail + piece
        return True


def restore(
    reader: BackupReader,
    top_fd: int,
    paths: list[bytes],
    *,
    trusted: bool = False,
    pool: Executor | None = None,
    progress: Progress = lambda _done, _of: None,
) -> Restored:
    """Restore below the directory `top_fd`. Raises UserError, StoreError, FormatError."""
    selection = select(reader, paths)
    total = sum(length for _, length in selection.ranges)
    done = 0

    def on_read(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    writer = _Writer(top_fd, selection, trusted=trusted)
    where = backups.archive_key(reader.name)
    stream = cast(BinaryIO, _Stream(reader.raw(selection.ranges, pool), on_read))
    with _tar_errors(where):
        tar = tarfile.open(  # noqa: SIM115
            fileobj=stream, mode="r:", encoding="utf-8", errors="surrogateescape"
        )
    with tar:
        while True:
            with _tar_errors(where):
                info = tar.next()
            if info is None:
                break
            with _tar_errors(where):
                writer.add(tar, info)
            # It would keep them all.
            tar.members = []  # type: ignore[attr-defined]
    writer.finish()
    return writer.report


@contextlib.contextmanager
def _tar_errors(where: str) -> Iterator[None]:
    """What tarfile raises over bytes that are no tar becomes FormatError: not only its own kind."""
    try:
        yield
    except (tarfile.TarError, ValueError, OverflowError, IndexError, EOFError) as exc:
        raise FormatError(where, f"is no tar archive: {exc!r:.200}") from exc


# --- writing -------------------------------------------------------------------------------


class _Writer:
    """Makes entries below a directory."""

    def __init__(self, top_fd: int, selection: Selection, *, trusted: bool) -> None:
        self._top_fd = top_fd
        self._selection = selection
        self._trusted = trusted
        self._dirs: list[tuple[bytes, tarfile.TarInfo]] = []
        self.report = Restored()

    def add(self, tar: tarfile.TarFile, info: tarfile.TarInfo) -> None:
        """Restore one entry; what can't be is told in the report."""
        path = _bytes(info.name)
        places = self._selection.renamed.get(path, [path])
        try:
            self._make(tar, info, places[0])
            for place in places[1:]:
                self._link(places[0], place)
        except _RefusedError as exc:
            self._fail(path, str(exc))
        except FileExistsError:
            self._fail(path, "something stands there already")
        except OSError as exc:
            self._fail(path, os.strerror(exc.errno or errno.EIO))
        except (OverflowError, ValueError, FormatError) as exc:
            self._fail(path, f"its header makes no sense: {exc}")
        else:
            self.report.entries += len(places)

    def _fail(self, path: bytes, why: str) -> None:
        if len(self.report.failed) < FAILED_MAX:
            self.report.failed[path] = why

    def _make(self, tar: tarfile.TarFile, info: tarfile.TarInfo, path: bytes) -> None:
        if path == b".":
            if self._selection.is_all:
                self._dirs.append((b"", info))
            return
        if info.islnk():
            self._link(_bytes(info.linkname), path)
            return
        with _parent(self._top_fd, path) as (parent, name):
            if info.isdir():
                self._make_dir(parent, name)
                self._dirs.append((path, info))
            elif info.issym():
                os.symlink(_bytes(info.linkname), name, dir_fd=parent)
                self._own(info, name, parent)
                _set_times(info, name, parent)
            elif info.isreg():
                self._make_file(tar, info, path, parent, name)
            else:
                self._make_special(info, path, parent, name)

    @staticmethod
    def _make_dir(parent: int, name: bytes) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent)
        # One that stands there and is no directory is refused here.
        os.close(os.open(name, _DIR_FLAGS, dir_fd=parent))

    def _make_file(
        self, tar: tarfile.TarFile, info: tarfile.TarInfo, path: bytes, parent: int, name: bytes
    ) -> None:
        fd = os.open(name, _NEW_FLAGS, 0o600, dir_fd=parent)
        try:
            source = tar.extractfile(info)
            assert source is not None
            spans = cast(list[tuple[int, int]], info.sparse or [(0, info.size)])
            for offset, length in spans:
                source.seek(offset)
                self._copy(source, fd, offset, length)
            os.ftruncate(fd, info.size)
            self._attributes(info, fd, path)
        finally:
            os.close(fd)

    def _copy(self, source: object, fd: int, offset: int, length: int) -> None:
        reader = cast(BinaryIO, source)
        while length:
            data = reader.read(min(COPY_BYTES, length))
            if not data:
                raise tarfile.ReadError("a file is shorter than its header says")
            os.pwrite(fd, data, offset)
            offset += len(data)
            length -= len(data)
            self.report.data_bytes += len(data)

    def _make_special(self, info: tarfile.TarInfo, path: bytes, parent: int, name: bytes) -> None:
        if info.isfifo():
            os.mkfifo(name, 0o600, dir_fd=parent)
        elif info.ischr() or info.isblk():
            if not self._trusted:
                raise _RefusedError("a device: --trust restores it")
            kind = stat.S_IFCHR if info.ischr() else stat.S_IFBLK
            number = os.makedev(info.devmajor, info.devminor)
            os.mknod(name, kind | 0o600, number, dir_fd=parent)
        else:
            raise _RefusedError("not a kind of file that is restored")
        self._own(info, name, parent)
        os.chmod(name, self._mode(info, path), dir_fd=parent)
        _set_times(info, name, parent)

    def _link(self, first: bytes, path: bytes) -> None:
        with (
            _parent(self._top_fd, first, make=False) as (from_fd, from_name),
            _parent(self._top_fd, path) as (parent, name),
        ):
            os.link(from_name, name, src_dir_fd=from_fd, dst_dir_fd=parent, follow_symlinks=False)

    def finish(self) -> None:
        """Directories' attributes, from the deepest up."""
        for path, info in sorted(self._dirs, key=lambda item: item[0], reverse=True):
            try:
                if not path:
                    self._attributes(info, self._top_fd, path)
                    continue
                with _parent(self._top_fd, path, make=False) as (parent, name):
                    fd = os.open(name, _DIR_FLAGS, dir_fd=parent)
                    try:
                        self._attributes(info, fd, path)
                    finally:
                        os.close(fd)
            except (OSError, OverflowError, ValueError, FormatError) as exc:
                self.report.notes[path] = f"without its attributes: {exc}"

    # --- attributes

    def _mode(self, info: tarfile.TarInfo, path: bytes) -> int:
        if info.mode & _SET_ID and not self._trusted:
            self.report.notes[path] = "without setuid and setgid: --trust restores them"
            return info.mode & 0o1777
        return info.mode & 0o7777

    def _own(self, info: tarfile.TarInfo, name: bytes, parent: int) -> None:
        with contextlib.suppress(PermissionError):
            os.chown(name, info.uid, info.gid, dir_fd=parent, follow_symlinks=False)

    def _attributes(self, info: tarfile.TarInfo, fd: int, path: bytes) -> None:
        with contextlib.suppress(PermissionError):
            os.chown(fd, info.uid, info.gid)
        os.chmod(fd, self._mode(info, path))
        for name, value in _xattrs(info):
            if not name.startswith(_PLAIN_XATTRS) and not self._trusted:
                self.report.notes[path] = f"without attribute {name!r}: --trust restores it"
                continue
            try:
                os.setxattr(fd, name, value)
            except OSError as exc:
                self.report.notes[path] = f"attribute {name!r}: {os.strerror(exc.errno or 0)}"
        os.utime(fd, ns=_times(info))


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _times(info: tarfile.TarInfo) -> tuple[int, int]:
    """Access and modification, as exactly as the archive says."""
    headers = info.pax_headers
    mtime = headers.get("mtime")
    mtime_ns = int(info.mtime) * 1_000_000_000 if mtime is None else tarformat.time_ns_of(mtime)
    atime = headers.get("atime")
    return (mtime_ns if atime is None else tarformat.time_ns_of(atime)), mtime_ns


def _set_times(info: tarfile.TarInfo, name: bytes, parent: int) -> None:
    os.utime(name, ns=_times(info), dir_fd=parent, follow_symlinks=False)


def _xattrs(info: tarfile.TarInfo) -> Iterator[tuple[bytes, bytes]]:
    lists = {key.decode("ascii"): name for name, key in tarformat.ACL_NAMES.items()}
    for key, value in info.pax_headers.items():
        if key.startswith(tarformat.XATTR):
            yield tarformat.xattr_name(key), _bytes(value)
        elif key in lists:
            yield lists[key], tarformat.acl_value(value)


@contextlib.contextmanager
def _parent(top_fd: int, path: bytes, *, make: bool = True) -> Iterator[tuple[int, bytes]]:
    """A descriptor of the directory that holds `path`, and the last name."""
    *above, name = [_checked(part) for part in path.split(b"/")]
    if len(above) > DEPTH_MAX:
        raise _RefusedError("too deep")
    fd = os.dup(top_fd)
    try:
        for part in above:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=fd)
            below = os.open(part, _DIR_FLAGS, dir_fd=fd)
            os.close(fd)
            fd = below
        yield fd, name
    finally:
        os.close(fd)


def _checked(name: bytes) -> bytes:
    if not name or name in (b".", b"..") or b"\0" in name:
        raise _RefusedError("not a name that a directory may hold")
    return name

"""A prefix that was filled by hand, without any journal, becomes a workspace.

Invariants
1. Nothing is put: what is brought in is dirty, and sealed by the first flush after the mount. A
   cache whose import was cut off is not whole (restore.py), and begins anew.
2. What does not fit (quota, number of files) is refused before anything is brought in.
3. An object whose file came in is known to the mirror by its ETag and digest: its bytes are not
   put again, only its metadata is completed, on condition of that ETag.
4. An object that can't be a file is left alone and told.

Called by replicator, before the mount.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Sequence
from typing import Any, Final

import trio
import xxhash

from s3ws_fs.cache.cache import Cache
from s3ws_fs.cache.tx import Tx
from s3ws_fs.core import failpoints
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import ExitCode, FsError, UserError
from s3ws_fs.core.outside import Found, workspace_path
from s3ws_fs.core.records import InodeRec, MirrorRow
from s3ws_fs.core.types import ROOT_INO
from s3ws_fs.fs.arrivals import Arriving
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.replica.base import Progress
from s3ws_fs.replica.bringing import arriving, fill
from s3ws_fs.replica.outside import LEFT_MAX
from s3ws_fs.transfer.client import WorkerClient

PROGRESS_EVERY: Final = 50
IMPORT_SILENCE_S: Final = 600.0


class Import:
    """One import into an empty cache."""

    def __init__(
        self, cache: Cache, worker: WorkerClient, fs: FileSystem, config: MountConfig
    ) -> None:
        self._cache = cache
        self._worker = worker
        self._fs = fs
        self._config = config
        self._directories: dict[bytes, InodeRec] = {}
        self._markers: list[tuple[int, Found]] = []
        self._open: tuple[Found, int, Arriving] | None = None
        self._offset = 0
        self._state = xxhash.xxh3_128()
        self._done = 0
        self.left: dict[str, str] = {}

    async def run(self, progress: Progress) -> bool:
        """Bring everything in; False when there is nothing. Raises UserError, StoreError, FsError
        (the disk is full)."""
        measured = await self._worker.ask("measure-outside", deadline_s=IMPORT_SILENCE_S)
        total = measured["objects"]
        if not total:
            return False
        self._check_fits(total, measured["bytes"])
        config = self._config
        self._fs.make_root(uid=config.root_uid, gid=config.root_gid, mode=config.root_mode)

        async def on_part(part: dict[str, Any], payload: memoryview) -> None:
            self._part(part, payload)
            if self._done % PROGRESS_EVERY == 0 or self._done == total:
                progress({"phase": "importing", "done": self._done, "total": total})
            await trio.lowlevel.checkpoint()

        progress({"phase": "importing", "done": 0, "total": total})
        try:
            await self._worker.ask("import", on_part, deadline_s=IMPORT_SILENCE_S)
            for ino, found in self._markers:
                self._dress(ino, found)
        except FsError as exc:
            raise self._too_much(exc) from exc
        failpoints.hit(failpoints.IMPORT_AFTER)
        return True

    def _check_fits(self, objects: int, size_bytes: int) -> None:
        config = self._config
        if size_bytes > config.max_size_bytes:
            raise _refused(
                f"the objects below files/ have {size_bytes} bytes, the quota is "
                f"{config.max_size_bytes}",
                "Raise WORKSPACE_MAX_SIZE_MB",
            )
        if objects >= config.max_inodes:
            raise _refused(
                f"there are {objects} objects below files/, the limit is {config.max_inodes} files",
                "Raise WORKSPACE_MAX_FILES",
            )

    def _too_much(self, exc: FsError) -> Exception:
        if exc.errno != errno.EDQUOT:
            return exc
        used = self._cache.head
        return _refused(
            f"the objects below files/ do not fit: {used.used_bytes} bytes in {used.inodes} files "
            f"and directories, and it is not all",
            "Raise WORKSPACE_MAX_SIZE_MB or WORKSPACE_MAX_FILES",
        )

    def _part(self, part: dict[str, Any], payload: memoryview) -> None:
        if "left" in part:
            text, why = part["left"]
            self._leave(text, why)
            self._done += 1
        elif "directory" in part:
            found = Found.from_json(part["directory"])
            path = workspace_path(found.path)
            if path is not None:
                self._markers.append((self._directory(path.split(b"/")).ino, found))
        elif "found" in part:
            self._begin(Found.from_json(part["found"]))
            if part["whole"]:
                self._piece(payload)
                self._end()
        elif "piece" in part:
            self._piece(payload)
        else:
            self._end()

    def _leave(self, text: str, why: str) -> None:
        if len(self.left) < LEFT_MAX:
            self.left[text] = why

    def _begin(self, found: Found) -> None:
        path = workspace_path(found.path)
        assert path is not None
        parent = self._directory(path.split(b"/")[:-1])
        wanted = arriving(found, None, parent)
        self._offset, self._state = 0, xxhash.xxh3_128()
        # A link's target is its body: the inode is made when that is known.
        ino = 0 if stat.S_ISLNK(wanted.mode) else self._fs.begin_arrival(wanted)
        self._open = (found, ino, wanted)

    def _piece(self, payload: memoryview) -> None:
        assert self._open is not None
        found, ino, wanted = self._open
        self._state.update(payload)
        if ino:
            fill(self._fs, ino, self._offset, payload)
        else:
            self._open = (found, self._fs.begin_arrival(wanted, bytes(payload)), wanted)
        self._offset += len(payload)

    def _end(self) -> None:
        assert self._open is not None
        found, ino, wanted = self._open
        digest = self._state.digest()
        path = workspace_path(found.path)
        assert path is not None
        names = path.split(b"/")

        def notes(tx: Tx, rec: InodeRec) -> None:
            row = MirrorRow(found.path.encode(), rec.ino, 0, rec.data_gen, found.etag, digest)
            tx.note_mirror(row)

        parent = self._directory(names[:-1])
        self._fs.place_beside(ino, wanted, parent.ino, names[-1:], notes)
        self._open = None
        self._done += 1
        failpoints.hit(failpoints.IMPORT_FILE)

    def _directory(self, names: Sequence[bytes]) -> InodeRec:
        path = b"/".join(names)
        known = self._directories.get(path)
        if known is None:
            ino, _ = self._fs.directory_for(names) if names else (ROOT_INO, None)
            with self._cache.read() as view:
                rec = view.inode(ino)
            assert rec is not None
            known = self._directories[path] = rec
        return known

    def _dress(self, ino: int, found: Found) -> None:
        """What a marker says of its directory; after its entries came, for its time to stand."""
        said = found.wishes
        self._fs.setattr(
            ino,
            mode=None if said.mode is None else stat.S_IMODE(said.mode),
            uid=said.uid,
            gid=said.gid,
            mtime_ns=found.modified_ns if said.mtime_ns is None else said.mtime_ns,
        )


def _refused(message: str, remedy: str) -> UserError:
    return UserError(
        f"this workspace has no journal, and what was put by hand can't be imported: {message}",
        remedy=f"{remedy}, or remove objects. Nothing was changed in the bucket.",
        exit_code=ExitCode.BAD_SETTINGS,
    )

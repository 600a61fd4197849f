"""Power cuts under a busy mount: images of its real database, taken while the daemon works.

A program works on the mount, one change a call, and notes how far it is and what it fsynced. The
database is copied again and again meanwhile. All copies taken while one sync point was the newest
are versions that the disk may hold, page by page: an image is any mixture of them. Opened as after
a reboot it must be what the program had made after some call not before its last fsync.

Called by `python -m tests.crash.power --mount N` and test_power.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import stat
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from s3ws_fs.cache import recovery, syncpoint
from s3ws_fs.cache.cache import Cache, Identity, open_cache
from s3ws_fs.cache.checking import check_cache
from s3ws_fs.cache.ownership import IDENTITY_FILE
from s3ws_fs.cache.redo import LOG_FILES
from s3ws_fs.cache.syncpoint import BOOT_FILE, SIDE_FILE
from s3ws_fs.cache.tables import DATA_DIR, DATA_FILE
from s3ws_fs.core.types import ROOT_INO
from s3ws_fs.fs.filesystem import FileSystem
from tests.crash.power import WrongImageError, another_boot
from tests.support.host import Host
from tests.support.tape import PAGE_BYTES, Tape

QUOTA_BYTES: Final = 500 << 20
COPIES_MAX: Final = 12
"""Copies of the database in one image, at most."""
NAMES_MAX: Final = 25

Tree = dict[str, tuple[str, bytes]]
"""By path: what it is, and its bytes, target, or nothing."""


class Worker(threading.Thread):
    """Changes the tree, one change a call; `states[n]` is the tree after n calls, in short.

    When the mount dies under it, that is its end.
    """

    def __init__(self, top: Path, seed: int) -> None:
        super().__init__(name="power-worker")
        self.top = top
        self.rng = random.Random(seed)
        self.tree: Tree = {}
        self.states = [summary(self.tree)]
        self.halves: dict[int, str] = {}
        """By call: the tree when only the first of its two requests was made."""
        self.unanswered: str | None = None
        """The tree after the call during which the mount died."""
        self.fsynced = 0
        self.error: BaseException | None = None
        self.stopping = threading.Event()
        self._count = 0

    @property
    def begun(self) -> int:
        """No call beyond this one has begun."""
        return len(self.states)

    def run(self) -> None:
        try:
            while not self.stopping.is_set():
                self._change()
                self.states.append(summary(self.tree))
                if self.rng.random() < 0.05:
                    covered = len(self.states) - 1
                    self._fsync()
                    self.fsynced = covered
        except BaseException as exc:
            self.unanswered = summary(self.tree)
            self.error = exc

    def _paths(self, kind: str) -> list[str]:
        return [path for path, (what, _) in self.tree.items() if what == kind]

    def _new(self) -> str:
        self._count += 1
        below = self.rng.choice(["", *self._paths("dir")])
        return f"{below}/n{self._count}" if below else f"n{self._count}"

    def _change(self) -> None:
        """One call that changes something, in the model and on the mount."""
        files, rng = self._paths("file"), self.rng
        if not files or (len(self.tree) < NAMES_MAX and rng.random() < 0.3):
            self._make(self._new())
            return
        path = rng.choice(files)
        do: Callable[[str], None] = rng.choice(
            (self._write, self._write, self._write, self._append, self._truncate, self._rename,
             self._replace, self._unlink)
        )  # fmt: skip
        do(path)

    def _make(self, path: str) -> None:
        what = self.rng.choice(("file", "file", "file", "dir", "link"))
        if what == "file":
            self.tree[path] = ("file", b"")
            os.close(os.open(self.top / path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
        elif what == "dir" and path.count("/") < 3:
            self.tree[path] = ("dir", b"")
            os.mkdir(self.top / path)
        else:
            self.tree[path] = ("link", b"there")
            os.symlink("there", self.top / path)

    def _pwrite(self, path: str, at: int, data: bytes) -> None:
        # The kernel ends a request at a page that it has not whole, and begins another.
        first = -at % PAGE_BYTES
        held = self.tree[path][1].ljust(at, b"\0")
        if 0 < first < len(data):
            half = held[:at] + data[:first] + held[at + first :]
            self.halves[len(self.states)] = summary({**self.tree, path: ("file", half)})
        self.tree[path] = ("file", held[:at] + data + held[at + len(data) :])
        fd = os.open(self.top / path, os.O_WRONLY)
        try:
            os.pwrite(fd, data, at)
        finally:
            os.close(fd)

    def _write(self, path: str) -> None:
        size = self.rng.choice((1, 100, 5000, 32_768, 60_000))
        self._pwrite(path, self.rng.choice((0, 0, 7, 4096, 40_000)), self.rng.randbytes(size))

    def _append(self, path: str) -> None:
        self._pwrite(path, len(self.tree[path][1]), self.rng.randbytes(self.rng.randrange(1, 3000)))

    def _truncate(self, path: str) -> None:
        size = self.rng.choice((0, 1, 33_000))
        self.tree[path] = ("file", self.tree[path][1][:size].ljust(size, b"\0"))
        os.truncate(self.top / path, size)

    def _rename(self, path: str) -> None:
        new = self._new()
        self.tree[new] = self.tree.pop(path)
        os.rename(self.top / path, self.top / new)

    def _replace(self, path: str) -> None:
        other = self.rng.choice(self._paths("file"))
        if other != path:
            self.tree[other] = self.tree.pop(path)
            os.rename(self.top / path, self.top / other)

    def _unlink(self, path: str) -> None:
        del self.tree[path]
        os.unlink(self.top / path)

    def _fsync(self) -> None:
        """Of a file or of a directory: either covers the whole workspace."""
        path = self.top / self.rng.choice(["", *self._paths("file"), *self._paths("dir")])
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def summary(tree: Tree) -> str:
    """A tree in few characters."""
    whole = hashlib.blake2b(digest_size=16)
    for path, (what, body) in sorted(tree.items()):
        whole.update(f"{path}\0{what}\0{len(body)}\0".encode() + body)
    return whole.hexdigest()


def tree_of_cache(cache: Cache) -> Tree:
    """What the filesystem over a cache shows, without a kernel."""
    fs = FileSystem(cache, quota_bytes=QUOTA_BYTES, quota_inodes=1_000_000)
    tree: Tree = {}

    def walk(ino: int, above: str) -> None:
        with cache.read() as view:
            entries = list(view.entries(ino))
        for _, name, child in entries:
            path, attr = above + os.fsdecode(name), fs.getattr(child)
            if stat.S_ISDIR(attr.mode):
                tree[path] = ("dir", b"")
                walk(child, path + "/")
            elif stat.S_ISLNK(attr.mode):
                tree[path] = ("link", fs.readlink(child))
            else:
                body = fs.read(child, 0, attr.size)
                assert isinstance(body, bytes), f"{path} is cold"
                tree[path] = ("file", body)

    walk(ROOT_INO, "")
    return tree


def tree_of(top: Path) -> Tree:
    """The same by the kernel."""
    tree: Tree = {}
    for directory, names, files in os.walk(top):
        for name in (*names, *files):
            path = Path(directory, name)
            key = str(path.relative_to(top))
            if path.is_symlink():
                tree[key] = ("link", os.fsencode(os.readlink(path)))
            elif path.is_dir():
                tree[key] = ("dir", b"")
            else:
                tree[key] = ("file", path.read_bytes())
    return tree


class Window:
    """What was seen while one sync point was the newest."""

    def __init__(self, cache: Path, sequence: int, first: bytes) -> None:
        self.cache = cache
        self.sequence = sequence
        self.tape = Tape(cache / DATA_DIR / DATA_FILE, first)
        self.copies = 1


def newest(cache: Path) -> int:
    """The sequence of the newest sync point that the kernel has; 0: none."""
    return max((slot.sequence for slot in syncpoint.read_slots(cache) if slot), default=0)


def logs_of(cache: Path) -> dict[str, bytes]:
    """The files of the redo log, as the kernel has them."""
    return {name: (cache / name).read_bytes() for name in LOG_FILES}


class BusyMount:
    """A worker on a mount, and images of its cache. `counts` says what was seen."""

    def __init__(self, host: Host, seed: int, counts: Counter[str]) -> None:
        self.host = host
        self.rng = random.Random(seed)
        self.worker = Worker(host.mountpoint, seed)
        self.counts = counts

    def run(self, base: Path, images: int) -> Path:
        """Work and judge so many images; then one for a remount is left, and nothing is mounted."""
        self.host.mount()
        cache = self.host.workspace_cache()
        self.worker.start()
        try:
            for number in range(images):
                image = base / f"image-{number}"
                at_least, at_most = self._take(cache, image)
                self._judge(image, at_least, at_most)
                shutil.rmtree(image)
            # It works until the very end.
            self._last(cache, base / "last")
        finally:
            self.worker.stopping.set()
            self.worker.join()
        if not isinstance(self.worker.error, OSError | None):
            raise self.worker.error
        return base / "last"

    def _last(self, cache: Path, image: Path) -> None:
        """Kill the daemon, and make an image of what it left: nothing went on after it."""
        data_file = cache / DATA_DIR / DATA_FILE
        sequence, copy = newest(cache), data_file.read_bytes()
        self.host.kill()
        final = data_file.read_bytes()
        tape = Tape(data_file, copy if newest(cache) == sequence else final)
        tape.see(final)
        (image / DATA_DIR).mkdir(mode=0o700, parents=True)
        (image / DATA_DIR / DATA_FILE).write_bytes(tape.image(self.rng))

    def _take(self, cache: Path, image: Path) -> tuple[int, int]:
        """Make an image; (last call that was fsynced, last call that had begun)."""
        data_file = cache / DATA_DIR / DATA_FILE
        while True:
            sequence = newest(cache)
            window = Window(cache, sequence, data_file.read_bytes())
            if newest(cache) != sequence:
                continue
            wanted = self.rng.randrange(2, COPIES_MAX)
            while window.copies < wanted:
                copy = data_file.read_bytes()
                # What was flushed of the log by then is in what is read after it.
                found = self.worker.fsynced, (cache / SIDE_FILE).read_bytes(), logs_of(cache)
                if newest(cache) != sequence:
                    break
                fsynced, side, logs = found
                window.tape.see(copy)
                window.copies += 1
                if self.rng.random() < 0.3:
                    break
            if self.worker.error is not None:
                raise self.worker.error
            if window.tape.unflushed:
                break
        begun = self.worker.begun
        (image / DATA_DIR).mkdir(mode=0o700, parents=True)
        (image / DATA_DIR / DATA_FILE).write_bytes(window.tape.image(self.rng))
        (image / SIDE_FILE).write_bytes(side)
        for name, raw in logs.items():
            (image / name).write_bytes(raw)
        for name in (IDENTITY_FILE, BOOT_FILE):
            shutil.copyfile(cache / name, image / name)
        self.counts["unflushed pages"] += window.tape.unflushed
        return fsynced, begun

    def _allowed(self, at_least: int, at_most: int) -> list[str]:
        """The states from one call to another, as soon as both are known."""
        worker = self.worker
        while len(worker.states) <= at_most and worker.is_alive():
            worker.join(0.01)
        halves = [
            worker.halves[call]
            for call in range(at_least + 1, at_most + 1)
            if call in worker.halves
        ]
        last = [] if worker.unanswered is None or at_most < worker.begun else [worker.unanswered]
        return halves + worker.states[at_least : at_most + 1] + last

    def _judge(self, image: Path, at_least: int, at_most: int) -> None:
        found = check_cache(image, lambda _: None, boot_id="another").report
        if not found.ok:
            raise WrongImageError(f"the checker says {[str(f) for f in found.findings][:5]}")
        opened = image.with_name(image.name + "-opened")
        shutil.copytree(image, opened)
        with open_cache(
            opened,
            Identity(**json.loads((image / IDENTITY_FILE).read_bytes())),
            quota_bytes=QUOTA_BYTES,
            now_ns=lambda: 1,
            boot_id="another",
        ) as cache:
            if cache.recovery != recovery.SYNC_POINT:
                raise WrongImageError(str(cache.recovered))
            got = summary(tree_of_cache(cache))
        shutil.rmtree(opened)
        states = self._allowed(at_least, at_most)
        if got not in states:
            known = self.worker.states.index(got) if got in self.worker.states else "none"
            raise WrongImageError(f"not of calls {at_least} to {at_most}, but {known}")
        self.counts["images"] += 1
        self.counts["halves"] += got not in self.worker.states
        self.counts["states allowed"] += len(states)

    def remount(self, image: Path) -> None:
        """The image in place of the cache, mounted again: the same, seen through the kernel."""
        cache = self.host.workspace_cache()
        # In place: the file is who its writer is.
        shutil.copyfile(image / DATA_DIR / DATA_FILE, cache / DATA_DIR / DATA_FILE)
        another_boot(cache)
        self.host.mount()
        got = summary(tree_of(self.host.mountpoint))
        if got not in self._allowed(self.worker.fsynced, self.worker.begun):
            raise WrongImageError(f"{self.host.base}: after the remount, another tree")
        if self.host.now()["cache"]["opened"] != recovery.SYNC_POINT:
            raise WrongImageError("the sync point was not taken")
        self.host.umount()
        self.counts["remounts"] += 1


def run(base: Path, host: Host, seed: int, images: int, counts: Counter[str]) -> None:
    """One busy mount: so many images, and one remount. Raises WrongImageError."""
    busy = BusyMount(host, seed, counts)
    last = busy.run(base, images)
    busy.remount(last)
    counts["mounts"] += 1
    counts["calls"] += len(busy.worker.states)

"""A working repository from a bundle alone.

Invariants
1. Nothing of it runs: hooks are put aside, and of the configuration only what is harmless is used
   (config.py), unless a person asks for them.
2. It is built beside its place and moved there when it is whole: a restore that fails leaves
   nothing. A place that exists and is no empty directory is refused.
3. Names from the bundle lead nowhere else: they are checked, files are made new, and symbolic links
   come after all other files, so that none is ever followed.
4. git has one directory to read: no file of the bundle names another (`commondir`), and no
   configuration comes in but through config.py, that of a linked work tree included.

Called by cli.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from s3ws_fs.core.errors import ExitCode, FormatError, UserError
from s3ws_fs.snapshot.git import bundle, config
from s3ws_fs.snapshot.git.find import BARE
from s3ws_fs.snapshot.git.manifest import MANIFEST_BYTES_MAX, Manifest, decode
from s3ws_fs.snapshot.git.objects import EXECUTABLE, FILE, GITLINK, SYMLINK
from s3ws_fs.snapshot.git.running import Git

HOOKS: Final = b"hooks"
HOOKS_ASIDE: Final = b"hooks.restored"
CONFIG_ASIDE: Final = b".original"
_NEVER: Final = re.compile(
    rb"(objects|modules|alternates|commondir|worktrees/[^/]+/(modules|objects))(/.*)?",
    re.IGNORECASE | re.DOTALL,
)
_CONFIG: Final = re.compile(
    rb"config(\.worktree)?|worktrees/[^/]+/config\.worktree", re.IGNORECASE | re.DOTALL
)
_LINKED: Final = re.compile(rb"worktrees/[^/]+/(gitdir|commondir)", re.IGNORECASE | re.DOTALL)
BLOB_BYTES_MAX: Final = 1 << 30


@dataclass(slots=True)
class Options:
    """What a person allows."""

    with_hooks: bool = False
    with_config: bool = False


@dataclass(slots=True)
class Restored:
    """What was made, and what was not as it had been."""

    where: tuple[bytes, bytes, bytes]
    kind: str
    files: int = 0
    git_files: int = 0
    state: str = ""
    left_out: list[tuple[bytes, str]] = field(default_factory=list)
    left_out_count: int = 0
    inert: list[str] = field(default_factory=list)
    """Settings and hooks that were put aside."""


def restore(files: list[Path], target: Path, options: Options) -> Restored:
    """Make the repository of these bundles (the whole one, and what was added) at `target`.

    Raises UserError, S3wsError, OSError.
    """
    _require_free(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    building = target.parent / f".{target.name}.s3ws-{secrets.token_hex(4)}"
    building.mkdir(mode=0o700)
    try:
        done = _Restoring(files, building, options).run()
        with contextlib.suppress(FileNotFoundError):
            target.rmdir()
        building.chmod(0o755)
        building.rename(target)
        return done
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _require_free(target: Path) -> None:
    try:
        is_free = not target.is_symlink() and (not target.exists() or not any(target.iterdir()))
    except OSError:
        is_free = False
    if not is_free:
        raise UserError(
            f"{str(target)!a} exists and is no empty directory.",
            remedy="Name a directory that does not exist: nothing is ever overwritten.",
            exit_code=ExitCode.USAGE,
        )


class _Restoring:
    """One restore into an empty directory."""

    def __init__(self, files: list[Path], top: Path, options: Options) -> None:
        self._files = files
        self._top = top
        self._options = options

    def run(self) -> Restored:
        """All of it."""
        headers = [_header(file) for file in self._files]
        newest = headers[-1]
        state = newest.state
        if state is None:
            raise UserError(
                "This bundle was not made by s3ws: it has no state.",
                remedy="`git clone FILE` gives what it holds.",
                exit_code=ExitCode.USAGE,
            )
        with tempfile.TemporaryDirectory(dir=self._top.parent, prefix=".s3ws-scratch-") as name:
            scratch = Path(name)
            # Where it will be is known later only: a bare one is the directory itself.
            store = self._top / ".git"
            self._git = Git(store, scratch)
            self._git.run(
                "init", "-q", "--bare", "--template=", f"--object-format={newest.object_format}"
            )
            for file, header in zip(self._files, headers, strict=True):
                self._unpack(file, header)
            self._blobs = _Blobs(self._git)
            try:
                return self._build(state, newest.object_format, store)
            finally:
                self._blobs.close()

    def _unpack(self, file: Path, header: bundle.Header) -> None:
        with file.open("rb") as source:
            source.seek(header.pack_offset)
            words = ["index-pack", "--stdin"]
            if header.prerequisites:
                words.append("--fix-thin")
            self._git.run(*words, stdin=source, writes_objects=True)

    def _build(self, state: str, object_format: str, store: Path) -> Restored:
        raw = self._blobs.read(f"{state}:manifest.json", MANIFEST_BYTES_MAX)
        manifest = decode(raw, "bundle")
        if manifest.object_format != object_format:
            raise FormatError("bundle", "its header and its manifest name two object formats")
        done = Restored(
            manifest.where,
            manifest.kind,
            state=state,
            left_out=manifest.left_out,
            left_out_count=manifest.left_out_count,
        )
        is_bare = manifest.kind == BARE
        # Before anything of the bundle stands in the directory that git looks at.
        words = ("ls-tree", "-r", "-z", "--full-tree", f"{state}:worktree")
        listed = b"" if is_bare else self._git.run(*words)
        self._git_files(manifest, store, done)
        if is_bare:
            self._flatten(store)
        else:
            done.files = self._work_files(manifest, listed)
        return done

    # --- git's own files -------------------------------------------------------------------

    def _git_files(self, manifest: Manifest, store: Path, done: Restored) -> None:
        for name in ("HEAD", "config", "description"):
            (store / name).unlink(missing_ok=True)
        for name in ("refs", "branches", "hooks", "info"):
            shutil.rmtree(store / name, ignore_errors=True)
        (store / "refs").mkdir()
        maker = _Maker(store)
        for path, (mode, oid) in sorted(manifest.git.items()):
            if _NEVER.fullmatch(path):
                continue
            content = self._blobs.read(oid, BLOB_BYTES_MAX)
            place = path
            linked = _LINKED.fullmatch(path)
            if _CONFIG.fullmatch(path) and not self._options.with_config:
                self._config(path, content, manifest, maker, done)
                place = path + CONFIG_ASIDE
            elif path.split(b"/")[0].lower() == HOOKS and not self._options.with_hooks:
                place = HOOKS_ASIDE + path[len(HOOKS) :]
                if not path.endswith(b".sample"):
                    done.inert.append(os.fsdecode(path))
            elif linked is not None:
                # The other work tree is elsewhere, if it is at all: nothing here may reach it.
                is_gitdir = linked[1].lower() == b"gitdir"
                content = b"not-restored/.git\n" if is_gitdir else b"../..\n"
            maker.file(place, content, mode)
            done.git_files += 1
        if not (store / "config").exists():
            self._config(b"config", b"", manifest, maker, done)
        if not (store / "HEAD").exists():
            raise FormatError("bundle", "it has no HEAD")
        (store / "objects" / "info").mkdir(exist_ok=True)
        if manifest.is_partial:
            for pack in (store / "objects" / "pack").glob("*.pack"):
                pack.with_suffix(".promisor").touch()

    def _config(
        self, path: bytes, content: bytes, manifest: Manifest, maker: _Maker, done: Restored
    ) -> None:
        settings = []
        is_first = path == b"config"
        if is_first:
            is_sha1 = manifest.object_format == "sha1"
            is_plain = is_sha1 and not manifest.is_partial
            settings += [
                ("core.repositoryformatversion", "0" if is_plain else "1"),
                ("core.bare", "true" if manifest.kind == BARE else "false"),
            ]
            if not is_sha1:
                settings.append(("extensions.objectformat", manifest.object_format))
        for name, value in self._settings(content):
            if config.kept(name, value):
                settings.append((name, value))
            elif not name.lower().startswith(
                ("core.bare", "core.repositoryformat", "core.worktree")
            ):
                done.inert.append(name)
        if is_first and any(name.lower() == "extensions.worktreeconfig" for name, _ in settings):
            settings[0] = (settings[0][0], "1")
        maker.file(path, config.render(settings).encode(errors="surrogateescape"), 0o644)

    def _settings(self, content: bytes) -> Iterator[tuple[str, str]]:
        with tempfile.NamedTemporaryFile(dir=self._top.parent, prefix=".s3ws-config-") as copy:
            copy.write(content)
            copy.flush()
            listed = self._git.run("config", "--file", copy.name, "--no-includes", "-z", "--list")
        for item in listed.split(b"\0"):
            name, has_value, value = item.partition(b"\n")
            if name:
                text = value.decode(errors="surrogateescape") if has_value else "true"
                yield name.decode(errors="surrogateescape"), text

    def _flatten(self, store: Path) -> None:
        """A bare repository is its directory."""
        for item in list(store.iterdir()):
            item.rename(self._top / item.name)
        store.rmdir()

    # --- the work tree ---------------------------------------------------------------------

    def _work_files(self, manifest: Manifest, listed: bytes) -> int:
        maker = _Maker(self._top)
        links: list[tuple[bytes, str]] = []
        count = 0
        for item in listed.split(b"\0"):
            if not item:
                continue
            head, _, path = item.partition(b"\t")
            mode, oid = int(head.split(b" ")[0], 8), head.split(b" ")[2].decode()
            _check_work_path(path)
            if mode == GITLINK:
                maker.directory(path)
                continue
            count += 1
            if mode == SYMLINK:
                links.append((path, oid))
            elif mode in (FILE, EXECUTABLE):
                default = 0o755 if mode == EXECUTABLE else 0o644
                maker.pieces(path, self._blobs.pieces(oid), manifest.modes.get(path, default))
            else:
                raise FormatError("bundle", f"mode {mode:o} in its work tree")
        for path in manifest.empty_dirs:
            _check_work_path(path)
            maker.directory(path)
        for path, oid in links:
            maker.link(path, self._blobs.read(oid, 1 << 20))
        return count


def _check_work_path(path: bytes) -> None:
    for part in path.split(b"/"):
        if part in (b"", b".", b"..") or part.lower() == b".git":
            raise FormatError("bundle", f"a file of its work tree is called {path!a}")


class _Maker:
    """Makes files below one directory; directories above them come along."""

    def __init__(self, top: Path) -> None:
        self._top = os.fsencode(top)
        self._made: set[bytes] = {b""}

    def _place(self, path: bytes) -> bytes:
        self.directory(path.rpartition(b"/")[0])
        return self._top + b"/" + path

    def directory(self, path: bytes) -> None:
        """A directory, and those above it."""
        missing = []
        while path not in self._made:
            missing.append(path)
            path = path.rpartition(b"/")[0]
        for each in reversed(missing):
            place = self._top + b"/" + each
            try:
                os.mkdir(place, 0o755)  # noqa: PTH102
            except FileExistsError:
                if not stat.S_ISDIR(os.lstat(place).st_mode):
                    raise FormatError("bundle", f"{each!a} is a file and a directory") from None
            self._made.add(each)

    def file(self, path: bytes, content: bytes, mode: int) -> None:
        """A new file."""
        self.pieces(path, iter((content,)), mode)

    def pieces(self, path: bytes, pieces: Iterator[bytes], mode: int) -> None:
        """A new file; never with the set-user-id bit and its like."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(self._place(path), flags, 0o600)
        except FileExistsError:
            raise FormatError("bundle", f"{path!a} is in it twice") from None
        with os.fdopen(fd, "wb") as file:
            for piece in pieces:
                file.write(piece)
            os.fchmod(file.fileno(), mode & 0o777)

    def link(self, path: bytes, target: bytes) -> None:
        """A new symbolic link."""
        try:
            os.symlink(target, self._place(path))  # noqa: PTH211
        except (FileExistsError, ValueError):
            raise FormatError("bundle", f"the link {path!a} can't be made") from None


class _Blobs:
    """Reads blobs of a repository, by one git for all of them."""

    def __init__(self, git: Git) -> None:
        self._git = git.converse("cat-file", "--batch")

    def read(self, name: str, limit: int) -> bytes:
        """A blob. Raises GitError, FormatError."""
        return b"".join(self.pieces(name, limit))

    def pieces(self, name: str, limit: int = BLOB_BYTES_MAX) -> Iterator[bytes]:
        """A blob's bytes."""
        answer = self._git.ask(name)
        kind, size = next(answer).split(b" ")
        if kind != b"blob" or int(size) > limit:
            raise FormatError("bundle", f"{name} is no file, or too large")
        yield from answer

    def close(self) -> None:
        """Nothing more is read."""
        self._git.close()


def _header(file: Path) -> bundle.Header:
    try:
        with file.open("rb") as source:
            return bundle.read_header(source)
    except FormatError as exc:
        raise UserError(
            f"{str(file)!a} can't be used: {exc.why}.",
            remedy="Give a bundle that s3ws made, or one from the bucket.",
            exit_code=ExitCode.USAGE,
        ) from exc
    except OSError as exc:
        raise UserError(
            f"{str(file)!a} can't be read: {exc.strerror}.", exit_code=ExitCode.USAGE
        ) from exc

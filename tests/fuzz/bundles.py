"""Targets: what `s3ws git list` and `s3ws git restore` read from a bucket: keys, bundles' headers,
manifests, configurations, and a whole repository.

The last two need a process of git for each case, and stand apart (PLACES).

Called by tests.fuzz.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import stat
import struct
import tempfile
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from s3ws_fs.core import gitkeys
from s3ws_fs.core.errors import S3wsError
from s3ws_fs.snapshot.git import bundle, config, getting, together
from s3ws_fs.snapshot.git import manifest as manifests
from s3ws_fs.snapshot.git.objects import EXECUTABLE, FILE, GITLINK, SYMLINK, TREE
from s3ws_fs.snapshot.git.restoring import Options, restore
from s3ws_fs.snapshot.git.running import Git, GitError
from s3ws_fs.store.memory import MemoryStore
from s3ws_fs.store.scoped import ScopedStore
from tests.fuzz.mutate import any_text, any_value, changed_value, json_bytes, mutated
from tests.fuzz.target import Target

PREFIX: Final = "conversations/u/c/workspace/"
OID: Final = "0123456789abcdef" * 2 + "01234567"
MANIFEST: Final[dict[str, Any]] = {
    "format": 1, "kind": "submodule", "where": ["sub", ".git/modules/sub", ".git/modules/sub"],
    "object_format": "sha1", "git": {"HEAD": [420, OID], "config": [420, OID]},
    "modes": {"x": 384, "\udcff": 493}, "empty_dirs": ["empty/dir"], "left_out": [["big", "size"]],
    "left_out_count": 1, "is_partial": False, "counts": {"modified": 1},
}  # fmt: skip
CONFIG: Final = b"""[core]
\trepositoryformatversion = 0
\tautocrlf = input
\thooksPath = /tmp/evil
[user]
\tname = "So \\"me\\" \\\\ body" ; a comment
\temail
[remote "or\\"i\\\\gin"]
\turl = https://example.org/a.git
\tfetch = +refs/heads/*:refs/remotes/origin/*
[branch "x.y"]
\tremote = origin
\tmerge = refs/heads/x.y
[alias]
\tst = !evil
[filter "lfs"]
\tprocess = evil
[include]
\tpath = more
"""
NAMES: Final = (
    b".", b"..", b".git", b".GIT", b"", b"a/b", b"../up", b"/abs", b"x", b"d", b"link", b"n" * 300,
    b"\xff", b"\n", b"nul\0nul", b"hooks", b"config", b"HEAD", b"objects", b"config.original",
    b"commondir", b"worktrees/x/config.worktree", b"modules/x/config",
)  # fmt: skip
MODES: Final = (FILE, EXECUTABLE, SYMLINK, GITLINK, TREE, 0o100600, 0o104755, 0o020666, 0, 1 << 40)


# --- keys, headers, manifests


def make_key(rng: random.Random) -> str:
    """Something like a bundle's key."""
    text = rng.choice(("workspace", "a", "%77orkspace", "%2E%2E", "a%2Fb", "%FF", "a%00", "b"))
    for _ in range(rng.randrange(3)):
        text += rng.choice(("/", "%", ".bundle/", "%2E", any_text(rng)))
    return gitkeys.GIT_PREFIX + text + rng.choice((".bundle", ".bundle", ".bundle-more", ""))


def run_key(key: str) -> None:
    """No repository's key, or that of a path that leads nowhere else."""
    path = gitkeys.repository_of(key)
    if path is not None:
        assert gitkeys.bundle_key(path) == key
        if path:
            assert not {b"", b".", b".."} & set(path.split(b"/"))
            assert b"\0" not in path


def _header(rng: random.Random) -> bytes:
    lines = [b"# v2 git bundle", OID.encode() + b" refs/s3ws/state", OID.encode() + b" HEAD"]
    if rng.random() < 0.4:
        lines[0] = b"# v3 git bundle"
        lines.insert(1, b"@object-format=" + rng.choice((b"sha1", b"sha256", b"md5", b"")))
    if rng.random() < 0.4:
        lines.insert(-2, b"-" + OID.encode() + b" base")
    for _ in range(rng.choice((0, 0, 1, 3))):
        at = rng.randrange(len(lines))
        lines[at] = mutated(rng, lines[at], b"-@\n \0\xff#")
    return b"\n".join((*lines, b"", b""))


def make_header(rng: random.Random) -> bytes:
    """A bundle's beginning, changed in its lines or anywhere."""
    raw = _header(rng) + b"PACK" + rng.randbytes(8)
    if rng.random() < 0.1:
        return raw[:16] + b"a" * rng.choice((1 << 16, 1 << 20))
    return mutated(rng, raw) if rng.random() < 0.3 else raw


def run_header(raw: bytes) -> None:
    """Names of the right form, and a pack behind it; its first bytes tell the same state."""
    said = bundle.first_state(raw[: bundle.HEAD_PIECE_BYTES])
    assert said is None or _is_oid(said), said
    header = bundle.read_header(BytesIO(raw))
    assert 0 < header.pack_offset <= len(raw)
    assert raw[: header.pack_offset].endswith(b"\n\n")
    for oid in (*header.prerequisites, *(oid for _, oid in header.refs)):
        assert _is_oid(oid)
    if said is not None and header.refs and header.refs[0][0] == manifests.STATE_REF:
        assert header.state is not None


def _is_oid(text: str) -> bool:
    return len(text) in (40, 64) and not set(text) - set("0123456789abcdef")


def run_download(raws: tuple[bytes, bytes]) -> None:
    """What stands in a bucket comes whole; an addition only over what it adds to."""
    store = ScopedStore(MemoryStore(), PREFIX)
    key = gitkeys.bundle_key(b"a")
    store.put(key, raws[0])
    store.put(gitkeys.more_key(b"a"), raws[1])
    (found,) = getting.listed(store)
    assert (found.path, found.more_bytes) == (b"a", len(raws[1]))
    state = getting.base_state(store, key)
    assert state is None or _is_oid(state)
    with tempfile.TemporaryDirectory(prefix="s3ws-fuzz-") as scratch:
        files = getting.download(store, b"a", Path(scratch))
        assert files[0].read_bytes() == raws[0]
        if len(files) == 2:
            assert state in bundle.read_header(BytesIO(raws[1])).prerequisites


def run_manifest(raw: bytes) -> None:
    """All its paths stay below; it comes back as it was; a person can be told of it."""
    found = manifests.decode(raw, "bundle")
    for path in (*found.git, *found.modes, *found.empty_dirs, *filter(None, found.where)):
        assert not {b"", b".", b".."} & set(path.split(b"/"))
        assert b"\0" not in path
    assert manifests.decode(found.encode(), "bundle").encode() == found.encode()


# --- what git has to read


def make_config(rng: random.Random) -> bytes:
    """A configuration with values that nobody thought of, or changed anywhere."""
    raw = CONFIG
    for _ in range(rng.randrange(1, 4)):
        lines = raw.split(b"\n")
        at = rng.randrange(len(lines))
        text = any_text(rng).encode("utf-8", "surrogatepass").replace(b"\0", b"")
        if rng.random() < 0.2:
            lines[at] = mutated(rng, lines[at], b'\\"#;[]')
        elif lines[at].startswith(b"["):
            quoted = text.replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"")
            section = rng.choice((b"remote", b"branch", b"submodule", b"url", b"merge"))
            lines[at] = b'[%b "%b"]' % (section, quoted)
        else:
            quoted = text.replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n")
            name = rng.choice((b"url", b"merge", b"fetch", b"name", b"path", b"update"))
            lines[at] = b'\t%b = "%b"' % (name, quoted)
        raw = b"\n".join(lines)
    return raw


def run_config(raw: bytes) -> None:
    """What is written of it is, to git, what was kept, and nothing else."""
    kept = [item for item in _listed(raw) if config.kept(*item)]
    made = config.render(kept).encode(errors="surrogateescape")
    try:
        again = _listed(made)
    except GitError as exc:
        raise AssertionError(f"git does not read what we wrote: {exc}\n{made!r}") from exc
    assert again == kept
    assert all(config.kept(*item) for item in again)


def _listed(raw: bytes) -> list[tuple[str, str]]:
    with tempfile.TemporaryDirectory(prefix="s3ws-fuzz-") as scratch:
        place = Path(scratch) / "config"
        place.write_bytes(raw)
        words = ("config", "--file", str(place), "--no-includes", "-z", "--list")
        out = Git(Path(scratch) / "none", Path(scratch)).run(*words)
    found = []
    for item in out.split(b"\0"):
        name, has_value, value = item.partition(b"\n")
        if name:
            text = value.decode(errors="surrogateescape") if has_value else "true"
            found.append((name.decode(errors="surrogateescape"), text))
    return found


class _Pack:
    """A pack of whole objects."""

    KINDS: Final = {b"commit": 1, b"tree": 2, b"blob": 3}

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}

    def add(self, kind: bytes, body: bytes) -> str:
        """Add an object; its name."""
        name = hashlib.sha1(kind + b" %d\0" % len(body) + body, usedforsecurity=False).hexdigest()
        size, first = len(body) >> 4, self.KINDS[kind] << 4 | len(body) & 15
        head = bytearray()
        while size:
            head.append(first | 0x80)
            size, first = size >> 7, size & 0x7F
        head.append(first)
        self._objects[name] = bytes(head) + zlib.compress(body)
        return name

    def tree(self, entries: list[tuple[int, bytes, str]]) -> str:
        """Add a tree of (mode, name, object), in that order."""
        body = b"".join(
            b"%o %s\0" % (mode, name) + bytes.fromhex(oid) for mode, name, oid in entries
        )
        return self.add(b"tree", body)

    def commit(self, tree: str, parents: list[str]) -> str:
        """Add a commit."""
        lines = [b"tree " + tree.encode(), *(b"parent " + p.encode() for p in parents)]
        lines += [b"author a <> 0 +0000", b"committer a <> 0 +0000", b"", b"m", b""]
        return self.add(b"commit", b"\n".join(lines))

    def raw(self) -> bytes:
        """The pack's bytes."""
        raw = b"PACK" + struct.pack(">II", 2, len(self._objects)) + b"".join(self._objects.values())
        return raw + hashlib.sha1(raw, usedforsecurity=False).digest()


HOWS: Final = range(8)
"""Ways in which a repository is not as git or we would have made it."""


def make_repository(rng: random.Random) -> list[bytes]:
    """The files of a bundle, with something in it that git or we would not have made."""
    return _repository(rng, rng.choice(HOWS))


def _repository(rng: random.Random, how: int) -> list[bytes]:
    pack = _Pack()
    blob, link = pack.add(b"blob", b"content\n"), pack.add(b"blob", rng.choice((b"../../x", b"d")))
    head = pack.add(b"blob", b"ref: refs/heads/main\n" if how else mutated(rng, b"ref: refs/x\n"))
    settings = pack.add(b"blob", CONFIG if how != 1 else make_config(rng))
    below = pack.tree([(FILE, b"inner", blob)])
    work = [(TREE, b"d", below), (SYMLINK, b"link", link), (EXECUTABLE, b"x", blob)]
    git: dict[str, Any] = {
        "HEAD": [0o644, head], "config": [0o644, settings], "hooks/pre-commit": [0o755, blob],
        "logs/HEAD": [0o644, blob], "config.worktree": [0o600, settings],
    }  # fmt: skip
    if how in (2, 3):
        for _ in range(rng.randrange(1, 3)):
            name = rng.choice(NAMES)
            work.insert(
                rng.randrange(len(work) + 1),
                (rng.choice(MODES), name, rng.choice((blob, link, below))),
            )
            path = os.fsdecode(rng.choice((b"", b"d/", b"hooks/", b"objects/")) + rng.choice(NAMES))
            git[path] = [rng.choice(MODES), rng.choice((blob, below, "", f"{blob} \n{blob}", OID))]
        if how == 3:
            work.sort(key=lambda e: e[1] + b"/" if e[0] == TREE else e[1])
    document = MANIFEST | {
        "git": git,
        "kind": rng.choice(("repository", "submodule", "worktree", "bare")),
    }
    raw = json.dumps(document).encode()
    if how == 4:
        raw = json_bytes(rng, document)
    elif how == 5:
        for _ in range(rng.randrange(1, 4)):
            changed = changed_value(rng, document)
            document = changed if isinstance(changed, dict) else document
        raw = json.dumps(document | {"format": 1}).encode()
    tree = [
        (TREE, b"git", pack.tree([])),
        (FILE, b"manifest.json", pack.add(b"blob", raw)),
        (TREE, b"worktree", pack.tree(work)),
    ]
    state = pack.commit(pack.tree(tree if rng.random() < 0.95 else tree[rng.randrange(3) :]), [])
    lines = [b"# v2 git bundle", state.encode() + b" refs/s3ws/state", state.encode() + b" HEAD"]
    whole = b"\n".join((*lines, b"", b""))
    if how == 6:
        whole = mutated(rng, whole)
    files = [whole + (pack.raw() if how != 7 else mutated(rng, pack.raw()))]
    if rng.random() < 0.2:
        more = _Pack()
        newer = more.commit(more.tree(tree), [state])
        lines = [b"# v2 git bundle", b"-" + state.encode(), newer.encode() + b" refs/s3ws/state"]
        files.append(b"\n".join((*lines, b"", b"")) + more.raw())
    return files


def run_repository(raws: list[bytes]) -> None:
    """A repository that runs nothing and lies in its place, or nothing at all."""
    base = Path(tempfile.mkdtemp(prefix="s3ws-fuzz-"))
    try:
        (base / "in").mkdir()
        files = [base / f"{n}.bundle" for n in range(len(raws))]
        for file, raw in zip(files, raws, strict=True):
            file.write_bytes(raw)
        target = base / "in" / "sub"
        try:
            done = restore(files, target, Options())
        except (S3wsError, OSError):
            assert not list((base / "in").iterdir())
            raise
        _judge(target)
        (base / "in" / ".git" / "objects").mkdir(parents=True)
        (base / "in" / ".git" / "HEAD").touch()
        try:
            together.join_up(done, target, base / "in")
        finally:
            expected = {"in", *(file.name for file in files)}
            assert {path.name for path in base.iterdir()} == expected
    finally:
        shutil.rmtree(base)


def _judge(target: Path) -> None:
    git_dir = target / ".git" if (target / ".git").is_dir() else target
    for path in target.rglob("*"):
        assert not path.lstat().st_mode & 0o7000 or path.is_symlink()
    assert not any(path.is_symlink() for path in git_dir.rglob("*") if git_dir != target)
    assert not (git_dir / "hooks").exists()
    assert not (git_dir / "commondir").exists()
    assert stat.S_ISREG((git_dir / "config").lstat().st_mode)
    ours = {"core.repositoryformatversion", "core.bare", "extensions.objectformat"}
    for name in ("config", "config.worktree"):
        if (git_dir / name).exists():
            for item in _listed((git_dir / name).read_bytes()):
                assert item[0] in ours or config.kept(*item), item


def check_the_material() -> None:
    """What is changed is what git reads, and a bundle that is restored and joined."""
    assert len(_listed(CONFIG)) == 12
    run_repository(_repository(random.Random(1), how=len(HOWS)))


def _pair(rng: random.Random) -> tuple[bytes, bytes]:
    return make_header(rng), make_header(rng)


TARGETS: Final = (
    Target("git bundle keys", make_key, run_key),
    Target("git bundle headers", make_header, run_header),
    Target("git downloads", _pair, run_download),
    Target(
        "git manifests",
        lambda rng: json_bytes(rng, MANIFEST if rng.random() < 0.9 else any_value(rng))[:1_000_000],
        run_manifest,
    ),
)
PLACES: Final = (
    Target("git configurations", make_config, run_config),
    Target("git repositories", make_repository, run_repository, (S3wsError, OSError)),
)

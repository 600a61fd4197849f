"""`s3ws diff`, `log` and `cat` of real mounts, held against what stat and read say of the trees."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from s3ws_fs.core.errors import ExitCode
from tests.support import git_states, trees
from tests.support.buckets import Bucket
from tests.support.host import NEVER_BY_ITSELF, Host, HostMaker
from tests.support.trees import Manifest

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

only_local = pytest.mark.parametrize("bucket", ["local"], indirect=True)
"""What the kind of bucket has no part in."""

TURN = r"""
set -e
mkdir -p build/obj
printf 'one\n' > new.txt
sed -i 's/line 7/line seven/' src/a.txt          # written anew, renamed over
echo appended >> src/b.txt
chmod 600 src/c.txt
mv moved elsewhere                               # a directory with two files
rm -r old
cp src/a.txt build/obj/copy
mv big.bin build/obj/big.bin
ln new.txt hard
ln -s ../nowhere dangling
touch -d '2001-02-03 04:05:06 UTC' touched
mkfifo pipe
printf '\033[31mred' > "$(printf 'esc\033[31m name')"
: > "$(printf 'latin\351')"
"""


def before_the_turn(top: Path) -> None:
    for name in ("src", "moved", "old"):
        (top / name).mkdir()
    for name in "abc":
        lines = "".join(f"line {number}\n" for number in range(20))
        (top / "src" / f"{name}.txt").write_text(f"{name}\n{lines}")
    (top / "moved/one").write_text("1")
    (top / "moved/two").write_text("2")
    (top / "old/gone").write_text("gone")
    (top / "touched").write_text("same")
    (top / "big.bin").write_bytes(os.urandom(300_000))


@pytest.fixture
def host(bucket: Bucket, new_host: HostMaker) -> Host:
    """A mounted workspace that seals when it is asked to; #1 is what stood before the turn."""
    made = new_host(bucket, settings=NEVER_BY_ITSELF)
    made.mount()
    before_the_turn(made.mountpoint)
    made.sync()
    return made


def name(entry: dict[str, Any]) -> bytes:
    if "name_b64" in entry:
        return base64.b64decode(entry["name_b64"])
    return str(entry["name"]).encode()


def expected(before: Manifest, after: Manifest) -> dict[str, set[bytes]]:
    """What a comparison by path says; times of directories left out."""
    both = before.keys() & after.keys()

    def differs(path: bytes) -> bool:
        old, new = before[path], after[path]
        fields = ["kind", "mode", "uid", "gid", "size", "xattrs", "target", "sha256"]
        if new.kind == "directory":
            fields.remove("size")
        else:
            fields.append("mtime_ns")
        return any(getattr(old, field) != getattr(new, field) for field in fields)

    return {
        "added": set(after.keys() - before.keys()),
        "deleted": set(before.keys() - after.keys()),
        "modified": {path for path in both if differs(path)},
    }


def flat(document: dict[str, Any], before: Manifest) -> dict[str, set[bytes]]:
    """The changes as a comparison by path would call them: a move is both."""
    found: dict[str, set[bytes]] = {"added": set(), "deleted": set(), "modified": set()}
    moved: list[tuple[bytes, bytes]] = []
    for change in document["changes"]:
        path = name(change)
        if change["kind"] != "renamed":
            found[change["kind"]].add(path)
            continue
        moved.append((name(change["from"]), path))
    for old, new in moved:
        for path in before:
            if path == old or path.startswith(old + b"/"):
                found["deleted"].add(path)
                found["added"].add(new + path[len(old) :])
    for old, new in moved:
        # Of what moved along, it is told where it is now.
        found["modified"] = {p for p in found["modified"] if not p.startswith(new + b"/")}
        found["deleted"] -= {old} & found["added"]
    return found


def test_the_difference_of_a_turn_is_exactly_what_it_changed(host: Host) -> None:
    (host.mountpoint / "before the turn").write_text("no part of it")
    before = trees.manifest(host.mountpoint)
    host.s3ws("turn", "begin", "t1", host.mountpoint)
    subprocess.run(["bash", "-c", TURN], cwd=host.mountpoint, check=True)
    after = trees.manifest(host.mountpoint)
    host.s3ws("turn", "end", "t1", host.mountpoint)
    (host.mountpoint / "after the turn").write_text("no part of it")
    document = host.json("diff", "--turn", "t1", "-m", host.mountpoint)
    assert flat(document, before) == expected(before, after)
    by_path = {name(change): change for change in document["changes"]}
    assert by_path[b"elsewhere"]["from"]["name"] == "moved"
    assert by_path[b"build/obj/big.bin"]["from"]["name"] == "big.bin"
    assert by_path[b"src/a.txt"]["aspects"] == ["content", "times"]
    assert by_path[b"src/c.txt"]["aspects"] == ["mode"]
    assert by_path[b"touched"]["aspects"] == ["times"]
    assert b"." not in by_path and b"src" not in by_path
    assert document["from"]["number"] == 2 and document["to"]["number"] == 3
    # Backwards it is the opposite; without a mount it is the same.
    back = host.json("diff", "turn:t1", "turn:t1:begin", "-m", host.mountpoint)
    assert flat(back, after) == {
        "added": expected(before, after)["deleted"],
        "deleted": expected(before, after)["added"],
        "modified": expected(before, after)["modified"],
    }
    host.umount()
    assert host.json("diff", "#2", "#3")["changes"] == document["changes"]
    rest = host.json("diff", "#3")
    assert [(each["kind"], each["name"]) for each in rest["changes"]] == [
        ("added", "after the turn")
    ]


@only_local
def test_what_a_person_sees_is_safe_and_short(host: Host) -> None:
    subprocess.run(["bash", "-c", TURN], cwd=host.mountpoint, check=True)
    text = host.s3ws("diff", "#1", "-m", host.mountpoint).stdout
    assert "R  moved -> elsewhere/\n" in text
    assert "A  esc\\x1b[31m name  (8 B)\n" in text
    assert "A  latin\\xe9  (0 B)\n" in text
    assert "M  src/c.txt  (mode 0644 -> 0600)\n" in text
    assert "A  dangling  (symlink to ../nowhere)\n" in text
    assert "A  pipe  (fifo)\n" in text
    assert "\x1b" not in text
    assert "\x1b[31m name" not in host.s3ws("diff", "#1", "#2", "--json").stdout
    stat = host.s3ws("diff", "#1", "#2", "--stat").stdout
    assert "src/  3 modified" in stat
    only = host.s3ws("diff", "#1", "#2", "src/c.txt", "elsewhere").stdout.splitlines()
    assert [line[:3] for line in only] == ["R  ", "M  ", "1 m"]
    inside = host.s3ws("diff", "#1", "#2", host.mountpoint / "src/b.txt", "-m", host.mountpoint)
    assert inside.stdout.startswith("M  src/b.txt")


@only_local
def test_a_patch_is_what_git_applies(host: Host, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    before_the_turn(copy)
    (copy / "big.bin").write_bytes((host.mountpoint / "big.bin").read_bytes())
    subprocess.run(["bash", "-c", TURN], cwd=host.mountpoint, check=True)
    patch = host.s3ws("diff", "#1", "-m", host.mountpoint, "--patch").stdout
    env = {"PATH": os.environ["PATH"], "GIT_CEILING_DIRECTORIES": str(tmp_path)}
    subprocess.run(["git", "apply"], cwd=copy, input=os.fsencode(patch), check=True, env=env)
    shown, wanted = trees.manifest(copy), trees.manifest(host.mountpoint)
    for path, node in wanted.items():
        if node.kind in ("file", "symlink"):
            assert (shown[path].sha256, shown[path].target) == (node.sha256, node.target), path
    assert {p for p, n in shown.items() if n.kind == "file"} == {
        p for p, n in wanted.items() if n.kind == "file"
    }


@only_local
def test_what_git_keeps_for_itself_does_not_bury_the_rest(host: Host, tmp_path: Path) -> None:
    top = host.mountpoint
    before = tmp_path / "before"
    shutil.copytree(top, before, symlinks=True)
    git_states.run_script("git init -q -b main .; git add -A; git commit -qm one", top)
    (top / "zz.txt").write_text("mine")
    host.sync()
    lines = host.s3ws("diff", "#1", "-m", top).stdout.splitlines()
    assert "A  .git/" in lines
    folded = [line for line in lines if line.startswith("M  .git/")]
    assert len(folded) == 1 and "added; --all names them" in folded[0]
    assert "A  zz.txt  (4 B)" in lines
    for words in (("--all",), (".git",)):
        assert "A  .git/HEAD  (21 B)" in host.s3ws("diff", "#1", "#2", *words, "-m", top).stdout
    # git refuses a patch that touches its own directory.
    done = host.s3ws("diff", "#1", "#2", "--patch", "-m", top)
    assert ".git/" not in done.stdout and "not in the patch: M  .git/" in done.stderr
    (tmp_path / "patch").write_text(done.stdout)
    git_states.run_script("git apply ../patch", before)
    assert (before / "zz.txt").read_text() == "mine"
    shown = host.s3ws("log", "-n", "1", "-m", top).stdout.splitlines()
    assert shown.index("    A  zz.txt  (4 B)") < shown.index("    A  .git/HEAD  (21 B)")


@only_local
def test_log_tells_each_seal(host: Host) -> None:
    for number in range(2, 7):
        (host.mountpoint / "src/a.txt").write_text(f"now {number}")
        if number % 2:
            (host.mountpoint / f"odd-{number}").write_text("x")
        host.sync()
    said = host.s3ws("log", "--json", "-m", host.mountpoint).stdout
    entries = [json.loads(line) for line in said.splitlines()]
    assert [entry["number"] for entry in entries] == [6, 5, 4, 3, 2, 1]
    generations = [entry["generation"] for entry in entries]
    assert generations == sorted(generations, reverse=True)
    assert [change["name"] for change in entries[1]["changes"]] == ["odd-5", "src/a.txt"]
    of_one = host.s3ws("log", "odd-3", "--json").stdout.splitlines()
    assert [json.loads(line)["number"] for line in of_one] == [3]
    some = host.s3ws("log", "-n", "2", "--until", "#4", "--json").stdout.splitlines()
    assert [json.loads(line)["number"] for line in some] == [4, 3]
    since = host.s3ws("log", "--since", "#4", "--json").stdout.splitlines()
    assert [json.loads(line)["number"] for line in since] == [6, 5]
    text = host.s3ws("log", "src").stdout
    assert text.count("\n#") == 5 and "    M  src/a.txt" in text
    nothing = host.s3ws("log", "nowhere")
    assert nothing.stdout == "" and "nothing was changed there" in nothing.stderr


def test_cat_gives_the_bytes_of_any_point(host: Host) -> None:
    top = host.mountpoint
    big = (top / "big.bin").read_bytes()
    (top / "src/up").symlink_to("../src/./a.txt")
    (top / "src/out").symlink_to("../../etc/passwd")
    (top / "to-src").symlink_to("src")
    was = (top / "src/a.txt").read_bytes()
    (top / "src/a.txt").write_text("now")
    (top / "big.bin").unlink()

    def cat(*words: str) -> bytes:
        done = subprocess.run(
            [*COMMAND, "cat", *words], env=host.env, cwd="/", capture_output=True, check=True
        )
        return done.stdout

    at = ("-m", str(top))
    assert cat("#1:src/a.txt", *at) == was
    assert cat("head:src/a.txt", *at) == b"now"
    assert cat("head:to-src/up", *at) == b"now"
    assert cat("#1", str(top / "big.bin"), *at) == big
    host.umount()
    assert cat("#1:big.bin") == big
    assert cat("#2", "/src/a.txt") == b"now"
    for path, why in (
        ("src", "is a directory"),
        ("src/out", "leads out of the workspace"),
        ("big.bin", "it is not there"),
    ):
        done = host.s3ws("cat", f"#2:{path}", ok=ExitCode.USAGE)
        assert why in done.stderr and done.stdout == "", path


COMMAND = [sys.executable, "-m", "s3ws_fs"]


@only_local
def test_points_that_are_none(host: Host) -> None:
    assert "newest is #1" in host.s3ws("diff", "#1", "#9", ok=ExitCode.NO_SUCH_POINT).stderr
    for words in (("diff",), ("diff", "--turn", "a b"), ("cat", "head"), ("diff", "?", "head")):
        host.s3ws(*words, ok=ExitCode.USAGE)
    host.s3ws("diff", "--turn", "none", ok=ExitCode.NO_SUCH_POINT)
    host.settings["WORKSPACE_CONVERSATION_ID"] = "another"
    host.s3ws("diff", "#1", ok=ExitCode.NO_SUCH_POINT)


@only_local
def test_a_path_that_is_in_neither_point_is_a_slip(host: Host) -> None:
    """Such as the mount point itself, which other commands take as an argument."""
    host.s3ws("snapshot", "--name", "one", host.mountpoint)
    (host.mountpoint / "src/new").write_text("new")
    done = host.s3ws("diff", "one", "head", "workspace", "-m", host.mountpoint, ok=ExitCode.USAGE)
    assert "'workspace' is a path in neither of the two points" in done.stderr
    assert "-m" in done.stderr
    assert "src/new" in host.s3ws("diff", "one", "head", "src", "-m", host.mountpoint).stdout
    assert "no changes" in host.s3ws("diff", "one", "one", "src", "-m", host.mountpoint).stdout

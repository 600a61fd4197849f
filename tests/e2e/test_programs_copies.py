"""Programs that copy trees: rsync, tar, cp, install, mv, zip. Nothing is lost or done twice."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Final

import pytest

from tests.support import programs, trees
from tests.support.e2e_fixtures import Elsewhere
from tests.support.tools import need, same_in_both, shell

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

SYNC: Final = ("rsync", "-aHAX", "--numeric-ids", "--modify-window=-1")
"""The window: to the nanosecond, for otherwise rsync takes times of one second for the same."""
MEBIBYTE: Final = 1 << 20
ARCHIVES: Final = (b"all.tar", b"inc0.tar", b"inc1.tar", b"removed.tar", b"snap", b"all.zip")
"""Names of what holds the times of the files in it."""


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A native tree with everything a filesystem holds."""
    tree = tmp_path_factory.mktemp("native") / "rich"
    trees.build_rich_tree(tree)
    return tree


def check_same(one: Path, other: Path) -> None:
    """Two trees on different filesystems are one."""
    manifests = [trees.manifest(top) for top in (one, other)]
    found = trees.differences(*manifests, ignore=trees.OTHER_FILESYSTEM)
    assert not found, "\n".join(found[:30])


def transferred(output: str) -> int:
    """Files whose bytes rsync sent, from its statistics."""
    found = re.search(r"Number of regular files transferred: ([\d,]+)", output)
    assert found, output
    return int(found[1].replace(",", ""))


def sync(source: Path, target: Path, *options: str) -> tuple[int, list[str]]:
    """rsync the content of a tree: files it transferred, and what it itemized."""
    words = [*SYNC, "--stats", "--itemize-changes", *options, f"{source}/", f"{target}/"]
    output = programs.run(*words)
    return transferred(output), re.findall(r"^(?:[<>ch.*][fdLDS*]\S+) .*$", output, re.MULTILINE)


def need_rsync() -> None:
    """rsync that can carry ACLs and extended attributes."""
    need("rsync")
    capabilities = programs.run("rsync", "--version")
    for word in ("ACLs", "xattrs", "hardlinks"):
        if re.search(rf"\bno {word}\b", capabilities):
            pytest.skip(f"this rsync is built without {word}")


def test_rsync_twice_there_and_back(here: Path, rich: Path, tmp_path: Path) -> None:
    need_rsync()
    there = here / "rich"
    first, _ = sync(rich, there)
    assert first > 50
    check_same(rich, there)
    assert sync(rich, there) == (0, [])
    assert sync(rich, there, "--checksum") == (0, [])
    second, _ = sync(there, here / "beside")
    assert second == first
    assert sync(there, here / "beside", "--checksum") == (0, [])
    back = tmp_path / "back"
    sync(there, back)
    check_same(rich, back)
    assert sync(back, there, "--delete") == (0, [])
    shutil.rmtree(here)


def test_rsync_of_changes(here: Path, native: Path) -> None:
    need_rsync()
    source, target = native / "source", here / "target"
    trees.build_source_tree(source, files=30)
    (source / "log").write_bytes(b"line\n" * 50_000)
    (source / "image").write_bytes(bytes(range(256)) * 8192)
    sync(source, target)
    inode = (target / "image").stat().st_ino

    with (source / "log").open("ab") as log:
        log.write(b"appended\n")
    assert sync(source, target, "--append-verify")[0] == 1
    with (source / "image").open("r+b") as image:
        image.seek(MEBIBYTE)
        image.write(b"changed in the middle")
    assert sync(source, target, "--inplace", "--no-whole-file")[0] == 1
    assert (target / "image").stat().st_ino == inode, "--inplace made a new file"
    shutil.rmtree(source / "package1")
    (source / "new").write_text("new\n")
    (source / "package2").chmod(0o700)
    count, items = sync(source, target, "--delete", "--delay-updates", "--fuzzy", "--partial")
    assert count == 1
    assert any(item.startswith(".d...p") and item.endswith("package2/") for item in items), items
    check_same(source, target)
    linked = here / "linked"
    sync(source, linked, f"--link-dest={target}")
    assert (linked / "log").samefile(target / "log")
    assert sync(source, target, "--sparse", "--ignore-times")[0] > 20
    check_same(source, target)


def test_tar_of_everything(here: Path, rich: Path, tmp_path: Path) -> None:
    programs.make_tar(rich, tmp_path / "rich.tar")
    ours = programs.untar(tmp_path / "rich.tar", here)
    programs.make_tar(ours, here / "again.tar")
    again = programs.untar(here / "again.tar", tmp_path / "again")
    wanted, *found = (
        # tar leaves sockets out, and does not see that two fifos are one.
        {path: node for path, node in trees.manifest(top).items() if b"special" not in path}
        for top in (rich, ours, again)
    )
    for manifest in found:
        assert trees.differences(wanted, manifest, ignore=trees.OTHER_FILESYSTEM) == []
    shutil.rmtree(here)


def test_tar_options(here: Path, native: Path) -> None:
    script = """
    mkdir -p in/a/b; seq 2000 >in/a/b/f; ln in/a/b/f in/hard; ln -s a/b/f in/soft
    chmod 640 in/hard; truncate -s 3M in/sparse
    printf x | dd of=in/sparse bs=1 seek=2000000 conv=notrunc status=none
    touch -d 2001-02-03T04:05:06.789 in/a/b/f
    tar -Scf all.tar in; [ "$(stat -c %s all.tar)" -lt 1000000 ]
    mkdir out; tar -Sxpf all.tar -C out; cmp in/sparse out/in/sparse
    stat -c '%h %a %Y' out/in/hard; [ "$(stat -c %b out/in/sparse)" -lt 1000 ]
    tar --compare -f all.tar
    echo more >>in/a/b/f; { tar --compare -f all.tar || true; } | sort
    tar -cf inc0.tar -g snap in; echo new >in/new; tar -cf inc1.tar -g snap in; tar tf inc1.tar
    tar -rf all.tar in/new; tar --delete -f all.tar in/soft; tar tf all.tar | sort
    tar -C in -c . | tar -C out -x --keep-newer-files; find out -type f | sort
    tar -xf all.tar --one-top-level=top --unlink-first; ls top/in
    tar -cf removed.tar --remove-files in; ls
    """
    same_in_both(script, here, native, apart=ARCHIVES)


def test_cp_options(here: Path, native: Path) -> None:
    script = """
    umask 022; truncate -s 8M sparse
    printf 'an island' | dd of=sparse bs=1 seek=3000000 conv=notrunc status=none
    for how in always auto never; do
        cp --sparse=$how sparse s-$how; cmp sparse s-$how
        [ "$(stat -c %b s-$how)" -lt 17000 ]
    done
    [ "$(stat -c %b s-always)" -lt 1000 ]; [ "$(stat -c %b s-never)" -ge 16000 ]
    seq 9999 >f; chmod 4711 f; touch -d @1000000000.123456789 f; ln f g; ln -s f l
    cp -a --reflink=auto f a; stat -c '%a %.9Y %h' a
    cp -l f hard; stat -c %h f; cp -s "$PWD/f" soft; readlink soft | grep -c f
    cp --remove-destination a hard; stat -c %h f; cp -b a hard; ls; cp -u f hard; cp -n a hard
    mkdir d; cp -p --parents ./f d; cp -d l d; cp -t d g a; ls d; cp -r d e; diff -r d e
    ! cp f f 2>/dev/null; seq 9 >>g; stat -c %s f
    cp -x --no-preserve=mode f n; stat -c %a n; cp --attributes-only f empty; stat -c %s empty
    cp --preserve=all,timestamps d/f t; stat -c '%.9Y %a' t; cmp f d/f || echo differ
    """
    same_in_both(script, here, native, apart=(b"soft",))


def test_install_ln_mv(here: Path, native: Path) -> None:
    script = """
    umask 022; echo text >f
    install -D -m 751 f usr/bin/tool; install -d -m 2755 usr/lib; stat -c %a usr/bin/tool usr/lib
    install -C -m 751 f usr/bin/tool; install -b -m 600 f usr/bin/tool; ls usr/bin
    ln f usr/f; ln -sfr usr/f usr/lib/rel; readlink usr/lib/rel
    ln -sfn usr cur; ln -sfn usr/lib cur; ln -sfT three cur; readlink cur
    mkdir -p a/b/c/d; mv a/b/c c2; mv c2/d a/b; rmdir c2; find a
    echo 1 >one; echo 2 >two; mv -b one two; ls two*; mv -T a z; ! mv -T f z 2>/dev/null
    ! mv z z/b 2>/dev/null; ! mv z/b/d/../.. z/b/d 2>/dev/null
    mkdir full empty; touch full/x; mv -T full empty; ls empty
    mkdir full; touch full/y; ! mv -T full empty 2>/dev/null
    mkdir -m 1777 sticky; stat -c %a sticky; mkfifo -m 620 p; stat -c '%a %F' p
    """
    same_in_both(script, here, native)


def test_mv_from_and_to_another_filesystem(here: Path, rich: Path, tmp_path: Path) -> None:
    original = trees.manifest(rich)
    copy = programs.copy_tree(rich, tmp_path)
    programs.run("mv", copy, here)
    assert not copy.exists()
    moved = here / rich.name
    assert moved.stat().st_dev != tmp_path.stat().st_dev
    assert trees.differences(original, trees.manifest(moved), ignore=trees.OTHER_FILESYSTEM) == []
    programs.run("mv", moved, tmp_path)
    assert not moved.exists()
    found = trees.manifest(tmp_path / rich.name)
    assert trees.differences(original, found, ignore=trees.OTHER_FILESYSTEM) == []


def test_zip(here: Path, native: Path) -> None:
    need("zip", "unzip")
    script = """
    mkdir -p in/dir; seq 5000 >in/dir/f; ln -s dir in/link; printf '#!/bin/sh\necho ran\n' >in/tool
    chmod 755 in/tool; touch -d 2010-01-02T03:04:06 in/dir/f
    zip -qry all.zip in; zip -T all.zip; unzip -q all.zip -d out
    diff -r in out/in; readlink out/in/link; out/in/tool; stat -c '%Y %a' out/in/dir/f
    echo more >>in/dir/f; zip -qu all.zip in/dir/f; zip -qd all.zip in/tool
    unzip -qo all.zip -d out; cmp in/dir/f out/in/dir/f; unzip -l all.zip | awk '{print $4}' | sort
    """
    same_in_both(script, here, native, apart=ARCHIVES)


def test_owners_and_modes_of_whole_trees(here: Path, rich: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may give files away")
    tree = programs.copy_tree(rich, here)
    shell("chmod -R u=rwX,g=rX,o= . ; chown -Rh 10001:10002 .; chgrp -Rh 77 names", tree)
    for path, node in trees.manifest(tree).items():
        group = 77 if path.split(b"/")[0] == b"names" else 10002
        assert (node.uid, node.gid) == (10001, group), path
        if node.kind == "file":
            assert node.mode & 0o067 in (0o040, 0o050), (path, oct(node.mode))
    shell("find . -type f -exec chmod 600 {} + ; find . -type d -exec chmod 700 {} +", tree)
    wanted = {"file": 0o600, "directory": 0o700}  # chmod leaves a directory's setgid bit alone
    for path, node in trees.manifest(tree).items():
        assert node.mode & 0o777 == wanted.get(node.kind, node.mode & 0o777), path
    programs.run("rm", "-rf", tree)
    assert not tree.exists()


def test_everything_is_the_same_on_another_host(elsewhere: Elsewhere) -> None:
    """Last in this module."""
    elsewhere()

"""Access control lists on a real mount, compared with a plain directory, also as other users."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.acls import ACCESS, DEFAULT, acl, require_acls, seen
from tests.support.actors import as_user, errno_as_user, require_root
from tests.support.pair import Pair, let_others_pass, outcome, restored
from tests.support.tools import need, same_in_both, shell

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

OWNER, MEMBER, FRIEND, STRANGER = 20001, 20002, 20003, 20004
TEAM, GUESTS, NOBODYS = 21001, 21002, 21003

FILES = f"u::rw-,u:{FRIEND}:r--,g::r--,g:{GUESTS}:rw-,m::rw-,o::---"
DIRS = f"u::rwx,u:{FRIEND}:rwx,g::r-x,g:{GUESTS}:r-x,m::rwx,o::---"


@pytest.fixture
def lists(pair: Pair) -> Pair:
    """Two directories on filesystems with access control lists, which other users may enter."""
    require_acls(pair.native)
    if os.geteuid() == 0:
        let_others_pass(pair.native)
        let_others_pass(pair.here.parent)
    return pair


def need_the_umask_apart() -> None:
    """Skip the test, saying why, where the kernel applies the umask before we see the mode."""
    if os.geteuid() != 0:
        pytest.skip("mounted by fusermount3: the umask counts also under a default list (docs)")


def tree(top: Path) -> dict[str, tuple[str, str | None, str | None]]:
    """Mode and lists of all that stands below."""
    return {str(path.relative_to(top)): seen(path) for path in sorted(top.rglob("*"))}


def test_a_list_and_the_mode_say_the_same(lists: Pair) -> None:
    def scenario(top: Path) -> list[Any]:
        path, found = top / "f", []

        def step(call: Callable[..., Any], *args: Any) -> None:
            found.append((outcome(call, path, *args), seen(path)))

        path.touch(0o644)
        step(os.setxattr, ACCESS, acl(FILES))
        for mode in (0o600, 0o777, 0o640, 0o6751, 0):
            step(os.chmod, mode)
        step(os.setxattr, ACCESS, acl("u::rwx,g::r-x,m::rw-,o::--x"))
        step(os.chown, os.getuid(), os.getgid())
        step(os.setxattr, ACCESS, acl("u::rwx,g::r-x,o::--x"))
        step(os.setxattr, ACCESS, acl(FILES))
        step(os.removexattr, ACCESS)
        for value in (b"", b"\2\0\0\0", b"\2\0\0\0\1\0\7\0\0\0\0\0", acl(FILES)[:-3]):
            step(os.setxattr, ACCESS, value)
        step(os.setxattr, ACCESS, acl("u::rwx,u:7:r--,g::---,o::---"))
        step(os.setxattr, DEFAULT, acl(DIRS))
        step(os.setxattr, ACCESS, acl(FILES), os.XATTR_CREATE)
        step(os.setxattr, ACCESS, acl(FILES), os.XATTR_CREATE)
        step(os.setxattr, ACCESS, acl(FILES), os.XATTR_REPLACE)
        return found

    lists.same(scenario)


def test_symbolic_links_have_no_lists(lists: Pair) -> None:
    def scenario(top: Path) -> list[Any]:
        link = top / "link"
        link.symlink_to("absent")
        return [
            outcome(call, link, *args, follow_symlinks=False)
            for name in (ACCESS, DEFAULT)
            for call, args in (
                (os.setxattr, (name, acl(FILES))),
                (os.getxattr, (name,)),
                (os.removexattr, (name,)),
            )
        ]

    lists.same(scenario)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077], ids="{:03o}".format)
def test_a_default_list_is_inherited_and_the_umask_is_not(lists: Pair, umask: int) -> None:
    need_the_umask_apart()

    def scenario(top: Path) -> dict[str, Any]:
        before = os.umask(umask)
        try:
            for kind in ("listed", "minimal", "plain"):
                directory = top / kind
                directory.mkdir(0o2775)
                if kind == "listed":
                    os.setxattr(directory, DEFAULT, acl(DIRS))
                elif kind == "minimal":
                    os.setxattr(directory, DEFAULT, acl("u::rwx,g::rwx,o::r--"))
                for mode in (0o666, 0o600, 0o777, 0o640):
                    name = f"{mode:o}"
                    os.close(os.open(directory / f"f{name}", os.O_CREAT | os.O_EXCL, mode))
                    os.mkdir(directory / f"d{name}", mode)
                    os.mknod(directory / f"n{name}", mode | stat.S_IFREG)
                    os.mkfifo(directory / f"p{name}", mode)
                os.symlink("x", directory / "link")
                os.makedirs(directory / "d777" / "deep" / "deeper")
                os.rename(directory / "f666", top / f"moved-{kind}")
                os.link(directory / "f777", directory / "d777" / "linked")
        finally:
            os.umask(before)
        return tree(top)

    found = lists.same(scenario)
    assert found["listed/f640"][0] == "-rw-r-----", "whatever the umask is"


def open_once(name: str, flags: int) -> None:
    os.close(os.open(name, flags))


def test_lists_grant_and_deny(lists: Pair) -> None:
    require_root()

    def scenario(top: Path) -> dict[str, list[Any]]:
        os.chown(top, OWNER, TEAM)
        top.chmod(0o755)
        for name, value in {
            "files": FILES,
            "masked": FILES.replace("m::rw-", "m::r--"),
            "deny": f"u::rw-,u:{FRIEND}:---,g::rw-,m::rw-,o::rw-",
            "closed": f"u::rw-,u:{FRIEND}:rw-,g::rw-,m::---,o::rw-",
            "groups": f"u::rw-,g::---,g:{GUESTS}:r--,g:{TEAM}:-w-,m::rw-,o::rw-",
        }.items():
            (top / name).write_text("x")
            os.chown(top / name, OWNER, TEAM)
            os.setxattr(top / name, ACCESS, acl(value))
        (top / "dir").mkdir()
        (top / "dir" / "inside").write_text("x")
        os.chown(top / "dir", OWNER, TEAM)
        os.setxattr(top / "dir", ACCESS, acl(DIRS))

        def tries() -> list[Any]:
            found: list[Any] = []
            for name in ("files", "masked", "deny", "closed", "groups"):
                for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
                    found.append(outcome(open_once, name, flags))
                found.append(os.access(name, os.R_OK, effective_ids=True))
                found.append(outcome(os.chmod, name, 0o600))
                found.append(outcome(os.setxattr, name, ACCESS, acl(FILES)))
                found.append(outcome(os.getxattr, name, ACCESS))
            found.append(outcome(os.listdir, "dir"))
            found.append(outcome(lambda: Path("dir/inside").read_text()))
            found.append(outcome(os.mkdir, "dir/new"))
            found.append(outcome(os.rmdir, "dir/new"))
            return found

        return {
            who: as_user(uid, gid, groups, tries, cwd=top)
            for who, (uid, gid, groups) in {
                "stranger": (STRANGER, NOBODYS, []),
                "friend": (FRIEND, NOBODYS, []),
                "friend and member": (FRIEND, TEAM, []),
                "member": (MEMBER, TEAM, []),
                "guest": (STRANGER, NOBODYS, [GUESTS]),
                "guest and member": (MEMBER, GUESTS, [TEAM]),
                "root": (0, 0, []),
                "owner": (OWNER, NOBODYS, []),
            }.items()
        }

    found = lists.same(scenario)
    assert found["friend"][:3] == [None, "EACCES", "EACCES"]
    assert found["stranger"][:3] == ["EACCES"] * 3


def test_a_change_holds_at_once_for_those_who_have_it_open_or_cached(lists: Pair) -> None:
    require_root()

    def scenario(top: Path) -> list[Any]:
        os.chown(top, OWNER, TEAM)
        path = top / "f"
        path.write_text("x")

        def read_as_friend() -> int:
            return errno_as_user(FRIEND, NOBODYS, [], lambda: Path("f").read_text(), cwd=top)

        found = []
        changes: list[Callable[[], Any]] = [
            lambda: path.chmod(0o600),
            lambda: os.setxattr(path, ACCESS, acl(FILES)),
            lambda: path.chmod(0o600),
            lambda: path.chmod(0o660),
            lambda: os.removexattr(path, ACCESS),
            lambda: path.chmod(0o604),
            lambda: os.setxattr(path, ACCESS, acl(f"u::rw-,u:{FRIEND}:---,g::r--,m::r--,o::r--")),
            lambda: os.chown(path, FRIEND, -1),
        ]
        for change in changes:
            change()
            found.append((read_as_friend(), read_as_friend(), seen(path)))
        return found

    lists.same(scenario)


def test_setgid_and_lists(lists: Pair) -> None:
    require_root()

    def scenario(top: Path) -> list[Any]:
        os.chown(top, OWNER, TEAM)
        found: list[Any] = []
        for gid, groups in ((TEAM, []), (NOBODYS, [TEAM]), (NOBODYS, [GUESTS])):
            for value in (FILES, "u::rwx,g::r-x,o::r-x"):
                for name in (ACCESS, DEFAULT):
                    path = top / f"{len(found)}"
                    path.mkdir()
                    os.chown(path, OWNER, TEAM)
                    path.chmod(0o6775)
                    result = as_user(
                        OWNER,
                        gid,
                        groups,
                        lambda p=path.name, n=name, v=value: outcome(os.setxattr, p, n, acl(v)),  # type: ignore[misc]
                        cwd=top,
                    )
                    found.append((result, seen(path)))
        return found

    lists.same(scenario)


def test_lists_of_a_setgid_directory_are_inherited_by_other_users(lists: Pair) -> None:
    require_root()

    def scenario(top: Path) -> Any:
        os.chown(top, OWNER, TEAM)
        top.chmod(0o2770)
        os.setxattr(top, ACCESS, acl(DIRS))
        os.setxattr(top, DEFAULT, acl(DIRS))

        def work() -> None:
            os.umask(0o077)
            Path("mine").mkdir()
            Path("mine/file").write_text("x")

        as_user(FRIEND, NOBODYS, [], work, cwd=top)
        read = errno_as_user(
            STRANGER, NOBODYS, [GUESTS], lambda: Path("mine/file").read_text(), cwd=top
        )
        owners = [(path.stat().st_uid, path.stat().st_gid) for path in sorted(top.rglob("*"))]
        return read, owners, tree(top)

    read, owners, _ = lists.same(scenario)
    assert read == 0
    assert owners == [(FRIEND, TEAM)] * 2


SCRIPT = f"""
umask 022
mkdir d; echo x >d/f; echo y >plain
setfacl -m u:{FRIEND}:rw,g:{GUESTS}:r d/f
setfacl -d -m u:{FRIEND}:rwx d
setfacl -m u:{FRIEND}:rwx d
mkdir d/sub; echo z >d/sub/new
chmod g-w d/f
setfacl -x g:{GUESTS} d/f
setfacl -R -m g:{GUESTS}:rX d
find . | sort | xargs getfacl
ls -ld d d/f plain | cut -c1-11
cp -a d copied; mv copied moved; cp -p d/f alone
find moved alone | sort | xargs getfacl
setfacl -b moved/f; setfacl -k moved; setfacl -b plain
getfacl moved moved/f plain
find d | sort | xargs getfacl >saved; setfacl -Rb d; setfacl --restore=saved
find d | sort | xargs getfacl | diff - saved
"""


def test_setfacl_getfacl_and_cp(lists: Pair) -> None:
    need("setfacl", "getfacl")
    need_the_umask_apart()
    printed = same_in_both(SCRIPT, lists.here, lists.native)
    assert f"user:{FRIEND}:rw" in printed
    assert "drwxrwxr-x+" in printed


def test_tar_and_rsync_carry_lists(lists: Pair) -> None:
    need("setfacl", "getfacl", "tar", "rsync")
    need_the_umask_apart()
    script = f"""
        lists() {{ (cd "$1"; find . | sort | xargs getfacl); }}
        mkdir a; echo x >a/f; ln -s f a/link; mkfifo a/p
        setfacl -m u:{FRIEND}:rw a/f a/p; setfacl -d -m g:{GUESTS}:rwx a
        mkdir a/sub; echo z >a/sub/new
        tar --acls --xattrs -cf t.tar a
        mkdir untarred; tar --acls --xattrs -C untarred -xpf t.tar
        diff <(lists a) <(lists untarred/a)
        rsync -aAX a/ b/
        diff <(lists a) <(lists b)
        rsync -aAXi a/ b/
        setfacl -m u:{STRANGER}:r a/f
        rsync -aAXi a/ b/
        rsync -aAXi a/ b/
        diff <(lists a) <(lists b)
        rm t.tar
    """
    assert same_in_both(script, lists.here, lists.native).split() == [".f.......a.", "f"]


def test_git_works_below_lists(lists: Pair) -> None:
    os.setxattr(lists.here, DEFAULT, acl(DIRS))
    shell(
        "git init -q r && cd r && echo x >f && chmod +x f && git add f && "
        "git -c user.name=n -c user.email=e commit -qm m && git gc -q && git fsck --strict && "
        'test -z "$(git status --porcelain)" && cd .. && git clone -q r s && test -x s/f',
        lists.here,
        env={"HOME": str(lists.here), "GIT_CONFIG_NOSYSTEM": "1"},
    )
    assert seen(lists.here / "s")[2] == DIRS


def test_lists_survive_in_the_bucket(tmp_path: Path) -> None:
    def build(top: Path) -> Any:
        (top / "d").mkdir()
        os.setxattr(top / "d", DEFAULT, acl(DIRS))
        os.setxattr(top / "d", ACCESS, acl(DIRS))
        (top / "d" / "sub").mkdir()
        (top / "d" / "f").write_text("x")
        (top / "gone").write_text("x")
        os.setxattr(top / "gone", ACCESS, acl(FILES))
        os.removexattr(top / "gone", ACCESS)
        return tree(top)

    with restored(tmp_path, build) as (top, built):
        assert tree(top) == built
        assert built["d/f"][1] is not None
        (top / "d" / "later").mkdir()
        assert seen(top / "d" / "later") == built["d/sub"]

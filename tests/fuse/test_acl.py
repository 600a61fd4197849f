"""Access control lists between kernel and filesystem: umask, ids, setgid, and who asks how often.

What lists allow and how they are inherited is compared with a plain directory in tests/e2e.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3ws_fs.core.errors import FsError
from s3ws_fs.fuse.caller import keeps_setgid
from s3ws_fs.fuse.translate import IdMap, Translator
from tests.support import acls
from tests.support.actors import as_user, require_root
from tests.support.mounting import mounted_layer
from tests.support.pair import let_others_pass

pytestmark = pytest.mark.fuse

WIDE = "u::rwx,u:7:rwx,g::rwx,m::rwx,o::rwx"


@contextlib.contextmanager
def umask(bits: int) -> Iterator[None]:
    before = os.umask(bits)
    try:
        yield
    finally:
        os.umask(before)


def made(directory: Path) -> list[str]:
    """Modes of what programs make with umask 077: a file, a directory, a fifo."""
    with umask(0o077):
        os.close(os.open(directory / "file", os.O_CREAT | os.O_EXCL, 0o666))
        os.mkdir(directory / "dir", 0o777)
        os.mkfifo(directory / "fifo", 0o664)
    return [stat.filemode(os.stat(directory / name).st_mode) for name in ("file", "dir", "fifo")]


def test_the_umask_counts_only_where_no_list_is_inherited(tmp_path: Path) -> None:
    require_root()
    with mounted_layer(tmp_path) as child:
        plain, listed = child.mountpoint / "plain", child.mountpoint / "listed"
        for directory in (plain, listed):
            directory.mkdir()
        os.setxattr(listed, acls.DEFAULT, acls.acl(WIDE))
        assert made(plain) == ["-rw-------", "drwx------", "prw-------"]
        assert made(listed) == ["-rw-rw-rw-", "drwxrwxrwx", "prw-rw-r--"]


def test_where_only_fusermount_mounts_the_umask_counts_always(tmp_path: Path) -> None:
    """Documented: less is allowed than on ext4, never more, and the lists are right otherwise."""
    with mounted_layer(tmp_path, by_helper=True) as child:
        listed = child.mountpoint / "listed"
        listed.mkdir()
        os.setxattr(listed, acls.DEFAULT, acls.acl(WIDE))
        assert made(listed) == ["-rw-------", "drwx------", "prw-------"]
        assert acls.seen(listed / "dir") == (
            "drwx------",
            "u::rwx,u:7:rwx,g::rwx,m::---,o::---",
            WIDE,
        )


def test_ids_in_lists_are_mapped_both_ways(tmp_path: Path) -> None:
    require_root()
    mine = "u::rw-,u:10001:r--,u:7:rw-,g::r--,g:10002:rw-,g:7:r--,m::rw-,o::---"
    with mounted_layer(tmp_path, uid_map=[[0, 10001]], gid_map=[[0, 10002]]) as child:
        path = child.mountpoint / "f"
        path.write_text("x")
        os.chown(path, 7, 7)
        os.setxattr(path, acls.ACCESS, acls.acl(mine))
        assert acls.seen(path)[1] == mine
    with mounted_layer(tmp_path) as child:
        stored = acls.seen(child.mountpoint / "f")[1]
        assert stored == "u::rw-,u:0:r--,u:7:rw-,g::r--,g:0:rw-,g:7:r--,m::rw-,o::---"


def test_other_attributes_pass_as_they_are() -> None:
    translator = Translator(IdMap([(0, 1)]), IdMap())
    assert translator.stored_value(b"user.a", b"any") == b"any"
    assert translator.shown_value(b"user.a", b"any") == b"any"
    with pytest.raises(FsError, match="EINVAL"):
        translator.stored_value(acls.ACCESS.encode(), b"any")


def test_who_keeps_setgid() -> None:
    pid = os.getpid()
    assert keeps_setgid(pid, 1000, 5, 5)
    for group in os.getgroups():
        assert keeps_setgid(pid, 1000, group + 1, group)
    assert keeps_setgid(0, 0, 6, 5), "root, unseen"
    assert not keeps_setgid(0, 1000, 6, 5), "somebody, unseen"


def test_setgid_goes_with_a_list_from_outside_the_group(tmp_path: Path) -> None:
    require_root()
    value = acls.acl("u::rwx,u:7:r-x,g::r-x,m::r-x,o::r-x")
    with mounted_layer(tmp_path) as child:
        let_others_pass(child.mountpoint.parent)

        def after(gid: int, groups: list[int], uid: int = 1000) -> str:
            path = child.mountpoint / "program"
            path.touch()
            os.chown(path, 1000, 50)
            path.chmod(0o6755)
            as_user(
                uid,
                gid,
                groups,
                lambda: os.setxattr("program", acls.ACCESS, value),
                cwd=path.parent,
            )
            return stat.filemode(path.stat().st_mode)

        assert after(50, []) == "-rwsr-sr-x"
        assert after(60, [61, 50]) == "-rwsr-sr-x"
        assert after(60, [61]) == "-rwsr-xr-x"
        assert after(60, [], uid=0) == "-rwsr-sr-x", "CAP_FSETID"


def test_an_owner_asks_for_no_list_and_others_once(tmp_path: Path) -> None:
    require_root()
    opens = 50
    with mounted_layer(tmp_path, traced=True) as child:
        let_others_pass(child.mountpoint.parent)
        os.mkdir(child.mountpoint / "d", 0o755)
        path = child.mountpoint / "d" / "f"
        path.write_text("x")

        def asked() -> int:
            return child.log().count(acls.ACCESS)

        def use() -> None:
            for _ in range(opens):
                os.stat("d/f")
                os.close(os.open("d/f", os.O_RDONLY))

        with path.open():  # the kernel keeps what is open, however short of memory it is
            as_user(0, 0, [], use, cwd=child.mountpoint)
            assert asked() == 0
            as_user(1000, 1000, [], lambda: [os.stat("f") for _ in range(opens)], cwd=path.parent)
            first = asked()
            assert 0 < first < opens / 2

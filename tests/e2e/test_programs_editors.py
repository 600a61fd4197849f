"""Editors that save by rename or by writing over, with backups and swap files."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.support import programs
from tests.support.e2e_fixtures import Elsewhere
from tests.support.mounting import wait_until
from tests.support.tools import background, need, same_in_both

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

TEXT: Final = "".join(f"line {number}\n" for number in range(2000))
OWNER: Final = (10001, 10002)

PYTHON_SAVE: Final = """
import os, sys, tempfile
path, old, new = sys.argv[1:]
info = os.stat(path)
with tempfile.NamedTemporaryFile("w", dir=os.path.dirname(path), delete=False) as out:
    out.write(open(path).read().replace(old, new))
    os.fchmod(out.fileno(), info.st_mode & 0o7777)
    os.fchown(out.fileno(), info.st_uid, info.st_gid)
    out.flush()
    os.fsync(out.fileno())
os.replace(out.name, path)
directory = os.open(os.path.dirname(path), os.O_RDONLY)
os.fsync(directory)
os.close(directory)
"""

QUIETLY: Final = ("-u", "NONE", "-i", "NONE", "-N", "-es")


def need_vim() -> str:
    """The vim that is there, a small one will do."""
    program = shutil.which("vim") or shutil.which("vim.tiny")
    if program is None:
        pytest.skip("not installed: vim")
    return program


def vim(
    path: Path, *words: str, settings: tuple[str, ...] = (), ok: tuple[int, ...] = (0,)
) -> None:
    """Let vim work on a file without a terminal, and save."""
    set_all = [word for setting in settings for word in ("--cmd", f"set {setting}")]
    programs.run(
        need_vim(), *QUIETLY, *set_all, *words, "-c", "wq", path, env={"TERM": "dumb"}, ok=ok
    )


def text_file(path: Path) -> Path:
    """A file of another owner, with a mode that is not the usual."""
    path.write_text(TEXT)
    if os.geteuid() == 0:
        os.chown(path, *OWNER)
    path.chmod(0o640)
    return path


def check_edited(path: Path) -> None:
    """One line is another; mode and owner are what they were."""
    assert path.read_text() == TEXT.replace("line 7\n", "changed\n")
    info = path.stat()
    assert stat.S_IMODE(info.st_mode) == 0o640
    if os.geteuid() == 0:
        assert (info.st_uid, info.st_gid) == OWNER


CHANGE: Final = ("-c", "%s/^line 7$/changed/")


@pytest.mark.parametrize("copy", ["yes", "no", "auto"])
def test_vim_with_backup_and_undo(here: Path, copy: str) -> None:
    has_undo = "+persistent_undo" in programs.run(need_vim(), "--version")
    path = text_file(here / "text")
    inode = path.stat().st_ino
    # By default vim makes no backup of what stands below /tmp.
    kept = ("backup", "backupskip=", "writebackup", "swapfile", *["undofile"] * has_undo)
    vim(path, *CHANGE, settings=(f"backupcopy={copy}", *kept))
    check_edited(path)
    stays = path.stat().st_ino == inode
    assert stays or copy != "yes"
    assert not stays or copy != "no"
    backup = here / "text~"
    assert backup.read_text() == TEXT
    assert (backup.stat().st_ino == inode) == (not stays)
    assert sorted(os.listdir(here)) == [".text.un~"] * has_undo + ["text", "text~"]
    if has_undo:
        vim(path, "-c", "undo", settings=("undofile",))
        assert path.read_text() == TEXT, "the undo file brings back what was there"


def test_vim_finds_the_swap_file_of_a_killed_one(here: Path) -> None:
    program = need_vim()
    path = text_file(here / "text")
    words = ("--cmd", "set swapfile updatecount=1", *CHANGE, "-c", "preserve")
    with background(program, *QUIETLY, *words, path, env={"TERM": "dumb"}):
        swap = here / ".text.swp"
        wait_until(lambda: swap.exists() and b"changed" in swap.read_bytes(), what="the swap file")
    assert path.read_text() == TEXT
    vim(path, "-r", ok=(0, 1))
    assert path.read_text() == TEXT.replace("line 7\n", "changed\n")


def test_vim_and_links(here: Path) -> None:
    path = text_file(here / "text")
    os.link(path, here / "hard")
    (here / "soft").symlink_to("text")
    inode = path.stat().st_ino
    vim(here / "soft", *CHANGE, settings=("backupcopy=auto",))
    check_edited(here / "hard")
    assert (here / "soft").is_symlink()
    assert path.stat().st_ino == (here / "hard").stat().st_ino == inode


def test_ed_sed_and_perl(here: Path, native: Path) -> None:
    need("ed", "sed", "perl")
    script = r"""
    umask 022; seq 3000 >f; chmod 640 f; ln f hard; ln -s f soft
    printf '%s\n' '7s/7/ed was here/' '$a' 'at the end' . w q | ed -s f
    cmp f hard && echo written over
    sed -i.bak 's/^8$/sed was here/' f; cmp f.bak hard && echo 'renamed, with a backup'
    stat -c '%a %h' f f.bak hard
    sed -i --follow-symlinks 's/^9$/through the link/' soft; [ -L soft ]; sed -n '7,9p' f
    sed -i 's/^10$/link replaced/' soft; [ ! -L soft ]; sed -n 10p f
    perl -pi.orig -e 's/^11$/perl was here/' f; perl -pi -e 's/^12$/perl again/' f
    cmp <(sed -n 11p f.orig) <(echo 11); sed -n '11,12p' f; stat -c '%a %h' f f.orig; ls -A
    printf '%s\n' 'g/1/d' 'w' | ed -s f; wc -l f; tail -n 1 f
    awk -v n=3 'NR % n == 0' f >f.new && mv f.new f; wc -l f; sort -o f -rn f; head -n 1 f
    ex=$(mktemp -p . saved.XXXX); cat f >"$ex"; mv -f "$ex" f; stat -c %a f
    """
    same_in_both(script, here, native)


def test_a_file_saved_by_rename_while_others_read_it(here: Path) -> None:
    """Who holds the old file reads the old file; who opens anew gets the new one."""
    path = text_file(here / "text")
    inode = path.stat().st_ino
    with path.open() as before:
        assert before.readline() == "line 0\n"
        programs.run(sys.executable, "-I", "-c", PYTHON_SAVE, path, "line 7\n", "changed\n")
        assert before.read() == TEXT.removeprefix("line 0\n")
        assert os.fstat(before.fileno()).st_nlink == 0
    check_edited(path)
    assert path.stat().st_ino != inode
    assert os.listdir(here) == ["text"]


def test_what_editors_left_is_the_same_on_another_host(elsewhere: Elsewhere) -> None:
    """Last in this module."""
    elsewhere()

"""What shell scripts do: sort, find, du, dd, locks, pipes, many processes at once."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import Final

import pytest

from tests.support import programs, trees
from tests.support.e2e_fixtures import Elsewhere
from tests.support.host import Host
from tests.support.mounting import wait_until
from tests.support.tools import background, finish, need, same_in_both, shell

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

SORT_LINES: Final = 40_000
HOLDERS: Final = 4
TURNS: Final = 12
SPARSE_BYTES: Final = 64 << 20

STORIES: Final = {
    "find": """
        mkdir -p a/b/c empty/er; seq 9 >a/f; seq 99 >a/b/g; touch a/b/none; ln a/f a/b/c/hard
        ln -s a/f soft; mkfifo pipe; touch -d '2001-01-01' old; touch -d '2002-01-01' newer
        find . -samefile a/f | sort; find . -links 2 -type f | sort; find . -empty | sort
        find . -newer old ! -newer newer | sort; find . -type l -printf '%p %l\\n'; find . -type p
        find . -size -20c -type f | sort; find . -perm -600 -name '[fg]' | sort
        find -L . -type f | wc -l; find . -xdev -depth -name er -delete; ls empty
        find . -name '*' -type f -print0 | xargs -0 -P 4 -n 1 wc -c | sort
        find . -inum $(stat -c %i a/f) | sort; find a -type f -exec rm {} +; find a | sort
    """,
    "split, join, compare": """
        seq 20000 >all; split -n 7 all part.; cat part.* | cmp - all; split -b 3000 all piece
        ls | wc -l; rm piece* part.*; csplit -s all 5000 10000; wc -l xx*
        paste xx00 xx01 | tail -n 1; cmp all xx00 || true; comm -12 <(sort all) <(sort xx01) | wc -l
        tac all | tac | cmp - all; head -c 5000 all >head; tail -c +5001 all >tail
        cat head tail | cmp - all; shred -u head; ls
        sha256sum * >sums; sha256sum -c --quiet sums; md5sum <all; cksum all
    """,
    "truncate and dd": """
        seq 5000 >f; truncate -s +7 f; stat -c %s f; truncate -s 100 f; cksum f
        truncate -s 1M f; cksum f; truncate -r f g; stat -c %s g; truncate -s %4096 g
        truncate -s '<500' g; stat -c %s g
        dd if=/dev/zero of=z bs=4k count=64 conv=sparse status=none; cksum z; stat -c %s z
        printf '%08d' $(seq 1024) >8k
        for flag in sync dsync direct append; do
            dd if=8k of=$flag bs=4k oflag=$flag status=none; cmp 8k $flag
        done
        dd if=direct bs=4k iflag=direct status=none | cmp - 8k
        dd if=8k of=z bs=1k skip=3 seek=9 count=5 conv=notrunc,fsync status=none; cksum z
        dd if=8k of=z bs=512 count=1 conv=nocreat,fdatasync status=none; cksum z
        ! dd if=f of=z conv=excl status=none 2>/dev/null; sync z .
    """,
    "redirections": """
        set -o noclobber; echo one >f; ! echo two 2>/dev/null >f; cat f; set +o noclobber
        exec 7<>f; echo 12 >&7; read -u 7 rest || true; exec 7>&-; cat f
        { echo a; echo b >&2; } >both 2>&1; cat both
        exec 8>>log; echo x >&8; rm log; echo y >&8; exec 8>&-; [ ! -e log ]
        mkfifo p; (seq 500 >p &); wc -l <p; (cat p >out &); echo through >p
        until [ -s out ]; do :; done; cat out; cat <<<here >doc; cat doc
        cat >|doc </dev/null; [ ! -s doc ]; umask 027; touch m; mkdir n; stat -c %a m n
        cd n; rmdir ../n; ! touch x 2>/dev/null; ls; cd ..; ls
    """,
    "names": """
        touch -- -rf ' ' $'new\\nline' 'sp ace' '*' $'\\xff' '~' "quote'"; ls -A | wc -l
        for f in *; do printf '%q\\n' "$f"; done; rm -- -rf '*'; ls -A | wc -l
        find . -type f -print0 | sort -z | od -c | tail -n 4; rm -- ./*; ls -A
        mkdir -p $(printf 'd/%.0s' $(seq 100)); find . -type d | wc -l; rm -rf d; ls -A
        touch {a..e}{1..9}; ls [b-d][2-4]; mv a1 A1; ls | tail -n 1; echo * | wc -c
    """,
}


@pytest.mark.parametrize("story", STORIES)
def test_a_story_is_the_same_everywhere(here: Path, native: Path, story: str) -> None:
    same_in_both(STORIES[story], here, native, apart=(b"snap",))


def test_sort_with_temporary_files(here: Path) -> None:
    (here / "scratch").mkdir()
    script = f"""
    seq {SORT_LINES} | sed 's/$/ some words that make the line longer/' | tac >in
    sort -n -T scratch -S 1M --parallel=2 -o in in
    sort -n -c in; wc -l <in; head -n 1 in; tail -n 1 in
    sort -u -k2 -T scratch -S 1M in | wc -l; sort -m -n in in | uniq -d | wc -l
    """
    tail = "some words that make the line longer"
    wanted = f"{SORT_LINES}\n1 {tail}\n{SORT_LINES} {tail}\n1\n{SORT_LINES}\n"
    assert shell(script, here) == wanted
    assert os.listdir(here / "scratch") == []


def test_du_and_df_agree(here: Path, shared: Host) -> None:
    trees.build_source_tree(here / "tree", files=60)
    (here / "zeros").write_bytes(bytes(3 << 20))
    os.link(here / "zeros", here / "twin")
    with (here / "sparse").open("wb") as out:
        out.truncate(SPARSE_BYTES)
    top = shared.mountpoint
    du = {
        words: int(programs.run("du", "-s", *words, here).split()[0])
        for words in (("-B1",), ("-B1", "--apparent-size"))
    }
    assert du["-B1",] < 8 << 20
    assert du["-B1", "--apparent-size"] > SPARSE_BYTES

    def agree() -> bool:
        """The space of what other tests deleted comes back a little later."""
        info = os.statvfs(top)
        used = (info.f_blocks - info.f_bfree) * info.f_frsize
        stats = {item.stat().st_ino: item.lstat() for item in top.rglob("*") if item.is_file()}
        held = sum(item.st_blocks * 512 for item in stats.values())
        return abs(used - held) <= held // 10

    wait_until(agree, timeout_s=30, what="df and du to agree")
    fields = programs.run("df", "--output=size,used,avail,iused", "-B1", here).splitlines()[1]
    size, used, free, inodes = map(int, fields.split())
    assert used + free <= size
    assert used > 3 << 20
    assert inodes > 60


def test_removing_a_deep_and_wide_tree(here: Path) -> None:
    shell(
        """
        (for n in $(seq 200); do mkdir d; cd d; touch f; done)
        for n in $(seq 8); do mkdir -p wide/$n; touch wide/$n/{a..z}; done
        rm -rf d wide; [ -z "$(ls -A)" ]
        """,
        here,
    )


def test_find_deletes_what_others_create(here: Path) -> None:
    make = "for n in $(seq 150); do mkdir -p d$((n % 5)); : >d$((n % 5))/f$n; done; echo made"
    with background("bash", "-c", make, cwd=here) as maker:
        while maker.poll() is None:
            shell("find . -mindepth 2 -type f -delete 2>/dev/null || true", here)
        assert finish(maker) == "made\n"
    shell('find . -mindepth 1 -delete; [ -z "$(ls -A)" ]', here)


def test_flock_lets_one_in_at_a_time(here: Path) -> None:
    need("flock")
    (here / "n").write_text("0\n")
    once = "flock lock bash -c 'n=$(<n); echo $((n + 1)) >n'"
    script = f"for t in $(seq {TURNS}); do {once}; done"
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(background("bash", "-c", script, cwd=here)) for _ in range(HOLDERS)
        ]
        for process in started:
            finish(process)
    assert (here / "n").read_text() == f"{HOLDERS * TURNS}\n"
    with background("flock", "lock", "cat", cwd=here):
        script = "while flock -n lock true; do :; done; flock -n -s lock true || echo held"
        assert shell(script, here) == "held\n"
    assert shell("flock -w 30 lock echo free", here) == "free\n"


def test_processes_talk_through_a_socket_and_a_fifo(here: Path) -> None:
    old = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    place = os.open(here, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fchdir(place)  # the address of a socket is short
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            server.bind("server")
            server.listen()
            client.connect("server")
            accepted, _ = server.accept()
            with accepted:
                client.sendall(b"hello")
                assert accepted.recv(100) == b"hello"
            os.rename("server", "moved")
            with socket.socket(socket.AF_UNIX) as late:
                late.connect("moved")
            with pytest.raises(FileNotFoundError), socket.socket(socket.AF_UNIX) as gone:
                gone.connect("server")
    finally:
        os.fchdir(old)
        os.close(place)
        os.close(old)
    os.mkfifo(here / "fifo")
    with background("sort", "-o", "sorted", "fifo", cwd=here) as sort:
        with (here / "fifo").open("w") as out:
            out.write("b\na\n")
        finish(sort)
    assert (here / "sorted").read_text() == "a\nb\n"


def test_many_processes_at_once(here: Path) -> None:
    """What an agent's build does: many short processes that write, rename, stat and remove."""
    began_ns = time.time_ns()
    shell(
        """
        seq 60 | xargs -P 8 -I{} bash -c '
            mkdir -p dir$(( {} % 7 )); echo {} >tmp.{}; mv tmp.{} dir$(( {} % 7 ))/file.{}
            ln dir$(( {} % 7 ))/file.{} link.{}; cat link.{} >>sum; rm link.{}'
        """,
        here,
    )
    assert sorted(map(int, (here / "sum").read_text().split())) == list(range(1, 61))
    files = list(here.rglob("file.*"))
    assert len(files) == 60
    assert all(path.stat().st_nlink == 1 for path in files)
    assert all(path.stat().st_mtime_ns > began_ns - 10**9 for path in files)


def test_what_scripts_left_is_the_same_on_another_host(elsewhere: Elsewhere) -> None:
    """Last in this module."""
    elsewhere()

"""Compilers and build tools on the mount: what is newer than what decides what is built again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

import pytest

from tests.support import programs
from tests.support.e2e_fixtures import Elsewhere
from tests.support.tools import need, same_in_both, shell

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

UNITS: Final = 6
ROUNDS: Final = 60

MAKEFILE: Final = """\
OBJECTS := $(patsubst %.c,%.o,$(wildcard part*.c))
CFLAGS := -g -O1 -Wall -pipe
program: main.o libparts.a
\t@echo link; $(CC) -g -o $@ main.o -L. -lparts
libparts.a: $(OBJECTS)
\t@echo archive; $(AR) rcs $@ $^; ranlib $@
%.o: %.c all.h
\t@echo compile $<; $(CC) $(CFLAGS) -c -o $@ $<
clean:
\trm -f *.o *.a program
"""


def write_c_project(top: Path) -> None:
    """A program of several units, a header and an archive."""
    numbers = range(UNITS)
    (top / "Makefile").write_text(MAKEFILE)
    (top / "all.h").write_text("".join(f"int part{n}(void);\n" for n in numbers))
    for n in numbers:
        (top / f"part{n}.c").write_text(f'#include "all.h"\nint part{n}(void) {{ return {n}; }}\n')
    total = " + ".join(f"part{n}()" for n in numbers)
    (top / "main.c").write_text(
        f'#include <stdio.h>\n#include "all.h"\n'
        f'int main(void) {{ printf("%d\\n", {total}); return 0; }}\n'
    )


def make(top: Path, *words: str) -> list[str]:
    """Run make; the steps it took, sorted (it works in parallel)."""
    return sorted(programs.run("make", "-s", "-j2", *words, cwd=top).splitlines())


def test_make_builds_what_changed_and_nothing_else(here: Path) -> None:
    need("make", "cc", "ar")
    write_c_project(here)
    everything = [f"compile part{n}.c" for n in range(UNITS)]
    assert make(here) == sorted(["archive", "compile main.c", "link", *everything])
    assert programs.run(here / "program") == "15\n"
    assert make(here) == []
    (here / "part3.c").touch()
    assert make(here) == ["archive", "compile part3.c", "link"]
    (here / "part4.c").write_text('#include "all.h"\nint part4(void) { return 104; }\n')
    assert make(here) == ["archive", "compile part4.c", "link"]
    assert programs.run(here / "program") == "115\n"
    (here / "all.h").touch()
    assert make(here) == sorted(["archive", "compile main.c", "link", *everything])
    assert make(here) == []
    assert "part3" in programs.run("nm", "libparts.a", cwd=here)
    make(here, "clean")
    assert not list(here.glob("*.o"))


def test_precompiled_headers_and_shared_objects(here: Path, native: Path) -> None:
    need("gcc")
    script = """
    echo '#include <stdio.h>' >pre.h; echo 'int twice(int n) { return 2 * n; }' >twice.c
    printf '#include "pre.h"\\nint twice(int);int main(void){printf("%%d\\\\n",twice(4));}' >main.c
    gcc -O1 pre.h -o pre.h.gch
    gcc -O1 -Winvalid-pch -Werror -include pre.h -c main.c -save-temps
    gcc -O1 -fPIC -shared -o libtwice.so twice.c
    gcc -o prog main.o -L. -ltwice -Wl,-rpath,'$ORIGIN'
    ./prog; mv libtwice.so moved.so; ! ./prog 2>/dev/null; ln -s moved.so libtwice.so; ./prog
    strip prog; ./prog; rm pre.h.gch
    """
    assert same_in_both(script, here, native) == "8\n8\n8\n"


def test_a_touched_file_is_not_older_than_one_written_before(here: Path) -> None:
    """touch(1) on a file that is there gets the kernel's time, all others get ours."""
    stamp = here / "stamp"
    stamp.touch()
    for number in range(ROUNDS):
        made = here / f"made {number}"
        made.write_text("by a recipe\n")
        stamp.touch()
        after = here / f"after {number}"
        after.write_text("by the next\n")
        times = [path.stat().st_mtime_ns for path in (made, stamp, after)]
        assert times == sorted(times), number


def test_a_recipe_with_a_stamp_is_run_once(here: Path) -> None:
    need("make")
    (here / "Makefile").write_text(
        "stamp: out\n\t@touch stamp; echo stamped\nout: in\n\t@cp in out; echo copied\n"
    )
    for number in range(8):
        (here / "in").write_text(f"{number}\n")
        assert make(here) == ["copied", "stamped"]
        assert make(here) == []


def test_an_executable_that_runs_is_busy(here: Path, native: Path) -> None:
    script = """
    cp "$(command -v sleep)" prog; ./prog 60 >/dev/null 2>&1 & pid=$!
    until [ "$(readlink /proc/$pid/exe)" = "$PWD/prog" ]; do :; done
    { echo x >>prog; } 2>&1 | grep -o 'Text file busy' || true
    cp /bin/true new; mv new prog; ./prog && echo replaced
    kill $pid; wait $pid || true
    """
    assert same_in_both(script, here, native) == "Text file busy\nreplaced\n"


def test_cargo_builds_once(here: Path) -> None:
    need("cargo", "cc")
    (here / "src").mkdir()
    (here / "Cargo.toml").write_text(
        '[package]\nname = "tiny"\nversion = "0.1.0"\nedition = "2021"\n[dependencies]\n'
    )
    (here / "src" / "lib.rs").write_text("pub fn twice(n: u32) -> u32 { 2 * n }\n")
    main = here / "src" / "main.rs"
    main.write_text('fn main() { println!("{}", tiny::twice(21)); }\n')
    build = ["cargo", "build", "--offline"]
    env = {"CARGO_TARGET_DIR": str(here / "target"), "CARGO_TERM_COLOR": "never"}
    assert "Compiling tiny" in programs.run(*build, cwd=here, env=env)
    assert "Compiling" not in programs.run(*build, cwd=here, env=env)
    assert programs.run(here / "target" / "debug" / "tiny") == "42\n"
    main.write_text('fn main() { println!("{}", tiny::twice(4)); }\n')
    assert "Compiling tiny" in programs.run(*build, cwd=here, env=env)
    assert programs.run(here / "target" / "debug" / "tiny") == "8\n"
    messages = programs.run(*build, "--message-format=json", cwd=here, env=env).splitlines()
    artifacts = [json.loads(line) for line in messages if line.startswith("{")]
    assert all(found["fresh"] for found in artifacts if found["reason"] == "compiler-artifact")


def test_patch_and_diff(here: Path, native: Path) -> None:
    need("patch", "diff")
    script = """
    mkdir old new
    for n in 1 2 3; do seq $((n * 20)) >old/f$n; sed s/7/seven/ old/f$n >new/f$n; done
    echo added >new/added; echo gone >old/gone; chmod 755 old/f2
    diff -ruN old new >change || true
    patch -s -d old -p1 <change; diff -r old new; stat -c '%a %n' old/f2; ls old
    patch -s -R -b -d old -p1 <change; { diff -r old new || true; } | wc -l
    ls old; sha256sum old/f3.orig
    """
    same_in_both(script, here, native, apart=(b"change",))


def test_nothing_is_built_again_on_another_host(here: Path, elsewhere: Elsewhere) -> None:
    """Last in this module: the times of all files are kept to the nanosecond."""
    need("make", "cc", "ar")
    write_c_project(here)
    make(here)
    there = elsewhere() / here.name
    assert make(there) == []
    assert programs.run(there / "program") == "15\n"
    shell("sleep 0; touch part1.c", there)
    assert make(there) == ["archive", "compile part1.c", "link"]
    assert os.access(there / "program", os.X_OK)

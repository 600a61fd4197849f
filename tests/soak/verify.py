"""Judges a mount by what the witnesses say was acknowledged.

Invariants
1. Each function returns what is wrong, in words; an empty list is the proof.
2. What was begun and not acknowledged may be there or not; nothing else may differ.

Called by soak, on a mount that was just made: the kernel knows nothing of before.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from tests.soak.actors import git, make_archive
from tests.soak.model import Step, Tree, partly, tree_differences
from tests.support.extractor import damaged

KEPT: Final = 3
"""Trees and unpacked archives that are kept; older ones are deleted while nobody works."""
LINES_KEPT: Final = 200


def acknowledged(witness: Path) -> list[str]:
    """The whole lines of a witness."""
    if not witness.exists():
        return []
    *lines, _ = witness.read_bytes().split(b"\n")
    return [line.decode() for line in lines]


def _steps(directory: Path, lines: list[str]) -> list[str]:
    trees: dict[str, tuple[Tree, Step | None]] = {}
    name = ""
    for line in lines:
        said = json.loads(line)
        if "tree" in said:
            name = said["tree"]
            trees[name] = (Tree(), None)
        elif "step" in said:
            trees[name] = (trees[name][0], said["step"])
        else:
            tree, step = trees[name]
            assert step is not None
            tree.apply(step)
            trees[name] = (tree, None)
    found = []
    for name, (tree, begun) in trees.items():
        place = directory / name
        if not place.exists():
            found.append(f"{name}: missing")
            continue
        wrong = tree_differences(tree, str(place))
        if wrong and begun is not None:
            possible = [begun, *partly(begun)]
            if any(not tree_differences(tree.after(each), str(place)) for each in possible):
                wrong = []
        found += [f"{name}: {text} (begun: {begun})" for text in wrong]
    return found


def _sqlite(directory: Path, lines: list[str]) -> list[str]:
    last = int(lines[-1]) if lines else 0
    path = directory / "rows.db"
    if not path.exists():
        return [f"the database is gone; {last} rows were committed"] if last else []
    db = sqlite3.connect(path, timeout=60)
    try:
        (state,) = db.execute("pragma integrity_check").fetchone()
        known = db.execute("select count(*) from sqlite_master where name = 'row'").fetchone()
        if not known[0]:
            return [f"the table is gone; {last} rows were committed"] if last else []
        count, highest = db.execute("select count(*), coalesce(max(number), 0) from row").fetchone()
    finally:
        db.close()
    found = [] if state == "ok" else [f"integrity_check: {state}"]
    if count != highest or not last <= highest <= last + 1:
        found.append(f"{count} rows up to {highest}; {last} were committed")
    return found


def _git(directory: Path, lines: list[str]) -> list[str]:
    repository = directory / "repository"
    if not lines:
        return []
    try:
        found = git(repository, "fsck", "--full", "--no-dangling").splitlines()
        git(repository, "merge-base", "--is-ancestor", lines[-1], "HEAD")
        known = set(git(repository, "rev-list", "HEAD").split())
    except subprocess.CalledProcessError as exc:
        return [f"git {exc.cmd[3:]}: exit {exc.returncode}: {exc.stdout} {exc.stderr}"]
    return found + [f"commit {line} is gone" for line in lines if line not in known]


def _tar(directory: Path, lines: list[str]) -> list[str]:
    places: dict[str, tuple[int, list[str]]] = {}
    name = ""
    for line in lines:
        said = json.loads(line)
        if "place" in said:
            name = said["place"]
            places[name] = (int(said["seed"]), [])
        else:
            places[name][1].append(said["member"])
    found = []
    for name in list(places)[-KEPT:]:
        seed, members = places[name]
        archive = directory.parent.parent / "judge.tar"
        make_archive(archive, seed)
        found += [f"{name}/{text}" for text in damaged(archive, directory / name, members)]
    return found


def _cc(directory: Path, lines: list[str]) -> list[str]:
    if not lines:
        return []
    said = subprocess.run([directory / "main"], capture_output=True, text=True, check=False)
    source = (directory / "main.c").read_text()
    found = [] if said.returncode == 0 else [f"main ends with {said.returncode}"]
    if said.stdout.strip() != lines[-1] and said.stdout.strip() not in source:
        found.append(f"main says {said.stdout!r}; {lines[-1]} was the last acknowledged")
    return found


JUDGES: Final[Mapping[str, Callable[[Path, list[str]], list[str]]]] = {
    "steps": _steps,
    "sqlite": _sqlite,
    "git": _git,
    "tar": _tar,
    "cc": _cc,
}


def trim(kind: str, directory: Path, witness: Path) -> None:
    """Forget what need not be judged again: old trees, and the lines about them."""
    lines = acknowledged(witness)
    if kind in ("steps", "tar"):
        word = "tree" if kind == "steps" else "place"
        places = [json.loads(line)[word] for line in lines if word in json.loads(line)][-KEPT:]
        for path in sorted(directory.iterdir()):
            if path.name not in places:
                shutil.rmtree(path)
        starts = [at for at, line in enumerate(lines) if word in json.loads(line)][-KEPT:]
        lines = lines[starts[0] :] if starts else []
    else:
        lines = lines[-LINES_KEPT:]
    witness.write_text("".join(f"{line}\n" for line in lines))


def lost(kind: str, directory: Path, witness: Path) -> list[str]:
    """What one program was told and the mount does not have."""
    return [f"{kind}: {text}" for text in JUDGES[kind](directory, acknowledged(witness))]

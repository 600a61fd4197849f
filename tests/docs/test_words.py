"""Every command, option, module, target and file that a document names exists.

What can be run is run by test_run; this also holds for what can't (other people's containers), and
for the text between.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from tests.docs import words
from tests.docs.reading import PAGES, ROOT, Document, documents

SPOKEN: Final = documents("README.md", "CHANGELOG.md", "docs/*.md", "packaging/**/*.md")
PACKAGED: Final = sorted(
    path
    for path in (ROOT / "packaging").rglob("*")
    if path.is_file() and path.suffix not in (".md", ".pyc", ".json", ".1", ".png")
)

FOREIGN_OPTIONS: Final = {
    "--build-arg": "docker",
    "--health": "s3ws-entrypoint",
    "--init": "docker",
    "--serve": "s3ws-entrypoint",
    "--user": "docker",
    "--cap-add": "docker", "--device": "docker", "--stop-timeout": "docker",
    "--security-opt": "docker", "--env-file": "docker", "--isolation": "podman",
    "--porcelain": "git", "--stage": "git", "--mirror": "git", "--require-hashes": "pip",
    "-P": "python", "-more": "the end of a key's name", "--seed": "a test module",
    "--seeds": "a test module", "--ops": "a test module", "--kills": "a test module",
    "--total": "a test module", "--seconds": "a test module",
}  # fmt: skip
"""Options that the text names alone, and that are other programs' (those of ours need no entry)."""

LAYERS: Final = (
    "core|holder|cache|fs|store|transfer|replica|snapshot|control|fuse|daemon|launch|settings|cli|"
    "workspaces|integrations"
)
PLACE: Final = re.compile(rf"(?:s3ws_fs/)?(?:{LAYERS})(?:/[a-z0-9_]+)+(?:\.py)?")
OTHER_PLACE: Final = re.compile(r"(?:tests|scripts|bench|packaging|requirements)/[\w./*-]+")
MODULE: Final = re.compile(r"python3? -m ((?:s3ws_fs|tests|scripts|bench)[\w.]*)")
MAKE: Final = re.compile(r"^make ([a-z0-9]+)")


@pytest.mark.parametrize("document", SPOKEN, ids=lambda document: document.name)
def test_commands_and_options_in_a_document_exist(document: Document) -> None:
    pieces = [
        (block.where, line)
        for block in document.blocks()
        for line in re.sub(r"\\\n\s*", " ", block.text).splitlines()
    ]
    pieces += [(piece.where, piece.text) for piece in [*document.code(), *document.unlabelled()]]
    wrong = [
        f"{where}: s3ws {call}: {problem}"
        for where, text in pieces
        for call in words.calls(text)
        for problem in words.problems(call)
    ]
    assert wrong == []


@pytest.mark.parametrize("document", SPOKEN, ids=lambda document: document.name)
def test_options_that_stand_alone_exist(document: Document) -> None:
    known = words.every_option() | FOREIGN_OPTIONS.keys()
    wrong = [
        f"{where}: {text}"
        for where, text in document.code()
        if (match := re.match(r"--?[a-zA-Z][a-zA-Z0-9-]*", text)) and match[0] not in known
    ]
    assert wrong == []


@pytest.mark.parametrize("path", PACKAGED, ids=lambda path: path.name)
def test_commands_in_what_is_packaged_exist(path: Path) -> None:
    wrong = [
        f"{path}:{number}: s3ws {call}: {problem}"
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if re.search(r"(?:/|^\s*|exec )s3ws [a-z]", line)
        for call in words.calls(re.sub(r"\S*/s3ws ", "s3ws ", line))
        for problem in words.problems(call)
    ]
    assert wrong == []


def test_files_and_modules_that_documents_name_are_there() -> None:
    missing = set()
    for document in PAGES:
        pieces = [*document.code(), *((b.where, b.text) for b in document.blocks())]
        for where, text in pieces:
            for module in MODULE.findall(text):
                if not _is_module(module):
                    missing.add(f"{where}: {module}")
            if PLACE.fullmatch(text) and not _is_place(text.removeprefix("s3ws_fs/")):
                missing.add(f"{where}: {text}")
            for name in OTHER_PLACE.findall(text):
                if not _is_file(name.rstrip(".")):
                    missing.add(f"{where}: {name}")
    assert missing == set()


def test_targets_of_make_that_documents_name_are_there() -> None:
    targets = set(re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {
        (piece.where, target)
        for document in PAGES
        for piece in document.code()
        for target in MAKE.findall(piece.text)
    }
    assert {(where, target) for where, target in named if target not in targets} == set()


def test_what_does_not_exist_is_found() -> None:
    assert words.problems("mount /workspace --take-over --at REF") == []
    assert words.problems("turn begin|end NAME [MOUNTPOINT]") == []
    assert words.problems("git restore [REPO-PATH] --to DIR") == []
    assert words.problems("COMMAND --json") == []
    assert words.problems("muont /workspace") == ["there is no command 'muont'"]
    assert words.problems("turn begin|stop NAME") == ["there is no command 'stop'"]
    assert words.problems("umount /workspace --take-over") == ["umount has no option --take-over"]
    assert list(words.calls("x=$(s3ws status --json) && s3ws ls | head # s3ws x")) == [
        "status --json",
        "ls",
    ]
    assert list(words.calls("docker run -v s3ws-cache:/x s3ws python3 agent.py")) == []
    assert list(words.calls("docker build -t s3ws .")) == []
    assert list(words.calls("docker exec c s3ws stauts")) == ["stauts"]
    assert list(words.calls("mount -t s3ws alice/test-123 /mnt")) == []
    assert list(words.calls("s3ws  /mnt  fuse.s3ws  _netdev  0 0")) == []


def _is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").exists() or path.is_dir()


def _is_place(name: str) -> bool:
    path = ROOT / "s3ws_fs" / name
    return path.exists() or path.with_suffix(".py").exists()


def _is_file(name: str) -> bool:
    return (ROOT / name).exists() or ("*" in name and any(ROOT.glob(name)))

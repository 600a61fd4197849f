"""Every command in a block of README.md and docs/*.md is run, against SeaweedFS and real mounts.

A document is one shell, in a fresh clone, with a home, cache and user of its own (sandbox.py).
Before it stands a stage: for all but the README a workspace with a few files on /workspace.
What can't be run is listed with its reason in tests/docs/shell.py. The examples of
docs/semantics.md are run by tests/e2e/test_semantics_doc.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.docs.reading import ALL, PAGES, Block, Document
from tests.docs.sandbox import Outcome, Sandbox
from tests.docs.shell import (
    LANGUAGES,
    NOT_RUN,
    is_as_shown,
    of_console,
    of_shell,
    simple_commands,
    steps,
)
from tests.support.host import NEVER_BY_ITSELF
from tests.support.mounting import require_fuse
from tests.support.seaweed import Seaweed
from tests.support.tools import need

STAGE: Final = """\
s3ws mount /workspace
mkdir -p /workspace/src && echo 'print("hello")' >/workspace/src/main.py
echo notes >/workspace/notes.txt
git -C /workspace init -q -b main
git -C /workspace add -A && git -C /workspace commit -q -m first
s3ws sync /workspace
"""

STAGES: Final = {
    "README.md": "",
    "docs/performance.md": "",
    "docs/containers.md": "mkdir -p /srv/s3ws",
    "docs/backups.md": STAGE
    + """\
s3ws backup /workspace
PLACE=s3://my-bucket/conversations/alice/test-123/workspace/compressed
NAME=$(aws s3 ls $PLACE/ | sed -n 's/.* \\(backup-.*gz\\)$/\\1/p' | grep tar.gz)
aws s3 cp $PLACE/$NAME /tmp/backup && aws s3 cp /tmp/backup $PLACE/backup-20260131T120000Z.tar.gz
""",
}
"""What stands before the commands of one document; STAGE where nothing is said."""

SETTINGS: Final = {
    # What is not saved when its host is lost must not have been saved just before.
    "docs/operations.md": {**NEVER_BY_ITSELF, "WORKSPACE_LEASE_S": "60"},
}
"""What else is set for one document."""

ELSEWHERE: Final = {"docs/semantics.md": "tests/e2e/test_semantics_doc.py"}
RUNNABLE: Final = [
    page
    for page in PAGES
    if page.name not in ELSEWHERE and not all(step.reason_not_to_run for step in steps(page))
]


@pytest.fixture
def sandbox(request: pytest.FixtureRequest, tmp_path: Path, seaweed: Seaweed) -> Iterator[Sandbox]:
    require_fuse()
    need("git", "make", "sqlite3")
    sandbox = Sandbox(tmp_path, seaweed, request.node.callspec.id)
    try:
        yield sandbox
    finally:
        sandbox.end()


@pytest.mark.e2e
@pytest.mark.fuse
@pytest.mark.s3
@pytest.mark.timeout(800)
@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.name)
def test_the_commands_of_a_document_do_what_it_says(page: Document, sandbox: Sandbox) -> None:
    before = of_shell(Block(f"before {page.name}", 1, "sh", STAGES.get(page.name, STAGE)))
    wanted = [*before, *(step for step in steps(page) if not step.reason_not_to_run)]
    sandbox.env |= SETTINGS.get(page.name, {})
    outcomes = sandbox.run(wanted)
    assert [text for outcome in outcomes if (text := trouble(outcome))] == []
    assert len(outcomes) == len(wanted), f"the shell ended in {wanted[len(outcomes)].where}"
    assert sandbox.save() == []


def trouble(outcome: Outcome) -> str:
    """What is wrong with an outcome; empty when nothing is."""
    step = outcome.step
    if step.output is not None:
        if not is_as_shown(step.output, outcome.printed):
            return (
                f"{step.where}: {step.command}\nshown:\n{step.output}\nprinted:\n{outcome.printed}"
            )
    elif outcome.status != step.status:
        return (
            f"{step.where}: {step.command}\n"
            f"exit code {outcome.status}, wanted {step.status}\n{outcome.printed}"
        )
    return ""


def test_every_block_says_what_it_is() -> None:
    wrong = [b.where for d in ALL for b in d.blocks() if b.language not in LANGUAGES]
    wrong += [piece.where for page in PAGES for piece in page.unlabelled()]
    assert wrong == []


def test_what_is_not_run_is_listed_and_needed() -> None:
    used = {step.reason_not_to_run for page in PAGES for step in steps(page)}
    assert {begin for begin, why in NOT_RUN.items() if why not in used} == set()


def test_shell_is_cut_into_whole_commands() -> None:
    text = "# only a remark\na \\\n  b |\n c\nfor x in 1; do\n  echo $x\ndone\n"
    text += "cat <<E\nx\nE\nf # exit code 7\n"
    found = of_shell(Block("d", 10, "sh", text))
    assert [(step.where, step.command, step.status) for step in found] == [
        ("d:11", "a \\\n  b |\n c\n", 0),
        ("d:14", "for x in 1; do\n  echo $x\ndone\n", 0),
        ("d:17", "cat <<E\nx\nE\n", 0),
        ("d:20", "f # exit code 7\n", 7),
    ]
    with pytest.raises(ValueError, match="d:2"):
        of_shell(Block("d", 1, "sh", "true\nif true\n"))


def test_commands_of_a_line() -> None:
    assert simple_commands("A=1 sudo docker run -it x | tee y && ( cd / ; ls -l )") == [
        "docker run -it x", "tee y", "cd /", "ls -l )",
    ]  # fmt: skip


def test_wrong_documents_are_found() -> None:
    console = of_console(Block("d", 1, "console", "$ echo a\na …\n$ false\n"))
    assert not trouble(Outcome(console[0], 0, "a b\n"))
    assert trouble(Outcome(console[0], 0, "b\n"))
    assert trouble(Outcome(console[1], 1, "said something\n"))
    (step,) = of_shell(Block("d", 1, "sh", "s3ws mount x # exit code 16\n"))
    assert not trouble(Outcome(step, 16, ""))
    assert trouble(Outcome(step, 0, ""))

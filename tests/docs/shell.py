"""Blocks of shell as steps: one whole command each, with what it should print and end with.

Invariants
1. Where a command ends is said by bash itself (`bash -n`), not by us.
2. A step of a `sh` block ends with 0, or with the N of a trailing comment "exit code N"; what a
   `console` block shows below a command is what it prints, where … stands for anything.
3. What is not run is found by its program, and has its reason in NOT_RUN.

Called by the tests of tests/docs, and by tests/e2e/test_semantics_doc.py.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import dataclass
from typing import Final

from tests.docs.reading import Block, Document

NOT_RUN: Final = {
    r"docker": "needs a Docker engine; the image is tested in real containers by tests/packaging",
    r"mount --bind": "changes the host's mounts; tests/packaging does the same with a directory",
    r"\./run-tests": "is what runs this test",
    r"packaging/install-host": "changes the machine; run below another root by tests/packaging",
    r"systemctl": "needs a running systemd; the units are tested by tests/packaging",
    r"mount -t s3ws|umount": "needs links in /sbin; done in a namespace by tests/integrations",
    r"make bench": "takes minutes; tests/bench runs the same program",
    r"\S*python -m bench(?! --help)": "takes minutes; tests/bench runs the same program",
    r"scripts/peers": "fetches programs that nothing here needs; tests/bench runs those "
    "that are installed",
    r"from openhands\.\S+ import": "needs the OpenHands SDK; tests/e2e/test_openhands.py runs such "
    "a program with it",
}
"""Commands that are not run, by how they begin, and why. Of ours, the words in such lines are
checked all the same (test_words). An entry that no document needs has to go."""

UNTIL_ENDED: Final = (
    r"s3ws (?:watch|top|web)\b",
    r"s3ws mount .*--foreground",
    r"make s3$",
    r"s3ws metrics .*--listen",
)
"""Commands that go on until they are ended: run until they print something, then interrupted."""

LANGUAGES: Final = frozenset(
    {"sh", "console", "python", "text", "yaml", "ini", "json", "toml", "dockerfile", "gitignore"}
)
"""What a block may say it is: a command can't hide in a block that says nothing."""

_STATUS: Final = re.compile(r"#.*\bexit code (\d+)\b")
_SEPARATORS: Final = frozenset({"|", "||", "&&", ";", "&", "(", "do", "then", "else", "!", "{"})
_PREFIXES: Final = frozenset({"sudo", "exec", "env", "time", "nohup", "nice", "command"})


@dataclass(frozen=True, slots=True)
class Step:
    """One command of a document. `output` is None where the document shows none."""

    where: str
    command: str
    output: str | None = None
    status: int = 0
    is_python: bool = False

    @property
    def reason_not_to_run(self) -> str:
        """Empty for what is run."""
        first = self.command.partition("\n")[0]
        commands = [first] if self.is_python else simple_commands(self.command)
        return next(
            (why for each in commands for begin, why in NOT_RUN.items()
             if re.match(rf"{begin}(?:\s|$)", each)),
            "",
        )  # fmt: skip

    @property
    def goes_on(self) -> bool:
        """It ends only when it is interrupted."""
        bare = re.sub(r"\s+#.*", "", self.command.strip())
        return any(re.match(pattern, bare) for pattern in UNTIL_ENDED)


def steps(document: Document) -> list[Step]:
    """What there is to run in a document, in its order."""
    found: list[Step] = []
    for block in document.blocks():
        if block.language == "sh":
            found += of_shell(block)
        elif block.language == "console":
            found += of_console(block)
        elif block.language == "python":
            found.append(Step(block.where, block.text, is_python=True))
    return found


def of_shell(block: Block) -> list[Step]:
    """The commands of a block of shell. ValueError when the last one has no end."""
    found: list[Step] = []
    pending, began = "", block.line
    for number, row in enumerate(block.text.splitlines(), block.line):
        if not pending.strip():
            pending, began = "", number
        pending += f"{row}\n"
        if row.endswith("\\") or not _is_whole(pending):
            continue
        if re.sub(r"(^|\s)#.*", "", pending).strip():
            status = _STATUS.search(pending)
            found.append(
                Step(f"{block.document}:{began}", pending, status=int(status[1]) if status else 0)
            )
        pending = ""
    if pending.strip():
        raise ValueError(f"{block.document}:{began}: not a whole command: {pending!r}")
    return found


def of_console(block: Block) -> list[Step]:
    """Commands ("$ ", going on with "> ") and what they print. ValueError for anything before."""
    found: list[Step] = []
    for number, row in enumerate(block.text.splitlines(), block.line):
        where = f"{block.document}:{number}"
        if row.startswith("$ "):
            found.append(Step(where, row[2:], ""))
        elif not found:
            raise ValueError(f"{where}: the block does not begin with a command")
        elif row.startswith("> ") and not found[-1].output:
            found[-1] = Step(found[-1].where, f"{found[-1].command}\n{row[2:]}", "")
        else:
            last = found[-1]
            found[-1] = Step(last.where, last.command, f"{last.output}{row}\n")
    return found


def is_as_shown(shown: str, printed: str) -> bool:
    """Whether the output fits, … standing for anything."""
    pattern = ".*".join(re.escape(part) for part in shown.split("…"))
    return re.fullmatch(pattern, printed, re.DOTALL) is not None


def simple_commands(command: str) -> list[str]:
    """The commands in a line of shell, each from its program on."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.wordchars += "$@:,+%"
    found: list[list[str]] = []
    is_first = True
    try:
        words = list(lexer)
    except ValueError:
        words = command.split()
    for word in words:
        if word in _SEPARATORS:
            is_first = True
        elif is_first and word not in _PREFIXES and not re.match(r"[A-Za-z_]\w*=|-", word):
            found.append([word])
            is_first = False
        elif not is_first:
            found[-1].append(word)
    return [" ".join(words) for words in found]


def _is_whole(text: str) -> bool:
    """Whether bash takes it for whole commands (a here-document without an end is a warning)."""
    done = subprocess.run(
        ["bash", "-n"], input=text, capture_output=True, text=True, timeout=30, check=False
    )
    return done.returncode == 0 and not done.stderr

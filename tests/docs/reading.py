"""The documents as data: blocks of code, code in the text, links and headings, with their lines.

Invariants
1. Markdown is read by a Markdown parser (CommonMark and GitHub's tables), not by patterns.
2. Every piece knows where it stands: `where` is "docs/format.md:12".
3. A heading's anchor is the one that GitHub makes.

Called by the tests of tests/docs, and by tests/e2e/test_semantics_doc.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT: Final = Path(__file__).resolve().parents[2]
_PARSER: Final = MarkdownIt("commonmark").enable("table")


class Piece(NamedTuple):
    """A piece of a document: of code in the text, a link's target, a heading's text."""

    where: str
    text: str


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of code. `line` is that of its first row of content."""

    document: str
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.document}:{self.line}"


@dataclass(frozen=True)
class Document:
    """One file; `name` is its path from the top of the repository."""

    name: str

    @property
    def path(self) -> Path:
        return ROOT / self.name

    @property
    def text(self) -> str:
        return self.path.read_text()

    def blocks(self) -> list[Block]:
        """All fenced blocks, in their order."""
        return [
            Block(self.name, token.map[0] + 2, token.info.strip(), token.content)
            for token in _tokens(self.name)
            if token.type == "fence" and token.map
        ]

    def unlabelled(self) -> list[Piece]:
        """Indented blocks: code of which nobody says what it is."""
        return [
            Piece(_where(self.name, token), token.content)
            for token in _tokens(self.name)
            if token.type == "code_block"
        ]

    def code(self) -> list[Piece]:
        """Code in the text."""
        return [Piece(w, t.content) for w, t in self._inline() if t.type == "code_inline"]

    def links(self) -> list[Piece]:
        """Targets of links and images."""
        found = []
        for where, token in self._inline():
            target = token.attrGet("href") or token.attrGet("src")
            if token.type in ("link_open", "image") and isinstance(target, str):
                found.append(Piece(where, target))
        return found

    def anchors(self) -> set[str]:
        """What a link into this document may name behind the #."""
        tokens = _tokens(self.name)
        found: set[str] = set()
        for opening, inline in pairwise(tokens):
            if opening.type != "heading_open":
                continue
            text = "".join(t.content for t in inline.children or () if t.type != "softbreak")
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            number = 1
            unique = slug
            while unique in found:
                unique = f"{slug}-{number}"
                number += 1
            found.add(unique)
        return found

    def rows(self) -> list[tuple[str, list[str]]]:
        """Rows of all tables, where and cells, in Markdown and without the head."""
        found: list[tuple[str, list[str]]] = []
        is_body = False
        for token in _tokens(self.name):
            if token.type in ("tbody_open", "tbody_close"):
                is_body = token.type == "tbody_open"
            elif is_body and token.type == "tr_open":
                found.append((_where(self.name, token), []))
            elif is_body and token.type == "inline":
                found[-1][1].append(token.content)
        return found

    def _inline(self) -> Iterator[tuple[str, Token]]:
        where = self.name
        for token in _tokens(self.name):
            if token.map:
                where = _where(self.name, token)
            yield from ((where, child) for child in token.children or ())


def _where(name: str, token: Token) -> str:
    return f"{name}:{token.map[0] + 1}" if token.map else name


@cache
def _tokens(name: str) -> list[Token]:
    return _PARSER.parse((ROOT / name).read_text())


def documents(*patterns: str) -> list[Document]:
    """Those whose path fits one of the patterns, in the order of their names."""
    paths = {path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()}
    return [Document(path.relative_to(ROOT).as_posix()) for path in sorted(paths)]


PAGES: Final = documents("README.md", "docs/*.md")
"""What people read to use the program: every command in them is run."""

ALL: Final = documents("*.md", "docs/**/*.md", "packaging/**/*.md")
"""And records of decisions, the changelog: their links hold, their words are of their time."""


def code_of(cell: str) -> list[str]:
    """The pieces of code in a table's cell."""
    return re.findall(r"`([^`]+)`", cell)

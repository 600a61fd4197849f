"""Links between documents, and names of documents in code, lead somewhere."""

from __future__ import annotations

import re

import pytest

from tests.docs.reading import ALL, ROOT, Document

NAMED = re.compile(r"(?<![\w/.-])docs/(?:decisions/)?[a-z0-9-]+\.md")
FOREIGN = ("http://", "https://", "mailto:")


def broken(document: Document) -> list[str]:
    """Links of this document to files and headings that are not there."""
    found = []
    for where, target in document.links():
        if target.startswith(FOREIGN):
            continue
        path, _, anchor = target.partition("#")
        file = (document.path.parent / path).resolve() if path else document.path
        if not file.exists():
            found.append(f"{where}: {target}: no such file")
        elif anchor:
            other = Document(file.relative_to(ROOT).as_posix())
            if anchor not in other.anchors():
                found.append(f"{where}: {target}: no such heading")
    return found


@pytest.mark.parametrize("document", ALL, ids=lambda document: document.name)
def test_links_lead_somewhere(document: Document) -> None:
    assert broken(document) == []


def test_documents_that_code_and_text_name_are_there() -> None:
    files = [ROOT / "Makefile", ROOT / "Dockerfile", ROOT / "README.md", ROOT / "CHANGELOG.md"]
    for top in ("docs", "s3ws_fs", "tests", "scripts", "bench", "packaging"):
        files += (p for p in (ROOT / top).rglob("*") if p.suffix in (".md", ".py", ".toml", ".yml"))
    missing = {
        f"{file.relative_to(ROOT)}: {name}"
        for file in files
        for name in NAMED.findall(file.read_text())
        if not (ROOT / name).exists()
    }
    assert missing == set()


def test_every_page_is_in_the_readmes_list() -> None:
    linked = {target.partition("#")[0] for _, target in Document("README.md").links()}
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")}
    assert pages - linked == set()


def test_a_broken_link_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "# A `b` c, d\n\n[x](none.md) [y](format.md#none) [z](#a-b-c-d) [w](#e)\n"
    document = Document("docs/architecture.md")
    monkeypatch.setattr("tests.docs.reading._tokens", lambda _name: _parsed(text))
    assert document.anchors() == {"a-b-c-d"}
    assert [problem.split(": ")[1] for problem in broken(document)] == [
        "none.md",
        "format.md#none",
        "#e",
    ]


def _parsed(text: str) -> object:
    from tests.docs.reading import _PARSER

    return _PARSER.parse(text)


def test_decisions_have_one_number_each_and_say_it() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    numbers = [page.name[:4] for page in pages]
    assert numbers == [f"{number:04}" for number in range(1, len(pages) + 1)]
    for page in pages:
        assert page.read_text().startswith(f"# {page.name[:4]}: "), page.name

"""Blocks of data in the documents are what they say: YAML, TOML, JSON and INI that parse."""

from __future__ import annotations

import configparser
import json
import re
import tomllib
from collections.abc import Callable
from typing import Any, Final

import pytest
import yaml

from tests.docs.reading import PAGES, Block, Document


def _ini(text: str) -> Any:
    """Units, and files of variables, which have no section."""
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    head = "" if re.search(r"^\[", text, re.M) else "[variables]\n"
    parser.read_string(head + text)
    return {name: dict(parser[name]) for name in parser.sections()}


def _json(text: str) -> Any:
    """Documents, one or a line each."""
    try:
        return json.loads(text)
    except ValueError:
        return [json.loads(line) for line in text.splitlines()]


READERS: Final[dict[str, Callable[[str], Any]]] = {
    "yaml": lambda text: list(yaml.safe_load_all(text)),
    "toml": tomllib.loads,
    "json": _json,
    "ini": _ini,
}
BLOCKS: Final = [block for page in PAGES for block in page.blocks() if block.language in READERS]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.where)
def test_a_block_of_data_parses(block: Block) -> None:
    assert READERS[block.language](block.text)


def test_the_readmes_compose_file_gives_what_a_mount_needs() -> None:
    """The image, the device, the right to mount, a cache that stays, and time for the flush."""
    (text,) = (b.text for b in Document("README.md").blocks() if b.language == "yaml")
    services = yaml.safe_load(text)["services"]
    (mounting,) = (each for each in services.values() if "devices" in each)
    assert "/dev/fuse" in mounting["devices"][0]
    assert mounting["cap_add"] == ["SYS_ADMIN"]
    assert any(volume.endswith(":/var/lib/s3ws") for volume in mounting["volumes"])
    grace_s = int(mounting["stop_grace_period"].removesuffix("s"))
    assert mounting["environment"]["WORKSPACE_STOP_GRACE"] < grace_s


@pytest.mark.parametrize(
    ("language", "text"),
    [("yaml", "a: [1"), ("toml", "a = "), ("json", "{'a': 1}"), ("ini", "[a\nb")],
)
def test_what_does_not_parse_is_found(language: str, text: str) -> None:
    with pytest.raises((ValueError, yaml.YAMLError, configparser.Error)):
        READERS[language](text)

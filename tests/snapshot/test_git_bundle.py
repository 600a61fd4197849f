"""The header of a bundle: read with care, and as git writes it."""

from __future__ import annotations

import contextlib
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3ws_fs.core.errors import FormatError
from s3ws_fs.snapshot.git import bundle, manifest
from s3ws_fs.snapshot.git.bundle import first_state, read_header

ONE, TWO = "1" * 40, "2" * 40


def test_a_header() -> None:
    raw = f"# v2 git bundle\n-{ONE} base\n{TWO} refs/s3ws/state\n{ONE} HEAD\n\nPACK".encode()
    header = read_header(io.BytesIO(raw))
    assert header.prerequisites == [ONE]
    assert header.refs == [("refs/s3ws/state", TWO), ("HEAD", ONE)]
    assert header.state == TWO
    assert raw[header.pack_offset :] == b"PACK"
    assert first_state(raw) == TWO


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"# v1 git bundle\n\n", b"# v2 git bundle\n", b"# v2 git bundle\nxyz HEAD\n\n",
        b"# v3 git bundle\n@object-format=md5\n\n", b"# v3 git bundle\n@filter=blob:none\n\n",
        b"# v2 git bundle\n" + b"1" * 40 + b" HEAD", b"# v2 git bundle\n-\n\n", b"x" * 10_000,
    ],
)  # fmt: skip
def test_what_is_no_header(raw: bytes) -> None:
    with pytest.raises(FormatError):
        read_header(io.BytesIO(raw))


def test_a_header_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "HEADER_BYTES_MAX", 1000)
    line = f"{ONE} refs/heads/x\n".encode()
    read_header(io.BytesIO(b"# v2 git bundle\n" + line * 10 + b"\n"))
    with pytest.raises(FormatError, match="too long"):
        read_header(io.BytesIO(b"# v2 git bundle\n" + line * 100 + b"\n"))


@given(st.binary(max_size=300))
def test_bytes_of_anybody_are_an_error_or_a_header(raw: bytes) -> None:
    with contextlib.suppress(FormatError):
        read_header(io.BytesIO(b"# v2 git bundle\n" + raw))
    first_state(raw)


ANYTHING = st.recursive(
    st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
)


@given(ANYTHING)
def test_a_manifest_of_anybody_is_an_error(value: object) -> None:
    document = {"format": 1, "kind": value, "where": value, "git": value, "modes": value}
    with pytest.raises(FormatError):
        manifest.decode(json.dumps(document).encode(), "x")


def test_a_manifest_comes_back_and_is_the_same_bytes() -> None:
    said = manifest.Manifest(
        "repository",
        (b"", b".git", b".git"),
        "sha1",
        git={b"HEAD": (0o644, ONE), b"\xff": (0o600, TWO)},
        modes={b"a/b": 0o600},
        empty_dirs=[b"z", b"a"],
        left_out=[(b"big", "too large")],
        left_out_count=1,
        counts={"modified": 3},
    )
    again = manifest.decode(said.encode(), "x")
    assert again.git == said.git
    assert again.modes == said.modes
    assert again.encode() == said.encode()

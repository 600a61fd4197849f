"""Keys of bundles: one for each path, and the way back."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from s3ws_fs.core.gitkeys import bundle_key, more_key, repository_of

NAMES = st.binary(min_size=1, max_size=8).filter(
    lambda name: not {0, ord("/")} & set(name) and name not in (b".", b"..")
)
ODD = st.sampled_from([b"workspace", b"a.bundle", b"a.bundle-more", b"%77orkspace", b"\xff", b"%"])
PATHS = st.lists(NAMES | ODD, max_size=4).map(b"/".join)


@given(PATHS)
@example(b"workspace")
@example(b"%77orkspace")
def test_the_way_back(path: bytes) -> None:
    assert repository_of(bundle_key(path)) == path
    assert repository_of(more_key(path)) is None


@given(st.sets(PATHS, min_size=2, max_size=6))
@example({b"a", b"a.bundle/b", b"a.bundle-more/c"})
def test_no_key_is_another_ones_directory(paths: set[bytes]) -> None:
    keys = [key for path in paths for key in (bundle_key(path), more_key(path))]
    assert len(set(keys)) == len(keys)
    for key in keys:
        assert not any(other.startswith(key + "/") for other in keys)


@pytest.mark.parametrize(
    ("path", "key"),
    [
        (b"", "git/workspace.bundle"),
        (b"workspace", "git/%77orkspace.bundle"),
        (b"a/b", "git/a/b.bundle"),
        (b"a.bundle/b.bundle", "git/a%2Ebundle/b.bundle.bundle"),
        (b"\xff\n", "git/%FF%0A.bundle"),
    ],
)
def test_keys(path: bytes, key: str) -> None:
    assert bundle_key(path) == key


@pytest.mark.parametrize(
    "key",
    ["git/", "git/x", "files/x.bundle", "git/.bundle", "git/a//b.bundle", "git/a/../b.bundle",
     "git/a.bundle/b.bundle", "git/%ff.bundle", "git/x.bundle-more"],
)  # fmt: skip
def test_what_is_no_key(key: str) -> None:
    assert repository_of(key) is None

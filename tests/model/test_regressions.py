"""What the two-tree oracle found, shrunk: each of these was a difference once."""

from __future__ import annotations

import pytest

from tests.model.picks import IS_ROOT
from tests.model.twins import Twins

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]


@pytest.fixture
def with_xattrs(t: Twins) -> Twins:
    """Twins that can have extended attributes."""
    if not t.native.has_user_xattrs:
        pytest.skip("the filesystem of the plain directory has no extended attributes (user.)")
    return t


def test_setting_an_xattr_to_what_it_is_moves_no_time(with_xattrs: Twins) -> None:
    t = with_xattrs
    t.mkdir("a", 0o755)
    t.setxattr("a", "user.a", (1, 20))
    t.setxattr("a", "user.a", (1, 20))
    t.setxattr("a", "user.a", (2, 20))
    t.setxattr("a", "user.empty", (0, 0))
    t.setxattr("a", "user.empty", (0, 0))


def test_an_xattr_name_that_is_only_a_namespace_is_refused(with_xattrs: Twins) -> None:
    t = with_xattrs
    t.mkdir("a", 0o755)
    assert t.setxattr("a", "user.", (0, 0)) == "EINVAL"
    assert t.getxattr("a", "user.") == "EINVAL"
    assert t.removexattr("a", "user.") == "EINVAL"


def test_names_of_trusted_xattrs_are_for_root_alone(with_xattrs: Twins) -> None:
    if not IS_ROOT:
        pytest.skip("only root can make trusted. attributes, and be another user")
    t = with_xattrs
    t.mkdir("a", 0o755)
    t.setxattr("a", "trusted.a", (1, 3))
    t.setxattr("a", "security.a", (1, 3))
    t.setxattr("a", "user.a", (1, 3))
    assert t.listxattr("a") == ["security.a", "trusted.a", "user.a"]
    t.become(1000)
    assert t.listxattr("a") == ["security.a", "user.a"]
    assert t.getxattr("a", "trusted.a") == "ENODATA"
    t.become(0)

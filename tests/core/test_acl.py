"""Access control lists as values. That the kernel means the same: tests/fs/test_acls.py."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3ws_fs.core import acl
from s3ws_fs.core.acl import GROUP, GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, Entry
from s3ws_fs.core.errors import FormatError
from tests.support import acls

perms = st.integers(0, 7)
named = st.lists(st.tuples(st.integers(0, 2**32 - 2), perms), max_size=4)


@st.composite
def lists(draw: st.DrawFn) -> acl.Acl:
    users, groups = (draw(named), draw(named)) if draw(st.booleans()) else ([], [])
    with_mask = bool(users or groups) or draw(st.booleans())
    return (
        Entry(USER_OBJ, draw(perms)),
        *(Entry(USER, perm, number) for number, perm in users),
        Entry(GROUP_OBJ, draw(perms)),
        *(Entry(GROUP, perm, number) for number, perm in groups),
        *([Entry(MASK, draw(perms))] if with_mask else []),
        Entry(OTHER, draw(perms)),
    )


def changed(entries: acl.Acl) -> set[int]:
    """Tags of the entries that a mode change may touch."""
    return {USER_OBJ, OTHER, MASK if len(entries) > 3 else GROUP_OBJ}


def test_the_layout_is_the_kernels() -> None:
    value = acls.acl("u::rwx,u:7:r-x,g::r--,g:9:-w-,m::rwx,o::--x")
    assert acl.decode(value) == (
        Entry(USER_OBJ, 7),
        Entry(USER, 5, 7),
        Entry(GROUP_OBJ, 4),
        Entry(GROUP, 2, 9),
        Entry(MASK, 7),
        Entry(OTHER, 1),
    )
    assert acl.encode(acl.decode(value)) == value
    assert acl.decode(acls.acl("u::rwx,g::---,o::---")[:4]) == ()


@given(lists())
def test_what_is_written_is_read_again(entries: acl.Acl) -> None:
    value = acl.encode(entries)
    assert acl.decode(value) == entries
    assert acl.encode(acl.decode(value)) == value


@given(
    st.binary(max_size=80)
    | st.lists(
        st.tuples(
            st.sampled_from([0, 1, 2, 4, 8, 16, 32, 64]),
            st.integers(0, 9),
            st.sampled_from([0, 2**32 - 1]),
        ),
        max_size=7,
    ).map(lambda raw: struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in raw))
)
def test_any_bytes_are_a_valid_list_or_a_format_error(value: bytes) -> None:
    try:
        entries = acl.decode(value)
    except FormatError:
        return
    assert acl.decode(acl.encode(entries)) == entries
    if entries:
        tags = [entry.tag for entry in entries]
        assert tags == sorted(tags)
        assert {USER_OBJ, GROUP_OBJ, OTHER} <= set(tags)
        assert MASK in tags or not {USER, GROUP} & set(tags)
        assert 0 <= acl.mode_bits(entries) <= 0o777


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\2\0\0",
        acls.acl("u::rwx,g::r-x,o::r-x")[:-1],
        struct.pack("<I", 1) + acls.acl("u::rwx,g::r-x,o::r-x")[4:],
        acls.acl("u::rwx,g::r-x"),
        acls.acl("u::rwx,o::r-x"),
        acls.acl("g::r-x,o::r-x"),
        acls.acl("u::rwx,u::rwx,g::r-x,o::r-x"),
        acls.acl("u::rwx,o::r-x,g::r-x"),
        acls.acl("u::rwx,u:7:rwx,g::r-x,o::r-x"),
        acls.acl("u::rwx,g::r-x,g:7:rwx,o::r-x"),
        acls.acl("u::rwx,g::r-x,m::r-x,m::r-x,o::r-x"),
        acls.acl("u::rwx,g::r-x,o::r-x") + struct.pack("<HHI", 64, 1, 0),
        acls.acl("u::rwx,g::r-x,o::r-x").replace(b"\7\0", b"\10\0"),
        acls.acl(f"u::rwx,u:{2**32 - 1}:r-x,g::r-x,m::r-x,o::r-x"),
    ],
)
def test_what_is_no_list(bad: bytes) -> None:
    with pytest.raises(FormatError):
        acl.decode(bad)


@given(lists())
def test_the_mode_shows_owner_mask_and_others(entries: acl.Acl) -> None:
    perm = {entry.tag: entry.perm for entry in entries}
    group = perm.get(MASK, perm[GROUP_OBJ])
    assert acl.mode_bits(entries) == perm[USER_OBJ] * 64 + group * 8 + perm[OTHER]
    assert acl.is_minimal(entries) == ({USER, GROUP, MASK} & set(perm) == set())


@given(lists(), st.integers(0, 0o177777))
def test_chmod_makes_the_mode_true_and_touches_nobody_named(entries: acl.Acl, mode: int) -> None:
    after = acl.chmod(entries, mode)
    assert acl.mode_bits(after) == mode & 0o777
    assert acl.chmod(after, mode) == after
    assert len(after) == len(entries)
    for old, new in zip(entries, after, strict=True):
        assert new.tag == old.tag
        assert new.id == old.id
        assert new == old or new.tag in changed(entries)


@given(lists(), st.integers(0, 0o7777))
def test_what_is_inherited_is_no_more_than_the_default_and_what_was_asked(
    default: acl.Acl, asked: int
) -> None:
    bits, entries = acl.inherit(default, asked)
    assert bits == acl.mode_bits(default) & asked & 0o777
    if acl.is_minimal(default):
        assert entries == ()
    else:
        assert acl.mode_bits(entries) == bits
        for old, new in zip(default, entries, strict=True):
            assert new == old or (
                new.tag in changed(default) and new == old._replace(perm=new.perm)
            )


@given(lists())
def test_ids_change_where_somebody_is_named_and_only_there(entries: acl.Acl) -> None:
    there = acl.with_ids(entries, lambda uid: uid ^ 1, lambda gid: gid ^ 2)
    for old, new in zip(entries, there, strict=True):
        turned = {USER: old.id ^ 1, GROUP: old.id ^ 2}
        assert new == old._replace(id=turned.get(old.tag, old.id))
    assert acl.with_ids(there, lambda uid: uid ^ 1, lambda gid: gid ^ 2) == entries


def test_the_longest_list_holds_511_entries() -> None:
    longest = (Entry(USER_OBJ, 7), *(Entry(USER, 4, n) for n in range(507)))
    longest += (Entry(GROUP_OBJ, 5), Entry(MASK, 5), Entry(OTHER, 5))
    assert len(acl.encode(longest)) <= acl.ACL_BYTES_MAX < len(acl.encode(longest)) + 8

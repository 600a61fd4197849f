"""Snapshots as bytes and keys, and what a person may call a point."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3ws_fs.core import history, layout
from s3ws_fs.core.errors import ExitCode, FormatError, UserError
from s3ws_fs.core.history import Snapshot
from s3ws_fs.core.journal import json_digest

S = 1_000_000_000
NOW_NS = 1_800_000_000 * S
NAME = "Before.refactoring_2-1"
W = "w" * 32
ONE = Snapshot(
    workspace=W,
    number=77,
    header_hash="0" * 31 + "f",
    generation=1234,
    id=history.snap_id(history.NAMED, NAME, 5),
    name=NAME,
    kind=history.NAMED,
    created_ns=5,
)
NAMES = st.text("abcXYZ0123456789._-", min_size=1, max_size=history.NAME_CHARS_MAX)


@pytest.mark.parametrize("kind", history.KINDS)
def test_it_survives_the_bucket(kind: str) -> None:
    name = "" if kind in history.UNDOABLE else NAME
    one = replace(ONE, kind=kind, name=name, id=history.snap_id(kind, name, 5))
    assert history.decode_snapshot(one.encode(), one.key) == one
    assert Snapshot.from_json(json.loads(json.dumps(one.to_json()))) == one
    split = history.split_snap_key(one.key)
    assert split == (77, one.id)
    assert history.kind_of(one.id) == kind


def test_what_a_restore_was_of_survives_and_fits() -> None:
    ident = history.snap_id(history.BEFORE_RESTORE, "", 5)
    one = replace(ONE, kind=history.BEFORE_RESTORE, name="", id=ident, everything=True)
    for path in ("", "\xff\n", "x" * 40):
        count = history.SNAP_PATHS_BYTES_MAX // (len(json.dumps([path])) + 1)
        many = replace(one, paths=(path,) * count)
        raw = many.encode()
        assert len(raw) <= history.SNAP_BYTES_MAX
        assert history.decode_snapshot(raw, one.key) == many
        assert Snapshot.from_json(json.loads(json.dumps(many.to_json()))) == many
    assert "paths" not in ONE.to_json()
    assert "everything" not in json.loads(ONE.encode())


def test_one_name_is_one_id_and_kinds_are_apart() -> None:
    ids = {history.snap_id(kind, NAME, at) for kind in history.KINDS for at in (1, 2)}
    assert len(ids) == len(history.KINDS)
    assert history.snap_id(history.BEFORE_UNDO, "", 1) != history.snap_id(
        history.BEFORE_UNDO, "", 2
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("format", 2),
        ("workspace", 5),
        ("number", -1),
        ("number", True),
        ("number", 78),
        ("generation", "1"),
        ("created_ns", 1 << 63),
        ("header_hash", "0" * 31),
        ("header_hash", "G" * 32),
        ("kind", "other"),
        ("kind", history.TURN_END),
        ("name", ""),
        ("name", "another"),
        ("name", "a/b"),
        ("name", "head"),
        ("name", "n" * 65),
        ("id", "00000000"),
        ("paths", "a"),
        ("paths", [5]),
        ("paths", ["\u0100"]),
        ("everything", 1),
    ],
)
def test_what_can_not_be_is_refused(name: str, value: object) -> None:
    body = {**json.loads(ONE.encode()), name: value}
    body["digest"] = json_digest(body)
    with pytest.raises(FormatError):
        history.decode_snapshot(json.dumps(body).encode(), ONE.key)


@given(st.binary(max_size=200) | st.integers(0, len(ONE.encode()) - 1))
def test_other_bytes_are_no_snapshot(raw: bytes | int) -> None:
    if isinstance(raw, int):
        whole = bytearray(ONE.encode())
        whole[raw] ^= 1
        raw = bytes(whole)
    try:
        found = history.decode_snapshot(raw, ONE.key)
    except FormatError:
        return
    # A change of white space is none.
    assert found == ONE


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b"[" * 100_000, ONE.encode() + b" " * 5000])
def test_hostile_bytes(raw: bytes) -> None:
    with pytest.raises(FormatError):
        history.decode_snapshot(raw, ONE.key)
    with pytest.raises(FormatError):
        history.decode_kept_from(raw, W)


@pytest.mark.parametrize(
    "key",
    [
        "",
        layout.SNAP_PREFIX,
        ONE.key + "0",
        ONE.key[:-1],
        ONE.key.replace("-", "_"),
        ONE.key.upper(),
        ONE.key.replace("journal", "files"),
        history.snap_key(0, ONE.id),
        history.snap_key(77, "5" + ONE.id[1:]),
        history.snap_key(77, "0000000g"),
        layout.seg_key(77),
    ],
)
def test_other_keys_are_none_of_ours(key: str) -> None:
    assert history.split_snap_key(key) is None


def test_from_where_on_all_is_kept() -> None:
    raw = history.encode_kept_from(W, 12)
    assert history.decode_kept_from(raw, W) == 12
    with pytest.raises(FormatError, match="belongs to"):
        history.decode_kept_from(raw, "x" * 32)
    for number in (0, -1, True, "1", 1 << 63):
        body = {**json.loads(raw), "from": number}
        body["digest"] = json_digest(body)
        with pytest.raises(FormatError, match="number"):
            history.decode_kept_from(json.dumps(body).encode(), W)


@pytest.mark.parametrize(
    ("text", "form", "name", "number"),
    [
        ("head", history.HEAD, "", 0),
        ("undo", history.UNDO, "", 0),
        ("#12", history.NUMBER, "", 12),
        ("gen:0", history.GENERATION, "", 0),
        ("15m", history.TIME, "", NOW_NS - 900 * S),
        ("3d", history.TIME, "", NOW_NS - 259_200 * S),
        ("999999999w", history.TIME, "", 0),
        ("2026-11-29T21:40:00Z", history.TIME, "", 1_795_988_400 * S),
        ("2026-11-29T21:40", history.TIME, "", 1_795_988_400 * S),
        ("2026-11-29 23:40:00.000001+02:00", history.TIME, "", 1_795_988_400 * S + 1000),
        ("20261129T214000", history.TIME, "", 1_795_988_400 * S),
        ("1961-01-01", history.TIME, "", 0),
        (NAME, history.NAME, NAME, 0),
        ("heads", history.NAME, "heads", 0),
        ("15min", history.NAME, "15min", 0),
        ("turn:t1", history.TURN, "t1", 0),
        ("turn:t1:end", history.TURN, "t1", 0),
    ],
)
def test_forms(text: str, form: str, name: str, number: int) -> None:
    ref = history.parse_ref(text, NOW_NS)
    assert (ref.text, ref.form, ref.name, ref.number) == (text, form, name, number)
    if form == history.TURN:
        assert ref.kind == history.TURN_END


def test_a_turn_has_two_marks() -> None:
    assert history.parse_ref("turn:t1:begin", 0).kind == history.TURN_BEGIN


@pytest.mark.parametrize(
    "text",
    ["", "#", "#-1", "#1x", "# 1", "#99999999999999999999", "gen:", "gen:x", "turn:", "turn:a b",
     "turn:a:c", "turn:head", "a b", "a/b", "ä", "n" * 65, "x:y", "turn:15m", "#٣"],
)  # fmt: skip
def test_what_names_no_point(text: str) -> None:
    with pytest.raises(UserError) as caught:
        history.parse_ref(text, NOW_NS)
    assert caught.value.exit_code is ExitCode.USAGE
    assert caught.value.remedy


@given(NAMES)
def test_a_name_is_taken_for_nothing_else(name: str) -> None:
    try:
        history.check_name(name)
    except UserError:
        assert history.parse_ref(name, NOW_NS).form != history.NAME
        return
    ref = history.parse_ref(name, NOW_NS)
    assert (ref.form, ref.name) == (history.NAME, name)


@pytest.mark.parametrize("name", ["", "head", "undo", "15m", "2026-11-29", "a b", "x" * 65, "a:b"])
def test_names_that_can_not_be(name: str) -> None:
    with pytest.raises(UserError):
        history.check_name(name)
    assert history.check_name("x" * 64)


@given(st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1)), st.integers(-14, 14))
def test_a_time_with_a_zone_is_that_time(when: datetime, hours: int) -> None:
    text = when.isoformat() + f"{'-' if hours < 0 else '+'}{abs(hours):02}:00"
    exact = (when - timedelta(hours=hours)).replace(tzinfo=UTC)
    whole_us = (exact - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    assert history.parse_ref(text, NOW_NS).number == whole_us * 1000


def test_what_a_person_may_call_it() -> None:
    assert ONE.ref == NAME
    assert replace(ONE, kind=history.TURN_END, name="t").ref == "turn:t:end"
    assert replace(ONE, kind=history.BEFORE_UNDO, name="").ref == "#77"


def test_near_names() -> None:
    assert "before-it" in history.near_names("befor-it", ["before-it", "zzz", "other"])
    assert "zzz" not in history.near_names("befor-it", ["before-it", "zzz", "other"])
    assert "s3ws snapshots" in history.near_names("x", [])

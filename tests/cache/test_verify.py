"""The checker: clean where only the filesystem was; a negative control for each of its findings."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3ws_fs.cache.cache import Cache, Identity, open_cache
from s3ws_fs.cache.checking import check_cache, judge
from s3ws_fs.cache.tableset import TableSet, copy_out
from s3ws_fs.core import keys
from s3ws_fs.core.findings import CODES, LISTED_MAX, PATHS_MAX, Finding, Report, damage
from s3ws_fs.core.records import InodeRec, decode_inode
from tests.support import caches
from tests.support.damages import SINGLE, Damage, by

IDENTITY = Identity(prefix=caches.PREFIX, store="local:/somewhere")
BOOT = "boot-1"


def quiet(_: object) -> None:
    """A progress sink."""


def opened(directory: Path) -> Cache:
    return open_cache(
        directory, IDENTITY, quota_bytes=64 << 20, now_ns=iter(range(1, 1 << 40)).__next__,
        boot_id=BOOT,
    )  # fmt: skip


@pytest.fixture(scope="module")
def sample() -> Iterator[tuple[TableSet, dict[str, int]]]:
    """Records of a cache with something of everything; inodes by name."""
    with tempfile.TemporaryDirectory() as base, opened(Path(base)) as cache:
        inos = caches.populate(cache)
        with cache.read() as view:
            yield copy_out(view), inos


def found(tables: TableSet) -> list[Finding]:
    report = Report()
    judge(tables, report, len(caches.PREFIX))
    return report.findings


def codes(tables: TableSet) -> set[str]:
    return {finding.code for finding in found(tables)}


Sample = tuple[TableSet, dict[str, int]]


def test_what_the_filesystem_made_is_clean(sample: Sample) -> None:
    tables, _ = sample
    assert found(tables) == []
    # It is worth something only if it has something of everything.
    for name in (
        "inodes", "dentries", "chunks", "xattrs", "links", "extents", "dirty", "orphans",
        "mirror", "mirrori", "mtodo",
    ):  # fmt: skip
        assert getattr(tables, name) or name == "mtodo", name
    assert tables.chunks.keys() - tables.extents, "nothing is cold"


def test_an_empty_cache_is_clean(tmp_path: Path) -> None:
    with opened(tmp_path / "ws"):
        pass
    report = check_cache(tmp_path / "ws", quiet, boot_id=BOOT).report
    assert report.ok
    assert [finding.code for finding in report.findings] == ["not-restored"]


# --- one damage each


@pytest.mark.parametrize(
    ("code", "do"), [pytest.param(c, do, id=f"{c}-{what}") for c, what, do in SINGLE]
)
def test_a_single_damage_is_found(sample: Sample, code: str, do: Damage) -> None:
    tables, inos = deepcopy(sample[0]), sample[1]
    do(tables, inos)
    assert code in codes(tables)


def test_findings_name_the_paths(sample: Sample) -> None:
    tables, inos = deepcopy(sample[0]), sample[1]
    by("linked", 1, "alloc")(tables, inos)
    [finding] = [each for each in found(tables) if each.code == "alloc"]
    assert set(finding.paths) == {b"linked", b"dir/sub/other name", b"dir/a third"}
    assert finding.where == f"inode {inos['linked']}"


FOUND_WHEN_LOST = ("inodes", "dentries", "links", "orphans", "mirror", "mirrori")


@given(data=st.data())
def test_any_lost_record_is_found(sample: Sample, data: st.DataObject) -> None:
    tables = deepcopy(sample[0])
    table = data.draw(st.sampled_from(FOUND_WHEN_LOST))
    rows = getattr(tables, table)
    rows.pop(data.draw(st.sampled_from(sorted(rows))))
    if table in ("mirror", "mirrori"):
        # A directory's row is only an index of it; but the two tables have to agree.
        assert codes(tables) & {"mirror-index", "mirror-lacking"}
    assert codes(tables)


@given(data=st.data())
def test_any_altered_inode_is_found(sample: Sample, data: st.DataObject) -> None:
    tables = deepcopy(sample[0])
    key = data.draw(st.sampled_from(sorted(tables.inodes)))
    rec = decode_inode(keys.unpack_u64(key), tables.inodes[key])
    values = {
        "nlink": st.integers(0, 5),
        "parent": st.integers(0, 30),
        "name": st.binary(max_size=5),
        "data_gen": st.integers(1 << 40, 1 << 41),
    }
    field = data.draw(st.sampled_from(sorted(values)))
    value = data.draw(values[field].filter(lambda v: v != getattr(rec, field)))
    tables.inodes[key] = replace(rec, **{field: value}).encode()  # type: ignore[arg-type]
    assert codes(tables)


@given(table=st.sampled_from(("inodes", "dentries", "chunks", "links", "dirty", "orphans", "mtodo",
                              "mirror", "mirrori", "xattrs")),
       key=st.binary(max_size=40), value=st.binary(max_size=120))  # fmt: skip
def test_nothing_raises_whatever_stands_there(
    sample: Sample, table: str, key: bytes, value: bytes
) -> None:
    tables = deepcopy(sample[0])
    getattr(tables, table)[key] = value
    found(tables)


@given(at=st.integers(0, 10_000), flip=st.integers(1, 255), data=st.data())
def test_nothing_raises_whatever_is_flipped(
    sample: Sample, at: int, flip: int, data: st.DataObject
) -> None:
    tables = deepcopy(sample[0])
    table = data.draw(st.sampled_from(("inodes", "dentries", "chunks", "dirty", "mirror", "meta")))
    rows = getattr(tables, table)
    key = data.draw(st.sampled_from(sorted(rows)))
    raw = bytearray(rows[key])
    raw[at % len(raw)] ^= flip
    rows[key] = bytes(raw)
    found(tables)


# --- the report


def test_a_report_is_bounded_and_its_counts_are_exact() -> None:
    report = Report()
    paths = [b"%d" % number for number in range(PATHS_MAX + 1)]
    for _ in range(LISTED_MAX + 1):
        report.add(damage("alloc", "x", "y", paths))
    assert len(report.findings) == LISTED_MAX
    assert report.omitted == 1
    assert report.counts == {"damage": LISTED_MAX + 1}
    assert len(report.findings[0].paths) == PATHS_MAX
    assert report.findings[0].paths_total == PATHS_MAX + 1
    assert not report.ok


def test_every_code_of_records_has_its_control() -> None:
    of_files = list(CODES)[: list(CODES).index("record")]
    of_bucket = list(CODES)[list(CODES).index("workspace-file") :]
    elsewhere = {"extent-digest"}
    assert {code for code, _, _ in SINGLE} == set(CODES) - {*of_files, *of_bucket} - elsewhere


def test_records_are_what_the_codec_makes(sample: Sample) -> None:
    """The controls above are worth something only while `replace` and `encode` are exact."""
    for key, raw in sample[0].inodes.items():
        rec: InodeRec = decode_inode(keys.unpack_u64(key), raw)
        assert rec.encode() == raw

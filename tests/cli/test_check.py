"""`s3ws check`: what it looks at, what it prints, how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from s3ws_fs.cache import syncpoint
from s3ws_fs.cache.cache import Cache, open_cache
from s3ws_fs.cli import cli
from s3ws_fs.cli.check import Part, document, exit_code, lines
from s3ws_fs.control import registry
from s3ws_fs.control.registry import MountInfo
from s3ws_fs.core import keys
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.core.findings import CODES, Report, Severity, damage, make
from s3ws_fs.daemon.parts import identity
from tests.support import caches
from tests.support.fake_mounts import Place

ROOT = Path(__file__).resolve().parents[2]


def opened(config: MountConfig) -> Cache:
    return open_cache(
        Path(config.workspace_cache_dir),
        identity(config),
        quota_bytes=64 << 20,
        now_ns=iter(range(1, 1 << 40)).__next__,
        boot_id=syncpoint.current_boot_id(),
    )


@pytest.fixture
def dead(place: Place) -> Iterator[MountInfo]:
    """A mount whose daemon died, with its cache."""
    config = place.config()
    with opened(config) as cache:
        cache.set_restore_complete()
        caches.populate(cache)
    info = MountInfo.for_this_process(config, log_path=None, version="0")
    info = replace(info, pid_start_ticks=1)
    registry.write(place.runtime_dir, info)
    yield info


def check(*args: str) -> Result:
    return CliRunner().invoke(cli, ["check", *args], catch_exceptions=False, standalone_mode=False)


def damage_it(place: Place) -> None:
    """One count that can be repaired, one entry that can't."""
    with opened(place.config()) as cache, cache.read() as view:
        linked = view.inode(view.resolve(b"linked") or 0)
        assert linked is not None
        linked.nlink += 1
        with cache.env.begin(write=True) as txn:
            txn.put(keys.pack_u64(linked.ino), linked.encode(), db=cache.tables.inodes)
            txn.delete(keys.dentry_key(1, b"fifo"), db=cache.tables.dentries)


def test_a_clean_cache_by_every_name(place: Place, dead: MountInfo) -> None:
    for args in ((), (dead.mountpoint,), ("--cache", dead.cache_path), ("--quick",)):
        result = check(*args)
        assert result.return_value == ExitCode.OK
        assert f"cache {dead.cache_path}: whole" in result.output
    registry.remove(place.runtime_dir, dead.mountpoint)
    # The ids in the environment name it as well.
    assert check().return_value == ExitCode.OK


def test_damage_is_named_and_repaired(place: Place, dead: MountInfo) -> None:
    damage_it(place)
    result = check(dead.mountpoint)
    assert result.return_value == ExitCode.DAMAGED
    assert "nlink" in result.output and "dir/sub/other name" in result.output
    assert "unreachable" in result.output
    found: dict[str, Any] = json.loads(check("--json", dead.mountpoint).stdout)
    assert (found["ok"], found["exit_code"]) == (False, 12)
    # The fifo's record still notes its entry, too.
    assert {f["code"] for f in found["findings"]} == {"nlink", "link", "unreachable"}
    assert found["counts"] == {"damage": 3, "foreign": 0, "pending": 0, "note": 0, "repaired": 0}
    done: dict[str, Any] = json.loads(check("--json", "--repair", dead.mountpoint).stdout)
    assert not done["ok"]
    assert {f["code"]: f["repaired"] for f in done["findings"]} == {
        "nlink": True, "link": False, "unreachable": False,
    }  # fmt: skip
    assert done["counts"]["repaired"] == 1
    assert check(dead.mountpoint).return_value == ExitCode.DAMAGED


def test_a_mounted_cache_is_not_repaired(place: Place, dead: MountInfo) -> None:
    damage_it(place)
    # The fixture ends it.
    daemon = subprocess.Popen(["sleep", "600"])
    daemon.returncode = 0
    ticks = registry.start_ticks(daemon.pid)
    assert ticks is not None
    registry.write(place.runtime_dir, replace(dead, pid=daemon.pid, pid_start_ticks=ticks))
    with pytest.raises(UserError, match="nothing was repaired") as caught:
        check("--repair", dead.mountpoint)
    assert caught.value.exit_code == ExitCode.ALREADY_MOUNTED
    assert check(dead.mountpoint).return_value == ExitCode.DAMAGED


def test_nothing_to_check(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no cache in") as caught:
        check()
    assert caught.value.exit_code == ExitCode.BAD_CACHE
    with pytest.raises(UserError, match="not mounted"):
        check(place.mountpoint)
    monkeypatch.delenv("WORKSPACE_CONVERSATION_ID")
    with pytest.raises(UserError, match="Nothing is mounted"):
        check()


def test_an_empty_bucket(place: Place, dead: MountInfo) -> None:
    with pytest.raises(UserError) as caught:
        check("--bucket", "--conversation-id", "other")
    assert caught.value.exit_code == ExitCode.STORE
    Path(place.root / "store").mkdir()
    with pytest.raises(UserError, match="no workspace conversations/user/other/workspace/"):
        check("--bucket", "--conversation-id", "other")
    # This cache sealed segments that are not there.
    assert check("--bucket", dead.mountpoint).return_value == ExitCode.DAMAGED
    with pytest.raises(UserError, match="not of conversations/user/other/workspace/"):
        check("--bucket", "--cache", dead.cache_path, "--conversation-id", "other")


def test_codes_of_exit_and_lines() -> None:
    whole, changed, hurt = Report(), Report(), Report()
    whole.add(make(Severity.PENDING, "mirror-missing", "files/x", "late"))
    changed.add(make(Severity.FOREIGN, "mirror-foreign", "files/\x1b[31m", "not ours"))
    paths = [b"a\xff", *(b"%d" % number for number in range(200))]
    hurt.add(damage("extent-damaged", "journal/seg/1", "rot", paths, repairable=True))
    parts = [Part("cache", "c", whole), Part("bucket", "b", changed)]
    assert exit_code(parts[:1]) == ExitCode.OK
    assert exit_code(parts) == ExitCode.CHANGED_OUTSIDE
    parts.append(Part("bucket", "b", hurt))
    assert exit_code(parts) == ExitCode.DAMAGED
    text = "\n".join(lines(parts))
    assert "\x1b" not in text
    assert "cache c: whole" in text
    assert "bucket b: 1 damage" in text
    assert "a\\xff" in text and "and 191 more" in text and "--repair" in text
    found = document(parts, ExitCode.DAMAGED)
    json.dumps(found)
    assert found["findings"][2]["paths_total"] == 201
    assert len(found["findings"][2]["paths"]) == 100


def test_every_code_is_documented() -> None:
    text = (ROOT / "docs/check.md").read_text()
    for code, meaning in CODES.items():
        assert f"| `{code}` | {meaning} |" in text, code


@pytest.mark.parametrize("module", ["s3ws_fs.daemon.daemon", "s3ws_fs.transfer.worker"])
def test_daemon_and_worker_load_none_of_it(module: str) -> None:
    code = f"import sys, {module}\nprint(*(name for name in sys.modules if 's3ws' in name))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert module in loaded
    parts = ["check", "audit", "verify", "repair", "cache.engine", "findings"]
    if module == "s3ws_fs.daemon.daemon":
        parts.append("tableset")  # the worker replays points of history into one
    assert not [name for name in loaded if any(part in name for part in parts)]

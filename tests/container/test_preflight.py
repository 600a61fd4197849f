"""One sentence when a container may not mount."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3ws_fs.container import preflight
from s3ws_fs.container.preflight import MountRefusedError, check_container, check_rights

ALL = "000001ffffffffff"
NO_SYS_ADMIN = "00000000a80425fb"
"""What container runtimes leave to root."""


def status(effective: str, bounding: str, no_new_privs: int = 0) -> str:
    return (
        f"Name:\tx\nCapEff:\t{effective}\nCapBnd:\t{bounding}\nNoNewPrivs:\t{no_new_privs}\nEmpty\n"
    )


def refusal(text: str, *, is_root: bool) -> str:
    with pytest.raises(MountRefusedError) as caught:
        check_rights(text, is_root=is_root)
    return str(caught.value)


def test_root_needs_the_capability_itself() -> None:
    check_rights(status(ALL, ALL), is_root=True)
    said = refusal(status(NO_SYS_ADMIN, ALL), is_root=True)
    assert "SYS_ADMIN" in said
    assert "--cap-add SYS_ADMIN" in said


def test_a_plain_user_needs_it_for_fusermount3() -> None:
    check_rights(status("0", ALL), is_root=False)
    assert "--cap-add SYS_ADMIN" in refusal(status("0", NO_SYS_ADMIN), is_root=False)
    said = refusal(status("0", ALL, no_new_privs=1), is_root=False)
    assert "no-new-privileges" in said
    # Root mounts by itself: what it execs needs no more rights than it has.
    check_rights(status(ALL, ALL, no_new_privs=1), is_root=True)


def test_a_device_that_is_missing_or_refused_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "FUSE_DEVICE", str(tmp_path / "fuse"))
    with pytest.raises(MountRefusedError, match=r"there is no .*fuse in this container") as caught:
        check_container()
    assert "--device /dev/fuse" in str(caught.value)
    (tmp_path / "fuse").mkdir()  # opening it for writing is refused, also to root
    with pytest.raises(MountRefusedError, match=r"can't be opened here \(Is a directory\)"):
        check_container()


@pytest.mark.parametrize("text", [status(NO_SYS_ADMIN, NO_SYS_ADMIN), status("0", ALL, 1)])
def test_it_is_one_sentence_on_one_line(text: str) -> None:
    said = refusal(text, is_root="CapEff:\t0\n" not in text)
    assert "\n" not in said
    assert ". " not in said

"""What is done to volumes, with a fake daemon in the place of mounts."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from s3ws_fs import launch
from s3ws_fs.control import registry
from s3ws_fs.control.registry import MountInfo
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.fuse import table
from s3ws_fs.integrations.volumes import driver as module
from s3ws_fs.integrations.volumes.driver import NAME_CHARS_MAX, Driver, Places
from tests.support.fake_mounts import Place
from tests.support.mounting import wait_until


class Made:
    """A driver, and what became of its volumes."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.driver = self.again()

    def again(self) -> Driver:
        """Another driver on the same state, as after a restart."""
        places = Places(str(self.place.root / "volumes"), self.place.runtime_dir)
        return Driver(places, os.environ, allow_other=False)

    def info(self, name: str) -> MountInfo | None:
        return registry.read(self.place.runtime_dir, self.driver.mountpoint(name))


@pytest.fixture
def made(place: Place, monkeypatch: pytest.MonkeyPatch) -> Made:
    def is_mounted(mountpoint: str) -> bool:
        info = registry.read(place.runtime_dir, mountpoint)
        return info is not None and info.is_alive()

    # The fake daemon mounts nothing.
    monkeypatch.setattr(table, "is_mounted", is_mounted)
    monkeypatch.setattr(table, "is_dead", lambda _: False)
    return Made(place)


def refused(call: Any, *arguments: object) -> UserError:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    return caught.value


def test_mounted_from_the_first_use_to_the_end_of_the_last(made: Made) -> None:
    driver = made.driver
    driver.create("one", {})
    assert driver.path("one") == "" and made.info("one") is None
    path = driver.mount("one", "container-a")
    assert path == driver.path("one") == driver.mountpoint("one")
    first = made.info("one")
    assert first is not None and first.conversation_id == "one" and first.user_id == "user"
    assert driver.mount("one", "container-b") == path
    driver.unmount("one", "container-a")
    assert made.info("one") == first
    driver.unmount("one", "container-b")
    assert made.info("one") is None and driver.path("one") == ""


def test_a_restart_between_two_requests_changes_nothing(made: Made) -> None:
    made.driver.create("one", {"user_id": "alice"})
    path = made.driver.mount("one", "a")
    info = made.info("one")
    driver = made.again()
    driver.tidy()
    assert driver.path("one") == path and made.info("one") == info
    assert driver.mount("one", "b") == path and made.info("one") == info
    driver = made.again()
    driver.unmount("one", "a")
    driver.unmount("one", "b")
    assert made.info("one") is None
    driver.remove("one")
    assert made.again().names() == []


def test_a_mount_whose_use_could_not_be_noted_is_ended_later(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.driver.create("one", {})

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            made.driver.mount("one", "a")
    assert made.info("one") is not None
    # The plugin of now, or the next one.
    made.again().tidy()
    assert made.info("one") is None


def test_keep_tidy_ends_what_is_left_and_then_stops(made: Made) -> None:
    made.driver.create("one", {})
    made.driver.mount("one", "a")
    made.driver._state.release("one", "a")
    stop = threading.Event()
    thread = threading.Thread(target=made.driver.keep_tidy, args=(stop,))
    thread.start()
    wait_until(lambda: made.info("one") is None, timeout_s=60, what="the end of the mount")
    stop.set()
    thread.join(30)
    assert not thread.is_alive()


def test_the_same_again(made: Made) -> None:
    driver = made.driver
    driver.create("one", {"user_id": "alice"})
    driver.create("one", {"user_id": "alice"})
    assert "other options" in refused(driver.create, "one", {"user_id": "bob"}).message
    driver.mount("one", "a")
    driver.mount("one", "a")
    driver.unmount("one", "a")
    assert made.info("one") is None
    driver.unmount("one", "a")
    driver.unmount("one", "never used")


def test_no_two_volumes_are_one_workspace(made: Made) -> None:
    made.driver.create("one", {"conversation_id": "same"})
    error = refused(made.driver.create, "two", {"conversation_id": "same"})
    assert "one is this workspace" in error.message
    made.driver.create("two", {"conversation_id": "same", "user_id": "another"})
    made.driver.create("three", {"conversation_id": "same", "read_only": "true"})
    assert "this workspace" in refused(made.again().create, "same", {}).message


def test_removing_needs_the_end_of_all_uses(made: Made) -> None:
    driver = made.driver
    driver.create("one", {})
    driver.mount("one", "a")
    assert refused(driver.remove, "one").exit_code is ExitCode.BUSY
    driver.unmount("one", "a")
    driver.remove("one")
    assert driver.names() == [] and not os.path.exists(driver.mountpoint("one"))
    for call in (driver.remove, driver.path, driver.describe):
        assert "no volume" in refused(call, "one").message
    assert "no volume" in refused(driver.mount, "one", "a").message
    assert "no volume" in refused(driver.unmount, "one", "a").message


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", "ä", "a b", "a\n"])
def test_names_that_are_none(made: Made, name: str) -> None:
    assert refused(made.driver.create, name, {"conversation_id": "c"}).exit_code is (
        ExitCode.BAD_SETTINGS
    )


def test_a_name_at_its_limit(made: Made) -> None:
    made.driver.create("x" * NAME_CHARS_MAX, {})
    refused(made.driver.create, "x" * (NAME_CHARS_MAX + 1), {"conversation_id": "c"})
    refused(made.driver.mount, "x" * NAME_CHARS_MAX, "")
    refused(made.driver.mount, "x" * NAME_CHARS_MAX, "i" * (module.ID_CHARS_MAX + 1))


@pytest.mark.parametrize(
    "given",
    [
        {"aws_secret_access_key": "hunter2"},
        {"runtime_dir": "/elsewhere"},
        {"nonempty": "true"},
        {"max_size_mb": "-1"},
        {"env_file": "relative"},
    ],
)
def test_options_that_are_none(made: Made, given: Mapping[str, str]) -> None:
    assert "hunter2" not in str(refused(made.driver.create, "one", given))
    assert made.driver.names() == []


def test_which_conversation_a_volume_is(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its option, its environment file, its name; never the plugin's own environment."""
    env = tmp_path / "one.env"
    env.write_text("WORKSPACE_CONVERSATION_ID=from-file\n")
    env.chmod(0o600)
    monkeypatch.setenv("WORKSPACE_CONVERSATION_ID", "of-the-plugin")
    driver = made.again()
    for name, given, wanted in (
        ("by-name", {}, "by-name"),
        ("a", {"env_file": str(env)}, "from-file"),
        ("b", {"conversation_id": "by-option", "env_file": str(env)}, "by-option"),
    ):
        driver.create(name, given)
        workspace = driver.describe(name)["Status"]["workspace"]
        assert workspace == f"conversations/user/{wanted}/workspace/"


def test_a_volume_whose_environment_file_went_is_still_described(
    made: Made, tmp_path: Path
) -> None:
    env = tmp_path / "one.env"
    env.write_text("WORKSPACE_BUCKET=bkt\n")
    env.chmod(0o600)
    made.driver.create("one", {"env_file": str(env)})
    env.unlink()
    assert "can't be read" in made.driver.describe("one")["Status"]["error"]
    assert "can't be read" in refused(made.driver.mount, "one", "a").message
    made.driver.remove("one")


def test_a_final_flush_that_failed_is_said_and_the_use_is_over(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.driver.create("one", {})
    made.driver.mount("one", "a")

    def fail(*_: object, **__: object) -> None:
        raise UserError("2 paths are not saved", exit_code=ExitCode.NOT_SAVED)

    with monkeypatch.context() as patch:
        patch.setattr(launch, "umount_and_wait", fail)
        assert "not saved" in refused(made.driver.unmount, "one", "a").message
    assert made.driver.path("one") == ""
    made.driver.unmount("one", "a")
    assert made.info("one") is None


def test_a_busy_mount_is_tried_again_and_left_for_later(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.driver.create("one", {})
    made.driver.mount("one", "a")
    tries: list[float] = []
    clock = iter(range(1000))

    def busy(*_: object, **__: object) -> None:
        tries.append(1.0)
        raise UserError("in use by sh", exit_code=ExitCode.BUSY)

    with monkeypatch.context() as patch:
        patch.setattr(launch, "umount_and_wait", busy)
        patch.setattr(
            "s3ws_fs.integrations.volumes.driver.time.monotonic", lambda: float(next(clock))
        )
        assert "in use" in refused(made.driver.unmount, "one", "a").message
        assert len(tries) == module.BUSY_S_MAX
    assert made.driver._left.is_set()
    made.driver.tidy()
    assert made.info("one") is None


def test_a_use_that_comes_while_the_last_one_is_saved_waits_for_it(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """umount(8) took it away, or another plugin was cut short: the daemon still flushes."""
    made.driver.create("one", {})
    made.driver.mount("one", "a")
    before = made.info("one")
    monkeypatch.setattr(table, "is_mounted", lambda _: False)
    made.driver.mount("one", "b")
    after = made.info("one")
    assert before is not None and after is not None
    assert not before.is_alive() and after.is_alive()


def test_one_thing_at_a_time_is_done_to_a_volume_and_others_do_not_wait(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.driver.create("slow", {})
    made.driver.create("other", {})
    begun, go_on = threading.Event(), threading.Event()
    order: list[str] = []
    real = launch.mount

    def mount(config: Any, **more: Any) -> MountInfo:
        if config.mountpoint.endswith("slow"):
            begun.set()
            assert go_on.wait(60)
        order.append(config.mountpoint.rpartition("/")[2])
        return real(config, **more)

    monkeypatch.setattr(launch, "mount", mount)
    threads = [
        threading.Thread(target=made.driver.mount, args=("slow", ident)) for ident in ("a", "b")
    ]
    for thread in threads:
        thread.start()
    assert begun.wait(60)
    made.driver.mount("other", "a")
    assert made.driver.describe("slow")["Status"]["state"] == "not mounted"
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert order == ["other", "slow"], "the second use found it mounted"
    assert sorted(made.driver._volume("slow").uses) == ["a", "b"]

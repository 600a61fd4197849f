"""What options of fstab and of volumes become, and what they may not be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.integrations import options
from s3ws_fs.integrations.options import ENV_FILE_BYTES_MAX, OPTIONS_CHARS_MAX
from s3ws_fs.settings import OPTIONS

IDS = {"WORKSPACE_USER_ID": "u", "WORKSPACE_CONVERSATION_ID": "c"}


def read(text: str, *, sloppy: bool = False) -> options.Wanted:
    return options.read(options.pairs(options.split(text)), sloppy=sloppy)


def refused(text: str) -> UserError:
    with pytest.raises(UserError) as caught:
        read(text).settings(IDS)
    return caught.value


def test_settings_by_the_names_of_the_flags() -> None:
    wanted = read("bucket=bkt,max-size-mb=7,unmount_grace=3,sync_point_interval_s=2,user_id=alice")
    settings = wanted.settings(IDS)
    assert (settings.bucket, settings.max_size_mb, settings.user_id) == ("bkt", 7, "alice")
    assert (settings.unmount_grace_s, settings.sync_point_interval_s) == (3.0, 2.0)


def test_every_setting_is_an_option_but_the_runtime_directory() -> None:
    for name in OPTIONS:
        flag = name.removesuffix("_s")
        if name in options.CANT:
            assert name == "runtime_dir"
            continue
        assert read(f"{flag}=1").overrides == {name: "1"}


def test_what_is_for_mount_and_systemd_is_left_out() -> None:
    text = (
        "rw,_netdev,nofail,noauto,x-systemd.mount-timeout=10min,X-mount.mkdir,user=joe,users,exec,"
        "nosuid,nodev,relatime,comment=hello,defaults"
    )
    assert read(text) == options.Wanted()


def test_switches() -> None:
    assert read("ro,allow_other,nonempty").overrides == {"read_only": True, "allow_other": True}
    assert read("nonempty").nonempty
    assert read("allow_other=false").settings(IDS).allow_other is False


def test_quotes_hold_commas_together() -> None:
    assert read('uid_map="0:10001,1000:1000",ro').settings(IDS).uid_map == (
        (0, 10001),
        (1000, 1000),
    )
    assert "never closed" in refused('uid_map="0:1').message


@pytest.mark.parametrize("name", ["secret_access_key", "aws_access_key_id", "passwd", "=", "a b"])
def test_an_unknown_option_is_refused_and_its_value_never_repeated(name: str) -> None:
    error = refused(f"{name}=hunter2hunter2")
    assert error.exit_code is ExitCode.USAGE
    assert "hunter2" not in str(error)
    assert read(f"{name}=hunter2", sloppy=True) == options.Wanted()


@pytest.mark.parametrize("name", sorted(options.CANT))
def test_what_the_mount_can_t_do_is_refused_also_when_sloppy(name: str) -> None:
    assert name in refused(name).message
    with pytest.raises(UserError):
        read(name, sloppy=True)


def test_a_bad_value_names_the_option() -> None:
    error = refused("max_size_mb=-1")
    assert error.message.startswith("option max_size_mb:")
    assert error.exit_code is ExitCode.BAD_SETTINGS
    assert refused("env_file").message == "option env_file needs a value"
    assert "absolute" in refused("credentials=relative").message


def test_too_many_options() -> None:
    read("rw," * (OPTIONS_CHARS_MAX // 3))
    assert "characters" in refused("x" * (OPTIONS_CHARS_MAX + 1)).message


def test_credentials_by_a_file_or_a_profile_beat_keys_in_the_environment() -> None:
    wanted = read("credentials=/etc/s3ws/aws,profile=alice")
    assert wanted.environ == {
        "AWS_SHARED_CREDENTIALS_FILE": "/etc/s3ws/aws",
        "AWS_PROFILE": "alice",
        "AWS_ACCESS_KEY_ID": "",
        "AWS_SECRET_ACCESS_KEY": "",
        "AWS_SESSION_TOKEN": "",
    }


def env(tmp_path: Path, data: bytes, mode: int = 0o600) -> str:
    path = tmp_path / "settings.env"
    path.write_bytes(data)
    path.chmod(mode)
    return str(path)


def test_an_environment_file(tmp_path: Path) -> None:
    path = env(
        tmp_path,
        b"# comment\n; another\n\nWORKSPACE_BUCKET=bkt\nexport WORKSPACE_USER_ID='alice'\r\n"
        b'AWS_SECRET_ACCESS_KEY="a=b c"\nAWS_ACCESS_KEY_ID=k\nEMPTY=\n',
    )
    assert read(f"env_file={path}").environ == {
        "WORKSPACE_BUCKET": "bkt",
        "WORKSPACE_USER_ID": "alice",
        "AWS_SECRET_ACCESS_KEY": "a=b c",
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SESSION_TOKEN": "",
        "EMPTY": "",
    }
    settings = read(f"env_file={path},user_id=bob").settings(IDS)
    assert (settings.bucket, settings.user_id) == ("bkt", "bob"), "options beat the file"


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o640, 0o604])
def test_an_environment_file_that_others_may_read_or_write(tmp_path: Path, mode: int) -> None:
    secret = env(tmp_path, b"AWS_SECRET_ACCESS_KEY=hunter2\n", mode)
    error = refused(f"env_file={secret}")
    assert "chmod 600" in error.remedy and "hunter2" not in str(error)


def test_one_without_secrets_may_be_read_by_others(tmp_path: Path) -> None:
    path = env(tmp_path, b"WORKSPACE_BUCKET=bkt\n", 0o644)
    assert read(f"env_file={path}").environ == {"WORKSPACE_BUCKET": "bkt"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_an_environment_file_of_another_user(tmp_path: Path) -> None:
    path = env(tmp_path, b"WORKSPACE_BUCKET=bkt\n")
    os.chown(path, 12345, 0)
    assert "another user" in refused(f"env_file={path}").message


@pytest.mark.parametrize(
    "data", [b"no assignment hunter2\n", b"BAD NAME=hunter2\n", b"A=\xff\n", b"A=a\0b\n"]
)
def test_a_damaged_environment_file_is_not_repeated(tmp_path: Path, data: bytes) -> None:
    assert "hunter2" not in str(refused(f"env_file={env(tmp_path, data)}"))


def test_an_environment_file_at_its_limit(tmp_path: Path) -> None:
    start = b"A="
    path = env(tmp_path, start + b"x" * (ENV_FILE_BYTES_MAX - len(start)))
    assert len(read(f"env_file={path}").environ["A"]) == ENV_FILE_BYTES_MAX - len(start)
    path = env(tmp_path, start + b"x" * ENV_FILE_BYTES_MAX)
    assert "no file of at most" in refused(f"env_file={path}").message


def test_a_path_that_is_no_file_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert "no file" in refused(f"env_file={tmp_path}/pipe").message
    assert "can't be read" in refused(f"env_file={tmp_path}/missing").message

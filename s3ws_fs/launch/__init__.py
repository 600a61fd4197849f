"""Between a command and the daemon: start it, wait until it is ready, end it, see it saved."""

from __future__ import annotations

from s3ws_fs.launch.end import umount_and_wait, unsaved_of
from s3ws_fs.launch.preflight import canonical_mountpoint
from s3ws_fs.launch.restart import restart
from s3ws_fs.launch.start import EventSink, exec_foreground, mount

__all__ = [
    "EventSink",
    "canonical_mountpoint",
    "exec_foreground",
    "mount",
    "restart",
    "umount_and_wait",
    "unsaved_of",
]

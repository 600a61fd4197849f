"""A daemon that mounts nothing: it speaks the launcher's and the control protocol, as told.

`S3WS_FAKE` says how it behaves: ok, unsaved, busy, error, crash, hang, die (in unmount), saved_die
(saved, but died before the answer), slow (unmount takes until the file named by S3WS_FAKE_GATE is
there), silent (what needs the store is never answered). Run as `python -m
tests.support.fake_daemon --config-fd N --ready-fd M`.

Called by the tests of launch, cli, the manager and integrations.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any

import trio

from s3ws_fs.control import registry, server, wire
from s3ws_fs.control.server import Emit
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import ExitCode, UserError

Event = dict[str, Any]


class FakeDaemon:
    """See the module."""

    def __init__(self, config: MountConfig, ready_fd: int | None) -> None:
        self.config = config
        self.ready_fd = ready_fd
        self.mode = os.environ.get("S3WS_FAKE", "ok")
        self.exit_code = 0
        self.ended = trio.Event()

    def say(self, event: Event) -> None:
        if self.ready_fd is not None:
            os.write(self.ready_fd, wire.encode(event))

    async def run(self) -> int:
        if self.mode == "crash":
            print("first line\nRuntimeError: the last words", file=sys.stderr)
            return 3
        if self.mode == "error":
            error = UserError("no such bucket", remedy="make it", exit_code=ExitCode.STORE)
            self.say({"event": "error", "error": wire.error_object(error)})
            return 6
        if self.mode == "hang":
            await trio.sleep_forever()
        path = registry.socket_path(self.config.runtime_dir, self.config.mountpoint)
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, path, self.handlers())
            info = registry.MountInfo.for_this_process(
                self.config, log_path="/log", version="0", holder_pid=os.getppid()
            )
            registry.write(self.config.runtime_dir, info)
            nursery.start_soon(self.obey)
            self.say({"event": "progress", "phase": "restoring", "done": 1, "total": 2})
            self.say({"event": "ready", "pid": os.getpid()})
            if self.ready_fd is not None:
                os.close(self.ready_fd)
            await self.ended.wait()
            with trio.move_on_after(0.2):
                await trio.sleep_forever()
            nursery.cancel_scope.cancel()
        return self.exit_code

    async def obey(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                self.forget()
                self.ended.set()

    def forget(self) -> None:
        registry.remove(self.config.runtime_dir, self.config.mountpoint, pid=os.getpid())

    def handlers(self) -> dict[str, server.Handler]:
        return {
            "status": self.status,
            "sync": self.sync,
            "unmount": self.unmount,
            "backup": self.backup,
            "snapshots": self.snapshots,
        }

    async def snapshots(self, args: Event, emit: Emit) -> Event:
        if self.mode == "silent":
            await trio.sleep_forever()
        return {"snapshots": [], "damaged": []}

    async def backup(self, args: Event, emit: Emit) -> Event:
        await emit({"event": "progress", "phase": "packing", "done": 1, "total": 2})
        await trio.sleep(float(os.environ.get("S3WS_FAKE_BACKUP_S", "0")))
        return {
            "name": "backup-20260131T120000Z",
            "bytes": 2048,
            "raw_bytes": 4096,
            "entries": 3,
            "took_s": 1.5,
        }

    async def status(self, args: Event, emit: Emit) -> Event:
        workspace = self.config.workspace
        return {
            "version": "0",
            "pid": os.getpid(),
            "mountpoint": self.config.mountpoint,
            "state": "ready",
            "workspace": {
                "user_id": workspace.user_id,
                "conversation_id": workspace.conversation_id,
                "prefix": workspace.prefix,
            },
            "store": {"type": "local", "location": self.config.store.location},
            "generation": {"head": 9, "sealed": 8, "mirrored": 7},
            "dirty": {"records": 3, "files": 1, "bytes": 4096, "oldest_age_s": 1.25},
            "flush": {"state": "waiting", "next_due_s": 0.75, "last_sealed_age_s": 3.0},
            "mirror": {
                "pending_files": 0,
                "unmirrored": [{"path": "bad\x1b[31mname", "reason": "too long"}],
                "conflicts": [],
            },
            "health": {"state": "degraded", "since_s": 5.0, "error": "timeout"},
            "quota": {"used_bytes": 1, "max_bytes": 1 << 20, "used_inodes": 1, "max_inodes": 9},
            "hydration": {"state": "running", "cold_bytes": 2048, "cold_files": 2},
            "cache": {"path": self.config.workspace_cache_dir, "file_bytes": 1},
            "uptime_s": 1.0,
            # Whether a secret of the launcher arrived; the value itself is a test's own.
            "secret": os.environ.get("AWS_SECRET_ACCESS_KEY"),
            "argv": sys.argv,
        }

    async def sync(self, args: Event, emit: Emit) -> Event:
        if self.mode == "silent":
            await trio.sleep_forever()
        for done in range(3):
            await emit({"event": "progress", "phase": "sealing", "done": done, "total": 2})
        return {"sealed": 9, "mirrored": 9, "duration_s": 0.5}

    async def unmount(self, args: Event, emit: Emit) -> Event:
        if self.mode == "busy":
            raise UserError("in use by sh (1)", remedy="end it", exit_code=ExitCode.BUSY)
        if self.mode == "die":
            os._exit(9)
        if self.mode == "saved_die":
            self.forget()
            os._exit(0)
        await emit({"event": "progress", "phase": "mirroring", "done": 1, "total": 1})
        while self.mode == "slow" and not Path(os.environ["S3WS_FAKE_GATE"]).exists():
            await trio.sleep(0.01)
        self.ended.set()
        if self.mode == "unsaved":
            self.exit_code = 7
            raise wire.ReplyError(
                "2 paths are not saved",
                remedy="mount again",
                exit_code=ExitCode.NOT_SAVED,
                details={"unsaved": ["a\x1b[31m", "b\udcff"]},
            )
        self.forget()
        return {"saved": True}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config-fd", type=int, required=True)
    parser.add_argument("--ready-fd", type=int)
    arguments = parser.parse_known_args()[0]
    with os.fdopen(arguments.config_fd, "rb") as source:
        config = MountConfig.loads(source.read())

    async def run() -> int:
        return await FakeDaemon(config, arguments.ready_fd).run()

    return trio.run(run)


if __name__ == "__main__":
    sys.exit(main())

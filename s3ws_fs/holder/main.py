"""The holder of one mount: starts its daemon, keeps what must outlive it, and starts the next.

    python -I -S -E main.py --mountpoint DIR --config-fd N [--ready-fd M] [--log-format json]
        -- COMMAND...

It keeps the connection to the kernel (the daemon that mounted hands it over), the settings, the
environment, and a page of memory (`memory`). While no daemon runs, requests wait in the kernel.

Invariants
1. It exits with the daemon's code, or by its signal when there was nothing to keep yet. When
   daemons keep dying it ends the mount, leaves the cache, and exits with EXIT_GAVE_UP (or with the
   code of a daemon that refused to go on).
2. A daemon is followed by another only when the kernel can send again what was not answered.
3. SIGTERM, SIGINT and SIGHUP are the daemon's: passed on to it, and again to its successor if it
   died before it came to the end. It leads a process group of its own, so that a terminal's ctrl-C
   comes once.
4. It is small (tests/holder measure it), so it imports as little as it can; and it never touches a
   mounted file, which would wait for the daemon.

Started by s3ws_fs.launch; nobody imports it but its tests. The daemon's side is daemon/held.py.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time

if __name__ == "__main__":
    # Isolated (-I), it has no path to its own package; of which it must not run the __init__, for
    # that brings modules along which are larger than all of this.
    package = type(sys)("s3ws_fs")
    package.__path__ = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
    sys.modules["s3ws_fs"] = package

from s3ws_fs.holder import memory, policy

MESSAGE_BYTES_MAX = 64
MOUNTED = b"mounted"
"""A daemon's word, with the descriptor of the connection."""
SERVING = b"serving"
"""A daemon's word: requests are answered again."""
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
WAKE_BYTES_MAX = 64
log_format = "text"
TAKE_OVER_S_MAX = 120.0
"""A daemon that has not taken over within this time is killed, and counts as one that died."""


class Daemon:
    """One daemon: its process and our end of the line to it."""

    def __init__(self, pid: int, line: socket.socket, *, is_first: bool) -> None:
        self.pid = pid
        self.line = line
        self.is_first = is_first
        self.serving_since_s: float | None = None


class Holder:
    """The life of one mount."""

    def __init__(
        self, mountpoint: str, config_fd: int, ready_fd: int | None, command: list[str]
    ) -> None:
        self._mountpoint = mountpoint
        self._config_fd = config_fd
        self._ready_fd = ready_fd
        self._command = command
        self._memory_fd = memory.create()
        self._memory = memory.Memory(self._memory_fd)
        self._device_fd: int | None = None
        self._deaths = policy.Deaths()
        self._restarts = 0
        self._ending: list[int] = []
        """Signals that a daemon was told and did not come to the end of."""
        self._waits: list[int] = []
        """Signals that came while no daemon could take them."""
        self._wake, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (*FORWARDED, signal.SIGCHLD):
            signal.signal(number, lambda _number, _frame: None)

    def run(self) -> int:
        """Hold until the end; the exit status, negative for a signal."""
        why = "first"
        while True:
            daemon = self._start(why)
            code = self._watch(daemon)
            served_s = self._served_s(daemon)
            daemon.line.close()
            # Whoever started us waits for the first to serve, and hears of its death.
            can_resume = self._can_resume() and (served_s is not None or not daemon.is_first)
            if code == policy.EXIT_RESTART and can_resume:
                why = "restarted"
            elif can_resume and policy.is_death(code, has_served=served_s is not None):
                why = f"signal {-code}" if code < 0 else f"exit status {code}"
                pause_s = self._deaths.pause_s(
                    time.monotonic(), served_s, has_worked=self._memory.has_worked
                )
                if pause_s is None:
                    say(
                        f"the daemon died again and again (last: {why}): the mount is ended, the"
                        " cache keeps everything"
                    )
                    self._end(code)
                    return code if code > policy.EXIT_INTERNAL else policy.EXIT_GAVE_UP
                self._pause(pause_s)
            else:
                return self._end(code)
            self._waits = self._ending + self._waits
            self._ending = []
            self._restarts += 1

    def _can_resume(self) -> bool:
        return self._device_fd is not None and self._memory.can_resend

    @staticmethod
    def _served_s(daemon: Daemon) -> float | None:
        if daemon.serving_since_s is None:
            return None
        return time.monotonic() - daemon.serving_since_s

    # --- a daemon --------------------------------------------------------------------------

    def _start(self, why: str) -> Daemon:
        is_first = why == "first"
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        handed = [self._config_fd, self._memory_fd, theirs.fileno()]
        command = [
            *self._command,
            *("--config-fd", str(self._config_fd)),
            *("--holder-fd", str(theirs.fileno())),
            *("--memory-fd", str(self._memory_fd)),
        ]
        if self._ready_fd is not None:
            handed.append(self._ready_fd)
            command += ["--ready-fd", str(self._ready_fd)]
        if not is_first and self._device_fd is not None:
            handed.append(self._device_fd)
            command += ["--device-fd", str(self._device_fd)]
            command += ["--restarts", str(self._restarts), "--restarted-by", why]
        self._memory.set_worked(False)
        # Read by each daemon to its end: the place in it is shared.
        os.lseek(self._config_fd, 0, os.SEEK_SET)
        for fd in handed:
            os.set_inheritable(fd, True)
        pid = os.posix_spawn(command[0], command, os.environ, setpgroup=0)
        theirs.close()
        if self._ready_fd is not None:
            os.close(self._ready_fd)
            self._ready_fd = None
        return Daemon(pid, ours, is_first=is_first)

    def _watch(self, daemon: Daemon) -> int:
        """Until the daemon has ended; its exit status, negative for a signal."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(daemon.line, select.POLLIN)
        limit_s = time.monotonic() + TAKE_OVER_S_MAX
        while True:
            is_late = False
            timeout_ms = None
            if not (daemon.is_first or daemon.serving_since_s is not None):
                is_late = time.monotonic() > limit_s
                timeout_ms = TAKE_OVER_S_MAX * 1000
            if is_late:
                os.kill(daemon.pid, signal.SIGKILL)
            for fd, _ in poll.poll(timeout_ms):
                if fd != self._wake and not self._hear(daemon):
                    poll.unregister(fd)
            self._take_signals()
            if daemon.is_first or daemon.serving_since_s is not None:
                self._pass_on(daemon)
            code = self._buried(daemon.pid)
            if code is not None:
                while self._hear(daemon):
                    continue
                return code

    def _hear(self, daemon: Daemon) -> bool:
        """Take one message of the daemon, if there is one; False when there will be no more."""
        room = socket.CMSG_LEN(4)
        try:
            word, control, _, _ = daemon.line.recvmsg(
                MESSAGE_BYTES_MAX, room, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
            )
        except OSError:
            return False
        for level, kind, data in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS and len(data) == 4:
                fd = int.from_bytes(data, sys.byteorder)
                if word == MOUNTED and self._device_fd is None:
                    self._device_fd = fd
                else:
                    os.close(fd)
        if word == SERVING:
            daemon.serving_since_s = time.monotonic()
        return bool(word)

    def _take_signals(self) -> None:
        try:
            came = os.read(self._wake, WAKE_BYTES_MAX)
        except BlockingIOError:
            return
        self._waits += [number for number in came if number in FORWARDED]

    def _pass_on(self, daemon: Daemon) -> None:
        for number in self._waits:
            os.kill(daemon.pid, number)
        self._ending += self._waits
        self._waits = []

    @staticmethod
    def _buried(wanted: int) -> int | None:
        """Bury whoever died (as process 1 of a container, all there are); the status of `wanted`,
        if it is among them.
        """
        code = None
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return code
            if pid == 0:
                return code
            if pid == wanted:
                code = os.waitstatus_to_exitcode(status)

    def _pause(self, pause_s: float) -> None:
        """Wait, while signals are noted."""
        end_s = time.monotonic() + pause_s
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        while (left_s := end_s - time.monotonic()) > 0:
            poll.poll(left_s * 1000)
            self._take_signals()

    # --- the end ---------------------------------------------------------------------------

    def _end(self, code: int) -> int:
        """Let go of the mount: if it still stands, nobody would answer there any more."""
        if self._device_fd is None:
            return code
        os.close(self._device_fd)
        self._device_fd = None
        number = self._memory.connection
        if number is not None and connection_at(self._mountpoint) == number:
            detach(self._mountpoint)
        return code


def connection_at(mountpoint: str) -> int | None:
    """Minor device number of the topmost FUSE mount there (fuse/table.py says how it is found)."""
    wanted = os.fsencode(mountpoint)
    for special in b"\\ \t\n":
        wanted = wanted.replace(bytes([special]), b"\\%03o" % special)
    found = None
    with open("/proc/self/mountinfo", "rb") as lines:
        for line in lines:
            before, _, after = line.partition(b" - ")
            fields = before.split(b" ")
            if after.startswith((b"fuse ", b"fuse.")) and fields[4] == wanted:
                found = int(fields[2].partition(b":")[2])
    return found


def detach(mountpoint: str) -> None:
    """Take a mount out of the tree although it is in use, and end its connection, which a process
    that waits in the kernel may still hold (fuse/notifier.py); never raises."""
    # Only here, at the end: ctypes alone would add a tenth to the memory held.
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    flags = 1 | 2 | 8  # MNT_FORCE | MNT_DETACH | UMOUNT_NOFOLLOW
    if libc.umount2(os.fsencode(mountpoint), flags) == 0:
        return
    try:
        command = ["fusermount3", "-u", "-z", "--", mountpoint]
        pid = os.posix_spawnp(command[0], command, {"PATH": os.environ.get("PATH", os.defpath)})
        os.waitpid(pid, 0)
    except OSError as exc:
        say(f"the dead mount can't be taken away: {exc.strerror}")


def say(text: str) -> None:
    """One line for the log, which is the standard error output, as the daemon's lines are."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
    line = f"{stamp} error holder: {text}"
    if log_format == "json":
        text = text.replace("\\", "\\\\").replace('"', '\\"')
        line = f'{{"time": "{stamp}", "level": "error", "logger": "holder", "message": "{text}"}}'
    try:
        os.write(2, f"{line}\n".encode())
    except OSError:
        return


def main(arguments: list[str]) -> int:
    """Parse by hand (argparse is large): see the head of the file. The exit status."""
    split = arguments.index("--")
    flags = dict(zip(arguments[:split:2], arguments[1:split:2], strict=True))
    global log_format
    log_format = flags.get("--log-format", log_format)
    ready = flags.get("--ready-fd")
    holder = Holder(
        flags["--mountpoint"],
        int(flags["--config-fd"]),
        None if ready is None else int(ready),
        arguments[split + 1 :],
    )
    return holder.run()


if __name__ == "__main__":
    status = main(sys.argv[1:])
    if status < 0:
        # As if this process had been the daemon.
        signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
        os.kill(os.getpid(), -status)
    sys.exit(status)

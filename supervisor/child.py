"""One child process and its process group: start, output, end. Knows neither models nor HTTP."""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Final

import anyio

from hostler.supervisor.logs import LineSplitter
from hostler.supervisor.reaper import process_reaper

#: Where the system has no pidfd, a child's end is polled for.
_POLL_S: Final = 0.02

_PR_SET_PDEATHSIG: Final = 1

#: Ends a process at once, whatever it does: SIGKILL, and on Windows, which has none, its number.
FORCED_END: Final[int] = getattr(signal, "SIGKILL", 9)
# `Child` has a method of that name.
_SIGTERM: Final = signal.SIGTERM


class Child:
    """A running process in a session of its own, so that a Ctrl-C in our terminal does not reach it.

    It is killed when this process dies, even by SIGKILL: on Linux by the system, and its whole group everywhere by a
    `Reaper`. When the process exits, the rest of its group is killed before listeners are called. `exited` is set after
    all output has been passed on.
    """

    def __init__(self, popen: subprocess.Popen[bytes], on_line: Callable[[bool, str], None]) -> None:
        self._popen = popen
        self._on_line = on_line
        self._loop = asyncio.get_running_loop()
        self._splitters: dict[int, tuple[IO[bytes], LineSplitter, bool]] = {}
        self._pidfd: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._listeners: list[Callable[[], None]] = []
        self._empty = False
        self.pid = popen.pid
        self.returncode: int | None = None
        self.exited = anyio.Event()

    @classmethod
    def start(
        cls, arguments: Sequence[str], environment: Mapping[str, str], on_line: Callable[[bool, str], None],
        cwd: str | None = None, pass_fds: Sequence[int] = (),
    ) -> Child:  # fmt: skip
        """Start a child in the folder `cwd`, which inherits `pass_fds`. `on_line(from_stdout, line)` gets each line that it
        writes.

        Raises `OSError` if it cannot run. Linux kills the child with the thread that called this.
        """
        if cls is Child and sys.platform == "win32":
            from hostler.supervisor.windows_child import WindowsChild

            return WindowsChild.start(arguments, environment, on_line, cwd, pass_fds)
        launcher = _launcher(environment.get("PATH")) if _is_native(arguments[0]) else ()
        popen = subprocess.Popen(
            [*launcher, *arguments], env=dict(environment), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, bufsize=0, start_new_session=True, cwd=cwd,
            pass_fds=pass_fds,
            preexec_fn=None if launcher else _end_with_parent(),
        )  # fmt: skip
        process_reaper().watch(popen.pid)
        child = cls(popen, on_line)
        child._watch()
        return child

    @property
    def running(self) -> bool:
        """Whether it runs, according to the system, which knows of an exit before listeners are called."""
        return self.returncode is None and not self._is_zombie()

    def write_line(self, line: bytes) -> bool:
        """Write one line to its standard input. Whether that was possible without waiting."""
        stdin = self._popen.stdin
        if stdin is None or stdin.closed or self.returncode is not None:
            return False
        try:
            return os.write(stdin.fileno(), line + b"\n") > len(line)
        except OSError:
            return False

    def signal(self, number: int) -> None:
        """Send a signal to the whole group, if it exists."""
        if self._empty:
            return
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            pass

    def on_exit(self, listener: Callable[[], None]) -> None:
        """Call `listener` when it exits; at once if it has."""
        if self.returncode is not None:
            listener()
        else:
            self._listeners.append(listener)

    async def end(self, grace_s: float, *, exit_line: bytes | None = None, stop_signal: int | None = _SIGTERM) -> None:
        """End it and its group: `exit_line` to its stdin, `stop_signal`, after `grace_s` SIGKILL.

        With `stop_signal=None` it has been asked to exit already. Returns when all are gone.

        Cancelling skips the grace period, not the end.
        """
        try:
            with anyio.move_on_after(grace_s):
                if exit_line is not None and self.write_line(exit_line):
                    with anyio.move_on_after(min(0.5, grace_s / 2)):
                        await self.exited.wait()
                if self.returncode is None and stop_signal is not None:
                    self.signal(stop_signal)
                await self.exited.wait()
        finally:
            with anyio.CancelScope(shield=True):
                self.signal(FORCED_END)
                # Bounded: a process in an uninterruptible wait of the kernel outlives even that.
                with anyio.move_on_after(5):
                    await self.exited.wait()
                await self._wait_group_gone()
                self.close()

    def close(self) -> None:
        """Close pipes and descriptors. A process that still runs is no longer watched."""
        if self.returncode is not None:
            process_reaper().forget(self.pid)
        for descriptor in [*self._splitters]:
            self._drop(descriptor)
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._popen.stdin is not None:
            try:
                self._popen.stdin.close()
            except OSError:
                pass

    def _watch(self) -> None:
        for stream, from_stdout in ((self._popen.stdout, True), (self._popen.stderr, False)):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
            self._splitters[stream.fileno()] = (stream, LineSplitter(), from_stdout)
            self._loop.add_reader(stream.fileno(), self._read, stream.fileno())
        assert self._popen.stdin is not None
        os.set_blocking(self._popen.stdin.fileno(), False)
        try:
            self._pidfd = os.pidfd_open(self.pid) if sys.platform == "linux" else None
        except OSError:
            self._pidfd = None
        if self._pidfd is not None:
            self._loop.add_reader(self._pidfd, self._ended)
        else:
            self._timer = self._loop.call_later(_POLL_S, self._poll)

    def _poll(self) -> None:
        """Check for its end, where there is no pidfd."""
        if self._is_zombie():
            self._ended()
        else:
            self._timer = self._loop.call_later(_POLL_S, self._poll)

    def _is_zombie(self) -> bool:
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def _ended(self) -> None:
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        # The zombie still holds the group's number, so this cannot hit another group.
        self.signal(FORCED_END)
        self.returncode = self._popen.wait()
        self._empty = not self._group_exists()
        for descriptor in [*self._splitters]:
            self._read(descriptor)
            if descriptor in self._splitters:
                self._drop(descriptor)
        self._finish()

    def _finish(self) -> None:
        """It has ended, and all of its output is there."""
        self.exited.set()
        for listener in self._listeners:
            listener()
        self._listeners.clear()

    def _read(self, descriptor: int) -> None:
        _, splitter, from_stdout = self._splitters[descriptor]
        while True:
            try:
                data = os.read(descriptor, 65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            lines = splitter.feed(data) if data else splitter.finish()
            for line in lines:
                self._on_line(from_stdout, line)
            if not data:
                self._drop(descriptor)
                return
            if self.returncode is None and len(data) < 65536:
                return

    def _drop(self, descriptor: int) -> None:
        stream, splitter, from_stdout = self._splitters.pop(descriptor)
        self._loop.remove_reader(descriptor)
        for line in splitter.finish():
            self._on_line(from_stdout, line)
        stream.close()

    async def _wait_group_gone(self) -> None:
        """Wait until SIGKILL has ended grandchildren. Bounded: zombies that are never reaped stay in a group."""
        for pause in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1):
            if self._empty or not self._group_exists():
                # From now on the number may belong to another group.
                self._empty = True
                return
            await anyio.sleep(pause)

    def _group_exists(self) -> bool:
        try:
            os.killpg(self.pid, 0)
        except (ProcessLookupError, PermissionError):
            return False
        return True


@cache
def _launcher(path: str | None) -> tuple[str, ...]:
    """The command prefix that has a program killed when this process dies: util-linux's `setpriv`, then a shell.

    The shell checks that this process had not died before `setpriv` took effect. Empty where it does not work: then
    `preexec_fn` does the same, for which Python copies the whole process and blocks the event loop for 8 ms.
    """
    if not sys.platform.startswith("linux"):
        return ()
    setpriv, shell = (shutil.which(name, path=path or os.defpath) for name in ("setpriv", "sh"))
    if setpriv is None or shell is None:
        return ()
    script = '[ "$PPID" = "$1" ] && shift && exec "$@"'
    launcher = (setpriv, "--pdeathsig", "KILL", "--", shell, "-c", script, "hostler", str(os.getpid()))
    try:
        tried = subprocess.run([*launcher, "true"], capture_output=True, timeout=2, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return launcher if tried.returncode == 0 else ()


def _is_native(program: str) -> bool:
    """Whether the file is a script or built for this machine. Anything else is started directly, to get the system's error."""
    try:
        head, ours = (_head(path) for path in (program, sys.executable))
    except OSError:
        return False
    return os.access(program, os.X_OK) and (head.startswith(b"#!") or (head[:6], head[18:]) == (ours[:6], ours[18:]))


def _head(program: str) -> bytes:
    with Path(program).open("rb") as file:
        return file.read(20)


def _end_with_parent() -> Callable[[], None] | None:
    """A `preexec_fn` for Linux that has the child killed when this process dies, even by SIGKILL.

    Everything is looked up before the fork: in the child of a process with threads nothing may take a lock.
    """
    if not sys.platform.startswith("linux"):
        return None
    prctl, parent, getppid, exit_now = ctypes.CDLL(None).prctl, os.getpid(), os.getppid, os._exit
    number = FORCED_END

    def end_with_parent() -> None:
        prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if getppid() != parent:
            exit_now(1)

    return end_with_parent

"""One child process with its whole group: its start, its output, its end. It knows no models and no HTTP."""

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

#: Where the operating system cannot tell at once that a child ended, it is asked this often.
_ASK_S: Final = 0.02

_PR_SET_PDEATHSIG: Final = 1


class Child:
    """A running process in a session of its own, so that no Ctrl-C of our terminal reaches it.

    It is killed with its group when we die, however we die: on Linux by the system, the group everywhere by a `Sentry`.
    When its first process ends, the rest of its group is killed before anybody is told. `exited` is set at the end, all
    output up to it has been handed out then.
    """

    def __init__(self, popen: subprocess.Popen[bytes], heard: Callable[[bool, str], None]) -> None:
        self._popen = popen
        self._heard = heard
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
        cls, arguments: Sequence[str], environment: Mapping[str, str], heard: Callable[[bool, str], None]
    ) -> Child:
        """Start it. `heard(from_stdout, line)` gets each line that it writes. Raises `OSError` if it cannot run.

        To be called on the thread that lives as long as the child may: Linux ends it with that thread.
        """
        launcher = _launcher(environment.get("PATH")) if _plainly_runs(arguments[0]) else ()
        popen = subprocess.Popen(
            [*launcher, *arguments], env=dict(environment), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, bufsize=0, start_new_session=True,
            preexec_fn=None if launcher else _end_with_parent(),
        )  # fmt: skip
        process_reaper().watch(popen.pid)
        child = cls(popen, heard)
        child._watch()
        return child

    @property
    def running(self) -> bool:
        """Whether it runs this moment: the system is asked, which may know of an end before we were told."""
        return self.returncode is None and not self._is_zombie()

    def tell(self, line: bytes) -> bool:
        """Write one line to its standard input; whether that was possible. Never waits."""
        stdin = self._popen.stdin
        if stdin is None or stdin.closed or self.returncode is not None:
            return False
        try:
            return os.write(stdin.fileno(), line + b"\n") > len(line)
        except OSError:
            return False

    def signal(self, number: int) -> None:
        """Send a signal to the whole group; nothing happens if it is gone."""
        if self._empty:
            return
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            pass

    def on_exit(self, listener: Callable[[], None]) -> None:
        """Call `listener` when it ended; at once if it has."""
        if self.returncode is not None:
            listener()
        else:
            self._listeners.append(listener)

    async def end(self, grace_s: float, *, last_words: bytes | None = None) -> None:
        """End it and its group: `last_words` on its stdin, SIGTERM, after `grace_s` SIGKILL. Returns when all are gone.

        Cancelling does not stop the ending, only its patience.
        """
        try:
            with anyio.move_on_after(grace_s):
                if last_words is not None and self.tell(last_words):
                    with anyio.move_on_after(min(0.5, grace_s / 2)):
                        await self.exited.wait()
                if self.returncode is None:
                    self.signal(signal.SIGTERM)
                await self.exited.wait()
        finally:
            with anyio.CancelScope(shield=True):
                self.signal(signal.SIGKILL)
                # Bounded: a process in an uninterruptible wait of the kernel outlives even that.
                with anyio.move_on_after(5):
                    await self.exited.wait()
                await self._group_is_gone()
                self.close()

    def close(self) -> None:
        """Let go of pipes and descriptors. The process itself must have ended, or is left to its fate."""
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
            self._timer = self._loop.call_later(_ASK_S, self._ask)

    def _ask(self) -> None:
        """Look whether it ended, where the system offers no descriptor that would tell."""
        if self._is_zombie():
            self._ended()
        else:
            self._timer = self._loop.call_later(_ASK_S, self._ask)

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
        # The zombie still holds the number of the group, so this cannot hit a stranger's.
        self.signal(signal.SIGKILL)
        self.returncode = self._popen.wait()
        self._empty = not self._group_exists()
        for descriptor in [*self._splitters]:
            self._read(descriptor)
            if descriptor in self._splitters:
                self._drop(descriptor)
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
                self._heard(from_stdout, line)
            if not data:
                self._drop(descriptor)
                return
            if self.returncode is None and len(data) < 65536:
                return

    def _drop(self, descriptor: int) -> None:
        stream, splitter, from_stdout = self._splitters.pop(descriptor)
        self._loop.remove_reader(descriptor)
        for line in splitter.finish():
            self._heard(from_stdout, line)
        stream.close()

    async def _group_is_gone(self) -> None:
        """Wait until SIGKILL has done its work on grandchildren. Bounded: zombies that nobody reaps stay in a group."""
        for pause in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1):
            if self._empty or not self._group_exists():
                # From now on the number may belong to somebody else's group.
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
    """What starts a program that is killed when we die: `setpriv` of util-linux and a shell, which become that program.

    The shell makes sure that we had not died before `setpriv` asked to be killed with us. Empty where this does not
    work: then the same is done between fork and exec, for which Python has to copy this whole process, and for 8 ms
    nobody is answered.
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


def _plainly_runs(program: str) -> bool:
    """Whether this file is a script, or made for the machine that we were made for. About all others the system is asked."""
    try:
        head, ours = (_head(path) for path in (program, sys.executable))
    except OSError:
        return False
    return os.access(program, os.X_OK) and (head.startswith(b"#!") or (head[:6], head[18:]) == (ours[:6], ours[18:]))


def _head(program: str) -> bytes:
    with Path(program).open("rb") as file:
        return file.read(20)


def _end_with_parent() -> Callable[[], None] | None:
    """What the child does between fork and exec on Linux: ask to be killed when we die, also by SIGKILL.

    All that it needs is looked up here, before the fork: in the child of a program with threads nothing may take a lock.
    """
    if not sys.platform.startswith("linux"):
        return None
    prctl, parent, getppid, leave = ctypes.CDLL(None).prctl, os.getpid(), os.getppid, os._exit
    number = int(signal.SIGKILL)

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if getppid() != parent:
            leave(1)

    return ask

"""A child process on Windows: in a job object instead of a process group, with threads that read its pipes."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, Final

from hostler.supervisor.child import FORCED_END, Child
from hostler.supervisor.logs import LineSplitter
from hostler.supervisor.windows_job import WindowsJob

#: Its own group of consoles, so that a Ctrl-C in ours does not reach it, and a Ctrl-Break can be sent to it alone.
_NEW_GROUP: Final[int] = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
_CTRL_BREAK: Final = 1

StartJob = Callable[[int], WindowsJob]


class WindowsChild(Child):
    """See `Child`. The system ends it with this process, since its job has no other handle."""

    def __init__(self, popen: subprocess.Popen[bytes], on_line: Callable[[bool, str], None], job: WindowsJob) -> None:
        super().__init__(popen, on_line)
        self._job = job
        self._readers: list[threading.Thread] = []

    @classmethod
    def start(
        cls, arguments: Sequence[str], environment: Mapping[str, str], on_line: Callable[[bool, str], None],
        cwd: str | None = None, pass_fds: Sequence[int] = (), *, start_job: StartJob = WindowsJob,
    ) -> Child:  # fmt: skip
        """See `Child.start`. Descriptors are not inherited: `pass_fds` must be empty."""
        if pass_fds:
            raise OSError("descriptors cannot be passed to a child on Windows")
        popen = subprocess.Popen(
            [*arguments], env=dict(environment), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            bufsize=0, cwd=cwd, creationflags=_NEW_GROUP,
        )  # fmt: skip
        try:
            job = start_job(int(getattr(popen, "_handle", popen.pid)))
        except OSError:
            popen.kill()
            popen.communicate()
            raise
        child = cls(popen, on_line, job)
        child._watch()
        return child

    def signal(self, number: int) -> None:
        """Kill the job, or ask the process to end: the system has no other signals."""
        if self._empty:
            return
        if number == FORCED_END:
            self._job.kill()
            return
        try:
            os.kill(self.pid, _CTRL_BREAK) if _NEW_GROUP else self._popen.terminate()
        except OSError:
            pass

    def close(self) -> None:
        self._job.close()
        if self._popen.stdin is not None:
            try:
                self._popen.stdin.close()
            except OSError:
                pass

    def _watch(self) -> None:
        for stream, from_stdout in ((self._popen.stdout, True), (self._popen.stderr, False)):
            assert stream is not None
            reader = threading.Thread(target=self._read_pipe, args=(stream, from_stdout), daemon=True)
            self._readers.append(reader)
            reader.start()
        threading.Thread(target=self._wait, daemon=True).start()

    def _read_pipe(self, stream: IO[bytes], from_stdout: bool) -> None:
        splitter = LineSplitter()
        with stream:
            while data := self._piece(stream):
                for line in splitter.feed(data):
                    self._later(self._on_line, from_stdout, line)
        for line in splitter.finish():
            self._later(self._on_line, from_stdout, line)

    @staticmethod
    def _piece(stream: IO[bytes]) -> bytes:
        try:
            return os.read(stream.fileno(), 65536)
        except OSError:
            return b""

    def _wait(self) -> None:
        code = self._popen.wait()
        # What it has started holds its pipes open.
        self._job.kill()
        for reader in self._readers:
            reader.join()
        self._later(self._has_ended, code)

    def _later(self, call: Callable[..., Any], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            pass  # the loop is closed

    def _has_ended(self, code: int) -> None:
        self.returncode = code
        self._empty = self._job.is_empty()
        self._finish()

    def _is_zombie(self) -> bool:
        return self._popen.poll() is not None

    def _group_exists(self) -> bool:
        return not self._job.is_empty()

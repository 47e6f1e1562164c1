"""Run a command in a pseudo-terminal and read what it displays."""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

_CODES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


class PseudoTerminal:
    """A pseudo-terminal and the command that runs in it."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self.process = process
        self.raw = b""
        self._descriptor = descriptor
        self._seen = 0

    def until(self, text: str, seconds: float = 40.0) -> str:
        """Read until `text` appears after the previous match; the text read, without escape codes."""
        deadline = time.monotonic() + seconds
        while (at := self.text.find(text, self._seen)) < 0:
            received = self.text[self._seen :][-3000:]
            assert time.monotonic() < deadline, f"{text!r} did not appear: {received}"
            if not self._read(0.1) and self.process.poll() is not None:
                raise AssertionError(f"the command ended before {text!r} appeared: {received}")
        before, self._seen = self._seen, at + len(text)
        return self.text[before : self._seen]

    def end(self, seconds: float = 40.0) -> int:
        """Read until the command ends; its exit code."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"still running: {self.text[-3000:]}"
            self._read(0.1)
        while self._read(0.0):
            pass
        return self.process.returncode

    @property
    def text(self) -> str:
        """All output so far, without escape codes."""
        return _plain(self.raw)

    def idle(self, seconds: float) -> None:
        """Keep reading for this long."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._read(left)

    def press(self, keys: bytes) -> None:
        """Type these keys."""
        os.write(self._descriptor, keys)

    def resize(self, columns: int, lines: int) -> None:
        """Change the size of the window."""
        fcntl.ioctl(self._descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def _read(self, seconds: float) -> bool:
        if not select.select([self._descriptor], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self._descriptor, 65536)
        except OSError:  # closed by the program
            return False
        self.raw += data
        return bool(data)


@contextmanager
def run_in_terminal(
    *arguments: str, columns: int = 80, lines: int = 24, environ: dict[str, str] | None = None
) -> Iterator[PseudoTerminal]:
    """Run `hostler ARGUMENTS` in a pseudo-terminal until the context ends."""
    controller, terminal = os.openpty()
    fcntl.ioctl(controller, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}

    def take_the_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [sys.executable, "-m", "hostler.gateway", *arguments],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=take_the_terminal,
        env={**inherited, "TERM": "xterm-256color", **(environ or {})},
    )
    os.close(terminal)
    opened = PseudoTerminal(process, controller)
    try:
        yield opened
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                opened.end(20.0)
            except AssertionError:
                process.kill()
                process.wait()
        os.close(controller)


def _plain(raw: bytes) -> str:
    return _CODES.sub(b"", raw).decode("utf-8", "ignore")

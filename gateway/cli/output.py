"""Writes to standard output and error past Python's buffers, whose locks a blocked thread would hold at exit."""

from __future__ import annotations

import os
import select
import threading


def write_all(descriptor: int, text: str) -> None:
    """Write the whole text; blocks as long as the other end does not read. Raises `OSError` if it is gone."""
    data = text.encode("utf-8", "backslashreplace")
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:  # another process has set it to non-blocking
            select.select([], [descriptor], [])


def print_in_background(descriptor: int, text: str) -> None:
    """Print a text without waiting for its reader. A daemon thread writes it, so it may be lost at exit."""

    def work() -> None:
        try:
            write_all(descriptor, f"{text}\n")
        except OSError:
            pass  # the reader is gone; the process keeps running

    threading.Thread(target=work, name="print", daemon=True).start()


class DescriptorStream:
    """A text stream for libraries that want a file; `write` does what `write_all` does."""

    encoding = "utf-8"

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, text: str) -> int:
        write_all(self._descriptor, text)
        return len(text)

    def flush(self) -> None:
        """Nothing is buffered."""

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)


def terminal_size(descriptor: int) -> tuple[int, int]:
    """Columns and lines."""
    try:
        columns, lines = os.get_terminal_size(descriptor)
    except OSError:
        return 80, 24
    return columns or 80, lines or 24

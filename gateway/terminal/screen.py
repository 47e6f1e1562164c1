"""Paints a few lines below everything else that is printed on a terminal, from a thread: a terminal that stands still
(Ctrl-S, a slow line) stops nobody else.

What is painted over is exactly what was painted before, also after the window became narrower. The cursor stays
visible and the terminal's modes are left alone, so there is nothing to tidy up, however the process ends.
"""

from __future__ import annotations

import os
import re
import select
import threading
from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol

from rich.cells import cell_len

#: So long passes at least between two paintings, in seconds.
PACE_S: Final = 0.25

#: Lines that wait for a terminal which stands still; older ones are gone, and it is told how many.
_MOST_LINES: Final = 1000

#: At the end, a terminal that stands still is waited for this long, in seconds.
_FAREWELL_S: Final = 2.0

_SMALLEST: Final = (20, 3)

_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")


class Artist(Protocol):
    """Turns what there is to show into lines of at most `width` cells. Called in the screen's thread."""

    def above(self, item: object, width: int) -> list[str]:
        """What scrolls by."""
        ...

    def below(self, picture: object, width: int, height: int) -> list[str]:
        """What stays at the bottom: at most `height` lines."""
        ...


class Screen:
    """The terminal at `descriptor`. `say` and `show` never wait; nothing is painted before `open` and after `close`."""

    def __init__(self, descriptor: int, artist: Artist, *, pace_s: float = PACE_S) -> None:
        self._descriptor = descriptor
        self._artist = artist
        self._pace_s = pace_s
        self._news = threading.Condition()
        self._said: deque[object] = deque(maxlen=_MOST_LINES)
        self._missed = 0
        self._picture: object = None
        self._fresh = False
        self._closed = False
        self._ending = threading.Event()
        self._painted: list[int] = []
        self._thread = threading.Thread(target=self._run, name="screen", daemon=True)

    def open(self) -> None:
        """Begin to paint."""
        self._thread.start()

    def say(self, item: object) -> None:
        """Something that scrolls by. From any thread."""
        with self._news:
            if len(self._said) == _MOST_LINES:
                self._missed += 1
            self._said.append(item)
            self._news.notify()

    def show(self, picture: object) -> None:
        """What stands at the bottom from now on."""
        with self._news:
            self._picture, self._fresh = picture, True
            self._news.notify()

    def close(self, farewell: object = None) -> None:
        """Print what was said last, take away what stands at the bottom, and leave the terminal to others."""
        with self._news:
            if farewell is not None:
                self._said.append(farewell)
            self._closed = True
            self._news.notify()
        self._ending.set()
        self._thread.join(_FAREWELL_S)

    def size(self) -> tuple[int, int]:
        """Columns and lines."""
        try:
            columns, lines = os.get_terminal_size(self._descriptor)
        except OSError:
            return 80, 24
        return columns or 80, lines or 24

    def forget(self) -> None:
        """What was painted is not there any more: somebody else has used the terminal."""
        with self._news:
            self._painted = []
            self._fresh = True
            self._news.notify()

    def _run(self) -> None:
        closed = False
        while not closed:
            with self._news:
                while not (self._said or self._fresh or self._closed):
                    self._news.wait()
                closed, picture = self._closed, self._picture
                said, missed = list(self._said), self._missed
                self._said.clear()
                self._missed, self._fresh = 0, False
            try:
                self._paint(said, missed, None if closed or not self._in_front() else picture)
            except OSError:
                return  # the terminal is gone
            self._ending.wait(self._pace_s)

    def _in_front(self) -> bool:
        """Whether the terminal is ours just now, rather than a shell's that put us into the background."""
        try:
            return os.tcgetpgrp(self._descriptor) == os.getpgrp()
        except OSError:
            return True

    def _paint(self, said: Sequence[object], missed: int, picture: object) -> None:
        width, height = self.size()
        above = [f"[{missed} lines were missed]"] if missed else []
        for item in said:
            above += self._artist.above(item, width)
        below: list[str] = []
        if picture is not None and width >= _SMALLEST[0] and height >= _SMALLEST[1]:
            below = self._artist.below(picture, width - 1, height - 1)
        back = sum(max(1, -(-painted // width)) for painted in self._painted)
        text = "\r" + (f"\x1b[{min(back, height)}A" if back else "")
        text += "".join(f"{line}\x1b[K\r\n" for line in (*above, *below)) + "\x1b[J"
        self._painted = [cell_len(_COLOURS.sub("", line)) for line in below]
        self._write(text.encode("utf-8", "replace"))

    def _write(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                select.select([], [self._descriptor], [], 1.0)

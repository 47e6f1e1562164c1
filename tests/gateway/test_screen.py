"""The painter of a terminal's last lines: what it writes, and that nobody waits for it."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import termios
import threading
from collections.abc import Iterator

import pytest

from hostler.gateway.cli.live import Screen


class Artist:
    """Draws what it is given; `drawn` opens with every picture."""

    def __init__(self) -> None:
        self.drawn = threading.Semaphore(0)

    def above(self, item: object, width: int) -> list[str]:
        return [str(item)]

    def below(self, picture: object, width: int, height: int) -> list[str]:
        self.drawn.release()
        return str(picture).splitlines()[:height]


@pytest.fixture
def pty() -> Iterator[tuple[int, int]]:
    """A terminal that nobody reads: ours and the program's end."""
    ours, theirs = os.openpty()
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


def read(descriptor: int, until: str) -> str:
    text = ""
    while until not in text:
        assert select.select([descriptor], [], [], 20)[0], text
        text += os.read(descriptor, 65536).decode()
    return text


def resize(descriptor: int, columns: int) -> None:
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))


def test_the_view_is_painted_over_and_lines_come_above_it(pty: tuple[int, int]) -> None:
    ours, theirs = pty
    screen = Screen(theirs, Artist(), pace_s=0.0)
    screen.open()
    screen.show("one\ntwo")
    assert "one\x1b[K\r\r\ntwo\x1b[K\r\r\n\x1b[J" in read(ours, "\x1b[J")
    screen.say("a line")
    said = read(ours, "\x1b[J")
    assert said.startswith("\r\x1b[2Aa line\x1b[K")
    assert said.index("a line") < said.index("one") < said.index("two")
    screen.close("bye")
    left = read(ours, "bye\x1b[K\r\r\n\x1b[J")
    assert left.startswith("\r\x1b[2A")
    assert "one" not in left


def test_lines_that_became_too_wide_are_counted_as_the_rows_they_fill(pty: tuple[int, int]) -> None:
    ours, theirs = pty
    resize(ours, 80)
    screen = Screen(theirs, Artist(), pace_s=0.0)
    screen.open()
    screen.show("x" * 70)
    read(ours, "\x1b[J")
    resize(ours, 30)
    screen.show("y")
    assert read(ours, "\x1b[J").startswith("\r\x1b[3A")
    screen.close()


def test_a_terminal_that_stands_still_loses_lines_and_is_told_how_many(pty: tuple[int, int]) -> None:
    ours, theirs = pty
    artist = Artist()
    screen = Screen(theirs, artist, pace_s=0.0)
    screen.open()
    screen.show("view")
    screen.say("x" * 100_000)  # more than a terminal takes without being read
    artist.drawn.acquire(timeout=20)
    for number in range(3000):
        screen.say(f"line {number}")
    assert "lines were missed]" in read(ours, "lines were missed]")
    reader = threading.Thread(target=lambda: read(ours, "bye"))
    reader.start()
    screen.close("bye")
    reader.join()


def test_after_somebody_else_used_the_terminal_nothing_of_theirs_is_painted_over(pty: tuple[int, int]) -> None:
    ours, theirs = pty
    screen = Screen(theirs, Artist(), pace_s=0.0)
    screen.open()
    screen.show("one\ntwo")
    read(ours, "\x1b[J")
    screen.forget()
    assert read(ours, "\x1b[J").startswith("\rone")
    screen.close()

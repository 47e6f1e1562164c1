"""The block at the bottom of a pseudo-terminal: what is written, and when the window changes."""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import termios
from collections.abc import Iterator

import pytest
from rich.text import Text

from hostler.gateway.admin.status import StatusView
from hostler.gateway.cli.live_layout import LiveState
from hostler.gateway.cli.live_screen import LiveScreen

ERASED_LINE = "\x1b[2K"
UP = "\x1b[1A"


@pytest.fixture
def pty() -> Iterator[tuple[int, int]]:
    """A terminal: the test's end and the program's."""
    ours, theirs = os.openpty()
    resize(ours, 80)
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


def read(descriptor: int, until: str) -> str:
    """What was written, up to `until` and all that is there by then."""
    text = ""
    while until not in text or select.select([descriptor], [], [], 0)[0]:
        assert select.select([descriptor], [], [], 20)[0], text
        text += os.read(descriptor, 65536).decode()
    return text


def resize(descriptor: int, columns: int) -> None:
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))


def state(title: str = "hostler", stopping: str = "the end") -> LiveState:
    status = StatusView(version="1", active=None, default=None, models=(), hosts=())
    return LiveState(title=title, addresses=(), status=status, stopping=stopping, requests=False)


#: The lines of `state`: a rule, the title, a sentence, the last line, and an empty one for the cursor.
HEIGHT = 5


def test_the_block_is_replaced_and_lines_appear_above_it(pty: tuple[int, int]) -> None:
    ours, theirs = pty
    screen = LiveScreen(theirs, colors=False)
    screen.draw((), state())
    first = read(ours, "the end")
    assert [line.strip() for line in first.split("\n")][1:] == [
        "hostler", "No model is loaded. The first request for a model loads it.", "the end", ""
    ]  # fmt: skip
    screen.draw([Text("a line"), Text("x" * 100)], state())
    second = read(ours, "the end")
    assert second.count(ERASED_LINE) == HEIGHT and second.count(UP) == HEIGHT - 1
    assert second.index("a line") < second.index("x" * 100) < second.index("hostler")
    screen.close([Text("bye")])
    last = read(ours, "bye")
    assert last.count(UP) >= HEIGHT - 1
    assert "hostler" not in last


def test_nothing_but_lines_and_cursor_movements_is_written(pty: tuple[int, int]) -> None:
    ours, theirs = pty
    screen = LiveScreen(theirs, colors=False)
    screen.draw([Text("a line")], state())
    screen.close([Text("bye")])
    written = read(ours, "bye")
    assert set(re.findall(r"\x1b\[?[^A-Za-z]*[A-Za-z]", written)) <= {ERASED_LINE, UP}


def test_lines_that_wrap_in_a_narrower_window_are_erased_as_rows(pty: tuple[int, int]) -> None:
    ours, theirs = pty
    screen = LiveScreen(theirs, colors=False)
    screen.draw((), state(title="x" * 70))
    read(ours, "the end")
    resize(ours, 30)
    screen.draw((), state())
    # The rule fills 3 rows, the title 3, the sentence 2.
    assert read(ours, "the end").count(UP) == HEIGHT + 5 - 1
    screen.close([])


def test_a_window_too_small_for_the_block_gets_lines_only(pty: tuple[int, int]) -> None:
    ours, theirs = pty
    resize(ours, 19)
    screen = LiveScreen(theirs, colors=False)
    screen.draw([Text("a line")], state())
    screen.close([Text("bye")])
    assert "hostler" not in read(ours, "bye")


def test_after_a_restart_nothing_is_erased(pty: tuple[int, int]) -> None:
    ours, theirs = pty
    screen = LiveScreen(theirs, colors=False)
    screen.draw((), state())
    read(ours, "the end")
    screen.restart()
    screen.draw((), state())
    assert UP not in read(ours, "the end")
    screen.close([])


def test_without_a_block_only_the_lines_are_written(pty: tuple[int, int]) -> None:
    ours, theirs = pty
    screen = LiveScreen(theirs, colors=False)
    screen.draw((), None)
    screen.draw([Text("a line")], None)
    screen.draw((), None)
    screen.close([Text("bye")])
    assert read(ours, "bye").replace("\r", "") == "a line\nbye\n"

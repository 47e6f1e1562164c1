"""A block of lines at the bottom of a terminal, drawn with rich's `Live`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import IO, Final, cast

from rich.console import Console, ConsoleDimensions, ConsoleOptions, Group, RenderResult
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType, Segment
from rich.text import Text

from hostler.gateway.cli.live_layout import LiveState, view_parts
from hostler.gateway.cli.output import DescriptorStream, terminal_size

#: In a terminal with fewer columns or lines, only the log is shown.
_SMALLEST: Final = (20, 3)


class LiveScreen:
    """A terminal with a block of lines at its bottom. Used by one thread; blocks while the terminal is stopped."""

    def __init__(self, descriptor: int, *, colors: bool) -> None:
        self._descriptor = descriptor
        self._console = _Terminal(
            file=cast(IO[str], DescriptorStream(descriptor)),
            force_terminal=True,
            color_system="auto" if colors else None,
            highlight=False,
            markup=False,
            emoji=False,
        )
        self._block = _RenderedBlock()
        self._live: Live | None = None

    def draw(self, above: Sequence[Text], state: LiveState | None) -> None:
        """Print the lines `above`, and replace the block. Without a state, or in the background, there is none."""
        width, height = size = terminal_size(self._descriptor)
        self._console.size = ConsoleDimensions(*size)
        if state is None or width < _SMALLEST[0] or height < _SMALLEST[1] or not self._in_foreground():
            self._erase(width, height)
        else:
            options = self._console.options.update(width=width - 1, height=None)
            parts = Group(*view_parts(state, width - 1, height - 1))
            # The cursor is left below: what is typed, and the echo of Ctrl-C, belongs to no line of the block.
            lines = [*self._console.render_lines(parts, options, pad=False), []]
            if self._live is None:
                self._live = self._start()
            else:
                self._skip_wrapped(width, height)
            self._block.lines = lines
        if above:
            self._console.print(*above, sep="\n", soft_wrap=True)
        elif self._live is not None:
            self._live.refresh()

    def restart(self) -> None:
        """Draw anew below, without removing the old block: another program has used the terminal since."""
        if self._live is not None:
            self._console.pop_render_hook()
            self._console.clear_live()
            self._block, self._live = _RenderedBlock(), None

    def close(self, above: Sequence[Text]) -> None:
        """Remove the block, and print the last lines."""
        self.draw(above, None)

    def _start(self) -> Live:
        live = Live(
            self._block,
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )
        live.start()
        return live

    def _erase(self, width: int, height: int) -> None:
        if self._live is not None:
            self._skip_wrapped(width, height)
            self._block.lines = [[]]
            self._live.refresh()
            self._live.stop()
            self._block, self._live = _RenderedBlock(), None

    def _skip_wrapped(self, width: int, height: int) -> None:
        """Erase the rows by which the block has grown since the window became narrower: rich does not count them."""
        rows = min(height, sum(max(0, (cells - 1) // width) for cells in self._block.widths))
        if rows:
            up = ((ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1))
            self._console.control(Control(ControlType.CARRIAGE_RETURN, *up * rows))

    def _in_foreground(self) -> bool:
        """False while a shell has put the process into the background."""
        try:
            return os.tcgetpgrp(self._descriptor) == os.getpgrp()
        except OSError:
            return True


class _Terminal(Console):
    def show_cursor(self, show: bool = True) -> bool:
        """Leave the cursor alone: a process that is killed or stopped could not show it again."""
        return False


class _RenderedBlock:
    """Lines that have been rendered already."""

    def __init__(self) -> None:
        self.lines: list[list[Segment]] = []
        #: The lengths of the lines on the screen.
        self.widths: list[int] = []

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.widths = [Segment.get_line_length(line) for line in self.lines]
        for line in self.lines:
            yield from line
            yield Segment.line()

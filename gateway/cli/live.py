"""The live view of a running process: a block at the bottom of the terminal, with the log scrolling by above it.

The event loop only takes snapshots; the log's thread draws them, so a stopped terminal never blocks the loop.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import IO, Final, cast

import anyio
import msgspec
from rich.console import Console, ConsoleDimensions, ConsoleOptions, Group, RenderResult
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType, Segment
from rich.text import Text

from hostler.gateway.admin.status import StatusView
from hostler.gateway.cli.live_layout import LiveState, log_lines, view_parts
from hostler.gateway.cli.logging import LogHandler
from hostler.gateway.cli.output import DescriptorStream
from hostler.gateway.events import Event, RequestFinished, SwitchChanged

#: Time between two looks at the state, in seconds.
POLL_S: Final = 0.25

#: The time in which a signal that has arrived is certainly handled, in seconds.
_SIGNAL_S: Final = 0.01

#: The shortest time between two updates of the screen, in seconds.
PACE_S: Final = 0.05

#: How long closing waits for a terminal that is stopped, in seconds.
CLOSE_S: Final = 2.0

#: Finished requests that are kept for the view.
_LAST_REQUESTS: Final = 20

#: As many log lines are drawn in one update.
_MAX_LINES: Final = 500

#: In a terminal with fewer columns or lines, only the log is shown.
_SMALLEST: Final = (20, 3)

_STDOUT: Final = 1
_STDERR: Final = 2


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
        """Leave what was drawn where it is: another program has used the terminal since."""
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


def terminal_size(descriptor: int) -> tuple[int, int]:
    """Columns and lines."""
    try:
        columns, lines = os.get_terminal_size(descriptor)
    except OSError:
        return 80, 24
    return columns or 80, lines or 24


class LiveView:
    """Shows a running gateway or supervisor on standard output.

    Lines of the log appear above the view while it is open, unless standard error leads elsewhere.
    """

    def __init__(self, log: LogHandler) -> None:
        self._log = log
        self._banner = ""
        self._title = ""
        self._addresses: tuple[str, ...] = ()
        self._has_requests = True
        self._last: deque[RequestFinished] = deque(maxlen=_LAST_REQUESTS)
        self._switches: dict[tuple[str, str], SwitchChanged] = {}
        self._stopping = ""
        self._changed = False
        self._began = anyio.Event()
        # What follows is the log thread's, but `_state` and `_draw_waits`, which the event loop sets.
        self._screen: LiveScreen | None = None
        self._above: list[Text] = []
        self._state: LiveState | None = None
        self._draw_waits = False

    def begin(self, banner: str, title: str, addresses: Sequence[str], *, requests: bool = True) -> None:
        """The process serves at `addresses`: print the banner, then show the view; `requests` if there can be any."""
        self._banner, self._title, self._addresses = banner, title, tuple(addresses)
        self._has_requests = requests
        self._began.set()

    def on_event(self, event: Event) -> None:
        """A listener for the bus."""
        if isinstance(event, RequestFinished):
            self._last.appendleft(event)
            self._changed = True
        elif isinstance(event, SwitchChanged):
            key = event.backend, event.switch.model
            if event.switch.phase in ("ready", "failed"):
                self._switches.pop(key, None)
            else:
                self._switches[key] = event
            self._changed = True

    def stopping(self, text: str) -> None:
        """Show that the process is stopping. Shorter texts for narrow terminals follow after a `|`."""
        self._stopping = text
        self._changed = True

    @asynccontextmanager
    async def shown(self, get_status: Callable[[], StatusView | None]) -> AsyncIterator[None]:
        """Show the view inside, once the process serves; afterwards nothing of it is left on the terminal."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._run, get_status)
            try:
                yield
            finally:
                tasks.cancel_scope.cancel()

    async def _run(self, get_status: Callable[[], StatusView | None]) -> None:
        await self._began.wait()
        default_output = self._log.output
        self._log.submit(self._open)
        if os.isatty(_STDERR):
            self._log.output = self._write
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._restart_after_stop)
                await self._poll(get_status)
        finally:
            self._log.submit(self._close)
            self._log.wait_until_written(CLOSE_S)
            self._log.output = default_output

    async def _poll(self, get_status: Callable[[], StatusView | None]) -> None:
        before: StatusView | None = None
        size = (0, 0)
        while True:
            status = get_status()
            if status is not None:
                status = msgspec.structs.replace(status, at=0.0)
                # Requests in flight grow older all the time; everything else is drawn when it changes.
                if self._changed or status != before or status.in_flight or size != terminal_size(_STDOUT):
                    before, size, self._changed = status, terminal_size(_STDOUT), False
                    self._state = self._snapshot(status)
                    if not self._draw_waits:
                        self._draw_waits = True
                        self._log.submit(self._draw)
            await anyio.sleep(POLL_S)
            # When the process continues after Ctrl-Z, this timer is due as well; SIGCONT has to be handled first.
            await anyio.sleep(_SIGNAL_S)

    async def _restart_after_stop(self) -> None:
        """After Ctrl-Z and `fg`, the shell has written where the view was."""
        with anyio.open_signal_receiver(signal.SIGCONT) as signals:
            async for _ in signals:
                self._log.submit(self._restart)

    def _snapshot(self, status: StatusView) -> LiveState:
        return LiveState(
            title=self._title,
            addresses=self._addresses,
            status=status,
            last=tuple(self._last),
            switches=tuple((event.backend, event.switch) for event in self._switches.values()),
            stopping=self._stopping,
            requests=self._has_requests,
        )

    # Called in the log's thread.

    def _open(self) -> None:
        self._screen = LiveScreen(_STDOUT, colors=not os.environ.get("NO_COLOR"))
        self._screen.draw([Text(self._banner)], None)

    def _write(self, record: logging.LogRecord) -> None:
        self._above += log_lines(record)
        if self._log.is_idle() or len(self._above) >= _MAX_LINES:
            self._draw()

    def _draw(self) -> None:
        self._draw_waits = False
        if self._screen is not None:
            above, self._above = self._above, []
            self._screen.draw(above, self._state)
            time.sleep(PACE_S)

    def _restart(self) -> None:
        if self._screen is not None:
            self._screen.restart()
            self._draw()

    def _close(self) -> None:
        screen, self._screen = self._screen, None
        if screen is not None:
            screen.close([*self._above, Text(f"{self._title.partition(',')[0]} has stopped.")])

"""The live view of a running process: a block at the bottom of the terminal, with the log scrolling by above it.

The event loop only takes snapshots; the log's thread draws them, so a stopped terminal never blocks the loop.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Final

import anyio
import msgspec

from hostler.gateway.admin.status import StatusView
from hostler.gateway.cli.logging import LogHandler
from hostler.gateway.cli.output import terminal_size
from hostler.gateway.events import Event, FinishedElsewhere, RequestFinished, SwitchChanged

if TYPE_CHECKING:
    from rich.text import Text

    from hostler.gateway.cli.live_layout import LiveState
    from hostler.gateway.cli.live_screen import LiveScreen

#: Interval between two snapshots of the state, in seconds.
POLL_S: Final = 0.25

#: The time in which a signal that has arrived is certainly handled, in seconds.
_SIGNAL_S: Final = 0.01

#: The shortest time between two updates of the screen, in seconds.
PACE_S: Final = 0.05

#: How long closing waits for a terminal that is stopped, in seconds.
CLOSE_S: Final = 2.0

#: Finished requests that are kept for the view.
_LAST_REQUESTS: Final = 20

#: Log lines drawn in one update, at most.
_MAX_LINES: Final = 500

_STDOUT: Final = 1
_STDERR: Final = 2


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
        if isinstance(event, FinishedElsewhere):
            event = event.request
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
        # With rich, this takes a while: the process already listens, and answers meanwhile.
        await anyio.to_thread.run_sync(import_module, "hostler.gateway.cli.live_screen")
        default_output = self._log.output
        self._log.submit(self._open)
        if os.isatty(_STDERR):
            self._log.output = self._write
        try:
            # Received from before the first frame on: the user may press Ctrl-Z as soon as there is one.
            if sys.platform == "win32":  # where nothing stops a process but a debugger
                await self._poll(get_status)
                return
            with anyio.open_signal_receiver(signal.SIGCONT) as continued:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._restart_after_stop, continued)
                    await self._poll(get_status)
        finally:
            if self._changed and self._state is not None:
                # The process may end before the next frame is due.
                self._state = msgspec.structs.replace(self._state, stopping=self._stopping)
                self._log.submit(self._draw)
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

    async def _restart_after_stop(self, continued: AsyncIterator[signal.Signals]) -> None:
        """After Ctrl-Z and `fg`, the shell has written where the view was."""
        async for _ in continued:
            self._log.submit(self._restart)

    def _snapshot(self, status: StatusView) -> LiveState:
        from hostler.gateway.cli.live_layout import LiveState

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
        from rich.text import Text

        from hostler.gateway.cli.live_screen import LiveScreen

        self._screen = LiveScreen(_STDOUT, colors=not os.environ.get("NO_COLOR"))
        self._screen.draw([Text(self._banner)], None)

    def _write(self, record: logging.LogRecord) -> None:
        from hostler.gateway.cli.live_layout import log_lines

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
        from rich.text import Text

        screen, self._screen = self._screen, None
        if screen is not None:
            screen.close([*self._above, Text(f"{self._title.partition(',')[0]} has stopped.")])

"""The live view of a running process: looks at what there is a few times a second, and has it painted when it changed.

It imports what draws only when it begins: a process without a terminal never does.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import msgspec

from hostler import __version__
from hostler.adapters.listing import ModelCard
from hostler.gateway.desk.status import HostView, StatusView, without_facts
from hostler.gateway.events import Event, RequestFinished, SwitchChanged
from hostler.supervisor.contract import HostStatus, ModelStatus

if TYPE_CHECKING:
    from hostler.gateway.terminal.loglines import Handler
    from hostler.gateway.terminal.screen import Screen

#: As many requests that ended are remembered for the view.
_LAST = 20

_LOOK_S = 0.25


class Live:
    """What stands at the bottom of the terminal while a gateway or a supervisor runs.

    `handler` is the log's: its lines scroll by above as long as the view is there.
    """

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._title = ""
        self._requests = True
        self._last: deque[RequestFinished] = deque(maxlen=_LAST)
        self._switches: dict[tuple[str, str], SwitchChanged] = {}
        self._addresses: tuple[str, ...] = ()
        self._begun = anyio.Event()
        self._stopping = ""
        self._moved = False

    def begin(self, title: str, addresses: Sequence[str], *, requests: bool = True) -> None:
        """The process serves; show it from now on, with the addresses at which it does, and `requests` if it has any."""
        self._title = title
        self._addresses = tuple(addresses)
        self._requests = requests
        self._begun.set()

    def hear(self, event: Event) -> None:
        """A listener for the bus."""
        if isinstance(event, RequestFinished):
            self._last.appendleft(event)
            self._moved = True
        elif isinstance(event, SwitchChanged):
            place = event.backend, event.switch.model
            if event.switch.phase in ("ready", "failed"):
                self._switches.pop(place, None)
            else:
                self._switches[place] = event
            self._moved = True

    def stopping(self, words: str) -> None:
        """The process is told to stop: say so from now on. Shorter ways to say it follow after a `|`."""
        self._stopping = words
        self._moved = True

    @asynccontextmanager
    async def shown(self, look: Callable[[], StatusView | None]) -> AsyncIterator[None]:
        """Show it inside, once it has begun; afterwards the terminal is as if it had never been there."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._run, look)
            try:
                yield
            finally:
                tasks.cancel_scope.cancel()

    async def _run(self, look: Callable[[], StatusView | None]) -> None:
        await self._begun.wait()
        from hostler.gateway.terminal.drawing import Drawing
        from hostler.gateway.terminal.screen import Screen

        screen = Screen(sys.stdout.fileno(), Drawing(colours=not os.environ.get("NO_COLOR")))
        sys.stdout.flush()
        sys.stderr.flush()
        screen.open()
        if sys.stderr.isatty():
            self._handler.above = screen.say
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_come_back, screen)
                await self._look_on(look, screen)
        finally:
            self._handler.above = None
            # Not printed, since a terminal that stands still would keep the process from ending.
            screen.close(f"{self._title.partition(',')[0]} has stopped.")

    async def _look_on(self, look: Callable[[], StatusView | None], screen: Screen) -> None:
        before: StatusView | None = None
        size = (0, 0)
        while True:
            view = look()
            if view is not None:
                view = msgspec.structs.replace(view, at=0.0)
                # Who is on the way grows older by the moment; everything else changes when it changes.
                if self._moved or view != before or view.flights or size != screen.size():
                    before, size, self._moved = view, screen.size(), False
                    screen.show(self._picture(view))
            await anyio.sleep(_LOOK_S)

    def _picture(self, view: StatusView) -> object:
        from hostler.gateway.terminal.drawing import Picture

        return Picture(
            title=self._title,
            addresses=self._addresses,
            status=view,
            last=tuple(self._last),
            switches=tuple((event.backend, event.switch) for event in self._switches.values()),
            stopping=self._stopping,
            requests=self._requests,
        )


def view_of(host: HostStatus, name: str) -> StatusView:
    """A supervisor's status as if a gateway had told it."""
    states = {each.model: each for each in host.models}
    cards = tuple(
        ModelCard(name=profile.name, state="loaded" if _is_ready(states.get(profile.name)) else "unloaded")
        for profile in host.profiles
    )
    view = HostView(backend=name, reachable=True, host=without_facts(host), waiting=0, serving=0)
    return StatusView(version=__version__, active=None, default=None, models=cards, hosts=(view,))


def _is_ready(status: ModelStatus | None) -> bool:
    return status is not None and status.state == "ready"


async def _come_back(screen: Screen) -> None:
    """After Ctrl-Z and `fg` the shell has written where we were."""
    with anyio.open_signal_receiver(signal.SIGCONT) as signals:
        async for _ in signals:
            screen.forget()

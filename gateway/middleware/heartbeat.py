"""When a waiting client is shown progress, and how often."""

from __future__ import annotations

from collections.abc import Callable

from hostler.adapters.canonical import Progress
from hostler.gateway.config import SwitchingSettings
from hostler.gateway.context import RequestContext


class Heartbeat:
    """Paces the progress shown to one waiting client. `due` is the next moment, by `clock`.

    The first one comes `progress_after_s` after the request, the others every `progress_every_s`; none for a client
    that asked for no stream.
    """

    def __init__(self, context: RequestContext, settings: SwitchingSettings, clock: Callable[[], float]) -> None:
        self._writer = context.writer
        self._every_s = settings.progress_every_s
        self._clock = clock
        shows = context.writer.streaming and settings.progress != "off"
        self._first = max(clock(), context.started_at + settings.progress_after_s) if shows else float("inf")
        self.due = self._first

    def hasten(self) -> None:
        """Show the next progress now, since it is new, but never before the first one is due."""
        now = self._clock()
        if now >= self._first:
            self.due = now

    async def show(self, progress: Progress) -> None:
        """Send the progress, and wait while the client reads more slowly."""
        await self._writer.heartbeat(progress)
        self.due = self._clock() + self._every_s

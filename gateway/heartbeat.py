"""Signs of life for a client that waits for the first token of its stream: what it waits for, in regular intervals."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from hostler.adapters.canonical import Progress
from hostler.gateway.context import RequestContext, nothing_shown
from hostler.gateway.gateway_settings import SwitchingSettings

logger = logging.getLogger(__name__)


class Heartbeat:
    """Shows one client `context.waits_for`, from `progress_after_s` after `start` until its answer begins.

    Then every `progress_every_s`, or at once when `context.hasten` is called. Middleware only set what is waited for, so
    that no wait is forgotten: between two of them, `queued` is shown. Until the first sign is due this is one timer.
    """

    __slots__ = ("_clock", "_context", "_pause", "_settings", "_started_at", "_task", "_timer")

    def __init__(self, context: RequestContext, settings: SwitchingSettings, clock: Callable[[], float]) -> None:
        self._context = context
        self._settings = settings
        self._clock = clock
        self._started_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._pause: asyncio.Future[None] | None = None

    def start(self) -> None:
        """Begin to count: the request has arrived."""
        self._started_at = self._clock()
        self._timer = asyncio.get_running_loop().call_later(self._settings.progress_after_s, self._begin)

    async def stop(self) -> None:
        """End it. Returns when nothing is being sent any more."""
        if self._timer is not None:
            self._timer.cancel()
        task = self._task
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))
            self._context.hasten = nothing_shown  # no cycle may keep the request's body
            if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, OSError):
                logger.error("%s: sending progress failed", self._context.id, exc_info=error)

    def _begin(self) -> None:
        if not self._context.writer.committed:
            self._context.hasten = self._hasten
            self._task = asyncio.get_running_loop().create_task(self._run())

    def _hasten(self) -> None:
        if self._pause is not None and not self._pause.done():
            self._pause.set_result(None)

    async def _run(self) -> None:
        loop, writer = asyncio.get_running_loop(), self._context.writer
        while not writer.committed:
            await writer.heartbeat(self._progress())
            self._pause = loop.create_future()
            timer = loop.call_later(self._settings.progress_every_s, self._hasten)
            try:
                await self._pause
            finally:
                timer.cancel()

    def _progress(self) -> Progress:
        context = self._context
        if context.waits_for is not None:
            return context.waits_for(context)
        waited_s = self._clock() - self._started_at
        model = context.shown_model or context.requested_model or ""
        return Progress(phase="queued", model=model, waited_s=waited_s, elapsed_s=waited_s)

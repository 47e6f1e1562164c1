"""Waiting on behalf of a request whose client sees what for: until a time, or until a machine has woken up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from hostler.adapters.canonical import Progress, ProgressPhase
from hostler.gateway.backends.cancellable_sleep import CancellableSleeps
from hostler.gateway.backends.hop import Hop
from hostler.gateway.backends.wake_on_lan import StillAsleep
from hostler.gateway.context import RequestContext


class RequestWaits:
    """The waits of all requests. They end with `ShuttingDown` when the gateway stops."""

    def __init__(self, sleeps: CancellableSleeps, clock: Callable[[], float]) -> None:
        self._sleeps = sleeps
        self._clock = clock

    async def wait(
        self, context: RequestContext, until: float, phase: ProgressPhase, wait: Callable[[float], Awaitable[bool]]
    ) -> bool:
        """Wait until `wait` returns true or the time is `until`, with progress for streaming clients.

        Raises `ShuttingDown` if the gateway stops meanwhile.
        """
        now = started_at = self._clock()

        def progress(context: RequestContext) -> Progress:
            waited_s = self._clock() - started_at
            eta_s = until - self._clock() if phase == "waking" else None
            return Progress(
                phase=phase, model=context.shown_model or "", eta_s=eta_s, elapsed_s=waited_s, waited_s=waited_s
            )

        before, context.waits_for = context.waits_for, progress
        try:
            while now < until:
                with self._sleeps.scope():
                    if await wait(until - now):
                        return True
                now = self._clock()
            return False
        finally:
            context.waits_for = before

    async def sleep(self, context: RequestContext, seconds: float, phase: ProgressPhase) -> None:
        """Wait for so long, as `wait` does."""

        async def pause(for_s: float) -> bool:
            await anyio.sleep(max(0.0, for_s))
            return False

        if seconds > 0:
            await self.wait(context, self._clock() + seconds, phase, pause)

    async def wake(self, context: RequestContext, hop: Hop) -> None:
        """Wake the hop's machine and wait for it, together with all other requests for it."""
        assert hop.wake_on_lan is not None
        until = hop.wake_on_lan.wake()
        if until is None:
            raise StillAsleep(f"{hop.name} is asleep and did not wake up a moment ago", backend=hop.name)
        if context.deadline is not None:
            until = min(until, context.deadline)
        if not await self.wait(context, until, "waking", hop.wake_on_lan.wait):
            raise StillAsleep(f"{hop.name} is asleep and did not wake up in time", backend=hop.name)

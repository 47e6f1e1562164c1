"""The base class of the request middleware, and the heartbeats of those that make a client wait.

Middleware are ordinary ASGI middleware; their subclasses implement `dispatch` and see the request context instead of
the scope.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from hostler.adapters.canonical import Progress
from hostler.gateway.asgi import CONTEXT_KEY, ASGIApp, Receive, Scope, Send
from hostler.gateway.config import SwitchingSettings
from hostler.gateway.context import RequestContext

CallNext = Callable[[], Awaitable[None]]


class RequestMiddleware:
    """Handles one concern in `dispatch`, which calls `call_next` once, never, or (fallback and queueing) repeatedly.

    Errors are raised as `GatewayError`. A middleware keeps no state of a request between two calls.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # No coroutine of its own: every piece of an answer would have to pass through it.
        return self.dispatch(scope[CONTEXT_KEY], partial(self.app, scope, receive, send))

    def dispatch(self, context: RequestContext, call_next: CallNext) -> Awaitable[None]:
        """Handle the request. A middleware with nothing to do afterwards returns what `call_next` gives."""
        raise NotImplementedError


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

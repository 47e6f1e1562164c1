"""The base class of the request middleware.

Middleware are ordinary ASGI middleware; their subclasses implement `dispatch` and see the request context instead of
the scope.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from hostler.gateway.asgi import CONTEXT_KEY, ASGIApp, Receive, Scope, Send
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

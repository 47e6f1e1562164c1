"""Whose trace a request belongs to, and its spans once it has ended. Not there at all unless traces are switched on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from hostler.adapters.types import ModelInfoRequest
from hostler.gateway.asgi import CONTEXT_KEY, ASGIApp, Receive, Scope, Send
from hostler.gateway.context import RequestContext
from hostler.gateway.middleware.base import CallNext, RequestMiddleware
from hostler.gateway.telemetry.tracing import CURRENT, Trace, begin


class TracingMiddleware(RequestMiddleware):
    """Stands around all layers that are timed. `chosen` says whether a trace that begins here is to be recorded."""

    def __init__(
        self, app: ASGIApp, *, record: Callable[[RequestContext, Trace], None], chosen: Callable[[], bool]
    ) -> None:
        super().__init__(app)
        self._record = record
        self._chosen = chosen

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"] if name.startswith(b"trace")}
        parent, state = headers.get(b"traceparent", ""), headers.get(b"tracestate", "")
        context: RequestContext = scope[CONTEXT_KEY]
        # Programs that ask for the list of models all day long are no news, unless their own trace goes on here.
        chosen = self._chosen() and not isinstance(context.request, ModelInfoRequest)
        trace = begin(parent, state, chosen=chosen)
        return self._within(trace, context, partial(self.app, scope, receive, send))

    async def _within(self, trace: Trace, context: RequestContext, call_next: CallNext) -> None:
        token = CURRENT.set(trace)
        try:
            await call_next()
        finally:
            CURRENT.reset(token)
            if trace.sampled:
                self._record(context, trace)

"""Starts or joins the trace of a request, and records it at the end. Present only if tracing is on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from hostler.adapters.canonical import ModelInfoRequest
from hostler.gateway.asgi import CONTEXT_KEY, ASGIApp, Receive, Scope, Send
from hostler.gateway.context import RequestContext
from hostler.gateway.middleware.base import CallNext
from hostler.gateway.telemetry.tracing import CURRENT, Trace, start_trace


class TracingMiddleware:
    """Outside of all middleware that is timed. `should_sample` decides about traces that start here."""

    def __init__(
        self, app: ASGIApp, *, record: Callable[[RequestContext, Trace], None], should_sample: Callable[[], bool]
    ) -> None:
        self.app = app
        self._record = record
        self._should_sample = should_sample

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"] if name.startswith(b"trace")}
        parent, state = headers.get(b"traceparent", ""), headers.get(b"tracestate", "")
        context: RequestContext = scope[CONTEXT_KEY]
        # Clients poll model lists: these are recorded only within a trace of the client.
        sampled = self._should_sample() and not isinstance(context.request, ModelInfoRequest)
        trace = start_trace(parent, state, sampled=sampled)
        return self._traced(trace, context, partial(self.app, scope, receive, send))

    async def _traced(self, trace: Trace, context: RequestContext, call_next: CallNext) -> None:
        token = CURRENT.set(trace)
        try:
            await call_next()
        finally:
            CURRENT.reset(token)
            if trace.sampled:
                self._record(context, trace)

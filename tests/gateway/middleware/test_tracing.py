"""Tracing: the trace of a request, current while it runs and recorded when it has ended."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from fakes.requests import make_context

from hostler.adapters.canonical import ModelInfoRequest, Origin
from hostler.gateway.asgi import CONTEXT_KEY
from hostler.gateway.context import RequestContext
from hostler.gateway.middleware.tracing import TracingMiddleware
from hostler.gateway.telemetry.tracing import CURRENT, Trace

pytestmark = pytest.mark.anyio

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Traced:
    """A traced application: the trace that was current in it, and what was recorded."""

    def __init__(self, *, sampled: bool = True, fails: bool = False) -> None:
        self.current: Trace | None = None
        self.recorded: list[tuple[RequestContext, Trace]] = []
        self._fails = fails
        self.middleware = TracingMiddleware(
            self._app, record=lambda *ended: self.recorded.append(ended), should_sample=lambda: sampled
        )

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.current = CURRENT.get()
        if self._fails:
            raise LookupError

    async def run(self, context: RequestContext, *headers: tuple[bytes, bytes]) -> Trace:
        scope: Any = {CONTEXT_KEY: context, "headers": list(headers)}
        with anyio.CancelScope():
            try:
                await self.middleware(scope, None, None)  # type: ignore[arg-type]  # nothing is read or sent
            except LookupError:
                assert self._fails
        assert CURRENT.get() is None
        assert self.current is not None
        return self.current


async def test_a_clients_trace_is_joined_and_recorded() -> None:
    subject, context = Traced(sampled=False), make_context()
    trace = await subject.run(context, (b"traceparent", f"00-{TRACE}-{PARENT}-01".encode()), (b"tracestate", b"a=1"))
    assert (trace.trace_id, trace.parent_id, trace.state) == (TRACE, PARENT, "a=1")
    assert subject.recorded == [(context, trace)]


@pytest.mark.parametrize("sampled", [True, False])
async def test_a_trace_that_starts_here_is_recorded_if_it_is_sampled(sampled: bool) -> None:
    subject = Traced(sampled=sampled)
    trace = await subject.run(make_context())
    assert trace.parent_id is None
    assert len(subject.recorded) == sampled


async def test_a_failed_request_is_recorded() -> None:
    subject = Traced(fails=True)
    await subject.run(make_context())
    assert len(subject.recorded) == 1


async def test_lists_of_models_are_recorded_only_in_a_trace_of_the_client() -> None:
    request = ModelInfoRequest(origin=Origin(wire="openai", operation="models", body=b""), kind="models")
    subject = Traced()
    await subject.run(make_context(request))
    assert not subject.recorded
    await subject.run(make_context(request), (b"traceparent", f"00-{TRACE}-{PARENT}-01".encode()))
    assert len(subject.recorded) == 1

"""OpenTelemetry traces: W3C trace context, the spans of a request, and their export. Needs `hostler[otel]`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from hostler.adapters.base import WireRequest
from hostler.gateway.backends.transport import BackendResponse, Endpoint, Timeouts, Transport
from hostler.gateway.context import Attempt, RequestContext

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

logger = logging.getLogger(__name__)

#: Version "00": trace id, parent id, flags. Later versions may append fields, which are ignored.
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED = 0x01
_MAX_STATE = 512


class BackendCall(msgspec.Struct):
    """A request to a backend, sent `at`; `span_id` is the parent of the backend's own spans."""

    backend: str
    at: float
    span_id: str


class Trace(msgspec.Struct, eq=False):
    """The trace of a request in flight; ids in hexadecimal digits. `span_id` is the request's, `parent_id` the client's.

    A trace that is not `sampled` is passed on and not recorded. `state` is other systems' `tracestate`.
    """

    trace_id: str
    span_id: str
    sampled: bool
    parent_id: str | None = None
    state: str = ""
    calls: list[BackendCall] = msgspec.field(default_factory=list)

    def add_call(self, backend: str, at: float) -> list[tuple[str, str]]:
        """Record a request to a backend; returns the headers that propagate the trace."""
        call = BackendCall(backend, at, new_span_id())
        self.calls.append(call)
        headers = [("traceparent", f"00-{self.trace_id}-{call.span_id}-{'01' if self.sampled else '00'}")]
        if self.state:
            headers.append(("tracestate", self.state))
        return headers


#: The trace of the request that the current task serves.
CURRENT: ContextVar[Trace | None] = ContextVar("trace", default=None)


def start_trace(traceparent: str, tracestate: str, *, sampled: bool) -> Trace:
    """Join the client's trace, whose sampling decision counts, or start a new one if there is none or it is invalid."""
    found = _TRACEPARENT.fullmatch(traceparent.strip())
    if found is None or (found[1] == "00" and found[5]):
        return Trace(trace_id=secrets.token_hex(16), span_id=new_span_id(), sampled=sampled)
    plain = tracestate.isascii() and tracestate.isprintable() and len(tracestate) <= _MAX_STATE
    return Trace(
        trace_id=found[2],
        span_id=new_span_id(),
        sampled=bool(int(found[4], 16) & _SAMPLED),
        parent_id=found[3],
        state=tracestate.strip() if plain else "",
    )


def new_span_id() -> str:
    return secrets.token_hex(8)


class TracedTransport:
    """Adds `traceparent` to the requests of another transport; without `propagate` it only records them."""

    def __init__(self, inner: Transport, clock: Callable[[], float], *, propagate: bool) -> None:
        self._inner = inner
        self._clock = clock
        self._propagate = propagate

    def send(
        self, request: WireRequest, endpoint: Endpoint, timeouts: Timeouts
    ) -> AbstractAsyncContextManager[BackendResponse]:
        """See `Transport.send`."""
        trace = CURRENT.get()
        if trace is not None:
            headers = trace.add_call(endpoint.name, self._clock())
            if self._propagate:
                request = msgspec.structs.replace(request, headers=(*request.headers, *headers))
        return self._inner.send(request, endpoint, timeouts)

    def close_idle(self, endpoint: Endpoint) -> None:
        """See `Transport.close_idle`."""
        self._inner.close_idle(endpoint)

    def close_all(self, endpoint: Endpoint) -> None:
        """See `Transport.close_all`."""
        self._inner.close_all(endpoint)

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        await self._inner.aclose()


Value = str | int | float | bool


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """`start` and `end` in seconds since the epoch. `kind`: `server`, `client` or `internal`. `error` is empty if it
    succeeded."""

    name: str
    span_id: str
    parent_id: str | None
    start: float
    end: float
    kind: str = "internal"
    error: str = ""
    attributes: Mapping[str, Value] = {}


def spans_of(context: RequestContext, trace: Trace, *, now: float, wall: float) -> list[Span]:
    """The spans of a request that ends `now`, the request's own first; `wall` is the same time since the epoch."""
    offset = wall - now
    spans = [_request_span(context, trace, context.started_at + offset, wall)]
    calls = list(trace.calls)
    for number, attempt in enumerate(context.attempts, start=1):
        # An attempt may make several calls: after a stale connection, or to retry without an unsupported option.
        end = attempt.started_at + attempt.seconds
        own = [call for call in calls if attempt.started_at <= call.at <= end]
        spans += _attempt_spans(trace, attempt, number, own, offset)
    return spans


def _request_span(context: RequestContext, trace: Trace, start: float, end: float) -> Span:
    attempt = context.attempt
    usage, target = (None, None) if attempt is None else (attempt.usage, attempt.target)
    attributes: dict[str, Value | None] = {
        "gen_ai.operation.name": _OPERATIONS.get(context.operation.name, context.operation.name),
        "gen_ai.request.model": context.requested_model,
        "gen_ai.response.model": context.model,
        "gen_ai.usage.input_tokens": usage.prompt_tokens if usage else None,
        "gen_ai.usage.output_tokens": usage.completion_tokens if usage else None,
        "gen_ai.response.finish_reasons": None if attempt is None else attempt.finish,
        "http.response.status_code": context.writer.status or None,
        "hostler.request.id": context.id,
        "hostler.protocol": context.adapter.name,
        "hostler.client": context.client.name,
        "hostler.outcome": context.outcome,
        "hostler.backend": target.backend if target else None,
        "hostler.hop": context.hop if target else None,
        "hostler.reason": context.reason or None,
        "hostler.cost_usd": context.cost,
    }
    return Span(
        name=" ".join(filter(None, (context.operation.name, context.model))),
        span_id=trace.span_id,
        parent_id=trace.parent_id,
        start=start,
        end=end,
        kind="server",
        error=context.reason or context.outcome if context.outcome in ("failed", "broken") else "",
        attributes={name: value for name, value in attributes.items() if value is not None},
    )


def _attempt_spans(
    trace: Trace, attempt: Attempt, number: int, calls: Sequence[BackendCall], offset: float
) -> list[Span]:
    start, end = attempt.started_at + offset, attempt.started_at + attempt.seconds + offset
    span_id = new_span_id()
    attributes: dict[str, Value] = {
        "hostler.backend": attempt.target.backend,
        "gen_ai.request.model": attempt.target.model,
    }
    succeeded = attempt.outcome in ("answered", "moved", "client_disconnected", "cancelled", "stopped")
    spans = [
        Span(
            name=f"attempt {number} {attempt.target.backend}", span_id=span_id, parent_id=trace.span_id, start=start, end=end,
            error="" if succeeded else attempt.outcome, attributes={**attributes, "hostler.outcome": attempt.outcome},
        )
    ]  # fmt: skip
    at = start
    for name, seconds in (("queue", attempt.queue_s), ("switch", attempt.switch_s)):
        if seconds > 0:
            spans.append(
                Span(name=name, span_id=new_span_id(), parent_id=span_id, start=at, end=min(end, at + seconds))
            )
            at += seconds
    for call, following in zip_longest(calls, calls[1:]):
        until = end if following is None else following.at + offset
        spans.append(
            Span(
                name=f"call {call.backend}", span_id=call.span_id, parent_id=span_id, start=call.at + offset, end=until,
                kind="client", attributes=attributes,
            )
        )  # fmt: skip
    if calls and attempt.first_token_at is not None:
        sent, first = calls[-1], attempt.first_token_at + offset
        spans.append(
            Span(name="prefill", span_id=new_span_id(), parent_id=sent.span_id, start=sent.at + offset, end=first)
        )
        spans.append(
            Span(name="generation", span_id=new_span_id(), parent_id=sent.span_id, start=first, end=max(first, end))
        )
    return spans


#: OpenTelemetry's names of operations.
_OPERATIONS = {"chat": "chat", "completions": "text_completion", "embeddings": "embeddings"}


#: Time for the last export when the gateway stops, in seconds; the rest is dropped.
_FLUSH_S = 2.0
#: Timeout of one export, in seconds; further spans wait in a bounded queue.
_EXPORT_TIMEOUT_S = 5.0


class MissingExtra(Exception):
    """OpenTelemetry's packages are not installed."""


def require_extra() -> None:
    """Raises `MissingExtra` if the extra is not installed."""
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace.export  # noqa: F401 - only whether it is installed
    except ImportError as error:
        raise MissingExtra(str(error)) from error


class TracingOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The collector, and `sample`, the fraction of traces started here that are recorded."""

    endpoint: str
    headers: Mapping[str, str] = {}
    service: str = "hostler"
    sample: float = 1.0


class Tracer:
    """Exports requests as spans, without ever waiting for the collector. Raises `MissingExtra`."""

    def __init__(
        self,
        options: TracingOptions,
        clock: Callable[[], float],
        *,
        version: str,
        exporter: SpanExporter | None = None,
        wall: Callable[[], float] = time.time,
        draw: Callable[[], float] = random.random,
    ) -> None:
        require_extra()
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        self._clock = clock
        self._wall = wall
        self._draw = draw
        self._sample = options.sample
        self._resource = Resource.create({"service.name": options.service, "service.version": version})
        self._scope = InstrumentationScope("hostler", version)
        if exporter is None:
            exporter = OTLPSpanExporter(
                endpoint=options.endpoint, headers=dict(options.headers), timeout=_EXPORT_TIMEOUT_S
            )
        self._processor = BatchSpanProcessor(exporter, schedule_delay_millis=1000)

    def should_sample(self) -> bool:
        """Whether to record a trace that starts here."""
        return self._sample >= 1.0 or self._draw() < self._sample

    def record(self, context: RequestContext, trace: Trace) -> None:
        """Export a finished request. Never waits."""
        try:
            for span in spans_of(context, trace, now=self._clock(), wall=self._wall()):
                self._processor.on_end(self._readable(span, trace))
        except Exception:
            # An error here costs the span, not the answer.
            logger.exception("%s: cannot record spans", context.id)

    async def aclose(self) -> None:
        """Export the remaining spans, within `_FLUSH_S`."""
        loop, closed = asyncio.get_running_loop(), anyio.Event()

        def close() -> None:
            self._close()
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(closed.set)

        # The SDK keeps its own limits only once it is connected: looking up the collector's name may take a minute.
        threading.Thread(target=close, name="last spans", daemon=True).start()
        with anyio.move_on_after(_FLUSH_S):
            await closed.wait()

    def _close(self) -> None:
        self._processor.force_flush(round(_FLUSH_S * 1000))
        self._processor.shutdown()  # type: ignore[no-untyped-call]  # the SDK leaves it untyped

    def _readable(self, span: Span, trace: Trace) -> ReadableSpan:
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

        def context(span_id: str) -> SpanContext:
            return SpanContext(
                trace_id=int(trace.trace_id, 16),
                span_id=int(span_id, 16),
                is_remote=span_id == trace.parent_id,
                trace_flags=TraceFlags(TraceFlags.SAMPLED),
            )

        attributes: dict[str, Any] = dict(span.attributes)
        return ReadableSpan(
            name=span.name,
            context=context(span.span_id),
            parent=None if span.parent_id is None else context(span.parent_id),
            kind=SpanKind[span.kind.upper()],
            attributes=attributes,
            status=Status(StatusCode.ERROR, span.error) if span.error else Status(),
            start_time=round(span.start * 1e9),
            end_time=round(max(span.start, span.end) * 1e9),
            resource=self._resource,
            instrumentation_scope=self._scope,
        )

"""Spans on their way to an OpenTelemetry collector, by a thread of their own. Needs the extra `hostler[otel]`."""

from __future__ import annotations

import logging
import random
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import msgspec

from hostler.adapters.base import WireRequest
from hostler.gateway.backends.base import Answer, Endpoint, Timeouts, Transport
from hostler.gateway.context import Attempt, RequestContext

#: version "00": trace, parent, flags. Later versions may say more behind it, which is none of our business.
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED = 0x01
_LONGEST_STATE = 512


class Call(msgspec.Struct):
    """A request to a backend: when it was sent, and the span that it is to be part of there."""

    backend: str
    at: float
    span: str


class Trace(msgspec.Struct, eq=False):
    """The trace of a request on its way. `parent` is the client's span, `span` our own; all in hexadecimal digits.

    One that is not `sampled` is passed on and not recorded. `state` is what other systems say among themselves.
    """

    trace: str
    span: str
    sampled: bool
    parent: str | None = None
    state: str = ""
    calls: list[Call] = msgspec.field(default_factory=list)

    def call(self, backend: str, at: float) -> list[tuple[str, str]]:
        """A request goes to a backend: the headers that tell it of the trace."""
        call = Call(backend, at, new_span())
        self.calls.append(call)
        headers = [("traceparent", f"00-{self.trace}-{call.span}-{'01' if self.sampled else '00'}")]
        if self.state:
            headers.append(("tracestate", self.state))
        return headers


#: The trace of the request that this task is at.
CURRENT: ContextVar[Trace | None] = ContextVar("trace", default=None)


def begin(traceparent: str, tracestate: str, *, chosen: bool) -> Trace:
    """The trace that a client names, or a new one if it names none that can be understood.

    Whether it is recorded is the client's decision, and `chosen` for one that begins here.
    """
    found = _TRACEPARENT.fullmatch(traceparent.strip())
    if found is None or (found[1] == "00" and found[5]):
        return Trace(trace=secrets.token_hex(16), span=new_span(), sampled=chosen)
    plain = tracestate.isascii() and tracestate.isprintable() and len(tracestate) <= _LONGEST_STATE
    return Trace(
        trace=found[2],
        span=new_span(),
        sampled=bool(int(found[4], 16) & _SAMPLED),
        parent=found[3],
        state=tracestate.strip() if plain else "",
    )


def new_span() -> str:
    """An id that nobody else has."""
    return secrets.token_hex(8)


class TracedTransport:
    """Another transport, with `traceparent` in each request. `told`: whether the other side may know of it."""

    def __init__(self, inner: Transport, clock: Callable[[], float], *, told: bool) -> None:
        self._inner = inner
        self._clock = clock
        self._told = told

    def send(self, request: WireRequest, endpoint: Endpoint, timeouts: Timeouts) -> AbstractAsyncContextManager[Answer]:
        """See `Transport.send`."""
        trace = CURRENT.get()
        if trace is not None:
            headers = trace.call(endpoint.name, self._clock())
            if self._told:
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
    """A stretch of time; `began` and `ended` in seconds since the epoch. `kind`: `server`, `client` or `internal`."""

    name: str
    span: str
    parent: str | None
    began: float
    ended: float
    kind: str = "internal"
    failed: str = ""
    attributes: Mapping[str, Value] = {}


def spans_of(context: RequestContext, trace: Trace, *, now: float, wall: float) -> list[Span]:
    """The spans of a request that ends `now`, which is `wall` on the clock of the wall; the request itself first."""
    offset = wall - now
    spans = [_request(context, trace, context.started_at + offset, wall)]
    calls = list(trace.calls)
    for number, attempt in enumerate(context.attempts, start=1):
        # One attempt may need several calls: a stale connection, or a request that is said in another way.
        end = attempt.started_at + attempt.seconds
        own = [call for call in calls if attempt.started_at <= call.at <= end]
        spans += _attempt(trace, attempt, number, own, offset)
    return spans


def _request(context: RequestContext, trace: Trace, began: float, ended: float) -> Span:
    attempt = context.attempt
    usage, target = (None, None) if attempt is None else (attempt.usage, attempt.target)
    told: dict[str, Value | None] = {
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
        span=trace.span,
        parent=trace.parent,
        began=began,
        ended=ended,
        kind="server",
        failed=context.reason or context.outcome if context.outcome in ("failed", "broken") else "",
        attributes={name: value for name, value in told.items() if value is not None},
    )


def _attempt(trace: Trace, attempt: Attempt, number: int, calls: Sequence[Call], offset: float) -> list[Span]:
    began, ended = attempt.started_at + offset, attempt.started_at + attempt.seconds + offset
    own = new_span()
    where: dict[str, Value] = {"hostler.backend": attempt.target.backend, "gen_ai.request.model": attempt.target.model}
    good = attempt.outcome in ("answered", "client_disconnected", "cancelled", "stopped")
    spans = [
        Span(
            name=f"attempt {number} {attempt.target.backend}", span=own, parent=trace.span, began=began, ended=ended,
            failed="" if good else attempt.outcome, attributes={**where, "hostler.outcome": attempt.outcome},
        )
    ]  # fmt: skip
    at = began
    for name, seconds in (("queue", attempt.queue_s), ("switch", attempt.switch_s)):
        if seconds > 0:
            spans.append(Span(name=name, span=new_span(), parent=own, began=at, ended=min(ended, at + seconds)))
            at += seconds
    for call, following in zip_longest(calls, calls[1:]):
        until = ended if following is None else following.at + offset
        spans.append(
            Span(
                name=f"call {call.backend}", span=call.span, parent=own, began=call.at + offset, ended=until,
                kind="client", attributes=where,
            )
        )  # fmt: skip
    if calls and attempt.first_token_at is not None:
        sent, first = calls[-1], attempt.first_token_at + offset
        spans.append(Span(name="prefill", span=new_span(), parent=sent.span, began=sent.at + offset, ended=first))
        spans.append(Span(name="generation", span=new_span(), parent=sent.span, began=first, ended=max(first, ended)))
    return spans


#: What OpenTelemetry calls the operations that it knows.
_OPERATIONS = {"chat": "chat", "completions": "text_completion", "embeddings": "embeddings"}


logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

#: What has not reached the collector by then when the gateway stops is dropped, in seconds.
_LAST_S = 2.0
#: One export may take so long, in seconds; what comes meanwhile waits in a bounded queue, and nobody waits for it.
_EXPORT_S = 5.0


class MissingExtra(Exception):
    """OpenTelemetry's packages are not installed."""


def need() -> None:
    """Raises `MissingExtra` if there can be no traces here."""
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace.export  # noqa: F401 - to know that it is there
    except ImportError as error:
        raise MissingExtra(str(error)) from error


class TracingRules(msgspec.Struct, frozen=True, kw_only=True):
    """Where spans go, and which: `sample` is the share of the traces that begin here."""

    endpoint: str
    headers: Mapping[str, str] = {}
    service: str = "hostler"
    sample: float = 1.0


class Tracer:
    """Records requests as spans and sends them. Nothing waits for the collector: what it does not take in time is lost.

    Raises `MissingExtra`.
    """

    def __init__(
        self,
        rules: TracingRules,
        clock: Callable[[], float],
        *,
        version: str,
        exporter: SpanExporter | None = None,
        wall: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        need()
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        self._clock = clock
        self._wall = wall
        self._chance = chance
        self._sample = rules.sample
        self._resource = Resource.create({"service.name": rules.service, "service.version": version})
        self._scope = InstrumentationScope("hostler", version)
        if exporter is None:
            exporter = OTLPSpanExporter(endpoint=rules.endpoint, headers=dict(rules.headers), timeout=_EXPORT_S)
        self._processor = BatchSpanProcessor(exporter, schedule_delay_millis=1000)

    def chosen(self) -> bool:
        """Whether a trace that begins now is one of those to record."""
        return self._sample >= 1.0 or self._chance() < self._sample

    def record(self, context: RequestContext, trace: Trace) -> None:
        """A request has ended. Never waits."""
        try:
            for span in spans_of(context, trace, now=self._clock(), wall=self._wall()):
                self._processor.on_end(self._readable(span, trace))
        except Exception:
            # Whatever is wrong with a span costs the span, not the answer.
            logger.exception("%s: its spans could not be recorded", context.id)

    async def aclose(self) -> None:
        """Send what is left, as far as the collector takes it at once."""
        await anyio.to_thread.run_sync(self._close)

    def _close(self) -> None:
        self._processor.force_flush(round(_LAST_S * 1000))
        self._processor.shutdown()  # type: ignore[no-untyped-call]  # the SDK leaves it untyped

    def _readable(self, span: Span, trace: Trace) -> ReadableSpan:
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

        def context(number: str) -> SpanContext:
            return SpanContext(
                trace_id=int(trace.trace, 16),
                span_id=int(number, 16),
                is_remote=number == trace.parent,
                trace_flags=TraceFlags(TraceFlags.SAMPLED),
            )

        attributes: dict[str, Any] = dict(span.attributes)
        return ReadableSpan(
            name=span.name,
            context=context(span.span),
            parent=None if span.parent is None else context(span.parent),
            kind=SpanKind[span.kind.upper()],
            attributes=attributes,
            status=Status(StatusCode.ERROR, span.failed) if span.failed else Status(),
            start_time=round(span.began * 1e9),
            end_time=round(max(span.began, span.ended) * 1e9),
            resource=self._resource,
            instrumentation_scope=self._scope,
        )

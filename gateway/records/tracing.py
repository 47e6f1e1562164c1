"""Spans on their way to an OpenTelemetry collector, by a thread of their own. Needs the extra `hostler[otel]`."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import msgspec

from hostler.gateway.exchange import Exchange
from hostler.gateway.records.spans import Span, spans_of
from hostler.gateway.tracecontext import Trace

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

    def record(self, exchange: Exchange, trace: Trace) -> None:
        """A request has ended. Never waits."""
        try:
            for span in spans_of(exchange, trace, now=self._clock(), wall=self._wall()):
                self._processor.on_end(self._readable(span, trace))
        except Exception:
            # Whatever is wrong with a span costs the span, not the answer.
            logger.exception("%s: its spans could not be recorded", exchange.id)

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

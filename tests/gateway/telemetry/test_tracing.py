"""Trace context and the spans of a request."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import anyio
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from hostler.adapters.canonical import ChatRequest, Origin
from hostler.adapters.openai.adapter import OpenAIAdapter
from hostler.gateway.context import Attempt, Client, RequestContext, Target
from hostler.gateway.response import ResponseWriter
from hostler.gateway.telemetry.tracing import CURRENT, BackendCall, Trace, Tracer, TracingOptions, start_trace

pytestmark = pytest.mark.anyio

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{PARENT}-01"


@pytest.mark.parametrize(
    "text",
    ["", "x", f"00-{'0' * 32}-{PARENT}-01", f"00-{TRACE}-{'0' * 16}-01", f"ff-{TRACE}-{PARENT}-01", SAMPLED + "-more"],
)
def test_an_invalid_traceparent_starts_a_new_trace(text: str) -> None:
    trace = start_trace(text, "vendor=1", sampled=False)
    assert (trace.parent_id, trace.state, trace.sampled) == (None, "", False)
    assert trace.trace_id not in (TRACE, "0" * 32)


def test_a_later_version_of_traceparent_is_accepted() -> None:
    assert start_trace(f"01-{TRACE}-{PARENT}-01-more", "", sampled=False).trace_id == TRACE
    assert start_trace(SAMPLED, "evil\r\nheader: 1", sampled=False).state == ""


def context_of(*attempts: Attempt) -> RequestContext:
    adapter = OpenAIAdapter()
    request = ChatRequest(origin=Origin(wire="openai", operation="chat"), model="m")
    operation = next(each for each in adapter.operations if each.name == "chat")
    context = RequestContext(
        request_id="req-1", adapter=adapter, operation=operation, request=request, writer=ResponseWriter(None, list),  # type: ignore[arg-type]
        client=Client(name="anna"), started_at=100.0,
    )  # fmt: skip
    context.attempts += attempts
    context.attempt = attempts[-1]
    return context


async def test_spans_cover_the_time_of_each_phase() -> None:
    target = Target(backend="local", model="m", name_there="m")
    context = context_of(
        Attempt(target=target, seconds=1.0, outcome="unreachable", started_at=100.0),
        Attempt(
            target=target,
            seconds=8.0,
            outcome="answered",
            started_at=101.0,
            queue_s=1.5,
            switch_s=2.0,
            first_token_at=106.0,
        ),
    )
    trace = Trace(trace_id=TRACE, span_id="1" * 16, sampled=True, calls=[BackendCall("local", 104.5, "2" * 16)])
    exporter = InMemorySpanExporter()
    options = TracingOptions(endpoint="http://unused")
    tracer = Tracer(options, lambda: 110.0, version="1", exporter=exporter, wall=lambda: 1110.0)
    tracer.record(context, trace)
    await tracer.aclose()
    spans = {span.name: span for span in exporter.get_finished_spans()}

    def times(span: ReadableSpan) -> tuple[float, float]:
        assert span.start_time is not None
        assert span.end_time is not None
        return span.start_time / 1e9, span.end_time / 1e9

    assert {name: times(span) for name, span in spans.items()} == {
        "chat": (1100.0, 1110.0),
        "attempt 1 local": (1100.0, 1101.0),
        "attempt 2 local": (1101.0, 1109.0),
        "queue": (1101.0, 1102.5),
        "switch": (1102.5, 1104.5),
        "call local": (1104.5, 1109.0),
        "prefill": (1104.5, 1106.0),
        "generation": (1106.0, 1109.0),
    }


def test_a_fraction_of_traces_is_sampled() -> None:
    options = TracingOptions(endpoint="http://unused", sample=0.25)
    drawn = iter([0.2, 0.25, 0.9])
    tracer = Tracer(options, lambda: 0.0, version="1", exporter=InMemorySpanExporter(), draw=lambda: next(drawn))
    assert [tracer.should_sample() for _ in range(3)] == [True, False, False]
    tracer._close()


def test_there_is_no_trace_outside_of_a_request() -> None:
    assert CURRENT.get() is None


class SilentExporter(SpanExporter):
    """Waits for a collector whose name nothing resolves."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.ended = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.asked.set()
        self.ended.wait(60)
        return SpanExportResult.FAILURE


async def test_a_collector_that_cannot_be_reached_does_not_delay_the_end() -> None:
    exporter = SilentExporter()
    tracer = Tracer(TracingOptions(endpoint="http://unused"), lambda: 0.0, version="1", exporter=exporter)
    attempt = Attempt(target=Target(backend="local", model="m", name_there="m"))
    tracer.record(context_of(attempt), start_trace("", "", sampled=True))
    try:
        with anyio.fail_after(20):
            await tracer.aclose()
        assert exporter.asked.is_set()
    finally:
        exporter.ended.set()

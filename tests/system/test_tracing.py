"""Traces: the spans a collector receives, the client's trace that is joined, and nothing at all without tracing."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketStream
from fakes.fake_openrouter import FakeOpenRouter
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from system.fallback_chain import openai_backend, start_chain
from system.running_gateway import StartGateway

pytestmark = pytest.mark.anyio

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{PARENT}-01"


class Collector:
    """An OpenTelemetry collector: accepts OTLP over HTTP, and keeps the spans."""

    def __init__(self) -> None:
        self.url = ""
        self.spans: list[dict[str, Any]] = []
        self.resources: list[dict[str, Any]] = []
        self.headers: list[str] = []

    async def serve(self, stream: SocketStream) -> None:
        data = b""
        async with stream:
            while b"\r\n\r\n" not in data:
                data += await stream.receive()
            head, _, body = data.partition(b"\r\n\r\n")
            self.headers.append(head.decode().lower())
            length = int(self.headers[-1].partition("content-length: ")[2].split("\r\n")[0])
            while len(body) < length:
                body += await stream.receive()
            await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append(MessageToDict(resource.resource))
            self.spans += [MessageToDict(span) for scope in resource.scope_spans for span in scope.spans]

    async def until(self, count: int) -> None:
        with anyio.fail_after(20):
            while len(self.spans) < count:  # noqa: ASYNC110 - another thread sends them
                await anyio.sleep(0.01)


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    collector = Collector()
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        collector.url = f"http://127.0.0.1:{listener.listeners[0].extra(anyio.abc.SocketAttribute.local_port)}"  # type: ignore[attr-defined]
        tasks.start_soon(listener.serve, collector.serve)
        yield collector
        tasks.cancel_scope.cancel()


def named(spans: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (found,) = [span for span in spans if span["name"] == name]
    return found


def attributes(span: dict[str, Any]) -> dict[str, Any]:
    return {each["key"]: next(iter(each["value"].values())) for each in span.get("attributes", ())}


async def test_a_collector_gets_a_request_with_its_attempts_as_children(start_gateway: StartGateway) -> None:
    async with collecting() as collector:
        tracing = {"endpoint": f"{collector.url}/v1/traces", "headers": {"x-team": "home"}, "service": "gateway-1"}
        async with start_gateway({"a": {}, "b": {}}, gateway={"tracing": tracing}) as gateway:
            await gateway.chat("a")
            await gateway.chat("b")
            await collector.until(12)
    ours = [span for span in collector.spans if span["traceId"] == named(collector.spans, "chat b")["traceId"]]
    request, attempt, call = named(ours, "chat b"), named(ours, "attempt 1 local"), named(ours, "call local")
    assert "parentSpanId" not in request
    assert attempt["parentSpanId"] == request["spanId"]
    assert named(ours, "switch")["parentSpanId"] == call["parentSpanId"] == attempt["spanId"]
    assert named(ours, "prefill")["parentSpanId"] == named(ours, "generation")["parentSpanId"] == call["spanId"]
    assert (request["kind"], call["kind"]) == ("SPAN_KIND_SERVER", "SPAN_KIND_CLIENT")
    for span in ours:
        assert int(request["startTimeUnixNano"]) <= int(span["startTimeUnixNano"]) <= int(span["endTimeUnixNano"])
        assert int(span["endTimeUnixNano"]) <= int(request["endTimeUnixNano"])
    values = attributes(request)
    assert (values["gen_ai.request.model"], values["hostler.backend"], values["hostler.outcome"]) == (
        "b",
        "local",
        "ok",
    )
    assert int(values["gen_ai.usage.output_tokens"]) > 0
    assert "Hello" not in json.dumps(collector.spans)
    assert {"key": "service.name", "value": {"stringValue": "gateway-1"}} in collector.resources[0]["attributes"]
    assert "x-team: home" in collector.headers[0]


async def test_a_clients_trace_is_passed_on_to_local_backends_only(
    tmp_path: Path, cloud: FakeOpenRouter, lan: FakeOpenRouter
) -> None:
    async with collecting() as collector:
        backends = {"cloud": openai_backend(cloud, local=False), "lan": openai_backend(lan)}
        cloud.default = (500,)
        async with start_chain(tmp_path, backends, gateway={"tracing": {"endpoint": collector.url}}) as chain:
            await chain.chat(headers={"traceparent": SAMPLED, "tracestate": "vendor=1"})
            await collector.until(1)
    assert all("traceparent" not in asked.headers for asked in cloud.requests)
    version, trace, span, flags = lan.requests[0].headers["traceparent"].split("-")
    assert (version, trace, flags, lan.requests[0].headers["tracestate"]) == ("00", TRACE, "01", "vendor=1")
    ids = {each["name"]: each for each in collector.spans}

    def readable(text: str) -> str:
        return base64.b64decode(text).hex()

    assert readable(ids["call lan"]["spanId"]) == span
    assert readable(ids["chat m"]["parentSpanId"]) == PARENT
    assert readable(ids["chat m"]["traceId"]) == TRACE
    assert ids["attempt 1 cloud"]["status"]["code"] == "STATUS_CODE_ERROR"
    assert ids["attempt 1 cloud"]["status"]["message"] == "server_error"
    assert ids["attempt 3 lan"].get("status", {}) == {}


async def test_a_trace_is_passed_on_to_clouds_if_configured(tmp_path: Path, cloud: FakeOpenRouter) -> None:
    tracing = {"endpoint": "http://127.0.0.1:9/v1/traces", "to_clouds": True}
    async with start_chain(
        tmp_path, {"cloud": openai_backend(cloud, local=False)}, gateway={"tracing": tracing}
    ) as chain:
        await chain.chat(headers={"traceparent": SAMPLED})
    assert cloud.requests[0].headers["traceparent"].startswith(f"00-{TRACE}-")


async def test_an_unsampled_trace_is_passed_on_and_not_recorded(tmp_path: Path, lan: FakeOpenRouter) -> None:
    async with (
        collecting() as collector,
        start_chain(tmp_path, {"lan": openai_backend(lan)}, gateway={"tracing": {"endpoint": collector.url}}) as chain,
    ):
        await chain.chat(headers={"traceparent": SAMPLED[:-1] + "0"})
        await chain.chat()
        await collector.until(1)
    assert lan.requests[0].headers["traceparent"].endswith("-00")
    assert len({span["traceId"] for span in collector.spans}) == 1
    assert len([span for span in collector.spans if span["kind"] == "SPAN_KIND_SERVER"]) == 1


async def test_an_unreachable_collector_costs_no_answer(tmp_path: Path, lan: FakeOpenRouter) -> None:
    tracing = {"endpoint": "http://127.0.0.1:9/v1/traces"}
    async with start_chain(tmp_path, {"lan": openai_backend(lan)}, gateway={"tracing": tracing}) as chain:
        for _ in range(5):
            assert (await chain.chat()).status_code == 200


async def test_without_tracing_nothing_is_imported_or_sent(tmp_path: Path, lan: FakeOpenRouter) -> None:
    async with start_chain(tmp_path, {"lan": openai_backend(lan)}) as chain:
        await chain.chat(headers={"traceparent": SAMPLED})
    assert "traceparent" not in lan.requests[0].headers
    program = "import sys, hostler.gateway.app; sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    assert (await anyio.to_thread.run_sync(subprocess.run, [sys.executable, "-c", program])).returncode == 0


async def test_model_lists_start_no_traces(start_gateway: StartGateway) -> None:
    async with collecting() as collector:
        async with start_gateway({"a": {}}, gateway={"tracing": {"endpoint": collector.url}}) as gateway:
            await gateway.http.get("/v1/models")
            await gateway.chat("a")
            await collector.until(1)
            await gateway.http.get("/v1/models", headers={"traceparent": SAMPLED})
        kinds = [span["name"] for span in collector.spans if span["kind"] == "SPAN_KIND_SERVER"]
    assert kinds == ["chat a", "models"]


async def test_without_the_extra_the_error_names_the_package(tmp_path: Path) -> None:
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").write_text("raise ImportError")
    path = tmp_path / "hostler.yaml"
    backends = {"lan": {"kind": "llamacpp", "url": "http://127.0.0.1:9", "models": {"m": "m"}}}
    gateway = {"listen": ["127.0.0.1:0"], "tracing": {"endpoint": "http://127.0.0.1:9/v1/traces"}}
    path.write_text(json.dumps({"gateway": gateway, "backends": backends}))
    command = [sys.executable, "-m", "hostler.gateway", "gateway", "--config", str(path)]
    shadowed = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])

    def start() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env={**os.environ, "PYTHONPATH": shadowed}, capture_output=True, text=True)

    done = await anyio.to_thread.run_sync(start)
    assert done.returncode != 0
    assert "pip install 'hostler[otel]'" in done.stderr
    assert "Traceback" not in done.stderr

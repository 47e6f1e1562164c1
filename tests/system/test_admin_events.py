"""What the dashboard reads: events, logs, history, figures, forecasts."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from system.running_gateway import StartGateway, remote_supervisor

pytestmark = pytest.mark.anyio


async def frames(answer: httpx.Response) -> AsyncIterator[tuple[str, Any]]:
    """The events of a stream as name and JSON."""
    name = ""
    async for line in answer.aiter_lines():
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            yield name, json.loads(line[6:])


async def until_lines(answer: httpx.Response, text: str) -> list[dict[str, Any]]:
    """The lines of a log up to one that contains this text."""
    lines: list[dict[str, Any]] = []
    with anyio.fail_after(20):
        async for name, data in frames(answer):
            if name == "lines":
                lines += data
            if any(text in line["text"] for line in lines):
                return lines
    raise AssertionError(f"{text!r} is not among {lines}")


async def test_requests_in_flight_are_sent_to_readers_of_events(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"script": {"chunks": 400, "chunk_delay": 0.05}}}) as gateway:
        async with gateway.http.stream("GET", "/events") as events, gateway.stream("a", key=None):
            with anyio.fail_after(20):
                async for name, data in frames(events):
                    if name == "update" and data["in_flight"] and data["in_flight"][0]["phase"] == "generating":
                        break
            flight, host = data["in_flight"][0], data["hosts"][0]
        assert (flight["model"], flight["backend"], flight["protocol"]) == ("a", "local", "openai")
        assert (host["engines"][0]["running"], host["serving"]) == (1, 1)


async def test_the_status_shows_when_an_idle_model_will_be_unloaded(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"ttl_s": 100}}) as gateway:
        await gateway.chat("a")
        status = await gateway.status()
        engine = status["hosts"][0]["engines"][0]
        assert 90 < engine["idle_until"] - status["at"] <= 101


async def test_the_history_can_be_read(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}}) as gateway:
        await gateway.chat("a")
        await gateway.http.get("/v1/models")
        requests = (await gateway.http.get("/admin/history", params={"kind": "requests"})).json()
        switches = (await gateway.http.get("/admin/history", params={"kind": "switches"})).json()
        assert [each["event"]["model"] for each in requests] == ["a"]
        assert [each["event"]["switch"]["phase"] for each in switches] == ["ready"]
        buckets = (await gateway.http.get("/admin/figures", params={"minutes": "5", "buckets": "5"})).json()
        assert [each["requests"] for each in buckets] == [0, 0, 0, 0, 1]
        assert (await gateway.http.get("/admin/history", params={"kind": "prompts"})).status_code == 404
        assert (await gateway.http.get("/admin/history", params={"limit": "many"})).status_code == 400


async def test_a_forecast_shows_what_a_switch_would_mean(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}, "b": {}}) as gateway:
        await gateway.chat("a")
        forecast = (await gateway.http.get("/admin/forecast", params={"model": "b"})).json()
        assert forecast["hosts"]["local"]["stops"] == ["a"]
        assert gateway.starts() == ["a"]
        assert (await gateway.http.get("/admin/forecast", params={"model": "x"})).status_code == 404


async def test_logs_of_an_engine_are_followed(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"script": {"stderr": "hello from the engine\n"}}}) as gateway:
        where = {"backend": "local", "model": "a"}
        async with gateway.http.stream("GET", "/admin/logs", params=where) as log:
            await gateway.chat("a")
            await until_lines(log, "hello from the engine")


async def test_logs_of_an_engine_on_another_machine_are_followed(start_gateway: StartGateway, tmp_path: Path) -> None:
    profiles = {"a": {"script": {"stderr": "hello from afar\n"}}}
    async with (
        remote_supervisor(tmp_path / "far", profiles) as far,
        start_gateway({}, backends={"far": far.backend}) as gateway,
    ):
        await gateway.chat("a")
        where = {"backend": "far", "model": "a"}
        async with gateway.http.stream("GET", "/admin/logs", params=where) as log:
            await until_lines(log, "hello from afar")


async def test_the_gateways_own_log_is_followed(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"script": {"exit_code": 1}}}) as gateway:
        await gateway.chat("a")
        async with gateway.http.stream("GET", "/admin/logs") as log:
            lines = await until_lines(log, "loading a failed")
        assert lines[-1]["level"] == "warning"
        unknown = await gateway.http.get("/admin/logs", params={"backend": "x", "model": "a"})
        assert unknown.status_code == 404


async def test_prompts_and_answers_are_recorded_nowhere(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    asked, answered = "a-very-private-question", "a-very-private-answer"
    caplog.set_level("DEBUG", logger="hostler")
    async with start_gateway({"a": {"script": {"text": answered}}}) as gateway:
        messages = [{"role": "user", "content": asked}]
        assert answered in (await gateway.chat("a", messages=messages)).text
        texts = [
            (await gateway.http.get(path)).text
            for path in ("/admin/history", "/admin/history?kind=switches", "/admin/status", "/metrics")
        ]
    for text in (*texts, caplog.text):
        assert asked not in text
        assert answered not in text

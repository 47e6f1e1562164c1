"""The gateway's own routes: health, metrics, status, events and actions."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import anyio
import httpx
import pytest
from system.running_gateway import StartGateway

from hostler.gateway.auth import keys

pytestmark = pytest.mark.anyio


def value(text: str, start: str) -> float:
    """The sum of all samples whose line begins like this."""
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(start))


async def test_metrics_count_requests_switches_and_states(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}, "b": {}}) as gateway:
        await gateway.chat("a")
        await gateway.chat("b")
        await gateway.chat("no-such-model")
        text = (await gateway.http.get("/metrics")).text
    assert value(text, 'gen_ai_server_request_duration_seconds_count{backend="local"') == 2
    assert value(text, 'gen_ai_client_token_usage_count{backend="local",model="a",type="output"}') == 1
    assert value(text, "hostler_switch_duration_seconds_count") == 2
    assert value(text, 'hostler_switch_duration_seconds_count{backend="local",from="a",outcome="ready",to="b"}') == 1
    assert value(text, 'hostler_model_state{backend="local",model="b",state="ready"}') == 1
    assert value(text, "hostler_queue_depth") == 0
    assert "no-such-model" not in text


async def test_refusals_are_counted_by_reason(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"script": {"ready_after": 0.3}}}, gateway={"queue": {"max_waiting": 1}}) as gateway:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(gateway.chat, "a")
        text = (await gateway.http.get("/metrics")).text
    assert value(text, 'hostler_rejected_total{reason="queue_full"}') == 2


async def test_events_begin_with_a_snapshot(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}}) as gateway, gateway.http.stream("GET", "/events") as answer:
        lines = answer.aiter_lines()
        assert await anext(lines) == "event: snapshot"
        snapshot = json.loads((await anext(lines)).removeprefix("data: "))
        assert [model["name"] for model in snapshot["models"]] == ["a"]
        await gateway.chat("a")
        with anyio.fail_after(20):
            async for line in lines:
                if line == "event: request":
                    break
        finished = json.loads((await anext(lines)).removeprefix("data: "))
        assert finished["model"] == "a"
        assert finished["outcome"] == "ok"


async def test_an_operator_loads_and_unloads(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}}) as gateway:
        assert (await gateway.http.post("/admin/load", json={"model": "a"})).json()["state"] == "loaded"
        assert gateway.starts() == ["a"]
        assert (await gateway.http.post("/admin/unload", json={"model": "a"})).status_code == 200
        await gateway.until(lambda: gateway.events("stop"))
        unknown = await gateway.http.post("/admin/load", json={"model": "x"})
        assert unknown.status_code == 404
        assert "`x`" in unknown.json()["error"]["message"]


async def test_the_root_redirects_browsers_and_answers_others_in_text(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}}) as gateway:
        assert (await gateway.http.get("/")).text == "Ollama is running"
        browser = await gateway.http.get("/", headers={"Accept": "text/html"}, follow_redirects=True)
        assert "<h1>Hostler" in browser.text


async def test_an_engines_own_metrics_are_served_only_while_it_runs(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}}) as gateway:
        asleep = await gateway.http.get("/metrics", params={"model": "a"})
        assert asleep.status_code == 503
        assert gateway.starts() == []
        await gateway.chat("a")
        await gateway.http.get("/metrics", params={"model": "a"})
        asked = [note["path"] for note in gateway.events("request") if note["method"] == "GET"]
        assert any(path.startswith("/metrics") for path in asked)


async def test_llama_servers_health_check_needs_no_key_and_reveals_nothing(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    keys.add(tmp_path / "keys", "bob", ["infer"])
    async with start_gateway({"a": {}}, gateway={"api_keys_file": str(tmp_path / "keys")}) as gateway:
        for path in ("/health", "/v1/health"):
            assert (await gateway.http.get(path)).json() == {"status": "ok"}


async def test_ollama_clients_see_when_an_idle_model_will_be_unloaded(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"ttl_s": 600}, "b": {}}) as gateway:
        before = datetime.now(UTC)
        await gateway.chat("a")
        (running,) = (await gateway.http.get("/api/ps")).json()["models"]
        left = datetime.fromisoformat(running["expires_at"]) - before
        assert 590 < left.total_seconds() < 630
        await gateway.chat("b")
        (running,) = (await gateway.http.get("/api/ps")).json()["models"]
        assert datetime.fromisoformat(running["expires_at"]).year > 2300


@pytest.mark.parametrize("path", ["/admin/load", "/admin/unload", "/admin/cancel"])
async def test_the_body_of_an_action_is_limited(start_gateway: StartGateway, path: str) -> None:
    async with start_gateway({"a": {}}) as gateway:
        for pad, status in ((60 * 1024, 404), (200 * 1024, 413)):
            asked = json.dumps({"id" if path.endswith("cancel") else "model": "x" * pad}).encode()
            answer = await gateway.http.post(path, content=asked, headers={"Content-Type": "application/json"})
            assert answer.status_code == status, path
            assert len(answer.content) < 2000


@pytest.mark.parametrize("path", ["/admin/load", "/ui/login"])
async def test_an_endless_body_is_refused(start_gateway: StartGateway, tmp_path: Path, path: str) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 16 * 1024

    key = keys.add(tmp_path / "keys", "bob", ["operate"])
    async with start_gateway({"a": {}}, gateway={"api_keys_file": str(tmp_path / "keys")}) as gateway:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        with anyio.fail_after(20):
            try:
                answer = await gateway.http.post(path, content=endless(), headers=headers)
            except httpx.TransportError:
                answer = None  # closed while we were still sending
        assert answer is None or answer.status_code == 413


async def test_a_load_is_abandoned_when_its_client_disconnects(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"script": {"ready_after": 60.0}}}) as gateway:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(gateway.action, "load", model="a"))
            await gateway.until_counts(0, 1)
            tasks.cancel_scope.cancel()
        await gateway.until_counts(0, 0)

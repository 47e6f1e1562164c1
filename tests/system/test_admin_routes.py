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
from system.house import OpenHouse

from hostler.gateway.auth import keys

pytestmark = pytest.mark.anyio


def value(text: str, start: str) -> float:
    """The sum of all samples whose line begins like this."""
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(start))


async def test_metrics_count_requests_switches_and_states(open_house: OpenHouse) -> None:
    async with open_house({"a": {}, "b": {}}) as house:
        await house.chat("a")
        await house.chat("b")
        await house.chat("no-such-model")
        text = (await house.http.get("/metrics")).text
    assert value(text, 'gen_ai_server_request_duration_seconds_count{backend="local"') == 2
    assert value(text, 'gen_ai_client_token_usage_count{backend="local",model="a",type="output"}') == 1
    assert value(text, "hostler_switch_duration_seconds_count") == 2
    assert value(text, 'hostler_switch_duration_seconds_count{backend="local",from="a",outcome="ready",to="b"}') == 1
    assert value(text, 'hostler_model_state{backend="local",model="b",state="ready"}') == 1
    assert value(text, "hostler_queue_depth") == 0
    assert "no-such-model" not in text


async def test_refusals_are_counted_by_reason(open_house: OpenHouse) -> None:
    async with open_house({"a": {"script": {"ready_after": 0.3}}}, gateway={"queue": {"max_waiting": 1}}) as house:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(house.chat, "a")
        text = (await house.http.get("/metrics")).text
    assert value(text, 'hostler_rejected_total{reason="queue_full"}') == 2


async def test_events_begin_with_a_snapshot(open_house: OpenHouse) -> None:
    async with open_house({"a": {}}) as house, house.http.stream("GET", "/events") as answer:
        lines = answer.aiter_lines()
        assert await anext(lines) == "event: snapshot"
        snapshot = json.loads((await anext(lines)).removeprefix("data: "))
        assert [model["name"] for model in snapshot["models"]] == ["a"]
        await house.chat("a")
        with anyio.fail_after(5):
            async for line in lines:
                if line == "event: request":
                    break
        finished = json.loads((await anext(lines)).removeprefix("data: "))
        assert finished["model"] == "a"
        assert finished["outcome"] == "ok"


async def test_an_operator_loads_and_unloads(open_house: OpenHouse) -> None:
    async with open_house({"a": {}}) as house:
        assert (await house.http.post("/admin/load", json={"model": "a"})).json()["state"] == "loaded"
        assert house.starts() == ["a"]
        assert (await house.http.post("/admin/unload", json={"model": "a"})).status_code == 200
        await house.until(lambda: house.events("stop"))
        unknown = await house.http.post("/admin/load", json={"model": "x"})
        assert unknown.status_code == 404
        assert "`x`" in unknown.json()["error"]["message"]


async def test_the_root_redirects_browsers_and_answers_others_in_text(open_house: OpenHouse) -> None:
    async with open_house({"a": {}}) as house:
        assert (await house.http.get("/")).text == "Ollama is running"
        browser = await house.http.get("/", headers={"Accept": "text/html"}, follow_redirects=True)
        assert "<h1>Hostler" in browser.text


async def test_an_engines_own_metrics_are_served_only_while_it_runs(open_house: OpenHouse) -> None:
    async with open_house({"a": {}}) as house:
        asleep = await house.http.get("/metrics", params={"model": "a"})
        assert asleep.status_code == 503
        assert house.starts() == []
        await house.chat("a")
        await house.http.get("/metrics", params={"model": "a"})
        asked = [note["path"] for note in house.events("request") if note["method"] == "GET"]
        assert any(path.startswith("/metrics") for path in asked)


async def test_llama_servers_health_check_needs_no_key_and_reveals_nothing(
    open_house: OpenHouse, tmp_path: Path
) -> None:
    keys.add(tmp_path / "keys", "bob", ["infer"])
    async with open_house({"a": {}}, gateway={"api_keys_file": str(tmp_path / "keys")}) as house:
        for path in ("/health", "/v1/health"):
            assert (await house.http.get(path)).json() == {"status": "ok"}


async def test_ollama_clients_see_when_an_idle_model_will_be_unloaded(open_house: OpenHouse) -> None:
    async with open_house({"a": {"ttl_s": 600}, "b": {}}) as house:
        before = datetime.now(UTC)
        await house.chat("a")
        (running,) = (await house.http.get("/api/ps")).json()["models"]
        left = datetime.fromisoformat(running["expires_at"]) - before
        assert 590 < left.total_seconds() < 630
        await house.chat("b")
        (running,) = (await house.http.get("/api/ps")).json()["models"]
        assert datetime.fromisoformat(running["expires_at"]).year > 2300


@pytest.mark.parametrize("path", ["/admin/load", "/admin/unload", "/admin/cancel"])
async def test_the_body_of_an_action_is_limited(open_house: OpenHouse, path: str) -> None:
    async with open_house({"a": {}}) as house:
        for pad, status in ((60 * 1024, 404), (200 * 1024, 413)):
            asked = json.dumps({"id" if path.endswith("cancel") else "model": "x" * pad}).encode()
            answer = await house.http.post(path, content=asked, headers={"Content-Type": "application/json"})
            assert answer.status_code == status, path
            assert len(answer.content) < 2000


@pytest.mark.parametrize("path", ["/admin/load", "/ui/login"])
async def test_an_endless_body_is_refused(open_house: OpenHouse, tmp_path: Path, path: str) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 16 * 1024

    key = keys.add(tmp_path / "keys", "bob", ["operate"])
    async with open_house({"a": {}}, gateway={"api_keys_file": str(tmp_path / "keys")}) as house:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        with anyio.fail_after(10):
            try:
                answer = await house.http.post(path, content=endless(), headers=headers)
            except httpx.TransportError:
                answer = None  # closed while we were still sending
        assert answer is None or answer.status_code == 413


async def test_a_load_is_abandoned_when_its_client_disconnects(open_house: OpenHouse) -> None:
    async with open_house({"a": {"script": {"ready_after": 60.0}}}) as house:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(house.order, "load", model="a"))
            await house.until_counts(0, 1)
            tasks.cancel_scope.cancel()
        await house.until_counts(0, 0)

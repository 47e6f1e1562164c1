"""`GET /events`: a snapshot, then every change."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from system.running_gateway import RunningGateway, StartGateway, first_token

pytestmark = pytest.mark.anyio


async def parsed(lines: AsyncIterator[str]) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """The events of a stream as names and values."""
    name = ""
    async for line in lines:
        if line.startswith("event:"):
            name = line[6:].strip()
        elif line.startswith("data:"):
            yield name, json.loads(line[5:])


async def listen(gateway: RunningGateway, events: list[tuple[str, dict[str, Any]]]) -> None:
    async with gateway.http.stream("GET", "/events") as answer:
        async for event in parsed(answer.aiter_lines()):
            events.append(event)


async def test_events_start_with_a_snapshot_and_continue_with_queues_switches_and_requests(
    start_gateway: StartGateway,
) -> None:
    profiles = {"a": {"script": {"chunks": 20, "chunk_delay": 0.02}}, "b": {"script": {"ready_after": 0.2}}}
    async with start_gateway(profiles) as gateway:
        await gateway.chat("a")
        events: list[tuple[str, dict[str, Any]]] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen, gateway, events)
            await gateway.until(lambda: events)
            name, everything = events[0]
            assert name == "snapshot"
            assert {model["name"]: model["state"] for model in everything["models"]} == {"a": "loaded", "b": "unloaded"}
            async with gateway.stream("a") as running:
                lines = await first_token(running)
                tasks.start_soon(gateway.chat, "b")
                async for _ in lines:
                    pass
            await gateway.until(lambda: sum(name == "request" for name, _ in events) == 2)
            tasks.cancel_scope.cancel()
        queues = [value for name, value in events if name == "queue"]
        assert [each["model"] for each in queues[0]["waiting"]] == ["b"]
        assert queues[0]["waiting"][0]["position"] == 1
        assert queues[0]["serving"] == 1
        assert queues[-1]["waiting"] == []
        phases = [
            value["switch"]["phase"] for name, value in events if name == "switch" and value["switch"]["model"] == "b"
        ]
        assert list(dict.fromkeys(phases))[-1] == "ready"
        assert "loading" in phases
        states = [(v["status"]["model"], v["status"]["state"]) for name, v in events if name == "engine"]
        assert states.index(("a", "stopping")) < states.index(("a", "stopped")) < states.index(("b", "ready"))
        requests = {value["model"]: value for name, value in events if name == "request"}
        assert requests["b"]["outcome"] == "ok"
        assert requests["b"]["switch_s"] >= 0.2


async def test_a_request_for_a_loaded_model_with_a_free_slot_publishes_no_queue(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}}) as gateway:
        await gateway.chat("a")
        events: list[tuple[str, dict[str, Any]]] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen, gateway, events)
            await gateway.until(lambda: events)
            await gateway.chat("a")
            await gateway.until(lambda: any(name == "request" for name, _ in events))
            tasks.cancel_scope.cancel()
        assert not [name for name, _ in events if name == "queue"]

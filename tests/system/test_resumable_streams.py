"""A stream that names its conversation outlives its client's connection, and is resumed from a byte offset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fakes.flag_file import FlagFile
from system.running_gateway import RunningGateway, StartGateway, write_keys

pytestmark = pytest.mark.anyio

Flags = Callable[[str], FlagFile]

MESSAGES = [{"role": "user", "content": "Hello"}]
REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "Hello"},
    "/v1/responses": {"input": "Hello"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 9},
    "/api/chat": {"messages": MESSAGES},
    "/api/v1/chat": {"input": "Hello"},
    "/completion": {"prompt": "Hello"},
}
HEADERS = {"X-Conversation-Id": "c 1"}


async def start_and_leave(
    gateway: RunningGateway, path: str = "/v1/chat/completions", key: str | None = None
) -> tuple[bytes, httpx.Response]:
    """Begin a stream, disconnect after its first word, and return what has arrived by then."""
    arrived = b""
    headers = {**HEADERS, **({} if key is None else {"Authorization": f"Bearer {key}"})}
    body = {"model": "a", "stream": True, **REQUESTS[path]}
    async with gateway.http.stream("POST", path, json=body, headers=headers) as response:
        assert response.status_code == 200
        async for piece in response.aiter_raw():
            arrived += piece
            if b"word1" in arrived:
                break
    return arrived, response


async def lookup(gateway: RunningGateway, *ids: str, **more: Any) -> list[dict[str, Any]]:
    response = await gateway.http.post("/v1/streams/lookup", json={"conversation_ids": ids}, **more)
    found: list[dict[str, Any]] = response.json()
    return found


@pytest.mark.parametrize("path", REQUESTS)
async def test_a_stream_of_any_protocol_is_resumed_where_it_was_lost(
    start_gateway: StartGateway, flags: Flags, path: str
) -> None:
    last = flags("last")
    async with start_gateway({"a": {"script": {"chunks": 4, "last_when": last.path}}}) as gateway:
        arrived, first = await start_and_leave(gateway, path)
        (found,) = await lookup(gateway, "c 1", "unknown")
        assert (found["conversation_id"], found["is_done"], found["completed_at"]) == ("c 1", False, 0)
        params = {"conv_id": "c 1", "from": len(arrived)}
        rest = b""
        async with gateway.http.stream("GET", "/v1/stream", params=params) as response:
            assert response.headers["content-type"] == first.headers["content-type"]
            last.set()
            async for piece in response.aiter_raw():
                rest += piece
        whole = (await gateway.http.get("/v1/stream", params={"conv_id": "c 1"})).content
        (found,) = await lookup(gateway, "c 1")
        await gateway.until_counts(0, 0)
        history = (await gateway.http.get("/admin/history")).json()
    assert arrived + rest == whole
    assert all(f"word{number}".encode() in whole for number in range(4))
    assert (found["is_done"], found["total_bytes"]) == (True, len(whole))
    assert found["completed_at"] >= found["started_at"] > 0
    assert [each["event"]["outcome"] for each in history] == ["ok"]


async def test_a_stop_ends_the_request_and_forgets_its_stream(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"script": {"chunks": 50_000, "chunk_delay": 0.02}}}) as gateway:
        await start_and_leave(gateway)
        assert not gateway.events("gone")
        for _ in range(2):
            stopped = await gateway.http.delete("/v1/stream", params={"conv_id": "c 1"})
            assert (stopped.status_code, stopped.content) == (204, b"")
        await gateway.until(lambda: gateway.events("gone"))
        await gateway.until_counts(0, 0)
        assert await lookup(gateway, "c 1") == []
        assert (await gateway.http.get("/v1/stream", params={"conv_id": "c 1"})).status_code == 404


async def test_a_gateway_that_stops_does_not_wait_for_streams_without_any_client(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"script": {"chunks": 50_000, "chunk_delay": 0.02}}}) as gateway:
        await start_and_leave(gateway)
        gateway.app.stop()
        with anyio.fail_after(10):  # `drain_s` is 30
            await gateway.until(lambda: gateway.events("gone"))


async def test_a_new_stream_of_a_conversation_takes_the_place_of_the_last(
    start_gateway: StartGateway, flags: Flags
) -> None:
    last = flags("last")
    profile = {"parallel": 2, "script": {"chunks": 4, "last_when": last.path}}
    async with start_gateway({"a": profile}) as gateway:
        await start_and_leave(gateway)
        await start_and_leave(gateway, "/api/chat")
        await gateway.until(lambda: gateway.events("gone"))
        last.set()
        whole = await gateway.http.get("/v1/stream", params={"conv_id": "c 1"})
    assert whole.headers["content-type"] == "application/x-ndjson"
    assert whole.content.endswith(b"}\n")


async def test_streams_belong_to_a_key(start_gateway: StartGateway, flags: Flags, tmp_path: Path) -> None:
    last = flags("last")
    file, keys = write_keys(tmp_path, anna=0, ben=0)
    async with start_gateway(
        {"a": {"script": {"chunks": 4, "last_when": last.path}}}, gateway={"api_keys_file": file}
    ) as gateway:
        anna, ben = ({"Authorization": f"Bearer {key}"} for key in keys.values())
        await start_and_leave(gateway, key=keys["anna"])
        assert await lookup(gateway, "c 1", headers=ben) == []
        params = {"conv_id": "c 1"}
        assert (await gateway.http.delete("/v1/stream", params=params, headers=ben)).status_code == 204
        assert (await gateway.http.get("/v1/stream", params=params, headers=ben)).status_code == 404
        last.set()
        assert b"word3" in (await gateway.http.get("/v1/stream", params=params, headers=anna)).content


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ("", 400, "Missing conversation id in path"), ("conv_id=c&from=x", 400, "Invalid 'from' offset"),
        ("conv_id=c&from=-1", 400, "Invalid 'from' offset"), ("conv_id=c", 404, "Stream not found or expired"),
    ],
)  # fmt: skip
async def test_requests_for_no_stream_have_llama_servers_errors(
    start_gateway: StartGateway, query: str, status: int, message: str
) -> None:
    async with start_gateway({"a": {}}) as gateway:
        response = await gateway.http.get(f"/v1/stream?{query}")
    assert (response.status_code, response.json()["error"]["message"]) == (status, message)


async def test_a_request_that_fails_leaves_no_stream(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}}) as gateway:
        body = {"model": "unknown", "stream": True, "messages": MESSAGES}
        response = await gateway.http.post("/v1/chat/completions", json=body, headers=HEADERS)
        assert response.status_code == 404
        assert await lookup(gateway, "c 1") == []


async def test_without_the_setting_a_disconnect_stops_the_engine(start_gateway: StartGateway) -> None:
    script = {"chunks": 50_000, "chunk_delay": 0.02}
    off = {"streams": {"resume": False}}
    async with start_gateway({"a": {"script": script}}, gateway=off) as gateway:
        await start_and_leave(gateway)
        await gateway.until(lambda: gateway.events("gone"))
        assert (await gateway.http.get("/v1/stream", params={"conv_id": "c 1"})).status_code == 404

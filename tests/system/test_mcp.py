"""The gateway as an MCP server, called by the official client."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import TextContent
from system.running_gateway import RunningGateway, StartGateway

from hostler.gateway.auth import keys
from hostler.gateway.context import KeyRules

pytestmark = pytest.mark.anyio

READING = ["list_models", "status", "why_is_it_slow"]


@asynccontextmanager
async def connected(gateway: RunningGateway, key: str | None = None) -> AsyncIterator[Client]:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    async with (
        httpx2.AsyncClient(headers=headers, trust_env=False, timeout=30) as http,
        Client(streamable_http_client(f"{gateway.url}/mcp", http_client=http)) as client,
    ):
        yield client


async def call(client: Client, name: str, **arguments: Any) -> tuple[bool, Any]:
    """Whether it succeeded, and its text, decoded if it is JSON."""
    result = await client.call_tool(name, arguments)
    (content,) = result.content
    assert isinstance(content, TextContent)
    try:
        return not result.is_error, json.loads(content.text)
    except ValueError:
        return not result.is_error, content.text


async def test_an_agent_looks_loads_switches_and_chats(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"aliases": ["first"]}, "b": {}}) as gateway, connected(gateway) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert sorted(tools) == sorted([*READING, "load_model", "switch_model", "chat"])
        assert tools["chat"].input_schema["required"] == ["prompt"]
        ok, models = await call(client, "list_models")
        assert (ok, sorted(each["name"] for each in models)) == (True, ["a", "b"])
        assert await call(client, "load_model", model="first") == (True, {"model": "a", "state": "loaded"})
        ok, switched = await call(client, "switch_model", model="b")
        assert (ok, switched["stopped"], switched["loaded"]) == (True, ["a"], ["b"])
        ok, text = await call(client, "chat", prompt="Hello", model="a", system="Be brief.", max_tokens=20)
        assert (ok, "word0" in text) == (True, True)
        ok, status = await call(client, "status")
        assert (ok, status["active"], status["hosts"][0]["reachable"]) == (True, "a", True)
        ok, why = await call(client, "why_is_it_slow", model="b")
        assert (ok, why["model"], why["would_be_served_by"]) == (True, "b", "local")
        ok, why = await call(client, "why_is_it_slow")
        assert (why["model"], why["recent_answers"]["answered"]) == ("a", 1)
        assert why["recent_answers"]["switch_s"] > 0
        assert gateway.starts() == ["a", "b", "a"]


async def test_mistakes_are_answered_and_change_nothing(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}}) as gateway, connected(gateway) as client:
        for name, arguments, words in (
            ("load_model", {"model": "none"}, "does not exist"),
            ("load_model", {}, "load_model takes model"),
            ("load_model", {"model": "a", "force": True}, "load_model takes model"),
            ("chat", {"prompt": 3}, "prompt must be of the type string"),
            ("chat", {"prompt": "x", "model": "none"}, "does not exist"),
            ("nothing", {}, "no tool of this name"),
        ):
            ok, text = await call(client, name, **arguments)
            assert (ok, words in str(text)) == (False, True), (name, text)
        assert gateway.starts() == []


@pytest.mark.parametrize(
    ("scopes", "tools"),
    [
        (["read"], READING),
        (["infer", "read"], [*READING, "chat"]),
        (["operate"], [*READING, "load_model", "switch_model"]),
    ],
)
async def test_a_key_has_the_tools_of_its_scopes(
    start_gateway: StartGateway, tmp_path: Path, scopes: list[Any], tools: list[str]
) -> None:
    key = keys.add(tmp_path / "keys", "bob", scopes)
    settings = {"api_keys_file": str(tmp_path / "keys")}
    async with start_gateway({"a": {}}, gateway=settings) as gateway, connected(gateway, key) as client:
        assert sorted(tool.name for tool in (await client.list_tools()).tools) == sorted(tools)
        for name, arguments in (("load_model", {"model": "a"}), ("chat", {"prompt": "x", "model": "a"})):
            if name not in tools:
                assert not (await call(client, name, **arguments))[0]
        assert gateway.starts() == []


async def test_the_limits_of_a_key_hold_for_its_agent(start_gateway: StartGateway, tmp_path: Path) -> None:
    rules = KeyRules(models=("a",), requests_per_minute=1)
    key = keys.add(tmp_path / "keys", "bob", ["infer", "read"], rules=rules)
    settings = {"api_keys_file": str(tmp_path / "keys"), "key_usage_file": str(tmp_path / "usage.json")}
    async with start_gateway({"a": {}, "b": {}}, gateway=settings) as gateway, connected(gateway, key) as client:
        assert [each["name"] for each in (await call(client, "list_models"))[1]] == ["a"]
        assert not (await call(client, "chat", prompt="x", model="b"))[0]
        assert (await call(client, "chat", prompt="x", model="a"))[0]
        ok, text = await call(client, "chat", prompt="x", model="a")
        assert (ok, "1 requests per minute" in text) == (False, True)


async def test_the_entrance_is_that_of_all_routes(start_gateway: StartGateway, tmp_path: Path) -> None:
    key = keys.add(tmp_path / "keys", "bob", ["infer"])
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    async with start_gateway({"a": {}}, gateway={"api_keys_file": str(tmp_path / "keys")}) as gateway:
        for headers, status in (
            ({}, 401),
            ({"Authorization": f"Bearer {key}"}, 403),
            ({"Host": "evil.example"}, 421),
            ({"Origin": "https://evil.example"}, 403),
        ):
            assert (await gateway.http.post("/mcp", json=body, headers=headers)).status_code == status
    async with start_gateway({"a": {}}) as gateway:
        plain = await gateway.http.post("/mcp", content=json.dumps(body), headers={"Content-Type": "text/plain"})
        assert plain.status_code == 415
        local = await gateway.http.post("/mcp", json=body, headers={"Origin": "http://localhost:3000"})
        assert local.status_code == 403


async def test_a_stream_ends_when_the_gateway_stops(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}}, gateway={"drain_s": 600}) as gateway:
        headers = {"Accept": "text/event-stream"}
        async with gateway.http.stream("GET", "/mcp", headers=headers) as answer:
            assert answer.status_code == 200
            gateway.app.stop()
            with pytest.raises(httpx.RemoteProtocolError):
                await answer.aread()
